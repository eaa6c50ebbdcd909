"""Command line: ``lightning-mip fit --config run.yaml``, or ``python -m lightning_mip``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from lightning_mip.commands import configured

# Command -> its module, whose `main` takes the arguments; imported when it is called. And what it does, in a few words.
COMMANDS = {
    "diagnose": "lightning_mip.commands.diagnose",
    "export": "lightning_mip.commands.export",
    "sweep": "lightning_mip.commands.sweep",
}
_HELP = {
    "diagnose": "say whether the hypernetwork of a trained module does anything",
    "export": "take the plain network of one h out, as weights, a checkpoint or a program",
    "sweep": "evaluate a trained module at every h of a grid: table, figure and page",
}


def main(args: Sequence[str] | None = None) -> Any:
    """Run a command.

    Args:
        args: the command line, without the program's name; None takes ``sys.argv``.

    Returns:
        Of LightningCLI's own commands the CLI after the run, with ``trainer``, ``model`` and ``datamodule``; of the
        others what they return.
    """
    given = sys.argv[1:] if args is None else list(args)
    if given and given[0] in COMMANDS:
        return importlib.import_module(COMMANDS[given[0]]).main(given[1:])
    configured.check_command(given, COMMANDS)
    further = "; ".join(f"{name} ({text})" for name, text in _HELP.items())
    return configured.run(given, f"Further commands, each with a --help of its own: {further}.")


def run() -> None:
    """The console script: what `main` returns would be taken for an exit status."""
    main()
