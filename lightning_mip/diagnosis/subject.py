"""What is diagnosed: a copy of a hypernetized module, whose loss of one ``h`` can run with the weights of another.

The copy has no Trainer's hooks around it, logs nowhere, and may be written to: the module itself stays as it is.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchmetrics import Metric

from lightning_mip.batches import copied
from lightning_mip.binding import BOUND
from lightning_mip.copies import without_graphs
from lightning_mip.hooks import overrides
from lightning_mip.injection import Injector, the_injector
from lightning_mip.is_hyper import is_hyper
from lightning_mip.predicting import at_h
from lightning_mip.probe import replaced
from lightning_mip.space import HSpace

Loss = Callable[[nn.Module, Any, Mapping[str, Tensor]], Tensor]


class Subject:
    """A copy of a hypernetized module, in evaluation mode, and how to compute its loss.

    Args:
        module: a HyperLightningModule, a LightningModule after a run with the plug-in, or a hypernetized network.
        loss: of (module, batch, h), for modules that have no ``training_step`` of one ``h``.
        metric: a value that ``validation_step`` logs, to take the loss's place as the score.

    Raises:
        ValueError: there is no loss to compute.
    """

    def __init__(self, module: nn.Module, loss: Loss | None = None, metric: str | None = None) -> None:
        self.module: Any = copied_module(module).eval()
        self.injector = the_injector(self.module)
        self.metric = metric
        self._given = loss
        check_loss(self.module, loss, metric)

    @property
    def space(self) -> HSpace:
        """The priors of ``h``."""
        return self.injector.hypernet.space

    @property
    def has_loss(self) -> bool:
        """Whether there is a loss with a gradient; a module that takes its optimizer steps itself has none."""
        return self._given is not None or bool(self.module.automatic_optimization)

    def copy(self) -> Subject:
        """One whose module may be trained."""
        other = copy.copy(self)
        other.module = copied_module(self.module)
        other.injector = the_injector(other.module)
        return other

    def moved(self, batch: Any) -> Any:
        """Bring a batch to the module's device, by the module's own hooks where it has them."""
        module: Any = self.module
        device = next(module.parameters()).device
        if not hasattr(module, "_apply_batch_transfer_handler"):
            return move_data_to_device(batch, device)
        with replaced(module, {"_trainer": None}):  # else hooks of its data module would be asked
            return module._apply_batch_transfer_handler(batch, device)

    def own_h(self, batch: Any) -> dict[str, Tensor] | None:
        """The ``h`` that a batch brings, None where ``h`` is drawn."""
        if not is_hyper(self.module) or self.module.h_from_batch is None:
            return None
        h: dict[str, Tensor] = self.module.batch_h(batch)
        if self.space.is_batched(h):
            raise ValueError(
                "h_from_batch gives one h per sample, but diagnose runs whole batches at one h; give a dataloader with "
                "batch_size=1, or one whose batches share an h."
            )
        return h

    def at(self, h: Mapping[str, Tensor]) -> AbstractContextManager[Any]:
        """Bring the weights and the loss of ``h`` into force."""
        return at_h(self.module, h)

    def loss(self, batch: Any) -> Tensor:
        """The loss of a batch at the ``h`` in force, with whatever weights are in place."""
        output, _ = self._run("training_step", batch) if self._given is None else (self._by_function(batch), {})
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ValueError(f"The loss is {loss!r}, expected a tensor with one number.")
        return loss.reshape(())

    @torch.no_grad()
    def score(self, batch: Any) -> float:
        """The metric, or the loss, of a batch at the ``h`` in force."""
        if self.metric is None:
            return float(self.loss(batch))
        _, logged = self._run("validation_step", batch)
        if self.metric not in logged:
            raise ValueError(
                f"metric is {self.metric!r}, but validation_step logs no such value; it logs "
                f"{', '.join(logged) or 'nothing'}."
            )
        value = logged[self.metric]
        if isinstance(value, Metric):
            raise ValueError(
                f"metric is {self.metric!r}, which is a torchmetrics object, but diagnose needs a number per batch; "
                "log one, or leave metric out to use the loss."
            )
        return float(value)

    def _by_function(self, batch: Any) -> Any:
        assert self._given is not None
        return self._given(self.module, copied(batch), self.injector.h or {})

    def _run(self, name: str, batch: Any) -> tuple[Any, dict[str, Any]]:
        step = getattr(self.module, name)
        logged: dict[str, Any] = {}

        def log(name: str, value: Any, *args: Any, **kwargs: Any) -> None:
            logged[name] = value

        # Indices of the batch and of the dataloader, as far as the step declares them.
        _, *others = inspect.signature(step).parameters.values()
        indices = [0 for p in others if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        with replaced(self.module, {"log": log, "print": lambda *args, **kwargs: None}):
            return step(copied(batch), *indices), logged


def check_loss(module: Any, loss: Loss | None, metric: str | None) -> None:
    """Raise ValueError if nothing says how the loss, or the metric, of one ``h`` is computed."""
    name = type(module).__name__
    steps = is_hyper(module) or hasattr(module, BOUND)
    if loss is None and not steps:
        raise ValueError(
            f"{name} has no training step of one h, so give its loss: diagnose(module, dataloader, loss=lambda module, "
            "batch, h: ...)."
        )
    if metric is not None and not steps:
        raise ValueError(f"metric is {metric!r}, but {name} has no validation_step of one h; leave metric out.")
    if loss is None and metric is None and not module.automatic_optimization:
        raise ValueError(
            f"{name} takes its optimizer steps itself, so its training_step is not run here; name a metric that its "
            "validation_step logs: diagnose(model, dataloader, metric='val_loss')."
        )
    if loss is None and metric is None and not overrides(module, "training_step"):
        raise ValueError(
            f"{name} has no training_step; give its loss, or a metric that its validation_step logs: "
            "diagnose(model, dataloader, metric='val_loss')."
        )


def copied_module(module: nn.Module) -> nn.Module:
    """A deepcopy, also of a module that holds results of a step, with their graphs; functions are shared.

    What LightningCLI gives for an optimizer holds its parser, and with it the Trainer.
    """
    memo = without_graphs(module)
    for child in module.modules():
        for leaf in tree_leaves(vars(child)):
            if isinstance(leaf, L.Callback) or (callable(leaf) and not _is_of_a_module(leaf)):
                memo[id(leaf)] = leaf
    result = copy.deepcopy(module, memo)
    if hasattr(module, "_trainer"):
        result.__dict__["_trainer"] = module._trainer  # steps may read it
    return result


def _is_of_a_module(function: Any) -> bool:
    """Whether it has to become the copy's: a module, what injects its weights, or a method of one.

    A run under DDP leaves a module its own ``forward`` as an attribute.
    """
    return isinstance(function, (nn.Module, Injector)) or isinstance(getattr(function, "__self__", None), nn.Module)
