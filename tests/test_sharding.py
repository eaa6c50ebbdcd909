"""Strategies that split parameters over processes are refused before anything is split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import pytorch_lightning as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import nn

import lightning_mip as mip
from tests import processes
from tests.habits import InInit
from tests.tasks import SMALL, Evaluated, loader, make

processes.preload("tests.test_sharding")
pytestmark = pytest.mark.timeout(60)

SUBJECTS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "Evaluated": lambda: (make(Evaluated), mip.SampleH()),
    "InInit": lambda: (InInit(), mip.Hypernetize("net", h={"hparams.lam": mip.Uniform(0, 1)}, **SMALL)),
}
STRATEGIES: dict[str, Callable[[], Any]] = {
    "FSDPStrategy": FSDPStrategy,
    "FSDPStrategy of the other namespace": pl.strategies.FSDPStrategy,
    "FSDPStrategy, a subclass": type("Own", (FSDPStrategy,), {}),
    "ModelParallelStrategy": ModelParallelStrategy,
    # The package it needs is not among those of the tests.
    "DeepSpeedStrategy": type("DeepSpeedStrategy", (), {}),
}


def message(strategy: str, module: str) -> str:
    return (
        f"strategy is {strategy}, which splits or flattens parameters over processes, but {module} is hypernetized: "
        "each process generates weights from whole ones, theta0 and the hypernetwork's. Use strategy='ddp'; where "
        "memory is short, head=LowRank(4), or include= for fewer generated weights."
    )


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_a_strategy_that_splits_parameters_is_refused(subject: str, strategy: str, stage: str) -> None:
    module, callback = SUBJECTS[subject]()
    trainer = SimpleNamespace(strategy=STRATEGIES[strategy](), callbacks=[callback])
    with pytest.raises(MisconfigurationException) as refused:
        callback.setup(trainer, module, stage)
    assert str(refused.value) == message(strategy.partition(" ")[0].rstrip(","), subject)


def fit(folder: Path, subject: str) -> None:
    module, callback = SUBJECTS[subject]()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(
        default_root_dir=folder,
        max_epochs=1,
        accelerator="cpu",
        devices=2,
        strategy=ModelParallelStrategy(),
        callbacks=[callback] if subject == "InInit" else [],
        **quiet,
    )
    with pytest.raises(MisconfigurationException) as refused:
        trainer.fit(module, loader(), loader(seed=1))
    assert str(refused.value) == message("ModelParallelStrategy", subject)
    (folder / f"refused{trainer.global_rank}").touch()


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_trainer_of_two_processes_refuses_it_on_both(tmp_path: Path, subject: str) -> None:
    processes.run(2, fit, tmp_path, subject)
    assert {path.name for path in tmp_path.iterdir()} == {"refused0", "refused1"}


class Tokens(L.LightningModule):
    """Somebody else's module with a sparse embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.lam = 0.5
        self.net = nn.Sequential(nn.Embedding(7, 3, sparse=True), nn.Linear(3, 2))


def tokens(exclude: list[str]) -> dict[str, tuple[Any, Any]]:
    """Both ways in."""
    plugin = mip.Hypernetize("net", h={"lam": mip.Uniform(0, 1)}, exclude=exclude, **SMALL)
    model = make(Evaluated, Tokens().net, exclude=exclude)
    return {"subclass": (model, mip.SampleH()), "plugin": (Tokens(), plugin)}


def set_up(way: str, exclude: list[str], strategy: Any, stage: str) -> None:
    module, callback = tokens(exclude)[way]
    callback.setup(SimpleNamespace(strategy=strategy, callbacks=[callback]), module, stage)


@pytest.mark.parametrize("way", ["subclass", "plugin"])
def test_ddp_with_a_sparse_embedding_is_refused(way: str) -> None:
    ddp = DDPStrategy()
    ddp._launcher = None
    with pytest.raises(MisconfigurationException) as refused:
        set_up(way, [], ddp, "fit")
    assert str(refused.value) == (
        "0.weight is of a sparse embedding, whose gradient DDP expects to be sparse, but it is generated, and "
        "gradients of generated weights are dense; build it with sparse=False, or exclude='0.weight'."
    )
    set_up(way, ["0.weight"], ddp, "fit")
    set_up(way, [], ddp, "validate")
    alone = SingleDeviceStrategy("cpu")
    set_up(way, [], alone, "fit")
