"""Bootstrap intervals: what a choice would have been on other samples of the same kind."""

from __future__ import annotations

import torch
from torch import Tensor

LEVEL = 0.95
# Numbers of one block of resamples.
_BLOCK = 2**22


def resampled_means(values: Tensor, weights: Tensor, resamples: int, seed: int) -> Tensor:
    """Means over samples drawn with replacement, the same samples for all rows.

    Args:
        values: shape (rows, samples).
        weights: of the samples, shape (samples,).
        resamples: how many times to draw.
        seed: of the draws.

    Returns:
        Weighted means, shape (resamples, rows).
    """
    samples = values.shape[1]
    generator = torch.Generator().manual_seed(seed % 2**63)
    means = []
    for block in torch.arange(resamples).split(max(_BLOCK // samples, 1)):
        drawn = torch.randint(samples, (len(block), samples), generator=generator)
        counts = torch.zeros(len(block), samples, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones_like(drawn, dtype=torch.float64)
        )
        counts *= weights
        means.append(counts @ values.double().T / counts.sum(1, keepdim=True))
    return torch.cat(means)


def interval(values: Tensor) -> tuple[Tensor, Tensor]:
    """The middle 95 % along the first dimension: values that occur, so that classes stay classes."""
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    index = (ends * (len(values) - 1)).round().long()
    low, high = values.sort(dim=0).values[index]
    return low, high


def vertices(positions: Tensor, curves: Tensor) -> Tensor:
    """Where each of several curves is lowest, between its points too: the vertex of a parabola through three of them.

    Args:
        positions: of the points, ascending, shape (points,).
        curves: shape (curves, points).

    Returns:
        Shape (curves,).

    >>> vertices(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([[0.25, 0.25, 2.25]]))
    tensor([0.5000])
    """
    best = curves.argmin(1)
    middle = best.clamp(1, max(len(positions) - 2, 1))
    if len(positions) < 3:
        return positions[best]
    (a, b, c), rows = (positions[middle + k] for k in (-1, 0, 1)), torch.arange(len(curves))
    fa, fb, fc = (curves[rows, middle + k] for k in (-1, 0, 1))
    left, right = (b - a) * (fb - fc), (b - c) * (fb - fa)
    bends_up = left - right < 0
    vertex = b - ((b - a) * left - (b - c) * right) / (2 * torch.where(bends_up, left - right, 1))
    return torch.where(bends_up, torch.minimum(torch.maximum(vertex, a), c), positions[best])
