"""What Lightning keeps of the values that hooks of a module have logged."""

from __future__ import annotations

from typing import Any


def result_of(module: Any, name: str, by_dataloader: bool = True) -> Any:
    """Lightning's own metric of what the hook that is running has logged under a name; None if there is none."""
    results = getattr(module._trainer, "_results", None)
    if results is None:
        return None
    index = results.dataloader_idx if by_dataloader else None
    key = f"{module._current_fx_name}.{name}"
    return results.get(key if index is None else f"{key}.{index}")


def forget_earlier(module: Any) -> None:
    """Drop what earlier evaluations have left: with and without a grid, a name stands for values of another kind."""
    results = getattr(module._trainer, "_results", None) or {}
    for key in [key for key, result in results.items() if result.has_reset]:
        del results[key]
