"""Figures of a sweep, by matplotlib, which is optional."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_mip.as_prior import FromTorch
from lightning_mip.priors import Categorical, LogUniform, Prior
from lightning_mip.table import Mode, Sweep, check_mode

LINE, MARK, PRIOR = "#2166ac", "#b2182b", "#9aa5b1"
COLOURS = "viridis"
# Of the density: enough draws that an evenly spread set of them shows no noise.
_DRAWS, _BINS = 8192, 64
# Where the axis of a prior without ends stops.
_TAILS = (0.002, 0.998)


def matplotlib_is_there() -> bool:
    """Whether figures can be drawn in this environment."""
    return importlib.util.find_spec("matplotlib") is not None


def drawable(table: Sweep) -> bool:
    """Whether `plot_sweep` has a figure for what varies in the sweep."""
    return kind_of(table) is not None


def plot_sweep(
    table: Sweep,
    metrics: str | Sequence[str] | None = None,
    *,
    mode: Mode | Mapping[str, Mode] | None = None,
    ax: Any = None,
) -> tuple[Any, Any]:
    """Draw a sweep; see `Sweep.plot`.

    Raises:
        ImportError: matplotlib is not installed.
        KeyError: there is no such metric.
        ValueError: no figure shows what varies, or ``ax`` is one and the metrics are several.
    """
    if not matplotlib_is_there():
        raise ImportError("plot needs matplotlib; pip install 'lightning-mip[plot]', or use to_csv(path).")
    from matplotlib import pyplot

    kind = kind_of(table)
    if kind is None:
        varying = ", ".join(table.varying) or "nothing"
        raise ValueError(
            f"What varies in this sweep of {len(table)} points is {varying}; a figure shows one or two numbers, or one "
            "preference vector of two or three. Take a part of the sweep: sweep.select(name=value).plot()."
        )
    names = [metrics] if isinstance(metrics, str) else list(table.metrics if metrics is None else metrics)
    for name in names:
        _ = table[name]
    signs = {name: _sign(mode, name) for name in names}
    if kind == "front" and len(names) > 1:
        if len(names) > 2 and metrics is not None:
            raise ValueError(f"metrics are {', '.join(names)}, expected two: a Pareto front has two axes.")
        figure, axes = pyplot.subplots(figsize=(5.5, 4.5), layout="constrained") if ax is None else (ax.figure, ax)
        _draw_front(axes, table, names[0], names[1], signs)
        return figure, axes
    draw = {"curve": _draw_curve, "front": _draw_curve, "map": _draw_map, "ternary": _draw_ternary}[kind]
    if ax is not None and len(names) > 1:
        raise ValueError(f"ax is one, but there are {len(names)} metrics: {', '.join(names)}; name one as metrics.")
    if ax is not None:
        draw(ax, table, names[0], signs[names[0]])
        return ax.figure, ax
    columns = 1 if len(names) < 2 or (kind in ("curve", "front") and len(names) < 4) else 2
    rows = -(-len(names) // columns)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(6.4 if columns == 1 else 10.5, 0.6 + 3 * rows), layout="constrained", squeeze=False
    )
    axes = list(grid.flat)
    for one, name in zip(axes, names, strict=False):
        draw(one, table, name, signs[name])
    for one in axes[len(names) :]:
        one.remove()
    return figure, axes[0] if len(names) == 1 else axes[: len(names)]


def log_figure(loggers: Iterable[Any], tag: str, figure: Any, step: int) -> None:
    """Add a figure to those loggers that are of TensorBoard, and close it."""
    from matplotlib import pyplot

    for logger in loggers:
        if type(logger).__name__ == "TensorBoardLogger":
            logger.experiment.add_figure(tag, figure, step, close=False)
    pyplot.close(figure)


@dataclass(frozen=True)
class Scale:
    """How one number of ``h`` is laid along an axis.

    Attributes:
        log: whether the axis is logarithmic.
        ticks: position -> label where the axis has names; else None.
        classes: the value at each of these positions, shape ``(ticks,)``.
    """

    log: bool
    ticks: Mapping[float, str] | None = None
    classes: Tensor | None = None

    def positions(self, values: Tensor) -> Tensor:
        """Where values stand on the axis, in its own coordinate."""
        if self.classes is None:
            return values.double()
        return (values.double()[:, None] - self.classes).abs().argmin(1).double()


def scale_of(prior: Prior) -> Scale:
    """Logarithmic for what is drawn by its logarithm, names for classes, linear for the rest."""
    if isinstance(prior, Categorical):
        classes = prior.grid(1)
        return Scale(False, {float(k): prior.text(value) for k, value in enumerate(classes)}, classes.double())
    normal = isinstance(prior, FromTorch) and isinstance(prior.distribution, torch.distributions.LogNormal)
    return Scale(isinstance(prior, LogUniform) or normal)


def density(prior: Prior) -> tuple[Tensor, Tensor]:
    """How often training draws each part of the axis: edges, shape (bins + 1,), and heights, shape (bins,).

    By draws, not by the CDF, as a prior may draw its end points more often. Heights are relative to the axis: a
    `LogUniform` prior is level on its logarithmic one.
    """
    scale = scale_of(prior)
    u = (torch.arange(_DRAWS, dtype=torch.float64) + 0.5) / _DRAWS
    drawn = scale.positions(prior.draw(u))
    if scale.ticks is not None:
        edges = torch.arange(len(scale.ticks) + 1, dtype=torch.float64) - 0.5
    else:
        ends = prior.icdf(torch.tensor([0, 1], dtype=torch.float64))
        ends = ends if ends.isfinite().all() else prior.icdf(torch.tensor(_TAILS, dtype=torch.float64))
        low, high = (ends.log() if scale.log else ends).tolist()
        edges = torch.linspace(low, high, _BINS + 1, dtype=torch.float64)
        edges = edges.exp() if scale.log else edges
    # Rounding must not put an end point outside.
    counts = torch.bucketize(drawn, edges[1:-1]).bincount(minlength=len(edges) - 1)
    return edges, counts / counts.max()


def plain(name: str) -> str:
    """A name as matplotlib shows it: it takes what is between dollars for a formula."""
    return name.replace("$", r"\$")


def not_dominated(first: Tensor, second: Tensor) -> Tensor:
    """Which points no other point beats, where less is better on both axes; boolean of shape (points,)."""
    no_worse = (first[None] <= first[:, None]) & (second[None] <= second[:, None])
    better = (first[None] < first[:, None]) | (second[None] < second[:, None])
    return ~(no_worse & better).any(1)


def triangle(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Where preference vectors, shape (points, 3), stand in a triangle of side 1: x and y."""
    return weights[:, 1] + weights[:, 2] / 2, weights[:, 2] * (3**0.5 / 2)


