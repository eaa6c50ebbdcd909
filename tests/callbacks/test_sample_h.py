"""SampleH: which h each training batch gets."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder, TQDMProgressBar
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

import lightning_mip as mip
from tests.tasks import BATCHES, Evaluated, SaveAt, Task, drawn, loader, make, sequence

Trainers = Callable[..., L.Trainer]


def test_each_batch_has_its_own_h_a_function_of_seed_and_batch_counter(trainer: Trainers) -> None:
    model = make()
    trainer(max_epochs=3).fit(model, loader())
    assert drawn(model) == sequence(model, 3 * BATCHES)
    assert len(set(drawn(model))) == 3 * BATCHES


def test_another_seed_draws_another_sequence(trainer: Trainers) -> None:
    model = make()
    trainer(callbacks=[mip.SampleH(seed=5)]).fit(model, loader())
    assert drawn(model) == sequence(model, 2 * BATCHES, seed=5)
    assert not set(drawn(model)) & set(sequence(model, 2 * BATCHES, seed=0))


@pytest.mark.parametrize("strategy", ["random", "sobol", "stratified"])
def test_each_strategy_draws_its_sequence(trainer: Trainers, strategy: Any) -> None:
    model = make()
    trainer(max_epochs=4, callbacks=[mip.SampleH(strategy=strategy)]).fit(model, loader())
    assert drawn(model) == sequence(model, 4 * BATCHES, strategy=strategy)
    if strategy == "stratified":  # 16 draws visit 16 strata
        assert sorted(int(lam * 16) for lam in drawn(model)) == list(range(16))


@pytest.mark.parametrize(
    ("same", "expected"), [(False, {"rank": 2, "world_size": 3}), (True, {"rank": 0, "world_size": 1})]
)
def test_ranks_draw_different_h_unless_told(same: bool, expected: dict[str, int]) -> None:
    model = make()
    loops = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=7))
    trainer: Any = SimpleNamespace(
        global_rank=2, world_size=3, fit_loop=loops, progress_bar_callback=None, barebones=True
    )
    mip.SampleH(strategy="sobol", same_on_all_ranks=same).on_train_batch_start(trainer, model, next(iter(loader())), 0)
    assert model.h["lam"] == model.space.sample(seed=0, step=7, strategy="sobol", **expected)["lam"]


def test_accumulated_batches_have_an_h_each(trainer: Trainers) -> None:
    model = make()
    trainer(accumulate_grad_batches=2).fit(model, loader())
    assert drawn(model) == sequence(model, 2 * BATCHES)


def test_validation_between_batches_does_not_change_the_draws(trainer: Trainers) -> None:
    model = make(Evaluated)
    trainer(val_check_interval=1).fit(model, loader(), loader(seed=1))
    assert drawn(model) == sequence(model, 2 * BATCHES)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("strategy", ["random", "sobol", "stratified"])
@pytest.mark.parametrize("batches", [BATCHES, BATCHES + 2], ids=["epoch end", "mid-epoch"])
def test_a_resumed_run_draws_what_it_would_have_drawn(
    trainer: Trainers, tmp_path: Path, batches: int, strategy: Any, accumulate: int
) -> None:
    path = tmp_path / "stop.ckpt"
    saving = SaveAt(path, epoch=0) if batches == BATCHES else SaveAt(path, batches=batches)
    models = make(), make()
    for model, callback, ckpt_path in zip(models, [saving, L.Callback()], [None, path], strict=True):
        runner = trainer(
            max_epochs=3, accumulate_grad_batches=accumulate, callbacks=[mip.SampleH(strategy=strategy), callback]
        )
        runner.fit(model, loader(), ckpt_path=ckpt_path)
    uninterrupted, resumed = map(drawn, models)
    # After an interruption within an epoch, Lightning starts that epoch's data anew; the counter goes on all the same.
    expected = sequence(models[0], 5 * BATCHES, strategy=strategy)
    assert uninterrupted == expected[: 3 * BATCHES]
    assert resumed == expected[batches:][: len(resumed)]
    assert len(resumed) >= 3 * BATCHES - batches


def test_between_batches_the_last_h_is_readable_and_after_the_run_the_center_is_back(trainer: Trainers) -> None:
    seen = []

    class Reader(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            seen.append(float(pl_module.h["lam"]))

    model = make()
    trainer(callbacks=[Reader()]).fit(model, loader())
    assert seen == drawn(model)
    assert model.h == {"lam": torch.tensor(0.5)}


class OwnSampler(mip.SampleH):
    """Always the same value."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.start_batch({"lam": torch.tensor(0.125)})


class Silent(Task):
    """Logs nothing."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.__dict__.setdefault("_drawn", []).append(float(self.h["lam"]))
        return self.loss(batch)


class Forgetful(Silent):
    """Optimizes theta0 alone."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.primary.parameters(), 0.1)


