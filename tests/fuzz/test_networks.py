"""Networks of any shapes, hypernetized with any patterns and any arguments."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import lightning_mip as mip
from lightning_mip import Chunked, HSpace, HyperNetwork, LowRank, Simplex, Uniform
from tests.fuzz.oracle import Refused, fuzz, outcome
from tests.fuzz.values import DTYPES, anything, no_word, tensors, texts

SPACE = HSpace({"lam": Uniform(0, 1), "w": Simplex(3)})
H = {"lam": 0.3, "w": [0.2, 0.3, 0.5]}

shapes = st.lists(st.integers(0, 4), max_size=4).map(torch.Size)


class Any_(nn.Module):
    """Parameters of any names and shapes, some of them in children."""

    def __init__(self, own: dict[str, torch.Size], layers: list[nn.Module]) -> None:
        super().__init__()
        for name, shape in own.items():
            self.register_parameter(name, nn.Parameter(torch.ones(shape)))
        self.layers = nn.ModuleList(layers)


layers: st.SearchStrategy[nn.Module] = st.one_of(
    st.builds(nn.Linear, st.integers(1, 4), st.integers(1, 4), bias=st.booleans()),
    st.builds(nn.Conv2d, st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)),
    st.builds(nn.Embedding, st.integers(1, 5), st.integers(1, 3), padding_idx=st.none() | st.just(0)),
    st.sampled_from([nn.LayerNorm, nn.BatchNorm1d]).map(lambda kind: kind(3)),
    st.builds(nn.GRU, st.integers(1, 2), st.integers(1, 2)),
    st.builds(nn.Linear, st.just(2), st.just(2), dtype=st.sampled_from([torch.float64, torch.bfloat16])),
    st.builds(nn.LazyLinear, st.just(2)),
    st.builds(nn.Linear, st.just(2), st.just(2), dtype=st.just(torch.complex64)),
    st.just(nn.Identity()),
    st.builds(lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))),
)
names = st.sampled_from(["weight", "w[0]", "a*b", "x y", "λ", "bias", "theta"])
networks = st.builds(Any_, st.dictionaries(names, shapes, max_size=3), st.lists(layers, max_size=3))

globs = st.sampled_from(
    [
        "*",
        "",
        "layers",
        "layers.*",
        "layers.0",
        "layers.0.weight",
        "*.weight",
        "*bias",
        "w[[]0]",
        "[",
        "[!a]*",
        "?",
        "**",
    ]
)
pattern: st.SearchStrategy[Any] = (
    globs
    | texts
    | st.sampled_from([nn.Linear, nn.Module, nn.RNNBase, nn.Parameter(torch.ones(1)), int])
    | no_word
    | tensors
)
patterns = globs | st.lists(pattern, max_size=3) | pattern


def generated(net: nn.Module, hyper: HyperNetwork) -> None:
    """Everything asked for is generated, finite, in the shapes of the network; and the plain network is taken out."""
    own = dict(net.named_parameters())
    weights = hyper(H)
    assert {name: weight.shape for name, weight in weights.items()} == {name: own[name].shape for name in weights}
    assert all(weight.isfinite().all() for weight in weights.values())
    plain = dict(mip.materialize(net, H).named_parameters())
    assert list(plain) == list(own)
    for name, parameter in own.items():
        delta = weights[name].to(parameter.dtype) if name in weights else torch.zeros(())
        theta0 = parameter if hyper.residual or name not in weights else torch.zeros(())
        torch.testing.assert_close(plain[name], theta0 + delta, check_dtype=False)


def hypernetized(net: nn.Module, **arguments: Any) -> HyperNetwork:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Norm layers")
        return mip.hypernetize(net, SPACE, **arguments)


@fuzz(120)
@given(net=networks, include=st.just("*") | patterns, exclude=st.just(()) | patterns)
@pytest.mark.filterwarnings("ignore:Initializing zero-element", "ignore:Lazy modules")
def test_a_network_with_any_patterns(net: nn.Module, include: Any, exclude: Any) -> None:
    mistakes = ("include", "exclude", "pattern", "no parameters", "lazy", "has dtype")
    hyper = outcome(lambda: hypernetized(net, include=include, exclude=exclude, hidden_sizes=(3,)), *mistakes)
    if not isinstance(hyper, Refused):
        assert hyper.shapes
        generated(net, hyper)


sizes = st.lists(st.integers(1, 6), min_size=1, max_size=3)
kinds: st.SearchStrategy[Any] = (
    st.just("full") | st.builds(LowRank, st.integers(1, 3)) | st.builds(Chunked, st.integers(9, 20))
)
configured = st.fixed_dictionaries(
    {"class_path": st.sampled_from(["LowRank", "lightning_mip.Chunked", "Full"]) | no_word},
    optional={
        "init_args": st.dictionaries(st.sampled_from(["rank", "size", "embedding", "x"]), st.integers(-1, 9) | anything)
        | anything
    },
)
ARGUMENTS: dict[str, tuple[st.SearchStrategy[Any], st.SearchStrategy[Any]]] = {
    "hidden_sizes": (
        st.none() | sizes | sizes.map(tuple),
        st.lists(st.integers(-1, 4) | anything, max_size=3) | anything,
    ),
    "activation": (
        st.sampled_from([nn.Tanh, nn.ReLU, nn.GELU]),
        st.sampled_from([nn.ReLU(), nn.Threshold, torch.relu]) | anything,
    ),
    "norm": (st.sampled_from([None, "layer", "weight"]), st.just("batch") | texts | no_word),
    "dropout": (st.just(0.0) | st.floats(0, 0.9), st.floats(-1, 2) | anything),
    "head": (kinds, st.dictionaries(globs | texts, kinds | configured | anything, max_size=3) | configured | anything),
    "encoding": (st.sampled_from(["mip", "z|1-z", "none"]), texts | no_word),
    "encoding_norm": (st.sampled_from(["unit", "paper"]), texts | no_word),
    "residual": (st.booleans(), anything),
    "init": (st.sampled_from(["fan_out", "zero", 0.1]), st.floats(-1, 1e6) | texts | no_word),
    "scale": (st.sampled_from([None, "paper", "matched"]), texts | no_word),
    "trunk": (
        st.none(),
        st.sampled_from([nn.Linear(5, 3), nn.Linear(2, 3), nn.Flatten(0), nn.Sequential()]) | anything,
    ),
}


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Some arguments, of which none, one or two have no good value."""
    given = draw(st.sets(st.sampled_from(sorted(ARGUMENTS)), max_size=4))
    wrong = draw(st.sets(st.sampled_from(sorted(ARGUMENTS)), max_size=2))
    return {name: draw(ARGUMENTS[name][name in wrong]) for name in sorted(given | wrong)}


