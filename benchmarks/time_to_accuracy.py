"""Time to a fixed quality on the three tasks of the MIP paper, in small and on real data.

    python -m benchmarks.time_to_accuracy --data FOLDER --out docs/benchmarks/time_to_accuracy.md
    python -m benchmarks.time_to_accuracy --data FOLDER --quick

Bayesian digits, registration of brain slices with HyperMorph's loss, segmentation of blood cells over scale: see
`benchmarks.tasks`. All variants go through one training loop with the same first weights, batches, prior of h and
optimizer class, each at every learning rate of a list. The target is a fraction of the best that HyperLight reaches at
any of them, as the mean over seeds; each variant then counts with the learning rate that gets there first. Where h is
nothing but noise the plain network trains, too: the floor.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import tables
from benchmarks.arguments import parsed, with_data
from benchmarks.curves import Curve, Run, best, milliseconds_per_step, reached, train_in_turn
from benchmarks.tasks import TASKS, Task, load
from benchmarks.training import OPTIMIZERS, WAYS
from benchmarks.variants import VARIANTS, installed

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
QUICK_BLOCKS = 2
# What each trains with where nothing is said: HyperLight's documentation has torch's own default Adam.
DEFAULTS = {"ours": "fused", "hyperlight": "adam", "plain": "fused"}
# Variant, optimizer and learning rate: what is compared, over seeds.
Setting = tuple[str, str, float]
HEADER = ("variant", "optimizer", "lr", "best", "spread", "reached", "steps to target", "s to target", "ms per step")
NOTES = (
    "- Values of the metric are medians of three evaluations in a row, so that one lucky one does not count. *best*: "
    "the highest on the way, mean over seeds; *spread*: highest less lowest over seeds.\n"
    "- *reached*: seeds that reach the target; *steps*, *s to target*: median over those. Seconds are those of "
    "training steps, without evaluation.\n"
    "- \\* marks the learning rate that counts: of those at which most seeds reach the target, the fastest.",
    WAYS,
)


def target_of(results: dict[Setting, list[Curve]], reference: str, fraction: float, baseline: float = 0.0) -> float:
    """The fraction of what the reference gains over doing nothing with its best learning rate (and optimizer)."""
    means = [statistics.mean(map(best, curves)) for key, curves in results.items() if key[0] == reference]
    return baseline + fraction * (max(means) - baseline)


def cost(curves: list[Curve], target: float) -> tuple[float, float, int]:
    """Median steps and seconds to the target over the seeds that reach it, and how many do."""
    found = [point for point in (reached(curve, target) for curve in curves) if point]
    if not found:
        return math.inf, math.inf, 0
    return statistics.median(p.step for p in found), statistics.median(p.seconds for p in found), len(found)


def chosen(results: dict[Setting, list[Curve]], target: float) -> dict[tuple[str, str], Setting]:
    """(variant, optimizer) -> its setting with the learning rate that counts."""
    picks: dict[tuple[str, str], Setting] = {}
    for key in results:
        _, seconds, count = cost(results[key], target)
        before = picks.get(key[:2])
        if before is None or (-count, seconds) < (-cost(results[before], target)[2], cost(results[before], target)[1]):
            picks[key[:2]] = key
    return picks


def section(task: Task, results: dict[Setting, list[Curve]], given: argparse.Namespace) -> str:
    """What the task is, the table of all settings, and the ratios."""
    reference = "hyperlight" if "hyperlight" in given.variants else next(iter(results))[0]
    target = target_of(results, reference, given.fraction, task.baseline)
    picks = chosen(results, target)
    rows = []
    for key, curves in results.items():
        values = list(map(best, curves))
        steps, seconds, count = cost(curves, target)
        mark = r" \*" if picks[key[:2]] == key else ""
        line = [f"{steps:.0f}", f"{seconds:.1f}"] if count else ["", ""]
        speed = statistics.median(map(milliseconds_per_step, curves))
        quality = [f"{statistics.mean(values):.4f}", f"{max(values) - min(values):.4f}"]
        rows.append(
            [key[0] + mark, key[1], f"{key[2]:g}", *quality, f"{count} of {len(curves)}", *line, f"{speed:.1f}"]
        )
    above = f", above {task.baseline:.4f} of doing nothing" if task.baseline else ""
    text = f"Target: {target:.4f}, which is {given.fraction:g} of the best of {reference}{above}. Seeds: {given.seeds}."
    return "\n\n".join(
        [
            f"## {task.name}",
            f"{task.what}.",
            text,
            tables.table(HEADER, rows),
            *ratios(results, picks, reference, target),
        ]
    )


def ratios(
    results: dict[Setting, list[Curve]], picks: dict[tuple[str, str], Setting], reference: str, target: float
) -> list[str]:
    """A line for each variant: seconds and steps to the target against those of the reference.

    With the same optimizer, and with the one that each has by default.
    """
    pairs = [(way, (reference, way[1])) for way in picks if way[0] != reference]
    pairs += [(way, (reference, DEFAULTS.get(reference, ""))) for way in picks if DEFAULTS.get(way[0]) == way[1]]
    lines = [
        compared(results, picks, way, peer, target)
        for way, peer in dict.fromkeys(pairs)
        if way[0] != reference and peer in picks
    ]
    return ["\n".join(lines)] if lines else []


def compared(
    results: dict[Setting, list[Curve]],
    picks: dict[tuple[str, str], Setting],
    way: tuple[str, str],
    peer: tuple[str, str],
    target: float,
) -> str:
    """One of these lines."""
    mine, other = cost(results[picks[way]], target), cost(results[picks[peer]], target)
    words = f"- {way[0]} / {peer[0]}, {way[1]}" + (f" / {peer[1]}" if peer[1] != way[1] else "")
    if not (mine[2] and other[2]):
        return f"{words}: one of them does not reach the target."
    if min(other[0], mine[0]) == 0:
        return f"{words}: the target is met before the first step."
    return f"{words}: **{mine[1] / other[1]:.2f}** of the seconds, {mine[0] / other[0]:.2f} of the steps."


def measure(task: Task, given: argparse.Namespace) -> dict[Setting, list[Curve]]:
    """The curves of every setting, one for each seed."""
    variants = [v for v in given.variants if v != "plain" or task.plain_too]
    settings = [(v, o, lr) for v in variants for o in given.optimizers for lr in given.lrs]
    results: dict[Setting, list[Curve]] = {setting: [] for setting in settings}
    for seed in given.seeds:
        runs = [Run(*setting, seed) for setting in settings]
        steps = given.steps or (QUICK_BLOCKS * task.every if given.quick else task.steps)
        found = train_in_turn(task, runs, steps, given.budget, given.batch)
        for setting, run in zip(settings, runs, strict=True):
            results[setting].append(found[run])
            value, speed = best(found[run]), milliseconds_per_step(found[run])
            print(f"{task.name}, seed {seed}, {setting}: best {value:.4f}, {speed:.1f} ms per step", file=sys.stderr)
    return results


def options(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = with_data(argparse.ArgumentParser(description="Time to a fixed quality on three tasks."))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS)
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=["adam"])
    parser.add_argument("--lrs", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of each run, default: the task's own")
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds of each run, evaluation not counted")
    parser.add_argument("--batch", type=int, help="batch size instead of the task's own")
    parser.add_argument("--fraction", type=float, default=0.98, help="of HyperLight's best, that is the target")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help="few steps, one seed and learning rate: see that it runs")
    parser.add_argument("--curves", type=Path, help="write all curves there, in JSON")
    parser.add_argument("--out", type=Path, help="write the tables there, in markdown")
    given = parsed(parser, argv)
    given.variants = given.variants or [name for name in ("plain", "ours", "hyperlight") if name in installed()]
    if given.quick:
        given.seeds, given.lrs = given.seeds[:1], given.lrs[1:2] or given.lrs
    if given.threads:
        torch.set_num_threads(given.threads)
    return given


def main(argv: Sequence[str] | None = None) -> str:
    """Train, print and write the tables."""
    argv = sys.argv[1:] if argv is None else argv
    given = options(argv)
    sections, text, raw = [], "", []
    for name in given.tasks:
        task = load(name, given.data)
        results = measure(task, given)
        sections.append(section(task, results, given))
        print(f"{sections[-1]}\n", flush=True)
        text = tables.page("Time to a fixed quality", "time_to_accuracy", argv, NOTES, sections)
        tables.write(text, given.out)
        for setting, curves in results.items():
            raw += [[name, *setting, [dataclasses.astuple(point) for point in curve]] for curve in curves]
        if given.curves:
            given.curves.write_text(json.dumps(raw))
    return text


if __name__ == "__main__":
    main()
