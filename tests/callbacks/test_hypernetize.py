"""Hypernetize: a callback that makes hyperparameters of somebody else's LightningModule dials."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import logging
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar
from unittest import mock

import lightning as L
import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning.fabric.utilities.data import AttributeDict
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn

import lightning_mip as mip
from lightning_mip.cli import main
from tests import habits
from tests.habits import HABITS, LAM, Habit, penalised
from tests.module_kinds import exactly
from tests.tasks import BATCHES, SMALL, Evaluated, Net, SaveAt, loader, make

# What Lightning does is ignored by module in the settings, which pytest.warns and other namespaces do not keep.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated"),
    pytest.mark.filterwarnings("ignore:The optimizer trains parts of the network at rates of their own"),  # as some do
]

Trainers = Callable[..., Any]

LAMS = [0.0, 0.5, 1.0]
EPOCHS = 2


def plugin(habit: Habit = HABITS["network in __init__"], /, **arguments: Any) -> mip.Hypernetize:
    """The callback for a habit: its hyperparameter on [0, 1], evaluated at three values."""
    defaults = {"target": habit.target, "h": {habit.path: mip.Uniform(0, 1)}, "eval_grid": 3, **SMALL}
    return mip.Hypernetize(**{**defaults, **arguments})


def sequence(batches: int, **arguments: Any) -> list[float]:
    """The values of the hyperparameter that a run has to draw."""
    space = mip.HSpace({"hparams.lam": mip.Uniform(0, 1)})
    return [float(space.sample(**{"seed": 0, **arguments}, step=step)["hparams.lam"]) for step in range(batches)]


class Seen(habits.InInit):
    """Remembers the value of its hyperparameter in each training step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.__dict__.setdefault("seen", []).append(self.hparams.lam)
        return super().training_step(batch, batch_idx)


def drawn(module: Any) -> Any:
    """The values that the training steps of a `Seen` saw; those of the look at the first batch are put back."""
    return pytest.approx(module.__dict__.get("seen", []), rel=1e-6)


