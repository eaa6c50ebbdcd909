"""Scale-space hypernetworks: white blood cells are segmented by a U-Net that rescales by phi between its levels.

phi ~ U(0, 0.5) takes the place of pooling by 2; soft Dice loss.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import lightning_mip as mip
from benchmarks.tasks.base import Task
from benchmarks.variants import H, Network
from examples.common.arrays import read
from examples.common.overlap import dice
from examples.common.unet import RescalingUNet
from examples.scale_space.loss import soft_dice_loss

SIDE, CLASSES = 48, 3
WIDTHS = (8, 16, 32, 32)
GRID = 5


def load(data: Path) -> Task:
    """Read wbc.npz."""
    file = read(data, "wbc.npz")
    images = torch.as_tensor(file["image"]).permute(0, 3, 1, 2).float() / 255
    images = F.interpolate(images, size=(SIDE, SIDE), mode="area")
    labels = torch.as_tensor(file["label"]).unsqueeze(1)
    labels = F.interpolate(labels, size=(SIDE, SIDE), mode="nearest").squeeze(1).long()
    train, val = torch.as_tensor(file["train_idx"]).long(), torch.as_tensor(file["val_idx"]).long()
    space = mip.HSpace({"phi": mip.Uniform(0, 0.5)})

    def batch(generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        index = train[torch.randint(len(train), (size,), generator=generator)]
        mirrored = [axis for axis in (1, 2) if torch.rand((), generator=generator) < 0.5]
        return images[index].flip([axis + 1 for axis in mirrored]), labels[index].flip(mirrored)

    def overlap(net: Network, h: H) -> float:
        return dice(net(images[val], float(h["phi"])).argmax(1), labels[val], CLASSES)

    return Task(
        name="scale_space",
        what=f"white blood cells, {SIDE} x {SIDE}, U-Net that rescales by phi; h: phi uniform in [0, 0.5]; soft Dice "
        f"loss; Dice of {CLASSES - 1} classes on {len(val)} images, mean over {GRID} phi in [0, 0.5]",
        space=space,
        network=lambda: RescalingUNet(3, CLASSES, WIDTHS),
        include="*",
        batch=batch,
        loss=_loss,
        grid=space.grid(GRID),
        quality=overlap,
        batch_size=8,
        steps=1000,
        every=25,
    )


def _loss(net: Network, batch: tuple[Tensor, Tensor], h: H) -> Tensor:
    images, labels = batch
    return soft_dice_loss(net(images, float(h["phi"])), labels)
