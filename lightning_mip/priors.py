"""Priors: the distribution that one component of ``h`` is drawn from.

Every prior maps to the unit interval by its CDF and back by its inverse, so that bounded, log-scaled and Gaussian
components share one encoding, and sampling is the inverse CDF of uniform numbers (random, Sobol or stratified).
"""

from __future__ import annotations

import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from lightning_mip.positive import check_whole
from lightning_mip.shown import shown

# Rounding slack of the support checks: a float64 bound, stored as a float32 h, must stay inside.
SLACK = 1e-6
# Numbers beyond this, or the inverse of it, leave the range of single precision when computed with.
_LARGEST = 1e37
# Narrower ranges, relative to their bounds, have few values in single precision, and `SLACK` would be much of them.
_NARROWEST = 5e-5
# More grid points or classes than this, or weights of a preference vector, are a mistake, not a wish.
MAX_POINTS = 100_000
_MAX_WEIGHTS = 10_000
# Of numbers in metric names: 6 tell the values of most priors apart, 9 all of single, 17 all of double precision.
_DIGITS, FLOAT32_DIGITS, _FLOAT64_DIGITS = 6, 9, 17


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
        tensor = _as_tensor(value)
        return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())

    @functools.cached_property
    def digits(self) -> int:
        """How many significant digits metric names give a value: as many as tell 500 steps over the prior apart."""
        if self.event_shape:
            return _DIGITS
        low, high = self.icdf(torch.tensor([0.001, 0.999], dtype=torch.float64)).tolist()
        largest, step = max(abs(low), abs(high)), abs(high - low) / 500
        if not (step > 0 and math.isfinite(largest)):
            return _DIGITS
        return min(max(1 + math.floor(math.log10(largest)) - math.floor(math.log10(step)), _DIGITS), FLOAT32_DIGITS)

    def text(self, value: Any) -> str:
        """Write a value as metric names do; the numbers of a preference vector have colons between them.

        >>> Uniform(0, 1).text(0.1), Uniform(1000, 1000.1).text(1000.005)
        ('0.1', '1000.005')
        """
        return ":".join(number_text(x, self.digits) for x in torch.as_tensor(value).reshape(-1).tolist())

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
        check_precision(self, self.high - self.low, self.low, self.high)

    def cdf(self, h: Tensor) -> Tensor:
        """Position ``(h - low) / (high - low)``."""
        return ((h - self.low) / (self.high - self.low)).clamp(0, 1)

    def icdf(self, u: Tensor) -> Tensor:
        """Value ``low + u (high - low)``."""
        return self.low + u * (self.high - self.low)

    def contains(self, h: Tensor) -> Tensor:
        """Whether low <= h <= high, but for rounding."""
        slack = SLACK * max(abs(self.low), abs(self.high))
        return (h >= self.low - slack) & (h <= self.high + slack)

    def grid(self, n: int) -> Tensor:
        """``n`` equally spaced values from low to high."""
        return self.icdf(unit_grid(n))

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
        check_precision(self, self.high - self.low, self.low, self.high, smallest=self.low)

    def cdf(self, h: Tensor) -> Tensor:
        """Position ``log(h / low) / log(high / low)``."""
        return (torch.log(h / self.low) / math.log(self.high / self.low)).clamp(0, 1)

    def icdf(self, u: Tensor) -> Tensor:
        """Value ``low (high / low)^u``."""
        return self.low * torch.exp(u * math.log(self.high / self.low))

    def contains(self, h: Tensor) -> Tensor:
        """Whether low <= h <= high, but for rounding."""
        return (h >= self.low * (1 - SLACK)) & (h <= self.high * (1 + SLACK))

    def grid(self, n: int) -> Tensor:
        """``n`` geometrically spaced values from low to high."""
        return self.icdf(unit_grid(n))

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
        _make_plain(self)
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ValueError(f"{self}: expected a finite mean and a finite std > 0.")
        check_precision(self, self.std, self.mean)

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
        return self.icdf(inner_grid(n))


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
        numbers = tuple(map(_plain_number, _listed(given)))
        if not all(number is not None and math.isfinite(number) for number in numbers):
            raise TypeError(
                f"Categorical({shown(given)}): expected a number of classes or finite numbers; for names, use their "
                "positions 0, 1, ..."
            )
        if not numbers or len(set(numbers)) < len(numbers):
            raise ValueError(f"Categorical({shown(given)}): expected at least one value, each of them once.")
        if len(set(torch.tensor(numbers).tolist())) < len(numbers):
            raise ValueError(f"Categorical({shown(given)}): in single precision two of the values are the same.")
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
        index = (torch.ceil(u * n - SLACK) - 1).clamp(0, n - 1).long()
        return self._table().to(u.device)[index]

    def contains(self, h: Tensor) -> Tensor:
        """Whether the value is one of those listed, but for rounding."""
        table = self._table(h)
        nearest = table[self._index(h)]
        return (h - nearest).abs() <= SLACK * nearest.abs()

    def grid(self, n: int) -> Tensor:
        """All values, whatever ``n``."""
        _check_points(n)
        return self._table()

    def encode(self, h: Tensor) -> Tensor:
        """One-hot, shape ``(*batch, n)``."""
        dtype = h.dtype if h.is_floating_point() else torch.get_default_dtype()
        return torch.nn.functional.one_hot(self._index(h), len(self._table())).to(dtype)

    @functools.cached_property
    def digits(self) -> int:
        """As many as tell all values apart."""
        numbers: Any = self.values
        each = range(_DIGITS, _FLOAT64_DIGITS)
        return next((k for k in each if len({_text(x, k) for x in numbers}) == len(numbers)), _FLOAT64_DIGITS)

    def text(self, value: Any) -> str:
        """Write a value as metric names do, as it was listed."""
        numbers: Any = self.values
        return ":".join(_text(numbers[k], self.digits) for k in self._index(self.tensor(value)).reshape(-1).tolist())

    def tensor(self, value: Any) -> Tensor:
        """Turn a value into a tensor; classes stay integers."""
        tensor = _as_tensor(value)
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
        _make_plain(self)
        whole = math.isfinite(self.n) and self.n >= 2 and self.n == int(self.n)
        if not (whole and math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"{self}: expected a whole n >= 2 and a finite alpha > 0.")
        if not 1e-4 <= self.alpha <= 1e8:
            raise ValueError(
                f"{self}: expected an alpha from 1e-4 to 1e8; beyond, weights are not told apart in single precision."
            )
        if self.n > _MAX_WEIGHTS:
            raise ValueError(f"{self}: expected at most {_MAX_WEIGHTS} weights.")
        object.__setattr__(self, "n", int(self.n))

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
        return (h >= -SLACK).all(-1) & ((h.sum(-1) - 1).abs() <= 10 * SLACK)

    def grid(self, n: int) -> Tensor:
        """The lattice with ``n`` points on each edge, corners included."""
        _check_points(n)
        if n == 1:
            return self.center().unsqueeze(0)
        if (size := math.comb(n - 2 + self.n, self.n - 1)) > MAX_POINTS:
            raise ValueError(
                f"grid({n}) has {size} points of {self}, expected at most {MAX_POINTS}; give fewer, or your "
                "own list of h."
            )
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