@fuzz(200)
@given(given=arguments(), shape=shapes)
def test_a_hypernetwork_of_any_arguments(given: dict[str, Any], shape: torch.Size) -> None:
    net = nn.ParameterDict({"a": torch.ones(shape), "b": torch.ones(2, 3)})
    hyper = outcome(lambda: hypernetized(net, **given), *ARGUMENTS, "LowRank", "Chunked", "rank", "size", "embedding")
    if not isinstance(hyper, Refused):
        hyper.eval()
        assert set(hyper.shapes) == {"a", "b"}
        generated(net, hyper)
        if given.get("init") == "zero" and hyper.residual:
            assert not any(weight.any() for weight in hyper(H).values())


@fuzz(80)
@given(
    given=st.dictionaries(texts, shapes | st.lists(st.integers(-2, 3), max_size=2) | anything, max_size=3) | anything,
)
def test_a_hypernetwork_for_any_shapes(given: Any) -> None:
    hyper = outcome(lambda: HyperNetwork(SPACE, given, hidden_sizes=(3,)), "shapes")
    if not isinstance(hyper, Refused):
        weights = hyper(H)
        assert {name: weight.shape for name, weight in weights.items()} == {n: torch.Size(s) for n, s in given.items()}


@fuzz(80)
@given(kind=st.sampled_from([LowRank, Chunked]), data=st.data())
def test_a_head_of_any_sizes(kind: Any, data: st.DataObject) -> None:
    given = data.draw(st.lists(st.integers(-1, 20) | anything, min_size=1, max_size=1 if kind is LowRank else 2))
    spec = outcome(lambda: kind(*given), "rank", "size", "embedding")
    if not isinstance(spec, Refused):
        assert spec.config()["init_args"]
        hyper = HyperNetwork(SPACE, {"w": torch.Size([9, 8])}, head=spec, hidden_sizes=(2,))
        assert hyper(H)["w"].shape == (9, 8)


@fuzz(40)
@given(what=anything | networks, h=st.just({"lam": Uniform(0, 1)}))
@pytest.mark.filterwarnings("ignore:Norm layers", "ignore:Initializing zero-element", "ignore:Lazy modules")
def test_anything_in_place_of_a_network(what: Any, h: Any) -> None:
    for call in (
        lambda: mip.hypernetize(what, h),
        lambda: mip.materialize(what, lam=0.5),
        lambda: mip.summary(what, h),
    ):
        outcome(call, "module", "network", "parameters", "lazy", "has dtype", "Any_", "hypernetized", "Identity")


@fuzz(40)
@given(dtype=st.sampled_from([d for d in DTYPES if d.is_floating_point]), given=arguments())
def test_a_network_of_any_precision(dtype: torch.dtype, given: dict[str, Any]) -> None:
    net = nn.Linear(3, 2, dtype=dtype)
    hyper = outcome(lambda: hypernetized(net, **given), *ARGUMENTS, "LowRank", "Chunked", "rank", "size", "embedding")
    if not isinstance(hyper, Refused):
        hyper.eval()
        with mip.at(net, H):
            out: Tensor = net(torch.ones(2, 3, dtype=dtype))
        assert out.dtype == dtype
        assert out.isfinite().all()
