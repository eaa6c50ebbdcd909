"""The training step that all variants share, and the optimizers whose cost is measured.

The reproduction and the studies of update matching, which measure quality, have Adam in its fused form alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.variants import H, Network, Variant

# On CPUs, torch's own default is a Python loop over parameters; "fused" is one kernel for each of them.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "fused": partial(torch.optim.Adam, fused=True),
}
# What tables say of the names of variants and optimizers.
WAYS = (
    "- `ours`: default settings; `ours_paper`: the published form in HyperLight's sizes. `adam`: torch's default, on "
    "CPUs a loop over parameters; `fused`: `torch.optim.Adam(..., fused=True)`."
)


def make_optimizer(name: str, parameters: Iterable[nn.Parameter], lr: float = 1e-3) -> torch.optim.Optimizer:
    """Make the optimizer of that name."""
    return OPTIMIZERS[name](parameters, lr=lr)


def stepper(
    variant: Variant, optimizer: torch.optim.Optimizer, loss: Callable[[Network, Any, H], Tensor]
) -> Callable[[Any], Tensor]:
    """A function that takes one whole training step on a batch: h, generation, forward, backward, optimizer.

    Args:
        variant: what is trained.
        optimizer: of its parameters.
        loss: (network, batch, h) -> loss.
    """
    variant.match(optimizer)
    count = itertools.count()

    def step(batch: Any) -> Tensor:
        optimizer.zero_grad()
        h = variant.draw(next(count))
        with variant.at(h) as net:
            value = loss(net, batch, h)
            value.backward()
        optimizer.step()
        return value.detach()

    return step
