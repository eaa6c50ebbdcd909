"""Looking at a training step without a trace, and warning of hyperparameters that it does not read."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torchmetrics import MeanSquaredError, MetricCollection

import lightning_mip as mip
from lightning_mip.probe import StepProbe, replaced, same, sums, written_to
from tests.habits import InInit, penalised
from tests.tasks import BATCHES, SMALL, Net, loader

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated"),
    pytest.mark.filterwarnings("ignore:Norm layers keep running statistics"),
]

Trainers = Callable[..., L.Trainer]


class Traces(InInit):
    """Leaves a trace of its step wherever one can be left."""

    def __init__(self, lam: float = 0.25) -> None:
        super().__init__(lam)
        self.net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 2))
        self.error = MeanSquaredError()
        self.metrics = MetricCollection([MeanSquaredError()])
        self.register_buffer("queue", torch.zeros(0, 2))
        self.register_buffer("total", torch.zeros(()))
        self.running = torch.zeros(2)
        self.generator = torch.Generator().manual_seed(3)
        self.steps, self._private, self.first = 0, [], None
        self.nested: dict[str, Any] = {"list": [], "set": set(), "recent": deque(maxlen=2)}
        self.pair: tuple[list[int], str] = ([], "of a list")
        self.net[0].calls = 0
        self.average = nn.Linear(2, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch["x"], batch.pop("y")
        with torch.no_grad():
            self.average.bias.mul_(0.5)
        self.average.weight.data = self.average.weight.data * 0.5
        noise = torch.randn(x.shape, generator=self.generator) + random.random() + np.random.random()
        x += 0.1 * noise + 0.1 * torch.randn_like(x)
        predicted = self(x)
        loss = penalised(predicted, y, self.hparams.lam)
        self.error(predicted, y)
        self.log("train_error", self.error)
        self.log_dict(self.metrics(predicted, y), on_step=False, on_epoch=True)
        self.log("train_loss", loss)
        if self.logger is not None:
            self.logger.log_metrics({"direct": float(loss)}, step=self.steps)
        self.print("step", self.steps)
        self.pair[0].append(self.steps)
        self.queue = torch.cat([self.queue, predicted.detach()])[-6:]
        self.total += 1
        self.running.add_(predicted.detach().mean(0))
        self.steps += 1
        self._private.append(float(loss))
        self.nested["list"].append([self.steps])
        self.nested["list"][0].append(1)
        self.nested["set"].add(self.steps)
        self.nested["recent"].append(self.steps)
        self.first = self.first if self.first is not None else x
        self.net[0].calls += 1
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", penalised(self(batch["x"]), batch["y"], self.hparams.lam))


def batches(seed: int = 0) -> Any:
    data = [{"x": x, "y": y} for x, y in zip(*loader(seed=seed).dataset.tensors, strict=True)]
    return torch.utils.data.DataLoader(data, 4)


def plugin(**arguments: Any) -> mip.Hypernetize:
    defaults = {"target": "net", "h": {"hparams.lam": mip.Uniform(0, 1)}, "eval_grid": 2, **SMALL}
    return mip.Hypernetize(**{**defaults, **arguments})


def test_training_is_the_same_with_and_without_the_look(
    trainer: Trainers, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for looks in (True, False):
        if not looks:
            monkeypatch.setattr("lightning_mip.callbacks.hypernetize.warn_of_unread", lambda *_: None)
        L.seed_everything(0, verbose=False)
        module, logger = Traces(), CSVLogger(tmp_path, version=str(looks))
        runner = trainer(callbacks=[plugin()], logger=logger)
        runner.fit(module, batches(), batches(1))
        with open(logger.experiment.metrics_file_path) as file:
            rows = file.read()
        lists = (module.steps, module._private, str(module.nested), module.net[0].calls)
        tensors = [*module.state_dict().values(), module.running, module.first, module.generator.get_state()]
        random_numbers = (torch.rand(1), random.random(), np.random.random())
        found.append((rows, lists, random_numbers, capsys.readouterr().out, tensors))
    (*one, tensors), (*other, others) = found
    assert one == other
    assert "direct" in one[0]
    assert module.steps == 2 * BATCHES
    assert same(*([t for t in part if isinstance(t, Tensor)] for part in (tensors, others)))


class Fixed(InInit):
    """Reads its hyperparameter once, when it makes a layer from it."""

    def __init__(self, dropout: float = 0.5, lam: float = 0.25) -> None:
        super().__init__(lam)
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.Linear(8, 2))
        self.error = MeanSquaredError()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.error(self(batch[0]), batch[1])
        self.log("error", self.error)
        return super().training_step(batch, batch_idx)


MESSAGE = (
    "On the first batch, changing hparams.dropout changes neither what training_step returns nor the output of 'net': "
    "the step does not seem to read it. If a layer was made from it, bind that layer's attribute instead (such as "
    "'net.dropout.p'); leave it out of bind if nothing is to read it. A learning rate is no dial."
)


def test_a_hyperparameter_that_was_used_up_in_the_making_is_warned_of(trainer: Trainers) -> None:
    h = {"hparams.dropout": mip.Uniform(0, 0.9), "hparams.lam": mip.Uniform(0, 1)}
    with pytest.warns(UserWarning, match="changing hparams.dropout") as caught:
        trainer(callbacks=[plugin(h=h)]).fit(Fixed(), loader(), loader(seed=1))
    assert [str(warning.message) for warning in caught if "changing" in str(warning.message)] == [MESSAGE]


@pytest.mark.parametrize("path", ["net.2.p", "hparams.lam"])
def test_one_that_the_step_reads_is_not(trainer: Trainers, path: str) -> None:
    trainer(callbacks=[plugin(h={path: mip.Uniform(0, 0.9)})]).fit(Fixed(), loader(), loader(seed=1))


def test_one_that_changes_the_output_alone_is_not(trainer: Trainers) -> None:
    class Detached(InInit):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.net(batch[0] + self.hparams.lam)
            return penalised(self.net(batch[0]), batch[1], 0.0)

    trainer(callbacks=[plugin()]).fit(Detached(), loader(), loader(seed=1))


class Manual(InInit):
    """Takes its own steps."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.steps += 1
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(penalised(self(batch[0]), batch[1], 0.0))
        optimizer.step()


