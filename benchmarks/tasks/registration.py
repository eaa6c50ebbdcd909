"""Registration of brain slices with HyperMorph's loss: ``(1 - lam) MSE / sigma^2 + lam |grad flow|^2``, lam ~ U(0, 1).

Pairs are the same coronal slice of two subjects. As in HyperMorph the layer that makes the flow is an ordinary one,
which starts near zero; all layers before it are generated.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_mip as mip
from benchmarks.tasks.base import Task
from benchmarks.variants import H, Network
from examples.common.arrays import read
from examples.common.overlap import dice
from examples.common.unet import RescalingUNet

SIGMA = 0.05
# Of the 16 slices, those that are validated on: the one with most structures, and two around it.
SLICES = (8, 12, 15)
GRID = 5


class Registration(nn.Module):
    """U-Net, and a convolution that makes a displacement in pixels from its features."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 32, 32)) -> None:
        super().__init__()
        self.unet = RescalingUNet(2, widths[0], widths)
        self.flow = nn.Conv2d(widths[0], 2, 3, padding=1)
        nn.init.normal_(self.flow.weight, std=1e-5)
        nn.init.zeros_(self.flow.bias)

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        return self.flow(F.leaky_relu(self.unet(torch.cat([moving, fixed], 1))))


def warp(image: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """Move an image by a displacement (N, 2, H, W) in pixels, x first."""
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = torch.stack([x, y]) + flow
    scale = torch.tensor([2 / (width - 1), 2 / (height - 1)]).view(1, 2, 1, 1)
    grid = (at * scale - 1).permute(0, 2, 3, 1)
    return F.grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=True)


def load(data: Path) -> Task:
    """Read ixi_brain2d.npz."""
    file = read(data, "ixi_brain2d.npz")
    images, labels = torch.as_tensor(file["image"]), torch.as_tensor(file["seg"]).long()
    train, val = torch.as_tensor(file["train_idx"]).long(), torch.as_tensor(file["val_idx"]).long()
    space = mip.HSpace({"lam": mip.Uniform(0, 1)})
    pairs = torch.cartesian_prod(val, val, torch.tensor(SLICES))
    moving, fixed, place = pairs[pairs[:, 0] < pairs[:, 1]].T

    def take(subject: Tensor, place: Tensor) -> Tensor:
        return images[subject, place].unsqueeze(1).float() / 255

    def batch(generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        first = torch.randint(len(train), (size,), generator=generator)
        second = (first + torch.randint(1, len(train), (size,), generator=generator)) % len(train)
        place = torch.randint(images.shape[1], (size,), generator=generator)
        return take(train[first], place), take(train[second], place)

    inputs = take(moving, place), take(fixed, place)
    source, target = labels[moving, place], labels[fixed, place]

    def overlap(net: Network, h: H) -> float:
        moved = warp(source.unsqueeze(1).float(), net(*inputs), "nearest").squeeze(1).long()
        return dice(moved, target, len(file["label_names"]))

    return Task(
        name="registration",
        what=f"IXI brain slices, 80 x 80, U-Net; h: lam uniform in [0, 1]; (1 - lam) MSE / {SIGMA}^2 + lam grad-L2; "
        f"Dice of {len(file['label_names']) - 1} warped structures on {len(moving)} pairs, mean over {GRID} lam in "
        f"[0, 1] (unregistered: {dice(source, target, len(file['label_names'])):.3f})",
        space=space,
        network=Registration,
        include="unet.*",
        batch=batch,
        loss=_loss,
        grid=space.grid(GRID),
        quality=overlap,
        batch_size=1,  # as HyperMorph
        steps=2000,
        every=50,
    )


def _loss(net: Network, batch: tuple[Tensor, Tensor], h: H) -> Tensor:
    moving, fixed = batch
    flow = net(moving, fixed)
    distance = (warp(moving, flow) - fixed).square().mean() / SIGMA**2
    # Mean over the two axes of the mean squared forward difference.
    rough = (flow.diff(dim=2).square().mean() + flow.diff(dim=3).square().mean()) / 2
    return (1 - h["lam"]) * distance + h["lam"] * rough
