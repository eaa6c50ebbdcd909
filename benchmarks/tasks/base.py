"""What a task is."""

from __future__ import annotations

from collections.abc import Callable
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
