"""The figure: accuracy against cost, and what the network finds at several rescale factors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

if TYPE_CHECKING:
    from examples.scale_space.demo import Outcome

HYPER, OWN, GREY = "#2166ac", "#e08214", "#6b7280"
# Of the labels 1, 2, ...
COLORS = ("#fde725", "#d7191c", "#2c7bb6", "#1a9641")
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


def draw(outcome: Outcome) -> Figure:
    """Fronts over operations and over time on the left, pictures on the right."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(12.6, 5.2), layout="constrained", facecolor="white")
        left, right = figure.subfigures(1, 2, width_ratios=[1, 1.25], wspace=0.03)
        for axes, cost, unit in zip(
            left.subplots(2, 1), ("megaflops", "milliseconds"), ("million operations", "milliseconds"), strict=True
        ):
            draw_front(axes, outcome, cost)
            axes.set_xlabel(f"{unit} per image", color=GREY)
        left.axes[0].set_title("test Dice against cost", loc="left")
        left.axes[0].legend(frameon=False, loc="best")
        draw_pictures(right, *outcome.pictures)
    return figure


def draw_front(axes: Axes, outcome: Outcome, cost: str) -> None:
    """Dice over one cost."""
    x, y = [getattr(point, cost) for point in outcome.front], [point.dice for point in outcome.front]
    axes.plot(x, y, "o-", color=HYPER, ms=4.5, lw=1.6, label="one network, at every phi")
    x_own, y_own = [getattr(point, cost) for point in outcome.separate], [point.dice for point in outcome.separate]
    axes.plot(x_own, y_own, "s", color=OWN, ms=6, label="trained for one phi", zorder=3)
    for point in outcome.front[::2]:
        at = getattr(point, cost), point.dice
        axes.annotate(f"{point.phi:.3g}", at, (0, 6), textcoords="offset points", ha="center", color=HYPER, fontsize=8)
    axes.grid(alpha=0.25)
    axes.margins(y=0.2)


def draw_pictures(area: Figure, images: Tensor, labels: Tensor, shown: dict[float, Tensor]) -> None:
    """A row for each image: as it is, with its labels, and with what is found at each phi."""
    maps = {"labels": labels, **{f"phi = {phi:.3g}": found for phi, found in shown.items()}}
    grid = area.subplots(len(images), 1 + len(maps), squeeze=False)
    for row, image in zip(range(len(images)), images, strict=True):
        plain = image.permute(1, 2, 0).expand(-1, -1, 3).numpy()
        grid[row][0].imshow(plain)
        for axes, found in zip(grid[row][1:], maps.values(), strict=True):
            axes.imshow(overlaid(plain, found[row].numpy()))
    for axes, title in zip(grid[0], ("image", *maps), strict=True):
        axes.set_title(title, fontweight="normal")
    for axes in grid.flat:
        axes.axis("off")


def overlaid(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) under half transparent labels (H, W)."""
    result = image.copy()
    for label, color in enumerate(COLORS, 1):
        here = labels == label
        result[here] = 0.45 * image[here] + 0.55 * np.array(matplotlib.colors.to_rgb(color))
    return result


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