class Plain(L.LightningModule):
    """Not hypernetized."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.layer(batch[0]).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_hypernetwork_may_be_frozen(trainer: Trainers) -> None:
    model = make(Forgetful)
    model.hypernet.requires_grad_(False)
    trainer().fit(model, loader())
    assert drawn(model) == sequence(model, 2 * BATCHES)


class Configuring(Task):
    """Brings callbacks of its own."""

    def configure_callbacks(self) -> Any:
        return self.bring(super().configure_callbacks())

    def bring(self, given: Any) -> Any:
        return [*given, mip.SampleH(seed=5)]


class ConfiguringBefore(Configuring):
    def bring(self, given: Any) -> Any:
        return [mip.SampleH(seed=5), *given]


class ConfiguringOne(Configuring):
    def bring(self, given: Any) -> Any:
        return mip.SampleH(seed=5)


class ConfiguringWithoutSuper(Task):
    """Forgets the sampler of its base class."""

    def configure_callbacks(self) -> Any:
        return [L.Callback()]


@pytest.mark.parametrize("kind", [Configuring, ConfiguringBefore, ConfiguringOne])
def test_a_sampler_from_configure_callbacks_is_the_one_that_draws(trainer: Trainers, kind: type[Task]) -> None:
    model, runner = make(kind), trainer()
    runner.fit(model, loader())
    assert drawn(model) == sequence(model, 2 * BATCHES, seed=5)
    assert sum(isinstance(callback, mip.SampleH) for callback in runner.callbacks) == 1


def test_h_is_drawn_when_configure_callbacks_forgets_super(trainer: Trainers) -> None:
    model = make(ConfiguringWithoutSuper)
    trainer().fit(model, loader())
    assert drawn(model) == sequence(model, 2 * BATCHES)


@pytest.mark.parametrize("sampler", [mip.SampleH(seed=5), OwnSampler()], ids=["SampleH", "subclass"])
def test_the_users_sampler_is_not_replaced_and_stays_the_same_object(trainer: Trainers, sampler: mip.SampleH) -> None:
    model = make(Evaluated)
    runner = trainer(callbacks=[sampler])
    runner.fit(model, loader(), loader(seed=1))
    runner.test(model, loader(), verbose=False)
    assert [callback for callback in runner.callbacks if isinstance(callback, mip.SampleH)] == [sampler]
    expected = [0.125] * 2 * BATCHES if isinstance(sampler, OwnSampler) else sequence(model, 2 * BATCHES, seed=5)
    assert drawn(model) == expected


def test_two_fits_with_one_trainer_have_one_sampler(trainer: Trainers) -> None:
    model, runner = make(), trainer()
    runner.fit(model, loader())
    runner.fit_loop.max_epochs = 3
    runner.fit(model, loader())
    assert drawn(model) == sequence(model, 3 * BATCHES)
    assert sum(isinstance(callback, mip.SampleH) for callback in runner.callbacks) == 1


class Tunable(Task):
    """Lets Lightning search for its learning rate."""

    lr = 1e-3

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.__dict__.setdefault("_seen", []).append((self.h["lam"].tolist(), len(batch[0]), self.hypernet.family))
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.lr)


class TunablePerSample(Tunable):
    """With an h for each sample, and a batch size to search for as well."""

    batch_size = 2
    starts = 0

    def on_train_start(self) -> None:
        self.starts += 1

    def loss(self, batch: Any) -> Tensor:
        lam = self.h["lam"]
        assert lam.ndim == 0 or lam.shape == (len(batch[0]),)
        return (lam * (self(batch[0]) - batch[1]).square().mean(1)).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.__dict__.setdefault("_seen", []).append(tuple(self.h["lam"].shape))
        return self.loss(batch)

    def train_dataloader(self) -> Any:
        return loader(batch_size=self.batch_size)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def val_dataloader(self) -> Any:
        return loader(batch_size=3, seed=1)


def test_the_learning_rate_finder_draws_and_leaves_the_sequence_alone(trainer: Trainers) -> None:
    model = make(Tunable)
    finder = LearningRateFinder(num_training_steps=5, min_lr=1e-4, max_lr=1e-3)
    runner = trainer(callbacks=[finder], enable_checkpointing=True)
    runner.fit(model, loader())
    searched = len(drawn(model)) - 2 * BATCHES
    assert searched > 0
    assert drawn(model)[:searched] == sequence(model, searched)
    assert drawn(model)[searched:] == sequence(model, 2 * BATCHES)
    assert {family for _, _, family in model.__dict__["_seen"]} == {"sgd"}
    assert [type(callback) for callback in runner.callbacks].count(mip.SampleH) == 1


def test_a_search_draws_as_often_as_training(trainer: Trainers) -> None:
    model, steps = make(Tunable, draws_per_batch=2), 12
    Tuner(trainer(enable_checkpointing=True)).lr_find(model, loader(64), num_training=steps)
    lams = [model.space.sample(seed=0, step=step, n=2)["lam"].tolist() for step in range(steps)]
    assert [(lam, size) for lam, size, _ in model.__dict__["_seen"]] == [(lam, 2) for pair in lams for lam in pair]


def test_a_search_gives_each_sample_its_own_h(trainer: Trainers) -> None:
    model = make(TunablePerSample, per_sample=True)
    Tuner(trainer(enable_checkpointing=True)).lr_find(model, num_training=8)
    assert model.__dict__.pop("_seen") == [(2,)] * 8
    size = Tuner(trainer(enable_checkpointing=True)).scale_batch_size(model, max_trials=2, steps_per_trial=2)
    assert size == 4
    assert model.__dict__["_seen"] == [(2,)] * 2 + [(4,)] * 2
    assert model.starts == 3
    assert model.h["lam"] == 0.5  # the center again


def test_a_search_sees_to_infinite_losses_itself(trainer: Trainers) -> None:
    class Infinite(Tunable):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * (math.inf if batch_idx == 12 else 1)

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.zero_grad()

    tuner = Tuner(trainer(enable_checkpointing=True))
    found = tuner.lr_find(make(Infinite), loader(128), num_training=16, early_stop_threshold=None)
    assert found is not None
    assert len(found.results["loss"]) == 16
    assert math.isinf(found.results["loss"][12])


class Watched(TQDMProgressBar):
    """A progress bar that remembers what it shows instead of printing."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.shown.append(self.get_metrics(trainer, pl_module))


