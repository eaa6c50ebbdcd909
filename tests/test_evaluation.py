"""Validation and test at every h of a grid, through steps that know nothing of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torchmetrics import MeanMetric, MeanSquaredError, MetricCollection, PearsonCorrCoef
from torchmetrics.classification import BinaryAUROC, BinaryPrecision, BinaryRecall

import lightning_mip as mip
from lightning_mip.evaluation import GridEvaluation
from tests.tasks import BATCHES, Evaluated, Recorder, Task, drawn, loader, make

Trainers = Callable[..., L.Trainer]

GRID = [0.0, 0.25, 0.5, 0.75, 1.0]
HELD_OUT = 10  # in batches of 4, 4 and 2: a mean over batches is not one over samples


def held_out(seed: int = 1) -> Any:
    return loader(HELD_OUT, seed=seed)


def outputs(model: Any, lam: float, data: Any) -> tuple[Tensor, Tensor]:
    """Predictions and targets of all samples at one h, by a plain network."""
    network = mip.materialize(model, lam=lam).eval()
    x, y = data.dataset.tensors
    with torch.no_grad():
        return network(x), y


def loss_by_hand(model: Any, lam: float, data: Any) -> Tensor:
    predicted, y = outputs(model, lam, data)
    error = predicted - y
    return (1 - lam) * (error**2).mean() + lam * error.abs().mean()


def expected(name: str, values: Mapping[float, Any], suffix: str = "") -> dict[str, float]:
    """What is logged for these values by lam: each one, and their mean."""
    numbers = {lam: float(value) for lam, value in values.items()}
    logged = {f"{name}/lam={lam:g}{suffix}": value for lam, value in numbers.items()}
    return {**logged, f"{name}{suffix}": sum(numbers.values()) / len(numbers)}


def logged(trainer: L.Trainer, name: str) -> dict[str, float]:
    return {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith(name)}


def near(values: Mapping[str, float]) -> Any:
    return pytest.approx(dict(values), rel=1e-5, abs=1e-6)


def test_a_logged_value_gets_one_value_per_h_and_the_mean_under_its_own_name(trainer: Trainers) -> None:
    model, data, runner = make(Evaluated), held_out(), trainer()
    runner.fit(model, loader(), data)
    by_hand = {lam: loss_by_hand(model, lam, data) for lam in GRID}
    assert logged(runner, "val_loss") == near(expected("val_loss", by_hand))


def test_validate_and_test_return_the_same_table(trainer: Trainers) -> None:
    model, data = make(Evaluated), held_out()
    by_hand = {lam: loss_by_hand(model, lam, data) for lam in GRID}
    assert trainer().validate(model, data, verbose=False) == [near(expected("val_loss", by_hand))]
    assert trainer().test(model, data, verbose=False) == [near(expected("test_loss", by_hand))]


@pytest.mark.parametrize(
    ("eval_grid", "labels"),
    [
        (1, ["lam=0.5"]),
        (2, ["lam=0", "lam=1"]),
        ([{"lam": 0.1}, {"lam": 0.9}, {"lam": 1 / 3}], ["lam=0.1", "lam=0.9", "lam=0.333333"]),
    ],
)
def test_the_grid_is_a_number_of_points_or_a_list_of_h(trainer: Trainers, eval_grid: Any, labels: list[str]) -> None:
    model, data = make(Evaluated, eval_grid=eval_grid), held_out()
    (table,) = trainer().validate(model, data, verbose=False)
    assert list(table) == [*(f"val_loss/{label}" for label in labels), "val_loss"]


def test_the_grid_may_be_changed_later(trainer: Trainers) -> None:
    model = make(Evaluated)
    model.eval_grid = [{"lam": 0.3}]
    (table,) = trainer().validate(model, held_out(), verbose=False)
    assert list(table) == ["val_loss/lam=0.3", "val_loss"]


def test_several_components_and_kinds_of_priors_are_combined(trainer: Trainers) -> None:
    class Mixed(Task):
        def loss(self, batch: Any) -> Tensor:
            x, y = batch
            return self.h["weights"] @ ((self(x) - y) ** 2).mean(0) * (1 + self.h["kind"])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.loss(batch))

    model = make(Mixed, h={"weights": mip.Simplex(2), "kind": mip.Categorical(2)}, eval_grid=2)
    data = held_out()
    (table,) = trainer().validate(model, data, verbose=False)
    x, y = data.dataset.tensors
    values: dict[str, float] = {}
    for kind in (0, 1):
        for weights, label in ((torch.tensor([0.0, 1.0]), "0:1"), (torch.tensor([1.0, 0.0]), "1:0")):
            with torch.no_grad():
                predicted = mip.materialize(model, kind=kind, weights=weights)(x)
            value = weights @ ((predicted - y) ** 2).mean(0) * (1 + kind)
            values[f"val_loss/kind={kind},weights={label}"] = float(value)
    assert table == near({**values, "val_loss": sum(values.values()) / 4})


def test_the_best_checkpoint_is_chosen_by_the_mean_over_h(trainer: Trainers, tmp_path: Any) -> None:
    class Means(L.Callback):
        def __init__(self) -> None:
            self.means: list[float] = []

        def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
            data = trainer.val_dataloaders
            self.means.append(sum(float(loss_by_hand(pl_module, lam, data)) for lam in GRID) / len(GRID))

    recorder, checkpoint = Means(), ModelCheckpoint(tmp_path, monitor="val_loss", filename="{epoch}")
    model = make(Evaluated, optimizer=lambda parameters: torch.optim.SGD(parameters, 0.3))
    runner = trainer(max_epochs=4, callbacks=[recorder, checkpoint], enable_checkpointing=True)
    runner.fit(model, loader(), held_out())
    assert float(checkpoint.best_model_score) == pytest.approx(min(recorder.means), rel=1e-5)
    assert checkpoint.best_model_path.endswith(f"epoch={recorder.means.index(min(recorder.means))}.ckpt")


@pytest.mark.parametrize("monitor", ["val_loss", "val_loss/lam=0.25"])
def test_early_stopping_watches_the_mean_or_one_h(trainer: Trainers, monitor: str) -> None:
    model = make(Evaluated, optimizer=lambda parameters: torch.optim.SGD(parameters, 0.0))
    runner = trainer(max_epochs=10, callbacks=[EarlyStopping(monitor, patience=2)])
    runner.fit(model, loader(), held_out())
    assert runner.current_epoch == 3  # one to set the mark, two without improvement


def test_a_scheduler_that_watches_a_plateau_watches_the_mean(trainer: Trainers) -> None:
    model = make(
        Evaluated,
        optimizer=lambda parameters: torch.optim.SGD(parameters, 1e-30),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
    )
    runner = trainer(max_epochs=3)
    runner.fit(model, loader(), held_out())
    assert runner.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-32)


def test_several_dataloaders_have_a_table_each(trainer: Trainers) -> None:
    model, data = make(Evaluated), [held_out(1), loader(8, seed=2)]
    tables = trainer().validate(model, data, verbose=False)
    for index, (table, part) in enumerate(zip(tables, data, strict=True)):
        by_hand = {lam: loss_by_hand(model, lam, part) for lam in GRID}
        assert table == near(expected("val_loss", by_hand, f"/dataloader_idx_{index}"))


def test_the_mean_has_double_precision_under_double_precision(trainer: Trainers) -> None:
    model, data = make(Evaluated), held_out()
    (table,) = trainer(precision="64-true").validate(model, data, verbose=False)
    values = [table[f"val_loss/lam={lam:g}"] for lam in GRID]
    assert table["val_loss"] == pytest.approx(sum(values) / len(values), rel=1e-13)


def hits(model: Any, lam: float, data: Any) -> tuple[Tensor, Tensor]:
    predicted, y = outputs(model, lam, data)
    return torch.sigmoid(predicted[:, 0]), (y[:, 0] > 0).long()


class Measured(Evaluated):
    """Uses torchmetrics objects in every way that Lightning's documentation shows."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.auroc = BinaryAUROC()
        self.computed = BinaryAUROC()
        self.forwarded = MeanSquaredError()
        self.several = MetricCollection({"precision": BinaryPrecision(0.45), "recall": BinaryRecall(0.45)})
        self.by_name = nn.ModuleDict({"corr": PearsonCorrCoef()})
        self.late = BinaryAUROC()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y = batch
        predicted = self(x)
        score, target = torch.sigmoid(predicted[:, 0]), (y[:, 0] > 0).long()
        self.auroc.update(score, target)
        self.log("auroc", self.auroc)
        self.computed.update(score, target)
        self.forwarded(predicted, y)
        self.log("mse", self.forwarded, on_step=False, on_epoch=True)
        self.several.update(score, target)
        self.log_dict(self.several)
        self.by_name["corr"].update(score, target.float())
        self.log("corr", self.by_name["corr"])
        self.late.update(score, target)

    def on_validation_epoch_end(self) -> None:
        self.log("computed", self.computed.compute())
        self.computed.reset()
        self.log("late", self.late)


