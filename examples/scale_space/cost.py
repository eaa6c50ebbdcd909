"""What a network costs: counted operations, and measured time."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def megaflops(net: nn.Module, images: Tensor, phi: float) -> float:
    """Millions of floating point operations per image, those of the convolutions: rescaling is not counted."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        net(images[:1], phi)
    return counter.get_total_flops() / 1e6


def milliseconds(nets: Mapping[float, nn.Module], images: Tensor, rounds: int) -> dict[float, float]:
    """Time per image of the network of each phi on a batch.

    The networks take turns, and the fastest of the rounds counts: what else the machine does only ever adds.
    """
    found = dict.fromkeys(nets, float("inf"))
    with torch.no_grad():
        for _ in range(rounds):
            for phi, net in nets.items():
                seconds = _timed(net, images, phi)
                found[phi] = min(found[phi], 1e3 * seconds / len(images))
    return found


def _timed(net: nn.Module, images: Tensor, phi: float) -> float:
    _finish(images)
    started = time.perf_counter()
    net(images, phi)
    _finish(images)
    return time.perf_counter() - started


def _finish(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
