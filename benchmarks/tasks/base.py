"""What a task is, and reading its data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import lightning_mip as mip
from benchmarks.variants import H, Network

At = Callable[[H], AbstractContextManager[Network]]


@dataclass(frozen=True)
class Task:
    """A network that has to work at every h, written once for all ways of training it.

    Attributes:
        name: of the task.
        what: one line on network, data, loss and metric.
        space: of h.
        network: makes the primary.
        include: which of its parameters are generated.
        batch: (generator, size) -> training batch.
        loss: (network, batch, h) -> loss.
        evaluate: of the networks at a fixed grid of h, on validation data: the mean over h of a metric that is best
            at 1.
        batch_size: samples per training step.
        steps: after which training is at its end, or nearly.
        every: steps between evaluations.
    """

    name: str
    what: str
    space: mip.HSpace
    network: Callable[[], nn.Module]
    include: str
    batch: Callable[[torch.Generator, int], Any]
    loss: Callable[[Network, Any, H], Tensor]
    evaluate: Callable[[At], float]
    batch_size: int
    steps: int
    every: int


def read(folder: Path, name: str) -> dict[str, np.ndarray]:
    """The arrays of one .npz file."""
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist. Give the folder of {name} as --data or in LIGHTNING_MIP_DATA; "
            "docs/benchmarks/README.md says what it holds."
        )
    with np.load(path) as file:
        return dict(file)


def dice(found: Tensor, wanted: Tensor, classes: int) -> float:
    """Mean over images and over classes but 0 of the overlap of two label maps (N, H, W).

    A class that is in neither map of an image does not count.
    """
    scores = []
    for label in range(1, classes):
        a, b = (found == label).flatten(1), (wanted == label).flatten(1)
        sizes = a.sum(1) + b.sum(1)
        overlap = 2 * (a & b).sum(1) / sizes.clamp(min=1)
        scores.append(torch.where(sizes > 0, overlap, torch.nan))
    return float(torch.stack(scores).nanmean())
