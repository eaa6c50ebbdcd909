"""Values of ``h`` from anything, in every way they are given: as Python objects, on the command line, as grids."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

import lightning_mip as mip
from lightning_mip import HSpace, HyperNetwork
from lightning_mip.dial import parse_grid, parse_h
from lightning_mip.sweep import grid_points
from tests.fuzz.oracle import Refused, fuzz, outcome
from tests.fuzz.values import DTYPES, anything, no_word, numbers, texts
from tests.strategies import spaces

SHAPES = {"weight": torch.Size([2, 3]), "bias": torch.Size([2]), "scale": torch.Size([])}


@st.composite
def forms(draw: st.DrawFn, value: Tensor) -> Any:
    """A value of a component in one of the ways to write it, some of which change it a little."""
    form = draw(st.sampled_from(["tensor", "list", "numpy", "dtype", "gradient", "text", "readonly", "nested"]))
    if form == "dtype":
        return value.to(draw(st.sampled_from([*DTYPES, torch.complex64])))
    if form == "gradient":
        return value.clone().requires_grad_() if value.is_floating_point() else value
    if form == "readonly":
        array = value.numpy().copy()
        array.flags.writeable = False
        return array
    return {
        "tensor": value,
        "list": value.tolist(),
        "numpy": value.double().numpy() if value.ndim else np.float32(value),
        "text": str(value.tolist()),
        "nested": [value, value],
    }[form]


@st.composite
def points(draw: st.DrawFn, space: HSpace) -> Any:
    """Something like a value of the space: a draw of it, in some form, of which a part is changed."""
    n = draw(st.none() | st.integers(0, 3))
    h: dict[Any, Any] = {
        name: draw(forms(value)) for name, value in space.sample(seed=draw(st.integers(0, 9)), step=0, n=n).items()
    }
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(sorted(space)) | texts | numbers.filter(lambda x: not isinstance(x, Tensor)))
        if draw(st.booleans()):
            h.pop(name, None)
        else:
            h[name] = draw(anything)
    return h


def is_good(space: HSpace, h: dict[str, Tensor]) -> bool:
    """Whether it is what `HSpace.tensors` promises."""
    same = HSpace.tensors(space, h)
    return list(h) == list(space) and all(torch.equal(same[name], h[name]) for name in space)


@fuzz(150)
@given(space=spaces(), data=st.data())
def test_an_encoding_of_any_value(space: HSpace, data: st.DataObject) -> None:
    h = data.draw(points(space) | anything)
    found = outcome(lambda: space.tensors(h), "h[", "h has", "h lacks", "h is")
    if not isinstance(found, Refused):
        assert is_good(space, found)
        vectors = space.encode(h)
        batch = {len(v) for name, v in found.items() if v.ndim > len(space[name].event_shape)}
        assert vectors.shape[:-1] == torch.Size(batch)
        half = any(value.element_size() < 4 and value.is_floating_point() for value in found.values())
        torch.testing.assert_close(
            vectors.double().norm(dim=-1), torch.ones(tuple(batch)).double(), rtol=0, atol=2e-2 if half else 1e-5
        )


@fuzz(60)
@given(space=spaces(), data=st.data(), encoding=st.sampled_from(["mip", "z|1-z", "none"]))
def test_a_hypernetwork_at_any_value(space: HSpace, data: st.DataObject, encoding: Any) -> None:
    hyper = HyperNetwork(space, SHAPES, hidden_sizes=(4,), encoding=encoding)
    h = data.draw(points(space))
    weights = outcome(lambda: hyper(h), "h[", "h has", "h lacks", "h is")
    if not isinstance(weights, Refused):
        given = space.tensors(h)
        batch = {len(v) for name, v in given.items() if v.ndim > len(space[name].event_shape)}
        assert {name: tuple(w.shape) for name, w in weights.items()} == {n: (*batch, *s) for n, s in SHAPES.items()}
        assert all(weight.isfinite().all() for weight in weights.values())


@fuzz(40)
@given(space=spaces(), data=st.data())
def test_a_network_at_any_value(space: HSpace, data: st.DataObject) -> None:
    net = nn.Linear(3, 2)
    mip.hypernetize(net, space, hidden_sizes=(4,))
    h = data.draw(points(space))
    plain = outcome(lambda: mip.materialize(net, h), "h[", "h has", "h lacks", "h is")

    def run() -> Tensor:
        with mip.at(net, h):
            return net(torch.ones(1, 3))

    found = outcome(run, "h[", "h has", "h lacks", "h is")
    assert isinstance(plain, Refused) == isinstance(found, Refused)
    if not isinstance(plain, Refused):
        torch.testing.assert_close(found, plain(torch.ones(1, 3)))
        assert found.isfinite().all()


pieces = st.sampled_from(["lam", "phi", "=", "=", ":", ",", "at:", "log:", "0", "1", "0.5", "1e3", "nan", "inf", "-"])
written = st.lists(pieces | st.text(max_size=2) | st.floats().map(str) | st.integers(-9, 99).map(str), max_size=7).map(
    "".join
)


@st.composite
def on_a_command_line(draw: st.DrawFn, space: HSpace) -> list[str]:
    """Strings as they follow ``--h`` or ``--grid``: of the right names, with right and wrong values."""
    name = st.sampled_from(sorted(space)) | texts
    value = (
        st.sampled_from(["0.5", "1", "3", "0:1:3", "log:0.1:1:3", "at:0.5,0.6", "0.25:0.75", "21", "0:1:0"]) | written
    )
    return draw(st.lists(st.builds("{}={}".format, name, value) | written, max_size=4))


@fuzz(200)
@given(space=spaces(), data=st.data())
def test_a_dial_of_any_text(space: HSpace, data: st.DataObject) -> None:
    strings = data.draw(on_a_command_line(space))
    h = outcome(lambda: parse_h(strings, space), "--h")
    if not isinstance(h, Refused):
        assert is_good(space, h)
        assert not space.is_batched(h)


@fuzz(200)
@given(space=spaces(), data=st.data())
def test_a_grid_of_any_text(space: HSpace, data: st.DataObject) -> None:
    strings = data.draw(on_a_command_line(space))
    axes = outcome(lambda: parse_grid(strings, space), "--grid")
    if not isinstance(axes, Refused):
        assert list(axes) == list(space)
        assert all(len(values) for values in axes.values())
        assert is_good(space, {name: values[0] for name, values in axes.items()})


@fuzz(150)
@given(space=spaces(), data=st.data())
def test_a_grid_of_anything(space: HSpace, data: st.DataObject) -> None:
    of_one = st.integers(-1, 4) | st.lists(st.floats(0, 1), max_size=3) | anything
    grid = data.draw(
        st.integers(-1, 3)
        | st.dictionaries(st.sampled_from(sorted(space)) | texts, of_one, max_size=3)
        | st.lists(points(space), max_size=3)
        | anything
    )
    found = outcome(lambda: grid_points(space, grid), "grid", "h[", "h has", "h lacks", "h is")
    if not isinstance(found, Refused):
        assert found
        assert all(is_good(space, h) and not space.is_batched(h) for h in found)
        labels = [space.label(h) for h in found]
        assert len(set(labels)) == len(labels)


@fuzz(100)
@given(space=spaces(), n=st.integers(-1, 4) | anything, data=st.data())
def test_a_grid_of_a_space_of_anything(space: HSpace, n: Any, data: st.DataObject) -> None:
    given = data.draw(st.just(n) | st.just(dict.fromkeys(space, n)))
    found = outcome(lambda: space.grid(given), "grid", "h[", "h has", "h lacks", "h is")
    if not isinstance(found, Refused):
        assert all(is_good(space, h) for h in found)


SAMPLE = {
    "seed": st.integers(0, 9),
    "rank": st.integers(0, 3),
    "step": st.integers(0, 50),
    "n": st.none() | st.integers(0, 4),
    "strategy": st.sampled_from(["random", "sobol", "stratified"]),
    "world_size": st.integers(1, 4),
}


@fuzz(150)
@given(space=spaces(), data=st.data())
def test_a_draw_of_any_arguments(space: HSpace, data: st.DataObject) -> None:
    wrong = data.draw(st.lists(st.sampled_from(sorted(SAMPLE)), max_size=2))
    arguments = {
        name: data.draw((no_word if name == "strategy" else anything) if name in wrong else values)
        for name, values in SAMPLE.items()
    }
    assume(not isinstance(arguments["n"], int) or arguments["n"] < 1000)
    assume(not isinstance(arguments["step"], int) or arguments["step"] < 10**10)
    h = outcome(lambda: space.sample(**arguments), *(f"{name} is" for name in SAMPLE))
    if not isinstance(h, Refused):
        assert is_good(space, h)
