"""The trained module of a run, and its data, as commands other than the Trainer's own take them."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_mip.commands.configured import configured
from lightning_mip.commands.errors import fail, one_line
from lightning_mip.hooks import overrides

PARTS = ("train", "val", "test")


def add_run(parser: argparse.ArgumentParser, config: str) -> None:
    """Add the options that say which run is meant."""
    parser.add_argument("--config", "-c", action="append", default=[], metavar="FILE", help=config)
    parser.add_argument("--ckpt_path", metavar="FILE", help="the checkpoint that the training run wrote")


def check_run(options: argparse.Namespace, command: str) -> None:
    """End the command if there is no checkpoint."""
    if options.ckpt_path is None:
        fail(command, "--ckpt_path is missing: give the checkpoint of the trained module, --ckpt_path=PATH.")
    if not Path(options.ckpt_path).exists():
        fail(command, f"--ckpt_path {options.ckpt_path}: there is no such file.")


def check_config(options: argparse.Namespace, rest: Sequence[str], command: str) -> None:
    """End the command if nothing says what the module is."""
    if not options.config and not any(argument.startswith("--model") for argument in rest):
        fail(command, "--config is missing: give the config of the training run, --config=run.yaml.")


def trained(options: argparse.Namespace, rest: Sequence[str], command: str) -> tuple[Any, Any]:
    """Make what the config describes and load the checkpoint, as the Trainer would, the plug-in included.

    Args:
        options: with ``config`` and ``ckpt_path``.
        rest: further arguments of LightningCLI.
        command: whose they are.

    Returns:
        The module on its device, and the data module or None.
    """
    check_config(options, rest, command)
    # Nothing is logged, so there is no folder to make. One process does it all, on whatever the run was trained.
    alone = [f"--trainer.{name}" for name in ("logger=false", "strategy=auto", "devices=1", "num_nodes=1")]
    module, trainer, data = configured([*(f"--config={path}" for path in options.config), *alone, *rest], command)
    trainer.limit_predict_batches = 0
    trainer.datamodule = data
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The dirpath has changed")  # of checkpoints to come, of which none do
        # The one way to have it all set up and loaded and nothing run.
        with one_line(command):
            trainer.predict(module, DataLoader(TensorDataset(torch.zeros(1))), ckpt_path=options.ckpt_path)
    if data is not None:
        data.trainer = trainer
        data.prepare_data()
        data.setup("fit")
    return module.to(trainer.strategy.root_device), data


def batches(module: Any, data: Any, part: str | None = None) -> Iterable[Any] | None:
    """The batches of a part of the data: the one that is named, else validation, else training; None without data."""
    for name in (part,) if part else ("val", "train"):
        for owner in (data, module):
            if owner is not None and overrides(owner, f"{name}_dataloader"):
                if name == "test" and owner is data:
                    data.setup("test")
                return _first(getattr(owner, f"{name}_dataloader")())
    return None


def _first(loaders: Any) -> Iterable[Any]:
    """A data module may have several loaders; the first one is taken."""
    while isinstance(loaders, (list, tuple, Mapping)):
        loaders = next(iter(loaders.values() if isinstance(loaders, Mapping) else loaders))
    found: Iterable[Any] = loaders
    return found
