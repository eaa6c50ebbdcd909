"""PerHMetrics: what training_step logs, by bins of h."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAUROC, BinaryConfusionMatrix

import lightning_mip as mip
from tests.tasks import BATCHES, Evaluated, Net, Recorder, Task, drawn, loader, make

Trainers = Callable[..., L.Trainer]
EPOCHS = 2
# pytest.warns records what Lightning uses of torch's deprecated names, and raises it again.
leaf_spec = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec")


@pytest.fixture
def trainer(trainer: Trainers) -> Trainers:
    """Trainers that keep what is logged."""
    return lambda **arguments: trainer(**{"logger": Recorder(), **arguments})


class Logging(Task):
    """Logs numbers that tell which batch and h they came from."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log_dict({"batch": float(batch_idx), "lam": self.h["lam"]}, on_step=False, on_epoch=True)
        self.log("shaped", loss.reshape(1), on_epoch=True)
        return loss


def binned(values: Iterable[tuple[float, float]], bins: int) -> dict[str, float]:
    """Means of values by lam in [0, 1], by hand."""
    found: dict[int, list[float]] = {}
    for lam, value in values:
        found.setdefault(int(lam * bins), []).append(value)
    return {f"lam={b / bins:g}..{(b + 1) / bins:g}": sum(v) / len(v) for b, v in sorted(found.items())}


def logged(trainer: L.Trainer, name: str) -> dict[str, float]:
    """What was logged for a name at the end of the last epoch, by bin."""
    prefix = f"{name}/"
    assert isinstance(trainer.logger, Recorder)
    last = {key: value for entry in trainer.logger.logged[-2:] for key, value in entry.items()}
    return {key.removeprefix(prefix): value for key, value in last.items() if key.startswith(prefix)}


@pytest.mark.parametrize("bins", [1, 3, 8])
def test_every_scalar_that_is_logged_is_averaged_by_bins_of_h(trainer: Trainers, bins: int) -> None:
    model, runner = make(Logging), trainer(max_epochs=EPOCHS, callbacks=[mip.PerHMetrics(bins=bins)])
    runner.fit(model, loader(40))
    lams = drawn(model)[-10:]  # the last epoch alone
    assert logged(runner, "batch") == pytest.approx(binned(((lam, i) for i, lam in enumerate(lams)), bins))
    assert logged(runner, "lam") == pytest.approx(binned(((lam, lam) for lam in lams), bins))
    assert logged(runner, "train_loss").keys() == logged(runner, "shaped").keys() == logged(runner, "lam").keys()
    assert float(runner.callback_metrics["batch"]) == 4.5


def test_empty_bins_are_not_logged(trainer: Trainers) -> None:
    model, runner = make(Logging), trainer(max_epochs=1, callbacks=[mip.PerHMetrics(bins=100)])
    runner.fit(model, loader())
    assert len(logged(runner, "batch")) == BATCHES
    assert all(value == value for value in logged(runner, "batch").values())


