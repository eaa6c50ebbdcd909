"""Which part of MIP does what: one axis changed at a time, on digits whose label h shifts.

    python -m benchmarks.ablations --data FOLDER --workers 2 --out docs/reproduction
    python -m benchmarks.ablations --data FOLDER --axes activation norm --budget 0.2

The task (`benchmarks.tasks.shifted`) is quick, and of no use to a network that does not listen to h: a network that
ignores it can be right for one shift of four. Each parametrization trains at the learning rate that is best for it
without any change (searched with seed 0); only the axes of optimizers, primaries and rates search or fix their own.
Three seeds, none of them that of the search. Each run is a line of ``runs/reproduction/ablations.jsonl``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from benchmarks import pages, tables
from benchmarks.arguments import parsed
from benchmarks.convergence import spread_of
from benchmarks.parametrizations import ACTIVATIONS
from benchmarks.results import SEARCH_SEED, SEEDS, Study, complete, parser, read
from benchmarks.runs import Cell
from benchmarks.tasks import shifted
from benchmarks.variants import installed

WAYS = ("default", "MIP", "ours")
ENCODINGS = ("default", "input encoding", "residual", "MIP")
RATES = {"sgd": (1e-2, 3e-2, 1e-1), "adagrad": (3e-3, 1e-2, 3e-2)}
ADAPTIVE = (1e-3, 3e-3, 1e-2)
TRUNKS = (
    (16,),
    (128,),
    (16, 128),
    (16, 64, 128),
    (16, 64, 64, 64, 128),
    (128, 128, 128),
)
DIMENSIONS = (1, 2, 4, 8, 16)
# Draws of h in each step where the axis is normalisation: that over a batch needs several.
DRAWS = 4
# A table: name of the line -> name of the column -> cell.
Axis = dict[str, dict[str, Cell]]


def base(way: str, optimizer: str = "adam", **changes: Any) -> Cell:
    """A parametrization with its own learning rate; with changes, at the learning rate that it has without them."""
    plain = Cell("shifted", optimizer, way, rates=RATES.get(optimizer, ADAPTIVE))
    return Cell("shifted", optimizer, way, changes, like=plain) if changes else plain


def activation() -> Axis:
    # LeakyReLU is what the package and the paper have, so no change.
    changes = {name: {} if name == "LeakyReLU" else {"activation": name} for name in ACTIVATIONS}
    return {name: {way: base(way, **change) for way in WAYS} for name, change in changes.items()}


def norm() -> Axis:
    return {
        str(kind).lower(): {way: base(way, norm=kind, draws=DRAWS) for way in ENCODINGS}
        for kind in (None, "batch", "layer", "weight")
    }


def dimension() -> Axis:
    return {
        str(count): {way: base(way, **({"dimensions": count} if count > 1 else {})) for way in WAYS}
        for count in DIMENSIONS
    }


def trunk() -> Axis:
    return {"-".join(map(str, sizes)): {way: base(way, hidden_sizes=sizes) for way in WAYS} for sizes in TRUNKS}


def inputs() -> Axis:
    """Vectors of norm 1 in place of the encoding, which a vector of one component cannot be."""
    lines: Axis = {}
    for count in (2, 8):
        lines[f"h, {count}"] = {way: base(way, dimensions=count) for way in ("default", "residual")}
        for kind in ("h / |h|", "(h, 1) / |(h, 1)|"):
            lines[f"{kind}, {count}"] = {
                way: base(way, dimensions=count, inputs=kind) for way in ("default", "residual")
            }
        lines[f"encoding, {count}"] = {
            column: base(way, dimensions=count) for column, way in (("default", "input encoding"), ("residual", "MIP"))
        }
    return lines


def optimizer() -> Axis:
    return {
        name: {way: base(way, name) for way in WAYS} for name in ("sgd", "adam", "adamw", "rmsprop", "adagrad", "muon")
    }


def rate() -> Axis:
    """Would the default do with a lower learning rate, or more momentum?"""
    lines: Axis = {}
    for lr, momentum in product((3e-3, 1e-2, 3e-2), (0.9, 0.99)):
        changes = {"momentum": momentum} if momentum != 0.9 else {}
        lines[f"sgd {lr:g}, momentum {momentum:g}"] = {
            way: Cell("shifted", "sgd", way, {**changes, "rate": lr}, rates=(lr,)) for way in ("default", "MIP")
        }
    for lr in (1e-4, 3e-4, 1e-3):
        lines[f"adam {lr:g}"] = {
            way: Cell("shifted", "adam", way, {"rate": lr}, rates=(lr,)) for way in ("default", "MIP")
        }
    return lines


def theta0() -> Axis:
    return {
        "random": {way: base(way) for way in ("residual", "MIP", "ours")},
        "pretrained": {way: base(way, pretrained=True) for way in ("residual", "MIP", "ours")},
    }


def primary() -> Axis:
    lines: Axis = {}
    ways = [*WAYS, *(["HyperLight"] if "hyperlight" in installed() else [])]
    for name in shifted.PRIMARIES:
        changes = {"primary": name} if name != "convolution" else {}
        # HyperLight 0.0.5 does not find a parameter of the root module itself, such as the positions of tokens.
        tried = [way for way in ways if (way, name) != ("HyperLight", "attention")]
        lines[name] = {way: Cell("shifted", "adam", way, changes, rates=ADAPTIVE) for way in tried}
    return lines


# Name -> (the lines, what they are).
AXES: dict[str, tuple[Callable[[], Axis], str]] = {
    "activation": (activation, "activation of the hypernetwork"),
    "norm": (norm, f"normalisation in the hypernetwork, {DRAWS} draws of h in each step"),
    "dimension": (dimension, "components of h, of which the first decides"),
    "trunk": (trunk, "widths of the trunk; the package's own trunk is 16-8"),
    "inputs": (inputs, "what the trunk sees, and the components of h: without and with the residual"),
    "optimizer": (optimizer, "optimizer, each with a learning rate of its own; Muon has Adam for what is no matrix"),
    "rate": (rate, "fixed learning rates and momenta"),
    "theta0": (theta0, "theta0 as initialized, or trained before on labels that are not shifted"),
    "primary": (primary, "primary network, each with a learning rate of its own"),
}
NOTES = (
    f"Accuracy at the end, median of the last three evaluations, mean over h and seeds {SEEDS}; in brackets the "
    f"lowest and highest seed. Learning rates from a search with seed {SEARCH_SEED}; \\* where the best is at the end "
    "of those tried. A run whose loss or weights are no longer finite counts as 0, and n diverged says how many did."
)


def cells(axes: Sequence[str]) -> list[Cell]:
    """All cells of some axes."""
    return [cell for name in axes for line in AXES[name][0]().values() for cell in line.values()]


def section(name: str, study: Study) -> list[str]:
    """The table of one axis."""
    make, what = AXES[name]
    lines = make()
    columns = list(dict.fromkeys(column for line in lines.values() for column in line))
    rows = [
        [line, *(entry(study, own[column]) if column in own else "" for column in columns)]
        for line, own in lines.items()
    ]
    return [f"## {name}", f"{what[0].upper()}{what[1:]}.", tables.table([name, *columns], rows)]


def entry(study: Study, cell: Cell) -> str:
    """What a table says of a cell."""
    found = study.found(cell)
    if not found:
        return ""
    diverged = sum(result.diverged for result in found)
    own = cell.like is None and len(cell.rates) > 1
    at = f" at {study.rate(cell):g}" + (r"\*" if study.at_edge(cell) else "") if own else ""
    return spread_of(found) + at + (f", {diverged} diverged" if diverged else "")


def main(argv: Sequence[str] | None = None) -> str:
    """Do what is to be done, print and write the tables."""
    argv = sys.argv[1:] if argv is None else list(argv)
    known = parser("Ablations of the hypernetwork on one task.")
    known.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    given = parsed(known, argv)
    path = given.runs / "ablations.jsonl"
    study = Study(cells(given.axes), read(path), given.budget, given.seeds)
    if not given.tables:
        complete(study, path, given.data, given.workers)
    task = shifted.load(given.data)
    steps = study.run(base("MIP"), 0, 0).steps
    sections = [f"{task.what}. {steps} steps of {task.batch_size}.", NOTES]
    for name in given.axes:
        sections += section(name, study)
    return pages.publish("ablations", argv, sections, study, given.out)


if __name__ == "__main__":
    main()
