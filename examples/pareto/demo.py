"""Train one network for all preferences and five for fixed ones, print their fronts, and draw them.

python -m examples.pareto.demo
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import lightning_mip as mip
from examples.bayesian_digits.data import CLASSES
from examples.common.running import fit, fit_plain, settle
from examples.pareto import figure
from examples.pareto.front import hypervolume
from examples.pareto.task import accuracies, losses

HERE = Path(__file__).parent
FIXED = "examples.pareto.task.FixedPreference"
# Rays on the whole front, of which every fourth but the ends has a network of its own.
RAYS, EVERY = 25, 4
# The reference of both hypervolumes is chance: the cross-entropy of equal probabilities, an accuracy of one in ten.
WORST_LOSS, WORST_ACCURACY = math.log(CLASSES), 1 / CLASSES


@dataclass(frozen=True)
class Point:
    """Test loss and accuracy on the left and the right digit, for one weight of the left one."""

    left: float
    loss: tuple[float, float]
    accuracy: tuple[float, float]


@dataclass(frozen=True)
class Outcome:
    """Both sets of points, and some of the images."""

    front: list[Point]
    separate: list[Point]
    images: Tensor
    labels: Tensor

    @property
    def same_rays(self) -> list[Point]:
        """Those of the hypernetwork that have a network of their own beside them."""
        return self.front[EVERY:-1:EVERY]


@torch.no_grad()
def measure(net: nn.Module, images: Tensor, labels: Tensor, left: float) -> Point:
    """Test a network."""
    pieces = [net.eval()(piece) for piece in images.split(1000)]
    logits = torch.cat([left_one for left_one, _ in pieces]), torch.cat([right_one for _, right_one in pieces])
    return Point(left, tuple(losses(logits, labels).tolist()), tuple(accuracies(logits, labels).tolist()))


def run(runs: Path, extra: Sequence[str]) -> Outcome:
    """Train and measure."""
    config = HERE / "pareto.yaml"
    hyper = fit(config, runs, extra)
    rays = [h["preference"].tolist() for h in hyper.model.space.grid(RAYS)]
    hyper.datamodule.setup("test")
    images, labels = hyper.datamodule.parts["test"].all()
    model = hyper.model.cpu()
    front = [measure(mip.materialize(model, preference=ray), images, labels, ray[0]) for ray in rays]
    separate = []
    for ray in rays[EVERY:-1:EVERY]:
        plain = fit_plain(config, runs, extra, FIXED, f"preference_{ray[0]:.3f}", preference=ray)
        separate.append(measure(plain.model.primary.cpu(), images, labels, ray[0]))
    return Outcome(front, separate, images[:6], labels[:6])


def volumes(points: Sequence[Point]) -> tuple[float, float]:
    """Hypervolume of losses and of accuracies."""
    negative = [(-left, -right) for left, right in (point.accuracy for point in points)]
    return (
        hypervolume([point.loss for point in points], (WORST_LOSS, WORST_LOSS)),
        hypervolume(negative, (-WORST_ACCURACY, -WORST_ACCURACY)),
    )


def table(outcome: Outcome) -> Table:
    """Losses and accuracies at the rays that both have."""
    result = Table(title=f"{len(outcome.separate)} rays: one network / the ray's own")
    result.add_column("weights")
    for column in ("loss left", "loss right", "acc. left", "acc. right"):
        result.add_column(column, justify="right")
    for one, own in zip(outcome.same_rays, outcome.separate, strict=True):
        pairs = zip((*one.loss, *one.accuracy), (*own.loss, *own.accuracy), strict=True)
        cells = (f"{mine:.3f} / {theirs:.3f}" for mine, theirs in pairs)
        result.add_row(f"{one.left:.2f} {1 - one.left:.2f}", *cells)
    return result


def volume_table(outcome: Outcome) -> Table:
    """Hypervolumes of the fronts."""
    result = Table(title="hypervolume; more is better")
    result.add_column("front")
    for column in ("of losses", "of accuracies"):
        result.add_column(column, justify="right")
    rows = {
        f"one network, {len(outcome.front)} rays": outcome.front,
        f"one network, {len(outcome.same_rays)} rays": outcome.same_rays,
        f"{len(outcome.separate)} networks": outcome.separate,
    }
    for name, points in rows.items():
        result.add_row(name, *(f"{value:.4f}" for value in volumes(points)))
    return result


def full_budget() -> list[str]:
    """Options for the images' own size and a long training."""
    epochs = "60"
    return [
        *("--data.init_args.image_size", "null"),
        *("--trainer.max_epochs", epochs),
        *("--model.init_args.lr_scheduler.init_args.T_max", epochs),
    ]


def main(args: Sequence[str] | None = None) -> Outcome:
    """Run the demo; arguments it does not know go on to every `lightning-mip fit`."""
    parser = argparse.ArgumentParser(prog="python -m examples.pareto.demo", description=__doc__)
    parser.add_argument("--full", action="store_true", help="36 x 36 pixels, 60 epochs: for a GPU")
    parser.add_argument("--out", type=Path, default=Path("runs/pareto/pareto.png"), help="the figure")
    parser.add_argument("--runs", type=Path, default=Path("runs/pareto"), help="folder of logs")
    options, extra = parser.parse_known_args(args)
    settle()
    outcome = run(options.runs, [*(full_budget() if options.full else []), *extra])
    figure.save(figure.draw(outcome), options.out)
    console = Console()
    console.print(table(outcome))
    console.print(volume_table(outcome))
    console.print(f"Figure: {options.out}", soft_wrap=True)
    return outcome


if __name__ == "__main__":
    main()
