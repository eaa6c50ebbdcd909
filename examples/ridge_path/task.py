"""Ridge regression as a task with a dial: the penalty is ``h``."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_mip as mip
from examples.ridge_path.data import Diabetes

LOW, HIGH = 1e-2, 1e2
EPOCHS, STEPS, DRAWS = 20, 200, 2
PRIOR = mip.LogUniform(LOW, HIGH)


class Ridge(mip.HyperLightningModule):
    """A linear network whose weights depend on the penalty ``lam``."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        lam, weight = self.h["lam"], self.primary.weight  # inside a step: the generated weight
        loss = (self(x) - y).square().mean() + lam * weight.square().sum()
        # Of one size for all penalties; the best weights of each stay what they are.
        return loss / (1 + lam)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_mse", (self(x) - y).square().mean())


def squared_error(output: Tensor, batch: Any) -> Tensor:
    """One value per sample, for `mip.choose`."""
    return (output - batch[1]).square().mean(1)


def loader(x: Tensor, y: Tensor) -> DataLoader[Any]:
    """All samples as one batch."""
    return DataLoader([(x, y)], batch_size=None)


def train(data: Diabetes, seed: int = 0) -> Ridge:
    """One training run for all penalties from 0.01 to 100."""
    L.seed_everything(seed, verbose=False)
    model = Ridge(
        nn.Linear(data.x.shape[1], 1, bias=False),
        {"lam": PRIOR},
        # Nothing here is shared by all penalties, so that most of the learning is to be the hypernetwork's.
        hypernet={"hidden_sizes": (32, 32), "scale": "paper"},
        draws_per_batch=DRAWS,
        optimizer=lambda parameters: torch.optim.Adam(parameters, 1e-2),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS),
    )
    # Each draw of lam gets a part of the batch, and the parts are copies of the training set.
    batch = data.x.repeat(DRAWS, 1), data.y.repeat(DRAWS, 1)
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[mip.SampleH(seed=seed, strategy="sobol")],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader([batch] * STEPS, batch_size=None), loader(data.x_val, data.y_val))
    return model
