"""The report as text: a verdict per part, then the numbers."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from lightning_mip.diagnosis.gradients import Gradients
from lightning_mip.diagnosis.matter import Matter
from lightning_mip.magnitude import exponent

if TYPE_CHECKING:
    from lightning_mip.diagnosis.report import Diagnosis

_WIDTH = 110
# Rows of the table of tensors; the JSON has them all.
_ROWS = 30


def tables(found: Diagnosis) -> list[str]:
    """The lines of the report."""
    h = ", ".join(f"{name} ~ {prior}" for name, prior in found.h.items())
    head = f"{found.module}: {h}; {found.draws} draws of h, {found.batches} batches"
    lines = [*textwrap.wrap(head, _WIDTH), ""]
    for name, verdict in found.verdicts.items():
        lines += textwrap.wrap(verdict, _WIDTH, initial_indent=f"{name:<11}", subsequent_indent=" " * 11)
    lines += ["", *_scores(found.matter)]
    if found.gradients:
        lines += ["", *_gradients(found.gradients)]
    return [*lines, "", *_tensors(found)]


def _scores(matter: Matter) -> list[str]:
    rows = {
        "weights of the right h": matter.right,
        "weights of another h": matter.shuffled,
        f"weights of {matter.best_single_h} for all h": matter.best_single,
        "theta0 alone": matter.theta0,
    }
    if len(matter.components) > 1 and matter.reads_h is not False:
        rows |= {f"right but for {name}": score for name, score in matter.components.items()}
    width = max(map(len, rows))
    better = "lower" if matter.mode == "min" else "higher"
    title = f"{matter.metric} ({better} is better)"
    lines = [f"{title:<{width + 2}}{'':>12}{'worse by':>11}"]
    for name, score in rows.items():
        if score is not None:
            worse = None if name == "weights of the right h" else matter.worse(score)
            lines.append(f"  {name:<{width}}{score:>12.5g}" + ("" if worse is None else f"{worse:>+11.2%}"))
    return lines


def _gradients(gradients: Gradients) -> list[str]:
    lines = [f"{'norm of the loss gradient':<27}{'mean':>10}{'min':>10}{'max':>10}{'scatter / mean gradient':>26}"]
    for part in gradients.across_h:
        for where, group in (("across h", gradients.across_h), ("across batches", gradients.across_data)):
            norms, noise = group[part].norms, group[part].noise
            numbers = "".join(f"{value:>10.3g}" for value in (sum(norms) / len(norms), min(norms), max(norms)))
            lines.append(f"  {f'{part}, {where}':<25}{numbers}{_cell(noise, 26)}")
    return lines


def _tensors(found: Diagnosis) -> list[str]:
    now = found.now
    width = max(len("generated tensor"), *(len(name) for name in now.names[:_ROWS]))
    columns = ("||theta0||", "||delta||", "power", "varies", "step")
    lines = [f"{'generated tensor':<{width}}" + "".join(f"{column:>12}" for column in columns)]
    for k, name in enumerate(now.names[:_ROWS]):
        theta0 = float(now.theta0[k])
        cells = [
            theta0,
            float(now.delta[:, k].mean()),
            exponent(now.size, now.delta[:, k]),
            float(now.spread[k]) / theta0 if theta0 else None,
            found.step.tensors[name] if found.step else None,
        ]
        lines.append(f"{name:<{width}}" + "".join(_cell(cell, 12) for cell in cells))
    if len(now.names) > _ROWS:
        lines.append(f"and {len(now.names) - _ROWS} more")
    return [
        *lines,
        "power: ||delta(h)|| goes as ||h|| to it; varies: ||delta(h) - mean delta|| / ||theta0||;",
        "step: movement in one optimizer step, as a multiple of the plain network's",
    ]


def _cell(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.3g}"
