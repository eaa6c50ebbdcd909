"""Priors: the distribution that one component of ``h`` is drawn from.

Every prior maps to the unit interval by its CDF and back by its inverse, so that bounded, log-scaled and Gaussian
components share one encoding, and sampling is the inverse CDF of uniform numbers (random, Sobol or stratified).
"""

from __future__ import annotations

import copy
import itertools
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution

# Rounding slack of the support checks: a float64 bound, stored as a float32 h, must stay inside.
_SLACK = 1e-6
_T = TypeVar("_T")


class Prior(ABC):
    """The distribution of one component of ``h``; subclass it as a frozen dataclass.

    A subclass gives ``cdf``, ``icdf``, ``contains`` and ``grid``. Shapes: a component's value is a 0-dim tensor (or
    ``event_shape`` for vector-valued priors), with any leading batch dimensions.
    """

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one value: ``()`` for a number, ``(n,)`` for a preference vector."""
        return ()

    @property
    def uniforms(self) -> int:
        """How many uniform numbers one draw takes."""
        return 1

    @abstractmethod
    def cdf(self, h: Tensor) -> Tensor:
        """Position ``u`` in [0, 1] of a value, shape of ``h``."""

    @abstractmethod
    def icdf(self, u: Tensor) -> Tensor:
        """Value at position ``u`` in [0, 1]; the inverse of `cdf`."""

    @abstractmethod
    def contains(self, h: Tensor) -> Tensor:
        """Whether each value lies in the support, boolean of shape ``(*batch,)``."""

    @abstractmethod
    def grid(self, n: int) -> Tensor:
        """About ``n`` values that cover the prior, shape ``(points, *event_shape)``; bounded ends are included."""

    def draw(self, u: Tensor) -> Tensor:
        """Turn uniform numbers into values drawn from the prior."""
        return self.icdf(u)

    def encode(self, h: Tensor) -> Tensor:
        """Encode values with norm 1: ``[cos(pi u / 2), sin(pi u / 2)]``, shape ``(*batch, 2)``.

        Source: MIP (ICLR 2024), input encoding E_L2, applied to ``u = cdf(h)``.

        >>> Uniform(0, 1).encode(torch.tensor(0.5))
        tensor([0.7071, 0.7071])
        """
        angle = self.cdf(h) * (math.pi / 2)
        return torch.stack([angle.cos(), angle.sin()], dim=-1)

    def center(self) -> Tensor:
        """The value in the middle of the prior (the median)."""
        return self.icdf(torch.tensor(0.5, dtype=torch.float64))

    def tensor(self, value: Any) -> Tensor:
        """Turn a number, sequence or tensor into a tensor of this component's kind; dtypes of tensors are kept."""
        tensor = torch.as_tensor(value)
        return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())

    def config(self) -> dict[str, Any]:
        """Describe the prior in plain data, as a LightningCLI config does.

        >>> Uniform(0, 1).config()["init_args"]
        {'low': 0, 'high': 1, 'endpoints': 0.0}
        """
        arguments = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}", "init_args": arguments}


@dataclass(frozen=True)
class Uniform(Prior):
    """Uniform on [low, high].

    Args:
        low: smallest value.
        high: largest value.
        endpoints: probability of drawing an end point (half of it each), HyperMorph's oversampling. Only draws change:
            ``cdf`` and ``icdf`` stay those of the uniform distribution.
    """

    low: float
    high: float
    endpoints: float = 0.0

    def __post_init__(self) -> None:
        """Check the bounds."""
        _check_bounds(self)

    def cdf(self, h: Tensor) -> Tensor:
        """Position ``(h - low) / (high - low)``."""
        return ((h - self.low) / (self.high - self.low)).clamp(0, 1)

    def icdf(self, u: Tensor) -> Tensor:
        """Value ``low + u (high - low)``."""
        return self.low + u * (self.high - self.low)

    def contains(self, h: Tensor) -> Tensor:
        """Whether low <= h <= high, but for rounding."""
        slack = _SLACK * max(abs(self.low), abs(self.high))
        return (h >= self.low - slack) & (h <= self.high + slack)

    def grid(self, n: int) -> Tensor:
        """``n`` equally spaced values from low to high."""
        return self.icdf(_unit_grid(n))

    def draw(self, u: Tensor) -> Tensor:
        """Draw from the prior, an end point with probability ``endpoints``."""
        return self.icdf(_oversample_ends(u, self.endpoints))