class Start(L.Callback):
    """Remembers the parameters that training starts from."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.parameters = {name: p.detach().clone() for name, p in pl_module.named_parameters()}


def outputs(habit: Habit, module: Any, lam: float, data: Any) -> tuple[Tensor, Tensor]:
    """Predictions and targets of all samples at one h, by a plain network."""
    x, y = data.dataset.tensors
    with torch.no_grad():
        return habit.apply(module, mip.materialize(module, {habit.path: lam}).eval(), x), y


def by_hand(habit: Habit, module: Any, lams: list[float] = LAMS) -> dict[str, float]:
    """What validation has to log: one value for each h, and the mean under the plain name."""
    expected = {}
    for index, data in enumerate(habit.data()):
        suffix = f"/dataloader_idx_{index}" if habit.loaders > 1 else ""
        for name, measure in habit.measures.items():
            values = [float(measure(*outputs(habit, module, lam, data), lam)) for lam in lams]
            for lam, value in zip(lams, values, strict=True):
                expected[f"{name}/{habit.path}={lam:g}{suffix}"] = value
            expected[f"{name}{suffix}"] = sum(values) / len(values)
    return expected


def logged(trainer: Any, names: Any) -> dict[str, float]:
    return {key: float(value) for key, value in trainer.callback_metrics.items() if key in names}


def near(values: Mapping[str, float]) -> Any:
    return pytest.approx(dict(values), rel=1e-4, abs=1e-5)


def assert_clean(module: Any, network: nn.Module) -> None:
    """Nothing of the plug-in is in the module but the hypernetwork: no hook, no generated weight, the center of h."""
    assert not {"log", "print", "configure_model", "validation_step", "test_step"} & set(vars(module))
    assert not any(name in vars(child) for child in network.modules() for name in child._parameters)


def parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def assert_equal(one: Any, other: Any) -> None:
    one, other = (parameters(each) if isinstance(each, nn.Module) else each for each in (one, other))
    assert list(one) == list(other)
    for name, parameter in one.items():
        assert torch.equal(parameter, other[name]), name


# --- Modules of any habit, of both namespaces


def _habits_of(namespace: ModuleType) -> dict[str, Habit]:
    """The same modules, written by somebody who imports ``namespace`` for ``lightning``."""
    spec = importlib.util.spec_from_file_location(f"tests.habits_{namespace.__name__}", habits.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {"lightning": namespace, spec.name: module}):
        spec.loader.exec_module(module)
    assert issubclass(module.InInit, namespace.LightningModule)
    return module.HABITS


@pytest.fixture(params=["lightning", "pytorch_lightning"])
def namespace(request: pytest.FixtureRequest, trainer: Trainers) -> tuple[dict[str, Habit], Trainers]:
    """The table of habits and the Trainers of each namespace."""
    if request.param == "lightning":
        return HABITS, trainer
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)

    def foreign(**arguments: Any) -> Any:
        with mock.patch.object(L, "Trainer", pytorch_lightning.Trainer):
            return trainer(**arguments)

    return _habits_of(pytorch_lightning), foreign


@pytest.mark.parametrize("name", HABITS)
def test_a_module_of_any_habit(namespace: tuple[dict[str, Habit], Trainers], tmp_path: Path, name: str) -> None:
    table, trainer = namespace
    habit = table[name]
    module = habit.make()
    original = habit.value(module)
    callback, start = plugin(habit), Start()
    runner = trainer(max_epochs=1, callbacks=[callback, start])
    runner.fit(module, loader(), habit.data() or None)
    target = callback.state_dict()["target"]
    network = module.get_submodule(target)

    # Hypernetwork and theta0 are trained.
    trained = {key for key, p in module.named_parameters() if not torch.equal(p, start.parameters[key])}
    own = f"{target}." if target else ""
    assert {key for key in start.parameters if key.startswith(("hypernet.", own))} <= trained

    # Validation has logged every h, and the mean.
    expected = by_hand(habit, module)
    assert logged(runner, expected) == near(expected)

    # The module is as it was.
    assert habit.value(module) is original
    assert_clean(module, network)

    # One h is a checkpoint that the class itself loads.
    path = tmp_path / "plain.ckpt"
    mip.Hypernetize.export(runner, {habit.path: 0.7}, path)
    checkpoint = torch.load(path, weights_only=True)
    loaded = habit.load(type(module), path)
    x = loader().dataset.tensors[0]
    plain = mip.materialize(module, {habit.path: 0.7})
    assert torch.equal(habit.apply(module, plain, x), habit.apply(loaded, loaded.get_submodule(target), x))
    saved = checkpoint["hyper_parameters"]
    for key in habit.saved:
        saved = saved[key]
    assert not habit.saved or saved == 0.7


# --- Training


def trained_by_hand(
    module: Any,
    *,
    accumulate: int = 1,
    clip: Callable[[Any], Any] = lambda parameters: None,
    dtype: torch.dtype = torch.float32,
    autocast: bool = False,
    path: str = "hparams.lam",
) -> Any:
    """Train a copy of an `InInit` by a plain loop: h of each batch from the space, the loss inside ``mip.at``."""
    module = copy.deepcopy(module)
    torch.manual_seed(1)
    module.hypernet = mip.hypernetize(module.net, {path: mip.Uniform(0, 1)}, **SMALL)
    module.to(dtype)
    optimizer = module.configure_optimizers()
    step = 0
    for _ in range(EPOCHS):
        for batch in loader():
            h = module.hypernet.space.sample(seed=0, step=step)
            with mip.at(module.net, h):
                x, y = (part.to(dtype) for part in batch)
                with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
                    loss = penalised(module.net(x), y, float(str(h[path].numpy())))
                (loss / accumulate).backward()
            step += 1
            if step % accumulate == 0:
                clip(module.parameters())
                optimizer.step()
                optimizer.zero_grad()
    return module


@pytest.mark.parametrize(
    ("loop", "arguments"),
    [
        pytest.param({}, {}, id="plain"),
        pytest.param({"accumulate": 2}, {"accumulate_grad_batches": 2}, id="accumulation"),
        pytest.param({"clip": lambda p: nn.utils.clip_grad_norm_(p, 0.05)}, {"gradient_clip_val": 0.05}, id="clipping"),
        pytest.param({"dtype": torch.float64}, {"precision": "64-true"}, id="64-true"),
        pytest.param({"dtype": torch.bfloat16}, {"precision": "bf16-true"}, id="bf16-true"),
        pytest.param({"autocast": True}, {"precision": "bf16-mixed"}, id="bf16-mixed"),
    ],
)
def test_fit_equals_the_loop_by_hand(trainer: Trainers, loop: dict[str, Any], arguments: dict[str, Any]) -> None:
    module = habits.InInit()
    expected = trained_by_hand(module, **loop)
    torch.manual_seed(1)
    trainer(max_epochs=EPOCHS, callbacks=[plugin()], **arguments).fit(module, loader(), loader(seed=1))
    assert_equal(module, expected)


def test_each_batch_has_its_own_h_a_function_of_seed_and_batch_counter(trainer: Trainers) -> None:
    module = Seen()
    trainer(callbacks=[plugin()]).fit(module, loader(), loader(seed=1))
    assert drawn(module) == sequence(EPOCHS * BATCHES)


def test_the_sampler_draws(trainer: Trainers) -> None:
    module = Seen()
    sampler = mip.SampleH(seed=5, strategy="sobol")
    trainer(callbacks=[plugin(sampler=sampler)]).fit(module, loader(), loader(seed=1))
    assert drawn(module) == sequence(EPOCHS * BATCHES, seed=5, strategy="sobol")


def test_several_hyperparameters_are_combined(trainer: Trainers) -> None:
    class Two(habits.LossModule):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("lam", self.hparams.lam)
            self.log("alpha", self.loss.alpha)

    h = {"loss.alpha": mip.LogUniform(0.1, 10), "hparams.lam": mip.Categorical(2), "hparams.noise": mip.Normal(0, 1)}
    callback = plugin(h=h, bind=["loss.alpha", "hparams.lam"], eval_grid=2)
    with pytest.warns(UserWarning, match="changing hparams.lam changes neither"):
        trainer(callbacks=[callback]).fit(Two(), loader(), loader(seed=1))
    (table,) = trainer(callbacks=[callback]).validate(Two(), loader(), verbose=False)
    assert table["alpha/hparams.lam=1,hparams.noise=-0.67449,loss.alpha=10"] == pytest.approx(10)
    assert table["alpha"] == pytest.approx((10 + 0.1) / 2)
    assert len(table) == 2 * (8 + 1)


def test_a_dropout_probability_and_label_smoothing_become_dials(trainer: Trainers) -> None:
    class Classifier(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.1), nn.Linear(8, 2))
            self.criterion = nn.CrossEntropyLoss(label_smoothing=0.0)
            self.seen: list[tuple[float, float]] = []

        def training_step(self, batch: Any) -> Tensor:
            self.seen.append((self.net[1].p, self.criterion.label_smoothing))
            return self.criterion(self.net(batch[0]), (batch[1][:, 0] > 0).long())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    module = Classifier()
    h = {"net.1.p": mip.Uniform(0, 0.9), "criterion.label_smoothing": mip.Uniform(0, 0.5)}
    trainer(callbacks=[plugin(target="net", h=h)]).fit(module, loader())
    assert len(set(module.seen)) == EPOCHS * BATCHES
    assert all(type(value) is float for pair in module.seen for value in pair)
    assert (module.net[1].p, module.criterion.label_smoothing) == (0.1, 0.0)


def test_a_component_that_nothing_reads_is_not_bound(trainer: Trainers) -> None:
    module = Seen()
    callback = plugin(h={"noise": mip.Normal(0, 1)}, bind=False)
    trainer(callbacks=[callback]).fit(module, loader(), loader(seed=1))
    assert drawn(module) == [LAM] * EPOCHS * BATCHES
    assert callback.state_dict()["bind"] == []


def test_an_epoch_that_the_module_ends_early_puts_its_attributes_back(trainer: Trainers) -> None:
    class Impatient(Seen):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 2 else None

    module = Impatient()
    trainer(max_epochs=1, callbacks=[plugin()], limit_val_batches=0).fit(module, loader(), loader(seed=1))
    assert drawn(module) == sequence(2)
    assert module.hparams.lam == LAM
    assert_clean(module, module.net)


@pytest.mark.parametrize("target", ["generator", "critic"])
def test_toggled_optimizers_train_their_own_network_alone(trainer: Trainers, target: str) -> None:
    module = habits.TwoOptimizers()
    expected = copy.deepcopy(module)
    torch.manual_seed(1)
    hyper = mip.hypernetize(expected.get_submodule(target), {"hparams.lam": mip.Uniform(0, 1)}, **SMALL)
    optimizers = expected.configure_optimizers()[0]
    optimizers[target == "critic"].param_groups[0]["params"].extend(hyper.parameters())
    for step, (x, y) in enumerate(loader()):
        h = hyper.space.sample(seed=0, step=step)
        lam = float(str(h["hparams.lam"].numpy()))
        for optimizer in optimizers * 2:
            own = [p for group in optimizer.param_groups for p in group["params"]]
            with mip.at(expected, h):
                made = expected.generator(x)
                if optimizer is optimizers[0]:
                    loss = nn.functional.mse_loss(made, y) - lam * expected.critic(made).mean()
                else:
                    loss = expected.critic(made.detach()).mean() - lam * expected.critic(y).tanh().mean()
                for parameter, gradient in zip(own, torch.autograd.grad(loss, own), strict=True):
                    parameter.grad = gradient
            optimizer.step()
    torch.manual_seed(1)
    trainer(max_epochs=1, callbacks=[plugin(target=target)]).fit(module, loader(), loader(seed=1))
    expected.hypernet = hyper
    assert_equal(module, expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("when", ["before the run", "in configure_model", "in place"])
def test_a_compiled_network_trains_the_same(trainer: Trainers, when: str) -> None:
    class Compiled(habits.InInit):
        def configure_model(self) -> None:
            if when == "in configure_model" and not hasattr(self.net, "_orig_mod"):
                self.net = torch.compile(self.net, backend="aot_eager", fullgraph=True)

    plain, module = habits.InInit(), Compiled()
    module.load_state_dict(plain.state_dict())
    torch.compiler.reset()
    if when == "before the run":
        module.net = torch.compile(module.net, backend="aot_eager", fullgraph=True)
        module.net(torch.zeros(4, 3))  # the code that runs theta0 alone exists already
    elif when == "in place":
        module.net.compile(backend="aot_eager", fullgraph=True)
    torch._dynamo.utils.counters.clear()
    for each in (plain, module):
        torch.manual_seed(1)
        trainer(callbacks=[plugin(target=None)]).fit(each, loader(), loader(seed=1))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # of training and of evaluation, for all h
    torch.compiler.reset()
    for (name, one), two in zip(plain.named_parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(one, two, msg=name)


def test_the_network_may_be_deeper_and_generated_in_part(trainer: Trainers) -> None:
    class Deep(habits.InInit):
        def __init__(self) -> None:
            super().__init__()
            body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
            self.net = nn.ModuleDict({"body": body, "head": nn.Linear(2, 2)})

        def forward(self, x: Tensor) -> Tensor:
            return self.net["head"](self.net["body"](x))

    module = Deep()
    trainer(callbacks=[plugin(target="net.body", include="2.*", exclude=["*.bias"])]).fit(
        module, loader(), loader(seed=1)
    )
    assert list(module.hypernet.shapes) == ["2.weight"]


def test_module_summaries_and_forwards_outside_of_a_run_are_at_the_center(trainer: Trainers) -> None:
    module = habits.InInit()
    module.example_input_array = torch.zeros(2, 3)
    trainer(callbacks=[plugin(eval_grid=1)], enable_model_summary=True).fit(module, loader(), loader(seed=1))
    x = torch.ones(2, 3)
    torch.testing.assert_close(module(x), mip.materialize(module, {"hparams.lam": 0.5})(x))


class Watched(TQDMProgressBar):
    """A progress bar that remembers what it shows instead of printing."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.shown.append(self.get_metrics(trainer, pl_module))


