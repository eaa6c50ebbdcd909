"""Command line: ``lightning-mip fit --config run.yaml``, or ``python -m lightning_mip``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

import lightning as L
from lightning.pytorch.cli import LightningCLI

# Importing makes the short class names known to the parser: priors, callbacks.
import lightning_mip  # noqa: F401


class _CLI(LightningCLI):
    def _parse_ckpt_path(self) -> None:
        """Leave the config and the command line in force.

        Lightning's method lets the arguments saved in a checkpoint win over both, without a word: over
        ``--model.init_args.predict_h=grid``, or an ``eval_grid`` for this test.
        """


def main(args: Sequence[str] | None = None) -> LightningCLI:
    """Run a command.

    Args:
        args: the command line, without the program's name; None takes ``sys.argv``.

    Returns:
        The CLI after the run, with ``trainer``, ``model`` and ``datamodule``.
    """
    # Unlike `python -m`, a console script does not look for the user's modules in the working directory.
    if "" not in sys.path:
        sys.path.insert(0, "")
    # Calling it from a script that has arguments of its own is what `args` is for.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    return _CLI(
        L.LightningModule,
        L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"prog": "lightning-mip"},
        args=None if args is None else list(args),
    )


def run() -> None:
    """The console script: what `main` returns would be taken for an exit status."""
    main()
