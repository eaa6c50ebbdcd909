"""The figure: images of two digits, and the fronts of losses and of accuracies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from examples.pareto.demo import Outcome, Point

OWN, GREY, COLORS = "#e08214", "#6b7280", "viridis"
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
    """Put the figure together."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(12, 4.4), layout="constrained", facecolor="white")
        left, right = figure.subfigures(1, 2, width_ratios=[1, 3.3], wspace=0.03)
        draw_images(left, outcome)
        losses, accuracies = right.subplots(1, 2)
        draw_front(losses, outcome, "loss")
        draw_front(accuracies, outcome, "accuracy")
        losses.legend(frameon=False, loc="upper right")
        right.colorbar(ScalarMappable(cmap=COLORS), ax=accuracies, label="weight of the left digit")
    return figure


def draw_images(area: Figure, outcome: Outcome) -> None:
    """Test images with their labels."""
    for axes, image, labels in zip(area.subplots(3, 2).flat, outcome.images, outcome.labels.tolist(), strict=True):
        axes.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
        axes.set_title(f"{labels[0]} and {labels[1]}", fontweight="normal")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(True)
            spine.set_color("#d1d5db")


def draw_front(axes: Axes, outcome: Outcome, what: str) -> None:
    """The right digit over the left one; lines join the network of each ray with the hypernetwork at that ray."""

    def places(points: list[Point]) -> tuple[list[float], list[float]]:
        return [getattr(point, what)[0] for point in points], [getattr(point, what)[1] for point in points]

    for one, own in zip(outcome.same_rays, outcome.separate, strict=True):
        axes.plot(*places([one, own]), color=OWN, lw=0.8, ls=":", zorder=1)
    weights = [point.left for point in outcome.front]
    x, y = places(outcome.front)
    axes.plot(x, y, color="#c3cad2", lw=1.2, zorder=1)
    axes.scatter(x, y, c=weights, cmap=COLORS, vmin=0, vmax=1, s=30, zorder=2, label="one network, every ray")
    own_weights = [point.left for point in outcome.separate]
    style = {"cmap": COLORS, "vmin": 0, "vmax": 1, "s": 60, "marker": "s", "edgecolors": OWN, "linewidths": 1.8}
    axes.scatter(*places(outcome.separate), c=own_weights, zorder=3, label="trained for one ray", **style)
    axes.set_title(f"test {what}", loc="left")
    axes.set_xlabel("left digit", color=GREY)
    axes.set_ylabel("right digit", color=GREY)
    axes.grid(alpha=0.25)
    # The ends of the front, where one digit counts nothing, would flatten all between them.
    inner = [*outcome.front[1:-1], *outcome.separate]
    for values, set_limits in zip(places(inner), (axes.set_xlim, axes.set_ylim), strict=True):
        margin = 0.08 * (max(values) - min(values)) + 1e-3
        set_limits(min(values) - margin, max(values) + margin)


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
