"""The demo's figure: learning curves, and where the draws of h agree and where they do not."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

HYPER, PLAIN, OTHER, GREY = "#2166ac", "#e08214", "#b8c4d3", "#6b7280"
NOTE = "bars: mean probability over draws of h (dark: true class); lines: where 80 % of the draws lie; H: entropy, nats"
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
}


@dataclass(frozen=True)
class Curve:
    """One metric by epoch; `low` and `high` bound it over the validated values of h."""

    epoch: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Case:
    """One image (H, W), its title, its true class or classes, and its class probabilities (draws, classes)."""

    image: Tensor
    title: str
    labels: Sequence[int]
    probabilities: Tensor


def read_curve(path: Path, metric: str) -> Curve:
    """Read a metric, and its values at each h (`metric/...`), from the metrics.csv of a CSVLogger."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get(metric)]
    if not rows:
        raise ValueError(f"{path} holds no values of {metric!r}. Was the run validated?")
    per_h = [name for name in rows[0] if name.startswith(f"{metric}/") and rows[0][name]] or [metric]
    values = np.array([[float(row[name]) for name in per_h] for row in rows])
    return Curve(
        epoch=np.array([int(row["epoch"]) + 1 for row in rows]),
        value=np.array([float(row[metric]) for row in rows]),
        low=values.min(1),
        high=values.max(1),
    )


def draw_curves(axes: Axes, curves: dict[str, Curve], title: str) -> None:
    """Plot named curves, the first in the hypernetwork's colour with its band over h."""
    for (name, curve), color in zip(curves.items(), (HYPER, PLAIN), strict=True):
        axes.fill_between(curve.epoch, curve.low, curve.high, color=color, alpha=0.2, lw=0)
        axes.plot(curve.epoch, curve.value, color=color, lw=1.8, label=name)
    axes.set_title(title, loc="left")
    axes.set_xlabel("epoch", color=GREY)
    axes.grid(axis="y", alpha=0.25, which="both")
    axes.margins(x=0.01)


def draw_spread(axes: Axes, single: Sequence[float], ensemble: float, plain: float) -> None:
    """Plot test accuracies: every draw of h as a dot, the ensemble and the plain network as lines."""
    heights = stacked(single)
    axes.scatter(single, heights, s=26, color=HYPER, alpha=0.55, lw=0, label="one draw of h")
    axes.axvline(ensemble, color=HYPER, lw=2.2, label="mean over draws")
    axes.axvline(plain, color=PLAIN, lw=2.2, ls=(0, (4, 2)), label="plain network")
    axes.set_ylim(0, max(heights) + 1)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.1)
    axes.set_title("test accuracy", loc="left")
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, handlelength=1.2)


def stacked(values: Sequence[float]) -> list[int]:
    """Heights that pile equal values upon each other."""
    seen: dict[float, int] = {}
    heights = []
    for value in values:
        seen[round(value, 6)] = seen.get(round(value, 6), 0) + 1
        heights.append(seen[round(value, 6)])
    return heights


def draw_case(image_axes: Axes, bars: Axes, case: Case) -> None:
    """Show an image beside the mean probability of each class, with the range that 80 % of the draws lie in."""
    image_axes.imshow(case.image.numpy(), cmap="gray_r", vmin=0, vmax=1)
    image_axes.set_title(case.title, fontsize=9, fontweight="normal")
    image_axes.set_xticks([])
    image_axes.set_yticks([])
    for spine in image_axes.spines.values():
        spine.set_visible(True)
        spine.set_color("#d1d5db")
    draws = case.probabilities.numpy()
    mean, (low, high) = draws.mean(0), np.quantile(draws, [0.1, 0.9], axis=0)
    # A few far draws can pull the mean out of the range of the others; an error bar cannot be negative.
    ends = np.stack([mean - np.minimum(low, mean), np.maximum(high, mean) - mean])
    colors = [HYPER if label in case.labels else OTHER for label in range(len(mean))]
    bars.bar(range(len(mean)), mean, color=colors, width=0.8)
    # Ten lines of no length at the bottom of every panel would only be dirt.
    seen = np.flatnonzero(np.maximum(mean, high) > 0.005)
    bars.errorbar(seen, mean[seen], yerr=ends[:, seen], fmt="none", ecolor="#111827", elinewidth=1.1, capsize=1.8)
    bars.set_ylim(0, 1.04)
    bars.set_xticks(range(len(mean)), [str(k) for k in range(len(mean))], fontsize=7)
    bars.set_yticks([0, 1], ["0", "1"], fontsize=7)
    bars.tick_params(length=0, pad=2)


def draw_cases(area: SubFigure, title: str, cases: Sequence[Case]) -> None:
    """Draw one row of cases under a heading."""
    area.suptitle(title, x=0.02, ha="left", fontsize=10, fontweight="bold")
    columns = area.subfigures(1, len(cases), squeeze=False)[0]
    for column, case in zip(columns, cases, strict=True):
        draw_case(*column.subplots(1, 2, width_ratios=[1, 1.25]), case)


def draw(
    loss: dict[str, Curve],
    accuracy: dict[str, Curve],
    spread: tuple[Sequence[float], float, float],
    rows: dict[str, Sequence[Case]],
) -> Figure:
    """Put the figure together: curves and accuracies on the left, rows of cases on the right."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(13.2, 6.8), layout="constrained", facecolor="white")
        left, right = figure.subfigures(1, 2, width_ratios=[1, 2.3], wspace=0.03)
        top, middle, bottom = left.subplots(3, 1, height_ratios=[1, 1, 0.8])
        draw_curves(top, loss, "validation loss")
        top.set_yscale("log")
        top.legend(frameon=False, fontsize=8)
        draw_curves(middle, accuracy, "validation accuracy")
        # The first epochs, far below, would flatten the part in which the networks differ.
        errors = [1 - curve.value[-1] for curve in accuracy.values()]
        middle.set_ylim(max(0.0, 1 - 6 * max(errors)) - 0.02, 1.002)
        draw_spread(bottom, *spread)
        right.text(0.99, 0.003, NOTE, ha="right", va="bottom", fontsize=8, color=GREY)
        # The last strip keeps the note's place.
        areas = right.subfigures(len(rows) + 1, 1, height_ratios=[1] * len(rows) + [0.08])[:-1]
        for area, (title, cases) in zip(areas, rows.items(), strict=True):
            draw_cases(area, title, cases)
    return figure


def draw_doubt(doubt: Mapping[str, object], scores: Mapping[str, str]) -> Figure:
    """Where each score lies on each kind of images: a panel for each score, lines for kinds."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(scores), figsize=(11, 3.3), layout="constrained", facecolor="white")
        for axes, (title, score) in zip(panels, scores.items(), strict=True):
            for (kind, measured), color in zip(doubt.items(), (GREY, HYPER, PLAIN), strict=True):
                # Over orders of magnitude, down to what rounding leaves.
                values = np.log10(np.maximum(getattr(measured, score).numpy(), 1e-8))
                axes.hist(values, np.linspace(-8, 0.5, 60), color=color, histtype="step", lw=1.6, label=kind)
            axes.set_title(title, loc="left")
            axes.set_xlabel("nats, log10", color=GREY)
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
        panels[0].legend(frameon=False, loc="upper left")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
