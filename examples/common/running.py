"""`lightning-mip fit` from a script: a config of the hypernetwork, and plain networks with its data and budget."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.cli import LightningCLI

from lightning_mip.cli import main as lightning_mip

# What a plain network takes over from the hypernetwork's config.
SHARED = ("primary", "optimizer", "lr_scheduler")


def fit(config: Path, runs: Path, extra: Sequence[str]) -> LightningCLI:
    """Run `lightning-mip fit` on a config, logging under `runs`."""
    return lightning_mip(["fit", "--config", str(config), "--trainer.logger.init_args.save_dir", str(runs), *extra])


def fit_plain(config: Path, runs: Path, extra: Sequence[str], class_path: str, name: str, **arguments: Any) -> Any:
    """Fit a module without hypernetwork on the same network, data, optimizer and budget.

    Args:
        config: of the hypernetwork.
        runs: folder of logs; the plain network's config is written there.
        extra: further options, as for `fit`.
        class_path: of the module.
        name: of the run in the logs.
        **arguments: of the module, beside those of the config.
    """
    content = yaml.safe_load(config.read_text())
    given = content["model"]["init_args"]
    shared = {key: given[key] for key in SHARED if key in given}
    content["model"] = {"class_path": class_path, "init_args": {**shared, **arguments}}
    content["trainer"]["logger"]["init_args"]["name"] = name
    path = runs / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return fit(path, runs, extra)


def settle() -> None:
    """One thread, and no warnings that are not about the run."""
    # Batches this small gain nothing from more threads, and with one the numbers do not depend on the machine's cores.
    torch.set_num_threads(1)
    # The first is between Lightning and PyTorch, the second takes a script's own options for a mistake, and images in
    # memory need no loader processes.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended to run from within Python")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
