"""The ways of training that are compared, each as a training loop sees it: parameters, a draw of h, a network at h.

``plain`` is the primary alone, the floor. ``ours`` has this package's default settings, ``ours_paper`` the published
form with HyperLight's sizes (trunk 16-64-128, one full head); ``hyperlight`` is in `benchmarks.peers`.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import lightning_mip as mip
from lightning_mip.selection import select

H = Mapping[str, Tensor]
Network = Callable[..., Any]


@dataclass(frozen=True)
class Variant:
    """A network whose weights depend on h, or do not.

    Attributes:
        parameters: what an optimizer trains.
        draw: step -> h.
        at: h -> context manager that gives the network, with the weights of h in place.
        match: told the optimizer before training.
        added: parameters that are added to what is generated, so that their gradient is that of the generated weights.
    """

    parameters: list[nn.Parameter]
    draw: Callable[[int], H]
    at: Callable[[H], AbstractContextManager[Network]]
    match: Callable[[torch.optim.Optimizer], None] = lambda optimizer: None
    added: Sequence[nn.Parameter] = ()


# Takes the primary, which it may change, the space of h and a seed of the draws; the options are those of `ours`.
Builder = Callable[..., Variant]


def plain(net: nn.Module, space: mip.HSpace, seed: int = 0, **options: Any) -> Variant:
    """The primary with its own weights: draws nothing."""

    @contextmanager
    def at(h: H) -> Iterator[Network]:
        yield net

    return Variant(list(net.parameters()), lambda step: {}, at, added=list(net.parameters()))


def ours(
    net: nn.Module,
    space: mip.HSpace,
    seed: int = 0,
    include: str | Sequence[str] = "*",
    *,
    compiled: bool = False,
    **options: Any,
) -> Variant:
    """The primary hypernetized by this package.

    Args:
        net: the primary.
        space: of h.
        seed: of the draws of h.
        include: which parameters are generated.
        compiled: compile the hypernetwork.
        **options: of `mip.hypernetize`, so of `mip.HyperNetwork` too; without any, its defaults.
    """
    with warnings.catch_warnings():
        # Nothing here evaluates a network with BatchNorm.
        warnings.filterwarnings("ignore", "Norm layers keep running statistics")
        hyper = mip.hypernetize(net, space, include=include, **options)
    if compiled:
        hyper.compile(fullgraph=True)

    @contextmanager
    def at(h: H) -> Iterator[Network]:
        with mip.at(net, h):
            yield net

    parameters = [*net.parameters(), *hyper.parameters()]
    return Variant(parameters, lambda step: space.sample(seed=seed, step=step), at, hyper.match, added(net, hyper))


def added(net: nn.Module, hyper: mip.HyperNetwork) -> list[nn.Parameter]:
    """What is added to that which the hypernetwork generates: theta0, or without it the bias of the head."""
    if hyper.residual:
        return [net.get_parameter(name) for name in hyper.shapes]
    return [parameter for name, parameter in hyper.head.named_parameters() if name == "bias"]


def ours_paper(
    net: nn.Module, space: mip.HSpace, seed: int = 0, include: str | Sequence[str] = "*", **options: Any
) -> Variant:
    """The same in the published form, with the sizes that HyperLight's documentation uses."""
    shapes = {name: net.get_parameter(name).shape for name in select(net, include, ())}
    return ours(net, space, seed, include, hypernet=mip.HyperNetwork.paper(space, shapes, **options))


def hyperlight(net: nn.Module, space: mip.HSpace, seed: int = 0, **options: Any) -> Variant:
    """HyperLight as its documentation says."""
    from benchmarks import peers  # an optional extra

    return peers.hyperlight(net, space, seed, **options)


VARIANTS: dict[str, Builder] = {"plain": plain, "ours": ours, "ours_paper": ours_paper, "hyperlight": hyperlight}


def installed() -> list[str]:
    """Names of the variants that can run here."""
    missing = importlib.util.find_spec("hyperlight") is None
    if missing:
        print("hyperlight is not installed and left out: pip install -e '.[bench]'")
    return [name for name in VARIANTS if not (missing and name == "hyperlight")]
