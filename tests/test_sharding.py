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
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

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
