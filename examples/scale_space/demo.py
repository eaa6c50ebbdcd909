"""Train one network for all rescale factors and three for fixed ones, print accuracy and cost, and draw the front.

python -m examples.scale_space.demo cells
python -m examples.scale_space.demo brain
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import lightning_mip as mip
from examples.common.overlap import dice
from examples.common.running import fit, fit_plain, settle
from examples.scale_space import figure
from examples.scale_space.cost import megaflops, milliseconds

HERE = Path(__file__).parent
FIXED = "examples.scale_space.task.FixedScale"
# Rescale factors of the table, and how many of them get a network of their own.
GRID, SEPARATE = 7, 3
PICTURES = 3
TIMED, ROUNDS = 8, 100
# The cheapest factor that loses no more than this is worth naming.
LOSS = 0.01
# For a GPU: full resolution, a wider network, a longer training.
FULL = {"cells": (128, 200), "brain": (80, 100)}


@dataclass(frozen=True)
class Point:
    """A network at one rescale factor: Dice on validation and test images, and what one image costs."""

    phi: float
    val_dice: float
    dice: float
    megaflops: float
    milliseconds: float


@dataclass(frozen=True)
class Outcome:
    """What was measured; `pictures` are test images, their labels, and at some factors what the network finds."""

    front: list[Point]
    separate: list[Point]
    pictures: tuple[Tensor, Tensor, dict[float, Tensor]]

    @property
    def best(self) -> Point:
        """The most accurate point on the validation images."""
        return max(self.front, key=lambda point: point.val_dice)

    @property
    def cheapest(self) -> Point:
        """The cheapest one that is at most `LOSS` below it there."""
        good = [point for point in self.front if point.val_dice >= self.best.val_dice - LOSS]
        return min(good, key=lambda point: point.megaflops)


def measure(nets: Mapping[float, nn.Module], data: Any, device: torch.device) -> list[Point]:
    """Dice and cost of the network of each phi."""
    nets = {phi: net.to(device).eval() for phi, net in nets.items()}
    parts = {name: [tensor.to(device) for tensor in data.parts[name].all()] for name in ("val", "test")}
    sample = parts["test"][0][:TIMED]
    times = milliseconds(nets, sample, ROUNDS)

    def score(net: nn.Module, phi: float, part: str) -> float:
        images, labels = parts[part]
        return dice(segment(net, images, phi), labels, len(data.names))

    return [
        Point(phi, score(net, phi, "val"), score(net, phi, "test"), megaflops(net, sample, phi), times[phi])
        for phi, net in nets.items()
    ]


@torch.no_grad()
def segment(net: nn.Module, images: Tensor, phi: float) -> Tensor:
    """Label maps, in batches that fit any memory."""
    return torch.cat([net(piece, phi).argmax(1) for piece in images.split(32)])


def run(name: str, runs: Path, full: bool, extra: Sequence[str]) -> Outcome:
    """Train and measure."""
    config = HERE / f"{name}.yaml"
    options = [*(full_budget(*FULL[name]) if full else []), *extra]
    hyper = fit(config, runs, options)
    space = hyper.model.space
    separate = {}
    for h in space.grid(SEPARATE):
        phi = float(h["phi"])
        separate[phi] = fit_plain(config, runs, options, FIXED, f"{name}_{phi:g}", phi=phi).model.primary
    data = hyper.datamodule
    data.setup("test")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    nets = {float(h["phi"]): mip.materialize(hyper.model, h) for h in space.grid(GRID)}
    images, labels = data.parts["test"].all()
    chosen = torch.linspace(0, len(images) - 1, PICTURES).long()
    shown = {phi: segment(nets[phi].cpu(), images[chosen], phi) for phi in list(nets)[:: GRID // 2]}
    pictures = images[chosen], labels[chosen], shown
    return Outcome(measure(nets, data, device), measure(separate, data, device), pictures)


def full_budget(side: int, epochs: int) -> list[str]:
    """Options for training at full resolution."""
    return [
        *("--data.init_args.image_size", str(side)),
        *("--model.init_args.primary.init_args.widths", "[32, 32, 64, 64, 64]"),
        *("--trainer.max_epochs", str(epochs)),
        *("--model.init_args.lr_scheduler.init_args.T_max", str(epochs)),
    ]


def table(outcome: Outcome, name: str) -> Table:
    """Accuracy and cost over the rescale factor; "its own" is a network trained for that phi."""
    result = Table(title=f"{name}: test Dice and cost of one image")
    for column in ("phi", "MFLOPs", "ms", "Dice, one network", "Dice, its own"):
        result.add_column(column, justify="right")
    own = {point.phi: f"{point.dice:.4f}" for point in outcome.separate}
    for point in outcome.front:
        cost = f"{point.megaflops:.2f}", f"{point.milliseconds:.3f}"
        result.add_row(f"{point.phi:.4g}", *cost, f"{point.dice:.4f}", own.get(point.phi, ""))
    return result


def main(args: Sequence[str] | None = None) -> Outcome:
    """Run the demo; arguments it does not know go on to every `lightning-mip fit`."""
    parser = argparse.ArgumentParser(prog="python -m examples.scale_space.demo", description=__doc__)
    parser.add_argument("data", choices=[*FULL], help="white blood cells, or brain slices")
    parser.add_argument("--full", action="store_true", help="full resolution, wide network, long training: for a GPU")
    parser.add_argument("--out", type=Path, help="the figure; runs/scale_space/DATA.png if not given")
    parser.add_argument("--runs", type=Path, default=Path("runs/scale_space"), help="folder of logs")
    options, extra = parser.parse_known_args(args)
    settle()
    outcome = run(options.data, options.runs, options.full, extra)
    out = options.out or options.runs / f"{options.data}.png"
    figure.save(figure.draw(outcome), out)

    console = Console()
    console.print(table(outcome, options.data))
    best, cheap = outcome.best, outcome.cheapest
    console.print(
        f"Best on the validation images: phi={best.phi:.4g}. Within {LOSS} of it there: phi={cheap.phi:.4g}, with "
        f"{cheap.megaflops / best.megaflops:.0%} of the operations, {cheap.milliseconds / best.milliseconds:.0%} of "
        f"the time, and a test Dice of {cheap.dice:.4f} instead of {best.dice:.4f}.\nFigure: {out}",
        soft_wrap=True,
    )
    return outcome


if __name__ == "__main__":
    main()
