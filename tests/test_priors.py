"""Priors: every component of ``h`` has a place in the unit interval, an encoding of norm 1, and a grid."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch import distributions as dist

from lightning_mip import Categorical, FromTorch, LogUniform, Normal, Prior, Simplex, Uniform
from lightning_mip.as_prior import as_prior
from tests.strategies import law, priors

DRAWS = 2000

SCALARS: dict[str, Prior] = {
    "uniform": Uniform(-3, 5),
    "uniform_with_endpoints": Uniform(0, 1, endpoints=0.2),
    "log_uniform": LogUniform(1e-3, 10),
    "normal": Normal(1, 2),
    "torch_uniform": FromTorch(dist.Uniform(0.1, 0.3)),
    "torch_normal": FromTorch(dist.Normal(1.0, 2.0)),
    "torch_log_normal": FromTorch(dist.LogNormal(0.5, 0.3)),
    "torch_laplace": FromTorch(dist.Laplace(0.0, 2.0)),
    "torch_exponential": FromTorch(dist.Exponential(2.0)),
    "torch_gumbel": FromTorch(dist.Gumbel(0.0, 1.0)),
    "torch_cauchy": FromTorch(dist.Cauchy(0.0, 1.0)),
    "torch_half_cauchy": FromTorch(dist.HalfCauchy(1.0)),
    "torch_half_normal": FromTorch(dist.HalfNormal(1.0)),
    "torch_kumaraswamy": FromTorch(dist.Kumaraswamy(2.0, 3.0)),
    "torch_pareto": FromTorch(dist.Pareto(1.0, 2.0)),
    "torch_weibull": FromTorch(dist.Weibull(1.0, 2.0)),
    "torch_continuous_bernoulli": FromTorch(dist.ContinuousBernoulli(logits=torch.tensor(0.8))),
}
SIMPLEXES: dict[str, Prior] = {
    "simplex_of_two": Simplex(2),
    "simplex": Simplex(4),
    "simplex_sparse": Simplex(3, alpha=0.5),
    "simplex_even": Simplex(3, alpha=2),
}
CATEGORIES: dict[str, Prior] = {"classes": Categorical(4), "numbers": Categorical([10.0, 0.1, 1.0])}
CONTINUOUS = SCALARS | SIMPLEXES
PRIORS = CONTINUOUS | CATEGORIES


def each(kinds: dict[str, Prior]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("prior", kinds.values(), ids=kinds)


def positions(prior: Prior, n: int = DRAWS) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (n, prior.uniforms) if prior.event_shape else (n,)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


@each(CONTINUOUS)
@law
@given(data=st.data())
def test_cdf_undoes_icdf(prior: Prior, data: st.DataObject) -> None:
    u = data.draw(st.lists(st.floats(1e-4, 1 - 1e-4), min_size=prior.uniforms, max_size=prior.uniforms))
    position = torch.tensor(u if prior.event_shape else u[0], dtype=torch.float64)
    torch.testing.assert_close(prior.cdf(prior.icdf(position)), position, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("prior", "values"),
    [
        (Uniform(-3, 5), [-3, -2.9, 0, 4.9999, 5]),
        (LogUniform(1e-3, 10), [1e-3, 1e-2, 1, 9.999, 10]),
        (Normal(1, 2), [-9, -1, 1, 1.5, 11]),
        (Categorical([10.0, 0.1, 1.0]), [10, 0.1, 1]),
        (FromTorch(dist.Gumbel(0.0, 1.0)), [-2, 0, 3, 9]),
        (FromTorch(dist.Kumaraswamy(2.0, 3.0)), [0, 0.01, 0.5, 0.9]),
        (FromTorch(dist.LogNormal(0.5, 0.3)), [0.7, 1, 5]),
        (Simplex(2), [[0, 1], [0.3, 0.7], [1, 0]]),
        (Simplex(3), [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.2, 0.3, 0.5], [0, 0.5, 0.5]]),
        (Simplex(3, alpha=0.5), [[1, 0, 0], [0, 0, 1], [0.2, 0.3, 0.5], [0.01, 0, 0.99]]),
        (Simplex(3, alpha=2), [[1, 0, 0], [0, 1, 0], [0.2, 0.3, 0.5], [0.01, 0.01, 0.98]]),
    ],
    ids=str,
)
def test_icdf_undoes_cdf(prior: Prior, values: list[Any]) -> None:
    h = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(prior.icdf(prior.cdf(h)).double(), h, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("prior", [Categorical(4), Categorical([10.0, 0.1, 1.0])])
def test_positions_of_a_category_are_a_step_of_equal_height_in_the_listed_order(prior: Categorical) -> None:
    n = len(prior.grid(1))
    assert prior.cdf(prior.grid(1)).tolist() == pytest.approx([(k + 1) / n for k in range(n)])
    u = (torch.arange(100 * n, dtype=torch.float64) + 0.5) / (100 * n)
    assert prior.icdf(u).tolist() == prior.grid(1).repeat_interleave(100).tolist()


LAWS: dict[str, tuple[Prior, Any]] = {
    "uniform": (Uniform(-3, 5), scipy.stats.uniform(-3, 8)),
    "log_uniform": (LogUniform(1e-3, 10), scipy.stats.loguniform(1e-3, 10)),
    "normal": (Normal(1, 2), scipy.stats.norm(1, 2)),
    "gumbel": (FromTorch(dist.Gumbel(0.0, 1.0)), scipy.stats.gumbel_r()),
    "exponential": (FromTorch(dist.Exponential(2.0)), scipy.stats.expon(scale=0.5)),
    "pareto": (FromTorch(dist.Pareto(1.0, 2.0)), scipy.stats.pareto(2)),
    "simplex": (Simplex(4), scipy.stats.beta(1, 3)),
    "simplex_sparse": (Simplex(3, alpha=0.5), scipy.stats.beta(0.5, 1)),
    "simplex_even": (Simplex(3, alpha=2), scipy.stats.beta(2, 4)),
}


@pytest.mark.parametrize(("prior", "expected"), LAWS.values(), ids=LAWS)
def test_draws_follow_the_prior(prior: Prior, expected: Any) -> None:
    for margin in prior.draw(positions(prior)).reshape(DRAWS, -1).T:
        assert scipy.stats.kstest(margin.numpy(), expected.cdf).pvalue > 0.003


def test_draws_of_a_category_are_equally_likely() -> None:
    counts = torch.bincount(Categorical(4).draw(positions(Categorical(4), 4000)))
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 0.01


@pytest.mark.parametrize("prior", [Uniform(-3, 5, endpoints=0.3), LogUniform(0.1, 10, endpoints=0.3)], ids=str)
def test_endpoints_draws_each_end_with_half_the_probability_and_the_rest_from_the_prior(prior: Any) -> None:
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    h = prior.draw(u)
    low, high = prior.icdf(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert (h == low).double().mean() == pytest.approx(0.15, abs=1e-3)
    assert (h == high).double().mean() == pytest.approx(0.15, abs=1e-3)
    between = prior.cdf(h[(h > low) & (h < high)])
    assert scipy.stats.kstest(between.numpy(), "uniform").statistic < 1e-3


@pytest.mark.parametrize("kind", [Uniform, LogUniform])
def test_endpoints_leaves_positions_alone(kind: Callable[..., Prior]) -> None:
    plain, oversampled = kind(0.1, 10), kind(0.1, 10, endpoints=0.5)
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.equal(plain.icdf(u), oversampled.icdf(u))
    assert torch.equal(plain.cdf(plain.icdf(u)), oversampled.cdf(plain.icdf(u)))
    assert torch.equal(plain.grid(5), oversampled.grid(5))


@pytest.mark.parametrize(
    ("prior", "grid"),
    [
        (Uniform(-1, 3), [-1, 0, 1, 2, 3]),
        (LogUniform(0.01, 100), [0.01, 0.1, 1, 10, 100]),
        (Normal(1, 2), [1 + 2 * scipy.stats.norm.ppf(q) for q in (0.1, 0.3, 0.5, 0.7, 0.9)]),
        (Categorical(3), [0, 1, 2]),
        (Categorical([5.0, 0.5]), [5, 0.5]),
        (Simplex(2), [[0, 1], [0.25, 0.75], [0.5, 0.5], [0.75, 0.25], [1, 0]]),
        (FromTorch(dist.Uniform(-1.0, 3.0)), [-1, 0, 1, 2, 3]),
        (FromTorch(dist.Exponential(1.0)), [-math.log(1 - q) for q in (0.1, 0.3, 0.5, 0.7, 0.9)]),
        (FromTorch(dist.Gumbel(0.0, 1.0)), [-math.log(-math.log(q)) for q in (0.1, 0.3, 0.5, 0.7, 0.9)]),
        (FromTorch(dist.Cauchy(0.0, 1.0)), [math.tan(math.pi * (q - 0.5)) for q in (0.1, 0.3, 0.5, 0.7, 0.9)]),
        (FromTorch(dist.HalfCauchy(1.0)), [math.tan(math.pi * q / 2) for q in (0.1, 0.3, 0.5, 0.7, 0.9)]),
    ],
    ids=str,
)
def test_a_grid_of_five_covers_the_prior_and_has_the_ends_of_a_bounded_one(prior: Prior, grid: list[Any]) -> None:
    torch.testing.assert_close(prior.grid(5).double(), torch.tensor(grid, dtype=torch.float64), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("points", [2, 3, 6])
def test_the_grid_of_a_simplex_is_its_lattice_with_every_corner_once(n: int, points: int) -> None:
    grid = Simplex(n).grid(points)
    assert torch.allclose(grid.sum(-1), torch.ones(len(grid), dtype=torch.float64))
    assert torch.equal((grid * (points - 1)).round(), grid * (points - 1))
    rows = {tuple(row) for row in grid.tolist()}
    assert len(rows) == len(grid) == math.comb(points - 1 + n - 1, n - 1)
    assert {tuple(row) for row in torch.eye(n).tolist()} <= rows


@pytest.mark.timeout(20)
def test_the_grid_of_a_large_simplex_takes_time_for_its_points_only() -> None:
    assert len(Simplex(30).grid(3)) == 30 + 30 * 29 // 2


@each(PRIORS)
def test_a_grid_of_one_point_is_the_middle_or_all_values_of_a_category(prior: Prior) -> None:
    expected = prior.grid(9) if isinstance(prior, Categorical) else prior.center().unsqueeze(0)
    torch.testing.assert_close(prior.grid(1), expected, check_dtype=False)


@law
@given(prior=priors, n=st.integers(1, 9))
def test_every_grid_lies_in_the_support_and_in_order(prior: Prior, n: int) -> None:
    grid = prior.grid(n)
    assert prior.contains(grid).all()
    assert prior.contains(grid.float()).all()
    assert grid.shape[1:] == prior.event_shape
    if not isinstance(prior, Categorical) and not prior.event_shape:
        assert len(grid) == n
        assert all(a < b for a, b in pairwise(grid.tolist()))


@each(PRIORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_draw_lies_in_the_support(prior: Prior, dtype: torch.dtype) -> None:
    extremes = torch.tensor([2.0**-32, 1 - 2.0**-32], dtype=torch.float64)
    shape = (2, prior.uniforms) if prior.event_shape else (2,)
    u = torch.cat([positions(prior), extremes.reshape(2, *[1] * (len(shape) - 1)).expand(shape)])
    assert prior.contains(prior.draw(u).to(dtype)).all()


@each(SCALARS)
def test_the_center_is_the_median(prior: Prior) -> None:
    assert prior.cdf(prior.center().double()).item() == pytest.approx(0.5, abs=1e-6)


def test_the_center_of_a_simplex_has_equal_weights() -> None:
    assert Simplex(4, alpha=0.5).center().tolist() == [0.25] * 4


@pytest.mark.parametrize(
    ("prior", "inside", "outside"),
    [
        (Uniform(0.1, 0.3), [0.1, 0.2, 0.3], [0.0999, 0.3001, -1, math.nan, math.inf]),
        (Uniform(-1, 0), [-1, 0], [1e-3, -1.001]),
        (LogUniform(0.1, 0.3), [0.1, 0.2, 0.3], [0.0999, 0.3001, 0, -0.2, math.nan]),
        (Normal(), [0, -1e6, 1e6], [math.inf, -math.inf, math.nan]),
        (Categorical(3), [0, 1, 2], [-1, 3, 0.5, math.nan]),
        (Categorical([0.1, 10.0]), [0.1, 10], [0, 1, 0.2, 9.99, math.nan]),
        (Simplex(2), [[0, 1], [0.3, 0.7]], [[0.3, 0.6], [-0.1, 1.1], [math.nan, 1]]),
        (FromTorch(dist.Uniform(0.1, 0.3)), [0.1, 0.2, 0.3], [0.0999, 0.3001, math.nan]),
        (FromTorch(dist.LogNormal(0.0, 1.0)), [1e-6, 1e6], [-1e-3, math.inf, math.nan]),
        (FromTorch(dist.Kumaraswamy(2.0, 3.0)), [0, 0.5, 1], [-0.1, 1.1, math.nan]),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_support_holds_its_ends_in_either_precision_and_nothing_beyond(
    prior: Prior, inside: list[Any], outside: list[Any], dtype: torch.dtype
) -> None:
    assert prior.contains(torch.tensor(inside, dtype=dtype)).all()
    assert not prior.contains(torch.tensor(outside, dtype=dtype)).any()


@law
@given(low=st.floats(-1e3, 1e3), width=st.floats(0.1, 1e3))
def test_a_bound_rounded_to_single_precision_stays_inside(low: float, width: float) -> None:
    ends = torch.tensor([low, low + width]).float()
    assert Uniform(low, low + width).contains(ends).all()
    assert LogUniform(abs(low) + 0.1, abs(low) + 0.1 + width).contains(torch.tensor(abs(low) + 0.1)).all()


def test_the_grid_of_a_distribution_with_two_ends_stays_between_them() -> None:
    prior = FromTorch(dist.ContinuousBernoulli(0.001))
    assert prior.contains(prior.grid(2)).all()


def test_an_array_that_must_not_be_written_to_is_a_value() -> None:
    array = np.array([0.25, 0.5])
    array.flags.writeable = False
    assert Uniform(0, 1).tensor(array).tolist() == [0.25, 0.5]


def test_a_whole_number_is_no_value_of_a_category_of_fractions() -> None:
    prior = Categorical([0.1, 1.0, 10.0])
    assert prior.contains(prior.tensor([0, 1, 10])).tolist() == [False, True, True]


def test_a_flag_is_a_value_of_a_category_of_two() -> None:
    prior = Categorical(2)
    assert prior.encode(prior.tensor(True)).tolist() == [0, 1]


@each(PRIORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_encoding_of_every_value_has_norm_one(prior: Prior, dtype: torch.dtype) -> None:
    h = torch.cat([prior.draw(positions(prior, 200)), prior.grid(5)]).to(dtype)
    encoded = prior.encode(h)
    assert encoded.dtype == dtype
    assert encoded.shape[:-1] == h.shape[:1]
    torch.testing.assert_close(encoded.norm(dim=-1), torch.ones(len(h), dtype=dtype), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("prior", "h", "encoded"),
    [
        (Uniform(-1, 1), -1, [1, 0]),
        (Uniform(-1, 1), 1, [0, 1]),
        (Uniform(0, 3), 1, [math.cos(math.pi / 6), math.sin(math.pi / 6)]),
        (LogUniform(0.01, 100), 1, [math.sqrt(0.5)] * 2),
        (Normal(3, 2), 3, [math.sqrt(0.5)] * 2),
        (FromTorch(dist.Exponential(1.0)), math.log(2), [math.sqrt(0.5)] * 2),
        (Categorical(3), 1, [0, 1, 0]),
        (Categorical([10.0, 0.1]), 0.1, [0, 1]),
        (Simplex(3), [0.25, 0.75, 0], [0.5, math.sqrt(0.75), 0]),
    ],
    ids=str,
)
def test_a_value_is_encoded_by_its_position_on_a_quarter_circle_its_class_or_its_square_root(
    prior: Prior, h: Any, encoded: list[float]
) -> None:
    found = prior.encode(torch.tensor(h, dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor(encoded, dtype=torch.float64), rtol=0, atol=1e-7)


@each(PRIORS)
def test_leading_dimensions_of_values_are_kept(prior: Prior) -> None:
    h = prior.draw(positions(prior, 6))
    folded = h.reshape(2, 3, *prior.event_shape)
    assert prior.encode(folded).shape[:-1] == prior.contains(folded).shape == (2, 3)
    torch.testing.assert_close(prior.encode(folded).flatten(0, 1), prior.encode(h))
    torch.testing.assert_close(prior.cdf(folded).flatten(0, 1), prior.cdf(h))


@pytest.mark.parametrize("prior", [Uniform(0, 1), LogUniform(0.1, 1)], ids=str)
@pytest.mark.parametrize("end", [0.1, 1.0])
def test_the_encoding_has_a_gradient_at_the_ends_too(prior: Prior, end: float) -> None:
    h = torch.tensor(end, requires_grad=True)
    prior.encode(h)[0].backward()
    assert torch.isfinite(h.grad)
    assert prior.cdf(h) != 1 or h.grad < 0


def test_the_encoding_of_a_corner_of_the_simplex_has_a_finite_gradient() -> None:
    h = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    encoded = Simplex(3).encode(h)
    assert encoded.tolist() == [0, 1, 0]
    encoded.sum().backward()
    assert h.grad.isfinite().all()


def test_only_a_concentration_other_than_one_needs_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    assert Simplex(3).draw(torch.tensor([0.5, 0.5])).sum() == 1
    sparse = Simplex(3, alpha=0.5)
    assert sparse.encode(sparse.center()).norm() == pytest.approx(1)
    with pytest.raises(ImportError) as caught:
        sparse.draw(torch.tensor([0.5, 0.5]))
    assert str(caught.value) == (
        "Simplex(n=3, alpha=0.5): alpha other than 1 needs scipy; pip install 'lightning-mip[scipy]', or use alpha=1."
    )


@each(PRIORS)
def test_a_prior_is_frozen_and_equal_priors_hash_equal(prior: Prior) -> None:
    twin = as_prior("lam", prior.config())
    assert twin == prior
    assert twin is not prior
    assert hash(twin) == hash(prior)
    field = dataclasses.fields(prior)[0].name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(prior, field, getattr(prior, field))


def test_priors_of_other_parameters_or_kinds_differ() -> None:
    distinct = [
        Uniform(0, 1),
        Uniform(0, 2),
        Uniform(0, 1, endpoints=0.1),
        LogUniform(1, 2),
        FromTorch(dist.Uniform(0.0, 1.0)),
        FromTorch(dist.Uniform(0.0, 2.0)),
        FromTorch(dist.Laplace(0.0, 1.0)),
        FromTorch(dist.Normal(0.0, 1.0)),
    ]
    assert len(set(distinct)) == len(distinct)


def test_a_torch_distribution_is_described_by_its_parameters() -> None:
    distribution = dist.ContinuousBernoulli(logits=torch.tensor(0.0))
    assert distribution.probs == 0.5  # which torch keeps beside the logits from here on
    assert FromTorch(distribution).config() == {
        "class_path": "lightning_mip.as_prior.FromTorch",
        "init_args": {
            "distribution": {"class_path": "torch.distributions.ContinuousBernoulli", "init_args": {"probs": 0.5}}
        },
    }


def test_use_of_a_prior_leaves_the_users_distribution_as_it_was() -> None:
    distribution = dist.LogNormal(0.0, 1.0, validate_args=True)
    FromTorch(distribution).cdf(torch.tensor(-1.0))
    with pytest.raises(ValueError, match="support"):
        distribution.cdf(torch.tensor(-1.0))


class NamedNormal(dist.Normal):
    """A distribution of a user's own."""


