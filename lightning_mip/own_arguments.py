"""The arguments that a module was made with, as far as checkpoints can hold them."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

# By exact type: a checkpoint would hold the class of a NumPy number, an Enum or a named tuple, not its value.
_PLAIN = (bool, int, float, str, type(None))
_SEQUENCES = (list, tuple, torch.Size)
_MAPPINGS = (dict, OrderedDict)


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
    return type(value) is Tensor or is_text(value, is_plain)


def is_text(value: Any, item: Callable[[Any], bool] | None = None) -> bool:
    """Whether it is plain data that can be written down and compared: numbers, strings, lists and mappings of those."""
    item = item or is_text
    if type(value) in _MAPPINGS:
        return all(type(key) is str and item(each) for key, each in value.items())
    if type(value) in _SEQUENCES:
        return all(map(item, value))
    return type(value) in _PLAIN
