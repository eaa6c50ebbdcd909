"""Whether a run trains the hypernetwork: which optimizer has its parameters, and what becomes of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_mip.hypernetwork import HyperNetwork
from lightning_mip.injection import Injector
from lightning_mip.probe import sums


def ids_in(optimizers: Iterable[Any]) -> set[int]:
    """Ids of all parameters that optimizers have."""
    return {id(p) for group in _groups(optimizers) for p in group["params"]}


def left_out(pl_module: Any, hypernet: HyperNetwork, optimizers: Iterable[Any]) -> list[nn.Parameter]:
    """The trained parameters of the hypernetwork that no optimizer of the module has."""
    given = ids_in(optimizers)
    if given.isdisjoint(map(id, pl_module.parameters())):  # a strategy may replace all parameters
        return []
    return [p for p in hypernet.parameters() if p.requires_grad and id(p) not in given]


def add_left_out(pl_module: Any, injector: Injector, optimizers: Iterable[Any]) -> None:
    """Give those parameters to the optimizer that trains the network."""
    missing = left_out(pl_module, injector.hypernet, optimizers)
    if not missing:
        return
    # Not in a group of their own, which a learning rate scheduler would not know.
    groups, theta0 = _groups(optimizers), set(map(id, injector.slots.theta0().values()))
    holding = [group for group in groups if any(id(p) in theta0 for p in group["params"])] or groups
    next((group for group in holding if group.get("lr", 1)), holding[0])["params"].extend(missing)


def match(hypernet: HyperNetwork, optimizers: Iterable[Any]) -> None:
    """Match the hypernetwork to the optimizer that trains its head."""
    head = set(map(id, hypernet.head.parameters()))
    for optimizer in optimizers:
        if not head.isdisjoint(ids_in([optimizer])):
            hypernet.match(getattr(optimizer, "optimizer", optimizer))
            return


def check_used(injector: Injector, path: str) -> None:
    """Refuse training that does not run the network at ``path``."""
    if not injector.used:
        raise MisconfigurationException(
            f"Training did not use the network {path!r}: no gradient reached its generated weights. Name the "
            "network that training_step runs as target."
        )


class ChangeWatch:
    """Sees, in the first epoch that trains the hypernetwork, that what changes the network changes it too."""

    def __init__(self) -> None:
        self._start: tuple[list[float], list[float]] | None = None
        self._seen = False

    def start(self, injector: Injector, optimizers: Iterable[Any]) -> None:
        """Note where an epoch starts, unless the hypernetwork rests in it, or was seen in an earlier one."""
        own = set(map(id, injector.hypernet.parameters()))
        rests = any(
            not group.get("lr", 1) and not own.isdisjoint(map(id, group["params"])) for group in _groups(optimizers)
        )
        self._start = None if self._seen or rests else _now(injector)

    def check(self, injector: Injector, path: str, optimizers: Sequence[Any]) -> None:
        """Refuse optimizers that have changed the network at ``path`` since, but not its hypernetwork."""
        if self._start is None:
            return
        (network, hypernet), (network_now, hypernet_now) = self._start, _now(injector)
        self._seen = True
        if network != network_now and hypernet and hypernet == hypernet_now:
            raise MisconfigurationException(
                f"Training changed the network {path!r} but not its hypernetwork: "
                f"{type(optimizers[0]).__name__} keeps lists of parameters of its own, or has a learning rate "
                "of 0 for it. Give it all parameters of the module in configure_optimizers: self.parameters(), which "
                "holds self.hypernet.parameters(), too."
            )


def refusal(pl_module: Any, plugin: type) -> Callable[[], None]:
    """What raises if a Trainer without the plug-in trains the module, which would be at the center of the priors."""
    reference = weakref.ref(pl_module)  # the network would else hold the module that it is in

    def refuse() -> None:
        module = reference()
        trainer = None if module is None else module._trainer
        if trainer is None or trainer.lightning_module is not module or not torch.is_grad_enabled():
            return
        running = trainer.training and trainer.state.status == "running"
        if running and not any(isinstance(callback, plugin) for callback in trainer.callbacks):
            raise MisconfigurationException(
                f"{type(module).__name__} was hypernetized by Hypernetize, but this Trainer has none among its "
                "callbacks, so nothing draws h; give it the callback again, or train mip.dehypernetize(module), which "
                "is theta0 alone."
            )

    return refuse


def _now(injector: Injector) -> tuple[list[float], list[float]]:
    trained = (p for p in injector.hypernet.parameters() if p.requires_grad)
    return sums(injector.slots.theta0().values()), sums(trained)


def _groups(optimizers: Iterable[Any]) -> list[dict[str, Any]]:
    return [group for optimizer in optimizers for group in optimizer.param_groups]
