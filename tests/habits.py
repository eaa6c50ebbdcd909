"""LightningModules of people who know nothing of h, one for each habit of writing them: name -> how to run it.

Every one fits the same samples, with a hyperparameter ``lam`` in [0, 1] that weighs a penalty, and is written as its
author would write it. `HABITS` says where the network and the hyperparameter are, and what its validation must log.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torchmetrics import MeanAbsoluteError, MeanMetric, MeanSquaredError, MetricCollection, R2Score

from tests.tasks import Net, loader

LAM = 0.25
HELD_OUT = 10  # in batches of 4, 4 and 2: a mean over batches is not one over samples


def penalised(predicted: Tensor, y: Tensor, lam: Any) -> Tensor:
    """The loss of nearly all modules here."""
    return mse_loss(predicted, y) + lam * predicted.abs().mean()


class InInit(L.LightningModule):
    """The network is made in ``__init__``, the hyperparameter is saved and read from ``hparams``."""

    def __init__(self, lam: float = LAM, lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = penalised(self(x), y, self.hparams.lam)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", penalised(self(x), y, self.hparams.lam))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("test_loss", penalised(self(x), y, self.hparams.lam))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]) * self.hparams.lam

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), self.hparams.lr)


class Attribute(InInit):
    """The hyperparameter is an attribute of the module."""

    def __init__(self, lam: float = LAM) -> None:
        super().__init__(lam)
        self.lam = lam

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return penalised(self(x), y, self.lam)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", penalised(self(x), y, self.lam))


class InSetup(InInit):
    """The network is made in ``setup``."""

    def __init__(self, lam: float = LAM, lr: float = 0.05) -> None:
        super().__init__(lam, lr)
        del self.net

    def setup(self, stage: str) -> None:
        if not hasattr(self, "net"):
            self.net = Net()


class InConfigureModel(InInit):
    """The network is made in ``configure_model``."""

    def __init__(self, lam: float = LAM, lr: float = 0.05) -> None:
        super().__init__(lam, lr)
        self.net = None

    def configure_model(self) -> None:
        if self.net is None:
            self.net = Net()


class Manual(Attribute):
    """Takes its optimizer steps itself, two in each batch."""

    def __init__(self, lam: float = LAM) -> None:
        super().__init__(lam)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        for _ in range(2):
            loss = super().training_step(batch, batch_idx)
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
            optimizer.step()


class TwoOptimizers(L.LightningModule):
    """A generator and a critic, each with its optimizer, which are toggled."""

    def __init__(self, lam: float = LAM) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator, self.critic = Net(), nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for _ in range(2):
            self.improve_generator(*batch)
            self.improve_critic(*batch)

    def improve_generator(self, x: Tensor, y: Tensor) -> None:
        optimizer, _ = self.optimizers()
        self.toggle_optimizer(optimizer)
        made = self.generator(x)
        loss = mse_loss(made, y) - self.hparams.lam * self.critic(made).mean()
        self.log("generator_loss", loss, prog_bar=True)
        self.manual_backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        self.untoggle_optimizer(optimizer)

    def improve_critic(self, x: Tensor, y: Tensor) -> None:
        _, optimizer = self.optimizers()
        self.toggle_optimizer(optimizer)
        loss = self.critic(self.generator(x).detach()).mean() - self.hparams.lam * self.critic(y).tanh().mean()
        self.log("critic_loss", loss, prog_bar=True)
        self.manual_backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        self.untoggle_optimizer(optimizer)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", penalised(self.generator(x), y, self.hparams.lam))
        self.log("val_score", self.critic(y).mean() * self.hparams.lam)

    def configure_optimizers(self) -> Any:
        first = torch.optim.Adam(self.generator.parameters(), 0.05, betas=(0.5, 0.9))
        return [first, torch.optim.Adam(self.critic.parameters(), 0.05)], []


class MetricObjects(InInit):
    """Updates metrics in the step; logs one as an object, computes another when the epoch ends."""

    def __init__(self, lam: float = LAM) -> None:
        super().__init__(lam)
        self.val_mse = MeanSquaredError()
        self.val_r2 = R2Score(multioutput="uniform_average")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        predicted = self(x) * (1 + self.hparams.lam)
        self.val_mse(predicted, y)
        self.log("val_mse", self.val_mse, on_epoch=True, prog_bar=True)
        self.val_r2.update(predicted, y)

    def on_validation_epoch_end(self) -> None:
        self.log("val_r2", self.val_r2.compute())
        self.val_r2.reset()


class Collections(InInit):
    """Metrics in a collection, a ``ModuleDict`` and a plain list."""

    def __init__(self, lam: float = LAM) -> None:
        super().__init__(lam)
        metrics = MetricCollection({"mae": MeanAbsoluteError(), "mse": MeanSquaredError()})
        self.train_metrics, self.val_metrics = metrics.clone("train_"), metrics.clone("val_")
        self.by_stage = nn.ModuleDict({"val": MeanMetric(), "test": MeanMetric()})
        self.listed = [MeanMetric()]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        predicted = self(x)
        self.log_dict(self.train_metrics(predicted, y), on_step=False, on_epoch=True)
        return penalised(predicted, y, self.hparams.lam)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        predicted = self(x) * (1 + self.hparams.lam)
        self.val_metrics.update(predicted, y)
        self.log_dict(self.val_metrics)
        self.by_stage["val"].update(predicted)
        self.log("val_mean", self.by_stage["val"])
        self.listed[0].update(predicted.abs())

    def on_validation_epoch_end(self) -> None:
        self.log("val_abs", self.listed[0].compute())
        self.listed[0].reset()


class EpochEnd(InInit):
    """Collects outputs in private lists, in a dict, and the best in an attribute that begins as None."""

    def __init__(self, lam: float = LAM) -> None:
        super().__init__(lam)
        self._errors: list[Tensor] = []
        self.parts: dict[str, list[float]] = {"lam": []}
        self.least: Tensor | None = None

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        error = (self(x) - y).abs()
        self._errors.append(error)
        self.parts["lam"].append(self.hparams.lam)
        self.least = error.min() if self.least is None else torch.minimum(self.least, error.min())

    def on_validation_epoch_end(self) -> None:
        self.log("val_median", torch.cat(self._errors).flatten().quantile(0.5))
        self.log_dict({"val_least": self.least, "val_lams": sum(self.parts["lam"])})
        self._errors.clear()
        self.parts["lam"].clear()
        self.least = None


class Helpers(InInit):
    """Logs in methods that all stages share, under names made from the stage."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._shared_step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._shared_step(batch, "val")

    def _shared_step(self, batch: Any, stage: str) -> Tensor:
        x, y = batch
        predicted = self(x)
        loss = penalised(predicted, y, self.hparams.lam)
        self._report(stage, {"loss": loss, "size": predicted.abs().mean()})
        return loss

    def _report(self, stage: str, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.log(f"{stage}_{name}", value, True, False, False, True)


class Coder(nn.Module):
    """A network that is reached through its methods."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 4), nn.Linear(4, 2)
        self.shift = nn.Parameter(torch.zeros(4))

    def encode(self, x: Tensor) -> Tensor:
        return (self.encoder(x) + self.shift).tanh()

    def decode(self, code: Tensor) -> Tensor:
        return self.decoder(code)

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError("use encode and decode")


class Methods(InInit):
    """Never calls the network itself."""

    def __init__(self, lam: float = LAM) -> None:
        super().__init__(lam)
        self.net = Coder()

    def forward(self, x: Tensor) -> Tensor:
        return self.net.decode(self.net.encode(x))


class InModuleDict(InInit):
    """The network is in a ``ModuleDict``, beside a frozen one."""

    def __init__(self, lam: float = LAM) -> None:
        super().__init__(lam)
        del self.net
        self.parts = nn.ModuleDict({"student": Net(), "teacher": Net().requires_grad_(False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.parts["student"](x) - 0.1 * self.parts["teacher"](x)


class OwnLayers(InInit):
    """Is its own network: its layers are attributes, one of them a bare parameter."""

    def __init__(self, lam: float = LAM) -> None:
        super().__init__(lam)
        del self.net
        self.encoder, self.decoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 2)
        self.shift = nn.Parameter(torch.zeros(4))
        self.error = MeanSquaredError()

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x) + self.shift)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        predicted = self.decoder(self.encoder(x) + self.shift)
        self.error(predicted, y)
        self.log("train_error", self.error)
        return penalised(predicted, y, self.hparams.lam)


class AsNamespace(InInit):
    """Takes its hyperparameters as a Namespace."""

    def __init__(self, hparams: Namespace) -> None:
        super(InInit, self).__init__()
        self.save_hyperparameters(hparams)
        self.net = Net()


class AsDict(InInit):
    """Takes its hyperparameters as a nested dict."""

    def __init__(self, config: dict[str, Any]) -> None:
        super(InInit, self).__init__()
        self.save_hyperparameters()
        self.net = Net()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return penalised(self(x), y, self.hparams["config"]["loss"]["lam"])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", penalised(self(x), y, self.hparams.config["loss"]["lam"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.hparams.config["lr"])


class SeveralLoaders(InInit):
    """Validates on two sets."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)
        self.log(f"val_last_{dataloader_idx}", self(batch[0])[-1, -1], add_dataloader_idx=False)


class Buffer(Attribute):
    """The hyperparameter is a tensor, a buffer of the module."""

    def __init__(self, lam: float = LAM) -> None:
        super().__init__(lam)
        del self.lam
        self.register_buffer("lam", torch.tensor([lam], dtype=torch.float64))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert self.lam.shape == (1,)
        assert self.lam.dtype == torch.float64
        return super().training_step(batch, batch_idx).sum().float()


class DictOutputs(InInit):
    """Its steps return dicts, which its batch-end hook reads."""

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {"loss": super().training_step(batch, batch_idx), "x": batch[0]}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert torch.equal(outputs["x"], batch[0])

    def on_validation_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.current = len(batch[0])

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        assert self.current == len(batch[0])
        return {"predicted": self(batch[0]), "y": batch[1], "lam": self.hparams.lam}

    def on_validation_batch_end(self, outputs: dict[str, Any], batch: Any, batch_idx: int) -> None:
        assert outputs["lam"] == self.hparams.lam
        self.log("val_loss", penalised(outputs["predicted"], outputs["y"], outputs["lam"]), batch_size=len(batch[0]))


class WithoutValidation(L.LightningModule):
    """Trains, and no more."""

    def __init__(self, lam: float = LAM) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = Net()

    def training_step(self, batch: Any) -> Tensor:
        x, y = batch
        return penalised(self.net(x), y, self.hparams.lam)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.05)


