"""The report as one figure."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from lightning_mip.magnitude import Magnitudes
from lightning_mip.magnitude_figure import DELTA, GREY, PALE, STYLE, THETA, draw_norms, leave_room

if TYPE_CHECKING:
    from lightning_mip.diagnosis.report import Diagnosis

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


def _draw_tensors(axes: Axes, now: Magnitudes) -> None:
    mean = now.delta.mean(0)
    for k in range(len(now.names)):
        if mean[k]:
            style: dict[str, Any] = {"lw": 0.9} if now.curve else {"lw": 0, "marker": "."}
            axes.plot(now.size, now.delta[:, k] / mean[k], color=DELTA, alpha=0.45, **style)
    if float(now.size.max()):
        proportional = now.size / now.size.mean()
        axes.plot(now.size, proportional, color=GREY, lw=1, ls=(0, (1, 2)), label="in proportion to h")
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    axes.set_title("||delta(h)|| of each tensor, by its mean")
    if not bool(mean.any()):
        _note(axes, "delta(h) is 0 at every h")
        return
    axes.set_ylim(bottom=0)
    leave_room(axes)
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
    if len(matter.best_single_h) > _LETTERS // 2:
        axes.set_xticks(range(len(rows)), [name if "=" not in name else "one h\nfor all" for name in rows])


def _draw_gradients(axes: Axes, found: Diagnosis) -> None:
    axes.set_title("Norm of the loss gradient")
    if found.gradients is None:
        _note(axes, f"left out: {found.left_out.get('gradients')}")
        return
    labels, place = [], 0
    for part, color in (("hypernet", DELTA), ("theta0", THETA)):
        for where, group in (("draws of h", found.gradients.across_h), ("batches", found.gradients.across_data)):
            norms = group[part].norms if part in group else []
            axes.scatter(norms, [place] * len(norms), s=26, color=color, alpha=0.55, lw=0, clip_on=False, zorder=3)
            labels.append(f"{part}, {where}")
            place += 1
    scatters = [*found.gradients.across_h.values(), *found.gradients.across_data.values()]
    positive = [norm for scatter in scatters for norm in scatter.norms if norm]
    if positive and max(positive) > 30 * min(positive):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(positive) < 1e3 * min(positive) else (1,)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif positive:
        axes.set_xlim(left=0)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.25)


def _draw_step(axes: Axes, found: Diagnosis) -> None:
    if found.step is None:
        axes.set_title("One optimizer step")
        _note(axes, f"left out: {found.left_out.get('step')}")
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
    axes.set_ylim(max(len(shown), 6) - 0.5, -0.5)  # few bars stay bars
    axes.set_xlim(0, max([value for _, value in shown if value], default=1.0) * 1.08)
    axes.tick_params(axis="y", length=0)
    more = f" (largest {_BARS} of {len(values)})" if len(values) > _BARS else ""
    axes.set_title(f"{title}{more}")
    axes.set_xlabel(label, color=GREY)
    axes.grid(axis="x", alpha=0.25)


def _note(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, textwrap.fill(text, 40), ha="center", va="center", color=GREY)
    axes.set_axis_off()