class Iterating(InInit):
    """Takes the batches itself."""

    steps = 0

    def training_step(self, dataloader_iter: Any) -> Tensor:
        self.steps += 1
        (x, y), _, _ = next(dataloader_iter)
        return penalised(self(x), y, 0.0)


class Differentiating(InInit):
    """Differentiates in its step, as a gradient penalty does."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].requires_grad_()
        (slope,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
        return penalised(self.net(x), batch[1], self.hparams.lam) + slope.square().mean()


class Skipping(InInit):
    """Leaves out its first batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return penalised(self(batch[0]), batch[1], self.hparams.lam) if batch_idx else None


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
@pytest.mark.filterwarnings("ignore:Found `dataloader_iter` argument in the `training_step`")
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("kind", [Manual, Iterating, Differentiating, Skipping])
def test_a_step_that_cannot_be_looked_at_trains_all_the_same(trainer: Trainers, kind: Any) -> None:
    module = kind()
    trainer(max_epochs=1, callbacks=[plugin()]).fit(module, loader(), loader(seed=1))
    if kind in (Manual, Iterating):
        assert module.steps == BATCHES


def test_an_error_in_the_look_is_left_to_training(trainer: Trainers) -> None:
    class Picky(InInit):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            assert self.hparams.lam not in (0.0, 1.0)  # the look's values
            return super().training_step(batch, batch_idx)

    trainer(callbacks=[plugin()]).fit(Picky(), loader(), loader(seed=1))


def test_two_looks_see_the_same() -> None:
    class Runner:
        loggers: Any = ()
        precision_plugin = L.pytorch.plugins.precision.Precision()

    module = Fixed()
    probe = StepProbe(Runner(), module, module.net, next(iter(loader())), 0)
    one, other = probe.run(), probe.run()
    assert len(one) == 3  # two calls of the network, and the loss
    assert same(one, other)
    assert not same(one, one[:2])
    assert not same(one, [*one[:2], one[2] + 1])
    assert "log" not in vars(module)


def test_attributes_of_an_instance_come_back() -> None:
    module = Net()
    module.own = 1  # type: ignore[assignment]
    with replaced(module, {"own": 2, "forward": len}):
        assert (module.own, module("ab")) == (2, 2)
    assert module.own == 1
    assert "forward" not in vars(module)


