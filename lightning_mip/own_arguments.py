"""The arguments that a module was made with, as far as checkpoints can hold them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import FrameType
from typing import Any

from torch import Tensor, nn

_PLAIN = (bool, int, float, str, type(None))


def arguments_of(module: nn.Module, frame: FrameType | None) -> dict[str, Any]:
    """The arguments of the outermost ``__init__`` around ``frame`` that is making ``module``: that of its own class."""
    found: dict[str, Any] = {}
    while frame is not None:
        names, _, keywords, values = inspect.getargvalues(frame)
        if frame.f_code.co_name == "__init__" and names and values.get(names[0]) is module:
            found = {name: values[name] for name in names[1:] if name in values} | values.get(keywords or "", {})
        elif found:
            break
        frame = frame.f_back
    return found


def is_plain(value: Any) -> bool:
    """Whether any ``torch.load`` takes it: numbers, strings, tensors, and lists and mappings of those."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return isinstance(value, _PLAIN) or type(value) is Tensor
