"""What more processes cost under DDP, and what they do to the variance of the gradient over h.

    python -m benchmarks.ranks --out docs/benchmarks/ranks.md
    python -m benchmarks.ranks --quick

A convolutional network reads scikit-learn's handwritten digits; h weighs a penalty on its outputs. Each number of
processes is a run of its own through Lightning's Trainer, with ``strategy="ddp"``; the gradient is looked at after each
backward, where DDP has made it the mean over the processes, and the weights stay where they are. Draws of h are a
function of (seed, rank, step), so for more processes than were started the same gradients are taken one after another.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_mip as mip
from benchmarks import tables
from benchmarks.primaries import ConvNet

RANKS, MORE = 4, (8, 16, 64)
STEPS, TIMED, QUICK_STEPS = 256, 128, 4
BATCH, PENALTY, TRAINED = 64, 0.1, 100
SPACE = {"lam": mip.Uniform(0, 1)}
# What differs between the processes and from step to step: column -> (arguments of SampleH, whether the data do, too).
DRAWS: dict[str, tuple[dict[str, Any], bool]] = {
    "own h": ({}, False),
    "stratified": ({"strategy": "stratified"}, False),
    "sobol": ({"strategy": "sobol"}, False),
    "one h for all": ({"same_on_all_ranks": True}, False),
    "own h, own data": ({}, True),
    "one h, own data": ({"same_on_all_ranks": True}, True),
}
HEADS: dict[str, Any] = {"full": None, "LowRank(4)": mip.LowRank(4), "Chunked(1024)": mip.Chunked(1024)}
NOTES = (
    "- *variance*: mean squared distance of a step's gradient (of theta0 and the hypernetwork) from the mean gradient, "
    "as a multiple of that of one process with the same kind of data. Data are the same in all processes and steps, "
    "but for the last two columns, where each batch is drawn anew. Steps of a spread sequence (stratified, sobol) are "
    "not independent; what is measured is one step.\n"
    "- *computed*: the gradients at the h of so many processes, taken one after another in one.\n"
    "- *ms*: median wall time of a training step; *CPU ms*: processor time that each process spends per step, all of "
    f"its threads. Each process has a batch of {BATCH} of its own and one thread.\n"
    "- *reduced*: MB of gradients that each process hands to the all-reduce of a step.",
)


class Timed(L.LightningModule):
    """The plain network."""

    def __init__(self) -> None:
        super().__init__()
        self.network = ConvNet()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return loss(self.network(batch[0]), batch[1], 0.5)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.0, fused=True)


class TimedHyper(mip.HyperLightningModule):
    """The same with a hypernetwork."""

    configure_optimizers = Timed.configure_optimizers

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return loss(self(batch[0]), batch[1], self.h["lam"])


class Watched(TimedHyper):
    """Adds up its gradients, and their squares."""

    def on_after_backward(self) -> None:
        self.__dict__["sums"].add(gradient(self))


class Sums:
    """Of gradients: enough for their variance."""

    def __init__(self) -> None:
        self.count, self.squares, self.total = 0, 0.0, torch.zeros(())

    def add(self, found: Tensor) -> None:
        self.count, self.total = self.count + 1, self.total + found.double()
        self.squares += float(found.double().square().sum())

    def variance(self) -> float:
        mean = self.total / self.count
        return (self.squares - self.count * float(mean.square().sum())) / (self.count - 1)


class Clock(L.Callback):
    """Wall and processor time of each step, in milliseconds."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.wall.append(time.perf_counter())
        self.processor.append(time.process_time())

    def typical(self) -> tuple[float, float]:
        """Median of the wall times; mean of the processor times."""
        each = ([1e3 * (b - a) for a, b in itertools.pairwise(t)] for t in (self.wall, self.processor))
        wall, processor = each
        return statistics.median(wall), statistics.mean(processor)


def loss(output: Tensor, labels: Tensor, lam: Any) -> Tensor:
    """Cross-entropy and a penalty."""
    return F.cross_entropy(output, labels) + PENALTY * lam * output.square().mean()


def gradient(module: nn.Module) -> Tensor:
    """All of it as one vector."""
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def batches(rank: int, steps: int, fresh: bool) -> list[tuple[Tensor, Tensor]]:
    """The same batch again and again, or a new one for each process and step."""
    digits = load_digits()
    x, y = torch.tensor(digits.images).float().unsqueeze(1) / 16, torch.tensor(digits.target)
    chosen = torch.Generator().manual_seed(1 + rank if fresh else 0)
    index = [torch.randint(len(x), (BATCH,), generator=chosen) for _ in range(steps if fresh else 1)]
    return [(x[index[k % len(index)]], y[index[k % len(index)]]) for k in range(steps)]


