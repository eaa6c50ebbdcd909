"""Batches of any structure: their size, their parts, and what of them a network takes."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import Dataset

from lightning_mip.copies import fields_of, is_numpy, with_values
from lightning_mip.selection import listing
from lightning_mip.shown import shown


def check_batches(dataloader: Any) -> None:
    """Raise TypeError for what holds no batches."""
    if isinstance(dataloader, L.LightningDataModule):
        raise TypeError(
            f"dataloader is a {type(dataloader).__name__}, expected a DataLoader or a list of batches; give one of its "
            "own: datamodule.setup('fit'), then datamodule.val_dataloader()."
        )
    if not isinstance(dataloader, Iterable) or isinstance(dataloader, (str, bytes)):
        raise TypeError(f"dataloader is {shown(dataloader)}, expected a DataLoader or a list of batches.")


def batch_size(batch: Any) -> int | None:
    """Length of the first tensor with a batch dimension, None if there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else None
    items = batch.values() if isinstance(batch, Mapping) else batch if _is_sequence(batch) else ()
    return next((size for item in items if (size := batch_size(item)) is not None), None)


def inputs_of(network: nn.Module, batch: Any) -> tuple[Any, ...]:
    """The inputs of a network in a batch: of a tuple or list, as many items as its ``forward`` requires."""
    if not isinstance(batch, (tuple, list)):
        return (batch,)
    parameters = inspect.signature(network.forward).parameters.values()
    required = [
        p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return tuple(batch[: max(len(required), 1)])


def moved(batch: Any, device: torch.device) -> Any:
    """A batch whose tensors are on a device."""
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)


def copied(batch: Any) -> Any:
    """A batch whose tensors, containers and objects a step may write to, and the given one stays as it is."""
    return _copied(batch, {})


def _copied(item: Any, objects: dict[int, Any]) -> Any:
    """Copy an item of a batch.

    Args:
        item: what to copy.
        objects: id -> copy of those that hold the item, which may hold them again.
    """
    # Asked of the class, as a mapping's attributes may be its items.
    if hasattr(type(item), "clone"):  # a tensor, or what stands for several: a TensorDict, a graph
        return item.clone()
    if is_numpy(item):
        return copy.copy(item)
    if isinstance(item, MutableMapping):
        return _with_items(item, {key: _copied(value, objects) for key, value in item.items()})
    if isinstance(item, (list, tuple)):
        return with_values(item, [_copied(value, objects) for value in item])
    if id(item) in objects:
        return objects[id(item)]
    if not (_is_record(item) or _holds_samples(item)):
        return item
    result = _new(item)
    inside = {**objects, id(item): result}
    for name, value in fields_of(item).items():
        object.__setattr__(result, name, _copied(value, inside))  # also where it is frozen
    return result


def _holds_samples(item: Any, depth: int = 2) -> bool:
    """Whether it is an object with tensors, in its attributes or those of an object in it: no module, no data set."""
    if depth == 0 or callable(item) or isinstance(item, Dataset):
        return False
    return any(_is_array(leaf) or _holds_samples(leaf, depth - 1) for leaf in tree_leaves(fields_of(item)))


def _new(item: Any) -> Any:
    """An object of the same class, whose attributes are set next."""
    # A copy is asked for a method while it is empty, which a `__getattr__` may not stand.
    return object.__new__(type(item)) if hasattr(type(item), "__getattr__") else copy.copy(item)


def _with_items(mapping: MutableMapping[Any, Any], items: dict[Any, Any]) -> MutableMapping[Any, Any]:
    """A mapping of the same class."""
    result = copy.copy(mapping)
    result.update(items)
    return result


def split_batch(batch: Any, parts: int) -> list[tuple[Any, int]]:
    """Split a batch into ``parts`` of nearly equal size.

    Tensors, and sequences as long as the batch of anything else, are split along their first dimension, in tuples,
    lists and mappings of any depth; numbers, strings and tensors without dimensions go to every part.

    Returns:
        (part, number of samples) of each.

    Raises:
        ValueError: the batch has fewer samples than parts, or its tensors do not say how many.
        TypeError: it holds something else that holds samples, such as a PackedSequence or a dataclass with tensors.
    """
    sizes = dict(_sizes(batch, "batch", parts, batch_size(batch)))
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"draws_per_batch={parts} splits a batch along the first dimension of its tensors, but theirs differ: "
            f"{listing(f'{path} has {size}' for path, size in sizes.items())}. Let collate_fn stack or pad them to "
            f"one size, with constants in the module; or {_smaller(parts)}."
        )
    size = next(iter(sizes.values()), 0)
    if size < parts:
        raise ValueError(
            f"draws_per_batch={parts} needs at least {parts} samples in a batch, but one has {size}; raise the "
            "batch size, set drop_last=True, or lower draws_per_batch."
        )
    bounds = [size * k // parts for k in range(parts + 1)]
    pairs = itertools.pairwise(bounds)
    return [(_slice(batch, size, low, high), high - low) for low, high in pairs]


def _sizes(item: Any, path: str, parts: int, size: int | None) -> Iterator[tuple[str, int]]:
    """The length of each array with a batch dimension, by where it is, in a batch that seems to be of ``size``."""
    if _is_array(item):
        if item.ndim:
            yield path, len(item)
    elif isinstance(item, PackedSequence) or _is_opaque(item) or _holds_arrays(item, path, parts, size):
        raise TypeError(
            f"draws_per_batch={parts} splits tensors in tuples, lists and mappings, but {path} is a "
            f"{type(item).__name__}; let collate_fn give its tensors and make it in the step; or {_smaller(parts)}."
        )
    elif isinstance(item, Mapping):
        for key, value in item.items():
            yield from _sizes(value, f"{path}[{key!r}]", parts, size)
    elif _is_sequence(item) and not (len(item) == size and all(map(_is_record, item))):  # not one record per sample
        for index, value in enumerate(item):
            yield from _sizes(value, f"{path}[{index}]", parts, size)


def _holds_arrays(item: Any, path: str, parts: int, size: int | None) -> bool:
    """Whether it is a dataclass with arrays, which cannot be cut out of it."""
    names = [field.name for field in dataclasses.fields(item)] if _is_record(item) else []
    return any(any(_sizes(getattr(item, name), f"{path}.{name}", parts, size)) for name in names)


def _smaller(parts: int) -> str:
    return f"take smaller batches and Trainer(accumulate_grad_batches={parts}), where each draws its own h"


def _is_opaque(item: Any) -> bool:
    """Whether it is moved to devices like a tensor, and so holds some: a graph, say."""
    return hasattr(type(item), "to") and not isinstance(item, Mapping)


def _is_record(item: Any) -> bool:
    return dataclasses.is_dataclass(item) and not isinstance(item, type)


def _slice(item: Any, size: int, low: int, high: int) -> Any:
    if _is_array(item):
        return item[low:high] if item.ndim else item
    if isinstance(item, Mapping):
        items = {key: _slice(value, size, low, high) for key, value in item.items()}
        return _with_items(item, items) if isinstance(item, MutableMapping) else items
    if not _is_sequence(item):
        return item
    if len(item) == size and batch_size(item) is None:  # one item per sample
        return item[low:high]
    return with_values(item, [_slice(value, size, low, high) for value in item])


def _is_array(item: Any) -> bool:
    return isinstance(item, Tensor) or is_numpy(item)


def _is_sequence(item: Any) -> bool:
    return isinstance(item, Sequence) and not isinstance(item, (str, bytes))
