"""A training loss that is NaN or infinite is found without waiting for the device, and named by its batch and h."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import lightning_mip as mip
from lightning_mip.checks import looked_at
from lightning_mip.finite import EVERY, LossWatch
from lightning_mip.injection import the_injector
from lightning_mip.per_sample import run_per_sample
from tests.module_kinds import exactly
from tests.tasks import BATCH, BATCHES, SMALL, Net, Task, drawn, loader, make, sequence

# What Lightning does is ignored by module in the settings, which pytest.warns does not keep.
pytestmark = pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated")

Trainers = Callable[..., L.Trainer]
WAY_OUT = (
    "Lower the learning rate, or look for what is undefined there; Trainer(detect_anomaly=True) stops in that batch."
)


class Undefined(Task):
    """Its loss, not its gradient, is undefined in two batches of the second epoch."""

    worst = float("nan")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        wrong = self.trainer.current_epoch == 1 and batch_idx in (1, 2)
        return super().training_step(batch, batch_idx) + (self.worst if wrong else 0.0)


class Manual(Undefined):
    """The same in manual optimization."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        self.manual_backward(super().training_step(batch, batch_idx))


class Plain(L.LightningModule):
    """Somebody else's module whose loss has no value in the third batch."""

    def __init__(self) -> None:
        super().__init__()
        self.lam, self.net, self.batches = 0.5, Net(), 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.batches += 1
        x, y = batch
        return self.lam * (self.net(x) - y).square().mean() + (float("nan") if batch_idx == 2 else 0.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


@pytest.mark.parametrize("kind", [Undefined, Manual])
@pytest.mark.parametrize("worst", [float("nan"), float("inf")])
def test_the_first_loss_that_is_not_finite_stops_the_run_at_the_end_of_its_epoch(
    trainer: Trainers, kind: type[Undefined], worst: float
) -> None:
    model = make(kind)
    model.worst = worst
    with pytest.raises(FloatingPointError) as caught:
        trainer(max_epochs=3).fit(model, loader())
    lam = sequence(model, 6)[5]
    assert (
        str(caught.value)
        == f"The training loss was NaN or infinite in batch 1 of epoch 1, at h = (lam={lam:g}). {WAY_OUT}"
    )
    assert len(drawn(model)) == 8


@pytest.mark.filterwarnings("ignore:You have turned on.*detect_anomaly")
def test_anomaly_detection_stops_in_the_batch_itself(trainer: Trainers) -> None:
    model = make(Undefined)
    with pytest.raises(FloatingPointError, match="in batch 1 of epoch 1"):
        trainer(detect_anomaly=True).fit(model, loader())
    assert len(drawn(model)) == 6


def test_the_plug_in_names_the_hyperparameter(trainer: Trainers) -> None:
    model = Plain()
    plugin = mip.Hypernetize("net", {"lam": mip.Uniform(0, 1)}, **SMALL)
    with pytest.raises(FloatingPointError) as caught:
        trainer(callbacks=[plugin]).fit(model, loader())
    lam = float(plugin.space.sample(seed=0, step=2)["lam"])
    assert (
        str(caught.value)
        == f"The training loss was NaN or infinite in batch 2 of epoch 0, at h = (lam={lam:g}). {WAY_OUT}"
    )
    assert model.batches == 4


@pytest.mark.parametrize("anomaly", [False, True])
def test_of_several_draws_the_one_with_the_loss_is_named(trainer: Trainers, anomaly: bool) -> None:
    class OfOneDraw(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            wrong = batch_idx == 1 and self.h["lam"] == second
            return super().training_step(batch, batch_idx) + (float("nan") if wrong else 0.0)

    model = make(OfOneDraw, draws_per_batch=2)
    second = model.space.sample(seed=0, step=1, n=2)["lam"][1]
    with pytest.raises(FloatingPointError) as caught:
        trainer(detect_anomaly=anomaly).fit(model, loader())
    label = model.space.label({"lam": second})
    assert (
        str(caught.value) == f"The training loss was NaN or infinite in batch 1 of epoch 0, at h = ({label}). {WAY_OUT}"
    )
    assert len(drawn(model)) == 2 * (2 if anomaly else BATCHES)


def test_where_samples_have_an_h_of_their_own_the_batch_is_named_alone(trainer: Trainers) -> None:
    class Mean(mip.HyperLightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(batch[0]).mean() + (float("nan") if batch_idx == 1 else 0.0)

    model = Mean(primary=nn.Linear(3, 2), h={"lam": mip.Uniform(0, 1)}, hypernet=SMALL, per_sample=True)
    with pytest.raises(FloatingPointError) as caught:
        # Seven samples: the last batch is smaller.
        trainer().fit(model, loader(samples=7))
    assert str(caught.value) == f"The training loss was NaN or infinite in batch 1 of epoch 0. {WAY_OUT}"


def test_where_a_gradient_scaler_leaves_the_step_out_training_goes_on(trainer: Trainers) -> None:
    model = make(Undefined)
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1.0))
    with pytest.warns(UserWarning, match=r"^The training loss was NaN or infinite in batch 1 of epoch 1, at h = "):
        trainer(max_epochs=3, plugins=[scaled]).fit(model, loader())
    assert len(drawn(model)) == 12


def test_in_a_long_epoch_the_losses_are_looked_at_before_its_end(trainer: Trainers) -> None:
    model = Plain()
    plugin = mip.Hypernetize("net", {"lam": mip.Uniform(0, 1)}, **SMALL)
    with pytest.raises(FloatingPointError, match="in batch 2 of epoch 0"):
        trainer(callbacks=[plugin]).fit(model, loader(samples=2 * EVERY, batch_size=1))
    assert model.batches == EVERY


def test_looking_does_not_wait_for_the_device() -> None:
    class NoWaiting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert "_local_scalar_dense" not in str(func), "a number was read"
            return func(*args, **(kwargs or {}))

    watch, space = LossWatch(), mip.HSpace({"lam": mip.Uniform(0, 1)})
    trainer: Any = SimpleNamespace(fit_loop=SimpleNamespace(batch_idx=0), current_epoch=0)
    with NoWaiting():
        for _ in range(EVERY - 1):
            watch.see(trainer, torch.tensor(float("nan")), space, {"lam": torch.tensor(0.5)})
    with pytest.raises(AssertionError, match="a number was read"), NoWaiting():
        watch.check(trainer, space)


class PerSample(mip.HyperLightningModule):
    """Each sample at its own h; after some batch a parameter of the network is undefined."""

    worst_after = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).square().mean()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.worst_after:
            with torch.no_grad():
                self.primary.last.bias[0] = float("nan")


