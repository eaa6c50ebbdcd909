"""Training by Lightning's Trainer equals the loop that one would write in plain PyTorch, whatever it is told."""

from __future__ import annotations

import contextlib
import copy
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelSummary,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lightning_mip as mip
from tests.tasks import BATCHES, SMALL, Evaluated, Net, SaveAt, Task, drawn, loader, make, sequence

Trainers = Callable[..., L.Trainer]
EPOCHS = 2


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


class Checkpointed(Net):
    """Recomputes its hidden layer in the backward."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(lambda x: self.first(x).tanh(), x, use_reentrant=False))


def by_hand(
    model: Task,
    *,
    accumulate: int = 1,
    clip: Callable[[Any], Any] = lambda parameters: None,
    dtype: torch.dtype = torch.float32,
    autocast: bool = False,
    each_step: Callable[[], Any] = lambda: None,
) -> Task:
    """Train a copy of the model by a plain loop: h of each batch from the space, the loss inside ``mip.at``."""
    model = copy.deepcopy(model).to(dtype)
    (optimizer,) = [model.configure_optimizers()]
    step = 0
    for _ in range(EPOCHS):
        for batch in loader():
            with mip.at(model.primary, model.space.sample(seed=0, step=step)):
                with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
                    loss = model.loss([part.to(dtype) for part in batch])
                (loss / accumulate).backward()
            step += 1
            if step % accumulate == 0:
                clip(model.parameters())
                optimizer.step()  # type: ignore[union-attr]
                optimizer.zero_grad()  # type: ignore[union-attr]
                each_step()
    return model


def assert_equal(model: nn.Module, other: nn.Module) -> None:
    assert list(model.state_dict()) == list(other.state_dict())
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name


CLIPS = {
    "norm": (lambda p: nn.utils.clip_grad_norm_(p, 0.05), {"gradient_clip_val": 0.05}),
    "value": (
        lambda p: nn.utils.clip_grad_value_(p, 0.01),
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    ),
}


@pytest.mark.parametrize(
    ("loop", "arguments"),
    [
        pytest.param({}, {}, id="plain"),
        pytest.param({"accumulate": 2}, {"accumulate_grad_batches": 2}, id="accumulation"),
        *(pytest.param({"clip": clip}, arguments, id=f"clip {name}") for name, (clip, arguments) in CLIPS.items()),
        pytest.param({}, {"detect_anomaly": True}, id="detect_anomaly"),
        pytest.param({}, {"inference_mode": False}, id="no inference mode"),
        pytest.param({"dtype": torch.float64}, {"precision": "64-true"}, id="64-true"),
        pytest.param({"dtype": torch.bfloat16}, {"precision": "bf16-true"}, id="bf16-true"),
        pytest.param({"autocast": True}, {"precision": "bf16-mixed"}, id="bf16-mixed"),
    ],
)
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, sgd])
@pytest.mark.filterwarnings("ignore:You have turned on.*detect_anomaly")
def test_fit_equals_the_loop_by_hand(
    trainer: Trainers, loop: dict[str, Any], arguments: dict[str, Any], optimizer: Any
) -> None:
    model = make(Evaluated, optimizer=optimizer)
    expected = by_hand(model, **loop)
    before = copy.deepcopy(model)
    trainer(max_epochs=EPOCHS, **arguments).fit(model, loader(), loader(seed=1))
    assert_equal(model, expected)
    assert not torch.equal(before.primary.first.weight, model.primary.first.weight.to(torch.float32))


def test_activation_checkpointing_changes_nothing(trainer: Trainers) -> None:
    plain, recomputed = make(Evaluated), make(Evaluated, primary=Checkpointed())
    recomputed.load_state_dict(plain.state_dict())
    for model in (plain, recomputed):
        trainer(max_epochs=EPOCHS).fit(model, loader(), loader(seed=1))
    assert_equal(plain, recomputed)


@pytest.fixture
def compiled() -> Iterator[Callable[[nn.Module], Any]]:
    torch.compiler.reset()
    yield lambda network: torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.compiler.reset()


# Dynamo looks at `.grad` of the generated weights and hides the warning, but not from a filter that makes it an error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_compiled_network_trains_the_same(trainer: Trainers, compiled: Callable[..., Any], when: str) -> None:
    plain = make(Evaluated)
    network = Net()
    if when == "before":
        fast = compiled(network)
        fast(torch.zeros(1, 3))  # the code that runs theta0 alone exists already
        model = make(Evaluated, primary=fast)
    else:
        model = make(Evaluated, primary=network)
        model.primary = compiled(network)
    state = plain.state_dict()
    model.load_state_dict({name: state[name.replace("_orig_mod.", "")] for name in model.state_dict()})
    for each in (plain, model):
        trainer(max_epochs=EPOCHS).fit(each, loader(), loader(seed=1))
    for (name, one), two in zip(plain.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, two, msg=name)


class ByClosure(Task):
    """Counts the evaluations of its step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.__dict__["_evaluations"] = self.__dict__.get("_evaluations", 0) + 1
        return super().training_step(batch, batch_idx)


