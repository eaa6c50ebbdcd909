"""What `test_ddp` looks at: runs on two processes, each of which writes what it saw to ``<folder>/rank<r>.pt``.

Lightning starts this program again for the second process: ``python ddp_program.py <folder>``.
"""

from __future__ import annotations

import copy
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAUROC

import lightning_mip as mip
from tests.tasks import SMALL, Evaluated, Net, SaveAt, loader, make

Seen = dict[str, Any]


class Watched(Evaluated):
    """Remembers its batches, the h inside the network's forward, and the gradients after the first backward."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        seen = self.__dict__.setdefault("_seen", {"batches": [], "lam": [], "gradients": None})
        seen["batches"].append(batch)
        return self.loss(batch)

    def on_after_backward(self) -> None:
        if self.__dict__["_seen"]["gradients"] is None:
            trained = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
            self.__dict__["_seen"]["gradients"] = {name: p.grad.clone() for name, p in trained}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)


class Reporting(Net):
    """Says with which h it runs."""

    def forward(self, x: Tensor) -> Tensor:
        for injector in self._forward_pre_hooks.values() if self.training else ():
            self.__dict__.setdefault("_lam", []).append(float(injector.h["lam"]))  # type: ignore[attr-defined]
        return super().forward(x)


class Recomputing(Reporting):
    """Recomputes in the backward."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


def trainer(folder: Path, **arguments: Any) -> L.Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    defaults: Seen = {"max_epochs": 2, "accelerator": "cpu", "devices": 2, "strategy": "ddp", "log_every_n_steps": 1}
    return L.Trainer(default_root_dir=folder, **{**defaults, **quiet, **arguments})


def watched(primary: type[Net] = Reporting, **arguments: Any) -> Watched:
    """The same module on every process."""
    torch.manual_seed(0)
    return make(Watched, primary=primary(), **arguments)


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def local_gradients(model: Any, lam: float, batch: Any) -> dict[str, Tensor]:
    """Gradients of this process alone."""
    with mip.at(model.primary, lam=lam):
        model.loss(batch).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def train(folder: Path, primary: type[Net] = Reporting, callbacks: Any = (), **arguments: Any) -> Seen:
    """Train, and compare the gradients with those that this process would have alone."""
    model = watched(primary, **arguments)
    alone = copy.deepcopy(model)
    trainer(folder, callbacks=list(callbacks)).fit(model, loader(), loader(seed=1))
    seen: Seen = model.__dict__["_seen"]
    lams = model.primary.__dict__["_lam"]
    local = local_gradients(alone, lams[0], seen["batches"][0]) if "draws_per_batch" not in arguments else {}
    return {"lam": lams, "gradients": seen["gradients"], "local": local, "parameters": parameters(model)}


def resumed(folder: Path) -> Seen:
    """One run of three epochs, and the same interrupted after one."""
    whole, later = watched(), watched()
    path = folder / "epoch.ckpt"
    trainer(folder, max_epochs=3, callbacks=[SaveAt(path, epoch=0)]).fit(whole, loader(), loader(seed=1))
    trainer(folder, max_epochs=3).fit(later, loader(), loader(seed=1), ckpt_path=path)
    models = {"whole": whole, "later": later}
    return {
        name: {"lam": model.primary.__dict__["_lam"], "parameters": parameters(model)} for name, model in models.items()
    }


class Measured(Evaluated):
    """Metrics over the grid."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.auroc = BinaryAUROC()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", self.loss(batch), sync_dist=True)
        self.auroc.update(self(x)[:, 0].sigmoid(), (y[:, 0] > 0).long())
        self.log("auroc", self.auroc)


def evaluated(folder: Path) -> Seen:
    model = make(Measured)
    (table,) = trainer(folder).validate(model, loader(seed=1), verbose=False)
    return {"table": table, "parameters": parameters(model)}


class Unsynchronised(Evaluated):
    """Logs, on each process, the value of its own samples."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))
        self.__dict__.setdefault("_batches", []).append(batch_idx)


def swept(folder: Path) -> Seen:
    model, runner = make(Unsynchronised), trainer(folder)
    runner.validate(model, loader(seed=1), verbose=False)
    model.__dict__["_batches"] = []
    table = mip.sweep(model, runner, 3)
    return {"values": table["val_loss"], "steps": len(model.__dict__["_batches"])}


class Apart(mip.SampleH):
    """Gives each process a part of the range of its own."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.start_batch({"lam": torch.tensor(0.1 + 0.8 * trainer.global_rank)})


class Binned(Watched):
    """Metrics by bins of h, of which each process sees one."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.auroc = mip.PerH(BinaryAUROC(), "lam", mip.Uniform(0, 1), bins=4)
        self.mean = mip.PerH(MeanMetric(), "lam", mip.Uniform(0, 1), bins=4)
        self.never = mip.PerH(MeanMetric(), "lam", mip.Uniform(0, 1), bins=4)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("rank", float(self.global_rank + batch_idx), on_step=False, on_epoch=True, sync_dist=True)
        scores, targets = self(batch[0])[:, 0].detach().sigmoid(), (batch[1][:, 0] > 0).long()
        self.auroc.update(scores, targets, h=self.h)
        self.mean.update(scores, h=self.h)
        self.__dict__.setdefault("_scored", []).append((scores, targets))
        return loss


def binned(folder: Path) -> Seen:
    model = make(Binned, primary=Reporting())
    runner = trainer(folder, max_epochs=1, callbacks=[Apart(), mip.PerHMetrics(bins=4)])
    runner.fit(model, loader(), loader(seed=1))
    scores, targets = map(torch.cat, zip(*model.__dict__["_scored"], strict=True))
    return {"logged": dict(runner.callback_metrics), "scores": scores, "targets": targets}


def main(folder: Path) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.simplefilter("error")
    # Lightning's advice, and its own use of what torch 2.13 deprecates.
    advice = ("The '.*_dataloader' does not have many workers", "Using `DistributedSampler` with the dataloaders")
    advice = (*advice, "It is recommended to use `self.log\\('val_loss")
    for message in (*advice, r"`isinstance\(treespec, LeafSpec\)`"):
        warnings.filterwarnings("ignore", message)
    seen = {
        "plain": train(folder),
        "same": train(folder, callbacks=[mip.SampleH(same_on_all_ranks=True)]),
        "sobol": train(folder, callbacks=[mip.SampleH(strategy="sobol")]),
        "recomputed": train(folder, primary=Recomputing),
        "without theta0": train(folder, hypernet={**SMALL, "residual": False}),
        "heads": train(folder, hypernet={**SMALL, "head": {"first": mip.LowRank(1), "*": mip.Chunked(4, 1)}}),
        "draws": train(folder, draws_per_batch=2),
        "resumed": resumed(folder),
        "evaluated": evaluated(folder),
        "binned": binned(folder),
        "swept": swept(folder),
    }
    rank = torch.distributed.get_rank()
    torch.save(seen, folder / f"rank{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
