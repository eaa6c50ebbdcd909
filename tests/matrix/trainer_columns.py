"""Columns of the matrix in which Lightning's Trainer trains, against the same training by hand in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_mip as mip
from tests.matrix.kinds import DOUBLE, Kind, converted
from tests.matrix.subject import COARSE, EXACT, ByHand, assert_near, quietly, tolerance, value
from tests.module_kinds import gradients
from tests.tasks import SaveAt

LR = 0.05
# A change of the weights by training has fewer digits than the weights.
CHANGE = 100
DECAY = 0.5
CLIP = 0.1

Batch = tuple[Any, ...]
Snapshots = list[list[Tensor]]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, LR, momentum=0.5)


def lbfgs(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(parameters, LR, max_iter=3)


class Step(mip.HyperLightningModule):
    """One forward."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return value(self(*batch))


class Recording(Step):
    """Remembers of each backward its step, the weights and their gradients."""

    def on_after_backward(self) -> None:
        seen = self.__dict__.setdefault("_seen", [])
        parameters = [*self.parameters()]
        weights = [p.detach().clone() for p in parameters]
        seen.append((self.global_step, weights, [g.clone() for g in gradients(parameters)]))


class Twice(Step):
    """Two forwards, on two batches."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        one, other = batch
        return value(self(*one)) - 0.5 * value(self(*other))


class Manual(Step):
    """Theta0 and the hypernetwork in turn, each with an optimizer, a forward and a backward of its own."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        # Without theta0's own, where all of it is frozen, there is nothing to take turns.
        trained = [p for p in self.primary.parameters() if p.requires_grad]
        return [sgd(trained), torch.optim.SGD(self.hypernet.parameters(), 2 * LR)]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(value(self(*batch)))
            optimizer.step()