def measures_by_hand(model: Any, data: Any) -> dict[str, float]:
    result = {}
    by_name: dict[str, Callable[[float], Any]] = {
        "auroc": lambda lam: BinaryAUROC()(*hits(model, lam, data)),
        "computed": lambda lam: BinaryAUROC()(*hits(model, lam, data)),
        "late": lambda lam: BinaryAUROC()(*hits(model, lam, data)),
        "mse": lambda lam: nn.functional.mse_loss(*outputs(model, lam, data)),
        "precision": lambda lam: BinaryPrecision(0.45)(*hits(model, lam, data)),
        "recall": lambda lam: BinaryRecall(0.45)(*hits(model, lam, data)),
        "corr": lambda lam: torch.corrcoef(torch.stack([v.float() for v in hits(model, lam, data)]))[0, 1],
    }
    for name, by_hand in by_name.items():
        result |= expected(name, {lam: by_hand(lam) for lam in GRID})
    return result


def test_torchmetrics_objects_are_kept_apart_by_h(trainer: Trainers) -> None:
    model, data, runner = make(Measured), held_out(), trainer()
    assert runner.validate(model, data, verbose=False) == [near(measures_by_hand(model, data))]


def test_metrics_are_reset_between_the_evaluations_of_a_fit(trainer: Trainers) -> None:
    model, data, runner = make(Measured), held_out(), trainer(max_epochs=3, num_sanity_val_steps=2)
    runner.fit(model, loader(), data)
    table = {name: float(value) for name, value in runner.callback_metrics.items() if "train" not in name}
    assert table == near(measures_by_hand(model, data))