def test_each_component_has_bins_of_its_kind(trainer: Trainers) -> None:
    class Mixed(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            h = {name: value.clone() for name, value in self.h.items()}
            self.__dict__.setdefault("_seen", []).append((h, float(batch_idx)))
            self.log("batch", float(batch_idx))
            return (self(batch[0]) - batch[1]).square().mean()

    space = {"kind": mip.Categorical([1, 5]), "weights": mip.Simplex(2), "scale": mip.LogUniform(0.01, 1)}
    model, runner = make(Mixed, h=space), trainer(max_epochs=1, callbacks=[mip.PerHMetrics(bins=2)])
    runner.fit(model, loader(40))
    names: list[Callable[[Any], str]] = [
        lambda h: f"kind={int(h['kind'])}",
        lambda h: f"weights=max{int(h['weights'][1] > h['weights'][0])}",
        lambda h: "scale=0.01..0.1" if h["scale"] < 0.1 else "scale=0.1..1",
    ]
    by_hand: dict[str, list[float]] = {}
    for h, value in model.__dict__["_seen"]:
        for name in names:
            by_hand.setdefault(name(h), []).append(value)
    assert logged(runner, "batch") == pytest.approx({name: sum(v) / len(v) for name, v in by_hand.items()})
    assert len(by_hand) == 6


def test_each_part_of_a_batch_falls_in_the_bin_of_its_own_h(trainer: Trainers) -> None:
    model = make(Logging, draws_per_batch=2)
    runner = trainer(max_epochs=1, callbacks=[mip.PerHMetrics(bins=4)])
    runner.fit(model, loader())
    assert len(drawn(model)) == 2 * BATCHES
    assert logged(runner, "lam") == pytest.approx(binned(((lam, lam) for lam in drawn(model)), 4))


def test_h_that_comes_from_the_batch_is_binned(trainer: Trainers) -> None:
    model = make(Logging, h_from_batch=lambda batch: {"lam": batch[0][0, 0].sigmoid()})
    runner = trainer(max_epochs=1, callbacks=[mip.PerHMetrics(bins=2)])
    runner.fit(model, loader())
    assert logged(runner, "lam") == pytest.approx(binned(((lam, lam) for lam in drawn(model)), 2))


class ByMetric(Evaluated):
    """Splits a metric that is no mean by h."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.auroc = mip.PerH(BinaryAUROC(), "lam", mip.Uniform(0, 1), bins=2)
        self.within = torch.nn.ModuleDict({"mean": mip.PerH(MeanMetric(), "lam", mip.Uniform(0, 1), bins=2)})

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        score, target = self(x)[:, 0].sigmoid(), (y[:, 0] > 0).long()
        self.auroc.update(score, target, h=self.h)
        self.within["mean"].update(score, h=self.h)
        self.__dict__.setdefault("_seen", []).append((self.h["lam"], score.detach(), target))
        return self.loss(batch) if self.h["lam"].ndim == 0 else (self(x) - y).square().mean()


@pytest.mark.parametrize("arguments", [{}, {"draws_per_batch": 2}, {"per_sample": True}])
def test_metrics_of_the_module_per_h_are_logged_and_reset(trainer: Trainers, arguments: dict[str, Any]) -> None:
    model, runner = make(ByMetric, **arguments), trainer(max_epochs=EPOCHS, callbacks=[mip.PerHMetrics()])
    runner.fit(model, loader(40), loader(seed=1))
    seen = model.__dict__["_seen"][len(model.__dict__["_seen"]) // 2 :]
    lam, score, target = (
        torch.cat(each) for each in zip(*((h.expand(s.shape), s, t) for h, s, t in seen), strict=True)
    )
    for label, chosen in (("lam=0..0.5", lam < 0.5), ("lam=0.5..1", lam >= 0.5)):
        assert logged(runner, "auroc")[label] == pytest.approx(float(BinaryAUROC()(score[chosen], target[chosen])))
        assert logged(runner, "within.mean")[label] == pytest.approx(float(score[chosen].mean()), rel=1e-5)
    assert model.auroc.compute() == {}


def test_validation_is_left_alone(trainer: Trainers) -> None:
    model, runner = make(Evaluated), trainer(callbacks=[mip.PerHMetrics(bins=2)], val_check_interval=0.5)
    runner.fit(model, loader(), loader(seed=1))
    assert set(logged(runner, "val_loss")) == {"lam=0", "lam=0.25", "lam=0.5", "lam=0.75", "lam=1"}


def test_the_progress_bar_entry_of_h_has_no_bins(trainer: Trainers, capsys: pytest.CaptureFixture[str]) -> None:
    runner = trainer(callbacks=[mip.PerHMetrics()], enable_progress_bar=True)
    runner.fit(make(Task), loader())
    assert not [name for name in runner.callback_metrics if name.startswith("h/lam/")]


@leaf_spec
def test_a_metric_of_more_than_a_number_is_left_to_the_module(trainer: Trainers) -> None:
    class Confused(Task):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.matrix = mip.PerH(BinaryConfusionMatrix(), "lam", mip.Uniform(0, 1), bins=1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.matrix.update(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), h=self.h)
            return self.loss(batch)

        def on_train_epoch_end(self) -> None:
            assert self.matrix.compute()["lam=0..1"].tolist() == [[BATCHES, BATCHES], [0, BATCHES]]
            self.matrix.reset()

    message = (
        "PerHMetrics leaves out 'matrix': it computes more than a number; log what you need of compute() in "
        "on_train_epoch_end, and reset."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        trainer(callbacks=[mip.PerHMetrics()]).fit(make(Confused), loader())


@leaf_spec
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {},
            "PerHMetrics leaves out 'value': it is a torchmetrics object; wrap it in lightning_mip.metrics.PerH to "
            "have it by h.",
        ),
        (
            {"per_sample": True},
            "PerHMetrics leaves out 'value': it is a mean over samples with different h; use "
            "lightning_mip.metrics.PerH to split it.",
        ),
    ],
)
def test_what_cannot_be_split_is_named_once(trainer: Trainers, arguments: dict[str, Any], text: str) -> None:
    class Unsplit(Task):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.mean = MeanMetric()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = (self(batch[0]) - batch[1]).square().mean()
            self.mean.update(loss)
            self.log("value", self.mean if not self.per_sample else loss, on_step=False, on_epoch=True)
            return loss

    runner = trainer(callbacks=[mip.PerHMetrics()])
    with pytest.warns(UserWarning, match="PerHMetrics") as caught:
        runner.fit(make(Unsplit, **arguments), loader())
    messages = [str(warning.message) for warning in caught if "PerHMetrics" in str(warning.message)]
    assert messages == [text]
    assert logged(runner, "value") == {}


def test_the_module_logs_by_itself_again_after_a_run_and_after_an_error(trainer: Trainers) -> None:
    class Failing(Logging):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if batch_idx == 1:
                raise KeyError("broken")
            return super().training_step(batch, batch_idx)

    model, broken = make(Logging), make(Failing)
    trainer(callbacks=[mip.PerHMetrics()]).fit(model, loader())
    with pytest.raises(KeyError, match="broken"):
        trainer(callbacks=[mip.PerHMetrics()]).fit(broken, loader())
    assert "log" not in vars(model)
    assert "log" not in vars(broken)


def test_the_module_logs_by_itself_again_after_a_batch_that_it_skipped(trainer: Trainers) -> None:
    class Skipping(Task):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 2 else None

    model = make(Skipping)
    trainer(callbacks=[mip.PerHMetrics()]).fit(model, loader())
    assert "log" not in vars(model)


def test_the_callback_copies_and_serves_a_second_run(trainer: Trainers) -> None:
    callback = copy.deepcopy(mip.PerHMetrics(bins=2))
    for samples in (8, 16):
        runner = trainer(max_epochs=1, callbacks=[callback])
        model = make(Logging)
        runner.fit(model, loader(samples))
        assert logged(runner, "lam") == pytest.approx(binned(((lam, lam) for lam in drawn(model)), 2))


class Plain(L.LightningModule):
    """Not hypernetized."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.layer(batch[0]).mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_module_that_is_not_hypernetized_is_refused(trainer: Trainers) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        trainer(callbacks=[mip.PerHMetrics()]).fit(Plain(), loader())
    assert str(caught.value) == "Plain is not hypernetized; call mip.hypernetize on it first."


@pytest.mark.parametrize(("bins", "message"), [(0, "bins is 0, expected at least 1.")])
def test_messages(bins: int, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        mip.PerHMetrics(bins)
    assert str(caught.value) == message


# --- Two hypernetized networks in one module


class WithAnother(Logging):
    """Holds another hypernetized network, which it does not train."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.other = Net()
        mip.hypernetize(self.other, {"phi": mip.Normal()}).requires_grad_(False)


class ByHand(L.LightningModule):
    """Holds two, and brings their h into force itself."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Net(), Net()
        self.hypernets = nn.ModuleList(mip.hypernetize(net, {"lam": mip.Uniform(0, 1)}) for net in (self.one, self.two))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with mip.at(self.one, lam=0.3), mip.at(self.two, lam=0.5):
            loss = (self.one(batch[0]) + self.two(batch[0])).square().mean()
            self.log("train_loss", loss)
            self.manual_backward(loss)
        return loss.detach()

    def configure_optimizers(self) -> Any:
        self.automatic_optimization = False
        return torch.optim.SGD(self.parameters(), 0.1)


def test_of_two_hypernetized_networks_that_of_the_module_counts(trainer: Trainers) -> None:
    runners = [trainer(max_epochs=1, callbacks=[mip.PerHMetrics(bins=3), mip.MagnitudeMonitor()]) for _ in range(2)]
    for runner, kind in zip(runners, (Logging, WithAnother), strict=True):
        runner.fit(make(kind), loader())
    one, two = (runner.callback_metrics for runner in runners)
    assert any("lam=" in name for name in one)
    assert any("magnitude" in name for name in one)
    assert one == two


@pytest.mark.parametrize("callback", [mip.PerHMetrics, mip.MagnitudeMonitor])
def test_two_that_the_user_runs_are_refused_with_what_serves_them(trainer: Trainers, callback: Any) -> None:
    message = (
        f"{callback.__name__} is for one hypernetized network, but ByHand holds one, two, and none of them is that of "
        "a HyperLightningModule; leave the callback out, and use mip.PerH for metrics by h, mip.diagnose(network, ...) "
        "for magnitudes."
    )
    with pytest.raises(MisconfigurationException, match=f"^{re.escape(message)}$"):
        trainer(max_epochs=1, callbacks=[callback()]).fit(ByHand(), loader())
