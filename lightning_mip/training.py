"""Whether a run trains the hypernetwork: which optimizer has its parameters, and what becomes of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lightning_mip.binding import BOUND
from lightning_mip.checkpoints import CHILD
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
    theta0 = set(map(id, injector.slots.theta0().values()))
    held = [(group, sum(p.numel() for p in group["params"] if id(p) in theta0)) for group in _groups(optimizers)]

    def suits(pair: tuple[dict[str, Any], int]) -> tuple[bool, bool, bool, int]:
        group, size = pair
        return "ns_steps" not in group, size > 0, bool(group.get("lr", 1)), size  # Muon takes matrices alone

    # Not in a group of their own, which a learning rate scheduler would not know.
    chosen, _ = max(held, key=suits)
    chosen["params"].extend(missing)
    rates = {rate for group, size in held if size and (rate := _rate(group)) and "ns_steps" not in group}
    if len(rates) > 1:
        listed = ", ".join(f"{rate:g}" for rate in sorted(rates))
        rank_zero_warn(
            f"The optimizer trains parts of the network at rates of their own, {listed}, but the hypernetwork, which "
            f"moves all that it generates, at {_rate(chosen):g}. Generate only what is to be trained at that rate: "
            "include=..., exclude=..."
        )


def _rate(group: dict[str, Any]) -> float:
    """The learning rate that a scheduler starts from, and that there is without one."""
    return float(group.get("initial_lr", group.get("lr", 0)))


def match(hypernet: HyperNetwork, optimizers: Iterable[Any]) -> None:
    """Match the hypernetwork to the optimizer that trains its head."""
    head = set(map(id, hypernet.head.parameters()))
    for optimizer in optimizers:
        if not head.isdisjoint(ids_in([optimizer])):
            hypernet.match(getattr(optimizer, "optimizer", optimizer))
            return


def check_used(injector: Injector, path: str) -> None:
    """Refuse training whose batch did not run the network at ``path``."""
    if not (injector.used or injector.ran):
        raise MisconfigurationException(
            f"Training did not use the network {path!r}: training_step did not run it. Name the network that it runs "
            "as target."
        )


def warn_of_unused(injector: Injector, path: str) -> bool:
    """Warn of training in which nothing has been learned yet; returns whether that is so."""
    if not injector.used:
        rank_zero_warn(
            f"No gradient has reached the generated weights of {path!r} in this epoch: training_step does not run it, "
            "runs it without gradients, or its loss does not depend on it. If a later epoch is not to train it, name "
            "the network that training_step trains as target."
        )
    return not injector.used


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
    """What a Trainer without the plug-in meets, as it runs the module at the center of the priors.

    That raises in training, and warns in evaluation and prediction, once for each Trainer.
    """
    reference = weakref.ref(pl_module)  # the network would else hold the module that it is in
    warned: weakref.WeakSet[Any] = weakref.WeakSet()

    def refuse() -> None:
        module = reference()
        trainer = None if module is None else module._trainer
        if trainer is None or trainer.lightning_module is not module or trainer.state.status != "running":
            return
        if any(isinstance(callback, plugin) for callback in trainer.callbacks):
            return
        if trainer.state.fn != "fit" and trainer not in warned:
            warned.add(trainer)
            space = getattr(module, CHILD).space
            own = ", while its attributes keep their own values" if getattr(module, BOUND) else ""
            rank_zero_warn(
                f"{type(module).__name__} was hypernetized by Hypernetize, but this Trainer has none among its "
                f"callbacks: it runs at the center of the priors ({space.label(space.center())}){own}. Give the "
                "callback to this Trainer too, or take one network out by mip.materialize."
            )
        if trainer.training and torch.is_grad_enabled():
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
