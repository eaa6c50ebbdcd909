"""The plug-in on LightningModules as Lightning and other packages ship them, beside separate trainings.

python -m examples.plugin.tour
"""

from __future__ import annotations

import argparse
import functools
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import lightning_mip as mip
from examples.plugin.cases import CASES, Case


@dataclass(frozen=True)
class Seen:
    """What became of a case.

    Attributes:
        module: Class of the module, with its package.
        metric: What was measured.
        plugged: label of the hyperparameter's value -> measured, from one run.
        separate: The same from one training each; empty if nothing was bound.
        exported: Largest difference between a weight that was taken out and the one that the original class loaded.
    """

    module: str
    metric: str
    plugged: dict[str, float]
    separate: dict[str, float]
    exported: float


def trainer(case: Case, limits: dict[str, Any], *callbacks: L.Callback) -> L.Trainer:
    """A quiet Trainer with the case's arguments on one core, which validates at the end."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    arguments = {**case.trainer, **limits}
    return L.Trainer(
        **arguments,
        accelerator="cpu",
        callbacks=list(callbacks),
        check_val_every_n_epoch=arguments["max_epochs"],
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def visit(case: Case, out: Path, seed: int = 0, **limits: Any) -> Seen:
    """Train a case with the plug-in and at fixed values, and take a network out."""
    L.seed_everything(seed, verbose=False)
    module, data, plugin = case.module(), case.data(), case.plugin()
    run = trainer(case, limits, plugin)
    run.fit(module, datamodule=data)
    measured = {}
    for h in plugin.grid:
        label = plugin.space.label(h)
        with mip.at(module, h):
            measured[label] = measure(case, run, module, data, f"{case.metric}/{label}")
    values = {plugin.space.label(h): float(h[case.path]) for h in plugin.grid} if case.path else {}
    return Seen(
        module=f"{type(module).__name__}, {type(module).__module__.partition('.')[0]}",
        metric=case.metric,
        plugged=measured,
        separate={label: separate(case, value, seed, limits) for label, value in values.items()},
        exported=exported(case, run, plugin, module, out),
    )


def measure(case: Case, run: L.Trainer, module: L.LightningModule, data: Any, name: str) -> float:
    """The metric as the module logged it under `name`, or as `look` finds it."""
    if case.look is None:
        return float(run.callback_metrics[name])
    with torch.no_grad():
        return case.look(module.eval(), data)


def separate(case: Case, value: float, seed: int, limits: dict[str, Any]) -> float:
    """Train without the plug-in, the hyperparameter fixed."""
    L.seed_everything(seed, verbose=False)
    module, data = case.module(), case.data()
    *parents, name = case.path.split(".")
    setattr(functools.reduce(getattr, parents, module), name, value)
    run = trainer(case, limits)
    run.fit(module, datamodule=data)
    return measure(case, run, module, data, case.metric)


def exported(case: Case, run: L.Trainer, plugin: mip.Hypernetize, module: L.LightningModule, out: Path) -> float:
    """Write the network of the first value for the original class, load it there, and compare the weights."""
    h, file = plugin.grid[0], out / f"{type(module).__name__}.ckpt"
    plugin.export(run, h, file)
    loaded = case.load(file).get_submodule(plugin.target).state_dict()
    taken_out = mip.materialize(module, h).state_dict()
    return max(float((loaded[name] - weight).abs().max()) for name, weight in taken_out.items())


def table(seen: Sequence[Seen]) -> Table:
    """One row for each value."""
    result = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    result.add_column("module, dial, metric")
    for column in ("value", "one run", "separate", "exported"):
        result.add_column(column, justify="right", no_wrap=True)
    for each in seen:
        labels = [label.partition("=") for label in each.plugged]
        names = [each.module, labels[0][0], each.metric]
        difference = "equal" if not each.exported else f"{each.exported:.0e} off"
        for k, (label, value) in enumerate(each.plugged.items()):
            alone = f"{each.separate[label]:.4g}" if label in each.separate else "-"
            cells = (labels[k][2], f"{value:.4g}", alone, "" if k else difference)
            result.add_row(names[k], *cells, end_section=k + 1 == len(each.plugged))
    return result


def main(args: Sequence[str] | None = None) -> list[Seen]:
    """Visit the cases and print the table."""
    parser = argparse.ArgumentParser(prog="python -m examples.plugin.tour", description=__doc__)
    # argparse compares the empty list, of no case at all, with the choices too.
    names = f"{', '.join(CASES)}; all of them if none is named"
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="case", help=names)
    parser.add_argument("--out", type=Path, default=Path("runs/plugin"), help="folder of the exported checkpoints")
    parser.add_argument("--batches", type=int, help="of each training epoch; all if not given")
    options = parser.parse_args(args)

    options.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    seen = []
    for name in options.cases or CASES:
        try:
            case = CASES[name]()
        except ModuleNotFoundError as error:
            console.print(f"{name} is left out: {error}. pip install 'lightning-mip\\[plugin-examples]'")
            continue
        with warnings.catch_warnings(), console.status(name):
            warnings.simplefilter("ignore")  # advice of Lightning to the authors of these modules
            seen.append(visit(case, options.out, limit_train_batches=options.batches))
    console.print(table(seen))
    return seen


if __name__ == "__main__":
    main()
