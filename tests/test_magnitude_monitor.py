"""MagnitudeMonitor: norms of generated weights and gradients during training, in every logger."""

from __future__ import annotations

import csv
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

import lightning_mip as mip
from tests.habits import InInit, Manual
from tests.tasks import SMALL, Evaluated, Recorder, Task, loader, make

Trainers = Callable[..., L.Trainer]
NAMES = {f"magnitude/{name}" for name in ("delta", "theta", "theta0", "spread", "power")}
GRADIENTS = {"gradient/theta0", "gradient/hypernet"}


def logged(recorder: Recorder, name: str) -> list[float]:
    return [values[name] for values in recorder.logged if name in values]


def test_a_module_of_ours_logs_norms_at_each_step(trainer: Trainers) -> None:
    recorder = Recorder()
    model = make(Task)
    trainer(callbacks=[mip.MagnitudeMonitor()], logger=recorder, max_epochs=1).fit(model, loader())
    assert all(len(logged(recorder, name)) == 4 for name in NAMES | GRADIENTS)
    with torch.no_grad():
        deltas = [model.hypernet(h) for h in model.space.grid(5)]
    norms = [math.sqrt(sum(float(delta.norm()) ** 2 for delta in each.values())) for each in deltas]
    assert logged(recorder, "magnitude/delta")[-1] == pytest.approx(sum(norms) / 5, rel=1e-5)
    theta0 = math.sqrt(sum(float(p.detach().norm()) ** 2 for p in model.primary.parameters()))
    assert logged(recorder, "magnitude/theta0")[-1] == pytest.approx(theta0, rel=1e-5)


def test_gradients_are_those_of_the_step(trainer: Trainers) -> None:
    recorder = Recorder()
    # At its default learning rate, of 1e-3; and with nothing of the head changed to match it.
    model = make(Task, optimizer=torch.optim.SGD, hypernet={**SMALL, "scale": "paper"})
    before = [p.detach().clone() for p in model.hypernet.parameters()]
    runner = trainer(callbacks=[mip.MagnitudeMonitor()], logger=recorder, max_epochs=1, limit_train_batches=1)
    runner.fit(model, loader())
    moved = [(now.detach() - then) / 1e-3 for now, then in zip(model.hypernet.parameters(), before, strict=True)]
    expected = math.sqrt(sum(float(m.norm()) ** 2 for m in moved))
    assert logged(recorder, "gradient/hypernet")[0] == pytest.approx(expected, rel=1e-3)


def test_a_module_with_the_plugin_logs_the_same(trainer: Trainers) -> None:
    recorder = Recorder()
    plugin = mip.Hypernetize("net", h={"hparams.lam": mip.Uniform(0, 1)}, eval_grid=2, **SMALL)
    trainer(callbacks=[plugin, mip.MagnitudeMonitor()], logger=recorder).fit(InInit(), loader(), loader())
    assert set().union(*recorder.logged) >= NAMES | GRADIENTS | {"train_loss"}


@pytest.mark.filterwarnings("ignore:.*was not a")
def test_steps_that_a_module_takes_itself_are_seen(trainer: Trainers) -> None:
    recorder = Recorder()
    plugin = mip.Hypernetize("net", h={"lam": mip.Uniform(0, 1)}, eval_grid=2, **SMALL)
    trainer(callbacks=[plugin, mip.MagnitudeMonitor()], logger=recorder, max_epochs=1).fit(Manual(), loader(), loader())
    assert logged(recorder, "magnitude/spread")


def test_it_looks_as_often_as_the_trainer_logs_or_as_it_is_told(trainer: Trainers) -> None:
    for every, log, expected in ((None, 1, 4), (None, 2, 2), (4, 2, 1), (2, 1, 2)):
        recorder = Recorder()
        monitor = mip.MagnitudeMonitor(every_n_steps=every)
        runner = trainer(callbacks=[monitor], logger=recorder, log_every_n_steps=log, max_epochs=1)
        runner.fit(make(Task), loader())
        # A value stands in the logs until there is another.
        assert len(set(logged(recorder, "magnitude/delta"))) == expected, (every, log)


def test_accumulated_batches_are_one_step(trainer: Trainers) -> None:
    recorder = Recorder()
    runner = trainer(callbacks=[mip.MagnitudeMonitor()], logger=recorder, accumulate_grad_batches=2, max_epochs=1)
    runner.fit(make(Task), loader())
    assert len(logged(recorder, "magnitude/delta")) == 2
    assert len(logged(recorder, "gradient/hypernet")) == 2


