"""The story's figure: the validation metrics over the hyperparameter, by separate trainings and by one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

if TYPE_CHECKING:
    from examples.plugin.story import Outcome

PLUGGED, SEPARATE, GREY = "#2166ac", "#d95f02", "#6b7280"
NAMES = {"reg_weight": "weight of the penalty, hparams.reg_weight", "noise": "noise on the pixels, hparams.noise"}
# Each seed's point stands this factor beside the bar of its value, where it can be seen.
SHIFT = 1.12
TITLES = {"loss": "Validation loss", "accuracy": "Validation accuracy"}
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
}


def draw(outcome: Outcome, path: Path) -> None:
    """Write the figure, one panel for each metric."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(9, 3.7), layout="constrained")
        for axes, (metric, title) in zip(panels, TITLES.items(), strict=True):
            draw_panel(axes, outcome, metric)
            axes.set_title(title, loc="left")
            axes.set_xlabel(NAMES[outcome.dial], color=GREY)
        mark_best(panels[0], outcome)
        panels[0].legend(frameon=False, loc="upper left")
        figure.savefig(path, dpi=150)
        plt.close(figure)


def draw_panel(axes: Axes, outcome: Outcome, metric: str) -> None:
    """The plug-in's curve with its band over seeds, and a point with its bar for each separate training."""
    curves, points = outcome.plugged[metric], outcome.separate[metric]
    seeds = len(points)
    axes.set_xscale("log")
    axes.grid(axis="y", alpha=0.25)
    axes.fill_between(outcome.fine, curves.min(0), curves.max(0), color=PLUGGED, alpha=0.18, lw=0)
    axes.plot(
        outcome.fine,
        curves.mean(0),
        color=PLUGGED,
        lw=2,
        label=f"one run with the plug-in ({seeds} seeds)",
    )
    middle = points.mean(0)
    bars = np.stack([middle - points.min(0), points.max(0) - middle])
    label = f"{len(outcome.grid)} separate trainings, the same"
    axes.errorbar(outcome.grid, middle, bars, color=SEPARATE, fmt="o", ms=5, lw=1.3, capsize=3, label=label, zorder=3)
    beside = np.tile(outcome.grid * SHIFT, seeds)
    axes.plot(beside, points.ravel(), "o", color=SEPARATE, ms=2.2, alpha=0.7, mew=0, zorder=3)


def mark_best(axes: Axes, outcome: Outcome) -> None:
    """An arrow to the lowest point of the plug-in's curve."""
    curve = outcome.plugged["loss"].mean(0)
    best = int(curve.argmin())
    axes.annotate(
        f"lowest at {outcome.fine[best]:.1g}",
        (outcome.fine[best], curve[best]),
        xytext=(0, -26),
        textcoords="offset points",
        ha="center",
        color=PLUGGED,
        arrowprops={"arrowstyle": "-|>", "color": PLUGGED, "shrinkB": 3},
    )
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.12 * (high - low), high)