def test_the_progress_bar_shows_the_current_h(trainer: Trainers, capsys: pytest.CaptureFixture[str]) -> None:
    bar = Watched()
    trainer(callbacks=[bar, plugin()], enable_progress_bar=True).fit(habits.InInit(), loader(), loader(seed=1))
    assert [shown["h/hparams.lam"] for shown in bar.shown] == pytest.approx(sequence(EPOCHS * BATCHES))


# --- Evaluation


def test_validate_and_test_use_the_grid_and_predict_one_h(trainer: Trainers) -> None:
    habit, module = HABITS["network in __init__"], habits.InInit()
    runner = trainer(callbacks=[plugin(predict_h={"hparams.lam": 0.7})])
    runner.fit(module, loader(), loader(seed=1))
    expected = by_hand(habit, module)
    (data,) = habit.data()
    assert runner.validate(module, data, verbose=False) == [near(expected)]
    renamed = {name.replace("val_", "test_"): value for name, value in expected.items()}
    assert runner.test(module, data, verbose=False) == [near(renamed)]
    predicted = torch.cat(runner.predict(module, data))
    torch.testing.assert_close(predicted, outputs(habit, module, 0.7, data)[0] * 0.7)
    assert_clean(module, module.net)
    assert module.hparams.lam == LAM


def test_the_grid_may_be_a_list(trainer: Trainers) -> None:
    habit, module = HABITS["network in __init__"], habits.InInit()
    runner = trainer(callbacks=[plugin(eval_grid=[{"hparams.lam": 0.1}, {"hparams.lam": 0.9}])])
    table = runner.validate(module, habit.data(), verbose=False)
    assert table == [near(by_hand(habit, module, [0.1, 0.9]))]


@pytest.mark.parametrize("name", ["network in __init__", "metric objects", "metric collections", "dict outputs"])
def test_evaluation_at_the_center_is_one_pass_under_the_plain_names(trainer: Trainers, name: str) -> None:
    habit = HABITS[name]
    module = habit.make()
    trainer(callbacks=[plugin(habit, eval="center")]).fit(module, loader(), habit.data())
    (table,) = trainer(callbacks=[plugin(habit, eval="center")]).validate(module, habit.data(), verbose=False)
    (data,) = habit.data()
    assert table == near({n: float(m(*outputs(habit, module, 0.5, data), 0.5)) for n, m in habit.measures.items()})
    assert habit.value(module) == LAM


def test_callbacks_get_the_output_at_the_middle_of_the_grid(trainer: Trainers) -> None:
    class Reader(L.Callback):
        seen: ClassVar[list[float]] = []

        def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
            self.seen.append(outputs["lam"])

    trainer(callbacks=[plugin(), Reader()]).validate(habits.DictOutputs(), loader(), verbose=False)
    assert set(Reader.seen) == {0.5}


class Sums(habits.InInit):
    """Sums up its hyperparameter in containers of many kinds, all filled in place."""

    def __init__(self) -> None:
        super().__init__()
        self.array, self.tensor = np.zeros(1), torch.zeros(1)
        self.config = AttributeDict(total=0.0)
        self.recent: deque[float] = deque(maxlen=99)
        self._nested: dict[str, list[set[float]]] = {"seen": [set()]}
        self.data = torch.zeros(2**20 + 1)
        self.factor = 0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        lam = self.hparams.lam
        self.array += lam
        self.tensor += lam
        self.config.total += lam
        self.recent.append(lam)
        self._nested["seen"][0].add(lam)
        self.pointer = self.data.data_ptr()

    def on_validation_epoch_end(self) -> None:
        assert len(self._nested["seen"][0]) == 1
        sums = self.array[0], self.tensor[0], self.config.total, sum(self.recent)
        assert sums == pytest.approx([sums[0]] * 4)
        self.log("sum", sums[0] * self.factor)


def test_attributes_of_every_kind_are_kept_apart_by_h(trainer: Trainers) -> None:
    class Setter(L.Callback):
        def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            pl_module.factor = 10  # what others set in between is seen at every h

    module = Sums()
    (table,) = trainer(callbacks=[plugin(), Setter()]).validate(module, loader(), verbose=False)
    sums = {f"sum/hparams.lam={lam:g}": 10 * BATCHES * lam for lam in LAMS}
    assert table == near({**sums, "sum": 10 * BATCHES * 0.5})
    assert module.pointer == module.data.data_ptr()  # as large as this it is data, which is not copied


def test_a_hook_may_be_a_partial_function_on_the_instance(trainer: Trainers) -> None:
    ends: list[float] = []

    def end(module: Any, word: str) -> None:
        ends.append(module.hparams.lam)

    module = habits.InInit()
    module.on_validation_epoch_end = functools.partial(end, module, "end")
    trainer(callbacks=[plugin()]).validate(module, loader(), verbose=False)
    assert ends == pytest.approx(LAMS)


class Meter:
    """A mean that is no torchmetrics object."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def update(self, value: float) -> None:
        self.values.append(value)


class WithMeter(habits.InInit):
    """Keeps what it sees where the grid cannot reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.meter = Meter()
        self.criterion = nn.MSELoss()
        self.criterion.calls = 0  # type: ignore[assignment]
        self.register_buffer("total", torch.zeros(()))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.meter.update(1.0)
        self.criterion.calls += 1  # type: ignore[assignment,operator]
        self.total += 1


def test_what_the_grid_cannot_keep_apart_is_named_once(trainer: Trainers) -> None:
    message = (
        "The step writes to total, meter, criterion.calls, which the grid of h cannot keep apart, so what is computed "
        "from it mixes all h. Keep it in a torchmetrics object, or in a list, dict or tensor that is an attribute of "
        "the LightningModule; or evaluate at one h alone (eval='center' of Hypernetize, one value as eval_grid)."
    )
    with pytest.warns(UserWarning, match="cannot keep apart") as caught:
        trainer(callbacks=[plugin()]).fit(WithMeter(), loader(), loader(seed=1))
    assert [str(warning.message) for warning in caught if warning.category is UserWarning] == [message]
    trainer(callbacks=[plugin(eval="center")]).fit(WithMeter(), loader(), loader(seed=1))


