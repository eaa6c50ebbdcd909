"""HyperMorph, written once for the current lam, and the plain network trained at one lam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

import lightning_mip as mip
from examples.hypermorph.data import Pair
from examples.hypermorph.losses import DISTANCES, smoothness
from examples.hypermorph.measures import folded, overlap
from examples.hypermorph.network import Registered, Registration

Distance = Literal["mse", "ncc"]
CLASSES = 34  # the background and 33 structures; neurite-OASIS has fewer


def loss_of(found: Registered, pair: Pair, lam: Tensor | float, distance: Distance) -> Tensor:
    """HyperMorph's loss; with lam of shape (N,), each pair has its own."""
    apart, rough = DISTANCES[distance](found.warped, pair.fixed), smoothness(found.velocity)
    return ((1 - lam) * apart + lam * rough).mean()


def log_quality(module: Any, pair: Pair, lam: Tensor | float, stage: str) -> None:
    """Register a batch, and log what came of it."""
    found = module(pair.moving, pair.fixed)
    values = {
        "loss": loss_of(found, pair, lam, module.distance),
        "dice": overlap(pair.moving_labels, pair.fixed_labels, found.flow, CLASSES).mean(),
        "folded": folded(found.flow).mean(),
        "smoothness": smoothness(found.velocity).mean(),
    }
    for name, value in values.items():
        module.log(f"{stage}_{name}", value, prog_bar=name == "dice", batch_size=len(pair.moving))


class HyperMorph(mip.HyperLightningModule):
    """Registration at every weight ``lam`` of the smoothness, which goes from 0, none, to 1, nothing but it.

    Args:
        primary: gives a `Registered` for a pair; all but its last convolution is generated.
        h: the prior of ``lam``.
        distance: of the images: ``mse`` over the variance of the noise, or ``ncc``, local correlation.
        include: which parameters are generated.
        **options: of HyperLightningModule.
    """

    def __init__(
        self,
        primary: Registration,
        h: dict[str, mip.Prior],
        *,
        distance: Distance = "mse",
        include: str | list[str] = "unet.*",
        **options: Any,
    ) -> None:
        super().__init__(primary, h, include=include, **options)
        self.distance = distance

    def training_step(self, batch: Pair, batch_idx: int) -> Tensor:
        loss = loss_of(self(batch.moving, batch.fixed), batch, self.h["lam"], self.distance)
        self.log("train_loss", loss, batch_size=len(batch.moving))
        return loss

    def validation_step(self, batch: Pair, batch_idx: int) -> None:
        log_quality(self, batch, self.h["lam"], "val")
        if batch_idx == 0:
            self.shown = batch.moving[:1], batch.fixed[:1]

    def test_step(self, batch: Pair, batch_idx: int) -> None:
        log_quality(self, batch, self.h["lam"], "test")

    def visualize(self, h: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Pictures for the page of `lightning-mip sweep`: the first validation pair, registered at ``h``."""
        moving, fixed = self.shown
        return {"moving": moving, "warped": self(moving, fixed).warped, "fixed": fixed}


class Specialist(L.LightningModule):
    """The same network and the same steps at one lam, without a hypernetwork."""

    def __init__(
        self,
        primary: Registration,
        lam: float,
        distance: Distance = "mse",
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.primary, self.lam, self.distance = primary, lam, distance
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler

    def forward(self, moving: Tensor, fixed: Tensor) -> Registered:
        return self.primary(moving, fixed)

    def training_step(self, batch: Pair, batch_idx: int) -> Tensor:
        return loss_of(self(batch.moving, batch.fixed), batch, self.lam, self.distance)

    def validation_step(self, batch: Pair, batch_idx: int) -> None:
        log_quality(self, batch, self.lam, "val")

    def test_step(self, batch: Pair, batch_idx: int) -> None:
        log_quality(self, batch, self.lam, "test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer(self.parameters())
        return optimizer if self.lr_scheduler is None else ([optimizer], [self.lr_scheduler(optimizer)])
