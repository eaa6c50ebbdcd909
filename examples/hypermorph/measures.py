"""How good a registration is: overlap of warped structures, and folds of the deformation."""

from __future__ import annotations

from torch import Tensor

from examples.common.overlap import dice_by_class
from examples.hypermorph.network import warp


def warp_labels(labels: Tensor, flow: Tensor) -> Tensor:
    """Move label maps (N, H, W) by a displacement; each pixel takes the nearest one's label."""
    return warp(labels.unsqueeze(1).float(), flow, "nearest").squeeze(1).to(labels.dtype)


def overlap(moved: Tensor, fixed: Tensor, classes: int) -> Tensor:
    """Dice of label maps (N, H, W): the mean over the structures that either map of a pair has (N,)."""
    return dice_by_class(moved, fixed, classes).nanmean(0)


def folded(flow: Tensor) -> Tensor:
    """Share of the pixels (N,) at which ``x + flow(x)`` turns inside out: its Jacobian has a negative determinant."""
    along_y, along_x = flow.diff(dim=2)[..., :, :-1], flow.diff(dim=3)[..., :-1, :]
    determinant = (1 + along_x[:, 0]) * (1 + along_y[:, 1]) - along_x[:, 1] * along_y[:, 0]
    return (determinant < 0).float().mean((1, 2))