class Scheduled(InInit):
    """Optimizes its network's parameters alone, in groups, with a scheduler that watches a metric."""

    def configure_optimizers(self) -> Any:
        groups = [
            {"params": self.net.first.parameters(), "weight_decay": 0.1},
            {"params": self.net.last.parameters(), "lr": 0.1},
        ]
        optimizer = torch.optim.SGD(groups, 0.05, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class Stepwise(InInit):
    """A scheduler for every step, warmed up by hand in the optimizer's hook."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.net.parameters(), 0.05)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, 40), "interval": "step"}
        ]

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)
        for group in optimizer.param_groups:
            group["lr"] *= min(1.0, (self.trainer.global_step + 1) / 3)


class Quasi(InInit):
    """LBFGS, which runs the step several times for each of its own."""

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.net.parameters(), 0.1, max_iter=3)


class Penalty(nn.Module):
    """A loss with an attribute of its own."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, predicted: Tensor, y: Tensor) -> Tensor:
        return penalised(predicted, y, self.alpha)


class LossModule(InInit):
    """The hyperparameter is an attribute of its loss."""

    def __init__(self, lam: float = LAM) -> None:
        super().__init__(lam)
        self.loss = Penalty(lam)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(self(batch[0]), batch[1]))


def _set_up(kind: Any, path: Any) -> Any:
    """``load_from_checkpoint`` cannot, as it does not call ``setup``."""
    checkpoint = torch.load(path, weights_only=True)
    module = kind(**checkpoint["hyper_parameters"])
    module.setup("fit")
    module.load_state_dict(checkpoint["state_dict"])
    return module