@dataclass(frozen=True)
class LogUniform(Prior):
    """Uniform in the logarithm on [low, high], 0 < low.

    Args:
        low: smallest value, positive.
        high: largest value.
        endpoints: probability of drawing an end point, as for `Uniform`.
    """

    low: float
    high: float
    endpoints: float = 0.0

    def __post_init__(self) -> None:
        """Check the bounds."""
        _check_bounds(self)
        if self.low <= 0:
            raise ValueError(f"{self}: low is {self.low}, expected a positive number; use Uniform for a range with 0.")

    def cdf(self, h: Tensor) -> Tensor:
        """Position ``log(h / low) / log(high / low)``."""
        return (torch.log(h / self.low) / math.log(self.high / self.low)).clamp(0, 1)

    def icdf(self, u: Tensor) -> Tensor:
        """Value ``low (high / low)^u``."""
        return self.low * torch.exp(u * math.log(self.high / self.low))

    def contains(self, h: Tensor) -> Tensor:
        """Whether low <= h <= high, but for rounding."""
        return (h >= self.low * (1 - _SLACK)) & (h <= self.high * (1 + _SLACK))

    def grid(self, n: int) -> Tensor:
        """``n`` geometrically spaced values from low to high."""
        return self.icdf(_unit_grid(n))

    def draw(self, u: Tensor) -> Tensor:
        """Draw from the prior, an end point with probability ``endpoints``."""
        return self.icdf(_oversample_ends(u, self.endpoints))