def test_lbfgs_evaluates_each_step_several_times(trainer: Trainers) -> None:
    model = make(ByClosure, optimizer=lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3))
    expected = copy.deepcopy(model)
    (optimizer,) = [expected.configure_optimizers()]
    for step, batch in enumerate([*loader(), *loader()]):

        def closure(batch: Any = batch, h: Any = expected.space.sample(seed=0, step=step)) -> Tensor:  # noqa: B008
            with mip.at(expected.primary, h):
                optimizer.zero_grad()
                loss = expected.loss(batch)
                loss.backward()
            return loss

        optimizer.step(closure)
    trainer(max_epochs=EPOCHS).fit(model, loader())
    assert model.__dict__["_evaluations"] > EPOCHS * BATCHES
    assert_equal(model, expected)


class Manual(Task):
    """Two optimizers, theta0 and the hypernetwork in turn, each with a loss and a backward of its own."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.primary.parameters(), 0.1), torch.optim.Adam(self.hypernet.parameters(), 0.01)]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.__dict__.setdefault("_drawn", []).append(float(self.h["lam"]))
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()


def test_manual_optimization_with_two_optimizers(trainer: Trainers) -> None:
    model = make(Manual)
    expected = copy.deepcopy(model)
    optimizers = expected.configure_optimizers()
    for step, batch in enumerate([*loader(), *loader()]):
        for optimizer in optimizers:
            optimizer.zero_grad()
            with mip.at(expected.primary, expected.space.sample(seed=0, step=step)):
                expected.loss(batch).backward()
            optimizer.step()
    trainer(max_epochs=EPOCHS).fit(model, loader())
    assert drawn(model) == sequence(model, EPOCHS * BATCHES)
    assert_equal(model, expected)


class Adversarial(Manual):
    """One forward, then two backwards through the same weights, as in a GAN."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        first, second = self.optimizers()
        output = self(x)
        first.zero_grad()
        second.zero_grad()
        self.manual_backward((output - y).square().mean(), retain_graph=True)
        self.manual_backward(output.abs().mean())
        first.step()
        second.step()


def test_two_backwards_through_one_forward_add_up(trainer: Trainers) -> None:
    model = make(Adversarial)
    expected = copy.deepcopy(model)
    optimizers = expected.configure_optimizers()
    for step, (x, y) in enumerate([*loader(), *loader()]):
        expected.zero_grad()
        with mip.at(expected.primary, expected.space.sample(seed=0, step=step)):
            output = expected(x)
            ((output - y).square().mean() + output.abs().mean()).backward()
        for optimizer in optimizers:
            optimizer.step()
    trainer(max_epochs=EPOCHS).fit(model, loader())
    for (name, one), two in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, two, msg=name)


def test_weights_are_averaged_and_evaluated_averaged(trainer: Trainers) -> None:
    model = make(Evaluated)
    history: list[dict[str, Tensor]] = []
    reference = copy.deepcopy(model)
    optimizer: Any = reference.configure_optimizers()
    for step, batch in enumerate([*loader(), *loader()]):
        with mip.at(reference.primary, reference.space.sample(seed=0, step=step)):
            reference.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append({name: p.detach().clone() for name, p in reference.named_parameters()})
    runner = trainer(max_epochs=EPOCHS, callbacks=[WeightAveraging()])
    runner.fit(model, loader(), loader(seed=1))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, sum(each[name] for each in history) / len(history), msg=name)
    during = {k: float(v) for k, v in runner.callback_metrics.items() if k.startswith("val_loss")}
    (after,) = trainer().validate(model, loader(seed=1), verbose=False)
    assert during == pytest.approx(after)


