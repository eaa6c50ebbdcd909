"""Registration of brain slices with HyperMorph's loss: ``(1 - lam) MSE / sigma^2 + lam |grad flow|^2``, lam ~ U(0, 1).

Pairs are the same coronal slice of two subjects. As in HyperMorph the layer that makes the flow is an ordinary one,
which starts near zero; all layers before it are generated.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import lightning_mip as mip
from benchmarks.tasks.base import Task
from benchmarks.variants import H, Network
from examples.common.arrays import read
from examples.common.overlap import dice
from examples.hypermorph.losses import SIGMA, mse, smoothness
from examples.hypermorph.measures import warp_labels
from examples.hypermorph.network import Registration

# Of the 16 slices, those that are validated on: the one with most structures, and two around it.
SLICES = (8, 12, 15)
GRID = 5


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
        return dice(warp_labels(source, net(*inputs).flow), target, len(file["label_names"]))

    unregistered = dice(source, target, len(file["label_names"]))
    return Task(
        name="registration",
        what=f"IXI brain slices, 80 x 80, U-Net; h: lam uniform in [0, 1]; (1 - lam) MSE / {SIGMA}^2 + lam grad-L2; "
        f"Dice of {len(file['label_names']) - 1} warped structures on {len(moving)} pairs, mean over {GRID} lam in "
        f"[0, 1] (unregistered: {unregistered:.3f})",
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
        baseline=unregistered,
    )


def _loss(net: Network, batch: tuple[Tensor, Tensor], h: H) -> Tensor:
    moving, fixed = batch
    found = net(moving, fixed)
    return (1 - h["lam"]) * mse(found.warped, fixed).mean() + h["lam"] * smoothness(found.velocity).mean()
