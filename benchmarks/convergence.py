"""What MIP changes on the three tasks of its paper, in small and on real data: convergence, final value, gradients.

    python -m benchmarks.convergence --data FOLDER --workers 2 --out docs/reproduction
    python -m benchmarks.convergence --data FOLDER --tasks digits --budget 0.1 --seeds 1

Each cell is a task, an optimizer and a parametrization (`benchmarks.parametrizations`). Learning rates are searched
with seed 0, beyond the grid where the best is at its end; the best one is then run with seeds 1, 2, 3, from which alone
the result is taken. Specialists are plain networks, each trained at one h with the same budget. Each run is a line of
``runs/reproduction/convergence.jsonl``: the program goes on where it was stopped, and ``--tables`` only writes tables
of what there is.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from itertools import product

from benchmarks import figures, pages, tables
from benchmarks.arguments import parsed
from benchmarks.parametrizations import WAYS
from benchmarks.results import FACTOR, SEARCH_SEED, SEEDS, Study, complete, parser, read
from benchmarks.runs import Cell, Result
from benchmarks.tasks import TASKS, Task, load
from benchmarks.variants import installed

OPTIMIZERS = ("adam", "sgd")
COMPARED = tuple(way for way in WAYS if way != "specialist")
RATES = {
    ("digits", "sgd"): (1e-2, 3e-2, 1e-1),
    ("digits", "adam"): (1e-3, 3e-3, 1e-2),
    ("registration", "sgd"): (1e-4, 3e-4, 1e-3),
    ("registration", "adam"): (3e-4, 1e-3, 3e-3),
    ("scale_space", "sgd"): (1e-2, 3e-2, 1e-1),
    ("scale_space", "adam"): (3e-4, 1e-3, 3e-3),
}
SPECIALISTS = 5
# Share of the best final value of all parametrizations that counts as there.
FRACTION = 0.98
NOTES = (
    f"- *final*: mean over h at the end, median of the last three evaluations; mean over seeds {SEEDS}, with the "
    "lowest and highest seed in brackets. A run whose loss or weights are not finite any more *diverged*, counting 0.\n"
    f"- *lr*: the best with seed {SEARCH_SEED}; \\* where it is at the end of those tried. Tried are three at a factor "
    f"of {FACTOR:g}, and up to two more beyond the end where the best is.\n"
    "- *to default's*, *to 98 %*: steps until the median of three evaluations in a row reaches the best such median of "
    f"`default` with the same optimizer, and {FRACTION:g} of the highest final value in the table; median over the "
    "seeds that reach it, and how many do if not all. *s*: the same in seconds of processor time of one thread, "
    "without evaluation.\n"
    "- *gradient*: norm of the loss's gradient with respect to the generated weights, mean over the steps; *spread*: "
    "its standard deviation over the steps, as a share of the mean. A diverged run counts until its last evaluation.\n"
    "- `default`: no encoding, no residual; `MIP`: both, as published; `ours`: default settings of this package."
)
HEADER = ("optimizer", "parametrization", "lr", "final", "diverged", "to default's", "s", "to 98 %", "s")
HEADER += ("ms per step", "gradient", "spread")


def cells(names: Sequence[str], ways: Sequence[str]) -> list[Cell]:
    """All cells of some tasks."""
    found = []
    for task in names:
        found += [Cell(task, o, way, rates=RATES[task, o]) for o, way in product(OPTIMIZERS, ways) if way in COMPARED]
        if "specialist" in ways:
            found += specialists(task)
    return found


def compared(study: Study, task: str, optimizer: str) -> list[Cell]:
    """The hypernetworks of one table."""
    return [c for c in study.cells if (c.task, c.optimizer) == (task, optimizer) and c.way != "specialist"]


def specialists(task: str) -> list[Cell]:
    """Plain networks for single h, with Adam at the learning rate that is best for the middle one.

    For digits h is noise, and one network stands for all h.
    """
    if task == "digits":
        return [Cell(task, "adam", "specialist", {"at": 0}, RATES[task, "adam"])]
    middle = Cell(task, "adam", "specialist", {"at": SPECIALISTS // 2}, RATES[task, "adam"])
    others = [Cell(task, "adam", "specialist", {"at": k}, like=middle) for k in range(SPECIALISTS)]
    return [middle if cell == middle else cell for cell in others]


def section(task: Task, study: Study, ways: Sequence[str]) -> list[str]:
    """The tables of one task."""
    steps = study.run(Cell(task.name, "adam", "MIP"), 0, 0).steps
    parts = [f"## {task.name}", f"{task.what}. {steps} steps of {task.batch_size}."]
    groups = [compared(study, task.name, optimizer) for optimizer in OPTIMIZERS]
    rows = [row for group in groups for row in rows_of(study, group)]
    if rows:
        parts.append(tables.table(HEADER, rows))
    for optimizer, group in zip(OPTIMIZERS, groups, strict=True):
        parts += rates_table(study, optimizer, group)
    return parts + specialists_table(task, study, ways)


def rows_of(study: Study, cells: Sequence[Cell]) -> list[list[object]]:
    """A line for each cell that has results."""
    results = {cell: study.found(cell) for cell in cells}
    results = {cell: found for cell, found in results.items() if found}
    finals = {cell: statistics.mean(r.final for r in found) for cell, found in results.items()}
    default = next((best_of(found) for cell, found in results.items() if cell.way == "default"), None)
    rows = []
    for cell, found in results.items():
        lr = f"{study.rate(cell):g}" + (r" \*" if study.at_edge(cell) else "")
        diverged = f"{sum(r.diverged for r in found)} of {len(found)}"
        to_default = cost(found, default) if default is not None else ("", "")
        to_best = cost(found, FRACTION * max(finals.values()))
        mean, spread = gradient_of(found)
        line = [cell.optimizer, cell.way, lr, spread_of(found), diverged, *to_default, *to_best]
        rows.append([*line, f"{milliseconds_per_step(found):.1f}", mean, spread])
    return rows


def spread_of(found: Sequence[Result]) -> str:
    """Mean of the final values, and the lowest and highest seed."""
    finals = [result.final for result in found]
    return f"{statistics.mean(finals):.3f} ({min(finals):.3f} to {max(finals):.3f})"


def smoothed(result: Result) -> list[float]:
    """Each value the median of the last three evaluations."""
    values = [point.value for point in result.points]
    return [statistics.median_low(values[max(0, k - 2) : k + 1]) for k in range(len(values))]


def best_of(found: Sequence[Result]) -> float:
    """Best value on the way, mean over seeds."""
    return statistics.mean(max(smoothed(result)) for result in found)


def cost(found: Sequence[Result], target: float) -> tuple[str, str]:
    """Steps and seconds to the target."""
    there = []
    for result in found:
        values = smoothed(result)
        k = next((k for k, value in enumerate(values) if value >= target), None)
        if k is not None:
            there.append(result.points[k])
    if not there:
        return "never", ""
    some = f" ({len(there)} of {len(found)})" if len(there) < len(found) else ""
    steps, seconds = (statistics.median(values) for values in zip(*((p.step, p.seconds) for p in there), strict=True))
    return f"{steps:g}{some}", f"{seconds:.1f}"


def milliseconds_per_step(found: Sequence[Result]) -> float:
    """Median over runs."""
    times = [1e3 * r.points[-1].seconds / r.points[-1].step for r in found if len(r.points) > 1]
    return statistics.median(times) if times else math.nan


def gradient_of(found: Sequence[Result]) -> tuple[str, str]:
    """Mean norm, and its standard deviation relative to the mean; medians over the runs."""
    pairs = [r.gradient for r in found if len(r.points) > 1]
    if not pairs:
        return "", ""
    return f"{statistics.median(m for m, _ in pairs):.3g}", f"{statistics.median(s / m for m, s in pairs):.2f}"


def rates_table(study: Study, optimizer: str, cells: Sequence[Cell]) -> list[str]:
    """Final value against learning rate, of the search."""
    found = {cell: study.rates(cell) for cell in cells}
    rates = sorted({lr for each in found.values() for lr, result in each.items() if result})
    if not rates:
        return []
    rows = []
    for cell, each in found.items():
        results = [each.get(lr) for lr in rates]
        rows.append([cell.way, *("" if r is None else "diverged" if r.diverged else f"{r.final:.3f}" for r in results)])
    text = f"Final value against learning rate, {optimizer}, seed {SEARCH_SEED}:"
    return [text, tables.table([optimizer, *(f"{lr:g}" for lr in rates)], rows)]


def specialists_table(task: Task, study: Study, ways: Sequence[str]) -> list[str]:
    """Plain networks at single h, and how far each hypernetwork is from them."""
    alone = {cell.options["at"]: study.found(cell) for cell in specialists(task.name)}
    if not all(alone.values()):
        return []
    grid = range(1) if task.name == "digits" else range(SPECIALISTS)
    level = {k: statistics.mean(result.final for result in alone[k]) for k in grid}
    names = (
        ["any"] if task.name == "digits" else [", ".join(f"{n} {float(v):g}" for n, v in h.items()) for h in task.grid]
    )
    rows = [["specialist", *(spread_of(alone[k]) for k in grid)]]
    for cell in compared(study, task.name, "adam"):
        found = study.found(cell)
        if found:
            at_h = [[r.final for r in found]] if task.name == "digits" else zip(*(r.values for r in found), strict=True)
            means = map(statistics.mean, at_h)
            rows.append([cell.way, *(f"{value - level[k]:+.3f}" for k, value in zip(grid, means, strict=True))])
    lr = study.rate(specialists(task.name)[0])
    text = f"Specialists, plain networks trained for one h with Adam at {lr:g}; below, hypernetworks less specialists:"
    return [text, tables.table(["h", *names], rows)]


def main(argv: Sequence[str] | None = None) -> str:
    """Do what is to be done, print and write the tables."""
    argv = sys.argv[1:] if argv is None else list(argv)
    known = parser("Convergence of parametrizations on three tasks.")
    known.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    known.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    given = parsed(known, argv)
    ways = [way for way in given.ways if way != "HyperLight" or "hyperlight" in installed()]
    path = given.runs / "convergence.jsonl"
    study = Study(cells(given.tasks, ways), read(path), given.budget, given.seeds)
    if not given.tables:
        complete(study, path, given.data, given.workers)
    sections = [NOTES]
    for name in given.tasks:
        sections += section(load(name, given.data), study, ways)
        if given.out:
            sections += figures.convergence(given.out, name, {o: compared(study, name, o) for o in OPTIMIZERS}, study)
    return pages.publish("convergence", argv, sections, study, given.out)


if __name__ == "__main__":
    main()
