"""Stateless uniform numbers: a function of (seed, rank, step), so that a resumed run draws what it would have drawn."""

from __future__ import annotations

import functools
import hashlib
import operator
from typing import Any

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from lightning_mip.shown import shown

STRATEGIES = ("random", "sobol", "stratified")
# Draws per block of the stratified strategy: each block visits every one of this many strata once.
STRATA = 16
# Keeps the inverse CDF of unbounded priors finite; 2^-32 is far below the resolution of a float32 h.
MARGIN = 2.0**-32


def uniforms(strategy: str, dimensions: int, n: int, *, seed: int, rank: int, step: int, world_size: int = 1) -> Tensor:
    """Draw ``n`` points of the unit cube.

    Args:
        strategy: ``random``; or ``sobol`` or ``stratified``, which spread consecutive draws, over steps and ranks.
        dimensions: coordinates of a point.
        n: points of this step on this rank.
        seed: seed of the run.
        rank: global rank of the process.
        step: training batch counter.
        world_size: number of ranks.

    Returns:
        float64 tensor of shape ``(n, dimensions)`` with values in (0, 1).
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy is {shown(strategy)}, expected one of {', '.join(map(repr, STRATEGIES))}.")
    rank, step = _whole("rank", rank), _whole("step", step, 0)
    seed, n, world_size = _whole("seed", seed), _whole("n", n, 0), _whole("world_size", world_size, 1)
    if strategy != "random" and not 0 <= rank < world_size:
        raise ValueError(
            f"rank is {rank} and world_size is {world_size}, expected 0 <= rank < world_size: the ranks share one "
            f"{strategy} sequence."
        )
    first = (step * world_size + rank) * n
    if strategy == "random" or not n:  # an empty batch takes no draws of a sequence
        points = torch.rand(n, dimensions, generator=_generator(seed, rank, step), dtype=torch.float64)
    elif strategy == "sobol":
        points = _sobol(seed, dimensions, first, n)
    else:
        points = torch.stack([_stratified(seed, dimensions, first + k) for k in range(n)])
    return points.clamp(MARGIN, 1 - MARGIN)


def _whole(name: str, value: Any, least: int | None = None) -> int:
    """A Python integer from one of NumPy or PyTorch too, as the draws depend on how it is written."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least):
        raise ValueError(
            f"{name} is {shown(value)}, expected a whole number{'' if least is None else f' of at least {least}'}."
        )
    return number


def _generator(*key: int | str) -> torch.Generator:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


@functools.lru_cache(maxsize=8)
def _sobol_engine(seed: int, dimensions: int) -> SobolEngine:
    return SobolEngine(dimensions, scramble=True, seed=seed % 2**63)


def _sobol(seed: int, dimensions: int, first: int, n: int) -> Tensor:
    # Moving an engine forward costs time proportional to the distance, so one is kept where the last draw left it.
    engine = _sobol_engine(seed, dimensions)
    if engine.num_generated > first:
        engine.reset()
    if engine.num_generated < first:
        engine.fast_forward(first - engine.num_generated)
    return engine.draw(n, dtype=torch.float64)


def _stratified(seed: int, dimensions: int, index: int) -> Tensor:
    block, place = divmod(index, STRATA)
    order = _generator("strata", seed, block)
    strata = torch.stack([torch.randperm(STRATA, generator=order) for _ in range(dimensions)])[:, place]
    jitter = torch.rand(dimensions, generator=_generator("jitter", seed, index), dtype=torch.float64)
    return (strata + jitter) / STRATA
