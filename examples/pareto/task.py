"""The two tasks, weighted by the current preference, and the network of one fixed preference."""

from __future__ import annotations

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

import lightning_mip as mip

Batch = tuple[Tensor, Tensor]
Logits = tuple[Tensor, Tensor]


def losses(logits: Logits, labels: Tensor) -> Tensor:
    """Cross-entropy of the left and of the right digit, shape (2,)."""
    return torch.stack([F.cross_entropy(one, labels[:, k]) for k, one in enumerate(logits)])


def accuracies(logits: Logits, labels: Tensor) -> Tensor:
    """Accuracy on the left and on the right digit, shape (2,)."""
    return torch.stack([(one.argmax(-1) == labels[:, k]).float().mean() for k, one in enumerate(logits)])


def log_both(module: L.LightningModule, logits: Logits, labels: Tensor, preference: Tensor, stage: str) -> Tensor:
    """The preferred mean of the two losses; logs it and, outside training, loss and accuracy of each digit."""
    each = losses(logits, labels)
    loss = preference @ each
    module.log(f"{stage}_loss", loss, prog_bar=True, batch_size=len(labels))
    if stage != "train":
        for name, loss_of_one, accuracy in zip(("left", "right"), each, accuracies(logits, labels), strict=True):
            module.log(f"{stage}_loss_{name}", loss_of_one, batch_size=len(labels))
            module.log(f"{stage}_acc_{name}", accuracy, batch_size=len(labels))
    return loss


class Pareto(mip.HyperLightningModule):
    """Reads two digits, with the weights for the current ``preference``: how much each of them counts."""

    def _read(self, batch: Batch, stage: str) -> Tensor:
        images, labels = batch
        return log_both(self, self(images), labels, self.h["preference"], stage)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._read(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._read(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._read(batch, "test")


class FixedPreference(L.LightningModule):
    """The same network trained for one preference."""

    def __init__(
        self,
        primary: nn.Module,
        preference: list[float],
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.primary, self.optimizer, self.lr_scheduler = primary, optimizer, lr_scheduler
        self.register_buffer("preference", torch.tensor(preference))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return log_both(self, self.primary(batch[0]), batch[1], self.preference, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        log_both(self, self.primary(batch[0]), batch[1], self.preference, "val")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer(self.parameters())
        return optimizer if self.lr_scheduler is None else ([optimizer], [self.lr_scheduler(optimizer)])
