"""The primary network: a U-Net that moves one image onto another."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.common.unet import RescalingUNet


class Registered(NamedTuple):
    """What the network makes of a pair.

    Attributes:
        warped: the moving image, moved (N, 1, H, W).
        flow: the displacement in pixels (N, 2, H, W), x first.
        velocity: what the flow is integrated from, or the flow itself; this is what the loss keeps smooth.
    """

    warped: Tensor
    flow: Tensor
    velocity: Tensor


class Registration(nn.Module):
    """U-Net, a convolution that makes a field of its features, integration, spatial transformer.

    As in HyperMorph the convolution starts near zero, and is to stay an ordinary one: ``include="unet.*"``.

    Args:
        widths: channels of the levels of the U-Net.
        integration_steps: 0 takes the field for a displacement; n > 0 for a stationary velocity, integrated by n steps
            of scaling and squaring.
    """

    def __init__(self, widths: tuple[int, ...] = (8, 16, 32, 32), integration_steps: int = 0) -> None:
        super().__init__()
        if integration_steps < 0:
            raise ValueError(
                f"integration_steps={integration_steps} must be at least 0: 0 for a displacement, 7 for a velocity "
                "integrated as in HyperMorph."
            )
        self.unet = RescalingUNet(2, widths[0], tuple(widths))
        self.flow = nn.Conv2d(widths[0], 2, 3, padding=1)
        self.integration_steps = integration_steps
        nn.init.normal_(self.flow.weight, std=1e-5)
        nn.init.zeros_(self.flow.bias)

    def forward(self, moving: Tensor, fixed: Tensor) -> Registered:
        velocity = self.flow(F.leaky_relu(self.unet(torch.cat([moving, fixed], 1))))
        flow = integrate(velocity, self.integration_steps)
        return Registered(warp(moving, flow), flow, velocity)


def integrate(velocity: Tensor, steps: int) -> Tensor:
    """The displacement after following a stationary velocity for one unit of time, by scaling and squaring."""
    flow = velocity / 2**steps
    for _ in range(steps):
        flow = flow + warp(flow, flow)
    return flow


def warp(image: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """Move an image by a displacement (N, 2, H, W) in pixels, x first; ``nearest`` for label maps."""
    height, width = image.shape[-2:]
    rows, columns = torch.arange(height, device=flow.device), torch.arange(width, device=flow.device)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    at = torch.stack([x, y]) + flow
    scale = at.new_tensor([2 / (width - 1), 2 / (height - 1)]).view(1, 2, 1, 1)
    grid = (at * scale - 1).permute(0, 2, 3, 1)
    # At a NaN torch's kernel for CPUs reads beside the image, and its backward may crash the process.
    warped = F.grid_sample(image, grid.nan_to_num(), mode=mode, padding_mode="border", align_corners=True)
    return warped + 0 * grid.sum(-1).unsqueeze(1)
