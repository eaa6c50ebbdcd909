"""How large generated weights are, at which ``h``: the numbers behind MIP's figure of proportionality."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_mip.encodings import encode
from lightning_mip.injection import Injector, evaluated
from lightning_mip.space import HSpace

# An exponent (see `exponent`) is called flat below the first and proportional from the second on.
FLAT, PROPORTIONAL = 0.35, 0.75
# With less between the smallest and the largest h, there is nothing that norms could be proportional to.
_RANGE = 1.5


@dataclass(frozen=True)
class Magnitudes:
    """Norms of the generated tensors at several ``h``, in order of the size of ``h``.

    Attributes:
        names: the generated tensors.
        size: the norm of each ``h`` (as the encoding ``none`` writes it), shape ``(points,)``.
        delta: ``||delta(h)||`` of each tensor, shape ``(points, tensors)``.
        theta: ``||theta(h)||`` of each tensor, shape ``(points, tensors)``.
        theta0: ``||theta0||`` of each tensor, or, where nothing is added to theta0, ``||mean theta(h)||``; shape
            ``(tensors,)``.
        curve: whether the points are a grid that goes from small to large ``h``, so that a line through them means
            something.
        spread: how far ``delta(h)`` is from its mean over ``h``, root mean square, shape ``(tensors,)``.
    """

    names: list[str]
    size: Tensor
    delta: Tensor
    theta: Tensor
    theta0: Tensor
    curve: bool
    spread: Tensor

    @property
    def exponent(self) -> float | None:
        """Of all tensors together: ``||delta(h)||`` grows as ``||h||`` to this power; see `exponent`."""
        return exponent(self.size, total(self.delta))

    @property
    def theta_exponent(self) -> float | None:
        """The same of ``||theta(h)||``."""
        return exponent(self.size, total(self.theta))

    @property
    def relative_spread(self) -> float:
        """``||delta(h) - mean delta||`` by ``||theta0||``, of all tensors together."""
        return float(total(self.spread) / total(self.theta0).clamp(min=torch.finfo(torch.float64).tiny))


def points(space: HSpace, n: int) -> list[dict[str, Tensor]]:
    """About ``n`` values of ``h`` that cover the space: a grid of one component, low-discrepancy draws of several."""
    if len(space) == 1 and not any(prior.event_shape for prior in space.values()):
        return space.grid(n)
    drawn = space.sample(seed=0, step=0, n=n, strategy="sobol")
    return [{name: value[k] for name, value in drawn.items()} for k in range(n)]


def sizes(space: HSpace, hs: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """The norm of each ``h``, components as they are and classes one-hot; shape ``(len(hs),)``."""
    return torch.stack([torch.linalg.vector_norm(encode(space, h, "none").double()) for h in hs])


@torch.no_grad()
def magnitudes(injector: Injector, hs: Sequence[Mapping[str, Tensor]]) -> Magnitudes:
    """Generate the weights at each ``h``, one after the other, and keep their norms."""
    hypernet = injector.hypernet
    with injector.paused():
        theta0 = {name: injector.root.get_parameter(name).detach() for name in hypernet.shapes}
    with evaluated(hypernet):
        # Relative to the first, as the spread of nearly equal tensors would be lost in rounding.
        first = hypernet(hs[0])
        moved = {name: torch.zeros_like(tensor) for name, tensor in first.items()}
        deltas, thetas, apart = [], [], []
        for h in hs:
            delta = hypernet(h)
            change = {name: tensor - first[name] for name, tensor in delta.items()}
            for name, tensor in change.items():
                moved[name] += tensor / len(hs)
            deltas.append(_norms(delta))
            apart.append(_norms(change))
            thetas.append(_norms({name: theta0[name] + tensor for name, tensor in delta.items()}))
    variance = (torch.stack(apart) ** 2).mean(0) - _norms(moved) ** 2
    mean = {name: first[name] + tensor for name, tensor in moved.items()}
    size = sizes(hypernet.space, hs)
    order = size.argsort()
    return Magnitudes(
        names=list(hypernet.shapes),
        size=size[order],
        delta=torch.stack(deltas)[order],
        theta=torch.stack(thetas if hypernet.residual else deltas)[order],
        theta0=_norms(theta0 if hypernet.residual else mean),
        curve=len(hypernet.space) == 1 and bool((size.diff() > 0).all()),
        spread=variance.clamp(min=0).sqrt(),
    )


def total(norms: Tensor) -> Tensor:
    """The norm of all tensors together, from theirs along the last dimension."""
    of_all: Tensor = torch.linalg.vector_norm(norms, dim=-1)
    return of_all


def norm_of(tensors: Iterable[Tensor]) -> float:
    """The norm of several tensors together, such as gradients."""
    return float(total(torch.stack([torch.linalg.vector_norm(tensor.float()).double() for tensor in tensors])))


def exponent(size: Tensor, norms: Tensor) -> float | None:
    """The power b of ``norms ~ size ** b``, by least squares in the logarithms: 0 is flat, 1 proportional.

    None where there is no such thing: all norms 0, or sizes that hardly differ.

    >>> size = torch.linspace(0, 1, 9)
    >>> round(exponent(size, 3 * size), 6)
    1.0
    """
    usable = (size > 0) & (norms > 0)
    x, y = size[usable].double().log(), norms[usable].double().log()
    if len(x) < 3 or float(x.max() - x.min()) < math.log(_RANGE):
        return None
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def shape_of(power: float | None) -> str:
    """An exponent in a word: ``flat``, ``proportional``, ``growing``, ``shrinking``, or ``unknown`` for None."""
    if power is None:
        return "unknown"
    if abs(power) < FLAT:
        return "flat"
    return "shrinking" if power < 0 else "proportional" if power >= PROPORTIONAL else "growing"


def _norms(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(tensor.float()).cpu().double() for tensor in tensors.values()])
