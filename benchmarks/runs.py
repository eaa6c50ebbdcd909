"""One run of the reproduction: a cell of a table (what is trained how) at one learning rate and seed."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import tasks
from benchmarks.parametrizations import build
from benchmarks.tasks import Task, shifted
from benchmarks.training import stepper
from benchmarks.variants import H, Network, Variant

# Steps of a run, about 10 s on one core for digits, 25 s for the others, and evaluations in it.
STEPS = {"digits": 500, "registration": 600, "scale_space": 500, "shifted": 600}
BLOCKS = 10
PRETRAINING = 300


class Together:
    """Two optimizers that step together."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers
        self.param_groups = [group for optimizer in optimizers for group in optimizer.param_groups]

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


def muon(parameters: Iterable[nn.Parameter], lr: float) -> Any:
    """Muon, at Adam's scale of learning rates, for matrices; Adam for what it does not take."""
    given = [parameter for parameter in parameters if parameter.requires_grad]
    matrices = [parameter for parameter in given if parameter.ndim == 2]
    others = [parameter for parameter in given if parameter.ndim != 2]
    first = torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return Together(first, torch.optim.Adam(others, lr=lr, fused=True)) if others else first


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "muon": muon,
}


@dataclass(frozen=True)
class Cell:
    """What is trained and how, but for learning rate and seed; equal are cells of one name.

    Attributes:
        task: one of `STEPS`.
        optimizer: one of `OPTIMIZERS`.
        way: one of `parametrizations.WAYS`.
        options: what differs: ``dimensions`` and ``primary`` of the task, ``momentum`` of the optimizer, ``rate`` to
            tell learning rates apart, ``at``, the place in the grid of the h of a specialist, ``pretrained``, those of
            `parametrizations.build`.
        rates: learning rates among which the best is looked for; of one there is nothing to look for.
        like: the cell whose learning rate is taken instead.
    """

    task: str
    optimizer: str
    way: str
    options: Mapping[str, Any] = field(default_factory=dict, compare=False)
    rates: tuple[float, ...] = field(default=(), compare=False)
    like: Cell | None = field(default=None, compare=False)
    name: str = field(init=False)

    def __post_init__(self) -> None:
        words = [self.task, self.optimizer, self.way, *(f"{key} {value}" for key, value in self.options.items())]
        object.__setattr__(self, "name", ", ".join(words))


@dataclass(frozen=True)
class Run:
    """A cell at a learning rate and seed, for so many steps."""

    cell: Cell
    lr: float
    seed: int
    steps: int


@dataclass(frozen=True)
class Point:
    """Where a run is.

    Attributes:
        step: steps taken.
        seconds: of processor time that they took, without evaluation.
        values: the metric at each h of the grid.
        gradient: mean and standard deviation, over the steps since the last point, of the norm of the loss's gradient
            with respect to the generated weights.
    """

    step: int
    seconds: float
    values: tuple[float, ...]
    gradient: tuple[float, float]

    @property
    def value(self) -> float:
        """Mean over h."""
        return statistics.mean(self.values)


@dataclass(frozen=True)
class Result:
    """What came of a run.

    Attributes:
        points: its curve; it ends early if the run diverged.
        diverged: whether the loss, or the weights, were no longer finite.
        wall: seconds it took in all.
    """

    points: tuple[Point, ...]
    diverged: bool
    wall: float

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Result:
        """Of a line of a file of results."""
        points = tuple(
            Point(each["step"], each["seconds"], tuple(each["values"]), tuple(each["gradient"]))
            for each in found["points"]
        )
        return cls(points, found["diverged"], found["wall"])

    @property
    def values(self) -> list[float]:
        """The last level at each h: median of three evaluations; zeros if the run diverged."""
        last = [point.values for point in self.points[-3:]]
        return [0.0 if self.diverged else statistics.median(at_h) for at_h in zip(*last, strict=True)]

    @property
    def final(self) -> float:
        """The last level, mean over h."""
        return statistics.mean(self.values)

    @property
    def gradient(self) -> tuple[float, float]:
        """Mean and standard deviation of the gradient's norm over all steps."""
        blocks = [point.gradient for point in self.points[1:]]
        if not blocks:
            return math.nan, math.nan
        mean = statistics.mean(m for m, _ in blocks)
        return mean, math.sqrt(statistics.mean(s**2 + (m - mean) ** 2 for m, s in blocks))


