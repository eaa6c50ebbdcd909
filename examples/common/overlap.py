"""Overlap of label maps."""

from __future__ import annotations

import torch
from torch import Tensor


def dice(found: Tensor, wanted: Tensor, classes: int) -> float:
    """Mean over images and over classes but 0 of the overlap of two label maps (N, H, W).

    A class that is in neither map of an image does not count.
    """
    return float(dice_by_class(found, wanted, classes).nanmean())


def dice_by_class(found: Tensor, wanted: Tensor, classes: int) -> Tensor:
    """Overlap (classes - 1, N) of each class but 0 in each image; nan where neither map has it."""
    scores = []
    for label in range(1, classes):
        a, b = (found == label).flatten(1), (wanted == label).flatten(1)
        sizes = a.sum(1) + b.sum(1)
        overlap = 2 * (a & b).sum(1) / sizes.clamp(min=1)
        scores.append(torch.where(sizes > 0, overlap, torch.nan))
    return torch.stack(scores)
