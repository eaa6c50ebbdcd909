"""What is in mutable things, noted and put back in place, so that whoever shares them sees the same."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mip.copies import is_numpy

# Larger tensors and containers are data, not what an evaluation accumulates: it begins with little.
_LARGE = 2**20
# So are arrays, which have no version, and are compared number by number.
_LARGE_ARRAY = 2**16
# Containers of more items are not looked into: they are data, too, such as a replay buffer.
_MANY = 1000


def is_kept(value: Any) -> bool:
    """Whether what is in a value can be noted and put back."""
    if isinstance(value, Tensor):
        return not isinstance(value, nn.Parameter) and value.numel() <= _LARGE
    if is_numpy(value):
        return hasattr(value, "shape") and value.ndim > 0 and value.size <= _LARGE_ARRAY
    return isinstance(value, torch.Generator) or (is_container(value) and len(value) <= _LARGE)


def is_container(value: Any) -> bool:
    """Whether it is a plain container that can be changed."""
    return isinstance(value, (list, dict, set, deque))


def items_of(value: Any) -> Iterable[Any]:
    """The items of a plain container or tuple of reasonable length; none of anything else."""
    if not (is_container(value) or isinstance(value, tuple)) or len(value) > _MANY:
        return ()
    return tuple(value.values()) if isinstance(value, dict) else tuple(value)


def reached_from(values: Iterable[Any]) -> list[Any]:
    """Values, and all that is in their containers at any depth, each once."""
    found: dict[int, Any] = {}
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if id(value) not in found:
            found[id(value)] = value
            waiting.extend(items_of(value))
    return list(found.values())


class Kept:
    """A mutable thing, and what was in it when it was last looked at.

    Args:
        thing: one that `is_kept`.
    """

    def __init__(self, thing: Any) -> None:
        self.thing = thing
        self._content = _taken(thing)
        self._version = _version(thing)

    def take(self) -> Any:
        """What is in it; the same object as the last time if that has not changed."""
        if self._changed():
            self._content, self._version = _taken(self.thing), _version(self.thing)
        return self._content

    def put(self, content: Any) -> None:
        """Put back what was taken."""
        if content is not self.take():
            _fill(self.thing, content)
            self._content, self._version = content, _version(self.thing)

    def _changed(self) -> bool:
        thing, content = self.thing, self._content
        if isinstance(thing, Tensor):
            # An inference tensor has no version, and can be written to in inference mode alone.
            return self._version != _version(thing) if self._version >= 0 else torch.is_inference_mode_enabled()
        if isinstance(thing, torch.Generator):
            return not torch.equal(thing.get_state(), content)
        if is_numpy(thing):
            return bool(thing.tobytes() != content.tobytes())
        if len(thing) != len(content):
            return True
        if isinstance(thing, set):
            return bool(thing != content)
        if isinstance(thing, dict):
            return not (
                all(map(operator.is_, thing, content)) and all(map(operator.is_, thing.values(), content.values()))
            )
        return not all(map(operator.is_, thing, content))


def _version(thing: Any) -> int:
    return thing._version if isinstance(thing, Tensor) and not thing.is_inference() else -1


def _taken(thing: Any) -> Any:
    if isinstance(thing, Tensor):
        return thing.detach().clone()
    if isinstance(thing, torch.Generator):
        return thing.get_state()
    if is_numpy(thing):
        return thing.copy()
    return dict(thing) if isinstance(thing, dict) else set(thing) if isinstance(thing, set) else list(thing)


def _fill(thing: Any, content: Any) -> None:
    if isinstance(thing, Tensor):
        with torch.inference_mode(thing.is_inference()), torch.no_grad():
            thing.copy_(content)
    elif isinstance(thing, torch.Generator):
        thing.set_state(content)
    elif is_numpy(thing):
        thing[...] = content
    else:
        thing.clear()
        thing.extend(content) if isinstance(thing, (list, deque)) else thing.update(content)
