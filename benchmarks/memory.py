"""Peak memory of training a hypernetized network, as a ratio to that of training the plain one.

    python -m benchmarks.memory --out docs/benchmarks/memory.md
    python -m benchmarks.memory --quick

The networks, ways of training and batches of `benchmarks.step_time`; each runs in a process of its own, whose peak
resident memory is read after a few training steps. From it goes what the process held after the imports, which are the
same for all, so the rest is the network, the hypernetwork, gradients, the optimizer's state and activations.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import lightning_mip as mip
from benchmarks import tables
from benchmarks.primaries import PRIMARIES
from benchmarks.resident import resident
from benchmarks.step_time import Way, arguments
from benchmarks.training import WAYS, make_optimizer, stepper
from benchmarks.variants import VARIANTS

ROOT = Path(__file__).parents[1]
STEPS, QUICK_STEPS = 5, 2
HEADER = (
    "variant",
    "optimizer",
    "peak MiB",
    "above imports",
    "x plain",
    "above plain's",
    "x plain alone",
    "built",
    "x HyperLight",
)
NOTES = (
    "- *peak MiB*: peak resident memory of the process; *above imports*: less what it held after the imports.\n"
    "- *x plain*, *x HyperLight*: ratio of *above imports* to that of the plain network, of HyperLight, with the same "
    "optimizer; *above plain's*: the difference in MiB.\n"
    "- *x plain alone*: the plain network's training in a process that has imported torch alone takes what is told "
    "above the table; with *above plain's* added, the ratio to it. The imports of this package load parts of torch "
    "that such a process loads as it trains.\n"
    "- *built*: resident above imports once network, hypernetwork and optimizer are made, before the first step.",
    WAYS,
)


def train_alone(name: str, variant: str, optimizer: str, steps: int, batch_size: int | None) -> dict[str, float]:
    """Train in this process, which has done nothing before, and read its memory."""
    torch.manual_seed(0)
    imports = resident(peak=False)
    primary = PRIMARIES[name]
    made = VARIANTS[variant](primary.make(), mip.HSpace({"h": mip.Uniform(0, 1)}))
    optimize = make_optimizer(optimizer, made.parameters)
    built = resident(peak=False)
    step = stepper(made, optimize, lambda net, batch, h: primary.loss(net(batch[0]), batch[1]))
    batch = primary.batch(batch_size)
    for _ in range(steps):
        step(batch)
    peak = resident(peak=True)
    return {"peak": peak, "above": peak - imports, "built": built - imports}


def in_own_process(name: str, way: Way, steps: int, given: argparse.Namespace) -> dict[str, float]:
    """Run `train_alone` in a new process."""
    task = {"name": name, "variant": way[0], "optimizer": way[1], "steps": steps, "batch_size": given.batch}
    command = [sys.executable, "-m", "benchmarks.memory", "--child", json.dumps(task)]
    command += ["--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{name} {way[0]} {way[1]}: {found['peak']:.0f} MiB", file=sys.stderr, flush=True)
    return found


def plain_alone(name: str, optimizer: str, steps: int, given: argparse.Namespace) -> float:
    """Run `benchmarks.resident.train_plain` in a new process."""
    task = {"name": name, "fused": optimizer == "fused", "steps": steps, "batch_size": given.batch}
    task["threads"] = torch.get_num_threads()
    command = [sys.executable, "-m", "benchmarks.resident", json.dumps(task)]
    return float(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)


def section(name: str, found: dict[Way, dict[str, float]], given: argparse.Namespace, steps: int) -> str:
    """Heading and table of one primary."""
    rows: list[list[Any]] = []
    alone = {optimizer: plain_alone(name, optimizer, steps, given) for optimizer in given.optimizers}
    for (variant, optimizer), own in found.items():
        plain, peer = found.get(("plain", optimizer)), found.get(("hyperlight", optimizer))
        rows.append(
            [
                variant,
                optimizer,
                f"{own['peak']:.0f}",
                f"{own['above']:.0f}",
                own["above"] / plain["above"] if plain else "",
                f"{own['above'] - plain['above']:.0f}" if plain else "",
                1 + (own["above"] - plain["above"]) / alone[optimizer] if plain else "",
                f"{own['built']:.0f}",
                own["above"] / peer["above"] if peer else "",
            ]
        )
    primary = PRIMARIES[name]
    shape = " x ".join(map(str, (given.batch or primary.batch_size, *primary.shape)))
    text = ", ".join(f"{megabytes:.0f} MiB with {optimizer}" for optimizer, megabytes in alone.items())
    return f"## {name}: batch {shape}, {steps} steps\n\nPlain alone: {text}.\n\n{tables.table(HEADER, rows)}"


def main(argv: Sequence[str] | None = None) -> str:
    """Measure, print and write the tables; with ``--child`` measure this process."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description="Peak memory of training against the plain network's.")
    parser.add_argument("--primaries", nargs="+", choices=PRIMARIES, default=list(PRIMARIES))
    parser.add_argument("--steps", type=int, help=f"default {STEPS}, {QUICK_STEPS} with --quick")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = arguments(parser, argv)
    if given.child:
        print(json.dumps(train_alone(**json.loads(given.child))))
        return ""
    steps = given.steps or (QUICK_STEPS if given.quick else STEPS)
    sections, text = [], ""
    for name in given.primaries:
        ways = [(variant, optimizer) for variant in given.variants for optimizer in given.optimizers]
        sections.append(section(name, {way: in_own_process(name, way, steps, given) for way in ways}, given, steps))
        print(f"{sections[-1]}\n", flush=True)
        text = tables.page("Peak memory of training", "memory", argv, NOTES, sections)
        tables.write(text, given.out)
    return text


if __name__ == "__main__":
    main()
