"""How far may the learned gain grow with SGD, and how fast may the trunk turn?

    python -m benchmarks.gain --data FOLDER --out docs/benchmarks/gain.md

The bound of the gain, its pace and the size of the trunk's weights, which are constants of the package and no arguments
(`lightning_mip.matching`), are varied: on digits whose labels h shifts, and on Lightning's Transformer, whose dropout
is the dial, at the learning rate that it has and at twice as much, beside the plain network; the size of the trunk's
weights also on a sine of h.
"""

from __future__ import annotations

import argparse
import math
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
from torch import Tensor, nn

import lightning_mip as mip
from benchmarks import tables
from benchmarks.arguments import parsed, with_data
from benchmarks.matching_tasks import load
from benchmarks.update_matching import Setting, cell, finals
from examples.plugin import tour
from examples.plugin.cases import CASES
from examples.plugin.demo_data import PythonManual
from lightning_mip import matching

# Bound of the gain's logarithm, pace, size of the trunk's weights. The first bound leaves no gain to speak of.
LIMIT, PACE, SIZE = (constants["sgd"] for constants in (matching._LIMITS, matching._PACES, matching._SIZES))
GAINS = {
    "default: gain at most 3.5, pace 2": (LIMIT, PACE, SIZE),
    "gain held at 1": (1e-3, 1.0, SIZE),
    "gain at most 4.5": (1.5, PACE, SIZE),
    "gain at most 55, pace 1": (4.0, 1.0, SIZE),
    "trunk not slowed": (LIMIT, PACE, 1.0),
}
SIZES = (1.0, 2.0, 4.0, 8.0)
SHIFTED_RATES, TRANSFORMER_RATES, SINE_RATES = (1e-2, 3e-2), (0.1, 0.2), (0.01, 0.02, 0.05, 0.1)
# Of the squared error on the sine, whose targets have a variance of 9: above it a network is as good as blind to h.
BLIND = 4.0
NOTES = (
    "Mean over seeds; in brackets lowest and highest seed.\n\n"
    "- *shifted*: accuracy on digits whose labels an h of one component shifts, 24 epochs of SGD with momentum, cosine "
    "decay; higher is better.\n"
    "- *Transformer*: `LightningTransformer` by SGD, one epoch; negative log-likelihood of held-out text, mean over "
    "three values of its dropout, a dial from 0 to 0.8; lower is better. *plain*: a training with dropout 0.4.\n"
    f"- *sine*: `sin(6 h) w'x` by two layers, SGD; trainings whose error stays above {BLIND:g}, as of a network "
    "that is blind to `h`, and median error. *trunk*: by what the weights of each of its layers are multiplied; a step "
    "turns them by the square of it less.",
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
def fitted(limit: float, pace: float, size: float) -> Iterator[None]:
    """Fit hypernetworks to SGD with another bound, pace and size."""
    constants = matching._LIMITS, matching._PACES, matching._SIZES
    for each, value in zip(constants, (limit, pace, size), strict=True):
        each["sgd"] = value
    try:
        yield
    finally:
        for each, value in zip(constants, (LIMIT, PACE, SIZE), strict=True):
            each["sgd"] = value


def sine(lr: float, seed: int, steps: int) -> float:
    """Train a small network on a sine of h, once; mean squared error over h."""
    generator = torch.Generator().manual_seed(1)
    x, w = torch.randn(512, 16, generator=generator), torch.randn(16, 1, generator=generator)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))
    hyper = mip.hypernetize(net, {"lam": mip.Uniform(0, 1)})
    optimizer = torch.optim.SGD([*net.parameters(), *hyper.parameters()], lr)
    hyper.match(optimizer)

    def error(inputs: Tensor, lam: Tensor) -> Tensor:
        return (net(inputs) - torch.sin(6 * lam) * inputs @ w).square().mean()

    for step in range(steps):
        h = hyper.space.sample(seed=seed, step=step)
        optimizer.zero_grad()
        try:
            with mip.at(net, h):
                error(x[torch.randint(0, len(x), (64,), generator=generator)], h["lam"]).backward()
        except FloatingPointError:  # this package's own word for weights that are not finite
            return math.inf
        optimizer.step()
    found = []
    for lam in torch.linspace(0, 1, 9):
        with mip.at(net, lam=lam), torch.no_grad():
            found.append(float(error(x, lam)))
    return statistics.mean(found)


def sines(seeds: int, steps: int) -> str:
    """A table of how many trainings end blind to h, by the size of the trunk's weights and learning rate."""
    rows = []
    for size in SIZES:
        with fitted(LIMIT, PACE, size):
            found = [[sine(lr, seed, steps) for seed in range(seeds)] for lr in SINE_RATES]
        print(f"sine, trunk {size:g}: {found}", flush=True)
        cells = [f"{sum(e > BLIND for e in each)} of {seeds}, {statistics.median(each):.2f}" for each in found]
        rows.append([f"trunk {size:g}{' (default)' if size == SIZE else ''}", *cells])
    return tables.table(["", *(f"sine, {lr:g}" for lr in SINE_RATES)], rows)


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
    parser.add_argument("--steps", type=int, default=1500, help="of the sine")
    parser.add_argument("--sines", type=int, default=8, help="seeds of the sine")
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
        with fitted(*gain):
            shifted = [cell(finals(setting, digits, arguments.seeds)) for setting in settings]
            lines.append([name, *shifted, *transformers(arguments.seeds, arguments.batches)])
    header = ["", *(f"shifted, {lr:g}" for lr in SHIFTED_RATES)]
    header += [f"Transformer, {lr:g}" for lr in TRANSFORMER_RATES]
    sections = [tables.table(header, lines), sines(arguments.sines, arguments.steps)]
    text = tables.page("The learned gain and the trunk with SGD", "gain", argv, NOTES, sections)
    print(text)
    tables.write(text, arguments.out)
    return text


if __name__ == "__main__":
    main()
