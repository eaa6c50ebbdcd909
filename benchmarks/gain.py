"""How far may the learned gain grow with SGD? A task in which h is everything, and one in which it does little.

    python -m benchmarks.gain --data FOLDER --out docs/benchmarks/gain.md

The bound of the gain and its pace, which are constants of the package and no arguments (`lightning_mip.matching`), are
varied: on digits whose labels h shifts, and on Lightning's Transformer, whose dropout is the dial, at the learning rate
that it has and at twice as much, beside the plain network.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.demos import LightningTransformer

import lightning_mip as mip
from benchmarks import tables
from benchmarks.arguments import parsed, with_data
from benchmarks.matching_tasks import load
from benchmarks.update_matching import Setting, cell, finals
from examples.plugin import tour
from examples.plugin.cases import CASES
from examples.plugin.demo_data import PythonManual
from lightning_mip import matching

# Bound of the gain's logarithm, pace. The first bound leaves no gain to speak of.
GAINS = {
    "held at 1": (1e-3, 1.0),
    "at most 3.5, pace 2 (default)": (matching._LIMITS["sgd"], matching._PACES["sgd"]),
    "at most 4.5, pace 2": (1.5, 2.0),
    "at most 55, pace 1": (4.0, 1.0),
}
SHIFTED_RATES, TRANSFORMER_RATES = (1e-2, 3e-2), (0.1, 0.2)
NOTES = (
    "Mean over seeds; in brackets lowest and highest seed.\n\n"
    "- *shifted*: accuracy on digits whose labels an h of one component shifts, 24 epochs of SGD with momentum, cosine "
    "decay; higher is better.\n"
    "- *Transformer*: `LightningTransformer` by SGD, one epoch; negative log-likelihood of held-out text, mean over "
    "three values of its dropout, a dial from 0 to 0.8; lower is better. *plain*: a training with dropout 0.4.",
)


class AtRate(LightningTransformer):
    """Lightning's Transformer with a learning rate of choice in place of 0.1."""

    def __init__(self, vocab_size: int, lr: float) -> None:
        super().__init__(vocab_size)
        self.lr = lr

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD, as Lightning has it."""
        return torch.optim.SGD(self.model.parameters(), lr=self.lr)


@contextmanager
def bounded(limit: float, pace: float) -> Iterator[None]:
    """Make hypernetworks with another bound and pace."""
    own = matching._LIMITS["sgd"], matching._PACES["sgd"]
    matching._LIMITS["sgd"], matching._PACES["sgd"] = limit, pace
    try:
        yield
    finally:
        matching._LIMITS["sgd"], matching._PACES["sgd"] = own


def transformer(lr: float, seed: int, plain: bool, batches: int | None) -> float:
    """Train it once, with the plug-in or without; negative log-likelihood of held-out text."""
    case = CASES["transformer"]()
    L.seed_everything(seed, verbose=False)
    text = PythonManual()
    module, plugin = AtRate(text.vocab_size, lr), case.plugin()
    if plain:
        module.model.pos_encoder.dropout.p = 0.4
    run = tour.trainer(case, {"limit_train_batches": batches}, *([] if plain else [plugin]))
    run.fit(module, datamodule=text)
    if plain:
        return tour.measure(case, run, module, text, case.metric)
    found = []
    for h in plugin.grid or ():
        with mip.at(module, h):
            found.append(tour.measure(case, run, module, text, case.metric))
    return statistics.mean(found)


def transformers(seeds: int, batches: int | None, plain: bool = False) -> list[str]:
    """A cell for each learning rate."""
    cells = []
    for lr in TRANSFORMER_RATES:
        found = [transformer(lr, seed, plain, batches) for seed in range(seeds)]
        print(f"Transformer, lr {lr:g}: {[round(value, 2) for value in found]}", flush=True)
        cells.append(cell(found))
    return cells


def main(argv: Sequence[str] | None = None) -> str:
    """Train each, and write the page."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=4000, help="training digits")
    parser.add_argument("--epochs", type=int, default=24, help="of digits")
    parser.add_argument("--batches", type=int, default=None, help="of text, by default all")
    parser.add_argument("--out", type=Path, default=None, help="where to write the page")
    arguments = parsed(with_data(parser, "mnist.npz"), argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    digits = load(arguments.data, arguments.train)
    base = Setting("ours", "cnn3", "sgd", epochs=arguments.epochs, shift=True, decay=True)
    settings = [replace(base, lr=lr) for lr in SHIFTED_RATES]
    lines = [["plain", *("" for _ in settings), *transformers(arguments.seeds, arguments.batches, plain=True)]]
    for name, gain in GAINS.items():
        print(name, flush=True)
        with bounded(*gain):
            shifted = [cell(finals(setting, digits, arguments.seeds)) for setting in settings]
            lines.append([name, *shifted, *transformers(arguments.seeds, arguments.batches)])
    header = ["gain", *(f"shifted, {lr:g}" for lr in SHIFTED_RATES)]
    header += [f"Transformer, {lr:g}" for lr in TRANSFORMER_RATES]
    text = tables.page("The learned gain with SGD", "gain", argv, NOTES, [tables.table(header, lines)])
    print(text)
    tables.write(text, arguments.out)
    return text


if __name__ == "__main__":
    main()