def trainer(folder: Path, **arguments: Any) -> L.Trainer:
    """One that says and writes nothing, on one CPU."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    defaults = {"default_root_dir": folder, "max_epochs": 1, "accelerator": "cpu", "devices": 1, **quiet}
    return L.Trainer(**{**defaults, **arguments})


def model_of(
    kind: Kind, cls: type[Step] = Step, dtype: torch.dtype = DOUBLE, optimizer: Callable[[Any], Any] = sgd
) -> tuple[Any, ByHand]:
    """A LightningModule around a network of a kind, matched to its optimizer, and the reference."""
    net, _ = kind.build(dtype)
    arguments = {"h": {"lam": mip.Uniform(0, 1)}, "hypernet": {"hidden_sizes": (4, 5)}, **kind.arguments}
    torch.manual_seed(1)
    model: Any = quietly(cls, primary=net, optimizer=optimizer, **arguments)
    model.hypernet.match(sgd(model.hypernet.parameters()))
    return model, ByHand(kind.build(dtype)[0], model.hypernet, kind.exact)


def batches_of(kind: Kind, count: int = 2, dtype: torch.dtype = DOUBLE) -> list[Batch]:
    """Inputs, different in each batch."""
    return [kind.build(dtype, seed)[1] for seed in range(count)]


def loader(batches: Sequence[Any]) -> DataLoader[Any]:
    return DataLoader(list(batches), batch_size=None)  # type: ignore[arg-type]


def precision(kind: Kind) -> str:
    """Double where nothing else is asked for; of a kind that is about its dtypes, none of them changes."""
    return "32-true" if kind.own else "64-true"


def drawn(model: Any, step: int, rank: int = 0) -> float:
    return float(model.space.sample(seed=0, rank=rank, step=step)["lam"])


def by_hand(
    by_hand: ByHand,
    losses: Iterator[Callable[[], Tensor]],
    optimizer: Callable[[Any], Any] = sgd,
    accumulate: int = 1,
    clip: float | None = None,
) -> Snapshots:
    """Train the reference, and return its parameters after each step of the optimizer."""
    trained = [p for p in by_hand.parameters if p.requires_grad]
    stepper = optimizer(trained)
    history = []
    for place, compute in enumerate(losses):

        def closure(compute: Callable[[], Tensor] = compute) -> Tensor:
            if place % accumulate == 0:  # noqa: B023
                stepper.zero_grad()
            found = compute() / accumulate
            found.backward()
            return found

        if (place + 1) % accumulate:
            closure()
            continue
        if clip is None:
            stepper.step(closure)
        else:
            closure()
            nn.utils.clip_grad_norm_(trained, clip)
            stepper.step()
        history.append([p.detach().clone() for p in by_hand.parameters])
    return history


def losses_of(model: Any, reference: ByHand, batches: Sequence[Batch], epochs: int) -> Iterator[Callable[[], Tensor]]:
    """The loss of each batch at its h."""
    for step, batch in enumerate(list(batches) * epochs):
        lam = drawn(model, step)
        yield lambda batch=batch, lam=lam: value(reference(*batch, lam=lam))


def assert_trained(model: Any, start: Sequence[Tensor], expected: Sequence[Tensor], kind: Kind) -> None:
    """Compare by how much training has changed each parameter."""
    found = [p.detach() - s for p, s in zip(model.parameters(), start, strict=True)]
    change = [e.detach() - s for e, s in zip(expected, start, strict=True)]
    assert any(float(tensor.abs().max()) > 0 for tensor in change if tensor.numel()), "nothing was trained"
    assert_near(found, change, CHANGE * tolerance(kind) if kind.own else CHANGE * EXACT, "change")


def trained(
    kind: Kind,
    folder: Path,
    *,
    epochs: int = 1,
    optimizer: Callable[[Any], Any] = sgd,
    accumulate: int = 1,
    clip: float | None = None,
    **arguments: Any,
) -> None:
    """Train by the Trainer and by hand."""
    model, reference = model_of(kind, optimizer=optimizer)
    batches = batches_of(kind)
    start = [p.detach().clone() for p in reference.parameters]
    expected = by_hand(reference, losses_of(model, reference, batches, epochs), optimizer, accumulate, clip)[-1]
    runner = trainer(folder, max_epochs=epochs, **{"precision": precision(kind), **arguments})
    runner.fit(model, loader(batches))
    assert_trained(model, start, expected, kind)


def in_double(kind: Kind, folder: Path) -> None:
    """All dtypes of a network become float64, also those of a kind that is about them."""
    trained(kind, folder, precision="64-true")


def accumulated(kind: Kind, folder: Path) -> None:
    trained(kind, folder, epochs=2, accumulate=2, accumulate_grad_batches=2)


def clipped(kind: Kind, folder: Path) -> None:
    trained(kind, folder, clip=CLIP, gradient_clip_val=CLIP)


def by_lbfgs(kind: Kind, folder: Path) -> None:
    """In dtypes of a network's own, the gradients: curvature found by differences makes steps of rounding."""
    if not kind.own:
        trained(kind, folder, optimizer=lbfgs)
        return
    model, reference = model_of(kind, Recording, optimizer=lbfgs)
    batches = batches_of(kind)
    trainer(folder, precision=precision(kind)).fit(model, loader(batches))
    assert len(model.__dict__["_seen"]) > len(batches), "one evaluation per step"
    assert_gradients(model, reference, batches, tolerance(kind))


def in_coarse(kind: Kind, folder: Path, how: str) -> None:
    """bfloat16: the gradients of each step, as rounding leaves nothing of small steps to compare."""
    dtype = torch.bfloat16 if how == "bf16-true" else torch.float32
    model, _ = model_of(kind, Recording, torch.float32)
    if how == "bf16-true":
        model.to(dtype)
    batches = batches_of(kind, dtype=torch.float32)
    reference = ByHand(kind.build(torch.float32)[0], model.hypernet, kind.exact)
    trainer(folder, precision=how).fit(model, loader(batches))
    assert_gradients(model, reference, [converted(batch, dtype) for batch in batches], COARSE)


