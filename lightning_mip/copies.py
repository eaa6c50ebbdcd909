"""What copying a batch, a metric and a module have in common."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def is_numpy(value: Any) -> bool:
    """Whether it is an array or a number of numpy's."""
    return type(value).__module__ == "numpy" and hasattr(type(value), "tobytes")  # which functions of numpy have not


def with_values(sequence: Any, values: Iterable[Any]) -> Any:
    """A list or tuple of the same class, which may be that of a named tuple."""
    return type(sequence)(*values) if hasattr(sequence, "_fields") else type(sequence)(values)


def fields_of(value: Any) -> dict[str, Any]:
    """Attributes of an object, also in slots."""
    own, kind = dict(getattr(value, "__dict__", {})), type(value)
    if kind.__module__.partition(".")[0] in sys.stdlib_module_names:  # paths keep in slots what they were asked
        return own
    slots = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ())]
    return own | {name: getattr(value, name) for name in slots if not name.startswith("__") and hasattr(value, name)}


def without_graphs(module: nn.Module) -> dict[int, Any]:
    """Copies of those tensors in a module that ``copy.deepcopy`` refuses: id -> copy, as in its memo."""
    leaves = (leaf for part in module.modules() for leaf in tree_leaves(vars(part)))
    return {id(leaf): leaf.detach().clone() for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_leaf}
