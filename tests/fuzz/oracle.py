"""What any input must end in: a result, or a refusal that whoever gave it can act on.

A refusal is an error that a ``raise`` statement of the package makes (not torch, not an operation that happened to
fail), of a type that the package raises for its users, in at most three lines that name the argument.
"""

from __future__ import annotations

import linecache
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings

import lightning_mip

PACKAGE = str(Path(lightning_mip.__file__).parent)
KINDS = (ValueError, TypeError, KeyError, ImportError, MemoryError, RuntimeError, FileNotFoundError, FloatingPointError)
LINES = 3

_LONG = os.environ.get("FUZZ_EXAMPLES")


def fuzz(examples: int, shrink: bool = True) -> settings:
    """The settings of a property: so many examples, the same at every run; ``FUZZ_EXAMPLES=2000`` draws new ones.

    Args:
        examples: how many.
        shrink: look for a smaller example of a failure, which takes many runs.
    """
    return settings(
        max_examples=int(_LONG or examples),
        deadline=None,
        derandomize=_LONG is None,
        print_blob=_LONG is not None,
        phases=[phase for phase in Phase if phase is not Phase.explain and (shrink or phase is not Phase.shrink)],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )


@dataclass(frozen=True)
class Refused:
    """The text of an error that is a good answer to a mistake."""

    text: str


def outcome(call: Callable[[], Any], *names: str) -> Any:
    """What the call returns, or `Refused` if it raises a good error.

    Args:
        call: what is tried.
        names: the arguments that may be at fault; the error has to hold one of these texts.
    """
    try:
        return call()
    except Exception as error:
        return _refusal(error, names)


def check_text(text: str, names: tuple[str, ...]) -> Refused:
    """A refusal with this text; AssertionError if it has too many lines, or none of the names."""
    assert len(text.splitlines()) <= LINES, f"more than {LINES} lines:\n{text}"
    assert any(name in text for name in names), f"none of {names} is named: {text}"
    return Refused(text)


def _refusal(error: Exception, names: tuple[str, ...]) -> Refused:
    last = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(last.filename, last.lineno or 0).strip()
    told = f"{type(error).__name__}: {error}\n  at {last.filename}:{last.lineno}: {line}"
    if not (last.filename.startswith(PACKAGE) and line.startswith("raise ") and isinstance(error, KINDS)):
        raise AssertionError(f"not refused, but failed with {told}") from error
    # The report of a hypernetwork that does not fit stands above the text.
    return check_text(str(error).rpartition("\n")[2] if isinstance(error, MemoryError) else str(error), names)