def test_each_tensor_can_be_logged(trainer: Trainers) -> None:
    recorder = Recorder()
    runner = trainer(callbacks=[mip.MagnitudeMonitor(per_tensor=True)], logger=recorder, max_epochs=1)
    runner.fit(make(Task), loader())
    assert {"magnitude/delta/first.weight", "magnitude/spread/last.bias"} <= set().union(*recorder.logged)


def test_a_hypernetwork_that_does_nothing_has_no_spread(trainer: Trainers) -> None:
    recorder = Recorder()
    model = make(Task, hypernet={**SMALL, "init": "zero"})
    model.hypernet.requires_grad_(False)
    trainer(callbacks=[mip.MagnitudeMonitor()], logger=recorder, max_epochs=1).fit(model, loader())
    assert set(logged(recorder, "magnitude/spread")) == {0.0}
    assert not logged(recorder, "magnitude/power")
    assert not logged(recorder, "gradient/hypernet")


def test_training_is_the_same_with_it(trainer: Trainers) -> None:
    models = [make(Task), make(Task)]
    for model, callbacks in zip(models, ([], [mip.MagnitudeMonitor()]), strict=True):
        torch.manual_seed(0)
        trainer(callbacks=callbacks).fit(model, loader())
    for (name, one), two in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, two), name


def test_csv_files_hold_keys_with_equals_signs_and_commas(trainer: Trainers, tmp_path: Path) -> None:
    h = {"lam": mip.Uniform(0, 1), "phi": mip.LogUniform(0.1, 10)}
    model = make(Evaluated, h=h, eval_grid=2)
    callbacks = [mip.MagnitudeMonitor(), mip.PerHMetrics(bins=2)]
    trainer(callbacks=callbacks, logger=CSVLogger(tmp_path)).fit(model, loader(), loader(seed=1))
    with next(tmp_path.glob("**/metrics.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    written = {name for row in rows for name, value in row.items() if value}
    labels = {f"val_loss/{model.space.label(h)}" for h in model.space.grid(2)}
    assert "val_loss/lam=0,phi=0.1" in labels
    assert written >= labels | NAMES | GRADIENTS | {"train_loss/lam=0..0.5"}
    means = [float(row["val_loss"]) for row in rows if row["val_loss"]]
    each = [[float(row[label]) for label in labels] for row in rows if row["val_loss"]]
    assert means == pytest.approx([sum(values) / 4 for values in each], rel=1e-5)


def test_tensorboard_gets_the_figure_and_the_scalars(trainer: Trainers, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoardLogger(tmp_path)
    trainer(callbacks=[mip.MagnitudeMonitor()], logger=board).fit(make(Evaluated, eval_grid=2), loader(), loader())
    events = EventAccumulator(board.log_dir)
    events.Reload()
    assert set(events.Tags()["scalars"]) >= NAMES | {"val_loss/lam=0"}
    assert events.Tags()["images"] == ["magnitude"]
    assert events.Images("magnitude")[0].step == 8


def test_without_matplotlib_there_is_no_figure(
    trainer: Trainers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightning_mip.magnitude_figure", None)
    text = "MagnitudeMonitor draws no figure, which needs matplotlib: pip install 'lightning-mip[plot]'."
    runner = trainer(callbacks=[mip.MagnitudeMonitor()], logger=TensorBoardLogger(tmp_path))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runner.fit(make(Task), loader())
    assert [str(warning.message) for warning in caught if "figure" in str(warning.message)] == [text]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps is 0, expected at least 1."),
        ({"points": 0}, "points is 0, expected at least 1."),
    ],
)
def test_messages(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        mip.MagnitudeMonitor(**arguments)
    assert str(caught.value) == message


def test_values_that_no_logger_would_get_are_worth_a_warning(trainer: Trainers) -> None:
    runner = trainer(callbacks=[mip.MagnitudeMonitor(every_n_steps=3)], logger=Recorder(), log_every_n_steps=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runner.fit(make(Task), loader())
    (text,) = [str(warning.message) for warning in caught if "every_n_steps" in str(warning.message)]
    assert text == (
        "every_n_steps is 3, but the Trainer writes to its loggers every 2 steps, so most values are lost; use a "
        "multiple of it, or Trainer(log_every_n_steps=3)."
    )