Measure = Callable[[Tensor, Tensor, float], Any]


@dataclass(frozen=True)
class Habit:
    """How to run one of these modules with the plug-in, and what is to come out.

    Attributes:
        make: makes the module; called in a fixed random state.
        target: path of the network, None where the plug-in finds it.
        path: of the hyperparameter.
        measures: what validation logs -> the same from all predictions, all targets and lam.
        loaders: number of validation loaders.
        apply: runs the network.
        saved: where a checkpoint's hyperparameters have it, if they do.
        load: how a class and the path of a checkpoint make a module.
    """

    make: Callable[[], Any]
    target: str | None = "net"
    path: str = "hparams.lam"
    measures: Mapping[str, Measure] = field(default_factory=lambda: {"val_loss": penalised})
    loaders: int = 1
    apply: Callable[[Any, nn.Module, Tensor], Tensor] = lambda module, net, x: net(x)
    saved: tuple[str, ...] = ("lam",)
    load: Callable[[Any, Any], Any] = lambda kind, path: kind.load_from_checkpoint(path)

    def data(self) -> list[Any]:
        """The validation loaders."""
        return [loader(HELD_OUT, seed=1), loader(8, seed=2)][: self.loaders if self.measures else 0]

    def value(self, module: Any) -> Any:
        """Read the hyperparameter."""
        for part in self.path.split("."):
            module = module[part] if isinstance(module, dict) else getattr(module, part)
        return module


