"""Train registration for all lam at once, measure it at every lam, choose the best ones and draw them.

python -m examples.hypermorph.run                       # a few minutes on one core
python -m examples.hypermorph.run --specialists         # beside networks that are trained at one lam each
python -m examples.hypermorph.run --specialists --full  # wider and longer, for a GPU
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch.cli import LightningCLI
from rich.console import Console
from rich.table import Table
from torch import Tensor

import lightning_mip as mip
from examples.hypermorph import figure
from examples.hypermorph.data import Pair
from examples.hypermorph.measures import overlap
from examples.hypermorph.structures import choose_by_structure, dice
from examples.hypermorph.task import CLASSES
from lightning_mip.cli import main as lightning_mip

HERE = Path(__file__).parent
SPECIALISTS = (0.0, 0.5, 0.8, 0.95)
SHOWN = (0.0, 0.5, 0.8, 0.9, 0.95, 1.0)
METRICS = ("dice", "folded", "smoothness")
POINTS = sorted({*(k / 10 for k in range(11)), *SPECIALISTS})


@dataclass(frozen=True)
class Outcome:
    """What the run gave.

    Attributes:
        table: Test metrics at every lam.
        choice: The best lam on the validation pairs.
        chosen: Test metrics there.
        choices: The best lam of each structure.
        plain: lam -> test metrics of the specialist.
        start: Test Dice before registration.
    """

    table: mip.Sweep
    choice: mip.Choice
    chosen: Mapping[str, float]
    choices: Mapping[str, mip.Choice]
    plain: Mapping[float, Mapping[str, float]]
    start: float


def fit(name: str, options: argparse.Namespace, extra: Sequence[str]) -> LightningCLI:
    """Run `lightning-mip fit` on one of this folder's configs, logging under the folder of runs."""
    configs = ["--config", str(HERE / f"{name}.yaml"), *(["--config", str(HERE / "full.yaml")] if options.full else [])]
    save = ["--trainer.logger.init_args.save_dir", str(options.runs)]
    return lightning_mip(["fit", *configs, *save, *extra])


def specialist(lam: float, options: argparse.Namespace, extra: Sequence[str]) -> Mapping[str, float]:
    """Train the plain network at one lam and test it."""
    cli = fit("specialist", options, ["--model.lam", str(lam), *extra])
    return cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)[0]


def evaluate(cli: LightningCLI, plain: Mapping[float, Mapping[str, float]]) -> Outcome:
    """Sweep lam on the test pairs, and choose it on the validation pairs."""
    model, data = cli.model, cli.datamodule
    table = mip.sweep(model, cli.trainer, {"lam": POINTS}, stage="test")
    choice = mip.choose(model, data.val_dataloader(), dice, "max", grid=21)
    there = mip.sweep(model, cli.trainer, [choice.h], stage="test")
    test = data.parts["test"].all()
    return Outcome(
        table=table,
        choice=choice,
        chosen={name: float(values) for name, values in there.metrics.items()},
        choices=choose_by_structure(model, data.parts["val"], data.names),
        plain=plain,
        start=float(before(test).mean()),
    )


def before(pair: Pair) -> Tensor:
    """Dice of each pair when nothing is moved."""
    return overlap(pair.moving_labels, pair.fixed_labels, torch.zeros_like(pair.moving).repeat(1, 2, 1, 1), CLASSES)


def results(outcome: Outcome) -> Table:
    """Dice, folds and smoothness at every lam, beside the specialists."""
    table = Table(title="test pairs")
    for column in ("lam", "Dice", "folded", "smoothness", *(["specialist: Dice", "folded"] if outcome.plain else [])):
        table.add_column(column, justify="right")
    for lam, *values in zip(POINTS, *(outcome.table[f"test_{name}"].tolist() for name in METRICS), strict=True):
        alone = outcome.plain.get(lam)
        beside = _cells(alone["test_dice"], alone["test_folded"]) if alone else []
        table.add_row(f"{lam:g}", *_cells(*values), *beside)
    chosen = (outcome.chosen[f"test_{name}"] for name in METRICS)
    table.add_row(f"{float(outcome.choice.h['lam']):.3f} *", *_cells(*chosen), style="bold")
    return table


def _cells(dice: float, folded: float, *smoothness: float) -> list[str]:
    return [f"{dice:.3f}", f"{folded:.2%}", *(f"{value:.4f}" for value in smoothness)]


def structures(choices: Mapping[str, mip.Choice]) -> Table:
    """The best lam of each structure, and its Dice there."""
    table = Table(title="validation pairs")
    table.add_column("structure")
    for column in ("best lam", "95 %", "Dice", "pairs"):
        table.add_column(column, justify="right")
    for name, choice in sorted(choices.items(), key=lambda item: float(item[1].h["lam"])):
        low, high = (float(end) for end in choice.interval["lam"])
        cells = f"{float(choice.h['lam']):.2f}", f"{low:.2f} to {high:.2f}", f"{choice.value:.3f}", str(choice.count)
        table.add_row(name, *cells)
    return table


def draw(cli: LightningCLI, outcome: Outcome, out: Path) -> None:
    """Write the figure: the test pair that is the furthest apart before registration."""
    test, model = cli.datamodule.parts["test"].all(), cli.model.cpu().eval()
    worst = int(before(test).argmin())
    pair = Pair(*(part[worst : worst + 1] for part in test))
    found = {}
    for lam in SHOWN:
        with torch.no_grad(), model.at(lam=lam):
            found[lam] = model(pair.moving, pair.fixed)
    picture = figure.draw(pair, found, outcome.table, outcome.plain, outcome.start, outcome.choice, outcome.choices)
    figure.save(picture, out)


def main(args: Sequence[str] | None = None) -> Outcome:
    """Run the example; arguments it does not know go on to every `lightning-mip fit`."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.hypermorph.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--specialists", action="store_true", help="also train a plain network at each of a few lam")
    parser.add_argument("--full", action="store_true", help="a wider network and a longer run, as full.yaml says")
    parser.add_argument("--out", type=Path, default=Path("runs/hypermorph/hypermorph.png"), help="the figure")
    parser.add_argument("--runs", type=Path, default=Path("runs/hypermorph"), help="folder of logs")
    options, extra = parser.parse_known_args(args)
    # Not about this run: the first is between Lightning and PyTorch, the second takes this command's own options for a
    # mistake, and images in memory need no loader processes.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended to run from within Python")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    if not options.full:
        # Batches this small gain little from more threads, and with one the numbers do not depend on the cores.
        torch.set_num_threads(1)

    hyper = fit("hypermorph", options, extra)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    plain = {lam: specialist(lam, options, extra) for lam in SPECIALISTS if options.specialists}
    outcome = evaluate(hyper, plain)
    draw(hyper, outcome, options.out)

    console = Console()
    console.print(results(outcome))
    console.print(f"* chosen on the validation pairs: {outcome.choice}", soft_wrap=True)
    console.print(f"Dice before registration: {outcome.start:.3f}")
    console.print(structures(outcome.choices))
    console.print(f"Figure: {options.out}", soft_wrap=True)
    return outcome


if __name__ == "__main__":
    main()