@dataclass(frozen=True)
class Normal(Prior):
    """Gaussian with a mean and a standard deviation.

    Args:
        mean: the mean.
        std: the standard deviation, positive.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ValueError(f"{self}: expected a finite mean and a finite std > 0.")

    def cdf(self, h: Tensor) -> Tensor:
        """Standard normal CDF of ``(h - mean) / std``."""
        u: Tensor = torch.special.ndtr((h - self.mean) / self.std)
        return u

    def icdf(self, u: Tensor) -> Tensor:
        """Quantile ``mean + std * Phi^-1(u)``."""
        quantile: Tensor = torch.special.ndtri(u)
        return self.mean + self.std * quantile

    def contains(self, h: Tensor) -> Tensor:
        """Whether the value is finite."""
        return torch.isfinite(h)

    def grid(self, n: int) -> Tensor:
        """The quantiles at ``(i + 1/2) / n``."""
        return self.icdf(_inner_grid(n))


@dataclass(frozen=True)
class Categorical(Prior):
    """Equally likely classes ``0 .. n-1``, or a list of numbers, encoded one-hot.

    Args:
        values: the number of classes, or the distinct numbers to choose from (``h`` holds the number itself).

    >>> Categorical([0.1, 1.0, 10.0]).encode(torch.tensor(1.0))
    tensor([0., 1., 0.])
    """

    values: int | Sequence[float]

    def __post_init__(self) -> None:
        """Check the values and store them as a tuple."""
        given = self.values
        listed = range(given) if isinstance(given, int) else given
        numbers = tuple(listed) if isinstance(listed, Iterable) else (None,)
        if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
            raise TypeError(
                f"Categorical({given!r}): expected a number of classes or finite numbers; for names, use their "
                "positions 0, 1, ..."
            )
        if not numbers or len(set(numbers)) < len(numbers):
            raise ValueError(f"Categorical({given!r}): expected at least one value, each of them once.")
        object.__setattr__(self, "values", numbers)

    def _table(self, like: Tensor | None = None) -> Tensor:
        table = torch.tensor(self.values)
        if like is None:
            return table
        # Whole numbers are compared with the fractions as they are: 0 is not 0.1.
        return table.to(like) if like.is_floating_point() else table.to(like.device)

    def _index(self, h: Tensor) -> Tensor:
        distances: Tensor = (h.unsqueeze(-1) - self._table(h)).abs()
        return distances.argmin(-1)

    def cdf(self, h: Tensor) -> Tensor:
        """``(k + 1) / n`` for the k-th value, in the listed order."""
        return (self._index(h) + 1) / len(self._table())

    def icdf(self, u: Tensor) -> Tensor:
        """The first value whose CDF reaches ``u``."""
        n = len(self._table())
        index = (torch.ceil(u * n - _SLACK) - 1).clamp(0, n - 1).long()
        return self._table().to(u.device)[index]

    def contains(self, h: Tensor) -> Tensor:
        """Whether the value is one of those listed, but for rounding."""
        table = self._table(h)
        nearest = table[self._index(h)]
        return (h - nearest).abs() <= _SLACK * (1 + nearest.abs())

    def grid(self, n: int) -> Tensor:
        """All values, whatever ``n``."""
        _check_points(n)
        return self._table()

    def encode(self, h: Tensor) -> Tensor:
        """One-hot, shape ``(*batch, n)``."""
        dtype = h.dtype if h.is_floating_point() else torch.get_default_dtype()
        return torch.nn.functional.one_hot(self._index(h), len(self._table())).to(dtype)

    def tensor(self, value: Any) -> Tensor:
        """Turn a value into a tensor; classes stay integers."""
        tensor = torch.as_tensor(value)
        return tensor.long() if tensor.dtype == torch.bool else tensor


@dataclass(frozen=True)
class Simplex(Prior):
    """Preference vectors: ``n`` weights >= 0 that sum to 1, from a symmetric Dirichlet distribution.

    Args:
        n: number of weights, at least 2.
        alpha: concentration; 1 is uniform on the simplex, other values need scipy (``pip install
            'lightning-mip[scipy]'``).

    Positions ``u`` have ``n - 1`` coordinates (stick breaking).
    """

    n: int
    alpha: float = 1.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        if self.n < 2 or not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"{self}: expected n >= 2 and a finite alpha > 0.")

    @property
    def event_shape(self) -> tuple[int, ...]:
        """``(n,)``."""
        return (self.n,)

    @property
    def uniforms(self) -> int:
        """``n - 1``."""
        return self.n - 1

    def cdf(self, h: Tensor) -> Tensor:
        """Positions of stick breaking, shape ``(*batch, n - 1)``."""
        rest = torch.ones_like(h[..., 0])
        positions = []
        for k in range(self.n - 1):
            share = torch.where(rest > 0, h[..., k] / rest.clamp(min=1e-30), 0.0).clamp(0, 1)
            positions.append(self._beta(share, self.n - 1 - k, inverse=False))
            rest = rest - h[..., k]
        return torch.stack(positions, dim=-1)

    def icdf(self, u: Tensor) -> Tensor:
        """Preference vectors for positions ``u`` of shape ``(*batch, n - 1)``."""
        rest = torch.ones_like(u[..., 0])
        weights = []
        for k in range(self.n - 1):
            weights.append(rest * self._beta(u[..., k], self.n - 1 - k, inverse=True))
            rest = rest - weights[-1]
        return torch.stack([*weights, rest], dim=-1)

    def contains(self, h: Tensor) -> Tensor:
        """Whether all weights are >= 0 and sum to 1, but for rounding."""
        return (h >= -_SLACK).all(-1) & ((h.sum(-1) - 1).abs() <= 10 * _SLACK)

    def grid(self, n: int) -> Tensor:
        """The lattice with ``n`` points on each edge, corners included."""
        _check_points(n)
        if n == 1:
            return self.center().unsqueeze(0)
        # Stars and bars: the gaps between n_weights - 1 bars among the n - 1 steps.
        bars = itertools.combinations(range(n - 2 + self.n), self.n - 1)
        edges = torch.tensor([(-1, *places, n - 2 + self.n) for places in bars], dtype=torch.float64)
        return (edges.diff(dim=-1) - 1) / (n - 1)

    def encode(self, h: Tensor) -> Tensor:
        """``sqrt(h)``, which has norm 1, shape ``(*batch, n)``."""
        weights = h.clamp(min=0)
        share = weights / weights.sum(-1, keepdim=True)
        # A weight of 0 gets no gradient: that of the root is infinite there, and would make NaN of all others.
        return torch.where(share > 0, torch.where(share > 0, share, 1.0).sqrt(), 0.0)

    def center(self) -> Tensor:
        """Equal weights."""
        return torch.full((self.n,), 1 / self.n, dtype=torch.float64)

    def _beta(self, x: Tensor, others: int, *, inverse: bool) -> Tensor:
        """CDF, or its inverse, of the share that one weight takes of what it and ``others`` have left."""
        if self.alpha == 1.0:
            return 1 - (1 - x) ** (1 / others if inverse else others)
        try:
            from scipy.special import betainc, betaincinv
        except ImportError as error:
            raise ImportError(
                f"{self}: alpha other than 1 needs scipy; pip install 'lightning-mip[scipy]', or use alpha=1."
            ) from error
        function = betaincinv if inverse else betainc
        values = function(self.alpha, self.alpha * others, x.detach().double().cpu().numpy())
        return torch.as_tensor(values, dtype=x.dtype, device=x.device)


@dataclass(frozen=True, eq=False)
class FromTorch(Prior):
    """Any scalar ``torch.distributions`` distribution that has ``cdf`` and ``icdf``.

    Args:
        distribution: the distribution, without batch dimensions.

    >>> FromTorch(torch.distributions.Gumbel(0.0, 1.0)).grid(3)
    tensor([-0.5832,  0.3665,  1.7020])
    """

    distribution: Distribution

    def __post_init__(self) -> None:
        """Check that the distribution is scalar, can be inverted, and written down."""
        shape = (*self.distribution.batch_shape, *self.distribution.event_shape)
        if shape:
            raise ValueError(f"{self.distribution}: expected a distribution of one number, but its shape is {shape}.")
        try:
            self.distribution.cdf(self.distribution.icdf(torch.tensor(0.5)))
        except NotImplementedError as error:
            name = type(self.distribution).__name__
            raise TypeError(
                f"{name} has no cdf and icdf, so it cannot be a prior; use one that has both "
                "(Uniform, Normal, LogNormal, Laplace, Cauchy, Exponential, Gumbel, Kumaraswamy, ...)."
            ) from error
        kind = type(self.distribution)
        if getattr(torch.distributions, kind.__name__, None) is not kind or not self.distribution.arg_constraints:
            raise TypeError(
                f"{kind.__name__} is not a class of torch.distributions with parameters of its own, so no checkpoint "
                "could hold it; subclass lightning_mip.Prior instead."
            )

    def __eq__(self, other: object) -> bool:
        # torch compares distributions by identity.
        return isinstance(other, FromTorch) and self.config() == other.config()

    def __hash__(self) -> int:
        return hash(repr(self.config()))

    def _bounds(self) -> tuple[float, float] | None:
        """Both ends of the support, where it has both."""
        support = self.distribution.support
        ends = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
        return None if ends[0] is None or ends[1] is None else (float(ends[0]), float(ends[1]))

    def cdf(self, h: Tensor) -> Tensor:
        """The distribution's CDF."""
        # torch checks the support of inner distributions too, where rounding leaves it; ours is checked by `contains`.
        bounds = self._bounds()
        u: Tensor = _unchecked(self.distribution).cdf(h.clamp(*bounds) if bounds else h)
        return u.clamp(0, 1)

    def icdf(self, u: Tensor) -> Tensor:
        """The distribution's inverse CDF."""
        return self.distribution.icdf(u)

    def contains(self, h: Tensor) -> Tensor:
        """Whether the value lies in the distribution's support, but for rounding at two finite ends."""
        bounds = self._bounds()
        if bounds:
            slack = _SLACK * max(map(abs, bounds))
            return (h >= bounds[0] - slack) & (h <= bounds[1] + slack)
        support: Any = self.distribution.support
        inside: Tensor = torch.isfinite(h) & support.check(h)
        return inside

    def grid(self, n: int) -> Tensor:
        """Equally likely steps: quantiles from end to end where both ends are finite, else at ``(i + 1/2) / n``."""
        return self.icdf((_unit_grid(n) if self._bounds() else _inner_grid(n)).to(torch.get_default_dtype()))

    def config(self) -> dict[str, Any]:
        """Describe the prior in plain data, the distribution by its parameters."""
        kind = type(self.distribution)
        # Those with logits have probs as well, and take one of them.
        names = [name for name in self.distribution.arg_constraints if name != "logits"]
        arguments = {name: float(getattr(self.distribution, name)) for name in names}
        inner = {"class_path": f"torch.distributions.{kind.__name__}", "init_args": arguments}
        return {"class_path": f"{type(self).__module__}.FromTorch", "init_args": {"distribution": inner}}