def test_the_module_keeps_its_own_metric_objects(trainer: Trainers) -> None:
    model = make(Measured)
    before = {name: id(module) for name, module in model.named_modules()}
    keys = list(model.state_dict())
    trainer().fit(model, loader(), held_out())
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert list(model.state_dict()) == keys


def test_a_metric_used_in_training_too_goes_on_from_there_and_training_keeps_its_own(
    trainer: Trainers,
) -> None:
    class Shared(Evaluated):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.mean = MeanMetric()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.mean.update(float(batch_idx))
            self.log("train_mean", self.mean, on_step=False, on_epoch=True)
            return self.loss(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.mean.update(100 + self.h["lam"])
            self.log("val_mean", self.mean)

    runner = trainer(val_check_interval=0.5)
    runner.fit(make(Shared), loader(), held_out())
    assert logged(runner, "train_mean") == near({"train_mean": (BATCHES - 1) / 2})
    trained, batches = sum(range(BATCHES)), BATCHES + 3
    values = {lam: (trained + 3 * (100 + lam)) / batches for lam in GRID}
    assert logged(runner, "val_mean") == near(expected("val_mean", values))


class Collecting(Evaluated):
    """Collects outputs in a list, as Lightning's documentation shows, and reduces them at the end."""

    reset_in = "on_validation_epoch_end"

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.seen: list[Tensor] = []
        self.count = 0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.seen.append((self(x) - y).abs())
        self.count += len(x)

    def reset(self, where: str) -> None:
        if where == self.reset_in:
            self.seen = []
            self.count = 0

    def on_validation_start(self) -> None:
        self.reset("on_validation_start")

    def on_validation_epoch_start(self) -> None:
        self.reset("on_validation_epoch_start")

    def on_validation_epoch_end(self) -> None:
        self.log("worst", torch.cat(self.seen).max())
        self.log("count", float(self.count))
        self.reset("on_validation_epoch_end")


@pytest.mark.parametrize("where", ["on_validation_epoch_end", "on_validation_epoch_start", "on_validation_start"])
def test_lists_and_counters_are_kept_apart_by_h(trainer: Trainers, where: str) -> None:
    model, data, runner = make(Collecting), held_out(), trainer(max_epochs=3, num_sanity_val_steps=1)
    model.reset_in = where
    runner.fit(model, loader(), data)
    worst = {}
    for lam in GRID:
        predicted, y = outputs(model, lam, data)
        worst[lam] = (predicted - y).abs().max()
    assert logged(runner, "worst") == near(expected("worst", worst))
    assert logged(runner, "count") == near(expected("count", dict.fromkeys(GRID, HELD_OUT)))


class AtBatchEnd(Evaluated):
    """Collects what its step returned in the hook that gets it."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.seen: list[Tensor] = []
        self.started = 0.0

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, y = batch
        return {"error": (self(x) - y).abs()}

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.started += float(self.h["lam"])

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.seen.append(outputs["error"])
        self.log("largest", outputs["error"].max(), reduce_fx="sum")

    def on_validation_epoch_end(self) -> None:
        self.log("worst", torch.cat(self.seen).max())
        self.log("started", self.started)
        self.seen.clear()
        self.started = 0.0


def test_the_hooks_around_a_batch_run_at_each_h_too(trainer: Trainers) -> None:
    model, data, runner = make(AtBatchEnd), held_out(), trainer(max_epochs=2)
    runner.fit(model, loader(), data)
    worst, largest = {}, {}
    for lam in GRID:
        predicted, y = outputs(model, lam, data)
        worst[lam] = (predicted - y).abs().max()
        largest[lam] = sum(part.max() for part in (predicted - y).abs().split(4))
    assert logged(runner, "worst") == near(expected("worst", worst))
    assert logged(runner, "largest") == near(expected("largest", largest))
    assert logged(runner, "started") == near(expected("started", {lam: 3 * lam for lam in GRID}))


def test_a_dict_of_lists_is_kept_apart_by_h(trainer: Trainers) -> None:
    class Nested(Evaluated):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.seen: dict[str, list[float]] = {"lam": []}

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.seen["lam"].append(float(self.h["lam"]))

        def on_validation_epoch_end(self) -> None:
            assert len(set(self.seen["lam"])) == 1
            self.log("batches", float(len(self.seen["lam"])))

    (table,) = trainer().validate(make(Nested), held_out(), verbose=False)
    assert table == near(expected("batches", dict.fromkeys(GRID, 3)))


def test_after_an_evaluation_the_lists_are_those_of_the_middle_of_the_grid(trainer: Trainers) -> None:
    class Keeping(Evaluated):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.kept: list[float] = []

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.kept.append(float(self.h["lam"]))

    model = make(Keeping)
    trainer().validate(model, held_out(), verbose=False)
    assert model.kept == [0.5] * 3


def test_the_outputs_of_all_h_reach_callbacks(trainer: Trainers) -> None:
    class Returning(Evaluated):
        def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
            return {"loss": self.loss(batch), "lam": self.h["lam"]}

    class Reader(L.Callback):
        def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
            assert [float(output["lam"]) for output in outputs] == GRID

    reader = Reader()
    trainer(callbacks=[reader]).validate(make(Returning), held_out(), verbose=False)


def test_a_sub_subclass_that_calls_super_runs_each_step_once_per_h(trainer: Trainers) -> None:
    class More(Evaluated):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.log("more", self.h["lam"])

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.validation_step(batch, batch_idx)

    model, data = make(More), held_out()
    by_hand = {lam: loss_by_hand(model, lam, data) for lam in GRID}
    table = near({**expected("val_loss", by_hand), **expected("more", {lam: lam for lam in GRID})})
    assert trainer().validate(model, data, verbose=False) == [table]
    assert trainer().test(model, data, verbose=False) == [table]


class Validating:
    """A mix-in that is no LightningModule."""

    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))


class WithMixin(Validating, Task):
    """Gets its validation from a mix-in."""


def test_steps_of_a_mixin_run_on_the_grid_too(trainer: Trainers) -> None:
    model, data = make(WithMixin), held_out()
    by_hand = {lam: loss_by_hand(model, lam, data) for lam in GRID}
    assert trainer().validate(model, data, verbose=False) == [near(expected("val_loss", by_hand))]


def test_a_module_without_validation_skips_it(trainer: Trainers) -> None:
    runner = trainer()
    runner.fit(make(Task), loader())
    assert set(runner.callback_metrics) == {"train_loss"}
    with pytest.raises(L.fabric.utilities.exceptions.MisconfigurationException, match="validation_step"):
        trainer().validate(make(Task), held_out(), verbose=False)


@pytest.mark.parametrize(
    "arguments", [{"val_check_interval": 1}, {"num_sanity_val_steps": 2}, {"limit_val_batches": 0}]
)
def test_evaluation_does_not_change_training(trainer: Trainers, arguments: dict[str, Any]) -> None:
    runs = make(Evaluated), make(Evaluated)
    for model, given in zip(runs, [{}, arguments], strict=True):
        trainer(**given).fit(model, loader(), held_out())
    assert drawn(runs[0]) == drawn(runs[1])
    for (name, one), other in zip(runs[0].named_parameters(), runs[1].parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_value_logged_in_steps_and_epochs(trainer: Trainers, tmp_path: Any) -> None:
    class Stepwise(Evaluated):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.loss(batch), on_step=True, on_epoch=True, prog_bar=True, logger=True)

    logger = L.pytorch.loggers.CSVLogger(tmp_path)
    model, data = make(Stepwise), held_out()
    (table,) = trainer(logger=logger).validate(model, data, verbose=False)
    by_hand = {lam: loss_by_hand(model, lam, data) for lam in GRID}
    epoch = {key.replace("val_loss", "val_loss_epoch"): v for key, v in expected("val_loss", by_hand).items()}
    assert len(table) == len(GRID) + 1
    assert sorted(table.values()) == pytest.approx(sorted(epoch.values()), rel=1e-5)


def test_the_progress_bar_shows_the_mean_alone(trainer: Trainers) -> None:
    class Shown(Evaluated):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.loss(batch), prog_bar=True)

    runner = trainer()
    runner.fit(make(Shown), loader(), held_out())
    assert set(runner.progress_bar_metrics) == {"val_loss"}


def test_each_grid_point_is_generated_once_per_evaluation(trainer: Trainers) -> None:
    model = make(Evaluated)
    calls = []
    model.hypernet.register_forward_hook(lambda *_: calls.append(1))
    trainer().validate(model, held_out(), verbose=False)
    assert len(calls) == len(GRID)


@contextmanager
def written(values: list[float], h: Mapping[str, Tensor]) -> Iterator[None]:
    values.append(float(h["lam"]))
    yield
    values.append(-float(h["lam"]))


def test_enter_surrounds_the_hook_at_each_h() -> None:
    model = make(Task)
    values: list[float] = []
    grid = model.space.grid(3)
    evaluation = GridEvaluation(model, model._injector, grid, enter=lambda h: written(values, h))
    assert evaluation.run(lambda: values.append(7)) == [None] * 3
    assert values == [0, 7, 0, 0.5, 7, -0.5, 1, 7, -1]


def test_a_hook_that_fails_leaves_the_module_as_it_was(trainer: Trainers) -> None:
    class Failing(Measured):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            if batch_idx == 1 and self.h["lam"] > 0.6:
                raise KeyError("broken")

    model = make(Failing)
    metric = model.auroc
    with pytest.raises(KeyError, match="broken"):
        trainer().validate(model, held_out(), verbose=False)
    assert model.auroc is metric
    assert "log" not in vars(model)
    assert "weight" not in vars(model.primary.first)
    assert model.h == {"lam": torch.tensor(0.5)}
    assert not model._injector.active


class Several(Evaluated):
    """Logs one name for each sample, with a weight that depends on h."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        for number, error in enumerate((self(x) - y).square().sum(1)):
            self.log("each", error, batch_size=1)
            self.log("weighted", error, batch_size=1 + number * int(self.h["lam"] > 0.5))
            if self.h["lam"] > 0.5 or number:
                self.log("some", error, batch_size=1)


def test_a_name_logged_several_times_in_a_step_has_the_mean_over_h_of_what_each_h_has(trainer: Trainers) -> None:
    model, data = make(Several, eval_grid=2), held_out()
    (table,) = trainer().validate(model, data, verbose=False)
    place = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 1])
    weights = {"each": (torch.ones(10), torch.ones(10)), "weighted": (torch.ones(10), 1.0 + place)}
    weights["some"] = ((place > 0).float(), torch.ones(10))
    by_hand: dict[str, float] = {}
    for name, by_lam in weights.items():
        values = {}
        for lam, weight in zip((0.0, 1.0), by_lam, strict=True):
            predicted, y = outputs(model, lam, data)
            values[lam] = ((predicted - y).square().sum(1) * weight).sum() / weight.sum()
        by_hand |= expected(name, values)
    assert table == near(by_hand)


