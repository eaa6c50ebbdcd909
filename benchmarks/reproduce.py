"""Make the reproduction again: a small version that checks each row, or all of it.

    python -m benchmarks.reproduce --data FOLDER --workers 2
    python -m benchmarks.reproduce --data FOLDER --workers 2 --full --out docs/reproduction

The small one does again, for each row of the tables, the run of one seed at the learning rate that the row counts
with, as it finds them in the CSV files of ``docs/reproduction``, and says of each row what it was and what it is. The
full one is `benchmarks.convergence` and `benchmarks.ablations` with all searches and seeds; both resume where they
stopped.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import ablations, convergence, tables
from benchmarks.arguments import parsed
from benchmarks.parametrizations import WAYS
from benchmarks.results import Results, Study, complete, key, parser, read
from benchmarks.runs import Cell, Run
from benchmarks.tasks import TASKS

PAGE = Path("docs/reproduction")
SEED = 1
HEADER = ("row", "lr", "seed", "then", "now", "difference")


class Again(Study):
    """Given runs, and no search."""

    def __init__(self, runs: Sequence[Run], results: Results) -> None:
        super().__init__([run.cell for run in runs], results)
        self.runs = list(runs)

    def due(self) -> tuple[list[Run], int]:
        return [run for run in self.runs if key(run) not in self.results], 0

    def done(self) -> Results:
        return {key(run): self.results[key(run)] for run in self.runs if key(run) in self.results}


def committed(folder: Path, name: str, cells: Sequence[Cell], seed: int = SEED) -> dict[Run, float]:
    """Runs of one seed, one for each row of the tables of a study, with the final value that they had."""
    path = folder / f"{name}.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, so there are no rows to make again; use --full to make them.")
    named = {cell.name: cell for cell in cells}
    with path.open() as file:
        lines = [line for line in csv.DictReader(file) if int(line["seed"]) == seed and line["cell"] in named]
    return {
        Run(named[line["cell"]], float(line["lr"]), seed, int(line["steps"])): float(line["final"]) for line in lines
    }


def small(folder: Path, runs: Path, data: Path, workers: int, seed: int) -> str:
    """Make a run of each row again, and say which and how they came out."""
    then = committed(folder, "convergence", convergence.cells(TASKS, list(WAYS)), seed)
    then |= committed(folder, "ablations", ablations.cells(list(ablations.AXES)), seed)
    path = runs / "small.jsonl"
    study = Again(list(then), read(path))
    complete(study, path, data, workers)
    rows = []
    for run, value in then.items():
        now = study.results[key(run)].final
        rows.append([run.cell.name, f"{run.lr:g}", run.seed, f"{value:.4f}", f"{now:.4f}", f"{now - value:+.4f}"])
    alike = sum(abs(study.results[key(run)].final - value) < 5e-5 for run, value in then.items())
    text = f"{len(rows)} rows made again with seed {seed}; {alike} came out the same to four digits."
    return f"{text}\n\n{tables.table(HEADER, rows)}"


def main(argv: Sequence[str] | None = None) -> str:
    """Do the small version or the full one."""
    argv = sys.argv[1:] if argv is None else list(argv)
    known = parser("Make the tables of docs/reproduction again.")
    known.add_argument("--full", action="store_true", help="all searches and seeds, hours on a small machine")
    known.add_argument("--page", type=Path, default=PAGE, help="folder of the CSV files that the small one reads")
    given = parsed(known, argv)
    if given.full:
        passed = [word for word in argv if word != "--full"]
        return convergence.main(passed) + "\n\n" + ablations.main(passed)
    text = small(given.page, given.runs, given.data, given.workers, SEED)
    print(text)
    return text


if __name__ == "__main__":
    main()
