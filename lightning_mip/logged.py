"""What Lightning keeps of a value that a hook of a module has logged."""

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
