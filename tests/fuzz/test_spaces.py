"""Priors and spaces from any arguments: refused with a reason, or a space whose laws hold."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import distributions as dist

from lightning_mip import Categorical, FromTorch, HSpace, LogUniform, Normal, Prior, Simplex, Uniform
from lightning_mip.dial import parse_h
from tests.fuzz.oracle import Refused, fuzz, outcome
from tests.fuzz.values import anything, numbers, others, texts
from tests.strategies import priors

Made = tuple[Callable[[], Prior], tuple[str, ...]]


def check_laws(space: HSpace) -> None:
    """Draws, grids and centers lie in the space, have norm 1, and names; and the space is rebuilt from plain data."""
    assert HSpace(space.config()) == space
    assert space.config() == HSpace(space.config()).config()
    points = [space.sample(seed=0, step=0), space.sample(seed=1, step=5, strategy="sobol"), space.center()]
    points += [h for n in (1, 2) for h in space.grid(n)[:5]]
    for h in points:
        assert {name: tuple(value.shape) for name, value in h.items()} == {n: p.event_shape for n, p in space.items()}
        assert all(value.isfinite().all() for value in h.values()), h
        vector = space.encode(h)
        assert abs(float(vector.norm()) - 1) < 1e-5, (h, vector)
        assert space.encode(h, "z|1-z").isfinite().all()
        written = [f"{name}={':'.join(f'{x:.9g}' for x in value.reshape(-1).tolist())}" for name, value in h.items()]
        assert list(parse_h(written, space)) == list(h)
    several = space.sample(seed=0, step=0, n=3, strategy="stratified")
    assert space.encode(several).shape == (3, vector.shape[-1])


def made(kind: type[Prior], **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Made]:
    """A prior of these arguments, made when called, and what an error may name."""
    return st.fixed_dictionaries(arguments).map(
        lambda given: (lambda: kind(**given), (kind.__name__, *(f"{name} is" for name in given)))  # type: ignore[return-value]
    )


plain = st.floats(-1e6, 1e6) | st.floats(0, 1) | st.integers(-9, 9)
parameter = plain | plain | numbers | others
made_priors: st.SearchStrategy[Made] = st.one_of(
    made(Uniform, low=parameter, high=parameter, endpoints=st.just(0.0) | st.floats(0, 1) | parameter),
    made(LogUniform, low=parameter, high=parameter, endpoints=st.just(0.0) | st.floats(0, 1) | parameter),
    made(Normal, mean=parameter, std=parameter),
    made(Categorical, values=st.lists(parameter, max_size=4) | st.integers(-3, 20) | anything),
    made(Simplex, n=st.integers(-1, 12) | parameter, alpha=st.just(1.0) | st.floats(0.01, 50) | parameter),
)


@fuzz(200)
@given(made_priors)
def test_a_prior_of_any_arguments(case: Made) -> None:
    build, names = case
    prior = outcome(build, *names)
    if not isinstance(prior, Refused):
        check_laws(HSpace({"lam": prior}))


SCALARS = [
    *(dist.Cauchy, dist.ContinuousBernoulli, dist.Exponential, dist.Gumbel, dist.HalfCauchy, dist.HalfNormal),
    *(dist.Kumaraswamy, dist.Laplace, dist.LogNormal, dist.Normal, dist.Pareto, dist.Uniform, dist.Weibull),
]
WITHOUT_INVERSE = [dist.Beta, dist.Gamma, dist.Poisson, dist.Bernoulli, dist.StudentT, dist.VonMises, dist.Dirichlet]


@fuzz(150)
@given(st.data())
def test_a_torch_distribution_of_any_parameters(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(SCALARS) | st.sampled_from(WITHOUT_INVERSE))
    names = [name for name in inspect.signature(kind).parameters if name not in ("logits", "lims", "validate_args")]
    number = st.floats(1e-3, 20) | st.floats(-1e5, 1e5) | st.sampled_from([1e-30, 1e30])
    value = number | st.lists(number, min_size=1, max_size=2).map(torch.tensor)
    arguments = {name: data.draw(value) for name in names}
    try:
        distribution = kind(**arguments)
    except Exception:  # of torch's own constructor, which the user calls
        assume(False)
    prior = outcome(lambda: FromTorch(distribution), kind.__name__)
    if not isinstance(prior, Refused):
        check_laws(HSpace({"lam": prior}))


names = texts | st.sampled_from(
    ["hparams.lam", "x y", "é", "λ", "=", "a/b", "a,b", " lam", "0", "None", "a\tb", "\x00"]
)


@fuzz(150)
@given(st.dictionaries(names | numbers.filter(lambda value: not isinstance(value, torch.Tensor)), priors, max_size=4))
def test_a_space_of_any_names(given: dict[Any, Prior]) -> None:
    space = outcome(lambda: HSpace(given), "h is empty", "h has a component named")
    if not isinstance(space, Refused):
        check_laws(space)
        assert list(space) == sorted(given)


KINDS = ("Uniform(", "Uniform:", "Normal", "FromTorch")
paths = st.sampled_from(["Uniform", "lightning_mip.Uniform", "FromTorch", "Prior", "lightning_mip.HSpace", "Unifrom"])
configs: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {},
    optional={
        "class_path": paths | anything,
        "init_args": st.dictionaries(
            st.sampled_from(["low", "high", "endpoints", "distribution", "hihg"]), plain | anything, max_size=3
        )
        | anything,
        "more": anything,
    },
)
nested = st.fixed_dictionaries(
    {
        "class_path": st.just("FromTorch"),
        "init_args": st.fixed_dictionaries(
            {
                "distribution": st.fixed_dictionaries(
                    {},
                    optional={
                        "class_path": st.sampled_from(["torch.distributions.Normal", "Gumbel", "torch.nn.Linear", "x"])
                        | anything,
                        "init_args": st.dictionaries(st.sampled_from(["loc", "scale"]), plain | anything) | anything,
                    },
                )
            }
        ),
    }
)


@fuzz(200)
@given(configs | nested | anything)
def test_a_component_of_anything(given: Any) -> None:
    space = outcome(lambda: HSpace({"lam": given}), "h['lam']", *KINDS)
    if not isinstance(space, Refused):
        check_laws(space)


@fuzz(60)
@given(anything | st.lists(priors, max_size=2))
def test_a_space_of_anything(given: Any) -> None:
    assert isinstance(outcome(lambda: HSpace(given), "h is", "h has a component named", "h['"), Refused)