@pytest.mark.parametrize("averaging", [lambda: EMAWeightAveraging(decay=0.5), lambda: StochasticWeightAveraging(1e-2)])
@pytest.mark.filterwarnings("ignore:The verbose parameter is deprecated")
def test_averaging_callbacks_leave_a_module_that_works(trainer: Trainers, averaging: Callable[[], Any]) -> None:
    model = make(Evaluated)
    trainer(max_epochs=4, callbacks=[averaging()]).fit(model, loader(), loader(seed=1))
    assert drawn(model) == sequence(model, 4 * BATCHES)
    x = torch.ones(2, 3)
    with torch.no_grad(), mip.at(model, lam=0.3):
        torch.testing.assert_close(model(x), mip.materialize(model, lam=0.3)(x))


@pytest.mark.parametrize("averaging", [lambda: EMAWeightAveraging(decay=0.9), WeightAveraging])
@pytest.mark.parametrize("head", ["full", {"first": mip.LowRank(1), "*": mip.Chunked(4, 1)}], ids=["full", "small"])
def test_an_average_of_weights_made_for_sgd_is_saved_and_evaluated_as_what_it_is(
    trainer: Trainers, tmp_path: Path, head: Any, averaging: Callable[[], Any]
) -> None:
    arguments = {"hypernet": {**SMALL, "head": head}, "optimizer": lambda p: torch.optim.SGD(p, 0.1)}
    model, path = make(Evaluated, **arguments), tmp_path / "averaged.ckpt"
    runner = trainer(max_epochs=4, callbacks=[averaging(), SaveAt(path, epoch=3)])
    runner.fit(model, loader(), loader(seed=1))
    loaded = make(Evaluated, **arguments)
    loaded.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    assert loaded.hypernet.family == model.hypernet.family == "sgd"
    x = torch.randn(4, 3)
    with torch.no_grad(), mip.at(model, lam=0.3), mip.at(loaded, lam=0.3):
        torch.testing.assert_close(loaded(x), model(x))
    during = {k: float(v) for k, v in runner.callback_metrics.items() if k.startswith("val_loss")}
    (after,) = trainer().validate(loaded, loader(seed=1), verbose=False)
    assert during == pytest.approx(after)


def test_a_model_that_was_called_by_hand_can_still_be_averaged(trainer: Trainers) -> None:
    model = make(Evaluated)
    model(torch.ones(2, 3))
    trainer(callbacks=[WeightAveraging()]).fit(model, loader(), loader(seed=1))
    assert drawn(model) == sequence(model, EPOCHS * BATCHES)


def test_the_learning_rate_finder_finds_and_sets(trainer: Trainers) -> None:
    class Tunable(Task):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.lr = 1e-3

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), self.lr)

    model = make(Tunable)
    before = copy.deepcopy(model.state_dict())
    finder = Tuner(trainer(enable_checkpointing=True)).lr_find(
        model, loader(128), min_lr=1e-4, max_lr=1, num_training=25, update_attr=True
    )
    assert finder is not None
    assert all(math.isfinite(loss) for loss in finder.results["loss"])
    assert model.lr == finder.suggestion() != 1e-3
    assert drawn(model) == sequence(model, 25)
    assert model.hypernet.family == "adam"  # as it was
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.equal(value, before[name]), name


def test_a_model_summary_runs_the_example_input(trainer: Trainers) -> None:
    model = make(Evaluated)
    model.example_input_array = torch.zeros(2, 3)
    trainer(callbacks=[ModelSummary(max_depth=2)]).fit(model, loader(), loader(seed=1))
    table = L.pytorch.utilities.model_summary.summarize(model, max_depth=2)
    assert table.in_sizes[table.layer_names.index("primary")] == [2, 3]
    assert table.out_sizes[table.layer_names.index("primary")] == [2, 2]
    assert drawn(model) == sequence(model, EPOCHS * BATCHES)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, sgd])
