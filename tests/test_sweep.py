"""Evaluation at every h of a grid, after training."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torchmetrics import MeanSquaredError

import lightning_mip as mip
from lightning_mip.hypernetwork import HyperNetwork
from lightning_mip.sweep import grid_points
from tests.module_kinds import exactly
from tests.tasks import BATCHES, SMALL, Data, Evaluated, Net, Recorder, loader, make

Make = Callable[..., L.Trainer]


def exact(model: Any, seed: int, points: Any) -> Tensor:
    """The loss of `Evaluated` over all samples, by networks that are taken out."""
    x, y = loader(seed=seed).dataset.tensors
    values = []
    for h in points:
        lam = float(h["lam"])
        with torch.no_grad():
            error = mip.materialize(model, h)(x) - y
        values.append((1 - lam) * error.square().mean() + lam * error.abs().mean())
    return torch.stack(values)


def test_every_metric_is_that_of_the_network_for_its_h(trainer: Make) -> None:
    model, own = make(Evaluated), trainer()
    own.fit(model, loader(), loader(seed=1))
    table = mip.sweep(model, own)
    assert list(table.metrics) == ["val_loss"]
    assert table.columns()["lam"] == pytest.approx([k / 20 for k in range(21)])
    torch.testing.assert_close(table["val_loss"], exact(model, 1, table.h))


@pytest.mark.parametrize("source", ["loader", "loaders", "data module", "trainer with data module"])
def test_data_come_from_loaders_from_data_modules_or_from_the_trainer(trainer: Make, source: str) -> None:
    model, own = make(Evaluated), trainer(max_epochs=1)
    own.fit(model, datamodule=Data())
    sources = {
        "loader": loader(seed=1),
        "loaders": [loader(seed=1), loader(seed=2)],
        "data module": Data(),
        "trainer with data module": own,
    }
    table = mip.sweep(model, sources[source], 3)
    name = "val_loss/dataloader_idx_0" if source == "loaders" else "val_loss"
    torch.testing.assert_close(table[name], exact(model, 1, table.h))
    if source == "loaders":
        torch.testing.assert_close(table["val_loss/dataloader_idx_1"], exact(model, 2, table.h))
    assert model.trainer is own


def test_the_test_stage_has_its_own_step_and_data(trainer: Make) -> None:
    model, own = make(Evaluated), trainer(max_epochs=1)
    own.fit(model, datamodule=Data())
    table = mip.sweep(model, own, 3, stage="test")
    torch.testing.assert_close(table["test_loss"], exact(model, 2, table.h))


def test_a_grid_names_points_values_or_all_of_h() -> None:
    model = make(Evaluated, h={"lam": mip.Uniform(0, 1), "phi": mip.LogUniform(0.01, 1)})
    grids: list[tuple[Any, list[str]]] = [
        (2, ["lam=0,phi=0.01", "lam=0,phi=1", "lam=1,phi=0.01", "lam=1,phi=1"]),
        ({"lam": 2}, ["lam=0,phi=0.1", "lam=1,phi=0.1"]),
        ({"lam": [0.2], "phi": torch.tensor([0.5, 1])}, ["lam=0.2,phi=0.5", "lam=0.2,phi=1"]),
        ([{"lam": 0.3, "phi": 0.2}], ["lam=0.3,phi=0.2"]),
    ]
    for grid, labels in grids:
        assert mip.sweep(model, loader(seed=1), grid).labels == labels


@pytest.mark.parametrize(
    ("grid", "error", "message"),
    [
        ({"lma": 2}, ValueError, "grid: h has no component 'lma'; its components are lam. Did you mean 'lam'?"),
        ({"lam": 0.3}, TypeError, "grid['lam'] is 0.3, expected a number of points or a list of values."),
        (
            {"lam": [2]},
            ValueError,
            "h['lam'] = 2 is outside the support of its prior Uniform(low=0, high=1, endpoints=0.0).",
        ),
        (
            {"lam": 200_000},
            ValueError,
            "grid(200000): expected at most 100000 points.",
        ),
        (
            0.5,
            TypeError,
            "grid is 0.5, expected a number of points, component -> number of points or list of values, or a list of "
            "mappings.",
        ),
        (
            [{"lam": 1}, {"lam": 1}],
            ValueError,
            "The grid of h has lam=1 more than once; metric names would collide. Drop the doubles.",
        ),
    ],
)
def test_a_grid_that_is_none_is_refused(grid: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=exactly(message)):
        mip.sweep(make(Evaluated), loader(), grid)


def test_a_grid_finer_than_names_is_refused() -> None:
    message = "The grid of h has lam=100 more than once; metric names would collide. Drop the doubles."
    with pytest.raises(ValueError, match=exactly(message)):
        grid_points(mip.HSpace({"lam": mip.Uniform(100, 101)}), 5000)


def test_many_points_of_several_components_are_refused() -> None:
    space = mip.HSpace({"lam": mip.Uniform(0, 1), "phi": mip.Uniform(0, 1)})
    message = "grid={'lam': 400, 'phi': 400} has 160000 points, expected at most 100000; give fewer per component."
    with pytest.raises(ValueError, match=exactly(message)):
        grid_points(space, {"lam": 400, "phi": 400})


class Counting(HyperNetwork):
    """Counts its forwards."""

    calls = 0

    def forward(self, h: Any) -> Any:
        Counting.calls += 1
        return super().forward(h)


@pytest.mark.parametrize("kept", [2**30, 1])
def test_weights_are_generated_once_per_h_however_many_batches_there_are(
    kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sweep", "evaluation"):
        monkeypatch.setattr(sys.modules[f"lightning_mip.{name}"], "KEEP_BYTES", kept)
    model = make(Evaluated, hypernet=lambda space, shapes: Counting(space, shapes, **SMALL))
    Counting.calls = 0
    table = mip.sweep(model, loader(seed=1), 5)
    assert Counting.calls == 5
    torch.testing.assert_close(table["val_loss"], exact(model, 1, table.h))


class Measured(Evaluated):
    """Logs a torchmetrics object, and a name with a slash."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.error = MeanSquaredError()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.error(self(x), y)
        self.log("val/mse", self.error)