class Grouped(habits.InInit):
    """Trains its first layer with another learning rate than its last one."""

    def __init__(self, first: float, last: float) -> None:
        super().__init__()
        self.lrs = first, last

    def configure_optimizers(self) -> Any:
        layers = zip((self.net.first, self.net.last), self.lrs, strict=True)
        optimizer = torch.optim.Adam([{"params": layer.parameters(), "lr": lr} for layer, lr in layers])
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: float(epoch > 0))]


@pytest.mark.parametrize(("arguments", "group"), [({}, 0), ({"exclude": "first"}, 1), ({"exclude": "last"}, 0)])
def test_the_hypernetwork_joins_the_group_of_what_it_generates(
    trainer: Trainers, arguments: dict[str, Any], group: int
) -> None:
    module = Grouped(0.05, 0.02)
    runner = trainer(callbacks=[plugin(**arguments)])
    text = (
        "The optimizer trains parts of the network at rates of their own, 0.02, 0.05, but the hypernetwork, which "
        "moves all that it generates, at 0.05. Generate only what is to be trained at that rate: include=..., "
        "exclude=..."
    )
    told = contextlib.nullcontext() if arguments else pytest.warns(UserWarning, match=exactly(text))
    with told:
        runner.fit(module, loader(), loader(seed=1))
    (optimizer,) = runner.optimizers
    assert len(optimizer.param_groups) == 2
    held = {id(parameter) for parameter in optimizer.param_groups[group]["params"]}
    assert held >= {id(parameter) for parameter in module.hypernet.parameters()}


def test_of_several_groups_the_hypernetwork_joins_the_one_with_most_of_what_it_generates(trainer: Trainers) -> None:
    class Split(habits.InInit):
        def configure_optimizers(self) -> Any:
            groups = [{"params": self.net.last.bias, "lr": 1e-5}, {"params": self.net.last.weight, "lr": 0.0}]
            return torch.optim.Adam([*groups, {"params": self.net.first.parameters(), "lr": 0.05}])

    module, runner = Split(), trainer(callbacks=[plugin()])
    runner.fit(module, loader(), loader(seed=1))
    held = {id(parameter) for parameter in runner.optimizers[0].param_groups[2]["params"]}
    assert held >= {id(parameter) for parameter in module.hypernet.parameters()}


def test_the_hypernetwork_joins_no_group_that_takes_matrices_alone(trainer: Trainers) -> None:
    class Mixed(habits.InInit):
        def configure_optimizers(self) -> Any:
            matrices = [parameter for parameter in self.net.parameters() if parameter.ndim == 2]
            others = [parameter for parameter in self.net.parameters() if parameter.ndim != 2]
            return Both([torch.optim.Muon(matrices, 0.01), torch.optim.AdamW(others, 0.01)])

    module, runner = Mixed(), trainer(callbacks=[plugin()])
    runner.fit(module, loader(), loader(seed=1))
    held = {id(parameter) for parameter in runner.optimizers[0].param_groups[1]["params"]}
    assert held >= {id(parameter) for parameter in module.hypernet.parameters()}


class Both(torch.optim.Optimizer):
    """Several optimizers as one."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        super().__init__([group for each in optimizers for group in each.param_groups], {})
        self.param_groups = [group for each in optimizers for group in each.param_groups]

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        result = None if closure is None else closure()
        for each in self.optimizers:
            each.step()
        return result


def test_the_hypernetwork_joins_a_group_that_is_trained(trainer: Trainers, tmp_path: Path) -> None:
    class Still(habits.InInit):
        """Holds its first layer by a learning rate of zero."""

        def configure_optimizers(self) -> Any:
            groups = [{"params": self.net.first.parameters(), "lr": 0.0}, {"params": self.net.last.parameters()}]
            return torch.optim.Adam(groups, lr=0.05)

    whole, resumed, path, start = Still(), Still(), tmp_path / "epoch.ckpt", Start()
    trainer(callbacks=[plugin(), start, SaveAt(path, epoch=0)]).fit(whole, loader(), loader(seed=1))
    assert all(not torch.equal(p, start.parameters[f"hypernet.{n}"]) for n, p in whole.hypernet.named_parameters())
    trainer(callbacks=[plugin()]).fit(resumed, loader(), loader(seed=1), ckpt_path=path)
    assert_equal(whole, resumed)


class Listing(torch.optim.SGD):
    """Keeps a list of its own, as optimizers do that share them out or flatten them."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr)
        self.own = [p for group in self.param_groups for p in group["params"]]

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        with torch.no_grad():
            for parameter in self.own:
                parameter.data.sub_(0.1 * parameter.grad)
        return loss


class Listed(habits.InInit):
    """Gives its optimizer the network's parameters, or all there are."""

    def __init__(self, everything: bool) -> None:
        super().__init__()
        self.everything = everything

    def configure_optimizers(self) -> Any:
        return Listing((self if self.everything else self.net).parameters(), 0.1)


def test_a_hypernetwork_that_the_optimizer_has_not_taken_is_an_error_after_the_first_epoch(trainer: Trainers) -> None:
    text = (
        "Training changed the network 'net' but not its hypernetwork: Listing keeps lists of parameters of its own, or "
        "has a learning rate of 0 for it. Give it all parameters of the module in configure_optimizers: "
        "self.parameters(), which holds self.hypernet.parameters(), too."
    )
    with pytest.raises(MisconfigurationException, match=exactly(text)):
        trainer(callbacks=[plugin()]).fit(Listed(everything=False), loader(), loader(seed=1))
    trainer(callbacks=[plugin()]).fit(Listed(everything=True), loader(), loader(seed=1))


def test_a_hypernetwork_may_wait_with_the_network_for_the_learning_rate_to_rise(trainer: Trainers) -> None:
    trainer(callbacks=[plugin()]).fit(Grouped(0.05, 0.02), loader(), loader(seed=1))


# --- Again, and from checkpoints


def test_fitting_twice_goes_on_with_the_same_hypernetwork(trainer: Trainers) -> None:
    module = Seen()
    for callback in (plugin(), plugin(hidden_sizes=[4])):
        trainer(callbacks=[callback]).fit(module, loader(), loader(seed=1))
        hypernet = module.hypernet
    assert module.hypernet is hypernet
    assert drawn(module) == [*sequence(EPOCHS * BATCHES)] * 2


