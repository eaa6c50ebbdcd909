"""Training runs whose quality is followed over steps and over seconds, without the seconds of evaluation."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from benchmarks.tasks.base import Task
from benchmarks.training import make_optimizer, stepper
from benchmarks.variants import VARIANTS


@dataclass(frozen=True)
class Point:
    """Where a run is: steps taken, seconds spent in them, and the metric on validation data."""

    step: int
    seconds: float
    value: float


Curve = list[Point]


@dataclass(frozen=True)
class Run:
    """One training: what is trained how, with which learning rate and seed."""

    variant: str
    optimizer: str
    lr: float
    seed: int


def points(task: Task, run: Run, batch_size: int | None = None) -> Iterator[Point]:
    """Train for ever, and stop after every ``task.every`` steps to tell how it goes; end where the loss is not finite.

    The seed decides on the first weights, the batches and the draws of h; runs of one seed differ only in the variant.
    """
    torch.manual_seed(run.seed)
    variant = VARIANTS[run.variant](task.network(), task.space, run.seed, include=task.include)
    step = stepper(variant, make_optimizer(run.optimizer, variant.parameters, run.lr), task.loss)
    generator = torch.Generator().manual_seed(run.seed)
    taken, seconds = 0, 0.0
    while True:
        with torch.no_grad():
            value = task.evaluate(variant.at)
        yield Point(taken, seconds, value)
        begin = time.perf_counter()
        try:
            for _ in range(task.every):
                loss = step(task.batch(generator, batch_size or task.batch_size))
        except FloatingPointError:  # this package's own word for it
            return
        seconds += time.perf_counter() - begin
        taken += task.every
        if not loss.isfinite():
            return


def train(task: Task, run: Run, max_steps: int, budget_seconds: float = math.inf) -> Curve:
    """The curve of one run."""
    return train_in_turn(task, [run], max_steps, budget_seconds)[run]


def train_in_turn(
    task: Task,
    runs: Sequence[Run],
    max_steps: int,
    budget_seconds: float = math.inf,
    batch_size: int | None = None,
) -> dict[Run, Curve]:
    """The curves of several runs that take their steps in turn, a block each: other work on the machine meets all.

    Args:
        task: what they do.
        runs: which.
        max_steps: each ends after so many steps,
        budget_seconds: or after so many seconds in its own steps,
        batch_size: by default the task's.
    """
    curves: dict[Run, Curve] = {run: [] for run in runs}
    going = {run: points(task, run, batch_size) for run in runs}
    begin = time.perf_counter()
    while going:
        for run in list(going):
            point = next(going[run], None)
            if point is not None:
                curves[run].append(point)
                _progress(task, run, point, begin)
            if point is None or point.step >= max_steps or point.seconds >= budget_seconds:
                del going[run]
    return curves


def smoothed(curve: Curve) -> Curve:
    """Each value the median of the last three evaluations: one lucky one is no level reached."""
    values = [point.value for point in curve]
    medians = [statistics.median_low(values[max(0, i - 2) : i + 1]) for i in range(len(curve))]
    return [replace(point, value=value) for point, value in zip(curve, medians, strict=True)]


def best(curve: Curve) -> float:
    """The highest smoothed value on the way."""
    return max(point.value for point in smoothed(curve))


def reached(curve: Curve, target: float) -> Point | None:
    """The first point whose smoothed value is at or above the target."""
    return next((point for point in smoothed(curve) if point.value >= target), None)


def milliseconds_per_step(curve: Curve) -> float:
    """Median over the blocks between evaluations."""
    blocks = itertools.pairwise(curve)
    times = [1e3 * (b.seconds - a.seconds) / (b.step - a.step) for a, b in blocks]
    return statistics.median(times) if times else math.nan


def _progress(task: Task, run: Run, point: Point, begin: float) -> None:
    name = f"{task.name}, seed {run.seed}, {run.variant}, {run.optimizer}, lr {run.lr:g}"
    where = f"step {point.step}, {point.seconds:.1f} s of its own, {point.value:.4f}"
    print(f"{name}: {where} ({time.perf_counter() - begin:.0f} s in all)", file=sys.stderr, flush=True)
