"""Choose the best ``h`` for a metric, and say how sure that is."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from lightning_mip.bootstrap import LEVEL, interval, resampled_means, vertices
from lightning_mip.measure import By, FunctionMetric, LoggedMetric, Measured
from lightning_mip.positive import check_whole
from lightning_mip.priors import Categorical, Prior
from lightning_mip.search import descend, golden_section, quasi_random
from lightning_mip.shown import shown
from lightning_mip.space import HSpace
from lightning_mip.sweep import Grid, grid_points
from lightning_mip.table import Mode, Sweep, check_mode

MetricFunction = Callable[[Any, Any], Tensor]
_Metric = FunctionMetric | LoggedMetric


@dataclass(frozen=True, eq=False)
class Choice:
    """The best ``h`` for a metric; made by `lightning_mip.choose`.

    Attributes:
        h: component -> value, as `lightning_mip.materialize` takes it.
        value: the mean of the metric there. Found on the same data as ``h``, so a little too good to be true: report
            the metric on other data.
        interval: component -> (low, high): where the best ``h`` lies for 95 % of the sets of samples drawn with
            replacement from those of the evaluation. As wide as the grid: the metric does not tell.
        value_interval: the same for the metric at ``h``.
        curve: the metric over the grid; ``choice.curve.plot()``.
        count: number of samples (or batches).
        unit: what they are, ``samples`` or ``batches``.
        refined: how ``h`` was found after the grid: ``gradient``, ``golden section``, ``quasi-random``, or ``grid``
            where nothing better was found.
    """

    h: dict[str, Tensor]
    value: float
    interval: dict[str, tuple[Tensor, Tensor]]
    value_interval: tuple[float, float]
    curve: Sweep
    count: int
    unit: str
    refined: str

    @property
    def at_end(self) -> list[str]:
        """The numbers of ``h`` whose best value is the lowest or highest of the grid: beyond it may be a better one."""
        found = []
        for name in self.curve.varying:
            prior, values = self.curve.space[name], self.curve.values(name)
            if prior.event_shape or not _is_continuous(prior):
                continue
            if not bool(values.min() < self.h[name] < values.max()):
                found.append(name)
        return found

    def __str__(self) -> str:
        space, (metric,) = self.curve.space, self.curve.metrics
        parts = []
        for name, (low, high) in self.interval.items():
            own = HSpace({name: space[name]})
            around = [own.label({name: end}).partition("=")[2] for end in (low, high)]
            parts.append(f"{own.label(self.h)} ({LEVEL:.0%}: {around[0]} to {around[1]})")
        low_value, high_value = self.value_interval
        value = f"{metric} = {self.value:.4g} ({LEVEL:.0%}: {low_value:.4g} to {high_value:.4g})"
        ends = "".join(f"; {name} is at the end of the grid" for name in self.at_end)
        return f"{', '.join(parts)}; {value}; {self.count} {self.unit}{ends}"


@overload
def choose(
    model: Any,
    dataloader: Any,
    metric: str | MetricFunction,
    mode: Mode,
    *,
    by: None = None,
    grid: Grid = 21,
    refine: bool = True,
    resamples: int = 1000,
    seed: int = 0,
) -> Choice: ...
@overload
def choose(
    model: Any,
    dataloader: Any,
    metric: str | MetricFunction,
    mode: Mode,
    *,
    by: str | Callable[[Any], Any],
    grid: Grid = 21,
    refine: bool = True,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[Any, Choice]: ...
def choose(
    model: Any,
    dataloader: Any,
    metric: str | MetricFunction,
    mode: Mode,
    *,
    by: By = None,
    grid: Grid = 21,
    refine: bool = True,
    resamples: int = 1000,
    seed: int = 0,
) -> Choice | dict[Any, Choice]:
    """Choose the best ``h``: on a grid, then between its points.

    A function as metric is asked for one value per sample. It is evaluated on what ``model.predict_step`` returns, or
    the network where there is none. If it is differentiable, the gradient with respect to ``h`` goes through the
    hypernetwork, and the search follows it; else a golden section (one number) or quasi-random points do. The name of a
    logged metric stands for its values per batch in ``validation_step``, and is searched without gradients.

    Args:
        model: a hypernetized network, or a LightningModule with one.
        dataloader: batches to evaluate on, several times: a DataLoader or a list. All passes begin with the same random
            numbers, so one that shuffles gives the same samples each time.
        metric: a function of (output, batch) that returns one value per sample, shape (B,) (or one for the batch, a
            0-dim tensor), or the name of a metric that ``validation_step`` logs for each batch.
        mode: ``min`` or ``max``.
        by: choose for each group: the key of the batch that tells the group of each sample, or a function of the batch
            that returns them.
        grid: where to look first, as for `lightning_mip.sweep`. The search stays within its ends.
        refine: whether to search between its points.
        resamples: how many times samples are drawn for the intervals.
        seed: of these draws.

    Returns:
        A `Choice`; with ``by``, group -> `Choice`.

    Raises:
        TypeError: ``metric`` is neither, or the batches run once only.
        ValueError: the metric has no value per sample or batch, or NaN; ``by`` does not fit the batches; passes
            over the batches give other numbers of them.

    >>> import lightning_mip as mip
    >>> net = torch.nn.Linear(1, 1)
    >>> hyper = mip.hypernetize(net, {"lam": mip.Uniform(0, 1)})
    >>> batches = [(torch.ones(4, 1), torch.zeros(4, 1))]
    >>> def error(output, batch):
    ...     return (output - batch[1]).square().mean(1)
    >>> choice = choose(net, batches, error, "min", grid=5)
    >>> choice.count, choice.unit
    (4, 'samples')
    """
    sign = check_mode(mode)
    if not isinstance(metric, str) and not callable(metric):
        raise TypeError(
            f"metric is {shown(metric)}, expected a function of (output, batch) or the name of a logged metric."
        )
    check_whole("resamples", resamples)
    check_whole("seed", seed)
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, expected at least 1.")
    source: _Metric = (
        LoggedMetric(model, dataloader, metric, by)
        if isinstance(metric, str)
        else FunctionMetric(model, dataloader, metric, by)
    )
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric").strip("<>")
    points = grid_points(source.space, grid)
    measured = source.measure(points)
    choices = {}
    for group in dict.fromkeys(measured.groups):
        part = measured.of(group)
        curve = Sweep(source.space, points, {name: part.means()})
        choices[group] = _choose(source, part, group, curve, sign, refine, resamples, seed)
    return choices if by is not None else choices[None]


def _choose(
    source: _Metric, grid: Measured, group: Any, curve: Sweep, sign: int, refine: bool, resamples: int, seed: int
) -> Choice:
    """The choice of one group."""
    costs = sign * grid.means()
    best = int(costs.argmin())
    h, how, there = dict(curve.h[best]), "grid", grid.values[best : best + 1]
    box = _Box(curve, best)
    if refine and box.free.any():
        found, method = _search(source, group, box, float(costs[best]), sign)
        again = source.measure([found]).of(group)
        if sign * float(again.means()) < float(costs[best]):
            h, how, there = found, method, again.values
    value = float(there.double() @ grid.weights / grid.weights.sum())
    ends, value_interval = _intervals(grid, there, curve, sign, resamples, seed)
    around = {name: _around(h[name], pair) for name, pair in ends.items()}
    return Choice(h, value, around, value_interval, curve, len(grid.weights), grid.unit, how)


def _search(source: _Metric, group: Any, box: _Box, cost: float, sign: int) -> tuple[dict[str, Tensor], str]:
    """Look for something better than the best grid point, between its neighbours."""

    def costs(points: Tensor) -> Tensor:
        return sign * source.measure([box.h(point) for point in points]).of(group).means()

    start = box.start[box.free]
    if isinstance(source, FunctionMetric):
        found = descend(functools.partial(_slope, source, group, box, sign), box.low, box.high, start)
        if found is not None:
            return box.h(found[0]), "gradient"
    if len(box.low) == 1:
        point, _ = golden_section(lambda point: float(costs(point[None])), box.low, box.high)
        return box.h(point), "golden section"
    point, _ = quasi_random(costs, box.low, box.high, (start, cost))
    return box.h(point), "quasi-random"


def _slope(source: FunctionMetric, group: Any, box: _Box, sign: int, point: Tensor) -> tuple[float, Tensor | None]:
    value, gradient = source.slope(box.h, point, group)
    return sign * value, None if gradient is None else sign * gradient


class _Box:
    """The part of the space between the neighbours of a grid point, in positions in [0, 1] of the priors.

    Attributes:
        start: the positions of the grid point, shape (d,).
        free: which of them can change.
        low, high: the ends of those, shape (number of free ones,).
    """

    def __init__(self, curve: Sweep, best: int) -> None:
        self.space = curve.space
        starts, lows, highs = [], [], []
        for name, prior in self.space.items():
            at = prior.cdf(curve.values(name).double()).reshape(len(curve), -1)
            for column in at.T:
                positions, mine = column.unique(), column[best]
                below, above = positions[positions < mine], positions[positions > mine]
                starts.append(mine)
                fixed = not _is_continuous(prior)
                lows.append(mine if fixed or not len(below) else below.max())
                highs.append(mine if fixed or not len(above) else above.min())
        self.start, low, high = (torch.stack(ends).double() for ends in (starts, lows, highs))
        self.free = high > low
        self.low, self.high = low[self.free], high[self.free]

    def h(self, point: Tensor) -> dict[str, Tensor]:
        """The ``h`` at positions of the free ones; differentiable."""
        positions = self.start.index_put((self.free.nonzero().squeeze(1),), point.double())
        h = {}
        for name, prior in self.space.items():
            u, positions = positions[: prior.uniforms], positions[prior.uniforms :]
            value = prior.icdf(u if prior.event_shape else u.squeeze(0))
            h[name] = value.to(torch.get_default_dtype()) if value.is_floating_point() else value
        return h


def _is_continuous(prior: Prior) -> bool:
    """Whether there is anything between two values."""
    return not isinstance(prior, Categorical)


def _intervals(
    grid: Measured, there: Tensor, curve: Sweep, sign: int, resamples: int, seed: int
) -> tuple[dict[str, tuple[Tensor, Tensor]], tuple[float, float]]:
    """Where the best ``h`` lies, and the metric at the chosen one, over draws of the samples."""
    if len(grid.weights) < 2:  # nothing can be said
        values = {name: curve.values(name) for name in curve.space}
        return {name: (v.amin(0), v.amax(0)) for name, v in values.items()}, (-math.inf, math.inf)
    curves = sign * resampled_means(grid.values, grid.weights, resamples, seed)
    found: Mapping[str, Tensor] = {name: curve.values(name)[curves.argmin(1)] for name in curve.space}
    if len(curve.varying) == 1:
        found = {**found, **_between(curve, curve.varying[0], curves)}
    low, high = interval(resampled_means(there, grid.weights, resamples, seed)[:, 0])
    return {name: interval(values) for name, values in found.items()}, (float(low), float(high))


def _between(curve: Sweep, name: str, curves: Tensor) -> dict[str, Tensor]:
    """The lowest points of curves over one number, between the points of the grid too."""
    prior = curve.space[name]
    if prior.event_shape or not _is_continuous(prior):
        return {}
    positions = prior.cdf(curve.values(name).double())
    order = positions.argsort()
    return {name: prior.icdf(vertices(positions[order], curves[:, order])).to(curve.values(name))}


def _around(value: Tensor, ends: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The interval, widened to hold the choice itself."""
    low, high = (end.to(value) for end in ends)
    return torch.minimum(low, value), torch.maximum(high, value)
