"""LightningCLI for this package: to run its own commands, or to make what a config describes for another one."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningCLI

# Importing makes the short class names known to the parser: priors, callbacks.
import lightning_mip  # noqa: F401
from lightning_mip.commands.errors import Parser, close, fail, instantiating, one_line

# What Lightning takes for a checkpoint, beside a path.
_WORDS = ("best", "last", "hpc")


class _CLI(LightningCLI):
    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Read the command line and the configs."""
        try:
            super().parse_arguments(parser, args)
        except UnicodeDecodeError as error:
            parser.error(f"a config is no text file: {error}")

    def instantiate_classes(self) -> None:
        """Make the objects; what they refuse is told in one line."""
        with instantiating(self.parser.prog.removeprefix("lightning-mip").strip() or self.config["subcommand"]):
            super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        path = self.config[subcommand].get("ckpt_path")
        is_file = path is not None and path not in _WORDS and "://" not in path and not path.startswith("registry")
        if is_file and not Path(path).exists():
            fail(subcommand, f"--ckpt_path {path}: there is no such file.")
        with one_line(subcommand):
            super()._run_subcommand(subcommand)

    def _parse_ckpt_path(self) -> None:
        """Leave the config and the command line in force.

        Lightning's method lets the arguments saved in a checkpoint win over both, without a word: over
        ``--model.init_args.predict_h=grid``, or an ``eval_grid`` for this test.
        """


class _Configured(_CLI):
    def _run_subcommand(self, subcommand: str) -> None:
        """Stop where the objects are made."""


def check_command(args: Sequence[str], further: Iterable[str]) -> None:
    """End with one line if there is no argument, or the first one is neither an option nor a command.

    Args:
        args: the command line, without the program's name.
        further: the commands that are not LightningCLI's.
    """
    known = [*LightningCLI.subcommands(), *further]
    if not args:
        fail("", f"give a command: {', '.join(known)}. lightning-mip --help explains them.")
    if not args[0].startswith("-") and args[0] not in known:
        fail("", f"there is no command {args[0]!r}; the commands are {', '.join(known)}.{close(args[0], known)}")


def run(args: Sequence[str], epilog: str) -> LightningCLI:
    """Run ``fit``, ``validate``, ``test`` or ``predict``.

    Args:
        args: the command line, without the program's name.
        epilog: the end of ``--help``.
    """
    return _made(_CLI, args, parser_kwargs={"prog": "lightning-mip", "epilog": epilog})


def configured(args: Sequence[str], command: str) -> tuple[Any, Any, Any]:
    """Make what a config describes, and run nothing.

    Args:
        args: the arguments of ``lightning-mip validate``: ``--config=run.yaml``, ``--trainer.devices=1``, ...
        command: whose they are, for its error messages.

    Returns:
        The module, the Trainer, and the data module or None.
    """
    # Without its callback, as it would write over the config that the training run has saved.
    cli = _made(
        _Configured,
        ["validate", *args],
        parser_kwargs={"prog": f"lightning-mip {command}"},
        save_config_callback=None,
    )
    return cli.model, cli.trainer, cli.datamodule


def _made(kind: type[_CLI], args: Sequence[str], **arguments: Any) -> LightningCLI:
    # Unlike `python -m`, a console script does not look for the user's modules in the working directory. Its name is
    # given, as "" would mean the config's folder while jsonargparse reads that.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with warnings.catch_warnings():
        # Calling it from a script that has arguments of its own is what `args` is for.
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        return kind(
            L.LightningModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=Parser,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            args=list(args),
            **arguments,
        )