def test_training_again_without_the_callback_is_refused_until_it_is_detached(trainer: Trainers) -> None:
    module = habits.InInit()
    trainer(callbacks=[plugin()]).fit(module, loader(), loader(seed=1))
    text = (
        "InInit was hypernetized by Hypernetize, but this Trainer has none among its callbacks, so nothing draws h; "
        "give it the callback again, or train mip.dehypernetize(module), which is theta0 alone."
    )
    copied = "Net is hypernetized and needs a value of h to run: use `with mip.at(network, hparams.lam=...):`, or "
    copied += "mip.materialize for a plain network."
    for each, kind, told in (
        (module, MisconfigurationException, text),
        (copy.deepcopy(module), RuntimeError, copied),
    ):
        with pytest.raises(kind, match=exactly(told)):
            trainer(num_sanity_val_steps=0).fit(each, loader(), loader(seed=1))
        trainer(callbacks=[plugin()]).fit(each, loader(), loader(seed=1))
    module(torch.ones(2, 3)).sum().backward()  # by hand, at the center
    mip.dehypernetize(module)
    trainer().fit(module, loader(), loader(seed=1))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {},
            "InInit was hypernetized by Hypernetize, but this Trainer has none among its callbacks: it runs at the "
            "center of the priors (hparams.lam=0.5), while its attributes keep their own values. Give the callback to "
            "this Trainer too, or take one network out by mip.materialize.",
        ),
        (
            {"bind": False},
            "InInit was hypernetized by Hypernetize, but this Trainer has none among its callbacks: it runs at the "
            "center of the priors (hparams.lam=0.5). Give the callback to this Trainer too, or take one network out "
            "by mip.materialize.",
        ),
    ],
)
def test_evaluation_without_the_callback_is_warned_of_once_for_each_trainer(
    trainer: Trainers, arguments: dict[str, Any], text: str
) -> None:
    module, with_it = habits.InInit(), trainer(callbacks=[plugin(**arguments)], num_sanity_val_steps=1)
    with_it.fit(module, loader(), loader(seed=1))

    def choose() -> Any:
        return mip.choose(module, loader(seed=1), lambda o, b: (o - b[1]).square().mean(1), "min", grid=2)

    without = [trainer(), trainer()]

    def evaluate() -> None:
        without[0].validate(module, loader(seed=1), verbose=False)
        without[0].test(module, loader(seed=1), verbose=False)
        without[1].predict(module, loader(seed=1))

    with pytest.warns(UserWarning, match="was hypernetized by Hypernetize") as caught:
        evaluate()
    assert [str(each.message) for each in caught if each.category is UserWarning] == [text, text]
    choose()
    with_it.validate(module, loader(seed=1), verbose=False)
    with_it.predict(module, loader(seed=1))
    mip.sweep(module, loader(seed=1), grid=2)
    choose()


def test_a_module_is_attached_anew_once_it_is_detached(trainer: Trainers) -> None:
    module = habits.InInit()
    trainer(callbacks=[plugin()]).fit(module, loader(), loader(seed=1))
    mip.dehypernetize(module)
    trainer(callbacks=[plugin(hidden_sizes=(3, 5))]).fit(module, loader(), loader(seed=1))
    assert module.hypernet.trunk[0].out_features == 3


def test_a_network_that_setup_makes_anew_is_attached_anew(trainer: Trainers, tmp_path: Path) -> None:
    class Anew(habits.InSetup):
        def setup(self, stage: str) -> None:
            self.net = Net()

    module, runner, path = Anew(), trainer(callbacks=[plugin()]), tmp_path / "last.ckpt"
    runner.fit(module, loader(), loader(seed=1))
    runner.save_checkpoint(path)
    before = parameters(module)
    runner.test(module, loader(), ckpt_path=path, verbose=False)
    assert_equal(before, module)
    assert mip.materialize(module, {"hparams.lam": 0.5}) is not None