def test_the_progress_bar_shows_the_current_h(trainer: Trainers, capsys: pytest.CaptureFixture[str]) -> None:
    model, bar = make(), Watched()
    trainer(callbacks=[bar], enable_progress_bar=True).fit(model, loader())
    assert [shown["h/lam"] for shown in bar.shown] == pytest.approx(drawn(model))


def test_h_is_not_sent_to_the_logger(trainer: Trainers, tmp_path: Path) -> None:
    logger = L.pytorch.loggers.CSVLogger(tmp_path)
    trainer(callbacks=[Watched()], enable_progress_bar=True, logger=logger).fit(make(), loader())
    header = Path(logger.experiment.metrics_file_path).read_text().splitlines()[0]
    assert "train_loss" in header
    assert "h/lam" not in header


def test_a_bare_trainer_draws_too(trainer: Trainers) -> None:
    model = make(Silent)
    trainer(barebones=True, logger=None, num_sanity_val_steps=None, log_every_n_steps=None).fit(model, loader())
    assert model.__dict__["_drawn"] == sequence(model, 2 * BATCHES)


def test_a_preference_vector_does_not_disturb_the_progress_bar(trainer: Trainers) -> None:
    class Weighted(Task):
        def loss(self, batch: Any) -> Tensor:
            x, y = batch
            return (self.h["weights"] @ ((self(x) - y) ** 2).mean(0).repeat(2)[:3]).sum()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.loss(batch)

    bar = Watched()
    model = make(Weighted, h={"weights": mip.Simplex(3)})
    trainer(callbacks=[bar], enable_progress_bar=True).fit(model, loader())
    assert all("h/weights" not in shown for shown in bar.shown)


def test_the_sampler_copies_and_holds_no_state(trainer: Trainers) -> None:
    sampler = mip.SampleH(seed=3, strategy="sobol")
    assert vars(copy.deepcopy(sampler)) == vars(sampler)
    assert sampler.state_dict() == {}


class Manual(Task):
    """Steps its optimizer itself."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.automatic_optimization = False


def _tied() -> Any:
    model = make()
    model.decoder = nn.Linear(3, 5)
    model.decoder.weight = model.primary.first.weight
    return model


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (
            lambda trainer: mip.SampleH(strategy="halton"),  # type: ignore[arg-type]
            ValueError,
            "strategy is 'halton', expected one of 'random', 'sobol', 'stratified'.",
        ),
        (
            lambda trainer: trainer(callbacks=[mip.SampleH()]).fit(Plain(), loader()),
            MisconfigurationException,
            "SampleH draws for a HyperLightningModule, but Plain is none; give it to the plug-in instead: Hypernetize("
            "..., sampler=SampleH(...)).",
        ),
        (
            lambda trainer: trainer().fit(make(Forgetful), loader()),
            MisconfigurationException,
            "4 parameters of the hypernetwork are in no optimizer, so they would never be trained; give "
            "self.parameters() to the optimizer, or freeze them by model.hypernet.requires_grad_(False).",
        ),
        (
            lambda trainer: trainer().fit(make(Manual, draws_per_batch=4), loader()),
            MisconfigurationException,
            "draws_per_batch=4 runs training_step on each part of a batch, but that of Manual steps the optimizer "
            "itself (automatic_optimization=False), so each part would be a step of its own; leave draws_per_batch "
            "out, take batches as small as the parts, and step the optimizer after every 4 of them.",
        ),
        (
            lambda trainer: trainer().fit(_tied(), loader()),
            MisconfigurationException,
            "Task uses the weight first.weight of its primary outside of it too, as decoder.weight, where no weight is "
            "generated: one weight would be two. Let the primary hold both, or leave the weight out "
            "(exclude='first.weight').",
        ),
    ],
)
def test_messages(trainer: Trainers, act: Callable[[Any], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        act(trainer)
    assert str(caught.value) == message
