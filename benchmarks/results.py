"""Runs as lines of a file: a long program resumes where it stopped, says how far it is, and may use several processes.

Which runs are to be done is a function of those that are done (`due`): of each cell first the learning rates with seed
0, then the best of them with seeds 1, 2, 3, from which alone a cell's result is taken.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.arguments import with_data
from benchmarks.runs import STEPS, Cell, Result, Run, train

FOLDER = Path("runs/reproduction")
SEARCH_SEED, SEEDS = 0, (1, 2, 3)
# The search goes on by this factor where the best learning rate is the lowest or highest of those tried, so often.
FACTOR, EXTENSIONS = 3.0, 2

Key = tuple[str, float, int, int]
Results = dict[Key, Result]


def key(run: Run) -> Key:
    """What tells runs apart."""
    return run.cell.name, run.lr, run.seed, run.steps


def read(path: Path) -> Results:
    """The runs of a file; a last line that was cut off by an interruption is removed from it."""
    if not path.is_file():
        return {}
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    found = map(json.loads, whole.splitlines())
    return {(f["cell"], f["lr"], f["seed"], f["steps"]): Result.from_json(f["result"]) for f in found}


def append(path: Path, run: Run, result: Result) -> None:
    """Write down a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = {"cell": run.cell.name, "lr": run.lr, "seed": run.seed, "steps": run.steps}
    with path.open("a") as file:
        file.write(json.dumps({**line, "result": dataclasses.asdict(result)}) + "\n")


class Study:
    """Cells, their budget, and what is known of them.

    Args:
        cells: of the tables.
        results: the runs that are done.
        budget: factor of the steps of each run.
        seeds: of the results.
        extensions: how often the search may go on beyond the learning rates of a cell.
    """

    def __init__(
        self,
        cells: Iterable[Cell],
        results: Results,
        budget: float = 1.0,
        seeds: Sequence[int] = SEEDS,
        extensions: int = EXTENSIONS,
    ) -> None:
        self.cells, self.results, self.budget = list(dict.fromkeys(cells)), results, budget
        self.seeds, self.extensions = seeds, extensions

    def run(self, cell: Cell, lr: float, seed: int) -> Run:
        """A run of a cell with this budget."""
        return Run(cell, lr, seed, max(1, round(self.budget * STEPS[cell.task])))

    def result(self, cell: Cell, lr: float, seed: int) -> Result | None:
        """What came of it, if it is done."""
        return self.results.get(key(self.run(cell, lr, seed)))

    def rates(self, cell: Cell) -> dict[float, Result | None]:
        """Learning rates of the search, in order, with what came of them; None where that is to be done."""
        rates = sorted(cell.rates)
        while True:
            found = {lr: self.result(cell, lr, SEARCH_SEED) for lr in rates}
            if None in found.values() or len(rates) >= len(cell.rates) + self.extensions:
                return found
            best = _best(found)
            if best == rates[0]:
                rates = [_shorter(best / FACTOR), *rates]
            elif best == rates[-1]:
                rates = [*rates, _shorter(best * FACTOR)]
            else:
                return found

    def rate(self, cell: Cell) -> float | None:
        """The best learning rate, once it is known."""
        if cell.like is not None:
            return self.rate(cell.like)
        if len(cell.rates) == 1:
            return cell.rates[0]
        found = self.rates(cell)
        return None if None in found.values() else _best(found)

    def at_edge(self, cell: Cell) -> bool:
        """Whether the best learning rate is the lowest or highest of those tried."""
        rates = list(self.rates(cell))
        return len(rates) > 1 and self.rate(cell) in (rates[0], rates[-1])

    def found(self, cell: Cell) -> list[Result]:
        """Results at the best learning rate, of those seeds that are done."""
        lr = self.rate(cell)
        found = [] if lr is None else [self.result(cell, lr, seed) for seed in self.seeds]
        return [result for result in found if result is not None]

    def due(self) -> tuple[list[Run], int]:
        """Runs that can be done now, and the number of those that follow at least."""
        runs, later = [], 0
        for cell in self.cells:
            lr = self.rate(cell)
            if lr is not None:
                runs += [self.run(cell, lr, seed) for seed in self.seeds]
                continue
            later += len(self.seeds)
            source = cell.like or cell
            runs += [self.run(source, rate, SEARCH_SEED) for rate, done in self.rates(source).items() if done is None]
        return [run for run in dict.fromkeys(runs) if key(run) not in self.results], later

    def done(self) -> Results:
        """Runs of these cells that are done, with this budget and at the learning rates of the search."""
        found: Results = {}
        for cell in [*self.cells, *(cell.like for cell in self.cells if cell.like)]:
            for lr, seed in product(self.rates(cell.like or cell), {SEARCH_SEED, *self.seeds}):
                result = self.result(cell, lr, seed)
                if result is not None:
                    found[key(self.run(cell, lr, seed))] = result
        return found


def _best(found: Mapping[float, Result | None]) -> float:
    return max(found, key=lambda lr: found[lr].final)  # type: ignore[union-attr]


def _shorter(lr: float) -> float:
    """0.001 / 3 as 0.00033: a number that a file holds as it is."""
    return float(f"{lr:.2g}")


class Here(Executor):
    """Does what is submitted at once, in this process."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args, **kwargs))
        return future


def complete(study: Study, path: Path, data: Path, workers: int = 1, work: Callable[..., Result] = train) -> None:
    """Do all runs that are due and write down each as it ends."""
    with _executor(workers) as executor:
        running: dict[Future[Result], Run] = {}
        while True:
            runs, _ = study.due()
            busy = set(map(key, running.values()))
            for run in [run for run in runs if key(run) not in busy][: workers - len(running)]:
                running[executor.submit(work, run, data)] = run
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run, result = running.pop(future), future.result()
                append(path, run, result)
                study.results[key(run)] = result
                _progress(study, run, result, workers)


def _executor(workers: int) -> Executor:
    if workers == 1:
        torch.set_num_threads(1)  # as in processes of their own
        return Here()
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,))


def _progress(study: Study, run: Run, result: Result, workers: int) -> None:
    runs, later = study.due()
    done = len(study.done())
    minutes = (len(runs) + later) * statistics.mean(r.wall for r in study.results.values()) / workers / 60
    state = "diverged" if result.diverged else f"{result.final:.4f}"
    print(
        f"{done} of {done + len(runs) + later}, about {minutes:.0f} min left: {run.cell.name}, lr {run.lr:g}, "
        f"seed {run.seed}: {state} ({result.wall:.0f} s)",
        file=sys.stderr,
        flush=True,
    )


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all programs of the reproduction share."""
    parser = with_data(argparse.ArgumentParser(description=description))
    parser.add_argument("--runs", type=Path, default=FOLDER, help="folder of the results of single runs")
    parser.add_argument("--workers", type=int, default=1, help="processes, with one thread each")
    parser.add_argument("--budget", type=float, default=1.0, help="factor of the steps of each run")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="of the results")
    parser.add_argument("--tables", action="store_true", help="run nothing, make the tables of what there is")
    parser.add_argument("--out", type=Path, help="folder to write tables and figures to")
    return parser
