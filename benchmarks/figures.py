"""Figures of the reproduction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import color_sequences
from matplotlib.figure import Figure

from benchmarks.results import Study
from benchmarks.runs import Cell, Point, Result

COLORS = dict(
    zip(("default", "input encoding", "residual", "MIP", "ours", "HyperLight"), color_sequences["tab10"], strict=False)
)


def convergence(folder: Path, task: str, cells: Mapping[str, Sequence[Cell]], study: Study) -> list[str]:
    """One figure of a task: a row for each optimizer; its lines of markdown.

    From left to right: the metric against steps and against seconds, the mean over seeds with the lowest and highest
    of them shaded; the final value against the learning rate; the norm of the gradient against steps.
    """
    figure = Figure(figsize=(16, 3.4 * len(cells)), layout="constrained")
    axes = figure.subplots(len(cells), 4, squeeze=False)
    for (optimizer, group), row in zip(cells.items(), axes, strict=True):
        for cell in group:
            look = {"color": COLORS[cell.way], "label": cell.way}
            found = [result for result in study.found(cell) if len(result.points) > 1]
            if found:
                band(row[0], found, lambda p: p.step, lambda p: p.value, look)
                band(row[1], found, lambda p: p.seconds, lambda p: p.value, look)
                band(row[3], found, lambda p: p.step, lambda p: p.gradient[0], look, first=1)
            search = {lr: result.final for lr, result in study.rates(cell).items() if result}
            row[2].plot(list(search), list(search.values()), marker="o", **look)
        row[0].set(title=f"{task}, {optimizer}", xlabel="steps", ylabel="metric, mean over h")
        row[1].set(xlabel="seconds of processor time")
        row[2].set(xlabel="learning rate", xscale="log", title="final value, seed 0")
        row[3].set(xlabel="steps", yscale="log", title="norm of the gradient")
    axes[0][0].legend(fontsize=8)
    return [_saved(figure, folder, f"{task}.png", f"{task}: convergence, final value against learning rate, gradient")]


def band(
    axes: Any,
    found: Sequence[Result],
    x: Callable[[Point], float],
    y: Callable[[Point], float],
    look: Mapping[str, Any],
    first: int = 0,
) -> None:
    """Mean over seeds with the range of them, as far as all of them go."""
    length = min(len(result.points) for result in found)
    xs = np.array([[x(point) for point in result.points[first:length]] for result in found])
    ys = np.array([[y(point) for point in result.points[first:length]] for result in found])
    axes.plot(xs.mean(0), ys.mean(0), **look)
    axes.fill_between(xs.mean(0), ys.min(0), ys.max(0), color=look["color"], alpha=0.15, linewidth=0)


def _saved(figure: Any, folder: Path, name: str, text: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / name, dpi=80)
    return f"![{text}]({name})"
