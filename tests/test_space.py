"""HSpace: named priors that are drawn, encoded, laid out in a grid, and written into checkpoints together."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch import distributions as dist

import lightning_mip as mip
from lightning_mip import Categorical, FromTorch, HSpace, LogUniform, Normal, Prior, Simplex, Uniform
from tests.strategies import continuous, law, spaces

PRIORS: dict[str, Prior] = {
    "phi": LogUniform(0.1, 10),
    "lam": Uniform(0, 1),
    "task": Categorical(3),
    "a.b": Simplex(3),
    "z": Normal(),
}
STRATEGIES = ("random", "sobol", "stratified")


@dataclass(frozen=True)
class Squared(Prior):
    """The square of a uniform number, the prior of a user."""

    top: float = 1.0
    weights: tuple[float, ...] = ()

    def cdf(self, h: Tensor) -> Tensor:
        return (h / self.top).sqrt()

    def icdf(self, u: Tensor) -> Tensor:
        return self.top * u**2

    def contains(self, h: Tensor) -> Tensor:
        return (h >= 0) & (h <= self.top)

    def grid(self, n: int) -> Tensor:
        return self.icdf(torch.linspace(0, 1, n))


class Bare(Squared):
    """Says itself how it is written down, without being a dataclass of its own."""

    def config(self) -> dict[str, Any]:
        return {"class_path": f"{__name__}.Bare", "init_args": {"top": self.top}}


class Handwritten(Prior):
    """A prior whose arguments nobody can see."""

    cdf = icdf = contains = grid = lambda self, value: torch.as_tensor(value)  # type: ignore[assignment]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def reloaded(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_a_space_is_a_mapping_in_sorted_order_of_names() -> None:
    space = HSpace(PRIORS)
    assert list(space) == ["a.b", "lam", "phi", "task", "z"]
    assert len(space) == 5
    assert space["lam"] == Uniform(0, 1)
    assert "mu" not in space
    assert HSpace(space) == space == PRIORS
    assert repr(HSpace({"lam": Uniform(0, 1)})) == "HSpace({'lam': Uniform(low=0, high=1, endpoints=0.0)})"


def test_nothing_depends_on_the_order_in_which_components_are_listed() -> None:
    one, other = HSpace(PRIORS), HSpace(dict(reversed(PRIORS.items())))
    h = one.sample(seed=0, step=1)
    assert same(other.sample(seed=0, step=1), h)
    assert torch.equal(one.encode(h), other.encode(dict(reversed(h.items()))))
    assert other.label(dict(reversed(h.items()))) == one.label(h)
    assert all(same(a, b) for a, b in zip(one.grid(2), other.grid(2), strict=True))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_sample_is_a_function_of_its_arguments(strategy: str) -> None:
    def draw(step: int, rank: int = 0, seed: int = 0) -> dict[str, Tensor]:
        return HSpace(PRIORS).sample(seed=seed, rank=rank, step=step, strategy=strategy, world_size=2)

    torch.manual_seed(1)
    first, state = draw(7), torch.get_rng_state()
    draw(9), draw(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same(draw(7), first)
    others = [draw(8), draw(7, rank=1), draw(7, seed=1)]
    assert all(h[name].ne(first[name]).all() for h in others for name in ("lam", "phi", "z", "a.b"))


@law
@given(space=spaces(), seed=st.integers(0, 9), strategy=st.sampled_from(STRATEGIES))
def test_samples_lie_in_the_space_with_the_shapes_of_their_components(space: HSpace, seed: int, strategy: str) -> None:
    one, several = (space.sample(seed=seed, step=3, n=n, strategy=strategy) for n in (None, 4))
    for name, prior in space.items():
        assert one[name].shape == prior.event_shape
        assert several[name].shape == (4, *prior.event_shape)
    assert same(space.tensors(one), one)
    assert same(space.tensors(several), several)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_grids_and_centers_have_the_default_precision_and_categories_their_own(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    try:
        space = HSpace({**PRIORS, "g": FromTorch(dist.Uniform(0.1, 0.3))})
        found = [space.sample(seed=0, step=0), space.center(), space.grid(1)[0], space.grid(2)[-1]]
        assert all(space.tensors(h) for h in found)
    finally:
        torch.set_default_dtype(torch.float32)
    for h in found:
        assert h["task"].dtype == torch.int64
        assert {h[name].dtype for name in h if name != "task"} == {dtype}


def test_components_of_one_prior_are_drawn_independently() -> None:
    h = HSpace({"a": Uniform(0, 1), "b": Uniform(0, 1)}).sample(seed=0, step=0, n=1000)
    assert abs(scipy.stats.pearsonr(h["a"].numpy(), h["b"].numpy()).statistic) < 0.1


def test_endpoints_are_drawn_as_often_as_asked() -> None:
    space = HSpace({"lam": Uniform(2, 4, endpoints=0.2)})
    steps = torch.stack([space.sample(seed=0, step=step, strategy="stratified")["lam"] for step in range(800)])
    assert (steps == 2).float().mean() == pytest.approx(0.1, abs=0.02)
    assert (steps == 4).float().mean() == pytest.approx(0.1, abs=0.02)


def test_a_grid_holds_every_combination_of_the_components_values() -> None:
    space = HSpace({"lam": Uniform(0, 1), "task": Categorical(2), "rate": LogUniform(0.1, 10)})
    grid = space.grid({"lam": 2, "task": 1, "rate": 3})
    found = [(h["lam"].item(), round(h["rate"].item(), 6), h["task"].item()) for h in grid]
    assert found == list(itertools.product([0, 1], [0.1, 1, 10], [0, 1]))
    assert len(space.grid()) == 5 * 5 * 2
    assert len(space.grid(1)) == 2


@law
@given(space=spaces(), n=st.integers(1, 3))
def test_every_point_of_every_grid_is_a_value_of_the_space(space: HSpace, n: int) -> None:
    for h in [*space.grid(n)[:20], space.center()]:
        assert space.encode(h).norm().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"lam": 0.5, "task": 1}, {"lam": 0.5, "task": 1}),
        ({"lam": [0.5, 1], "task": 1}, {"lam": [0.5, 1], "task": [1, 1]}),
        ({"lam": 0, "task": (0, 2)}, {"lam": [0, 0], "task": [0, 2]}),
        ({"task": torch.tensor([2]), "lam": torch.tensor([0.5])}, {"lam": [0.5], "task": [2]}),
    ],
)
def test_numbers_sequences_and_tensors_become_tensors_of_one_batch(
    given: dict[str, Any], expected: dict[str, Any]
) -> None:
    space = HSpace({"lam": Uniform(0, 1), "task": Categorical(3)})
    tensors = space.tensors(given)
    assert {name: value.tolist() for name, value in tensors.items()} == expected
    assert tensors["lam"].dtype == torch.float32
    assert space.is_batched(tensors) == isinstance(expected["lam"], list)


def test_a_preference_vector_is_expanded_to_the_batch_of_the_others() -> None:
    space = HSpace({"trade": Simplex(2), "lam": Uniform(0, 1)})
    tensors = space.tensors({"trade": [0.25, 0.75], "lam": [0.1, 0.2, 0.3]})
    assert tensors["trade"].tolist() == [[0.25, 0.75]] * 3
    assert not space.is_batched(space.tensors({"trade": [0.25, 0.75], "lam": 0.1}))


def test_the_precision_of_tensors_is_kept() -> None:
    space = HSpace({"lam": Uniform(0, 1), "rate": LogUniform(1, 4)})
    h = {"lam": torch.tensor(0.3, dtype=torch.float64), "rate": torch.tensor(2, dtype=torch.float64)}
    assert space.encode(h).dtype == torch.float64
    assert space.encode({"lam": 0.3, "rate": 2}).dtype == torch.float32


@pytest.mark.parametrize("encoding", ["mip", "z|1-z", "none"])
@pytest.mark.parametrize("step", range(3))
def test_the_encoding_is_differentiable_in_h(encoding: str, step: int) -> None:
    space = HSpace({**PRIORS, "gumbel": dist.Gumbel(0.0, 1.0)})
    h = {name: value.double() for name, value in space.sample(seed=0, step=step).items()}
    task = h.pop("task")
    leaves = [value.requires_grad_() for value in h.values()]

    def encoded(*values: Tensor) -> Tensor:
        return space.encode({"task": task, **dict(zip(h, values, strict=True))}, encoding)

    assert torch.autograd.gradcheck(encoded, leaves)


@law
@given(space=spaces(continuous), seed=st.integers(0, 99))
def test_the_gradient_in_h_is_finite_for_every_h_of_every_space(space: HSpace, seed: int) -> None:
    for h in [space.sample(seed=seed, step=0, n=4), *space.grid(2)]:
        leaves = {name: value.double().requires_grad_() for name, value in h.items()}
        vectors = space.encode(leaves)
        (vectors @ torch.linspace(1, 2, vectors.shape[-1], dtype=torch.float64)).sum().backward()
        assert all(leaf.grad.isfinite().all() for leaf in leaves.values())


@law
@given(space=spaces())
def test_a_space_is_rebuilt_from_its_config_after_a_checkpoint_of_plain_data(space: HSpace) -> None:
    config = reloaded(space.config())
    assert config == space.config()
    assert HSpace(config) == space
    assert HSpace(config).config() == config
    h = space.sample(seed=1, step=2)
    assert same(HSpace(config).sample(seed=1, step=2), h)


DISTRIBUTIONS = [
    dist.Cauchy(1.0, 2.0),
    dist.ContinuousBernoulli(0.3),
    dist.Exponential(2.0),
    dist.Gumbel(1.0, 2.0),
    dist.HalfCauchy(2.0),
    dist.HalfNormal(2.0),
    dist.Kumaraswamy(2.0, 3.0),
    dist.Laplace(1.0, 2.0),
    dist.LogNormal(1.0, 2.0),
    dist.Normal(1.0, 2.0),
    dist.Pareto(1.0, 2.0),
    dist.Uniform(1.0, 2.0),
    dist.Weibull(1.0, 2.0),
]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda value: type(value).__name__)
def test_a_torch_distribution_is_a_prior_and_rebuilt_from_its_config(distribution: dist.Distribution) -> None:
    space = HSpace({"lam": distribution})
    again = HSpace(reloaded(space.config()))
    assert again == space
    u = torch.linspace(0.1, 0.9, 5)
    assert torch.equal(again["lam"].icdf(u), distribution.icdf(u))


@pytest.mark.parametrize("prior", [Squared(4.0), Bare(3.0)], ids=lambda value: type(value).__name__)
def test_a_users_prior_is_rebuilt_from_its_config(prior: Prior) -> None:
    space = HSpace({"lam": prior})
    again = HSpace(reloaded(space.config()))
    assert again == space
    assert type(again["lam"]) is type(prior)
    assert space.encode({"lam": 1.0}).norm() == pytest.approx(1)


def test_a_spaces_config_names_classes_and_arguments_as_a_config_file_does() -> None:
    space = HSpace({"lam": Uniform(0, 1), "task": Categorical([0.1, 1.0])})
    assert space.config() == {
        "lam": {"class_path": "lightning_mip.priors.Uniform", "init_args": {"low": 0, "high": 1, "endpoints": 0.0}},
        "task": {"class_path": "lightning_mip.priors.Categorical", "init_args": {"values": [0.1, 1.0]}},
    }


@pytest.mark.parametrize("path", ["Uniform", "lightning_mip.Uniform", "lightning_mip.priors.Uniform"])
def test_a_class_may_be_named_alone_or_by_any_module_that_holds_it(path: str) -> None:
    space = HSpace({"lam": {"class_path": path, "init_args": {"low": 0, "high": 2}}})
    assert space["lam"] == Uniform(0, 2)


def test_a_config_may_hold_a_distribution_that_is_made_already() -> None:
    space = HSpace({"lam": {"class_path": "FromTorch", "init_args": {"distribution": dist.Gumbel(1.0, 2.0)}}})
    assert space == HSpace({"lam": dist.Gumbel(1.0, 2.0)})


def test_a_config_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ours_not_imported.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("Uniform", "Ours"):
        with pytest.raises(ValueError, match=rf"names the prior 'ours_not_imported\.{name}', which is not imported"):
            HSpace({"lam": {"class_path": f"ours_not_imported.{name}", "init_args": {"low": 0, "high": 1}}})
    assert "ours_not_imported" not in sys.modules


@pytest.mark.parametrize(
    ("h", "label"),
    [
        ({"lam": 0.25, "rate": 10}, "lam=0.25,rate=10"),
        ({"rate": torch.tensor(1e-5), "lam": torch.tensor(1.0)}, "lam=1,rate=1e-05"),
        ({"lam": 1 / 3, "rate": 123456789}, "lam=0.333333,rate=1.23457e+08"),
    ],
)
def test_a_label_names_components_and_values(h: dict[str, Any], label: str) -> None:
    assert HSpace({"rate": LogUniform(1e-9, 1e9), "lam": Uniform(0, 1)}).label(h) == label


@pytest.mark.parametrize(
    ("prior", "values", "labels"),
    [
        (Uniform(0, 1), [0.1, 1 / 3, 0.25], ["0.1", "0.333333", "0.25"]),
        (Uniform(100, 101), [100.1, 100 + 1 / 3], ["100.1", "100.333"]),
        (Uniform(1000, 1000.1), [1000.005, 1000.01, 1000 + 1 / 30], ["1000.005", "1000.01", "1000.0333"]),
        (Uniform(9, 9.001), [9.1e0 - 0.1, 9.0004], ["9", "9.0004"]),
        (Normal(-500, 0.05), [-500.01, -500], ["-500.01", "-500"]),
        (Categorical([0.1, 1.0]), [0.1, 1.0], ["0.1", "1"]),
        (Categorical([0.1, 0.1000001]), [0.1, 0.1000001], ["0.1", "0.1000001"]),
        (Categorical([1_000_000]), [1_000_000], ["1e+06"]),
        (Categorical([5, 2**60, 2**60 + 1]), [5, 2**60 + 1], ["5", "1152921504606846977"]),
    ],
)
def test_a_label_has_as_many_digits_as_the_prior_needs(prior: Prior, values: list[float], labels: list[str]) -> None:
    space = HSpace({"lam": prior})
    assert [space.label(space.tensors({"lam": value})) for value in values] == [f"lam={label}" for label in labels]


@pytest.mark.parametrize(
    "prior", [Uniform(1000, 1000.1), Uniform(-3, -2.9), LogUniform(5000, 5000.5), Normal(1e6, 60), Normal(0, 1)]
)
@pytest.mark.parametrize("n", [21, 100])
def test_labels_of_a_grid_differ(prior: Prior, n: int) -> None:
    space = HSpace({"lam": prior})
    assert len({space.label(h) for h in space.grid(n)}) == n


def test_a_label_separates_the_weights_of_a_preference_vector_by_colons() -> None:
    assert HSpace({"trade": Simplex(3)}).label({"trade": [0.5, 0.25, 0.25]}) == "trade=0.5:0.25:0.25"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda space: pickle.loads(pickle.dumps(space))])
def test_a_space_is_copied_and_pickled(copied: Callable[[HSpace], HSpace]) -> None:
    space = HSpace({**PRIORS, "own": Squared(2.0), "torch": dist.Gumbel(0.0, 1.0)})
    assert copied(space) == space


SPACE = HSpace({"lam": Uniform(0, 1), "trade": Simplex(2), "task": Categorical(2)})
GOOD = {"lam": 0.5, "trade": [0.5, 0.5], "task": 1}
IN_ORDER = "lam, task, trade"
CLASS = "expected a class and its arguments such as {'class_path': 'Uniform', 'init_args': {'low': 0, 'high': 1}}."


def known() -> str:
    names = []
    kinds = [Prior]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        names += [f"{kind.__module__}.{kind.__qualname__}"] if kind is not Prior else []
    return ", ".join(sorted(set(names)))


ERRORS: dict[str, tuple[Callable[[], object], type[Exception], str | Callable[[], str]]] = {
    "no_mapping": (
        lambda: HSpace(Uniform(0, 1)),  # type: ignore[arg-type]
        TypeError,
        "h is Uniform(low=0, high=1, endpoints=0.0), expected a mapping such as {'lam': Uniform(0, 1)}.",
    ),
    "empty": (
        lambda: HSpace({}),
        ValueError,
        "h is empty, expected at least one component such as {'lam': Uniform(0, 1)}.",
    ),
    "reserved_mark": (
        lambda: HSpace({"a/b": Uniform(0, 1)}),
        ValueError,
        "h has a component named 'a/b', expected a non-empty string without = , / (they separate values in metric "
        "names).",
    ),
    "name_of_no_string": (
        lambda: HSpace({1: Uniform(0, 1)}),  # type: ignore[dict-item]
        ValueError,
        "h has a component named 1, expected a non-empty string without = , / (they separate values in metric names).",
    ),
    "name_with_a_space": (
        lambda: HSpace({"lam ": Uniform(0, 1)}),
        ValueError,
        "h has a component named 'lam ', expected a name without line breaks or other control characters, and without "
        "spaces at its ends.",
    ),
    "name_of_two_lines": (
        lambda: HSpace({"a\nb": Uniform(0, 1)}),
        ValueError,
        "h has a component named 'a\\nb', expected a name without line breaks or other control characters, and "
        "without spaces at its ends.",
    ),
    "no_prior": (
        lambda: HSpace({"lam": (0, 1)}),  # type: ignore[dict-item]
        TypeError,
        "h['lam'] is (0, 1), expected a prior such as Uniform(0, 1) or a torch.distributions object.",
    ),
    "class_instead_of_prior": (
        lambda: HSpace({"lam": {"low": 0, "high": 1}}),
        TypeError,
        "h['lam'] is {'low': 0, 'high': 1}, expected a prior such as Uniform(0, 1) or a torch.distributions object.",
    ),
    "prior_of_no_dataclass": (
        lambda: HSpace({"lam": Handwritten()}),
        TypeError,
        "h['lam'] is a Handwritten, which is not a dataclass, so no checkpoint could hold its arguments; write "
        "@dataclass(frozen=True) above the class.",
    ),
    "prior_with_a_tensor": (
        lambda: HSpace({"lam": Squared(top=torch.tensor(2.0))}),  # type: ignore[arg-type]
        TypeError,
        "h['lam'] is a Squared whose top is tensor(2.), which no checkpoint could hold; expected Python's own numbers "
        "and strings, or lists of them.",
    ),
    "class_not_imported": (
        lambda: HSpace({"lam": {"class_path": "ours.Uniform", "init_args": {}}}),
        ValueError,
        lambda: (
            f"h['lam'] names the prior 'ours.Uniform', which is not imported; known are {known()}. "
            "Import the module that defines it first."
        ),
    ),
    "class_that_is_no_prior": (
        lambda: HSpace({"lam": {"class_path": "lightning_mip.HSpace", "init_args": {}}}),
        ValueError,
        lambda: (
            f"h['lam'] names the prior 'lightning_mip.HSpace', which is not imported; known are {known()}. "
            "Import the module that defines it first."
        ),
    ),
    "class_that_is_no_distribution": (
        lambda: HSpace(
            {
                "lam": {
                    "class_path": "FromTorch",
                    "init_args": {"distribution": {"class_path": "torch.distributions.kl_divergence", "init_args": {}}},
                }
            }
        ),
        ValueError,
        "h['lam'] names 'torch.distributions.kl_divergence', which is not a class of torch.distributions.",
    ),
    "class_of_no_name": (
        lambda: HSpace({"lam": {"class_path": None}}),
        TypeError,
        f"h['lam'] is {{'class_path': None}}, {CLASS}",
    ),
    "arguments_of_no_names": (
        lambda: HSpace({"lam": {"class_path": "Uniform", "init_args": [0, 1]}}),
        TypeError,
        f"h['lam'] is {{'class_path': 'Uniform', 'init_args': [0, 1]}}, {CLASS}",
    ),
    "misspelled_arguments": (
        lambda: HSpace({"lam": {"class_path": "Normal", "init_arg": {"mean": 3}}}),
        TypeError,
        f"h['lam'] is {{'class_path': 'Normal', 'init_arg': {{'mean': 3}}}}, {CLASS}",
    ),
    "distribution_of_no_class": (
        lambda: HSpace({"lam": {"class_path": "FromTorch", "init_args": {"distribution": {"loc": 0}}}}),
        TypeError,
        f"h['lam'] is {{'loc': 0}}, {CLASS}",
    ),
    "distribution_that_torch_refuses": (
        lambda: HSpace({"lam": {"class_path": "FromTorch", "init_args": {"distribution": {"class_path": "Normal"}}}}),
        ValueError,
        "h['lam'] is {'class_path': 'Normal'}, which torch.distributions refuses: Normal.__init__() missing 2 required "
        "positional arguments: 'loc' and 'scale'",
    ),
    "h_of_no_mapping": (
        lambda: SPACE.encode(0.5),  # type: ignore[arg-type]
        TypeError,
        "h is 0.5, expected a mapping from component to value with lam, task, trade.",
    ),
    "h_of_no_mapping_beside_keywords": (
        lambda: SPACE.given(0.5, {}),  # type: ignore[arg-type]
        TypeError,
        "h is 0.5, expected a mapping from component to value, or keyword arguments, with lam, task, trade.",
    ),
    "unknown_component": (
        lambda: SPACE.encode({**GOOD, "lamda": 0.5}),
        ValueError,
        "h has no component 'lamda'; its components are lam, task, trade. Did you mean 'lam'?",
    ),
    "unknown_and_unlike": (
        lambda: SPACE.encode({**GOOD, "xyz": 0.5}),
        ValueError,
        "h has no component 'xyz'; its components are lam, task, trade.",
    ),
    "missing_component": (
        lambda: SPACE.encode({"lam": 0.5}),
        ValueError,
        "h lacks task, trade; given were lam, expected lam, task, trade.",
    ),
    "missing_everything": (
        lambda: SPACE.encode({}),
        ValueError,
        "h lacks lam, task, trade; given were none, expected lam, task, trade.",
    ),
    "text": (
        lambda: SPACE.encode({**GOOD, "lam": "high"}),
        TypeError,
        "h['lam'] is 'high', expected a number, numbers or a tensor.",
    ),
    "none": (
        lambda: SPACE.encode({**GOOD, "task": None}),
        TypeError,
        "h['task'] is None, expected a number, numbers or a tensor.",
    ),
    "ragged": (
        lambda: SPACE.encode({**GOOD, "trade": [[0.5, 0.5], [1]]}),
        TypeError,
        "h['trade'] is [[0.5, 0.5], [1]], expected a number, numbers or a tensor.",
    ),
    "complex": (
        lambda: SPACE.encode({**GOOD, "lam": 0.5j}),
        TypeError,
        "h['lam'] is 0.5j, expected a number, numbers or a tensor.",
    ),
    "shape_of_a_number": (
        lambda: SPACE.encode({**GOOD, "lam": [[0.5]]}),
        ValueError,
        "h['lam'] has shape (1, 1), expected () or (batch,) for Uniform(low=0, high=1, endpoints=0.0).",
    ),
    "shape_of_a_vector": (
        lambda: SPACE.encode({**GOOD, "trade": [0.5, 0.25, 0.25]}),
        ValueError,
        "h['trade'] has shape (3,), expected (2,) or (batch, 2) for Simplex(n=2, alpha=1.0).",
    ),
    "number_for_a_vector": (
        lambda: SPACE.encode({**GOOD, "trade": 0.5}),
        ValueError,
        "h['trade'] has shape (), expected (2,) or (batch, 2) for Simplex(n=2, alpha=1.0).",
    ),
    "outside": (
        lambda: SPACE.encode({**GOOD, "lam": 1.5}),
        ValueError,
        "h['lam'] = 1.5 is outside the support of its prior Uniform(low=0, high=1, endpoints=0.0).",
    ),
    "just_outside": (
        lambda: SPACE.encode({**GOOD, "lam": torch.tensor(1.000002, dtype=torch.float64)}),
        ValueError,
        "h['lam'] = 1.000002 is outside the support of its prior Uniform(low=0, high=1, endpoints=0.0).",
    ),
    "nan": (
        lambda: SPACE.encode({**GOOD, "lam": float("nan")}),
        ValueError,
        "h['lam'] = nan is outside the support of its prior Uniform(low=0, high=1, endpoints=0.0).",
    ),
    "first_of_a_batch_outside": (
        lambda: SPACE.encode({**GOOD, "lam": [0.5, -0.25, 2]}),
        ValueError,
        "h['lam'] = -0.25 is outside the support of its prior Uniform(low=0, high=1, endpoints=0.0).",
    ),
    "vector_outside": (
        lambda: SPACE.encode({**GOOD, "trade": [[0.5, 0.5], [0.5, 0.25]]}),
        ValueError,
        "h['trade'] = 0.5:0.25 is outside the support of its prior Simplex(n=2, alpha=1.0).",
    ),
    "no_such_class": (
        lambda: SPACE.encode({**GOOD, "task": 2}),
        ValueError,
        "h['task'] = 2 is outside the support of its prior Categorical(values=(0, 1)).",
    ),
    "batches": (
        lambda: SPACE.encode({**GOOD, "lam": [0.5, 0.5], "task": [0, 1, 0]}),
        ValueError,
        "h has batches of different sizes: {'lam': (2,), 'task': (3,), 'trade': (2,)}, expected one size for all "
        "components.",
    ),
    "large_grid": (
        lambda: HSpace({"lam": Uniform(0, 1), "phi": Uniform(0, 1)}).grid(400),
        ValueError,
        "grid(400) has 160000 points, expected at most 100000; give a number of points per component such as "
        "{'lam': 5, 'phi': 1}, or your own list of h.",
    ),
    "grid_of_nothing": (lambda: SPACE.grid(0), ValueError, "grid(0): expected at least 1 point."),
    "grid_of_an_unknown_component": (
        lambda: SPACE.grid({"lam": 2, "task": 2, "trad": 3}),
        ValueError,
        "h has no component 'trad'; its components are lam, task, trade. Did you mean 'trade'?",
    ),
    "grid_without_a_component": (
        lambda: SPACE.grid({"lam": 2}),
        ValueError,
        "h lacks task, trade; given were lam, expected lam, task, trade.",
    ),
    "strategy": (
        lambda: mip.HSpace({"lam": Uniform(0, 1)}).sample(seed=0, step=0, strategy="grid"),
        ValueError,
        "strategy is 'grid', expected one of 'random', 'sobol', 'stratified'.",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_a_mistake_is_refused_with(
    call: Callable[[], object], error: type[Exception], message: str | Callable[[], str]
) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == (message if isinstance(message, str) else message())
