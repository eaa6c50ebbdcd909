"""How far ``theta(h)`` moves in one optimizer step, against the plain network with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_mip.diagnosis.subject import Subject
from lightning_mip.injection import Injector
from lightning_mip.training import add_left_out, match

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class StepSize:
    """One step of a fresh optimizer on one batch.

    Attributes:
        optimizer: its class.
        lr: its learning rate for the network.
        plain: root mean square movement of a number of the plain network, in units of the learning rate.
        hyper: the same of ``theta(h)``.
        tensors: generated tensor -> how many times as far it moves as in the plain network; None if it stays there.
    """

    optimizer: str
    lr: float
    plain: float
    hyper: float
    tensors: dict[str, float | None]

    @property
    def factor(self) -> float | None:
        """How many times as far ``theta(h)`` moves: the factor on the learning rate that training feels."""
        return self.hyper / self.plain if self.plain else None


def step_size(subject: Subject, h: Mapping[str, Tensor], batch: Any, make: MakeOptimizer | None, seed: int) -> StepSize:
    """Take the step twice, each time on a copy: of the hypernetized module, and of the plain network for ``h``.

    Args:
        subject: the module; it is left as it is.
        h: where.
        batch: on which data.
        make: makes the optimizer from parameters; None for the module's own ``configure_optimizers``.
        seed: of random numbers in the step.
    """
    optimizer, lr, plain = _moved(subject, h, batch, make, seed, plain=True)
    *_, hyper = _moved(subject, h, batch, make, seed, plain=False)
    if not lr:
        raise ValueError(
            f"{optimizer} has learning rate 0, expected more; give another, such as optimizer=torch.optim.Adam."
        )
    numbers = sum(tensor.numel() for tensor in plain.values())
    by_tensor = {name: (float(hyper[name].norm()), float(plain[name].norm())) for name in plain}
    of_hyper, of_plain = (sum(pair[k] ** 2 for pair in by_tensor.values()) ** 0.5 for k in (0, 1))
    return StepSize(
        optimizer=optimizer,
        lr=lr,
        plain=of_plain / numbers**0.5 / lr,
        hyper=of_hyper / numbers**0.5 / lr,
        tensors={name: moved / own if own else None for name, (moved, own) in by_tensor.items()},
    )


def _moved(
    subject: Subject, h: Mapping[str, Tensor], batch: Any, make: MakeOptimizer | None, seed: int, *, plain: bool
) -> tuple[str, float, dict[str, Tensor]]:
    own = subject.copy()
    injector = own.injector
    with torch.no_grad():
        before = {name: weight.clone() for name, weight in injector.weights(h).items()}
        if plain:
            with injector.paused():
                for name, weight in before.items():
                    injector.root.get_parameter(name).copy_(weight)
    if plain:
        for name in injector.frozen:
            injector.root.get_parameter(name).requires_grad_(True)
    optimizers = _optimizers(own, make)
    if not plain:
        match(injector.hypernet, optimizers)  # as at the start of training

    def closure() -> Tensor:
        torch.manual_seed(seed)
        for optimizer in optimizers:
            optimizer.zero_grad()
        with torch.enable_grad(), own.at(h), injector.paused() if plain else nullcontext():
            loss = own.loss(batch)
            loss.backward()
        return loss

    for optimizer in optimizers:
        optimizer.step(closure)  # type: ignore[arg-type]
    with torch.no_grad(), injector.paused():
        parameters = {name: injector.root.get_parameter(name) for name in before}
        after = parameters if plain else injector.weights(h)
    moved = {name: (after[name] - weight).detach().float() for name, weight in before.items()}
    return *_of_network(injector, optimizers), moved


def _of_network(injector: Injector, optimizers: Iterable[Optimizer]) -> tuple[str, float]:
    """Class and learning rate of the optimizer that trains the network, the first if none does."""
    theta0 = set(map(id, injector.slots.theta0().values()))
    pairs = [(optimizer, group) for optimizer in optimizers for group in optimizer.param_groups]
    holding = (pair for pair in pairs if not theta0.isdisjoint(map(id, pair[1]["params"])))
    optimizer, group = next(holding, pairs[0])
    return type(optimizer).__name__, float(group["lr"])


def _optimizers(subject: Subject, make: MakeOptimizer | None) -> list[Optimizer]:
    parameters = [*subject.injector.root.parameters(), *subject.injector.hypernet.parameters()]
    trained = [p for p in dict.fromkeys(parameters) if p.requires_grad]
    found = [make(trained)] if make is not None else list(_found(_configured(subject.module)))
    if not found:
        raise ValueError(
            f"{type(subject.module).__name__} makes no optimizer in configure_optimizers; give one, such as "
            "optimizer=torch.optim.Adam."
        )
    add_left_out(subject.module, subject.injector, found)  # as the plug-in does at the start of a run
    for optimizer in found:
        for group in optimizer.param_groups:
            group["lr"] = group.get("initial_lr", group["lr"])  # not that of the first step of a warm-up
    return found


def _configured(module: Any) -> Any:
    return module.configure_optimizers() if hasattr(module, "configure_optimizers") else None


def _found(given: Any) -> Iterable[Optimizer]:
    """The optimizers in whatever ``configure_optimizers`` returns."""
    if isinstance(given, Optimizer):
        yield given
    elif isinstance(given, Mapping):
        yield from _found(given.get("optimizer"))
    elif isinstance(given, (list, tuple)):
        for item in given:
            yield from _found(item)
