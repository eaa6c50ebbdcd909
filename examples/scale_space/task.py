"""The task, written once for the current rescale factor, and the network of one fixed factor."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

import lightning_mip as mip
from examples.common.overlap import dice
from examples.scale_space.loss import soft_dice_loss

Batch = tuple[Tensor, Tensor]


def log_segmentation(module: L.LightningModule, logits: Tensor, labels: Tensor, stage: str) -> Tensor:
    """Soft Dice loss of a batch; logs the stage's loss and, outside training, its Dice."""
    loss = soft_dice_loss(logits, labels)
    module.log(f"{stage}_loss", loss, prog_bar=stage == "train", batch_size=len(labels))
    if stage != "train":
        found = dice(logits.argmax(1), labels, logits.shape[1])
        module.log(f"{stage}_dice", found, prog_bar=True, batch_size=len(labels))
    return loss


class ScaleSpace(mip.HyperLightningModule):
    """A U-Net whose levels are apart by the factor ``phi``, with the weights for that ``phi``."""

    def _segment(self, batch: Batch, stage: str) -> Tensor:
        images, labels = batch
        return log_segmentation(self, self(images, float(self.h["phi"])), labels, stage)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._segment(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._segment(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._segment(batch, "test")


class FixedScale(L.LightningModule):
    """The same network trained for one ``phi``."""

    def __init__(
        self,
        primary: nn.Module,
        phi: float,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.primary, self.phi, self.optimizer, self.lr_scheduler = primary, phi, optimizer, lr_scheduler

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        return log_segmentation(self, self.primary(images, self.phi), labels, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        log_segmentation(self, self.primary(images, self.phi), labels, "val")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer(self.parameters())
        return optimizer if self.lr_scheduler is None else ([optimizer], [self.lr_scheduler(optimizer)])
