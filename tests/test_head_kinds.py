"""The laws that every kind of head obeys, so that one may stand in for another."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Size, Tensor, nn

from lightning_mip import Chunked, LowRank, heads
from lightning_mip.head_choice import make_head
from lightning_mip.heads import Family, Head
from tests.module_kinds import exactly
from tests.strategies import law

FEATURES = 3
SHAPES = {
    "matrix": Size([6, 8]),
    "vector": Size([7]),
    "kernel": Size([4, 3, 3, 3]),
    "number": Size([]),
    "empty": Size([0, 2]),
}
CHOICES: dict[str, Any] = {
    "full": "full",
    "low rank": LowRank(2),
    "chunked": Chunked(10, embedding=2),
    "mixed": {"matrix": LowRank(1), "kernel": Chunked(9, 3), "*": "full"},
}
kinds = pytest.mark.parametrize("kind", CHOICES)
families = pytest.mark.parametrize("family", ["adam", "sgd"])


def make(kind: str, shapes: dict[str, Size] = SHAPES, features: int = FEATURES, **arguments: Any) -> Head:
    torch.manual_seed(0)
    head = make_head(CHOICES[kind], features, shapes, **{"bias": False, "init": "fan_out", **arguments})
    return head.double()


def features(n: int = 2, width: int = FEATURES, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(len(tensor), tensor[0].numel()) for tensor in tensors.values()], dim=1)


@kinds
@pytest.mark.parametrize("bias", [False, True])
def test_all_tensors_come_in_order_and_shape_and_belong_to_a_kind(kind: str, bias: bool) -> None:
    head = make(kind, bias=bias)
    tensors = head(features())
    assert {name: tensor.shape for name, tensor in tensors.items()} == {n: (2, *s) for n, s in SHAPES.items()}
    assert list(tensors) == list(SHAPES) == list(head.kinds) == list(head.shapes)
    assert {name for name, own in head.kinds.items() if own == "full"} >= {"number", "empty"}


@kinds
@families
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_right(kind: str, family: Family, bias: bool) -> None:
    head = make(kind, bias=bias)
    head.match(family)
    names = [name for name, _ in head.named_parameters()]

    def generate(x: Tensor, *parameters: Tensor) -> Tensor:
        return flat(torch.func.functional_call(head, dict(zip(names, parameters, strict=True)), (x,)))

    assert torch.autograd.gradcheck(generate, (features().requires_grad_(), *head.parameters()))


@kinds
def test_a_batch_generates_what_its_items_do_one_by_one_and_under_vmap(kind: str) -> None:
    head, x = make(kind, bias=True), features(4)
    together = flat(head(x))
    torch.testing.assert_close(torch.cat([flat(head(x[k : k + 1])) for k in range(4)]), together)
    torch.testing.assert_close(torch.vmap(lambda one: flat(head(one.unsqueeze(0))).squeeze(0))(x), together)


@kinds
@families
@law
@given(st.floats(1e-6, 1e6))
def test_what_is_generated_is_proportional_to_the_size_of_the_features(kind: str, family: Family, size: float) -> None:
    head, x = make(kind), features()
    head.match(family)
    torch.testing.assert_close(flat(head(size * x)), size * flat(head(x)), rtol=1e-9, atol=0)


@kinds
def test_features_of_zero_generate_zeros_with_finite_gradients(kind: str) -> None:
    head, x = make(kind), torch.zeros(1, FEATURES, dtype=torch.float64, requires_grad=True)
    found = flat(head(x))
    assert not found.any()
    found.sum().backward()
    assert x.grad.isfinite().all()


@torch.no_grad()
def norms(head: Head, init: Any, heads: int = 300) -> dict[str, float]:
    """Root mean square, over initialisations, of the norm of each generated tensor for features of norm 1."""
    x = nn.functional.normalize(features(1))
    squares = torch.zeros(len(SHAPES), dtype=torch.float64)
    for _ in range(heads):
        head.initialize(init)
        squares += torch.stack([tensor.square().sum() for tensor in head(x).values()]) / heads
    return dict(zip(head.shapes, squares.sqrt().tolist(), strict=True))


@kinds
@families
def test_each_tensor_starts_with_the_norm_asked_for(kind: str, family: Family) -> None:
    head = make(kind)
    head.match(family)
    asked = {"matrix": 0.5, "vector": 0.0, "kernel": 10.0, "number": 3.0, "empty": 1.0}
    assert norms(head, asked) == pytest.approx({**asked, "empty": 0}, rel=0.15)
    assert norms(head, "fan_out") == pytest.approx({**dict.fromkeys(SHAPES, 1.0), "empty": 0}, rel=0.15)


@torch.no_grad()
@kinds
def test_the_first_draw_is_as_large_as_later_ones(kind: str) -> None:
    x = nn.functional.normalize(features(1))
    squares = []
    for seed in range(200):
        torch.manual_seed(seed)
        tensors = make_head(CHOICES[kind], FEATURES, SHAPES, bias=False, init=dict.fromkeys(SHAPES, 2.0)).double()(x)
        squares.append([float(tensor.square().sum()) for tensor in tensors.values()])
    assert torch.tensor(squares).mean(0).sqrt().tolist() == pytest.approx([2, 2, 2, 2, 0], rel=0.2)


@kinds
@families
@pytest.mark.parametrize("bias", [False, True])
def test_zero_init_generates_zeros_and_every_tensor_learns_from_the_first_step(
    kind: str, family: Family, bias: bool
) -> None:
    head, x = make(kind, bias=bias, init="zero"), features(1)
    head.match(family)
    optimizer = torch.optim.SGD(head.parameters(), 0.01)
    assert not flat(head(x)).any()
    flat(head(x)).square().sub(1).square().sum().add(flat(head(x)).sum()).backward()
    optimizer.step()
    assert flat(head(x)).all()


@kinds
def test_a_silenced_row_is_zero_and_stays_so_without_a_gradient(kind: str) -> None:
    head, x = make(kind), features()
    others, before = [0, 1, 3, 4, 5], head(x)["matrix"]
    head.silence("matrix", 2)
    assert torch.equal(head(x)["matrix"][:, others], before[:, others])
    optimizer = torch.optim.Adam(head.parameters(), 0.1)
    for _ in range(3):
        matrix = head(x)["matrix"]
        assert not matrix[:, 2].any()
        optimizer.zero_grad()
        matrix[:, others].square().sum().backward()
        optimizer.step()
    assert not torch.isclose(head(x)["matrix"][:, others], before[:, others]).any()


@pytest.mark.parametrize("row", range(6))
@torch.no_grad()
def test_a_row_is_silenced_wherever_the_blocks_of_the_full_head_end(row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "BLOCK", 11)
    head, x = make("full", {"first": Size([5]), **SHAPES}), features()
    before = head(x)
    head.silence("matrix", row)
    before["matrix"][:, row] = 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in head(x).items())


@kinds
@torch.no_grad()
def test_matching_leaves_what_is_generated_as_it_is(kind: str) -> None:
    head, x = make(kind), features()
    states = []
    before = flat(head(x))
    families: tuple[Family, ...] = ("sgd", "sgd", "adam", "sgd", "adam")
    for family in families:
        head.match(family)
        torch.testing.assert_close(flat(head(x)), before, rtol=1e-12, atol=1e-15)
        states.append([parameter.clone() for parameter in head.parameters()])
    torch.testing.assert_close(states[0], states[3])
    torch.testing.assert_close(states[2], states[4])


@kinds
@torch.no_grad()
def test_what_is_generated_may_be_multiplied_tensor_by_tensor_but_the_bias_stays(kind: str) -> None:
    head, x = make(kind, bias=True), features()
    bias = head.bias
    assert bias is not None
    before = head(x)
    nn.init.normal_(bias)
    with_bias, factors = head(x), dict(zip(SHAPES, (2.0, 0.0, -0.5, 3.0, 1.0), strict=True))
    head.multiply(factors)
    for name, tensor in head(x).items():
        torch.testing.assert_close(tensor, with_bias[name] + (factors[name] - 1) * before[name])


def matched(head: Head, family: Family, width: int) -> Tensor:
    """Features of a LeakyReLU trunk, scaled as the hypernetwork scales them for a family of optimizers."""
    head.match(family)
    x = nn.functional.leaky_relu(features(1, width))
    return nn.functional.normalize(x, p=1 if family == "adam" else 2)


STEPPED: dict[str, Callable[[int], Any]] = {
    "full": lambda rank: "full",
    "low rank": LowRank,
    "chunked": lambda rank: Chunked(64 * rank, rank),
}


def change(kind: str, rank: int, width: int, family: Family, init: Any, lr: float) -> tuple[Tensor, Tensor]:
    """The change of a generated 64 x 128 matrix by one step, and the gradient that it follows."""
    torch.manual_seed(0)
    head = make_head(STEPPED[kind](rank), width, {"w": Size([64, 128])}, bias=False, init=init).double()
    x = matched(head, family, width)
    gradient = torch.randn(64, 128, dtype=torch.float64)
    kind_of = torch.optim.SGD if family == "sgd" else torch.optim.Adam
    optimizer = kind_of(head.parameters(), lr, **({} if family == "sgd" else {"eps": 1e-20}))  # type: ignore[arg-type]
    before = head(x)["w"][0]
    (before * gradient).sum().backward()
    optimizer.step()
    return (head(x)["w"][0] - before).detach(), gradient


@pytest.mark.parametrize("kind", STEPPED)
@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("width", [4, 32, 128])
@pytest.mark.parametrize("init", ["zero", {"w": 0.2}], ids=["zero", "small"])
def test_one_step_of_adam_moves_each_number_by_about_the_learning_rate(
    kind: str, rank: int, width: int, init: Any
) -> None:
    moved, gradient = change(kind, rank, width, "adam", init, lr=1e-3)
    assert float(moved.square().mean().sqrt()) == pytest.approx(1e-3, rel=0.35)
    assert float(moved.abs().max()) < 6e-3
    assert float((moved * gradient).sum()) < 0


@pytest.mark.parametrize("kind", STEPPED)
@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("width", [4, 32, 128])
@pytest.mark.parametrize("init", ["zero", {"w": 0.2}], ids=["zero", "small"])
def test_one_step_of_sgd_is_the_plain_step_as_far_as_the_head_can_follow_it(
    kind: str, rank: int, width: int, init: Any
) -> None:
    moved, gradient = change(kind, rank, width, "sgd", init, lr=1e-3)
    plain = -1e-3 * gradient
    # Of an orthogonal projection p of v, <p, v> = <p, p>.
    assert float((moved * plain).sum() / moved.square().sum()) == pytest.approx(1, rel=0.35)
    if kind == "full":
        torch.testing.assert_close(moved, plain)


def test_the_shared_part_of_chunks_does_not_take_larger_steps_where_there_are_more_of_them() -> None:
    found = []
    for rows in (8, 512):
        torch.manual_seed(0)
        head = make_head(Chunked(64, 4), 16, {"w": Size([rows, 64])}, bias=False, init={"w": math.sqrt(rows)}).double()
        x = matched(head, "sgd", 16)
        target = torch.randn(64, dtype=torch.float64).expand(rows, 64)
        before = head.parts[0].shared.detach().clone() / head.parts[0]._stored("sgd")
        (head(x)["w"][0] * target).sum().backward()
        torch.optim.SGD([head.parts[0].shared], 1e-3).step()
        found.append(float((head.parts[0].shared.detach() / head.parts[0]._stored("sgd") - before).norm()))
    assert found[1] < 2 * found[0]


@kinds
@families
def test_copies_pickles_and_states_generate_the_same(kind: str, family: Family) -> None:
    head, x = make(kind, bias=True), features()
    head.match(family)
    head.silence("matrix", 1)
    expected = flat(head(x))
    assert torch.equal(flat(copy.deepcopy(head)(x)), expected)
    assert torch.equal(flat(pickle.loads(pickle.dumps(head))(x)), expected)
    buffer = io.BytesIO()
    torch.save(head.state_dict(), buffer)
    buffer.seek(0)
    other = make(kind, bias=True, init="zero")
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(flat(other(x)), expected)


@kinds
def test_every_parameter_has_a_gradient_when_only_one_tensor_is_used(kind: str) -> None:
    for name in ("matrix", "vector", "kernel", "number"):
        head = make(kind)
        head(features())[name].sum().backward()
        assert all(parameter.grad is not None for parameter in head.parameters()), name


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own use, in the first jvp
@kinds
def test_second_and_forward_derivatives_are_right(kind: str) -> None:
    head, x = make(kind), features(1)
    assert torch.autograd.gradgradcheck(lambda x: flat(head(x)), x.requires_grad_())
    _, tangent = torch.func.jvp(lambda x: flat(head(x)), (x.detach(),), (torch.ones_like(x),))
    expected = torch.autograd.functional.jacobian(lambda x: flat(head(x))[0], x.detach()).sum((1, 2))
    torch.testing.assert_close(tangent[0], expected)


@kinds
def test_it_compiles_as_one_graph(kind: str) -> None:
    head, x = make(kind, bias=True), features()
    head.silence("matrix", 1)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: flat(head(x)), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), flat(head(x)))
    compiled(x).sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    torch.compiler.reset()


@kinds
def test_weights_alone_without_what_else_a_checkpoint_holds_generate_the_same(kind: str) -> None:
    theirs, ours = make(kind), make(kind)
    theirs.match("sgd")
    weights = {name: value for name, value in theirs.state_dict().items() if isinstance(value, torch.Tensor)}
    ours.load_state_dict(weights, strict=False)
    torch.testing.assert_close(ours(features()), theirs(features()))


@kinds
def test_on_the_meta_device_it_has_the_same_parameters(kind: str) -> None:
    with torch.device("meta"):
        planned = make_head(CHOICES[kind], FEATURES, SHAPES, bias=True, init="fan_out")
        planned.match("sgd")
    assert all(parameter.is_meta for parameter in planned.parameters())
    assert [p.shape for p in planned.parameters()] == [p.shape for p in make(kind, bias=True).parameters()]


@kinds
@pytest.mark.parametrize("call", ["match", "init"])
def test_a_wrong_word_is_refused(kind: str, call: str) -> None:
    if call == "match":
        with pytest.raises(ValueError, match=exactly("family is 'rmsprop', expected 'adam' or 'sgd'.")):
            make(kind).match("rmsprop")  # type: ignore[arg-type]
    else:
        text = "init is 'fan_in', expected 'fan_out', 'zero', or a ratio ||delta|| / ||theta0|| > 0."
        with pytest.raises(ValueError, match=exactly(text)):
            make(kind, init="fan_in")
