"""Time of one training step of a hypernetized network, as a ratio to that of the plain one.

    python -m benchmarks.step_time --out docs/benchmarks/step_time.md
    python -m benchmarks.step_time --quick

Three primaries (ConvNet, ResNet-18 layout, U-Net), all of whose weights are generated from an h of one component, by
this package with its defaults, by this package with HyperLight's sizes, and by HyperLight; each with torch's default
Adam and with the fused one. All start from the same weights, see the same batch, and take their steps in turn in one
process. A step is all of it: drawing h, generation, forward, backward, optimizer, clearing gradients.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import lightning_mip as mip
from benchmarks import tables
from benchmarks.primaries import PRIMARIES, Primary
from benchmarks.timing import interleaved, lower_quartile, median, ratio_of_quartiles, ratio_of_rounds
from benchmarks.training import OPTIMIZERS, WAYS, make_optimizer, stepper
from benchmarks.variants import VARIANTS, installed

QUICK_ROUNDS = 3
# A way of training: variant and optimizer.
Way = tuple[str, str]
HEADER = (
    "variant",
    "optimizer",
    "trained (M)",
    "median ms",
    "q25 ms",
    "x plain",
    "x plain q25",
    "x plain, default Adam",
    "x HyperLight",
    "x HyperLight q25",
)
NOTES = (
    "- *x plain*: ratio to the plain network with the same optimizer: median over the rounds of the ratio in each "
    "round; *q25*: ratio of the lower quartiles, which other work on the machine disturbs less.\n"
    "- *x plain, default Adam*: ratio of rounds to the plain network with torch's default Adam.\n"
    "- *x HyperLight*: to HyperLight with the same optimizer.",
    WAYS,
)


def times_of(
    primary: Primary,
    ways: Sequence[Way],
    rounds: int,
    title: str,
    space: mip.HSpace | None = None,
    batch_size: int | None = None,
    options: dict[str, Any] | None = None,
) -> tuple[dict[Way, list[float]], dict[Way, int]]:
    """Milliseconds of the steps of each way, and how many numbers it trains.

    Args:
        primary: what is trained.
        ways: (variant, optimizer) each.
        rounds: of the measurement.
        title: of the progress line.
        space: of h; by default one uniform component.
        batch_size: by default the primary's own.
        options: passed on to every variant.
    """
    torch.manual_seed(0)
    space = space or mip.HSpace({"h": mip.Uniform(0, 1)})
    net, (x, y) = primary.make(), primary.batch(batch_size)
    steps, sizes = {}, {}
    for way in ways:
        variant = VARIANTS[way[0]](copy.deepcopy(net), space, **(options or {}))
        sizes[way] = sum(parameter.numel() for parameter in variant.parameters)
        optimizer = make_optimizer(way[1], variant.parameters)
        step = stepper(variant, optimizer, lambda net, batch, h: primary.loss(net(batch[0]), batch[1]))
        steps[way] = partial(step, (x, y))
    return interleaved(steps, rounds, title), sizes


def rows_of(times: dict[Way, list[float]], sizes: dict[Way, int]) -> list[list[object]]:
    """Rows of the table."""

    def against(other: Way, own: list[float]) -> list[object]:
        floor = times.get(other)
        return [ratio_of_rounds(own, floor), ratio_of_quartiles(own, floor)] if floor else ["", ""]

    rows = []
    for (name, optimizer), own in times.items():
        rows.append(
            [
                name,
                optimizer,
                f"{sizes[name, optimizer] / 1e6:.3f}",
                median(own),
                lower_quartile(own),
                *against(("plain", optimizer), own),
                against(("plain", "adam"), own)[0],
                *against(("hyperlight", optimizer), own),
            ]
        )
    return rows


def section(name: str, times: dict[Way, list[float]], sizes: dict[Way, int], batch_size: int | None) -> str:
    """Heading and table of one primary."""
    primary = PRIMARIES[name]
    net = primary.make()
    count, tensors = sum(p.numel() for p in net.parameters()), len(list(net.parameters()))
    shape = " x ".join(map(str, (batch_size or primary.batch_size, *primary.shape)))
    rounds = len(next(iter(times.values())))
    heading = f"## {name}: {count:,} weights in {tensors} tensors, batch {shape}, {rounds} rounds"
    return f"{heading}\n\n{tables.table(HEADER, rows_of(times, sizes))}"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Read the options that the scripts on time and memory share, and set the threads."""
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="default: all that are installed")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--batch", type=int, help="batch size instead of the primary's own")
    parser.add_argument("--threads", type=int, help="threads of torch, default: its own choice")
    parser.add_argument("--quick", action="store_true", help="few repetitions, to see that it runs")
    parser.add_argument("--out", type=Path, help="write the tables there, in markdown")
    given = parser.parse_args(argv)
    given.variants = given.variants or installed()
    if given.threads:
        torch.set_num_threads(given.threads)
    return given


def main(argv: Sequence[str] | None = None) -> str:
    """Measure, print and write the tables."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description="Time of a training step against the plain network's.")
    parser.add_argument("--primaries", nargs="+", choices=PRIMARIES, default=list(PRIMARIES))
    parser.add_argument("--rounds", type=int, help=f"default: the primary's own, {QUICK_ROUNDS} with --quick")
    given = arguments(parser, argv)
    ways = [(variant, optimizer) for variant in given.variants for optimizer in given.optimizers]
    sections, text = [], ""
    for name in given.primaries:
        primary = PRIMARIES[name]
        rounds = given.rounds or (QUICK_ROUNDS if given.quick else primary.rounds)
        times, sizes = times_of(primary, ways, rounds, name, batch_size=given.batch)
        sections.append(section(name, times, sizes, given.batch))
        print(f"{sections[-1]}\n", flush=True)
        text = tables.page("Time of a training step", "step_time", argv, NOTES, sections)
        tables.write(text, given.out)  # after each, so that a run which is cut off leaves what it has
    return text


if __name__ == "__main__":
    main()
