"""The head: one bias-free linear map to all generated tensors, each with a scale of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Size, Tensor

from lightning_mip.heads import BLOCK, FullHead

FEATURES = 3
SHAPES = {
    "matrix": Size([4, 3]),
    "number": Size([]),
    "vector": Size([7]),
    "empty": Size([0, 2]),
    "kernel": Size([2, 1, 3, 3]),
}
LARGE = {"first": Size([BLOCK - 5]), "across": Size([2, 5]), "large": Size([BLOCK + 1]), "last": Size([])}


def features(n: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, FEATURES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(len(tensor), tensor[0].numel()) for tensor in tensors.values()], dim=1)


@pytest.mark.parametrize("shapes", [SHAPES, LARGE, {"one": Size([])}, {"none": Size([0])}], ids=lambda s: next(iter(s)))
@pytest.mark.parametrize("bias", [False, True])
def test_the_head_is_one_linear_map_cut_into_named_tensors(shapes: dict[str, Size], bias: bool) -> None:
    head = FullHead(FEATURES, shapes, bias=bias).double()
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    x = features()
    tensors = head(x)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {n: (2, *shape) for n, shape in shapes.items()}
    weight = torch.cat([block.T for block in head.blocks])
    assert torch.equal(flat(tensors), torch.cat([x @ block for block in head.blocks], 1) + (head.bias if bias else 0))
    torch.testing.assert_close(flat(tensors), torch.nn.functional.linear(x, weight, head.bias))


def test_a_tensor_across_two_blocks_gets_its_numbers_from_both() -> None:
    head = FullHead(FEATURES, LARGE, init={"first": 0, "across": 1, "large": 0, "last": 0}).double()
    assert [block.shape for block in head.blocks] == [(FEATURES, BLOCK), (FEATURES, BLOCK), (FEATURES, 7)]
    tensors = head(features(1))
    assert tensors["across"].count_nonzero() == 10
    assert [block.count_nonzero().item() for block in head.blocks] == [5 * FEATURES, 5 * FEATURES, 0]
    assert not any(tensors[name].any() for name in ("first", "large", "last"))


@torch.no_grad()
def norms(shapes: dict[str, Size], init: str | dict[str, float] = "fan_out", heads: int = 200) -> dict[str, float]:
    """Root mean square, over initialisations, of the norm of each generated tensor for features of norm 1."""
    head = FullHead(FEATURES, shapes).double()
    x = torch.nn.functional.normalize(features(1))
    squares: dict[str, list[float]] = {name: [] for name in shapes}
    for _ in range(heads):
        head.initialize(init)
        for name, tensor in head(x).items():
            squares[name].append(float(tensor.square().sum()))
    return {name: (sum(values) / heads) ** 0.5 for name, values in squares.items()}


def test_each_tensor_starts_with_the_norm_of_the_features_whatever_its_size() -> None:
    found = norms(SHAPES)
    assert found.pop("empty") == 0
    assert found == pytest.approx(dict.fromkeys(found, 1.0), rel=0.15)


def test_a_tensor_starts_with_the_same_norm_whatever_is_generated_beside_it() -> None:
    alone, beside = norms({"v": Size([9])}), norms({"large": Size([500]), "v": Size([9])})
    assert alone["v"] == pytest.approx(beside["v"], rel=0.15)


def test_the_norm_of_each_tensor_may_be_asked_for() -> None:
    wanted = {"matrix": 0.5, "number": 3.0, "vector": 0.0, "empty": 1.0, "kernel": 10.0}
    assert norms(SHAPES, wanted) == pytest.approx({**wanted, "empty": 0.0}, rel=0.15)


@pytest.mark.parametrize("bias", [False, True])
def test_zero_init_generates_zeros_and_learns_from_the_first_step(bias: bool) -> None:
    head = FullHead(FEATURES, SHAPES, bias=bias, init="zero")
    tensors = head(features().float())
    assert not flat(tensors).any()
    flat(tensors).sum().backward()
    assert all(block.grad.count_nonzero() == block.numel() for block in head.blocks)


def test_the_bias_starts_at_zero_and_trains() -> None:
    torch.manual_seed(0)
    plain = FullHead(FEATURES, SHAPES)
    torch.manual_seed(0)
    biased = FullHead(FEATURES, SHAPES, bias=True)
    x = features().float()
    assert torch.equal(flat(biased(x)), flat(plain(x)))
    flat(biased(x)).sum().backward()
    assert torch.equal(biased.bias.grad, torch.full_like(biased.bias, 2))
    assert plain.bias is None


def test_every_block_has_a_gradient_when_only_one_tensor_is_used() -> None:
    head = FullHead(FEATURES, LARGE)
    head(features().float())["last"].sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert [bool(block.grad.any()) for block in head.blocks] == [False, False, True]


def test_a_batch_generates_what_its_items_do_one_by_one() -> None:
    head = FullHead(FEATURES, SHAPES).double()
    x = features(5)
    together = head(x)
    for k in range(5):
        alone = head(x[k : k + 1])
        for name, tensor in together.items():
            torch.testing.assert_close(alone[name], tensor[k : k + 1])


def test_initialize_draws_anew_and_keeps_the_precision() -> None:
    head = FullHead(FEATURES, SHAPES, init="zero").double()
    head.initialize("fan_out")
    first = flat(head(features()))
    head.initialize("fan_out")
    assert first.dtype == torch.float64
    assert not torch.isclose(flat(head(features())), first).any()


def test_on_the_meta_device_a_head_takes_no_memory() -> None:
    with torch.device("meta"):
        head = FullHead(128, {"weight": Size([10**4, 10**4])})
    assert sum(block.numel() for block in head.blocks) == 128 * 10**8
    assert all(block.is_meta for block in head.blocks)


ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "init": (
        lambda: FullHead(FEATURES, SHAPES, init="fan_in"),
        "init is 'fan_in', expected 'fan_out', 'zero', or a ratio ||delta|| / ||theta0|| > 0.",
    ),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_wrong_arguments_are_refused_with(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    assert str(caught.value) == message