IMPRECISE = (
    "values as large, small or close as these are not told apart in single precision; let h be the difference from a "
    "fixed value, or in another unit."
)
ERRORS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "empty_range": (
        lambda: Uniform(1, 1),
        ValueError,
        "Uniform(low=1, high=1, endpoints=0.0): expected finite bounds with low < high.",
    ),
    "infinite_bound": (
        lambda: LogUniform(1, math.inf),
        ValueError,
        "LogUniform(low=1, high=inf, endpoints=0.0): expected finite bounds with low < high.",
    ),
    "endpoints": (
        lambda: Uniform(0, 1, endpoints=1),
        ValueError,
        "Uniform(low=0, high=1, endpoints=1): endpoints is a probability, expected 0 <= endpoints < 1.",
    ),
    "log_of_zero": (
        lambda: LogUniform(0, 1),
        ValueError,
        "LogUniform(low=0, high=1, endpoints=0.0): low is 0, expected a positive number; use Uniform for a range "
        "with 0.",
    ),
    "std": (lambda: Normal(0, 0), ValueError, "Normal(mean=0, std=0): expected a finite mean and a finite std > 0."),
    "mean": (
        lambda: Normal(math.nan, 1),
        ValueError,
        "Normal(mean=nan, std=1): expected a finite mean and a finite std > 0.",
    ),
    "text": (
        lambda: Uniform("0", 1),  # type: ignore[arg-type]
        TypeError,
        "Uniform: low is '0', expected a number.",
    ),
    "flag": (lambda: Normal(0, True), TypeError, "Normal: std is True, expected a number."),
    "beyond_single_precision": (
        lambda: Uniform(0, 1e38),
        ValueError,
        f"Uniform(low=0, high=1e+38, endpoints=0.0): {IMPRECISE}",
    ),
    "below_single_precision": (
        lambda: LogUniform(1e-38, 1),
        ValueError,
        f"LogUniform(low=1e-38, high=1, endpoints=0.0): {IMPRECISE}",
    ),
    "too_close": (lambda: Normal(1, 1e-5), ValueError, f"Normal(mean=1, std=1e-05): {IMPRECISE}"),
    "categories_too_close": (
        lambda: Categorical([1, 1 + 1e-9]),
        ValueError,
        "Categorical([1, 1.000000001]): in single precision two of the values are the same.",
    ),
    "named_categories": (
        lambda: Categorical(["t1", "t2"]),  # type: ignore[list-item]
        TypeError,
        "Categorical(['t1', 't2']): expected a number of classes or finite numbers; for names, use their positions "
        "0, 1, ...",
    ),
    "fraction_of_categories": (
        lambda: Categorical(2.5),  # type: ignore[arg-type]
        TypeError,
        "Categorical(2.5): expected a number of classes or finite numbers; for names, use their positions 0, 1, ...",
    ),
    "no_categories": (
        lambda: Categorical(0),
        ValueError,
        "Categorical(0): expected at least one value, each of them once.",
    ),
    "repeated_category": (
        lambda: Categorical([1, 2, 1.0]),
        ValueError,
        "Categorical([1, 2, 1.0]): expected at least one value, each of them once.",
    ),
    "simplex_size": (
        lambda: Simplex(1),
        ValueError,
        "Simplex(n=1, alpha=1.0): expected a whole n >= 2 and a finite alpha > 0.",
    ),
    "simplex_alpha": (
        lambda: Simplex(2, alpha=0),
        ValueError,
        "Simplex(n=2, alpha=0): expected a whole n >= 2 and a finite alpha > 0.",
    ),
    "simplex_of_no_number": (
        lambda: Simplex(math.nan),  # type: ignore[arg-type]
        ValueError,
        "Simplex(n=nan, alpha=1.0): expected a whole n >= 2 and a finite alpha > 0.",
    ),
    "corners_alone": (
        lambda: Simplex(4, alpha=1e-5),
        ValueError,
        "Simplex(n=4, alpha=1e-05): expected an alpha from 1e-4 to 1e8; beyond, weights are not told apart in single "
        "precision.",
    ),
    "center_alone": (
        lambda: Simplex(5, alpha=1e20),
        ValueError,
        "Simplex(n=5, alpha=1e+20): expected an alpha from 1e-4 to 1e8; beyond, weights are not told apart in single "
        "precision.",
    ),
    "simplex_of_many": (
        lambda: Simplex(10**9),
        ValueError,
        "Simplex(n=1000000000, alpha=1.0): expected at most 10000 weights.",
    ),
    "many_categories": (
        lambda: Categorical(10**9),
        ValueError,
        "Categorical(1000000000): expected at most 100000 classes.",
    ),
    "flag_of_categories": (
        lambda: Categorical(True),
        TypeError,
        "Categorical(True): expected a number of classes or finite numbers; for names, use their positions 0, 1, ...",
    ),
    "tensor_of_categories": (
        lambda: Categorical(torch.tensor(3)),  # type: ignore[arg-type]
        TypeError,
        "Categorical(tensor(3)): expected a number of classes or finite numbers; for names, use their positions "
        "0, 1, ...",
    ),
    "beyond_all_floats": (
        lambda: Uniform(0, 10**400),
        ValueError,
        "Uniform(low=0, high=inf, endpoints=0.0): expected finite bounds with low < high.",
    ),
    "complex_value": (
        lambda: Uniform(0, 1).tensor(0.5j),
        TypeError,
        "complex numbers are no values of a prior.",
    ),
    "several_lines": (
        lambda: Uniform(torch.zeros(2, 2), 1),  # type: ignore[arg-type]
        TypeError,
        "Uniform: low is tensor([[0., 0.], [0., 0.]]), expected a number.",
    ),
    "no_distribution": (
        lambda: FromTorch(0.5),  # type: ignore[arg-type]
        TypeError,
        "FromTorch: distribution is 0.5, expected a torch.distributions object.",
    ),
    "heavy_tail": (
        lambda: FromTorch(dist.Pareto(1.0, 0.01)),
        ValueError,
        f"FromTorch(distribution=Pareto(alpha: 0.009999999776482582, scale: 1.0)): {IMPRECISE}",
    ),
    "several_numbers": (
        lambda: FromTorch(dist.Normal(torch.zeros(2), 1.0)),
        ValueError,
        "Normal(loc: torch.Size([2]), scale: torch.Size([2])): expected a distribution of one number, but its shape "
        "is (2,).",
    ),
    "no_inverse": (
        lambda: FromTorch(dist.Gamma(1.0, 2.0)),
        TypeError,
        "Gamma has no cdf and icdf, so it cannot be a prior; use one that has both (Uniform, Normal, LogNormal, "
        "Laplace, Cauchy, Exponential, Gumbel, Kumaraswamy, ...).",
    ),
    "composed_distribution": (
        lambda: FromTorch(
            dist.TransformedDistribution(dist.Normal(0.0, 1.0), [dist.AffineTransform(1.0, 2.0)])  # type: ignore[no-untyped-call]
        ),
        TypeError,
        "TransformedDistribution is not a class of torch.distributions with parameters of its own, so no checkpoint "
        "could hold it; subclass lightning_mip.Prior instead.",
    ),
    "users_distribution": (
        lambda: FromTorch(NamedNormal(0.0, 1.0)),
        TypeError,
        "NamedNormal is not a class of torch.distributions with parameters of its own, so no checkpoint could hold "
        "it; subclass lightning_mip.Prior instead.",
    ),
    "uniform_grid": (lambda: Uniform(0, 1).grid(0), ValueError, "grid(0): expected at least 1 point."),
    "many_points": (lambda: Uniform(0, 1).grid(10**9), ValueError, "grid(1000000000): expected at most 100000 points."),
    "fraction_of_points": (
        lambda: Normal().grid(2.5),  # type: ignore[arg-type]
        TypeError,
        "number of points of grid is 2.5, expected a whole number.",
    ),
    "many_points_of_a_simplex": (
        lambda: Simplex(5).grid(100),
        ValueError,
        "grid(100) has 4421275 points of Simplex(n=5, alpha=1.0), expected at most 100000; give fewer, or your own "
        "list of h.",
    ),
    "normal_grid": (lambda: Normal().grid(-1), ValueError, "grid(-1): expected at least 1 point."),
    "category_grid": (lambda: Categorical(3).grid(0), ValueError, "grid(0): expected at least 1 point."),
    "simplex_grid": (lambda: Simplex(3).grid(0), ValueError, "grid(0): expected at least 1 point."),
}


@pytest.mark.parametrize(("call", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_what_cannot_be_a_prior_is_refused_with(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
