"""The task, written once for the current h, and the plain network trained the same way."""

from __future__ import annotations

from collections.abc import Mapping

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


@torch.no_grad()
def probabilities_at(model: BayesianDigits, x: Tensor, h: Mapping[str, Tensor | float]) -> Tensor:
    """Class probabilities (B, classes) of the one network that `h` names."""
    with mip.at(model.primary, h):
        return model.primary(x).softmax(-1)


@torch.no_grad()
def ensemble_probabilities(model: BayesianDigits, x: Tensor, draws: int = 32, seed: int = 0) -> Tensor:
    """Class probabilities (draws, B, classes) at `draws` values of h from the priors; their mean is the prediction."""
    if draws < 1:
        raise ValueError(f"draws={draws} must be at least 1: the prediction is a mean over draws of h.")
    was_training = model.training
    model.eval()
    try:
        drawn = [model.space.sample(seed=seed, rank=0, step=step) for step in range(draws)]
        return torch.stack([probabilities_at(model, x, h) for h in drawn])
    finally:
        model.train(was_training)
