"""HyperMorph's loss, ``(1 - lam) * distance + lam * smoothness``, one value per pair."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMA, WINDOW = 0.05, 9


def mse(warped: Tensor, fixed: Tensor) -> Tensor:
    """Mean squared difference (N,) over the variance of the noise, for images in [0, 1]."""
    return (warped - fixed).square().mean((1, 2, 3)) / SIGMA**2


def ncc(warped: Tensor, fixed: Tensor) -> Tensor:
    """Minus the squared correlation within windows of 9 x 9 pixels, mean over windows (N,)."""
    products = torch.cat([warped, fixed, warped * warped, fixed * fixed, warped * fixed], 1)
    # Means over windows; what lies outside of the image is 0.
    x, y, xx, yy, xy = F.avg_pool2d(products, WINDOW, 1, WINDOW // 2).unbind(1)
    cross, x_spread, y_spread = (WINDOW**2 * spread for spread in (xy - x * y, xx - x * x, yy - y * y))
    return -(cross.square() / (x_spread * y_spread + 1e-5)).mean((1, 2))


def smoothness(field: Tensor) -> Tensor:
    """Squared forward differences of a field (N, 2, H, W): their mean along each axis, mean over the axes (N,)."""
    return sum(field.diff(dim=axis).square().mean((1, 2, 3)) for axis in (2, 3)) / 2


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": mse, "ncc": ncc}
