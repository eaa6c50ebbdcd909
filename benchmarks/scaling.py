"""How the cost of a hypernetwork grows, as a ratio to the plain network's training step.

    python -m benchmarks.scaling --out docs/benchmarks/scaling.md
    python -m benchmarks.scaling --quick --tables dimension per_sample

Tables: ``weights``, the ResNet with more and more of it generated; ``width``, the last width of the trunk, which is the
number of basis vectors in weight space; ``batch``; ``dimension``, the number of components of h; ``compiled``, the
hypernetwork compiled; ``per_sample``, a batch in which every sample has its own h.

Steps are as in `benchmarks.step_time`.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch

import lightning_mip as mip
from benchmarks import tables
from benchmarks.per_sample import step_makers
from benchmarks.primaries import PRIMARIES
from benchmarks.step_time import APART, arguments, times_of
from benchmarks.timing import interleaved, lower_quartile, median, ratio_of_quartiles, ratio_of_rounds, turn
from benchmarks.training import WAYS
from lightning_mip.selection import select

ROUNDS, QUICK_ROUNDS = {"conv": 60, "resnet": 15, "unet": 12}, 2
# From the last layer of the ResNet towards its first: each set adds a stage.
PARTS = {
    "linear": ["13.*"],
    "one-dimensional": ["*bn*", "1.*", "13.bias", "*shortcut.1.*"],
    "stage 1": ["[0-4].*"],
    "stages 1-2": ["[0-6].*"],
    "stages 1-3": ["[0-8].*"],
    "all": ["*"],
}
WIDTHS = (4, 8, 16, 32, 64, 128, 256)
BATCHES = (8, 16, 32, 64, 128, 256)
DIMENSIONS = (1, 2, 4, 8, 16, 32, 64)
PER_SAMPLE_BATCH = 32
NOTES = (
    "- Every column but the first of numbers is a ratio to the plain network's step with the same optimizer in the "
    "same rounds (median); *ms* is the plain network's median.",
    WAYS,
)


def sweep(
    first: str, points: Iterable[tuple[object, dict[str, Any]]], name: str, given: argparse.Namespace, title: str
) -> str:
    """A table with a line for each point: the options of `times_of` that it stands for."""
    ways = [(variant, optimizer) for optimizer in given.optimizers for variant in given.variants]
    floors = [("plain", optimizer) for optimizer in given.optimizers]
    ways = [*floors, *(way for way in ways if way not in floors)]
    header = [first, *(f"{way[1]}: ms" if way in floors else f"{way[1]}: {way[0]}" for way in ways)]
    rounds, rows = given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS[name]), []
    for label, options in points:
        times, _ = times_of(PRIMARIES[name], ways, rounds, f"{title}, {label}", apart=given.apart, **options)
        line = [
            median(own) if way in floors else ratio_of_rounds(own, times["plain", way[1]]) for way, own in times.items()
        ]
        rows.append([label, *line])
        print(*rows[-1], flush=True)
    return f"## {title}\n\n{rounds} rounds.\n\n{tables.table(header, rows)}"


def weights(given: argparse.Namespace) -> str:
    """Cost against the number of generated weights."""
    net = PRIMARIES["resnet"].make()

    def point(part: str) -> tuple[str, dict[str, Any]]:
        names = select(net, PARTS[part], ())
        count = sum(net.get_parameter(name).numel() for name in names)
        return f"{part}: {count:,}", {"options": {"include": PARTS[part]}, "batch_size": given.batch}

    return sweep("generated", map(point, PARTS), "resnet", given, "ResNet: number of generated weights")


def width(given: argparse.Namespace) -> str:
    """Cost against the last width of the trunk."""
    points = (
        (size, {"options": {"hidden_sizes": (16, 64, size)}, "batch_size": given.batch})
        for size in _ends(WIDTHS, given.quick)
    )
    name = given.primary
    return sweep("last width", points, name, given, f"{name}: last width of the trunk (16-64-width for all)")


def batch(given: argparse.Namespace) -> str:
    """Cost against the batch size."""
    points = ((size, {"batch_size": size}) for size in _ends(BATCHES, given.quick))
    return sweep("batch", points, given.primary, given, f"{given.primary}: batch size")


def dimension(given: argparse.Namespace) -> str:
    """Cost against the number of components of h."""

    def point(count: int) -> tuple[int, dict[str, Any]]:
        space = mip.HSpace({f"h{i:02}": mip.Uniform(0, 1) for i in range(count)})
        return count, {"space": space, "batch_size": given.batch}

    points = map(point, _ends(DIMENSIONS, given.quick))
    return sweep("components", points, given.primary, given, f"{given.primary}: components of h")


def compiled(given: argparse.Namespace) -> str:
    """Cost with the hypernetwork compiled by ``torch.compile``."""
    given = argparse.Namespace(**{**vars(given), "variants": ["plain", "ours"]})
    points = {word: {"options": {"compiled": word == "compiled"}} for word in ("eager", "compiled")}
    names = ["conv"] if given.quick else list(PRIMARIES)
    return "\n\n".join(
        sweep("hypernetwork", points.items(), name, given, f"{name}: the hypernetwork compiled") for name in names
    )


def per_sample(given: argparse.Namespace) -> str:
    """Cost of an h for each sample, this package's ways and by hand."""
    size = given.batch or PER_SAMPLE_BATCH
    rounds = given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS["conv"])
    sections = [f"## conv: an h for each sample, batch {size}", f"{rounds} rounds."]
    header = ("way", "median ms", "q25 ms", "x plain", "x plain q25", "x one h", "x grouped by hand")
    makers_of = {"ours": mip.HyperNetwork, "ours_paper": mip.HyperNetwork.paper}
    for variant, optimizer in [(v, o) for v in makers_of if v in given.variants for o in given.optimizers]:
        torch.manual_seed(0)
        net, data = PRIMARIES["conv"].make(), PRIMARIES["conv"].batch(size)
        makers = step_makers(size, optimizer, makers_of[variant])
        made = {way: make(copy.deepcopy(net)) for way, make in makers.items()}
        turns = {way: partial(turn, partial(step, data)) for way, step in made.items()}
        times = interleaved(turns, rounds, f"per sample, {variant}, {optimizer}")
        plain, single, hand = (times[way] for way in ("plain", "one h", "grouped convolution by hand"))
        rows = [
            [
                way,
                median(own),
                lower_quartile(own),
                ratio_of_rounds(own, plain),
                ratio_of_quartiles(own, plain),
                ratio_of_rounds(own, single),
                ratio_of_rounds(own, hand),
            ]
            for way, own in times.items()
        ]
        sections += [f"### {variant}, {optimizer}", tables.table(header, rows)]
        print(sections[-1], flush=True)
    return "\n\n".join(sections)


def _ends(values: Sequence[int], quick: bool) -> Sequence[int]:
    return values[::3] if quick else values


TABLES: dict[str, Callable[[argparse.Namespace], str]] = {
    "weights": weights,
    "width": width,
    "batch": batch,
    "dimension": dimension,
    "compiled": compiled,
    "per_sample": per_sample,
}


def main(argv: Sequence[str] | None = None) -> str:
    """Measure, print and write the tables."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description="How the cost of a hypernetwork grows.")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--primary", choices=PRIMARIES, default="conv", help="of the tables width, batch, dimension")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}, {QUICK_ROUNDS} with --quick")
    parser.add_argument("--apart", action="store_true", help=f"{APART}; not in per_sample")
    given = arguments(parser, argv)
    sections, text = [], ""
    for name in given.tables:
        print(f"# {name}", flush=True)
        sections.append(TABLES[name](given))
        text = tables.page("How the cost grows", "scaling", argv, NOTES, sections)
        tables.write(text, given.out)
    print(text)
    return text


if __name__ == "__main__":
    main()