# The step in which they are generated, or the end of the epoch, which looks once more.
@pytest.mark.parametrize("worst_after", [0, BATCHES - 1])
def test_a_weight_that_is_not_finite_is_named_with_the_h_of_the_first_sample_that_has_it(
    trainer: Trainers, worst_after: int
) -> None:
    model = PerSample(Net(), {"lam": mip.Uniform(0, 1)}, hypernet=SMALL, per_sample=True)
    model.worst_after = worst_after
    with pytest.raises(FloatingPointError) as caught:
        trainer(max_epochs=1).fit(model, loader())
    seen = min(worst_after + 1, BATCHES - 1)
    lam = float(model.space.sample(seed=0, step=seen, n=BATCH)["lam"][0])
    assert str(caught.value) == (
        f"The generated weight last.bias is not finite at h = (lam={lam:g}): 1 of 2 numbers are NaN or infinite. Lower "
        "the learning rate, or clip gradients."
    )


def of_half(hyper: nn.Module, given: Any, deltas: dict[str, Tensor]) -> dict[str, Tensor]:
    """Changes that are infinite in one tensor, where lam is a half."""
    wrong = torch.where(given[0]["lam"] == 0.5, float("inf"), 0.0)[:, None]
    return {**deltas, "first.bias": deltas["first.bias"] + wrong}


def test_of_a_batch_the_sample_that_is_not_finite_is_found() -> None:
    net = Net()
    mip.hypernetize(net, {"lam": mip.Uniform(0, 1)}, **SMALL).register_forward_hook(of_half)
    text = (
        "The generated weight first.bias is not finite at h = (lam=0.5): 5 of 5 numbers are NaN or infinite. Lower the "
        "learning rate, or clip gradients."
    )
    with pytest.raises(FloatingPointError, match=exactly(text)):
        run_per_sample(the_injector(net), {"lam": torch.tensor([0.25, 0.5, 1.0])}, (torch.ones(3, 3),), {})


def run_on(device: str, per_sample: bool) -> None:
    """Run a training batch with tensors that are on a device and have no values: whoever reads one gets an error."""
    model = PerSample(Net(), {"lam": mip.Uniform(0, 1)}, hypernet=SMALL, per_sample=per_sample)
    model._device = torch.device(device, 0)
    with FakeTensorMode(), torch.no_grad():
        for module in model.modules():
            for name, old in module._parameters.items():
                module._parameters[name] = nn.Parameter(torch.empty(old.shape, device=device))
            for name, old in module._buffers.items():
                module._buffers[name] = torch.empty(old.shape, device=device)
        # Drawn on the CPU; of a single number the mode knows the value there.
        model.start_batch({"lam": torch.tensor([0.5] if per_sample else 0.5)})
        model(torch.ones(1, 3, device=device))


@pytest.mark.parametrize("per_sample", [False, True])
def test_on_a_gpu_generated_weights_are_not_looked_at_in_a_step(per_sample: bool) -> None:
    run_on("cuda", per_sample)
    with pytest.raises(DataDependentOutputException):
        run_on("cpu", per_sample)


@pytest.mark.parametrize(
    ("device", "anomaly", "expected"),
    [
        ("cpu", False, True),
        ("cpu", True, True),
        ("cuda", False, False),
        ("cuda", True, True),
    ],
)
def test_with_anomaly_detection_they_are(device: str, anomaly: bool, expected: bool) -> None:
    with torch.autograd.set_detect_anomaly(anomaly):
        assert looked_at(torch.device(device)) is expected