def test_a_run_resumed_between_epochs_ends_with_the_same_bits(trainer: Trainers, tmp_path: Any, optimizer: Any) -> None:
    path = tmp_path / "epoch.ckpt"
    whole, resumed = make(Evaluated, optimizer=optimizer), make(Evaluated, optimizer=optimizer)
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.zero_()
    trainer(max_epochs=4, callbacks=[SaveAt(path, epoch=1)]).fit(whole, loader(), loader(seed=1))
    trainer(max_epochs=4).fit(resumed, loader(), loader(seed=1), ckpt_path=path)
    assert len(drawn(resumed)) == 2 * BATCHES
    assert_equal(whole, resumed)


def test_fitting_twice_goes_on_from_where_the_first_ended(trainer: Trainers) -> None:
    model = make(Evaluated)
    expected = by_hand(by_hand(model))
    for _ in range(2):
        trainer(max_epochs=EPOCHS).fit(model, loader(), loader(seed=1))
    assert_equal(model, expected)


def test_a_scheduler_steps(trainer: Trainers) -> None:
    model = make(Task, lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1))
    runner = trainer(max_epochs=3)
    runner.fit(model, loader())
    assert runner.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-6)


def test_parameters_that_want_no_gradient_stay_out_of_the_optimizer(trainer: Trainers) -> None:
    network = Net()
    network.first.requires_grad_(False)
    model = make(Task, primary=network)
    before = network.first.weight.clone()
    trainer().fit(model, loader())
    assert torch.equal(network.first.weight, before)


def test_a_copy_and_a_pickle_work_alone(trainer: Trainers) -> None:
    model = make(Evaluated)
    trainer().fit(model, loader(), loader(seed=1))
    model(torch.ones(2, 3))  # leaves generated weights behind
    twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    with torch.no_grad(), mip.at(model, lam=0.3):
        output = model(torch.ones(2, 3))
    for parameter in model.parameters():
        parameter.data.zero_()
    for twin in twins:
        with torch.no_grad(), mip.at(twin, lam=0.3):
            assert torch.equal(twin(torch.ones(2, 3)), output)
        trainer().fit(twin, loader(), loader(seed=1))
        assert drawn(twin)[-BATCHES:] == sequence(twin, 2 * BATCHES)[-BATCHES:]


@pytest.mark.parametrize("arguments", [{}, {"draws_per_batch": 2}, {"per_sample": True}])
@pytest.mark.filterwarnings("ignore:PerHMetrics leaves out 'train_loss'")
def test_an_exception_leaves_the_module_clean(trainer: Trainers, arguments: dict[str, Any]) -> None:
    class Broken(Evaluated):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            lam = self.h["lam"].mean()
            loss = (self(batch[0]) - batch[1]).square().mean() * lam
            self.log("train_loss", loss)
            if batch_idx == 2:
                raise KeyError("broken")
            return loss

    model = make(Broken, **arguments)
    with pytest.raises(KeyError, match="broken"):
        trainer(callbacks=[mip.PerHMetrics()]).fit(model, loader(), loader(seed=1))
    assert model.h == {"lam": torch.tensor(0.5)}
    assert not {"log"} & set(vars(model))
    assert all(not {"weight", "bias"} & set(vars(module)) for module in model.primary.modules())
    assert not model._injector.active
    copy.deepcopy(model)
    with torch.no_grad():
        torch.testing.assert_close(model(torch.ones(2, 3)), mip.materialize(model, lam=0.5)(torch.ones(2, 3)))


def test_nan_weights_stop_the_run_and_are_named(trainer: Trainers) -> None:
    class Diverging(Task):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                with torch.no_grad():
                    self.primary.last.bias[0] = float("nan")

    model = make(Diverging)
    with pytest.raises(FloatingPointError) as caught:
        trainer().fit(model, loader())
    lam = sequence(model, 3)[2]
    assert str(caught.value) == (
        f"The generated weight last.bias is not finite at h = (lam={lam:g}): 1 of 2 numbers are NaN or infinite. Lower "
        "the learning rate, or clip gradients."
    )