def trained() -> Watched:
    """A module after a short training, the same at every call."""
    torch.manual_seed(0)
    module = Watched(ConvNet(), SPACE)
    optimizer = torch.optim.Adam(module.parameters(), 1e-3, fused=True)
    module.hypernet.match(optimizer)
    for step, (x, y) in enumerate(batches(-1, TRAINED, fresh=True)):
        with module.at(module.space.sample(seed=1, step=step)):
            loss(module(x), y, module.h["lam"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return module


def fit(module: L.LightningModule, ranks: int, steps: int, fresh: bool, callbacks: list[L.Callback]) -> None:
    """Take steps on so many processes, of which this is one."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp",
        max_epochs=1,
        use_distributed_sampler=False,
        callbacks=callbacks,
        **quiet,
    )
    trainer.fit(module, DataLoader(batches(trainer.global_rank, steps, fresh), batch_size=None))  # type: ignore[arg-type]


def measure(ranks: int, steps: int, timed: int, out: Path) -> None:
    """One of so many processes; the first writes what it has found."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found: dict[str, Any] = {}
    for name, (sampler, fresh) in DRAWS.items():
        module = trained()
        module.__dict__["sums"] = Sums()
        fit(module, ranks, steps, fresh, [mip.SampleH(**sampler)])
        found[name] = module.__dict__["sums"].variance()
    for name, module in (("plain", Timed()), ("ours", TimedHyper(ConvNet(), SPACE))):
        clock = Clock()
        fit(module, ranks, timed + 1, False, [clock])
        found[f"{name} time"] = clock.typical()
    if torch.distributed.get_rank() == 0:
        out.write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def started(ranks: int, steps: int, timed: int) -> dict[str, Any]:
    """Run `measure` in processes of their own, which Lightning starts."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        words = ["--child", json.dumps([ranks, steps, timed, str(out)])]
        subprocess.run([sys.executable, "-m", "benchmarks.ranks", *words], check=True)
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def computed(ranks: int, steps: int) -> dict[str, float]:
    """Variance for more processes than are started: their gradients one after another."""
    module, found = trained(), {}
    ((x, y),) = batches(0, 1, fresh=False)
    for name, (sampler, fresh) in DRAWS.items():
        if fresh or "same_on_all_ranks" in sampler:
            continue
        sums = Sums()
        for step in range(steps):
            module.zero_grad()
            for rank in range(ranks):
                with module.at(module.space.sample(seed=0, rank=rank, step=step, world_size=ranks, **sampler)):
                    (loss(module(x), y, module.h["lam"]) / ranks).backward()
            sums.add(gradient(module))
        found[name] = sums.variance()
    return found


def variance_table(found: dict[int, dict[str, Any]]) -> str:
    """Variance as a multiple of that of one process."""
    rows = []
    for ranks, each in found.items():
        cells: list[object] = []
        for name, (_, fresh) in DRAWS.items():
            one = found[1]["own h, own data" if fresh else "own h"]
            cells.append(f"{each[name] / one:.4f}" if name in each else "")
        rows.append([f"{ranks}{'' if 'ours time' in each else ', computed'}", f"{1 / ranks:.4f}", *cells])
    return tables.table(["processes", "1 / processes", *DRAWS], rows)


def time_table(found: dict[int, dict[str, Any]]) -> str:
    """Time of a step."""
    rows = []
    for ranks, each in found.items():
        if "ours time" in each:
            (wall, cpu), (plain_wall, plain_cpu) = each["ours time"], each["plain time"]
            rows.append([ranks, plain_wall, wall, wall / plain_wall, plain_cpu, cpu, cpu / plain_cpu])
    header = ["processes", "plain, ms", "ours, ms", "ratio", "plain, CPU ms", "ours, CPU ms", "ratio"]
    return tables.table(header, rows)


def payload_table() -> str:
    """Gradients that a step reduces."""
    plain = sum(p.numel() for p in ConvNet().parameters())
    rows: list[list[object]] = [["plain network", plain, 4 * plain / 1e6, 1.0]]
    for name, head in HEADS.items():
        arguments = {} if head is None else {"head": head}
        module = mip.HyperLightningModule(ConvNet(), SPACE, hypernet=arguments)
        count = sum(p.numel() for p in module.parameters())
        rows.append([f"{name} head", count, 4 * count / 1e6, count / plain])
    return tables.table(["", "numbers", "reduced, MB", "x plain"], rows)


def main(argv: Sequence[str] | None = None) -> str:
    """Measure, print and write the tables; with ``--child`` be one of the processes."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=RANKS, help="processes at most (default: %(default)s)")
    parser.add_argument("--steps", type=int, help=f"default {STEPS}, {QUICK_STEPS} with --quick")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--out", type=Path, help="file to write the tables to; without it they are printed")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.child:
        *numbers, out = json.loads(given.child)
        measure(*numbers, Path(out))
        return ""
    torch.set_num_threads(1)
    steps = given.steps or (QUICK_STEPS if given.quick else STEPS)
    timed = min(steps, TIMED)
    found = {ranks: started(ranks, steps, timed) for ranks in range(1, given.ranks + 1)}
    more = {} if given.quick else {ranks: computed(ranks, max(8, 4 * steps // ranks)) for ranks in MORE}
    spread = f"{100 * (2 / steps) ** 0.5:.0f} %"
    sections = [
        f"## Variance of the gradient, {steps} steps\n\nThe number of steps leaves an error of about {spread}.\n\n"
        + variance_table({**found, **more}),
        f"## Time of a step, {timed} steps\n\n{time_table(found)}",
        f"## What a step reduces\n\n{payload_table()}",
    ]
    text = tables.page("More processes", "ranks", argv, NOTES, sections)
    print(text)
    tables.write(text, given.out)
    return text


if __name__ == "__main__":
    main()
