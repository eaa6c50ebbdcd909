"""What may stand for a prior: a prior, a ``torch.distributions`` object, or a config in plain data."""

from __future__ import annotations

import copy
import inspect
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution

from lightning_mip.draws import MARGIN
from lightning_mip.own_arguments import is_text
from lightning_mip.priors import SLACK, Prior, check_precision, inner_grid, unit_grid
from lightning_mip.shown import on_one_line, shown

_T = TypeVar("_T")


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
        if not isinstance(self.distribution, Distribution):
            raise TypeError(
                f"FromTorch: distribution is {shown(self.distribution)}, expected a torch.distributions object."
            )
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
        ends = self.distribution.icdf(torch.tensor([MARGIN, 1 - MARGIN], dtype=torch.float64)).tolist()
        check_precision(self, ends[1] - ends[0], *ends)

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
        """The distribution's inverse CDF, which rounding does not take beyond two finite ends."""
        bounds, h = self._bounds(), self.distribution.icdf(u)
        return h.clamp(*bounds) if bounds else h

    def contains(self, h: Tensor) -> Tensor:
        """Whether the value lies in the distribution's support, but for rounding at two finite ends."""
        bounds = self._bounds()
        if bounds:
            slack = SLACK * max(map(abs, bounds))
            return (h >= bounds[0] - slack) & (h <= bounds[1] + slack)
        support: Any = self.distribution.support
        inside: Tensor = torch.isfinite(h) & support.check(h)
        return inside

    def grid(self, n: int) -> Tensor:
        """Equally likely steps: quantiles from end to end where both ends are finite, else at ``(i + 1/2) / n``."""
        return self.icdf((unit_grid(n) if self._bounds() else inner_grid(n)).to(torch.get_default_dtype()))

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
        for key, item in value.config().get("init_args", {}).items():
            if not is_text(item):
                raise TypeError(
                    f"h[{name!r}] is a {type(value).__name__} whose {key} is {reprlib.repr(item)}, which no checkpoint "
                    "could hold; expected Python's own numbers and strings, or lists of them."
                )
        return value
    if isinstance(value, Distribution):
        return FromTorch(value)
    if isinstance(value, Mapping) and "class_path" in value:
        return _from_config(name, value)
    raise TypeError(
        f"h[{name!r}] is {shown(value)}, expected a prior such as Uniform(0, 1) or a torch.distributions object."
    )


def _from_config(name: str, config: Mapping[str, Any]) -> Prior:
    kinds = _subclasses(Prior)  # type: ignore[type-abstract]
    known = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in kinds}
    path, given = _class_and_arguments(name, config)
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
    arguments: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in given.items()}
    if matches[0] is FromTorch and isinstance(arguments.get("distribution"), Mapping):
        arguments["distribution"] = _torch_distribution(name, arguments["distribution"])
    try:
        return matches[0](**arguments)
    except TypeError as error:
        takes = f"{matches[0].__name__} takes {', '.join(inspect.signature(matches[0]).parameters)}"
        raise TypeError(f"h[{name!r}] is {shown(dict(config))}, but {str(error).rstrip('.')}; {takes}.") from error


def _class_and_arguments(name: str, config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    path, arguments = config.get("class_path"), config.get("init_args", {})
    named = isinstance(arguments, Mapping) and all(isinstance(key, str) for key in arguments)
    if not isinstance(path, str) or not named or set(config) - {"class_path", "init_args"}:
        raise TypeError(
            f"h[{name!r}] is {shown(dict(config))}, expected a class and its arguments such as "
            "{'class_path': 'Uniform', 'init_args': {'low': 0, 'high': 1}}."
        )
    return path, arguments


def _torch_distribution(name: str, config: Mapping[str, Any]) -> Distribution:
    path, arguments = _class_and_arguments(name, config)
    kind = getattr(torch.distributions, path.removeprefix("torch.distributions."), None)
    if not (isinstance(kind, type) and issubclass(kind, Distribution)):
        raise ValueError(f"h[{name!r}] names {path!r}, which is not a class of torch.distributions.")
    try:
        return kind(**arguments)
    except Exception as error:  # torch has several kinds for a wrong argument
        told = on_one_line(str(error))
        raise ValueError(f"h[{name!r}] is {shown(dict(config))}, which torch.distributions refuses: {told}") from error


def _unchecked(distribution: Distribution) -> Distribution:
    copied = copy.copy(distribution)
    copied._validate_args = False
    if isinstance(copied, TransformedDistribution):
        copied.base_dist = _unchecked(copied.base_dist)
    return copied


def _subclasses(kind: type[_T]) -> list[type[_T]]:
    return [found for child in kind.__subclasses__() for found in (child, *_subclasses(child))]
