"""The task, written once for the current h, and the plain network trained the same way."""

from __future__ import annotations

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

import lightning_mip as mip

Batch = tuple[Tensor, Tensor]


def log_classification(module: L.LightningModule, batch: Batch, stage: str) -> Tensor:
    """Cross-entropy of a batch; logs the stage's loss and, outside training, its accuracy."""
    x, y = batch
    logits = module(x)
    loss = F.cross_entropy(logits, y)
    module.log(f"{stage}_loss", loss, prog_bar=stage != "test", batch_size=len(y))
    if stage != "train":
        module.log(f"{stage}_acc", (logits.argmax(-1) == y).float().mean(), prog_bar=True, batch_size=len(y))
    return loss


class BayesianDigits(mip.HyperLightningModule):
    """A classifier whose weights are drawn: each h is one network, the prediction averages over draws of h."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return log_classification(self, batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        log_classification(self, batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        log_classification(self, batch, "test")


class PlainDigits(L.LightningModule):
    """The same network and the same steps without a hypernetwork."""

    def __init__(
        self,
        primary: nn.Module,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.primary, self.optimizer, self.lr_scheduler = primary, optimizer, lr_scheduler

    def forward(self, x: Tensor) -> Tensor:
        return self.primary(x)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return log_classification(self, batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        log_classification(self, batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        log_classification(self, batch, "test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer(self.parameters())
        return optimizer if self.lr_scheduler is None else ([optimizer], [self.lr_scheduler(optimizer)])