def train(run: Run, data: Path) -> Result:
    """Do a run; the seed decides on the first weights, the batches and the draws of h."""
    began = time.perf_counter()
    cell, options = run.cell, dict(run.cell.options)
    task = _task(cell.task, data, **{key: options.pop(key) for key in ("dimensions", "primary") if key in options})
    fixed, pretrained = options.pop("at", None), options.pop("pretrained", False)
    options.pop("rate", None)  # for the name alone
    extra = {key: options.pop(key) for key in ("momentum",) if key in options}
    torch.manual_seed(run.seed)
    net = task.network()
    if pretrained:
        pretrain(net, task, run.seed)
    variant = build(cell.way, net, task.space, run.seed, task.include, **options)
    loss = task.loss if "draws" not in options else partial(loss_of_parts, task.loss)
    if fixed is not None:
        h = task.grid[fixed]
        variant = dataclasses.replace(variant, draw=lambda step: h)
        task = dataclasses.replace(task, grid=[h])
    step = stepper(variant, OPTIMIZERS[cell.optimizer](variant.parameters, lr=run.lr, **extra), loss)
    points, diverged = _follow(task, variant, step, run)
    return Result(tuple(points), diverged, time.perf_counter() - began)


def _follow(task: Task, variant: Variant, step: Callable[[Any], Tensor], run: Run) -> tuple[list[Point], bool]:
    generator = torch.Generator().manual_seed(run.seed)
    points, norms, seconds = [Point(0, 0.0, _qualities(task, variant), (0.0, 0.0))], list[float](), 0.0
    blocks = min(BLOCKS, run.steps)
    ends = {round(run.steps * (k + 1) / blocks) for k in range(blocks)}
    for taken in range(1, run.steps + 1):
        batch = task.batch(generator, task.batch_size)
        began = time.process_time()
        try:
            loss = step(batch)
        except FloatingPointError:  # this package's own word for weights that are not finite
            return points, True
        seconds += time.process_time() - began
        # The optimizer has read the gradients and left them as they are.
        norms.append(float(nn.utils.get_total_norm([p.grad for p in variant.added if p.grad is not None])))
        if not (loss.isfinite() and math.isfinite(norms[-1])):
            return points, True
        if taken in ends:
            gradient = statistics.mean(norms), statistics.pstdev(norms)
            points.append(Point(taken, seconds, _qualities(task, variant), gradient))
            norms = []
    return points, False


@torch.no_grad()
def _qualities(task: Task, variant: Variant) -> tuple[float, ...]:
    try:
        return tuple(task.qualities(variant.at))
    except FloatingPointError:
        return (0.0,) * len(task.grid)


def loss_of_parts(loss: Callable[..., Tensor], nets: list[Network], batch: tuple[Tensor, ...], h: H) -> Tensor:
    """Mean over parts of the batch, each with a network and an h of its own."""
    parts = zip(*(tensor.chunk(len(nets)) for tensor in batch), strict=True)
    losses = [
        loss(net, part, {name: value[k] for name, value in h.items()})
        for k, (net, part) in enumerate(zip(nets, parts, strict=True))
    ]
    return torch.stack(losses).mean()


def pretrain(net: nn.Module, task: Task, seed: int) -> None:
    """Train the plain network on labels that h does not touch."""
    generator = torch.Generator().manual_seed(1000 + seed)
    optimizer = OPTIMIZERS["adam"](net.parameters(), lr=1e-3)
    for _ in range(PRETRAINING):
        x, y = task.batch(generator, task.batch_size)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()


@functools.cache
def _task(name: str, data: Path, **options: Any) -> Task:
    return shifted.load(data, **options) if name == "shifted" else tasks.load(name, data)
