"""What a module holds at each h of a grid is what a module of its own would hold, and stays shared with whom it is."""

from __future__ import annotations

import copy
import pickle
from collections import deque
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MaxMetric, MeanMetric

import lightning_mip as mip
from lightning_mip.contents import Kept, is_kept, reached_from
from tests.tasks import SMALL, Net, Task, loader, make

Trainers = Callable[..., L.Trainer]

GRID = (0.0, 0.5, 1.0)
BATCHES = 4


def at_each(name: str, runner: L.Trainer) -> list[float]:
    return [float(runner.callback_metrics[f"{name}/lam={lam:g}"]) for lam in GRID]


def grid_of_three(kind: type[Any]) -> Any:
    return make(kind, eval_grid=3)


class Weighted(Task):
    """Its loss has a weight in a tensor that is no buffer."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.weight = torch.tensor([2.0, 1.0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return ((self(x) - y) ** 2 * self.weight).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", self.training_step(batch, batch_idx))

    test_step = validation_step


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_training_goes_on_after_an_evaluation_by_itself(trainer: Trainers, stage: str) -> None:
    model = grid_of_three(Weighted)
    weight, data = model.weight, loader()
    getattr(trainer(), stage)(model, data, verbose=False)
    trainer().fit(model, data, data)
    assert model.weight is weight
    assert not weight.is_inference()


class Reading(nn.Module):
    """Reads a value from a dict that it shares with its LightningModule."""

    def __init__(self, config: dict[str, float]) -> None:
        super().__init__()
        self.net, self.config = Net(), config

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.config["temperature"]


class Sharing(L.LightningModule):
    """Knows nothing of h; the dial is in the dict that its network shares."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"temperature": 1.0}
        self.net = Reading(self.config)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return (self.net(x) - y).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert self.net.config["temperature"] == self.config["temperature"]
        self.log("val", self.training_step(batch, batch_idx))
        self.log("temperature", float(self.net.config["temperature"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


@pytest.mark.parametrize("sanity", [0, 2])
def test_a_dial_in_a_shared_dict_reaches_the_network_before_and_after_an_evaluation(
    trainer: Trainers, sanity: int
) -> None:
    module, seen = Sharing(), []
    module.net.register_forward_pre_hook(lambda net, _: seen.append(float(net.config["temperature"])))
    h = {"config.temperature": mip.Uniform(0.5, 2)}
    plugin = mip.Hypernetize("net", h=h, eval_grid=3, hypernet=SMALL)
    runner = trainer(callbacks=[plugin], num_sanity_val_steps=sanity)
    runner.fit(module, loader(), loader())
    assert module.net.config is module.config == {"temperature": 1.0}
    assert len(set(seen)) > 2 * BATCHES
    values = [float(v) for name, v in runner.callback_metrics.items() if name.startswith("temperature/")]
    assert values == [0.5, 1.25, 2.0]


class Accumulating(Task):
    """Writes to all kinds of mutable things, which others share."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.lists: list[float] = []
        self.queue: deque[float] = deque(maxlen=2)
        self.total = torch.zeros(())
        self.names: set[str] = set()
        self.nested: dict[str, Any] = {"seen": [], "pair": ([], 0)}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        lam = float(self.h["lam"])
        self.lists.append(lam)
        self.queue.append(lam)
        self.total += lam
        self.names.add(f"{lam:g}")
        self.nested["seen"].append(lam)
        self.nested["pair"][0].append(lam)

    def on_validation_epoch_end(self) -> None:
        lam = float(self.h["lam"])
        assert self.lists == self.nested["seen"] == self.nested["pair"][0] == [lam] * BATCHES
        assert list(self.queue) == [lam] * 2
        assert self.names == {f"{lam:g}"}
        self.log("total", self.total.clone())


def test_mutable_things_stay_what_they_are_and_hold_what_each_h_has_put_there(trainer: Trainers) -> None:
    model = grid_of_three(Accumulating)
    shared = model.lists, model.queue, model.total, model.names, model.nested["seen"]
    runner = trainer()
    runner.validate(model, loader(), verbose=False)
    assert at_each("total", runner) == [BATCHES * lam for lam in GRID]
    now = model.lists, model.queue, model.total, model.names, model.nested["seen"]
    assert all(one is other for one, other in zip(shared, now, strict=True))
    assert shared[0] == [0.5] * BATCHES
    assert shared[2] == 0.5 * BATCHES


class Best(Task):
    """Keeps the best of all epochs, as a number and as a metric, as people do by hand."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.best, self.largest = float("-inf"), MaxMetric()

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def on_validation_epoch_end(self) -> None:
        lam = float(self.h["lam"])
        now = lam if self.current_epoch else 1 - lam
        self.best = max(self.best, now)
        self.largest.update(now)
        self.log("best", self.best)
        self.log("largest", self.largest.compute())


@pytest.mark.parametrize("sanity", [0, 1])
def test_what_is_kept_from_one_evaluation_to_the_next_is_kept_for_each_h(trainer: Trainers, sanity: int) -> None:
    model = grid_of_three(Best)
    runner = trainer(max_epochs=2, num_sanity_val_steps=sanity)
    runner.fit(model, loader(), loader())
    assert at_each("best", runner) == at_each("largest", runner) == [1.0, 0.5, 1.0]
    assert model.best == float(model.largest.compute()) == 0.5


def test_what_training_sets_anew_begins_anew_at_each_h(trainer: Trainers) -> None:
    class Begun(Best):
        def on_train_epoch_start(self) -> None:
            self.best = float("-inf")
            self.largest.reset()

    model = grid_of_three(Begun)
    runner = trainer(max_epochs=2)
    runner.fit(model, loader(), loader())
    assert at_each("best", runner) == at_each("largest", runner) == list(GRID)


class Gap(Task):
    """Compares what training and validation have measured."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.train_mean, self.val_mean = MeanMetric(), MeanMetric()
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.train_mean.update(3.0)
        self.losses.append(3.0)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.val_mean.update(float(self.h["lam"]))

    def on_validation_epoch_end(self) -> None:
        self.log("gap", self.train_mean.compute() - self.val_mean.compute())
        self.log("losses", float(len(self.losses)))


class AtTheEnd(L.Callback):
    """Reads the metrics of the module where it is told that an epoch has ended."""

    def __init__(self) -> None:
        self.means: list[float] = []

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.means.append(float(pl_module.val_mean.compute()))


def test_evaluation_sees_what_training_has_measured_and_callbacks_what_the_middle_has(trainer: Trainers) -> None:
    model, reader = grid_of_three(Gap), AtTheEnd()
    runner = trainer(max_epochs=2, callbacks=[reader])
    runner.fit(model, loader(), loader())
    assert at_each("gap", runner) == pytest.approx([3 - lam for lam in GRID])
    assert at_each("losses", runner) == [2 * BATCHES] * 3
    assert reader.means == [0.5, 0.5]
    assert float(model.val_mean.compute()) == 0.5
    assert float(model.train_mean.compute()) == 3


def test_what_a_callback_changes_between_hooks_is_changed_at_each_h(trainer: Trainers) -> None:
    class Scheduled(Task):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.config = {"beta": 0.0}

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("beta", self.config["beta"])

    class Schedule(L.Callback):
        def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            pl_module.config["beta"] = 1.0 + trainer.current_epoch

    runner = trainer(max_epochs=2, callbacks=[Schedule()])
    runner.fit(grid_of_three(Scheduled), loader(), loader())
    assert at_each("beta", runner) == [2.0] * 3


def test_what_only_one_h_sets_only_that_h_has(trainer: Trainers) -> None:
    class Setting(Task):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            if self.h["lam"] > 0.5:
                self.hard = True

        def on_validation_epoch_end(self) -> None:
            self.log("hard", float(hasattr(self, "hard")))

    model, runner = grid_of_three(Setting), trainer(max_epochs=2)
    runner.fit(model, loader(), loader())
    assert at_each("hard", runner) == [0.0, 0.0, 1.0]
    assert not hasattr(model, "hard")


def test_a_generator_draws_the_same_at_each_h(trainer: Trainers) -> None:
    class Drawing(Task):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.generator = torch.Generator()

        def on_validation_epoch_start(self) -> None:
            self.generator.manual_seed(0)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("drawn", torch.rand((), generator=self.generator))

    runner = trainer()
    runner.validate(grid_of_three(Drawing), loader(), verbose=False)
    own = torch.Generator().manual_seed(0)
    mean = sum(float(torch.rand((), generator=own)) for _ in range(BATCHES)) / BATCHES
    assert at_each("drawn", runner) == pytest.approx([mean] * 3)


def test_copies_of_a_module_have_no_states_of_an_evaluation(trainer: Trainers) -> None:
    model = grid_of_three(Best)
    runner = trainer(max_epochs=2)
    runner.fit(model, loader(), loader())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        trainer().validate(twin, loader(), verbose=False)
        assert (twin.best, model.best) == (0.5, 0.5)


def written_out(content: Any) -> str:
    return str(content.tolist() if hasattr(content, "tolist") else content)


@pytest.mark.parametrize(
    "thing",
    [
        [1, [2]],
        {"a": 1},
        {1, 2},
        deque([1, 2], maxlen=2),
        torch.tensor([1.0, float("nan")]),
        torch.ones(2).numpy(),
        torch.Generator().manual_seed(3),
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_contents_are_put_back_in_place(thing: Any) -> None:
    assert is_kept(thing)
    kept = Kept(thing)
    before = kept.take()
    assert kept.take() is before
    shown = written_out(before)
    if isinstance(thing, torch.Generator):
        torch.rand(1, generator=thing)
    elif isinstance(thing, (set, dict)):
        thing.clear()
    elif isinstance(thing, (list, deque)):
        thing.append(7)
    else:
        thing += 1
    after = kept.take()
    assert after is not before
    kept.put(before)
    assert written_out(kept.take()) == shown
    kept.put(after)
    assert written_out(kept.take()) != shown


def test_what_is_in_containers_is_reached_once_also_in_circles() -> None:
    inner: list[Any] = [1]
    inner.append(inner)
    outer = {"a": (inner, inner)}
    found = reached_from([outer])
    assert sum(each is inner for each in found) == 1
    assert any(each is outer for each in found)
    long = [[] for _ in range(2000)]
    assert reached_from([long]) == [long]
