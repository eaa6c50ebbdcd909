"""The report as one figure."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_mip.magnitude import Magnitudes, total

if TYPE_CHECKING:
    from lightning_mip.diagnosis.report import Diagnosis

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
# Bars of one panel, and letters of their names.
_BARS, _LETTERS = 14, 26


def draw(found: Diagnosis) -> Figure:
    """Draw all parts of a diagnosis."""
    with rc_context(STYLE):
        figure = Figure(figsize=(13, 7.6), layout="constrained", facecolor="white")
        title = textwrap.fill(f"{found.module}: {found.verdicts['matter']}", 130)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        (norms, tensors, scores), (gradients, spread, step) = figure.subplots(2, 3)
        draw_norms(norms, found.now, found.at_init)
        _draw_tensors(tensors, found.now)
        _draw_scores(scores, found)
        _draw_gradients(gradients, found)
        relative = found.now.spread / found.now.theta0.clamp(min=1e-30)
        usable = {
            name: float(value)
            for name, value, norm in zip(found.now.names, relative, found.now.theta0, strict=True)
            if norm
        }
        _draw_bars(spread, usable, "How far delta(h) varies over h", "||delta - mean delta|| / ||theta0||")
        _draw_step(step, found)
    return figure


def draw_norms(axes: Axes, now: Magnitudes, at_init: Magnitudes | None) -> None:
    """Plot ``||delta(h)||`` and ``||theta(h)||`` against the size of ``h``."""
    dots = (len(now.size.unique()) > len(now.size) // 2 and "o") or "."
    if at_init is not None:
        axes.plot(at_init.size, total(at_init.delta), color=DELTA, ls=(0, (4, 2)), lw=1.3, label="delta at init")
    axes.plot(now.size, total(now.delta), color=DELTA, lw=1.8, marker=dots, ms=3, label="delta now")
    if not torch.equal(now.delta, now.theta):
        axes.plot(now.size, total(now.theta), color=THETA, lw=1.8, marker=dots, ms=3, label="theta now")
    axes.set_ylim(bottom=0)
    _leave_room(axes)
    axes.set_title("Norm of the generated weights")
    axes.set_xlabel("||h||", color=GREY)
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=3, columnspacing=1.2, handlelength=1.8)
    axes.grid(axis="y", alpha=0.25)


def _draw_tensors(axes: Axes, now: Magnitudes) -> None:
    mean = now.delta.mean(0)
    for k in range(len(now.names)):
        if mean[k]:
            axes.plot(now.size, now.delta[:, k] / mean[k], color=DELTA, lw=0.9, alpha=0.45)
    top = float(now.size.max())
    if top and bool(mean.any()):
        proportional = now.size / now.size.mean()
        axes.plot(now.size, proportional, color=GREY, lw=1, ls=(0, (1, 2)), label="in proportion to h")
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    axes.set_ylim(bottom=0)
    _leave_room(axes)
    axes.set_title("||delta(h)|| of each tensor, by its mean")
    axes.set_xlabel("||h||", color=GREY)
    axes.grid(axis="y", alpha=0.25)


def _draw_scores(axes: Axes, found: Diagnosis) -> None:
    matter = found.matter
    scores = {
        "right h": matter.right,
        "another h": matter.shuffled,
        f"{matter.best_single_h}\nfor all": matter.best_single,
        "theta0\nalone": matter.theta0,
    }
    rows = {name: score for name, score in scores.items() if score is not None}
    bars = axes.bar(list(rows), list(rows.values()), color=[DELTA, *[PALE] * (len(rows) - 1)], width=0.6)
    axes.bar_label(bars, [f"{score:.4g}" for score in rows.values()], fontsize=8, padding=2)
    axes.margins(y=0.15)
    better = "lower" if matter.mode == "min" else "higher"
    axes.set_title(f"{matter.metric} ({better} is better), by weights")
    axes.tick_params(axis="x", length=0, labelsize=8)
    if len(matter.best_single_h) > _LETTERS:
        axes.set_xticks(range(len(rows)), [name if "=" not in name else "one h\nfor all" for name in rows])


def _draw_gradients(axes: Axes, found: Diagnosis) -> None:
    axes.set_title("Norm of the loss gradient")
    if found.gradients is None:
        _note(axes, found.left_out.get("gradients", ""))
        return
    labels, place = [], 0
    for part, color in (("hypernet", DELTA), ("theta0", THETA)):
        for where, group in (("draws of h", found.gradients.across_h), ("batches", found.gradients.across_data)):
            norms = group[part].norms if part in group else []
            axes.scatter(norms, [place] * len(norms), s=26, color=color, alpha=0.55, lw=0)
            labels.append(f"{part}, {where}")
            place += 1
    positive = [norm for group in (found.gradients.across_h, found.gradients.across_data) for s in group.values()
                for norm in s.norms if norm]  # fmt: skip
    if positive and max(positive) > 30 * min(positive):
        axes.set_xscale("log")
    elif positive:
        axes.set_xlim(left=0)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.25)


def _draw_step(axes: Axes, found: Diagnosis) -> None:
    if found.step is None:
        axes.set_title("One optimizer step")
        _note(axes, found.left_out.get("step", ""))
        return
    usable = {name: factor for name, factor in found.step.tensors.items() if factor is not None}
    label = f"times the plain network's, {found.step.optimizer} at {found.step.lr:g}"
    _draw_bars(axes, usable, "Movement of theta(h) in one step", label)
    axes.axvline(1, color=THETA, lw=1.4, ls=(0, (4, 2)))


def _draw_bars(axes: Axes, values: dict[str, float], title: str, label: str) -> None:
    """The largest values as horizontal bars."""
    shown = sorted(values.items(), key=lambda item: item[1], reverse=True)[:_BARS]
    names = [name if len(name) <= _LETTERS else f"...{name[3 - _LETTERS :]}" for name, _ in shown]
    axes.barh(range(len(shown)), [value for _, value in shown], color=DELTA, height=0.7)
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    more = f" (largest {_BARS} of {len(values)})" if len(values) > _BARS else ""
    axes.set_title(f"{title}{more}")
    axes.set_xlabel(label, color=GREY)
    axes.grid(axis="x", alpha=0.25)


def _note(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, textwrap.fill(f"left out: {text}", 40), ha="center", va="center", color=GREY)
    axes.set_axis_off()


def _leave_room(axes: Axes) -> None:
    """For a legend above the lines."""
    axes.set_ylim(top=axes.get_ylim()[1] * 1.18)