def kind_of(table: Sweep) -> str | None:
    """What a figure of the sweep is: ``curve``, ``map``, ``front`` or ``ternary``; None if there is none."""
    shapes = [table.space[name].event_shape for name in table.varying]
    kinds = {((),): "curve", ((2,),): "front", ((3,),): "ternary", ((), ()): "map"}
    return kinds.get(tuple(shapes))


def _sign(mode: Mode | Mapping[str, Mode] | None, name: str) -> int | None:
    given = mode.get(name) if isinstance(mode, Mapping) else mode
    return None if given is None else check_mode(given)


def _draw_curve(ax: Any, table: Sweep, metric: str, sign: int | None) -> None:
    """A metric over one number, or over the first of two weights, with the prior's density under the axis."""
    (name,) = table.varying
    prior, values, label = table.space[name], table.values(name), name
    if values.ndim > 1:
        values, label = values[:, 0], f"{name}[0]"
        scale = Scale(False)
    else:
        scale = scale_of(prior)
    order = values.argsort()
    x, y = scale.positions(values)[order], table[metric].double()[order]
    ax.plot(x, y, "o-" if scale.ticks is None else "o", color=LINE, markersize=3 if len(x) > 12 else 5, linewidth=1.5)
    ax.set_ylabel(plain(metric))
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    _lay(ax.xaxis, scale, x)
    if sign is not None and not y.isnan().all():
        best = int((sign * y).nan_to_num(float("inf")).argmin())
        ax.axvline(x[best], color=MARK, linestyle=":", linewidth=1)
        ax.plot(x[best], y[best], "o", color=MARK, markersize=6)
        found = f"best: {y[best]:.4g} at {plain(label)} = {values[order][best]:.3g}"
        ax.set_title(found, loc="right", fontsize="small", color=MARK)
    if table.values(name).ndim > 1:
        ax.set_xlabel(plain(label))
        return
    # Ticks and name of the axis belong under the density.
    strip = ax.inset_axes((0, -0.13, 1, 0.1), sharex=ax)
    edges, heights = density(prior)
    strip.stairs(heights, edges, fill=True, color=PRIOR)
    strip.set(ylim=(0, 1.1), yticks=[], xlabel=plain(label))
    strip.set_ylabel("prior", rotation=0, ha="right", va="center", fontsize="small", color="#5c6670")
    strip.spines[["top", "right", "left"]].set_visible(False)
    _lay(strip.xaxis, scale, x)
    ax.tick_params(which="both", labelbottom=False, bottom=False)
    ax.spines["bottom"].set_visible(False)


