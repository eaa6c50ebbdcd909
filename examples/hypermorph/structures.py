"""The best lam for each structure of the brain: pairs of masks, one structure each, for `mip.choose`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import lightning_mip as mip
from examples.hypermorph.data import Pairs
from examples.hypermorph.measures import overlap
from examples.hypermorph.network import Registered
from examples.hypermorph.task import CLASSES, HyperMorph


class Masks(NamedTuple):
    """Pairs of images with the masks of one structure in both, and its name."""

    moving: Tensor
    fixed: Tensor
    moving_mask: Tensor
    fixed_mask: Tensor
    structure: list[str]


def dice(found: Registered, batch: Sequence[Tensor]) -> Tensor:
    """Dice of what is marked in a pair's label maps or masks, one value per pair."""
    return overlap(batch[2], batch[3], found.flow, CLASSES)


def merged(names: Sequence[str]) -> dict[str, list[int]]:
    """Structure -> its labels, left and right together."""
    found: dict[str, list[int]] = {}
    for label, name in enumerate(names[1:], start=1):
        found.setdefault(name.removeprefix("Left-").removeprefix("Right-").replace("-", " "), []).append(label)
    return found


def masks(pairs: Pairs, names: Sequence[str]) -> list[Masks]:
    """A batch for each structure: all pairs in which both subjects have at least a few pixels of it."""
    everything = pairs.all()
    batches = []
    for name, labels in merged(names).items():
        marked = [torch.isin(part, torch.tensor(labels)).long() for part in everything[2:]]
        large = torch.stack([mask.sum((1, 2)) >= 10 for mask in marked]).all(0)
        if large.any():
            parts = [part[large] for part in (*everything[:2], *marked)]
            batches.append(Masks(*parts, [name] * int(large.sum())))
    return batches


def choose_by_structure(model: HyperMorph, pairs: Pairs, names: Sequence[str]) -> dict[str, mip.Choice]:
    """The best lam of each structure, on a grid: between its points the Dice of a few small masks is noise."""
    batches = masks(pairs, names)
    return mip.choose(model, batches, dice, "max", by=lambda batch: batch.structure, grid=21, refine=False)