def number_text(x: float, digits: int = _DIGITS) -> str:
    """Write a number with so many significant digits; of more than 6, none that single precision does not have."""
    if digits > _DIGITS and math.isfinite(x):
        kept = torch.tensor(x, dtype=torch.float32)
        for fewer in range(_DIGITS, digits):
            if torch.tensor(float(f"{x:.{fewer}g}"), dtype=torch.float32) == kept:
                return f"{x:.{fewer}g}"
    return f"{x:.{digits}g}"


def _text(x: float, digits: int) -> str:
    return str(x) if isinstance(x, int) and digits > _DIGITS else f"{x:.{digits}g}"


def _as_tensor(value: Any) -> Tensor:
    # A copy of what is no tensor: torch warns of NumPy arrays that must not be written to.
    tensor = value if isinstance(value, Tensor) else torch.tensor(value)
    if tensor.is_complex():
        raise TypeError("complex numbers are no values of a prior.")
    return tensor


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _plain_number(value: Any) -> float | None:
    """A Python number, which any checkpoint holds, from one of NumPy or PyTorch as well; None for anything else."""
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond all floats
        return math.inf if value > 0 else -math.inf
    return int(value) if isinstance(value, int) else number


def _listed(given: Any) -> Iterable[Any]:
    """The values of a `Categorical`, one None where they are not values."""
    if isinstance(given, int) and not isinstance(given, bool):
        if given > MAX_POINTS:
            raise ValueError(f"Categorical({given!r}): expected at most {MAX_POINTS} classes.")
        return range(given)
    return given if isinstance(given, Iterable) and getattr(given, "ndim", None) != 0 else [None]


def _make_plain(prior: Any) -> None:
    """Store the parameters of a prior as Python numbers."""
    for field in fields(prior):
        given = getattr(prior, field.name)
        number = _plain_number(given)
        if number is None:
            raise TypeError(f"{type(prior).__name__}: {field.name} is {shown(given)}, expected a number.")
        object.__setattr__(prior, field.name, number)


def check_precision(prior: Prior, width: float, *ends: float, smallest: float = 1.0) -> None:
    """Refuse values that single precision, in which ``h`` is kept, cannot hold or tell apart."""
    largest = max(map(abs, ends))
    if not (max(largest, width) < _LARGEST and min(smallest, width) * _LARGEST > 1 and width > _NARROWEST * largest):
        raise ValueError(
            f"{prior}: values as large, small or close as these are not told apart in single precision; let h be the "
            "difference from a fixed value, or in another unit."
        )


def _check_bounds(prior: Uniform | LogUniform) -> None:
    _make_plain(prior)
    if not (math.isfinite(prior.low) and math.isfinite(prior.high) and prior.low < prior.high):
        raise ValueError(f"{prior}: expected finite bounds with low < high.")
    if not 0 <= prior.endpoints < 1:
        raise ValueError(f"{prior}: endpoints is a probability, expected 0 <= endpoints < 1.")


def _oversample_ends(u: Tensor, probability: float) -> Tensor:
    return ((u - probability / 2) / (1 - probability)).clamp(0, 1)


def _check_points(n: int) -> None:
    check_whole("number of points of grid", n)
    if n < 1:
        raise ValueError(f"grid({n}): expected at least 1 point.")
    if n > MAX_POINTS:
        raise ValueError(f"grid({n}): expected at most {MAX_POINTS} points.")


def unit_grid(n: int) -> Tensor:
    """``n`` positions from 0 to 1, both included."""
    _check_points(n)
    return torch.linspace(0, 1, n, dtype=torch.float64) if n > 1 else torch.tensor([0.5], dtype=torch.float64)


def inner_grid(n: int) -> Tensor:
    """The ``n`` positions ``(i + 1/2) / n``."""
    _check_points(n)
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n
