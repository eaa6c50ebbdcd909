"""Time of a sweep of 21 points beside 21 plain evaluation passes.

    python -m benchmarks.sweep_cost

A plain pass is ``trainer.validate`` of a LightningModule without a hypernetwork: the same network, step and loader. Of
both, the time of Lightning's start and end is part. Processor time of one thread, so that other work on the machine
does not count; medians of alternating runs.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_mip as mip

POINTS = 21


class Hyper(mip.HyperLightningModule):
    """With a hypernetwork."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


class Plain(L.LightningModule):
    """The same without."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


def network(width: int) -> nn.Module:
    """Four convolutions."""
    convolutions = [nn.Conv2d(1 if k == 0 else width, width, 3, padding=1) for k in range(4)]
    layers = [layer for convolution in convolutions for layer in (convolution, nn.GroupNorm(4, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def trainer() -> L.Trainer:
    """A quiet one."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return L.Trainer(accelerator="cpu", devices=1, **quiet)


def seconds(run: Callable[[], Any]) -> float:
    """Processor time of one run."""
    begin = time.process_time()
    run()
    return time.process_time() - begin


def main() -> float:
    """Run both, print a table, return the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--width", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    count = 32 * options.batches
    data = TensorDataset(torch.randn(count, 1, 28, 28), torch.randint(10, (count,)))
    loader = DataLoader(data, 32)
    hyper = Hyper(network(options.width), {"lam": mip.Uniform(0, 1)}, hypernet={"hidden_sizes": (16, 16)})
    plain, hyper_trainer, plain_trainer = Plain(network(options.width)), trainer(), trainer()
    hyper_trainer.validate(hyper, loader, verbose=False)

    def passes() -> None:
        for _ in range(POINTS):
            plain_trainer.validate(plain, loader, verbose=False)

    swept, passed = [], []
    for _ in range(options.rounds):
        swept.append(seconds(lambda: mip.sweep(hyper, hyper_trainer, POINTS)))
        passed.append(seconds(passes))
    ratio = statistics.median(swept) / statistics.median(passed)
    print(f"{POINTS} plain passes {statistics.median(passed):7.3f} s")
    print(f"sweep of {POINTS}     {statistics.median(swept):7.3f} s")
    print(f"ratio of the fastest {min(swept) / min(passed):.3f}")
    print(
        f"ratio of medians {ratio:6.3f}, of rounds "
        + ", ".join(f"{a / b:.3f}" for a, b in zip(swept, passed, strict=True))
    )
    return ratio


if __name__ == "__main__":
    main()