def _scaled(metric: Any) -> Measure:
    return lambda predicted, y, lam: metric(predicted * (1 + lam), y)


_MEANS: dict[str, Measure] = {
    "val_mae": _scaled(lambda predicted, y: (predicted - y).abs().mean()),
    "val_mse": _scaled(mse_loss),
    "val_mean": _scaled(lambda predicted, y: predicted.mean()),
    "val_abs": _scaled(lambda predicted, y: predicted.abs().mean()),
}

HABITS: dict[str, Habit] = {
    "network in __init__": Habit(InInit),
    "network found by itself": Habit(InInit, target=None),
    "plain attribute": Habit(Attribute, path="lam"),
    "network in setup": Habit(InSetup, load=_set_up),
    "network in configure_model": Habit(InConfigureModel, target=None),
    "manual optimization": Habit(Manual, path="lam"),
    "two optimizers": Habit(
        TwoOptimizers,
        target="generator",
        measures={"val_loss": penalised},
    ),
    "two optimizers, the other network": Habit(
        TwoOptimizers,
        target="critic",
        measures={"val_score": lambda score, y, lam: score.mean() * lam},
        apply=lambda module, net, x: net(torch.stack([x.sum(1), x.prod(1)], dim=1)),
    ),
    "metric objects": Habit(
        MetricObjects,
        measures={
            "val_mse": _MEANS["val_mse"],
            "val_r2": _scaled(R2Score(multioutput="uniform_average")),
        },
    ),
    "metric collections": Habit(Collections, measures=_MEANS),
    "lists until the epoch ends": Habit(
        EpochEnd,
        measures={
            "val_median": lambda predicted, y, lam: (predicted - y).abs().flatten().quantile(0.5),
            "val_least": lambda predicted, y, lam: (predicted - y).abs().min(),
            "val_lams": lambda predicted, y, lam: 3 * lam,
        },
    ),
    "logging in helper methods": Habit(
        Helpers, measures={"val_loss": penalised, "val_size": lambda predicted, y, lam: predicted.abs().mean()}
    ),
    "network reached through methods": Habit(Methods, apply=lambda module, net, x: net.decode(net.encode(x))),
    "network in a ModuleDict": Habit(
        InModuleDict,
        target="parts.student",
        apply=lambda module, net, x: net(x) - 0.1 * module.parts["teacher"](x),
    ),
    "layers on the module itself": Habit(OwnLayers, target=""),
    "hparams as Namespace": Habit(lambda: AsNamespace(Namespace(lam=LAM, lr=0.05))),
    "hparams as dict": Habit(
        lambda: AsDict({"loss": {"lam": LAM}, "lr": 0.05}),
        path="hparams.config.loss.lam",
        saved=("config", "loss", "lam"),
    ),
    "several dataloaders": Habit(SeveralLoaders, loaders=2),
    "buffer": Habit(Buffer, path="lam"),
    "dict outputs": Habit(DictOutputs),
    "no validation": Habit(WithoutValidation, measures={}),
    "partial optimizer and plateau": Habit(Scheduled),
    "scheduler per step": Habit(Stepwise),
    "LBFGS": Habit(Quasi),
    "attribute of the loss": Habit(LossModule, path="loss.alpha", saved=()),
}
