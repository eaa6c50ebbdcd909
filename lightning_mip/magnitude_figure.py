"""The paper's figure: norms of the generated weights against the size of ``h``; needs matplotlib."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_mip.magnitude import Magnitudes, total

DELTA, THETA, GREY, PALE = "#2166ac", "#e08214", "#6b7280", "#b8c4d3"
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}


def norms_figure(now: Magnitudes, at_init: Magnitudes | None) -> Figure:
    """Draw the norms alone."""
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.8), layout="constrained", facecolor="white")
        draw_norms(figure.subplots(), now, at_init)
    return figure


def draw_norms(axes: Axes, now: Magnitudes, at_init: Magnitudes | None) -> None:
    """Plot ``||delta(h)||`` and ``||theta(h)||`` against the size of ``h``."""
    line, dots = (1.8, 3.0) if now.curve else (0.0, 5.0)
    if at_init is not None:
        marks: dict[str, Any] = {"lw": 1.3, "ls": (0, (4, 2))} if now.curve else {"lw": 0, "marker": "o", "mfc": "none"}
        axes.plot(at_init.size, total(at_init.delta), color=DELTA, ms=5, label="delta at init", **marks)
    axes.plot(now.size, total(now.delta), color=DELTA, lw=line, marker="o", ms=dots, label="delta now")
    if not torch.equal(now.delta, now.theta):
        axes.plot(now.size, total(now.theta), color=THETA, lw=line, marker="o", ms=dots, label="theta now")
    axes.set_ylim(bottom=0)
    leave_room(axes)
    axes.set_title("Norm of the generated weights")
    axes.set_xlabel("||h||", color=GREY)
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=3, columnspacing=1.2, handlelength=1.8)
    axes.grid(axis="y", alpha=0.25)


def leave_room(axes: Axes) -> None:
    """For a legend above the lines."""
    axes.set_ylim(top=axes.get_ylim()[1] * 1.18)
