"""MagnitudeMonitor: how large the generated weights and their gradients are, during training."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from lightning_mip.callbacks.sample_h import injector_of
from lightning_mip.magnitude import Magnitudes, magnitudes, norm_of, points, total
from lightning_mip.positive import check_whole
from lightning_mip.training import ids_in


class MagnitudeMonitor(L.Callback):
    """Logs norms of the generated weights and of the gradients; for HyperLightningModule and the plug-in alike.

    At ``points`` values of ``h``, the same throughout: ``magnitude/delta`` and ``magnitude/theta`` (means of
    ``||delta(h)||`` and ``||theta(h)||``), ``magnitude/theta0``, ``magnitude/spread`` (``||delta(h) - mean delta|| /
    ||theta0||``: 0 is a hypernetwork that does nothing) and ``magnitude/power`` (``||delta(h)||`` goes as ``||h||`` to
    it: near 0 as MIP wants it, 1 where weights are proportional to ``h``). Of the step: ``gradient/theta0`` and
    ``gradient/hypernet``, the norms before clipping. With a TensorBoardLogger, the figure of these norms at the
    beginning and at the end of training is added. `lightning_mip.diagnose` says more, after training.

    Args:
        every_n_steps: batches between two looks; None for the Trainer's ``log_every_n_steps``, of which it should be a
            multiple, as the Trainer writes to its loggers only then (and repeats a value until there is a new one).
        points: values of ``h``.
        per_tensor: log ``magnitude/delta/NAME`` and ``magnitude/spread/NAME`` of each generated tensor, too.
    """

    def __init__(self, every_n_steps: int | None = None, points: int = 5, per_tensor: bool = False) -> None:
        for name, given in (("every_n_steps", every_n_steps), ("points", points)):
            if given is not None:
                check_whole(name, given)
            if given is not None and given < 1:
                raise ValueError(f"{name} is {given}, expected at least 1.")
        self.every_n_steps, self.points, self.per_tensor = every_n_steps, points, per_tensor
        self._at_start: Magnitudes | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the norms that training starts from."""
        every, logged = self.every_n_steps, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every is not None and logged and every % logged and trainer.loggers:
            rank_zero_warn(
                f"every_n_steps is {every}, but the Trainer writes to its loggers every {logged} steps, so most values "
                f"are lost; use a multiple of it, or Trainer(log_every_n_steps={every})."
            )
        self._at_start = self._look(pl_module)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """Log the norms of the gradients."""
        if not self._is_due(trainer, pl_module):
            return
        injector = injector_of(pl_module, self)
        trained = ids_in([optimizer])
        parts = {"theta0": injector.root.parameters(), "hypernet": injector.hypernet.parameters()}
        for name, parameters in parts.items():
            gradients = [p.grad.detach() for p in parameters if p.grad is not None and id(p) in trained]
            if gradients:
                pl_module.log(f"gradient/{name}", norm_of(gradients))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the norms of the weights."""
        if not self._is_due(trainer, pl_module):
            return
        now = self._look(pl_module)
        values: dict[str, Any] = {
            "delta": total(now.delta).mean(),
            "theta": total(now.theta).mean(),
            "theta0": total(now.theta0),
            "spread": now.relative_spread,
            "power": now.exponent,
        }
        if self.per_tensor:
            for k, name in enumerate(now.names):
                values |= {f"delta/{name}": now.delta[:, k].mean(), f"spread/{name}": now.spread[k] / now.theta0[k]}
        for name, value in values.items():
            if value is not None and float(value) < float("inf"):
                pl_module.log(f"magnitude/{name}", float(value))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the figure to TensorBoard."""
        boards: list[Any] = [logger for logger in trainer.loggers if type(logger).__name__ == "TensorBoardLogger"]
        if not boards or not trainer.is_global_zero or self._at_start is None:
            return
        try:
            from lightning_mip.magnitude_figure import norms_figure
        except ImportError:
            rank_zero_warn(
                "MagnitudeMonitor draws no figure, which needs matplotlib: pip install 'lightning-mip[plot]'."
            )
            return
        figure = norms_figure(self._look(pl_module), self._at_start)
        for board in boards:
            board.experiment.add_figure("magnitude", figure, global_step=trainer.global_step)

    def _look(self, pl_module: L.LightningModule) -> Magnitudes:
        injector = injector_of(pl_module, self)
        return magnitudes(injector, points(injector.hypernet.space, self.points))

    def _is_due(self, trainer: L.Trainer, pl_module: L.LightningModule) -> bool:
        if trainer.fit_loop._should_accumulate() and pl_module.automatic_optimization:
            return False
        every = self.every_n_steps or trainer.log_every_n_steps or 1  # type: ignore[attr-defined]
        # As the Trainer counts for its own logs.
        return (trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % every == 0