def as_prior(name: str, value: Prior | Distribution | Mapping[str, Any]) -> Prior:
    """Turn what a user gave for component ``name`` into a prior.

    Args:
        name: the component, for the error message.
        value: a prior, a ``torch.distributions`` object, or a ``{"class_path": ..., "init_args": ...}`` mapping, as
            checkpoints and configs hold it. Only priors that are already imported are built from a mapping: reading a
            checkpoint never imports anything.
    """
    if isinstance(value, Prior):
        if type(value).config is Prior.config and not is_dataclass(value):
            raise TypeError(
                f"h[{name!r}] is a {type(value).__name__}, which is not a dataclass, so no checkpoint could hold its "
                "arguments; write @dataclass(frozen=True) above the class."
            )
        return value
    if isinstance(value, Distribution):
        return FromTorch(value)
    if isinstance(value, Mapping) and "class_path" in value:
        return _from_config(name, value)
    raise TypeError(
        f"h[{name!r}] is {value!r}, expected a prior such as Uniform(0, 1) or a torch.distributions object."
    )


def _from_config(name: str, config: Mapping[str, Any]) -> Prior:
    kinds = _subclasses(Prior)  # type: ignore[type-abstract]
    known = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in kinds}
    path = config["class_path"]
    # A config may name a class by where it is re-exported ("lightning_mip.Uniform"), or by its bare name.
    module, _, last = path.rpartition(".")
    exported = getattr(sys.modules.get(module), last, None)
    named = [kind for kind in known.values() if kind is exported or kind.__qualname__ == path]
    matches = [known[path]] if path in known else named
    if len(matches) != 1:
        raise ValueError(
            f"h[{name!r}] names the prior {path!r}, which is not imported; known are {', '.join(sorted(known))}. "
            "Import the module that defines it first."
        )
    given = config.get("init_args", {})
    arguments: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in given.items()}
    if matches[0] is FromTorch:
        inner = arguments["distribution"]
        if not isinstance(inner, Distribution):
            kind = _torch_distribution(name, inner["class_path"])
            arguments["distribution"] = kind(**inner["init_args"])
    return matches[0](**arguments)