class Box:
    """A plain object."""

    def __init__(self) -> None:
        self.values: list[Any] = [1, {"a": 2}]


class Slotted:
    """A plain object without a dictionary."""

    __slots__ = ("count", "unset")

    def __init__(self) -> None:
        self.count = 0


def _write(module: Any, what: str) -> None:
    if what == "box":
        module.box.values[1]["a"] += 1
    elif what == "criterion.calls":
        module.criterion.calls += 1
    elif what == "total":
        module.total += 1
    elif what == "items":
        module.items.append(1)
    elif what == "error.total":
        module.error(torch.ones(2), torch.zeros(2))
    elif what == "slotted":
        module.slotted.count += 1
    elif what == "pair":
        module.pair[1].append(1)
    elif what == "array":
        module.array += 1
    elif what == "number":
        module.number += 1
    elif what == "hidden":
        module.hidden["error"].update(torch.ones(2), torch.zeros(2))


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize(
    "what",
    [
        "nothing",
        "box",
        "criterion.calls",
        "total",
        "items",
        "error.total",
        "slotted",
        "pair",
        "array",
        "number",
        "hidden",
    ],
)
def test_what_was_written_to_is_found(what: str, inference: bool) -> None:
    module: Any = InInit()
    module.box, module.items, module.error, module.criterion = Box(), [], MeanSquaredError(), nn.MSELoss()
    module.criterion.calls = 0
    module.slotted, module.pair, module.array = Slotted(), ([], []), np.zeros(2)
    module.number, module.transform, module.curve = np.float64(0), np.log1p, np.poly1d([1.0])
    module.each = np.vectorize(abs)
    module.hidden, module.path = {"error": MeanSquaredError()}, Path("one")
    module.register_buffer("total", torch.zeros(()))
    module.net.calls = 0
    with torch.inference_mode(inference):
        before = written_to(module, module.net)
        module.net.calls += 1
        module.net(torch.zeros(1, 3))
        str(module.path)  # which it keeps in a slot
        _write(module, what)
        after = written_to(module, module.net)
    changed = [name for name in after if after[name] != before[name]]
    assert (what in changed) is (what != "nothing") or what == "error.total"
    assert all(name.split(".")[0] == what.split(".")[0] for name in changed)


def test_a_large_array_is_not_read() -> None:
    module: Any = InInit()
    module.large = np.broadcast_to(np.zeros(1), 2**40)  # whose copy would fill the memory
    before = written_to(module, module.net)
    assert written_to(module, module.net) == before
    module.large = module.large[1:]
    assert written_to(module, module.net) != before


def test_a_sum_changes_with_its_parameter_and_with_no_other() -> None:
    first, second = nn.Linear(2, 2, dtype=torch.float64), nn.Linear(2, 2, dtype=torch.bfloat16)
    parameters = [*first.parameters(), *second.parameters()]
    before = sums(parameters)
    for place, parameter in enumerate(parameters):
        with torch.no_grad():
            parameter[0] += 1
        after = sums(parameters)
        assert [at for at, (one, other) in enumerate(zip(before, after, strict=True)) if one != other] == [place]
        before = after


def test_sums_leave_out_what_has_no_numbers_yet_or_complex_ones() -> None:
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.LazyLinear(1), nn.Linear(1, 1, dtype=torch.complex64))
    assert sums(network.parameters()) == [network[0].weight.item()]
    assert sums([]) == []


def test_sums_are_read_together() -> None:
    parameters = list(nn.Sequential(*[nn.Linear(2, 2) for _ in range(5)]).parameters())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        sums(parameters)
    reads = [event.count for event in profile.key_averages() if event.key == "aten::_local_scalar_dense"]
    assert sum(reads) <= 1


class OfDerivatives(InInit):
    """Trains on derivatives of the network at each sample, as for a differential equation."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        slopes = torch.func.vmap(torch.func.jacrev(lambda x: self.net(x)))(batch[0])
        return penalised(self.net(batch[0]), batch[1], self.hparams.lam) + slopes.square().mean()


def test_a_step_may_transform_the_network(trainer: Trainers) -> None:
    trainer(max_epochs=1, callbacks=[plugin()]).fit(OfDerivatives(), loader(), loader(seed=1))
