"""A U-Net that rescales by any factor between its levels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RescalingUNet(nn.Module):
    """A U-Net without normalisation whose levels are apart by a factor that is given at each call.

    At ``factor`` 0.5 it is the ordinary one (with linear rescaling instead of pooling).

    Args:
        inputs: channels of the images.
        outputs: channels of the result.
        widths: channels of each level.
    """

    def __init__(self, inputs: int, outputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        pairs = [*zip(widths[1:], widths, strict=False)][::-1]
        self.down = nn.ModuleList(_convs(i, o) for i, o in zip((inputs, *widths), widths, strict=False))
        self.up = nn.ModuleList(_convs(i + o, o) for i, o in pairs)
        self.last = nn.Conv2d(widths[0], outputs, 1)

    def forward(self, x: Tensor, factor: float = 0.5) -> Tensor:
        skips: list[Tensor] = []
        for level, convs in enumerate(self.down):
            if level:
                x = resize(x, [max(1, int(side * factor)) for side in x.shape[-2:]])
            x = convs(x)
            skips.append(x)
        skips.pop()
        for convs in self.up:
            skip = skips.pop()
            x = convs(torch.cat([resize(x, skip.shape[-2:]), skip], 1))
        return self.last(x)


def resize(x: Tensor, size: list[int] | torch.Size) -> Tensor:
    """Linear interpolation to a size."""
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=False)


def _convs(inputs: int, outputs: int) -> nn.Sequential:
    first, second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
    return nn.Sequential(first, nn.LeakyReLU(), second, nn.LeakyReLU())