def _torch_distribution(name: str, path: str) -> type[Distribution]:
    kind = getattr(torch.distributions, path.removeprefix("torch.distributions."), None)
    if not (isinstance(kind, type) and issubclass(kind, Distribution)):
        raise ValueError(f"h[{name!r}] names {path!r}, which is not a class of torch.distributions.")
    return kind


def _unchecked(distribution: Distribution) -> Distribution:
    copied = copy.copy(distribution)
    copied._validate_args = False
    if isinstance(copied, TransformedDistribution):
        copied.base_dist = _unchecked(copied.base_dist)
    return copied


def _subclasses(kind: type[_T]) -> list[type[_T]]:
    return [found for child in kind.__subclasses__() for found in (child, *_subclasses(child))]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check_bounds(prior: Uniform | LogUniform) -> None:
    if not (math.isfinite(prior.low) and math.isfinite(prior.high) and prior.low < prior.high):
        raise ValueError(f"{prior}: expected finite bounds with low < high.")
    if not 0 <= prior.endpoints < 1:
        raise ValueError(f"{prior}: endpoints is a probability, expected 0 <= endpoints < 1.")


def _oversample_ends(u: Tensor, probability: float) -> Tensor:
    return ((u - probability / 2) / (1 - probability)).clamp(0, 1)


def _check_points(n: int) -> None:
    if n < 1:
        raise ValueError(f"grid({n}): expected at least 1 point.")


def _unit_grid(n: int) -> Tensor:
    _check_points(n)
    return torch.linspace(0, 1, n, dtype=torch.float64) if n > 1 else torch.tensor([0.5], dtype=torch.float64)


def _inner_grid(n: int) -> Tensor:
    _check_points(n)
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n
