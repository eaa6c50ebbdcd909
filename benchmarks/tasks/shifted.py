"""Digits whose label h shifts by 0 to 3: quick, and without h no more than one shift of four can be learned.

Of an h with several components the first one decides; the others are there to be ignored, so that the task is as hard
with sixteen of them as with one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_mip as mip
from benchmarks import matching_tasks
from benchmarks.matching_tasks import CLASSES, SHIFTS, SIDE, cnn, shifted
from benchmarks.tasks.base import Task
from benchmarks.variants import H, Network

TRAIN, VALIDATION, DRAWS = 4000, 1000, 2


class Attention(nn.Module):
    """A transformer of one layer whose tokens are the rows of the image."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(SIDE, width)
        self.positions = nn.Parameter(0.1 * torch.randn(SIDE, width))
        self.layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True)
        self.out = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.embed(x.squeeze(1)) + self.positions).mean(1))


class Recurrent(nn.Module):
    """A GRU that reads the rows of the image."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.rnn = nn.GRU(SIDE, width, batch_first=True)
        self.out = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x.squeeze(1))[0][:, -1])


PRIMARIES: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: cnn(3),
    "attention": Attention,
    "recurrent": Recurrent,
}


def load(data: Path, dimensions: int = 1, primary: str = "convolution") -> Task:
    """Read mnist.npz.

    Args:
        data: its folder.
        dimensions: components of h.
        primary: one of `PRIMARIES`.
    """
    digits = matching_tasks.load(data, TRAIN, VALIDATION)
    space = mip.HSpace({f"h{i}": mip.Uniform(0, 1) for i in range(dimensions)})
    # The middle of each shift's range, with the other components as they fall.
    grid = [
        {**space.sample(seed=12345, step=step), "h0": torch.tensor((k + 0.5) / SHIFTS)}
        for k in range(SHIFTS)
        for step in range(DRAWS if dimensions > 1 else 1)
    ]

    def batch(generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(digits.x), (size,), generator=generator)
        return digits.x[index], digits.y[index]

    def accuracy(net: Network, h: H) -> float:
        return float((net(digits.x_test).argmax(-1) == shifted(digits.y_test, [h["h0"]])).float().mean())

    return Task(
        name="shifted",
        what=f"MNIST at {SIDE} x {SIDE}, three convolutions and a linear layer; h: {dimensions} numbers, uniform in "
        f"[0, 1], of which the first shifts the label by 0 to {SHIFTS - 1}; cross-entropy; accuracy on "
        f"{len(digits.y_test)} images, mean over the shifts",
        space=space,
        network=PRIMARIES[primary],
        include="*",
        batch=batch,
        loss=_loss,
        grid=grid,
        quality=accuracy,
        batch_size=64,
        steps=1500,
        every=50,
    )


def _loss(net: Network, batch: tuple[Tensor, Tensor], h: H) -> Tensor:
    return F.cross_entropy(net(batch[0]), shifted(batch[1], [h["h0"]]))
