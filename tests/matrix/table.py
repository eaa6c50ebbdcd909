"""The table: every row by every column, and the cells that are not simply right, with the reason."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.matrix import network_columns as network
from tests.matrix import trainer_columns as training
from tests.matrix.kinds import ROWS, Kind


@dataclass(frozen=True)
class Refused:
    """An error with this whole text."""

    error: type[Exception]
    text: str


@dataclass(frozen=True)
class NotApplicable:
    """Nothing to be right or wrong about.

    Attributes:
        reason: why.
        error, text: what comes of trying it; the plain network is no better off.
    """

    reason: str
    error: type[Exception] | None = None
    text: str = ""


Cell = Refused | NotApplicable | None
Check = Callable[[Kind, Path], None]


def _in_memory(check: Callable[[Kind], Any]) -> Check:
    return lambda kind, folder: check(kind)


COLUMNS: dict[str, Check] = {
    "eager": _in_memory(network.eager),
    "compile": _in_memory(network.compiled),
    "bf16-mixed": functools.partial(training.in_coarse, how="bf16-mixed"),
    "bf16-true": functools.partial(training.in_coarse, how="bf16-true"),
    "64-true": training.in_double,
    "checkpointing": _in_memory(network.recomputed),
    "accumulation": training.accumulated,
    "clipping": training.clipped,
    "forwards": training.several_forwards,
    "LBFGS": training.by_lbfgs,
    "manual": training.manual,
    "EMA": training.averaged,
    "SWA": training.averaged_over_epochs,
    "deepcopy": _in_memory(network.deep_copied),
    "pickle": _in_memory(network.pickled),
    "resume": training.resumed,
    "materialize": _in_memory(network.materialized),
    "export": network.exported,
    "per sample": _in_memory(network.per_sample),
}

EXCEPTIONS: dict[tuple[str, str], Refused | NotApplicable] = {}


def cell(row: str, column: str) -> Cell:
    """What is declared of a cell; None for right."""
    return EXCEPTIONS.get((row, column)) or EXCEPTIONS.get((row, "*")) or EXCEPTIONS.get(("*", column))


__all__ = ["COLUMNS", "EXCEPTIONS", "ROWS", "Cell", "NotApplicable", "Refused", "cell"]
