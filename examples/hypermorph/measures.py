"""How good a registration is: overlap of warped structures, and folds of the deformation."""

from __future__ import annotations

from torch import Tensor

from examples.common.overlap import dice_by_class
from examples.hypermorph.network import warp


def warp_labels(labels: Tensor, flow: Tensor) -> Tensor:
    """Move label maps (N, H, W) by a displacement; each pixel takes the nearest one's label."""
    return warp(labels.unsqueeze(1).float(), flow, "nearest").squeeze(1).to(labels.dtype)


def overlap(moving: Tensor, fixed: Tensor, flow: Tensor, classes: int) -> Tensor:
    """Dice of the moved and the fixed label maps: the mean over the structures that both subjects have (N,).

    Where one of them lacks a structure, its slice does not meet it, and no registration would help.
    """
    scores = dice_by_class(warp_labels(moving, flow), fixed, classes)
    # The overlap of a map with itself is nan where the class is not there.
    there = [dice_by_class(labels, labels, classes) for labels in (moving, fixed)]
    return (scores * there[0] * there[1]).nanmean(0)


def folded(flow: Tensor) -> Tensor:
    """Share of the pixels (N,) at which ``x + flow(x)`` turns inside out: its Jacobian has a negative determinant."""
    along_y, along_x = flow.diff(dim=2)[..., :, :-1], flow.diff(dim=3)[..., :-1, :]
    determinant = (1 + along_x[:, 0]) * (1 + along_y[:, 1]) - along_x[:, 1] * along_y[:, 0]
    return (determinant < 0).float().mean((1, 2))