def _draw_map(ax: Any, table: Sweep, metric: str, sign: int | None) -> None:
    """A metric over two numbers."""
    names = table.varying
    scales = [scale_of(table.space[name]) for name in names]
    x, y = (scale.positions(table.values(name)) for scale, name in zip(scales, names, strict=True))
    z = table[metric].double()
    columns, rows = x.unique(), y.unique()
    if len(columns) * len(rows) == len(table):
        cells = torch.full((len(rows), len(columns)), torch.nan, dtype=torch.float64)
        cells[torch.searchsorted(rows, y), torch.searchsorted(columns, x)] = z
        edges = [edges_of(axis, scale.log) for axis, scale in zip((columns, rows), scales, strict=True)]
        drawn = ax.pcolormesh(*(edge.numpy() for edge in edges), cells.numpy(), cmap=COLOURS, rasterized=True)
    else:
        drawn = ax.scatter(x, y, c=z, cmap=COLOURS, s=40)
    for axis, scale, positions, name in zip((ax.xaxis, ax.yaxis), scales, (columns, rows), names, strict=True):
        _lay(axis, scale, positions)
        axis.set_label_text(plain(name))
    ax.figure.colorbar(drawn, ax=ax, label=plain(metric))
    if sign is not None:
        _mark(ax, x, y, sign * z)


def _draw_ternary(ax: Any, table: Sweep, metric: str, sign: int | None) -> None:
    """A metric over three weights: a triangle whose corners have one weight of 1."""
    (name,) = table.varying
    x, y = triangle(table.values(name).double())
    z = table[metric].double()
    inside = len(x) > 3 and y.unique().numel() > 1 and not z.isnan().any()
    if inside:
        drawn = ax.tripcolor(x.numpy(), y.numpy(), z.numpy(), cmap=COLOURS, shading="gouraud", rasterized=True)
        ax.plot(x, y, ".", color="black", alpha=0.35, markersize=3)
    else:
        drawn = ax.scatter(x, y, c=z, cmap=COLOURS, s=40)
    corners_x, corners_y = triangle(torch.eye(3, dtype=torch.float64))
    ax.fill(corners_x, corners_y, fill=False, linewidth=1)
    alignments = (("right", "top"), ("left", "top"), ("center", "bottom"))
    offsets = ((0, -8), (0, -8), (0, 9))
    for k, ((ha, va), offset) in enumerate(zip(alignments, offsets, strict=True)):
        ax.annotate(
            f"{plain(name)}[{k}] = 1",
            (corners_x[k], corners_y[k]),
            xytext=offset,
            textcoords="offset points",
            ha="center" if ha == "center" else ha,
            va=va,
            annotation_clip=False,
        )
    ax.set(aspect="equal")
    ax.axis("off")
    ax.figure.colorbar(drawn, ax=ax, label=plain(metric), shrink=0.85)
    if sign is not None:
        _mark(ax, x, y, sign * z)


def _draw_front(ax: Any, table: Sweep, first: str, second: str, signs: Mapping[str, int | None]) -> None:
    """Two metrics against each other, by the weight of the first preference."""
    (name,) = table.varying
    weight = table.values(name)[:, 0].double()
    order = weight.argsort()
    x, y, weight = table[first].double()[order], table[second].double()[order], weight[order]
    ax.plot(x, y, color="#c3cad2", linewidth=1.2, zorder=1)
    drawn = ax.scatter(x, y, c=weight, cmap=COLOURS, s=36, zorder=2)
    given = signs[first], signs[second]
    if given[0] is not None and given[1] is not None:
        front = not_dominated(given[0] * x, given[1] * y)
        ax.scatter(
            x[front], y[front], s=90, facecolors="none", edgecolors=MARK, zorder=3, label="no other point is better"
        )
        ax.legend(frameon=False, fontsize="small")
    ax.set(xlabel=plain(first), ylabel=plain(second))
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    ax.figure.colorbar(drawn, ax=ax, label=f"{plain(name)}[0]")


def _mark(ax: Any, x: Tensor, y: Tensor, cost: Tensor) -> None:
    if cost.isnan().all():
        return
    best = int(cost.nan_to_num(float("inf")).argmin())
    ax.plot(x[best], y[best], "*", color="white", markeredgecolor="black", markersize=15, label="best")
    ax.legend(frameon=True, fontsize="small", loc="upper right")


def _lay(axis: Any, scale: Scale, positions: Tensor) -> None:
    if scale.ticks is not None:
        shown = [tick for tick in scale.ticks if tick in positions.tolist()]
        axis.set_ticks(shown, labels=[scale.ticks[tick] for tick in shown])
    elif scale.log:
        axis._set_axes_scale("log")


def edges_of(positions: Tensor, log: bool) -> Tensor:
    """Borders of cells around positions, half way between them on the axis."""
    at = positions.log() if log else positions
    steps = at.diff()
    edges = torch.cat([at[:1] - steps[:1] / 2, at[:-1] + steps / 2, at[-1:] + steps[-1:] / 2])
    return edges.exp() if log else edges
