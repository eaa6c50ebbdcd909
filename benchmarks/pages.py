"""What the reproduction leaves in a folder: its README, of which a part is generated, and all runs as CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from benchmarks import tables
from benchmarks.results import Study

COLUMNS = ("cell", "lr", "seed", "steps", "final", "diverged", "at each h", "gradient", "gradient std", "seconds")


def publish(name: str, argv: Sequence[str], sections: Sequence[str], study: Study, out: Path | None) -> str:
    """Print the tables of a study; write them into the README of a folder, and its runs beside it.

    Args:
        name: of the program.
        argv: its command line.
        sections: the tables.
        study: with its results.
        out: the folder, if they are to be written.
    """
    made = f"Made by `{tables.command(name, argv)}` with {tables.versions()}; {tables.threads()}."
    done = study.done()
    cost = f"{len(done)} runs, {sum(result.wall for result in done.values()) / 60:.0f} min of one core in all."
    text = "\n\n".join([f"# {name.capitalize()}", f"{made} {cost}", *sections])
    print(text)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        readme = out / "README.md"
        readme.write_text(inserted(readme.read_text() if readme.is_file() else "", name, text))
        write_csv(out / f"{name}.csv", study)
    return text


def inserted(page: str, name: str, text: str) -> str:
    """The page with its generated part of that name replaced, or added at the end; the rest of it is kept."""
    begin, end = f"<!-- {name}: written by benchmarks/{name}.py -->", f"<!-- end of {name} -->"
    part = f"{begin}\n\n{text}\n\n{end}"
    if begin not in page:
        return f"{page}\n{part}\n".lstrip()
    before, _, rest = page.partition(begin)
    return f"{before}{part}{rest.partition(end)[2]}"


def write_csv(path: Path, study: Study) -> None:
    """A line for each run, in the order of their names."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for (cell, lr, seed, steps), result in sorted(study.done().items()):
            at_h = " ".join(f"{value:.4f}" for value in result.values)
            gradient = [f"{value:.4g}" for value in result.gradient]
            line = [cell, lr, seed, steps, f"{result.final:.4f}", int(result.diverged), at_h, *gradient]
            writer.writerow([*line, f"{result.points[-1].seconds:.1f}"])
