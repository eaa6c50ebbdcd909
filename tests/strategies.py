"""Hypothesis strategies for priors and spaces, and the settings that property tests share."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from torch import distributions as dist

from lightning_mip import Categorical, FromTorch, HSpace, LogUniform, Normal, Prior, Simplex, Uniform

# The same examples at every run, and no time limit per example on a busy machine.
law = settings(max_examples=40, deadline=None, derandomize=True)

_uniform = st.builds(
    lambda low, width, ends: Uniform(low, low + width, ends),
    st.floats(-1e3, 1e3),
    st.floats(0.1, 1e3),
    st.sampled_from([0.0, 0.2]),
)
_log_uniform = st.builds(
    lambda power, decades: LogUniform(10**power, 10 ** (power + decades)), st.floats(-6, 3), st.floats(0.1, 6)
)
_normal = st.builds(Normal, st.floats(-100, 100), st.floats(0.01, 100))
_categorical = st.builds(
    Categorical,
    st.integers(1, 6) | st.lists(st.integers(-50, 50).map(lambda k: k / 8), min_size=1, max_size=5, unique=True),
)
_simplex = st.builds(Simplex, st.integers(2, 5), st.sampled_from([1.0, 0.5, 2.0]))
_from_torch = st.sampled_from(
    [dist.Gumbel(0.0, 1.0), dist.Kumaraswamy(2.0, 3.0), dist.LogNormal(0.5, 0.3), dist.Uniform(0.1, 0.3)]
).map(FromTorch)

continuous: st.SearchStrategy[Prior] = _uniform | _log_uniform | _normal | _simplex | _from_torch
priors: st.SearchStrategy[Prior] = continuous | _categorical


def spaces(kinds: st.SearchStrategy[Prior] = priors) -> st.SearchStrategy[HSpace]:
    """Spaces of one to five components, some of them named by attribute paths."""
    names = st.sampled_from(["lam", "phi", "a.b", "hparams.weight", "x y", "Z"])
    return st.dictionaries(names, kinds, min_size=1, max_size=5).map(HSpace)