@pytest.mark.parametrize("reduction", ["max", "min", "sum"])
def test_what_is_reduced_over_batches_is_averaged_over_h_afterwards(trainer: Trainers, reduction: str) -> None:
    class Reduced(Evaluated):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            self.log("val", ((self(x) - y) * (0.2 - self.h["lam"])).mean(), reduce_fx=reduction)

    model, data = make(Reduced), held_out()
    by_hand = {}
    for lam in GRID:
        predicted, y = outputs(model, lam, data)
        parts = torch.stack([part.mean() for part in ((predicted - y) * (0.2 - lam)).split(4)])
        by_hand[lam] = getattr(parts, reduction)()
    assert trainer().validate(model, data, verbose=False) == [near(expected("val", by_hand))]


def test_the_mean_of_a_step_is_logged_step_by_step(trainer: Trainers) -> None:
    class Stepwise(Evaluated):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.loss(batch), on_step=True, on_epoch=True)

    recorder, model = Recorder(), make(Stepwise, eval_grid=2)
    trainer(logger=recorder).validate(model, held_out(), verbose=False)
    steps = [row for row in recorder.logged if any("_step" in name for name in row)]
    assert len(steps) == 3
    for row in steps:
        one, two, mean = (row[f"val_loss{label}_step"] for label in ("/lam=0", "/lam=1", ""))
        assert one != two
        assert mean == pytest.approx((one + two) / 2)


