"""The smallest tasks that still show everything: four weights matrices, a dial ``lam``, and 16 samples.

Test modules, configs of the command line and spawned processes all take their classes from here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import lightning_mip as mip

SAMPLES, BATCH = 16, 4
BATCHES = SAMPLES // BATCH
SMALL: dict[str, Any] = {"hidden_sizes": (4,)}


class Net(nn.Module):
    """Two layers: 3 features to 2 outputs."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh())


class Task(mip.HyperLightningModule):
    """Regression whose dial goes from the mean square to the mean absolute error."""

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        error = self(x) - y
        lam = self.h["lam"]
        return (1 - lam) * (error**2).mean() + lam * error.abs().mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        self.__dict__.setdefault("_drawn", []).append(float(self.h["lam"]))
        return loss


class Evaluated(Task):
    """The same with validation and test."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))


class Preferring(mip.HyperLightningModule):
    """A loss in which every kind of component has a part."""

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        error = ((self(x) - y) ** 2).mean(0)
        return self.h["weights"] @ error * self.h["kind"] * self.h["lam"] + self.h["noise"] + self.h["tail"]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))


def make(kind: type[Task] = Task, /, primary: nn.Module | None = None, **arguments: Any) -> Any:
    """A small module of a kind, with the dial ``lam`` on [0, 1], the same weights at every call."""
    torch.manual_seed(1)
    defaults: dict[str, Any] = {"h": {"lam": mip.Uniform(0, 1)}, "hypernet": SMALL}
    return kind(primary=Net() if primary is None else primary, **{**defaults, **arguments})


def dataset(samples: int = SAMPLES, seed: int = 0) -> Dataset[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 3, generator=generator)
    return TensorDataset(x, torch.stack([x.sum(1), x.prod(1)], dim=1))


def loader(samples: int = SAMPLES, batch_size: int = BATCH, seed: int = 0, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(dataset(samples, seed), batch_size=batch_size, **arguments)


def drawn(model: Any) -> list[float]:
    """The values of ``lam`` that the training steps of a `Task` saw."""
    return model.__dict__.get("_drawn", [])


def sequence(model: Any, batches: int, **arguments: Any) -> list[float]:
    """The values of ``lam`` that a run has to draw."""
    return [float(model.space.sample(**{"seed": 0, **arguments}, step=step)["lam"]) for step in range(batches)]


class SaveAt(L.Callback):
    """Writes one checkpoint: at the end of an epoch, or after a number of training batches."""

    def __init__(self, path: Path, *, epoch: int | None = None, batches: int | None = None) -> None:
        self.path, self.epoch, self.batches, self.seen = path, epoch, batches, 0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.seen += 1
        if self.seen == self.batches:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)


class Recorder(Logger):
    """Keeps what is logged: one dict per call."""

    name, version = "recorder", 0

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.logged.append(metrics)

    def log_hyperparams(self, *arguments: Any, **keywords: Any) -> None:
        """Nothing to keep."""


class Data(L.LightningDataModule):
    """The samples as a data module."""

    def __init__(self, batch_size: int = BATCH) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return loader(batch_size=self.batch_size, seed=1)

    def test_dataloader(self) -> DataLoader[Any]:
        return loader(batch_size=self.batch_size, seed=2)

    def predict_dataloader(self) -> DataLoader[Any]:
        return loader(batch_size=self.batch_size, seed=3)
