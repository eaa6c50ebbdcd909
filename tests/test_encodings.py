"""Encodings: the published one of constant norm, and two for ablation."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_mip import Categorical, HSpace, LogUniform, Prior, Simplex, Uniform
from lightning_mip.encodings import encode
from tests.strategies import law, spaces

ONE = {"lam": Uniform(0, 1)}


def draws(space: HSpace, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Eight draws and the middle of a space; categories keep their own kind of number."""
    drawn, center = space.sample(seed=seed, step=0, n=8), space.center()
    values = {name: torch.cat([drawn[name], center[name].unsqueeze(0)]) for name in space}
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in values.items()}


@law
@given(space=spaces(), seed=st.integers(0, 99), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_the_norm_is_one_for_every_h_of_every_space(space: HSpace, seed: int, dtype: torch.dtype) -> None:
    norms = encode(space, draws(space, seed, dtype)).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-6)


@law
@given(space=spaces(), seed=st.integers(0, 99))
def test_the_published_norm_is_the_root_of_the_number_of_components(space: HSpace, seed: int) -> None:
    h = draws(space, seed, torch.float64)
    published = encode(space, h, norm="paper")
    torch.testing.assert_close(published.norm(dim=-1) / math.sqrt(len(space)), torch.ones_like(published[:, 0]))
    torch.testing.assert_close(published / math.sqrt(len(space)), encode(space, h))


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("mip", [0, 1, 0, math.sqrt(0.5), math.sqrt(0.5), 0.5, math.sqrt(0.75)]),
        ("z|1-z", [0, 1, 0, 1, 0, 1, 0.5, 0.5, 0.25, 0.75, 0.75, 0.25]),
        ("none", [0, 1, 0, 1, 0.25, 0.75]),
    ],
)
def test_components_follow_each_other_in_the_order_given(encoding: str, expected: list[float]) -> None:
    priors: dict[str, Prior] = {"task": Categorical(3), "rate": LogUniform(0.01, 100), "trade": Simplex(2)}
    h = {"task": torch.tensor(1), "rate": torch.tensor(1.0).double(), "trade": torch.tensor([0.25, 0.75]).double()}
    found = encode(priors, h, encoding, norm="paper")
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("encoding", "at", "expected"),
    [
        ("mip", 1.0, [math.cos(math.pi / 8), math.sin(math.pi / 8)]),
        ("z|1-z", 1.0, [0.25, 0.75]),
        ("none", 1.0, [1.0]),
        ("none", -1.0, [-1.0]),
    ],
)
def test_a_number_is_encoded_by_its_position_and_raw_without_an_encoding(
    encoding: str, at: float, expected: list[float]
) -> None:
    prior = Uniform(-1, 7)
    found = encode({"lam": prior}, {"lam": torch.tensor(at, dtype=torch.float64)}, encoding)
    assert found.tolist() == pytest.approx(expected, abs=1e-15)


@law
@given(a=st.floats(0, 1), b=st.floats(0, 1))
def test_the_angle_between_two_encodings_is_their_distance_in_quarter_turns(a: float, b: float) -> None:
    h = torch.tensor([a, b], dtype=torch.float64)
    left, right = encode(ONE, {"lam": h})
    assert left @ right == pytest.approx(math.cos((a - b) * math.pi / 2), abs=1e-12)


@pytest.mark.parametrize("encoding", ["z|1-z", "none"])
def test_the_encodings_for_ablation_have_no_constant_norm_and_take_no_scale(encoding: str) -> None:
    h = {"lam": torch.tensor([0.5, 1.0]), "phi": torch.tensor([0.5, 1.0])}
    priors: dict[str, Prior] = {"lam": Uniform(0, 1), "phi": Uniform(0, 1)}
    norms = encode(priors, h, encoding).norm(dim=-1)
    assert norms[1] / norms[0] == pytest.approx({"z|1-z": math.sqrt(2), "none": 2}[encoding])
    assert torch.equal(encode(priors, h, encoding), encode(priors, h, encoding, norm="paper"))


@pytest.mark.parametrize("encoding", ["mip", "z|1-z", "none"])
def test_batch_dimensions_and_precision_are_those_of_h(encoding: str) -> None:
    priors: dict[str, Prior] = {"lam": Uniform(0, 1), "trade": Simplex(3), "task": Categorical(2)}
    h = {name: prior.grid(5)[[0, 1, 1, 0, 1, 0]] for name, prior in priors.items()}
    folded = {name: value.reshape(2, 3, *value.shape[1:]) for name, value in h.items()}
    flat = encode(priors, h, encoding)
    assert flat.dtype == torch.float64
    assert torch.equal(encode(priors, folded, encoding), flat.reshape(2, 3, -1))
    single = {name: value.float() for name, value in h.items()}
    assert encode(priors, single, encoding).dtype == torch.float32


ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "encoding": (
        lambda: encode(ONE, {"lam": torch.tensor(0.5)}, "cos|sin"),
        "encoding is 'cos|sin', expected one of 'mip', 'z|1-z', 'none'.",
    ),
    "norm": (
        lambda: encode(ONE, {"lam": torch.tensor(0.5)}, norm="l2"),
        "encoding norm is 'l2', expected one of 'unit', 'paper'.",
    ),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_wrong_arguments_are_refused_with(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    assert str(caught.value) == message