def test_metrics_are_found_whatever_their_names_and_kinds() -> None:
    model = make(Measured)
    table = mip.sweep(model, loader(seed=1), 3)
    x, y = loader(seed=1).dataset.tensors
    with torch.no_grad():
        expected = [(mip.materialize(model, h)(x) - y).square().mean() for h in table.h]
    torch.testing.assert_close(table["val/mse"], torch.stack(expected))


def test_module_and_trainer_are_left_as_they_were(trainer: Make) -> None:
    recorder = Recorder()
    model, own = make(Evaluated, eval_grid=3), trainer(logger=recorder)
    own.fit(model, loader(), loader(seed=1))
    before = len(recorder.logged)
    mip.sweep(model, own)
    assert len(recorder.logged) == before
    assert model.eval_grid == 3
    assert model.training
    own.validate(model, loader(seed=1), verbose=False)
    assert {"val_loss", "val_loss/lam=0", "val_loss/lam=0.5", "val_loss/lam=1"} == set(own.callback_metrics)
    assert len(recorder.logged) == before + 1


def test_a_checkpoint_is_evaluated_in_place_of_the_weights(trainer: Make, tmp_path: Path) -> None:
    trained, own = make(Evaluated), trainer()
    own.fit(trained, loader(), loader(seed=1))
    own.save_checkpoint(tmp_path / "last.ckpt")
    table = mip.sweep(make(Evaluated), loader(seed=1), 3, ckpt_path=tmp_path / "last.ckpt")
    torch.testing.assert_close(table["val_loss"], exact(trained, 1, table.h))


class Plain(L.LightningModule):
    """Somebody's module, with a penalty that is read in each step."""

    def __init__(self, lam: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = Net()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self.net(batch[0]) - batch[1]).square().mean() + self.hparams.lam * self.net.last.weight.square().sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_penalty", self.hparams.lam)
        self.log("val_mse", (self.net(batch[0]) - batch[1]).square().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-2)


def plugged(trainer: Make) -> tuple[Plain, L.Trainer]:
    plugin = mip.Hypernetize("net", {"hparams.lam": mip.Uniform(0, 1)}, eval="center", hidden_sizes=(4,))
    model, own = Plain(), trainer(callbacks=[plugin])
    own.fit(model, loader(), loader(seed=1))
    return model, own


@pytest.mark.parametrize("source", ["trainer", "loader"])
def test_the_plug_in_sweeps_a_module_that_knows_nothing_of_it(trainer: Make, source: str) -> None:
    model, own = plugged(trainer)
    table = mip.sweep(model, own if source == "trainer" else loader(seed=1), 3)
    assert table["val_penalty"].tolist() == [0, 0.5, 1]
    x, y = loader(seed=1).dataset.tensors
    with torch.no_grad():
        expected = [(mip.materialize(model, h)(x) - y).square().mean() for h in table.h]
    torch.testing.assert_close(table["val_mse"], torch.stack(expected))
    assert model.hparams.lam == 0.1
    own.validate(model, loader(seed=1), verbose=False)
    assert set(own.callback_metrics) == {"val_mse", "val_penalty"}


def test_the_figure_goes_to_tensorboard(trainer: Make, tmp_path: Path) -> None:
    model, own = make(Evaluated), trainer(max_epochs=1, logger=TensorBoardLogger(tmp_path))
    own.fit(model, loader(), loader(seed=1))
    mip.sweep(model, own, 3)
    own.logger.finalize("success")
    written = EventAccumulator(own.logger.log_dir).Reload()
    assert written.Tags()["images"] == ["sweep"]
    assert len(written.Scalars("val_loss/lam=0.5")) == 1  # of training, on the module's own grid


