"""The figure: a pair registered at several lam, and Dice and folds against lam."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

import lightning_mip as mip
from examples.hypermorph.data import Pair
from examples.hypermorph.network import Registered

HYPER, PLAIN, GREY = "#2166ac", "#e08214", "#6b7280"
SPACING = 5  # pixels between the lines of a grid
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
}


def show(axes: Axes, image: Tensor, title: str) -> None:
    """An image (1, H, W), or what is on it, without axes."""
    axes.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=9, fontweight="normal")
    axes.set_axis_off()


def draw_grid(axes: Axes, flow: Tensor) -> None:
    """The straight lines of the moving image, every few pixels, as the flow (2, H, W) bends them."""
    height, width = flow.shape[-2:]
    rows, columns = np.mgrid[:height, :width]
    for position, size in ((columns + flow[0].numpy(), width), (rows + flow[1].numpy(), height)):
        axes.contour(position, levels=np.arange(0, size, SPACING), colors=HYPER, linewidths=0.6)
    axes.set_xlim(0, width - 1)
    axes.set_ylim(height - 1, 0)
    axes.set_aspect("equal")
    axes.set_axis_off()


def draw_pair(area: SubFigure, pair: Pair, found: Mapping[float, Registered]) -> None:
    """One pair: the two images, and the warped image and grid at each lam."""
    axes = area.subplots(2, 1 + len(found))
    show(axes[0, 0], pair.moving[0], "moving")
    show(axes[1, 0], pair.fixed[0], "fixed")
    for column, (lam, registered) in enumerate(found.items(), start=1):
        show(axes[0, column], registered.warped[0], f"lam = {lam:g}")
        draw_grid(axes[1, column], registered.flow[0])


def draw_dice(axes: Axes, table: mip.Sweep, plain: Mapping[float, Mapping[str, float]], choice: mip.Choice) -> None:
    """Dice against lam, the specialists as dots, the chosen lam as a band."""
    low, high = (float(end) for end in choice.interval["lam"])
    axes.axvspan(low, high, color=HYPER, alpha=0.12, lw=0)
    axes.axvline(float(choice.h["lam"]), color=HYPER, lw=1, ls=":", label="chosen on validation pairs")
    axes.plot(table.values("lam"), table["test_dice"], color=HYPER, marker="o", ms=3, label="one hypernetwork")
    if plain:
        values = [measured["test_dice"] for measured in plain.values()]
        axes.plot([*plain], values, "D", color=PLAIN, ms=5, label="a network for each lam")


def draw_structures(axes: Axes, choices: Mapping[str, mip.Choice]) -> None:
    """The best lam of each structure, and where it lies for most draws of the validation pairs."""
    order = sorted(choices, key=lambda name: float(choices[name].h["lam"]))
    for row, name in enumerate(order):
        low, high = (float(end) for end in choices[name].interval["lam"])
        axes.plot([low, high], [row, row], color=HYPER, lw=1.4, alpha=0.5)
        axes.plot(float(choices[name].h["lam"]), row, "o", color=HYPER, ms=4)
    axes.set_yticks(range(len(order)), order, fontsize=7)
    axes.set_xlim(0, 1)


def draw(
    pair: Pair,
    found: Mapping[float, Registered],
    table: mip.Sweep,
    plain: Mapping[float, Mapping[str, float]],
    start: float,
    choice: mip.Choice,
    choices: Mapping[str, mip.Choice],
) -> Figure:
    """Put the figure together: the pair on top, curves and structures below."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(11.5, 6.8), layout="constrained", facecolor="white")
        top, below = figure.subfigures(2, 1, height_ratios=[1.15, 1])
        draw_pair(top, pair, found)
        dice, folds, best = below.subplots(1, 3, width_ratios=[1.2, 1, 0.9])
        draw_dice(dice, table, plain, choice)
        dice.axhline(start, color=GREY, lw=1, ls="--", label="before registration")
        dice.set_title("test Dice", loc="left")
        # Some room at the bottom, where the legend is.
        dice.set_ylim(bottom=start - 0.08)
        dice.legend(frameon=False, fontsize=7.5, loc="lower left")
        folds.plot(table.values("lam"), 100 * table["test_folded"], color=HYPER, marker="o", ms=3)
        if plain:
            shares = [100 * measured["test_folded"] for measured in plain.values()]
            folds.plot([*plain], shares, "D", color=PLAIN, ms=5)
        folds.set_title("folded pixels, %", loc="left")
        draw_structures(best, choices)
        best.set_title("best lam by structure (validation)", loc="left")
        for axes in (dice, folds, best):
            axes.set_xlabel("lam", color=GREY)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
