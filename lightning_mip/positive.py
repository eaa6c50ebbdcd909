"""The check that sizes share."""

from __future__ import annotations

from lightning_mip.shown import shown


def check_positive(name: str, value: int, example: str) -> None:
    """Raise ValueError unless ``value`` is a whole number above zero."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {shown(value)}, expected a whole number of at least 1, as in {example}.")
