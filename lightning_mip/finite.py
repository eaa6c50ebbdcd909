"""Whether training losses were finite, read so seldom that no step waits for the device."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import lightning as L
import torch
from torch import Tensor

from lightning_mip.space import HSpace

EVERY = 256


@dataclass
class LossWatch:
    """Keeps the last training losses with their batch and ``h``, and looks at them together."""

    _kept: list[tuple[Tensor, int, Mapping[str, Tensor]]] = field(default_factory=list)

    def see(self, trainer: L.Trainer, loss: Tensor, space: HSpace, h: Mapping[str, Tensor]) -> None:
        """Keep a loss; look at each at once with ``Trainer(detect_anomaly=True)``, else at `EVERY` of them.

        Args:
            trainer: in whose batch it is.
            loss: before its backward.
            space: of ``h``.
            h: at which it was computed; empty, or batched, where there is no single one.
        """
        # The sum, as manual optimization may go back from more than a scalar.
        self._kept.append((loss.detach().sum(), trainer.fit_loop.batch_idx, h))
        if len(self._kept) >= EVERY or torch.is_anomaly_enabled():
            self.check(trainer, space)

    def check(self, trainer: L.Trainer, space: HSpace) -> None:
        """Raise FloatingPointError if one of the losses is not finite, and forget them.

        Where a gradient scaler leaves out the step of such a loss, training goes on, and a warning says it.
        """
        kept, self._kept = self._kept, []
        wrong = ((batch, h) for loss, batch, h in kept if not math.isfinite(loss))
        batch, h = next(wrong, (None, {}))
        if batch is None:
            return
        at = f", at h = ({space.label(h)})" if h and not space.is_batched(h) else ""
        text = (
            f"The training loss was NaN or infinite in batch {batch} of epoch {trainer.current_epoch}{at}. Lower the "
            "learning rate, or look for what is undefined there; Trainer(detect_anomaly=True) stops in that batch."
        )
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            raise FloatingPointError(text)
        warnings.warn(text, stacklevel=2)
