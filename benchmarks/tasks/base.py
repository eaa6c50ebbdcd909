"""What a task is."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

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
        grid: values of h that validation looks at.
        quality: (network, h) -> a metric on validation data that is best at 1.
        batch_size: samples per training step.
        steps: after which training is at its end, or nearly.
        every: steps between evaluations.
        baseline: the metric of doing nothing.
        plain_too: h is nothing but noise, so that the plain network learns the task, too: the floor.
    """

    name: str
    what: str
    space: mip.HSpace
    network: Callable[[], nn.Module]
    include: str
    batch: Callable[[torch.Generator, int], Any]
    loss: Callable[[Network, Any, H], Tensor]
    grid: Sequence[H]
    quality: Callable[[Network, H], float]
    batch_size: int
    steps: int
    every: int
    baseline: float = 0.0
    plain_too: bool = False

    def qualities(self, at: At) -> list[float]:
        """Evaluate the networks at the grid of h."""
        found = []
        for h in self.grid:
            with at(h) as net:
                found.append(self.quality(net, h))
        return found

    def evaluate(self, at: At) -> float:
        """Average the metric over the grid of h."""
        return statistics.mean(self.qualities(at))
