"""Minimizing a function of a few numbers inside a box, with as few evaluations as a pass over data deserves."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

# Evaluations of each search: a golden section of 10 leaves 1 % of the box, L-BFGS of 12 converges on smooth curves.
GOLDEN, ROUNDS, PER_ROUND, STEPS = 10, 3, 16, 12
_RATIO = (math.sqrt(5) - 1) / 2
_FIRST_STEP = 0.25

Found = tuple[Tensor, float]


def golden_section(cost: Callable[[Tensor], float], low: Tensor, high: Tensor) -> Found:
    """Minimize over one number by a golden section.

    Args:
        cost: of a point, shape (1,).
        low: lower end, shape (1,).
        high: upper end, shape (1,).

    Returns:
        The best point that was evaluated, shape (1,), and its cost.

    >>> point, _ = golden_section(lambda x: float((x - 0.3) ** 2), torch.tensor([0.0]), torch.tensor([1.0]))
    >>> abs(float(point) - 0.3) < 0.01
    True
    """
    left, right = high - _RATIO * (high - low), low + _RATIO * (high - low)
    at_left, at_right = cost(left), cost(right)
    best = min((left, at_left), (right, at_right), key=lambda found: found[1])
    for _ in range(GOLDEN - 2):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _RATIO * (high - low)
            at_left = cost(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _RATIO * (high - low)
            at_right = cost(right)
        best = min(best, (left, at_left), (right, at_right), key=lambda found: found[1])
    return best


def quasi_random(costs: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, start: Found) -> Found:
    """Minimize over several numbers: Sobol points in the box, then in smaller boxes around the best one.

    Args:
        costs: of points, shape (n, d), as a tensor of shape (n,).
        low: lower ends, shape (d,).
        high: upper ends, shape (d,).
        start: a point and its cost.

    Returns:
        The best point, shape (d,), and its cost; ``start`` if none is better.
    """
    point, cost = start
    half = (high - low) / 2
    sobol = torch.quasirandom.SobolEngine(len(low))
    for round_ in range(ROUNDS):
        # The first Sobol point is the corner of the box.
        drawn = sobol.draw(PER_ROUND + (round_ == 0), dtype=torch.float64)[-PER_ROUND:]
        center = torch.minimum(torch.maximum(point, low + half), high - half)
        points = center + (2 * drawn - 1) * half
        found = costs(points)
        if float(found.min()) < cost:
            point, cost = points[found.argmin()], float(found.min())
        half = half / 3
    return point, cost


def descend(
    slope: Callable[[Tensor], tuple[float, Tensor | None]], low: Tensor, high: Tensor, start: Tensor
) -> Found | None:
    """Minimize a differentiable function inside a box by L-BFGS.

    Args:
        slope: of a point, shape (d,): its cost and gradient; None for the gradient where there is none.
        low: lower ends, shape (d,).
        high: upper ends, shape (d,).
        start: where to begin, shape (d,).

    Returns:
        The best point that was evaluated and its cost; None if the function has no gradient at ``start``.

    >>> def slope(x):
    ...     return float(((x - 0.3) ** 2).sum()), 2 * (x - 0.3)
    >>> point, _ = descend(slope, torch.zeros(2), torch.ones(2), torch.tensor([0.9, 0.1]))
    >>> bool((point - 0.3).abs().max() < 1e-3)
    True
    """
    width = high - low
    free = ((start - low) / width).clamp(0, 1).requires_grad_()
    seen: list[tuple[Tensor, float]] = []
    scale = 1.0

    def closure() -> float:
        nonlocal scale
        inside = free.detach().clamp(0, 1)
        point = low + width * inside
        cost, gradient = slope(point)
        if gradient is None or not gradient.isfinite().all():
            raise _NoGradientError
        seen.append((point, cost))
        # Level outside of the box.
        slant = gradient * width * (inside == free.detach())
        if len(seen) == 1:
            # Of such a size that the first step takes this share of the box, whatever the unit of the metric.
            scale = _FIRST_STEP / max(float(slant.abs().sum()), 1e-30)
        free.grad = slant * scale
        return cost * scale

    optimizer = torch.optim.LBFGS(
        [free],
        max_iter=STEPS,
        max_eval=STEPS,
        tolerance_grad=1e-6,
        tolerance_change=1e-6,
        line_search_fn="strong_wolfe",
    )
    with contextlib.suppress(_NoGradientError):
        optimizer.step(closure)
    return min(seen, key=lambda found: found[1]) if seen else None


class _NoGradientError(Exception):
    """The function has no gradient here."""
