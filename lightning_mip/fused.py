"""Steps of fused optimizers, which change parameters without a trace in their versions."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


class Stepped(Protocol):
    """What wants to know of steps that change the tensors that it is made of."""

    fused_steps: int

    def sources(self) -> Iterable[Tensor]:
        """The tensors."""


_watched: weakref.WeakSet[Stepped] = weakref.WeakSet()


def watch_steps(stepped: Stepped) -> None:
    """Count, from now on, the steps of fused optimizers that change it."""
    _watched.add(stepped)


def _note(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    changed = {id(p) for group in optimizer.param_groups if group.get("fused") for p in group["params"]}
    for stepped in list(_watched) if changed else ():
        stepped.fused_steps += not changed.isdisjoint(map(id, stepped.sources()))


register_optimizer_step_post_hook(_note)