class ByTwoNames(Evaluated):
    """Reaches what it accumulates by another name than the one it fills it by."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.error = MeanSquaredError()
        self.both = MetricCollection({"first": MeanSquaredError()})
        self.several = {"error": self.error, "first": self.both["first"]}
        self.pair: tuple[list[Tensor], list[Tensor]] = ([], [])
        self.predicted, self.targets = self.pair
        self.again = self.error

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        predicted = self(x)
        self.error.update(predicted, y)
        self.both.update(predicted, y)
        self.predicted.append(predicted)
        self.targets.append(y)

    def on_validation_epoch_end(self) -> None:
        for name, metric in self.several.items():
            self.log(name, metric.compute())
        self.log("again", self.again.compute())
        self.log("pair", (torch.cat(self.pair[0]) - torch.cat(self.pair[1])).square().mean())
        self.several["error"].reset()
        self.both.reset()
        for part in self.pair:
            part.clear()


def test_what_has_two_names_is_one_thing_at_each_h(trainer: Trainers) -> None:
    model, data, runner = make(ByTwoNames), held_out(), trainer(max_epochs=2)
    runner.fit(model, loader(), data)
    values = {lam: nn.functional.mse_loss(*outputs(model, lam, data)) for lam in GRID}
    for name in ("error", "first", "again", "pair"):
        assert logged(runner, name) == near(expected(name, values))
    assert model.several["error"] is model.error is model.again
    assert model.pair[0] is model.predicted


def test_a_step_that_writes_to_its_h_changes_its_own_copy(trainer: Trainers) -> None:
    class Writing(Evaluated):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            lam = self.h["lam"]
            lam *= 0.5
            self.log("half", lam)
            self.log("lam", self.h["lam"])

    model, runner = make(Writing), trainer()
    for _ in range(2):
        table = runner.validate(model, held_out(), verbose=False)
        assert table == [near({**expected("half", {v: v / 2 for v in GRID}), **expected("lam", {v: v for v in GRID})})]


def test_gradients_with_respect_to_h_go_through_the_copy() -> None:
    model, lam = make(Task), torch.tensor(0.3, requires_grad=True)
    with model.at(lam=lam):
        (model.h["lam"] ** 2).backward()
    assert float(lam.grad) == pytest.approx(0.6)


class Normalizing(Evaluated):
    """Prepares its batch in place, as transforms of images do."""

    def prepared(self, batch: Any) -> Any:
        x, _ = batch
        x.div_(2)
        return batch

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(self.prepared(batch), batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(self.prepared(batch)[0])


class NormalizingBefore(Evaluated):
    """The same in the hook before the step."""

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        batch[0].div_(2)


def halved() -> Any:
    data = held_out()
    data.dataset.tensors = (data.dataset.tensors[0] / 2, data.dataset.tensors[1])
    return data


@pytest.mark.parametrize("kind", [Normalizing, NormalizingBefore])
def test_what_a_step_does_to_its_batch_it_does_once_at_each_h(trainer: Trainers, kind: type[Evaluated]) -> None:
    model = make(kind)
    by_hand = {lam: loss_by_hand(model, lam, halved()) for lam in GRID}
    assert trainer().validate(model, held_out(), verbose=False) == [near(expected("val_loss", by_hand))]


def test_callbacks_after_the_step_see_what_it_did_to_the_batch_once(trainer: Trainers) -> None:
    class Sees(L.Callback):
        def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
            seen.append(batch[0])

    seen: list[Tensor] = []
    trainer(callbacks=[Sees()]).validate(make(Normalizing), held_out(), verbose=False)
    torch.testing.assert_close(torch.cat(seen), halved().dataset.tensors[0])


def test_a_prediction_on_the_grid_prepares_its_batch_once_at_each_h(trainer: Trainers) -> None:
    model = make(Normalizing, predict_h="grid")
    found = trainer().predict(model, held_out())
    for lam in GRID:
        together = torch.cat([part[f"lam={lam:g}"] for part in found])
        torch.testing.assert_close(together, outputs(model, lam, halved())[0])


def test_choice_and_diagnosis_leave_their_batches_as_they_were() -> None:
    def error(output: Tensor, batch: Any) -> Tensor:
        return (output - batch[1]).square().mean(1)

    class Trains(Normalizing):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.loss(self.prepared(batch))

    model, (batch,) = make(Trains), list(loader(8, 8))
    x, half = batch[0].clone(), batch[0] / 2
    curve = mip.choose(model, [batch], error, "min", grid=3).curve
    report = mip.diagnose(model, [batch], draws=2)
    assert torch.equal(batch[0], x)
    by_hand = [error(mip.materialize(model, lam=lam)(half), batch).mean() for lam in (0, 0.5, 1)]
    torch.testing.assert_close(curve.metrics["error"].float(), torch.stack(by_hand).detach())
    other = mip.diagnose(make(Task), [(half, batch[1])], draws=2)
    assert report.matter.right == pytest.approx(other.matter.right)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda: setattr(make(Evaluated), "eval_grid", [{"lam": 2}]),
            "h['lam'] = 2 is outside the support of its prior Uniform(low=0, high=1, endpoints=0.0).",
        ),
        (
            lambda: make(Evaluated, eval_grid=[{"lam": 0.5}, {"lam": 0.2}, {"lam": 0.5}]),
            "The grid of h has lam=0.5 more than once; metric names would collide. Drop the doubles.",
        ),
        (lambda: make(Evaluated, eval_grid=[]), "The grid of h is empty, expected at least one value."),
        (lambda: make(Evaluated, eval_grid=0), "grid(0): expected at least 1 point."),
        (
            lambda: make(Evaluated, eval_grid=[{"lam": 1.5}]),
            "h['lam'] = 1.5 is outside the support of its prior Uniform(low=0, high=1, endpoints=0.0).",
        ),
        (
            lambda: make(Evaluated, eval_grid=[{"lambda": 0.5}]),
            "h has no component 'lambda'; its components are lam. Did you mean 'lam'?",
        ),
        (
            lambda: make(Evaluated, eval_grid=[{"lam": [0.2, 0.4]}]),
            "eval_grid holds a batch of h, (lam=0.2:0.4); list its values one by one.",
        ),
    ],
)
def test_messages(act: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        act()
    assert str(caught.value) == message


def test_a_large_grid_is_warned_of() -> None:
    message = (
        "eval_grid=11 points per component make 121 values of h, and each evaluation batch is run at all of them; give "
        "a shorter list of h as eval_grid."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        make(Evaluated, h={"a": mip.Uniform(0, 1), "b": mip.Uniform(0, 1)}, eval_grid=11)
