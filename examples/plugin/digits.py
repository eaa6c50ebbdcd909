"""An ordinary Lightning project: a small classifier of handwritten digits, with two hyperparameters worth tuning.

Nothing in this file knows of hypernetworks.
"""

from __future__ import annotations

import lightning as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES, PIXELS = 10, 64
HIGHEST = 16  # the value of a black pixel


class FewDigits(L.LightningDataModule):
    """Some of scikit-learn's 1797 digits to train on, part of them with a wrong label; the others to validate.

    Args:
        train: Digits to train on.
        wrong: Part of them whose label is drawn at random.
        batch_size: Digits in a training batch.
        seed: Of the choice of digits and of the wrong labels.
    """

    def __init__(self, train: int = 200, wrong: float = 0.2, batch_size: int = 50, seed: int = 0) -> None:
        super().__init__()
        self.train, self.wrong, self.batch_size, self.seed = train, wrong, batch_size, seed

    def setup(self, stage: str) -> None:
        images, labels = load_digits(return_X_y=True)
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(labels), generator=generator)
        x, y = torch.from_numpy(images).float()[order] / HIGHEST, torch.from_numpy(labels)[order]
        given = y[: self.train].clone()
        wrong = torch.rand(self.train, generator=generator) < self.wrong
        given[wrong] = torch.randint(CLASSES, (int(wrong.sum()),), generator=generator)
        self.parts = TensorDataset(x[: self.train], given), TensorDataset(x[self.train :], y[self.train :])

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.parts[0], self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.parts[1], len(self.parts[1]))


class Classifier(L.LightningModule):
    """One hidden layer; the loss holds a penalty on the weights, the images get noise while it trains.

    Args:
        reg_weight: Weight of the penalty, the sum of the squares of all weights.
        noise: Standard deviation of the noise on the pixels, which go from 0 to 1.
        width: Hidden units.
        lr: Learning rate, which falls to 0 along a cosine.
    """

    def __init__(self, reg_weight: float = 0.0, noise: float = 0.0, width: int = 128, lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(PIXELS, width), nn.ReLU(), nn.Linear(width, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def penalty(self) -> Tensor:
        """The sum of the squares of all weights, biases left out."""
        return sum(layer.weight.square().sum() for layer in self.net if isinstance(layer, nn.Linear))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        noisy = x + self.hparams.noise * torch.randn_like(x)
        loss = F.cross_entropy(self(noisy), y) + self.hparams.reg_weight * self.penalty()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y), prog_bar=True)
        self.log("val_acc", (logits.argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.Adam(self.parameters(), self.hparams.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
