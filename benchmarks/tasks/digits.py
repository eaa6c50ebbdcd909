"""Bayesian digits: h is four normal numbers, every draw of them a classifier of MNIST at 14 x 14 pixels."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import lightning_mip as mip
from benchmarks.tasks.base import Task
from benchmarks.variants import H, Network
from examples.bayesian_digits.data import resize
from examples.bayesian_digits.network import ConvNet
from examples.common.arrays import read

SIDE, COMPONENTS = 14, 4
VALIDATION, DRAWS = 1000, 8


def load(data: Path) -> Task:
    """Read mnist.npz."""
    file = read(data, "mnist.npz")
    images, labels = resize(torch.as_tensor(file["x_train"]), SIDE), torch.as_tensor(file["y_train"]).long()
    train, val = torch.as_tensor(file["train_idx"]).long(), torch.as_tensor(file["val_idx"]).long()[:VALIDATION]
    space = mip.HSpace({f"z{i}": mip.Normal(0, 1) for i in range(COMPONENTS)})
    draws = [space.sample(seed=12345, step=step) for step in range(DRAWS)]

    def take(index: Tensor) -> tuple[Tensor, Tensor]:
        return images[index].unsqueeze(1).float() / 255, labels[index]

    x, y = take(val)

    def accuracy(net: Network, h: H) -> float:
        return float((net(x).argmax(-1) == y).float().mean())

    return Task(
        name="digits",
        what=f"MNIST at {SIDE} x {SIDE}, three convolutions and a linear layer; h: {COMPONENTS} normal numbers; "
        f"cross-entropy; accuracy on {len(y)} images, mean over {DRAWS} draws of h",
        space=space,
        network=ConvNet,
        include="*",
        batch=lambda generator, size: take(train[torch.randint(len(train), (size,), generator=generator)]),
        loss=_loss,
        grid=draws,
        quality=accuracy,
        batch_size=64,
        steps=1000,
        every=25,
        plain_too=True,
    )


def _loss(net: Network, batch: tuple[Tensor, Tensor], h: H) -> Tensor:
    return F.cross_entropy(net(batch[0]), batch[1])