def assert_gradients(model: Any, reference: ByHand, batches: Sequence[Batch], tolerance: float) -> None:
    """Compare the gradients of each backward with the reference at the weights of that moment."""
    for step, parameters, found in model.__dict__["_seen"]:
        reference.set(parameters)
        for parameter in reference.parameters:
            parameter.grad = None
        value(reference(*batches[step], lam=drawn(model, step))).backward()
        assert_near(found, reference.gradients(), tolerance, f"step {step}: gradient")


def several_forwards(kind: Kind, folder: Path) -> None:
    model, reference = model_of(kind, Twice)
    one, two, three, four = batches_of(kind, 4)
    pairs = [(one, two), (three, four)]

    def losses() -> Iterator[Callable[[], Tensor]]:
        for step, (first, second) in enumerate(pairs):
            lam = drawn(model, step)
            yield lambda a=first, b=second, lam=lam: value(reference(*a, lam=lam)) - 0.5 * value(reference(*b, lam=lam))

    start = [p.detach().clone() for p in reference.parameters]
    expected = by_hand(reference, losses())[-1]
    trainer(folder, precision=precision(kind)).fit(model, loader(pairs))
    assert_trained(model, start, expected, kind)


def manual(kind: Kind, folder: Path) -> None:
    model, reference = model_of(kind, Manual)
    batches = batches_of(kind)
    start = [p.detach().clone() for p in reference.parameters]
    own = [p for p in reference.theta0.values() if p.requires_grad]
    optimizers = [sgd(own), torch.optim.SGD(reference.hyper.parameters(), 2 * LR)]
    for step, batch in enumerate(batches):
        for optimizer in optimizers:
            for parameter in reference.parameters:
                parameter.grad = None
            value(reference(*batch, lam=drawn(model, step))).backward()
            optimizer.step()
    trainer(folder, precision=precision(kind)).fit(model, loader(batches))
    assert_trained(model, start, [*reference.parameters], kind)


def averaged(kind: Kind, folder: Path) -> None:
    """An exponential mean over the steps."""
    model, reference = model_of(kind)
    batches = batches_of(kind)
    start = [p.detach().clone() for p in reference.parameters]
    mean, *later = by_hand(reference, losses_of(model, reference, batches, 2))
    for snapshot in later:
        mean = [DECAY * m + (1 - DECAY) * s for m, s in zip(mean, snapshot, strict=True)]
    callback = EMAWeightAveraging(decay=DECAY)
    trainer(folder, max_epochs=2, precision=precision(kind), callbacks=[callback]).fit(model, loader(batches))
    assert_trained(model, start, mean, kind)


def averaged_over_epochs(kind: Kind, folder: Path) -> None:
    """Lightning's SWA takes the mean over the beginnings of epochs: here of the second and the third."""
    model, reference = model_of(kind)
    batches = batches_of(kind)
    start = [p.detach().clone() for p in reference.parameters]
    steps = by_hand(reference, losses_of(model, reference, batches, 2))
    mean = [(one + two) / 2 for one, two in zip(steps[1], steps[3], strict=True)]
    callback = StochasticWeightAveraging(LR, swa_epoch_start=2)
    trainer(folder, max_epochs=3, precision=precision(kind), callbacks=[callback]).fit(model, loader(batches))
    assert_trained(model, start, mean, kind)


def resumed(kind: Kind, folder: Path) -> None:
    """Interrupted after the first of two epochs, and gone on with in another module: the reference's weights."""
    batches, path = batches_of(kind), folder / "epoch.ckpt"
    first, reference = model_of(kind)
    start = [p.detach().clone() for p in reference.parameters]
    expected = by_hand(reference, losses_of(first, reference, batches, 2))[-1]
    trainer(folder, precision=precision(kind), callbacks=[SaveAt(path, epoch=0)]).fit(first, loader(batches))
    second, _ = model_of(kind)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.zero_()
    runner = trainer(folder, max_epochs=2, precision=precision(kind))
    runner.fit(second, loader(batches), ckpt_path=path)
    assert_trained(second, start, expected, kind)
