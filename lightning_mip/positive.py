"""The checks that sizes and counts share."""

from __future__ import annotations

import operator
from typing import Any

from lightning_mip.shown import shown


def check_whole(name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is a whole number, of Python or another library."""
    try:
        operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} is {shown(value)}, expected a whole number.") from error


def check_positive(name: str, value: int, example: str) -> None:
    """Raise ValueError unless ``value`` is a whole number above zero."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {shown(value)}, expected a whole number of at least 1, as in {example}.")