@pytest.mark.parametrize("kind", [Seen, habits.InConfigureModel, habits.Stepwise])
def test_a_resumed_run_ends_with_the_same_bits(trainer: Trainers, tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "epoch.ckpt"
    whole, resumed = kind(), kind()
    trainer(max_epochs=4, callbacks=[plugin(), SaveAt(path, epoch=1)]).fit(whole, loader(), loader(seed=1))
    trainer(max_epochs=4, callbacks=[plugin()]).fit(resumed, loader(), loader(seed=1), ckpt_path=path)
    assert_equal(whole, resumed)
    if kind is Seen:
        assert drawn(whole) == sequence(4 * BATCHES)
        assert drawn(resumed) == sequence(4 * BATCHES)[2 * BATCHES :]


def test_a_checkpoint_holds_plain_data_and_serves_test_and_predict(trainer: Trainers, tmp_path: Path) -> None:
    habit, path, module = HABITS["network in __init__"], tmp_path / "last.ckpt", habits.InInit()
    trainer(callbacks=[plugin(), SaveAt(path, epoch=1)]).fit(module, loader(), loader(seed=1))
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["callbacks"]["Hypernetize{target: net}"] == {
        "target": "net",
        "h": {"hparams.lam": mip.Uniform(0, 1).config()},
        "bind": ["hparams.lam"],
        "arguments": SMALL,
        "other_arguments": [],
    }
    assert {key.split(".")[0] for key in checkpoint["state_dict"]} == {"net", "hypernet"}
    other = habits.InInit()
    table = trainer(callbacks=[plugin()]).validate(other, habit.data(), ckpt_path=path, verbose=False)
    assert table == [near(by_hand(habit, module))]
    assert_equal(module, other)


@pytest.fixture
def of_plain_run(trainer: Trainers, tmp_path: Path) -> tuple[Path, habits.Scheduled]:
    """The checkpoint of a run without the plug-in, and its module."""
    module, path = habits.Scheduled(), tmp_path / "plain.ckpt"
    saving = [SaveAt(path, epoch=1), EarlyStopping("val_loss", patience=9)]
    trainer(callbacks=saving).fit(module, loader(), loader(seed=1))
    return path, module


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the plug-in writes to the log."""
    messages: list[str] = []
    monkeypatch.setattr("lightning_mip.checkpoints.rank_zero_info", messages.append)
    return messages


NEW = "The checkpoint is of a run without Hypernetize: theta0 starts from it, the hypernetwork is new."


def test_fit_starts_theta0_from_the_checkpoint_of_a_plain_run(
    trainer: Trainers, of_plain_run: tuple[Path, Any], told: list[str]
) -> None:
    path, before = of_plain_run
    losses = []

    class Recorder(L.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            losses.append(float(trainer.callback_metrics["val_loss"]))

    module, start, stopping = habits.Scheduled(), Start(), EarlyStopping("val_loss", patience=9)
    runner = trainer(callbacks=[plugin(), start, stopping, Recorder()])
    runner.fit(module, loader(), loader(seed=1), ckpt_path=path)
    assert told == [NEW]
    assert_equal(parameters(before), {k: v for k, v in start.parameters.items() if k.startswith("net.")})
    # Another training: it begins at the first batch, with its own optimizer, scheduler and patience.
    assert runner.global_step == EPOCHS * BATCHES
    assert float(stopping.best_score) == min(losses)


def test_test_starts_theta0_from_the_checkpoint_of_a_plain_run(
    trainer: Trainers, of_plain_run: tuple[Path, Any], told: list[str]
) -> None:
    path, before = of_plain_run
    module = habits.Scheduled()
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint need to be provided"):
        trainer(callbacks=[plugin(init="zero")]).test(module, loader(seed=1), ckpt_path=path, verbose=False)
    assert told == [NEW]
    assert_equal(before.net, module.net)


def test_a_module_that_was_loaded_starts_there_too(trainer: Trainers, of_plain_run: tuple[Path, Any]) -> None:
    path, before = of_plain_run
    module, start = habits.Scheduled.load_from_checkpoint(path), Start()
    trainer(callbacks=[plugin(), start]).fit(module, loader(), loader(seed=1))
    assert_equal(parameters(before), {k: v for k, v in start.parameters.items() if k.startswith("net.")})


@pytest.mark.parametrize("hook", ["training_step", "validation_step", "predict_step", "on_train_batch_start", "setup"])
def test_an_exception_leaves_the_module_clean(trainer: Trainers, hook: str) -> None:
    class Failing(habits.InInit):
        fails = True

    def failing(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.fails:
            raise KeyError("broken")
        return getattr(super(Failing, self), hook)(*args, **kwargs)

    setattr(Failing, hook, failing)
    module = Failing()
    runner = trainer(callbacks=[plugin()])
    with pytest.raises(KeyError, match="broken"):
        runner.predict(module, loader()) if hook == "predict_step" else runner.fit(module, loader(), loader(seed=1))
    assert_clean(module, module.net)
    assert module.hparams.lam == LAM
    module.fails = False
    module.train()  # Lightning leaves it in the mode of the step that failed
    trainer(callbacks=[plugin()]).fit(module, loader(), loader(seed=1))


# --- Other callbacks


def test_weights_are_averaged_and_evaluated_averaged(trainer: Trainers) -> None:
    class History(L.Callback):
        seen: ClassVar[list[dict[str, Tensor]]] = []

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.seen.append(parameters(pl_module))

    module = habits.InInit()
    runner = trainer(callbacks=[plugin(), WeightAveraging(), History()])
    runner.fit(module, loader(), loader(seed=1))
    assert len(list(module.named_parameters())) > len(list(module.net.named_parameters()))
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter, sum(each[name] for each in History.seen) / len(History.seen), msg=name)
    during = {k: float(v) for k, v in runner.callback_metrics.items() if k.startswith("val_loss")}
    (after,) = trainer(callbacks=[plugin()]).validate(module, loader(seed=1), verbose=False)
    assert during == near(after)


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that overrides the conf")
@pytest.mark.filterwarnings("ignore:The verbose parameter is deprecated")
@pytest.mark.parametrize(
    ("kind", "averaging"),
    [
        (habits.InInit, lambda: EMAWeightAveraging(decay=0.5)),
        (habits.InConfigureModel, lambda: EMAWeightAveraging(decay=0.5)),
        (habits.InInit, lambda: StochasticWeightAveraging(1e-2)),
    ],
)
@pytest.mark.parametrize("eval", ["grid", "center"])
def test_averages_are_resumed_and_exported(
    trainer: Trainers, tmp_path: Path, kind: Any, averaging: Callable[[], Any], eval: Any
) -> None:
    path, file = tmp_path / "epoch.ckpt", tmp_path / "plain.ckpt"
    whole, resumed = kind(), kind()
    callbacks = [plugin(eval=eval), averaging(), SaveAt(path, epoch=2)]
    trainer(max_epochs=4, callbacks=callbacks).fit(whole, loader(), loader(seed=1))
    again = trainer(max_epochs=4, callbacks=[plugin(eval=eval), averaging()])
    again.fit(resumed, loader(), loader(seed=1), ckpt_path=path)
    assert_equal(whole, resumed)
    for source in (again, path):
        mip.Hypernetize.export(source, {"hparams.lam": 0.2}, file)
        loaded = kind.load_from_checkpoint(file)
        assert loaded.hparams.lam == 0.2
    assert not {"current_model_state", "averaging_state", "callbacks"} & set(torch.load(file, weights_only=True))


def test_the_best_checkpoint_is_chosen_by_the_mean_over_h(trainer: Trainers, tmp_path: Path) -> None:
    habit, module = HABITS["network in __init__"], habits.InInit(lr=0.5)
    means = []

    class Recorder(L.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            means.append(by_hand(habit, pl_module)["val_loss"])

    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", filename="{epoch}")
    callbacks = [plugin(), Recorder(), checkpoint, EarlyStopping("val_loss", patience=1)]
    runner = trainer(max_epochs=12, callbacks=callbacks, enable_checkpointing=True)
    runner.fit(module, loader(), habit.data())
    assert float(checkpoint.best_model_score) == pytest.approx(min(means), rel=1e-5)
    assert checkpoint.best_model_path.endswith(f"epoch={means.index(min(means))}.ckpt")
    assert len(means) < 12
    (table,) = runner.test(ckpt_path="best", dataloaders=habit.data(), verbose=False)
    assert table["test_loss"] == pytest.approx(min(means), rel=1e-5)


def test_the_learning_rate_finder_searches_at_the_center_and_leaves_the_sequence_alone(trainer: Trainers) -> None:
    module, steps = Seen(), 25
    finder = LearningRateFinder(num_training_steps=steps, min_lr=1e-4, max_lr=1e-2)
    trainer(callbacks=[finder, plugin()], enable_checkpointing=True).fit(module, loader(128), loader(seed=1))
    assert drawn(module) == [LAM] * steps + sequence(EPOCHS * 32)
    assert module.hparams.lr != 0.05


@pytest.mark.parametrize("first", [True, False])
def test_training_metrics_are_binned_by_h_beside_the_plug_in(trainer: Trainers, first: bool) -> None:
    class Telling(habits.InInit):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.log("lam", self.hparams.lam)
            return super().training_step(batch, batch_idx)

    callbacks = [plugin(), mip.PerHMetrics(bins=2)][:: 1 if first else -1]
    runner = trainer(max_epochs=1, callbacks=callbacks)
    runner.fit(Telling(), loader(), loader(seed=1))
    lams = sequence(BATCHES)
    low, high = ([lam for lam in lams if (lam < 0.5) is side] for side in (True, False))
    assert low
    assert high
    assert logged(runner, {k for k in runner.callback_metrics if k.startswith("lam")}) == near(
        {
            "lam": lams[-1],
            "lam/hparams.lam=0..0.5": sum(low) / len(low),
            "lam/hparams.lam=0.5..1": sum(high) / len(high),
        }
    )


# --- Processes

_DDP = """
import sys, logging, warnings
import lightning as L, torch
import lightning_mip as mip
from tests.callbacks.test_hypernetize import Seen, plugin
from tests.habits import HABITS, MetricObjects
from tests.tasks import loader

class Both(Seen, MetricObjects):
    pass

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
folder = sys.argv[1]
trainer = L.Trainer(
    max_epochs=2, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, callbacks=[plugin()],
)
torch.manual_seed(trainer.global_rank)
module = Both()
trainer.fit(module, loader(), loader(10, seed=1))
mip.Hypernetize.export(trainer, {"hparams.lam": 0.2}, f"{folder}/plain.ckpt")
torch.save(
    {
        "seen": module.__dict__["seen"],
        "state": module.state_dict(),
        "logged": {k: float(v) for k, v in trainer.callback_metrics.items()},
    },
    f"{folder}/{trainer.global_rank}.pt",
)
"""


def test_two_processes_draw_an_h_each_and_train_one_hypernetwork(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_DDP)
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, script, tmp_path],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=True,
        timeout=90,
    )
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for rank, found in enumerate(ranks):
        assert found["seen"] == pytest.approx(sequence(EPOCHS * BATCHES // 2, rank=rank, world_size=2))
    assert ranks[0]["state"].keys() == ranks[1]["state"].keys()
    for name, value in ranks[0]["state"].items():
        assert not isinstance(value, Tensor) or torch.equal(value, ranks[1]["state"][name]), name

    module, habit = habits.MetricObjects(), HABITS["metric objects"]
    module.hypernet = mip.hypernetize(module.net, {"hparams.lam": mip.Uniform(0, 1)}, **SMALL)
    module.load_state_dict(ranks[0]["state"])
    expected = by_hand(habit, module)
    for found in ranks:
        assert {name: found["logged"][name] for name in expected} == near(expected)
    plain = habits.MetricObjects.load_from_checkpoint(tmp_path / "plain.ckpt")
    torch.testing.assert_close(plain.net.first.weight, mip.materialize(module, {"hparams.lam": 0.2}).first.weight)


# --- Command line


class OfConfig(L.LightningModule):
    """Leaves its optimizer to the command line."""

    def __init__(self, lam: float = LAM) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = Net()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return penalised(self.net(batch[0]), batch[1], self.hparams.lam)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", penalised(self.net(batch[0]), batch[1], self.hparams.lam))


_CONFIG = """
trainer:
  max_epochs: 2
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: {folder}
  callbacks:
    - class_path: Hypernetize
      init_args:
        target: net
        h:
          hparams.lam: {{class_path: Uniform, init_args: {{low: 0, high: 1}}}}
          noise: {{class_path: Normal, init_args: {{mean: 0, std: 1}}}}
        bind: [hparams.lam]
        eval_grid: 2
        exclude: [last.bias]
        sampler: {{class_path: SampleH, init_args: {{seed: 5}}}}
        hypernet: {{hidden_sizes: [4, 5]}}
data: tests.tasks.Data
"""


def test_a_config_names_the_plug_in_and_its_priors(tmp_path: Path) -> None:
    config = tmp_path / "given.yaml"
    config.write_text(_CONFIG.format(folder=tmp_path) + "model: tests.habits.InInit\n")
    cli = main(["fit", "--config", str(config)])
    assert set(cli.trainer.callback_metrics) >= {"val_loss", "val_loss/hparams.lam=1,noise=0.67449"}
    hypernet = cli.model.hypernet
    assert [layer.out_features for layer in hypernet.trunk if isinstance(layer, nn.Linear)] == [4, 5]
    assert "last.bias" not in hypernet.shapes
    (path,) = tmp_path.glob("checkpoints/*.ckpt")
    saved = tmp_path / "config.yaml"
    cli = main(["test", "--config", str(saved), "--ckpt_path", str(path)])
    assert len(cli.trainer.callback_metrics) == 5
    mip.Hypernetize.export(path, {"hparams.lam": 0.2, "noise": 0.0}, tmp_path / "plain.ckpt")
    assert habits.InInit.load_from_checkpoint(tmp_path / "plain.ckpt").hparams.lam == 0.2


def test_the_command_line_s_optimizer_trains_the_hypernetwork(tmp_path: Path) -> None:
    config = tmp_path / "given.yaml"
    config.write_text(
        _CONFIG.format(folder=tmp_path) + "optimizer: {class_path: SGD, init_args: {lr: 0.1, momentum: 0.9}}\n"
        "lr_scheduler: {class_path: StepLR, init_args: {step_size: 1}}\n"
    )
    start = Start()
    cli = LightningCLI(
        OfConfig,
        L.LightningDataModule,
        subclass_mode_data=True,
        seed_everything_default=0,
        trainer_defaults={"callbacks": [start]},
        args=["fit", "--config", str(config)],
    )
    changed = {k for k, p in cli.model.named_parameters() if not torch.equal(p, start.parameters[k])}
    assert changed == set(start.parameters)


# --- Messages


class OwnHypernet(habits.InInit):
    """Has an attribute of the name that the plug-in uses."""

    def __init__(self) -> None:
        super().__init__()
        self.hypernet = nn.Linear(1, 1)


class Unused(habits.InInit):
    """Has a network that its step does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.other = Net()


class Later(habits.InInit):
    """Trains its network from the second epoch on, and only another layer before."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.set_grad_enabled(self.current_epoch > 0):
            features = self.net(batch[0])
        return penalised(self.head(features), batch[1], self.hparams.lam)


class ByHand(Unused):
    """Takes a step of another network's optimizer in each batch, and one of its own in every ``every``th."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every, self.automatic_optimization = every, False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer = self.optimizers()
        network = self.net if (batch_idx + 1) % self.every == 0 else self.other
        optimizer.zero_grad()
        self.manual_backward(penalised(network(batch[0]), batch[1], self.hparams.lam))
        optimizer.step()


class Nothing(torch.utils.data.IterableDataset[Any]):
    """Has no batches, and does not say so before."""

    def __iter__(self) -> Any:
        return iter(())


_UNLEARNED = (
    "No gradient has reached the generated weights of 'net' in this epoch: training_step does not run it, runs it "
    "without gradients, or its loss does not depend on it. If a later epoch is not to train it, name the network that "
    "training_step trains as target."
)


@pytest.mark.parametrize("module", [Later(), ByHand(every=100)], ids=["automatic", "manual"])
def test_epochs_in_which_no_gradient_comes_back_are_warned_of_once(trainer: Trainers, module: Any) -> None:
    with pytest.warns(UserWarning, match="No gradient has reached") as caught:
        trainer(callbacks=[plugin()], max_epochs=3).fit(module, loader(), loader(seed=1))
    assert [str(each.message) for each in caught if each.category is UserWarning] == [_UNLEARNED]


def test_a_batch_that_does_not_train_the_network_by_hand_is_no_mistake(trainer: Trainers) -> None:
    trainer(callbacks=[plugin()]).fit(ByHand(every=2), loader(), loader(seed=1))


def test_an_epoch_without_batches_is_no_mistake(trainer: Trainers) -> None:
    module = habits.InInit()
    trainer(callbacks=[plugin()]).fit(module, torch.utils.data.DataLoader(Nothing(), batch_size=2), loader(seed=1))
    assert module.hypernet is not None


def _fit(module: Any, *callbacks: Any, **arguments: Any) -> Callable[[Any], Any]:
    return lambda trainer: trainer(callbacks=list(callbacks), **arguments).fit(module, loader(), loader(seed=1))


def _after(first: Callable[[Any], Any], then: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda trainer: (first(trainer), then(trainer))


def _by_hand_before() -> Any:
    module = habits.InInit()
    mip.hypernetize(module.net, {"hparams.lam": mip.Uniform(0, 1)}, **SMALL)
    return module


def _setup(**arguments: Any) -> Callable[[Any], Any]:
    """Begin a run without starting its processes."""

    def act(trainer: Any) -> None:
        callback = plugin()
        callback.setup(trainer(callbacks=[callback], **arguments), habits.InInit(), "fit")

    return act


_SPAWNED = (
    "Hypernetize attaches in the training processes, and strategies that spawn or fork them (ddp_spawn, ddp_fork, "
    "ddp_notebook) bring back only what the module had before: the hypernetwork would be lost. Use strategy='ddp'."
)
_again = habits.InInit()


class SavingInside(L.LightningModule):
    """Saves checkpoints in the middle of its steps."""

    def __init__(self, lam: float = 0.25, nested: dict[str, float] | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = Net()
        self.register_buffer("alpha", torch.tensor(0.125))
        self.folder = Path()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        weight = self.hparams["lam"] + self.hparams["nested"]["mu"] + self.alpha
        if batch_idx == 1 and self.hparams["lam"] != 0.25 and not self.folder.joinpath("train.ckpt").exists():
            self.trainer.save_checkpoint(self.folder / "train.ckpt")
            assert weight == self.hparams["lam"] + self.hparams["nested"]["mu"] + self.alpha
        return (self.net(x) - y).square().mean() * weight

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.trainer.save_checkpoint(self.folder / "val.ckpt")
        self.log("val_loss", self.hparams["lam"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_checkpoint_in_the_middle_of_a_step_holds_the_modules_own_values(trainer: Trainers, tmp_path: Path) -> None:
    module = SavingInside(nested={"mu": 0.75})
    module.folder = tmp_path
    h = dict.fromkeys(("hparams.lam", "hparams.nested.mu", "alpha"), mip.Uniform(0, 1))
    trainer(callbacks=[plugin(target="net", h=h, eval_grid=2)], max_epochs=1).fit(module, loader(), loader())
    for name in ("train.ckpt", "val.ckpt"):
        checkpoint = torch.load(tmp_path / name, weights_only=True)
        assert checkpoint["hyper_parameters"] == {"lam": 0.25, "nested": {"mu": 0.75}}
        assert checkpoint["state_dict"]["alpha"] == 0.125


class Autoencoder(L.LightningModule):
    """Its decoder has the weight of its encoder, which another name of the encoder does not change."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(3, 3), nn.Tanh()), "decoder": nn.Linear(3, 3)})
        self.parts["decoder"].weight = self.parts["encoder"][0].weight
        self.alias = self.parts["encoder"]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch
        return (self.parts["decoder"](self.alias(x)) - x).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("choice", [{"target": "parts"}, {"target": "parts.encoder", "exclude": ["0.weight"]}])
def test_a_weight_tied_outside_of_the_target_goes_with_both_ways_out(
    trainer: Trainers, tmp_path: Path, choice: dict[str, Any]
) -> None:
    module = Autoencoder()
    callback = plugin(h={"noise": mip.Uniform(0, 1)}, bind=False, **choice)
    runner = trainer(callbacks=[callback], max_epochs=1)
    runner.fit(module, loader(), loader())
    mip.Hypernetize.export(runner, {"noise": 0.9}, tmp_path / "plain.ckpt")
    plain = Autoencoder.load_from_checkpoint(tmp_path / "plain.ckpt", weights_only=True)
    with torch.no_grad(), mip.at(module, noise=0.9):
        for batch in loader():
            torch.testing.assert_close(plain.training_step(batch, 0), module.training_step(batch, 0))


MESSAGES: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (
        lambda _: plugin(sampler="sobol"),
        TypeError,
        "sampler is 'sobol', expected a SampleH, such as SampleH(strategy='sobol').",
    ),
    (
        lambda _: plugin(hypernet="paper"),
        TypeError,
        "hypernet is 'paper', expected a mapping of arguments of HyperNetwork.",
    ),
    (
        lambda _: plugin(evalgrid=3),
        TypeError,
        "Hypernetize has no argument 'evalgrid'; its arguments are target, h, include, exclude, bind, eval, eval_grid, "
        "predict_h, sampler, hypernet, and those of HyperNetwork: hidden_sizes, activation, norm, dropout, head, "
        "encoding, encoding_norm, residual, init, scale, trunk. Did you mean 'eval_grid'?",
    ),
    (
        lambda _: plugin(wxyz=1),
        TypeError,
        "Hypernetize has no argument 'wxyz'; its arguments are target, h, include, exclude, bind, eval, eval_grid, "
        "predict_h, sampler, hypernet, and those of HyperNetwork: hidden_sizes, activation, norm, dropout, head, "
        "encoding, encoding_norm, residual, init, scale, trunk.",
    ),
    (
        lambda _: plugin(hypernet={"hed": 1}),
        TypeError,
        "HyperNetwork has no argument 'hed'; its arguments are hidden_sizes, activation, norm, dropout, head, "
        "encoding, encoding_norm, residual, init, scale, trunk. Did you mean 'head'?",
    ),
    (lambda _: plugin(eval="gird"), ValueError, "eval is 'gird', expected 'grid' or 'center'."),
    (
        lambda _: plugin(h=None),
        ValueError,
        "h is empty, expected at least one component such as {'lam': Uniform(0, 1)}.",
    ),
    (
        lambda _: plugin(predict_h={"hparams.lam": [0.2, 0.4]}),
        ValueError,
        "predict_h holds several values (hparams.lam=0.2:0.4), expected one.",
    ),
    (
        lambda _: plugin(bind=["hparams.lamb"]),
        ValueError,
        "bind names 'hparams.lamb', which is no component of h: hparams.lam.",
    ),
    (
        _fit(habits.InInit(), plugin(target="nett")),
        MisconfigurationException,
        "target is 'nett', but InInit has no such module; its children are net.",
    ),
    (
        _fit(habits.InSetup(), plugin(target="nett")),
        MisconfigurationException,
        "target is 'nett', but InSetup has no such module; its children are net.",
    ),
    (
        _fit(habits.TwoOptimizers(), plugin(target=None)),
        MisconfigurationException,
        "target is None, but TwoOptimizers has 2 children with parameters: generator, critic; name one as target.",
    ),
    (
        _fit(OwnHypernet(), plugin()),
        MisconfigurationException,
        "OwnHypernet has an attribute 'hypernet' of its own, where Hypernetize keeps the hypernetwork; rename it.",
    ),
    (
        _fit(Unused(), plugin(target="other")),
        MisconfigurationException,
        "Training did not use the network 'other': training_step did not run it. Name the network that it runs as "
        "target.",
    ),
    (
        _fit(habits.InInit(), plugin(h={"hparams.lamb": mip.Uniform(0, 1)})),
        ValueError,
        "h has 'hparams.lamb', but InInit.hparams has no such attribute; near are hparams.lam, hparams.lr. Name one "
        "that the step reads, or pass bind=False if nothing in the module reads this component.",
    ),
    (
        _fit(make(Evaluated), plugin(target="primary")),
        MisconfigurationException,
        "Evaluated is a HyperLightningModule, which has a hypernetwork already; leave Hypernetize out. It is for "
        "LightningModules that know nothing of h.",
    ),
    (
        _fit(habits.InInit(), plugin(), mip.SampleH()),
        MisconfigurationException,
        "SampleH draws for a HyperLightningModule, but InInit is none; give it to the plug-in instead: "
        "Hypernetize(..., sampler=SampleH(...)).",
    ),
    (
        _after(_fit(_again, plugin()), _fit(_again, plugin(hidden_sizes=(8,)))),
        MisconfigurationException,
        "The network 'net' is hypernetized already, with hidden_sizes=(4,); this callback has hidden_sizes=(8,). Use "
        "the same arguments, or mip.dehypernetize it first.",
    ),
    (
        _fit(Autoencoder(), plugin(h={"noise": mip.Uniform(0, 1)}, target="parts.encoder", bind=False)),
        MisconfigurationException,
        "Autoencoder uses the weight 0.weight of its network 'parts.encoder' outside of it too, as "
        "parts.decoder.weight, where no weight is generated: one weight would be two. Name the module that holds both "
        "as target (target='parts'), or leave the weight out (exclude='0.weight').",
    ),
    (
        _fit(_by_hand_before(), plugin()),
        MisconfigurationException,
        "InInit holds a hypernetized network already; mip.dehypernetize it first, as Hypernetize attaches the one "
        "hypernetwork itself.",
    ),
    (
        _fit(habits.InInit(), EMAWeightAveraging(), plugin()),
        MisconfigurationException,
        "EMAWeightAveraging stands before Hypernetize in callbacks, so it would average the module without its "
        "hypernetwork; put Hypernetize first.",
    ),
    (
        _fit(habits.InSetup(), plugin(), StochasticWeightAveraging(1e-2)),
        MisconfigurationException,
        "StochasticWeightAveraging copies the module before setup and configure_model, where its network may be made, "
        "so it would average the module without its hypernetwork; make the network in __init__ and name it as target.",
    ),
    *(
        (_setup(strategy=name, devices=2), MisconfigurationException, _SPAWNED)
        for name in ("ddp_spawn", "ddp_fork", "ddp_notebook")
    ),
]


@pytest.mark.parametrize(("act", "error", "message"), MESSAGES)
def test_messages(trainer: Trainers, act: Callable[[Any], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        act(trainer)
    assert str(caught.value) == message