class Silent(Evaluated):
    """Logs nothing."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.loss(batch)


def taken_from_batch() -> Any:
    return make(Evaluated, h_from_batch=lambda batch: {"lam": 0.5})


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (
            lambda: nn.Linear(1, 1),
            TypeError,
            "model is a Linear, expected a LightningModule whose validation_step logs metrics; for a plain network use "
            "mip.choose with a function as metric, or `with mip.at(network, h):`.",
        ),
        (
            Plain,
            ValueError,
            "Plain is no HyperLightningModule, and its Trainer has no Hypernetize among its callbacks; pass the "
            "Trainer that trained it, or one with the same Hypernetize.",
        ),
        (
            taken_from_batch,
            ValueError,
            "Evaluated takes h from its batches (h_from_batch), so there is none to sweep; evaluate one batch at other "
            "values inside `with model.at(h):`.",
        ),
        (
            lambda: make(Silent),
            ValueError,
            "validation_step of Silent logs nothing at an h, so there is no table; self.log in it.",
        ),
    ],
)
def test_what_cannot_be_swept_is_refused(model: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=exactly(message)):
        mip.sweep(model(), loader(seed=1), 2)


@pytest.mark.parametrize(
    ("arguments", "stage", "message"),
    [
        (
            {"limit_val_batches": 0},
            "validate",
            "The Trainer has limit_val_batches=0, so it evaluates no batch; pass dataloaders instead of it.",
        ),
        (
            {"limit_test_batches": 0},
            "test",
            "The Trainer has limit_test_batches=0, so it evaluates no batch; pass dataloaders instead of it.",
        ),
        (
            {"barebones": True, "logger": None, "num_sanity_val_steps": None, "log_every_n_steps": None},
            "validate",
            "The Trainer is barebones=True, so it keeps nothing that a step logs; pass dataloaders instead of it.",
        ),
    ],
)
def test_a_trainer_that_evaluates_nothing_is_refused(
    trainer: Make, arguments: dict[str, Any], stage: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        mip.sweep(make(Evaluated), trainer(**arguments), 2, stage=stage)


# What Lightning does is ignored by module in the settings, which pytest.warns does not keep.
@pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated")
@pytest.mark.parametrize(
    ("arguments", "stage", "message"),
    [
        (
            {"limit_val_batches": 3},
            "validate",
            "The table is of 3 batches, as the Trainer has limit_val_batches=3; pass dataloaders instead of it for "
            "all.",
        ),
        (
            {"limit_test_batches": 0.5},
            "test",
            "The table is of 2 batches, as the Trainer has limit_test_batches=0.5; pass dataloaders instead of it for "
            "all.",
        ),
        (
            {"fast_dev_run": 1},
            "validate",
            "The table is of 1 batch, as the Trainer has fast_dev_run=True; pass dataloaders instead of it for all.",
        ),
        ({"limit_val_batches": BATCHES}, "validate", None),
        ({"limit_val_batches": BATCHES + 1}, "validate", None),
        ({"limit_val_batches": 1.0}, "validate", None),
    ],
)
def test_a_table_of_a_part_of_the_data_says_so(
    trainer: Make, arguments: dict[str, Any], stage: Any, message: str | None
) -> None:
    model, runner = make(Evaluated), trainer(max_epochs=1, **arguments)
    runner.fit(model, datamodule=Data())
    if message is None:
        mip.sweep(model, runner, 2, stage=stage)
        return
    with pytest.warns(UserWarning, match=exactly(message)) as caught:
        mip.sweep(model, runner, 2, stage=stage)
    assert __file__ in [each.filename for each in caught if str(each.message) == message]


@pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated")
def test_a_table_of_a_stream_says_where_it_was_cut_off(trainer: Make) -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(loader(seed=1).dataset)  # type: ignore[call-overload]

    model, runner = make(Evaluated), trainer(max_epochs=1, limit_val_batches=BATCHES)
    runner.fit(model, loader(), torch.utils.data.DataLoader(Stream(), 4))
    with pytest.warns(UserWarning, match=f"The table is of {BATCHES} batches"):
        mip.sweep(model, runner, 2)


def test_stages_and_strategies_that_do_not_fit_are_refused(trainer: Make) -> None:
    with pytest.raises(ValueError, match=exactly("stage is 'fit', expected 'validate' or 'test'.")):
        mip.sweep(make(Evaluated), loader(), stage="fit")  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spawning = trainer(strategy="ddp_spawn", devices=2)
    with pytest.raises(
        ValueError,
        match=exactly(
            "The Trainer's strategy spawns or forks its processes, of which one alone brings its metrics back; use "
            "strategy='ddp', or pass dataloaders instead of the Trainer."
        ),
    ):
        mip.sweep(make(Evaluated), spawning)
