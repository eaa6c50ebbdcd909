"""The parametrizations of a hypernetwork that the reproduction compares, and the changes to them that it ablates.

All but ``ours`` and HyperLight are the published hypernetwork (`mip.HyperNetwork.paper`, trunk 16-64-128) with one of
its encodings, both, or none: without the residual, ``theta`` is ``V f + b`` with a trained ``b`` that starts at zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import lightning_mip as mip
from benchmarks.variants import VARIANTS, H, Variant, added
from lightning_mip.selection import select

# Name in the tables -> (variant, its options).
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("ours_paper", {"residual": False, "encoding": "none"}),
    "input encoding": ("ours_paper", {"residual": False}),
    "residual": ("ours_paper", {"encoding": "none"}),
    "MIP": ("ours_paper", {}),
    "ours": ("ours", {}),
    "HyperLight": ("hyperlight", {}),
    "specialist": ("plain", {}),
}
ACTIVATIONS = {cls.__name__: cls for cls in (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU)}


def build(
    way: str,
    net: nn.Module,
    space: mip.HSpace,
    seed: int = 0,
    include: str | Sequence[str] = "*",
    *,
    activation: str | None = None,
    inputs: str | None = None,
    draws: int | None = None,
    **options: Any,
) -> Variant:
    """Hypernetize a primary.

    Args:
        way: one of `WAYS`.
        net: the primary.
        space: of h.
        seed: of the draws of h.
        include: which parameters are generated.
        activation: one of `ACTIVATIONS`.
        inputs: ``h / |h|`` or ``(h, 1) / |(h, 1)|``, what the trunk sees instead of an encoding.
        draws: of h in each step, a part of the batch for each.
        **options: of `mip.HyperNetwork`.
    """
    variant, own = WAYS[way]
    options = {**own, **options}
    if activation is not None:
        options["activation"] = ACTIVATIONS[activation]
    if inputs is not None:
        options |= {"encoding": "none", "trunk": unit_trunk(len(space), inputs)}
    if draws is None:
        return VARIANTS[variant](net, space, seed, include=include, **options)
    make = mip.HyperNetwork.paper if variant == "ours_paper" else mip.HyperNetwork
    names = select(net, include, ())
    return in_parts(net, make(space, {name: net.get_parameter(name).shape for name in names}, **options), draws, seed)


class Unit(nn.Module):
    """Divide a vector by its norm, perhaps with a 1 appended before."""

    def __init__(self, append: bool) -> None:
        super().__init__()
        self.append = append

    def forward(self, h: Tensor) -> Tensor:
        return nn.functional.normalize(torch.cat([h, torch.ones_like(h[:, :1])], 1) if self.append else h)


def unit_trunk(components: int, inputs: str) -> nn.Module:
    """The published trunk, on a vector of norm 1."""
    append = inputs == "(h, 1) / |(h, 1)|"
    space = {str(index): mip.Uniform(0, 1) for index in range(components + append)}
    alike = mip.HyperNetwork.paper(space, {"any": torch.Size([1])}, encoding="none")
    return nn.Sequential(Unit(append), alike.trunk)


def in_parts(net: nn.Module, hyper: mip.HyperNetwork, draws: int, seed: int) -> Variant:
    """Several h in each step, generated together, as batch normalisation in the hypernetwork needs.

    ``at`` then gives as many networks as h has values; outside training, with one value, the network.
    """
    theta0 = {name: net.get_parameter(name) for name in hyper.shapes}
    if not hyper.residual:
        for parameter in theta0.values():
            parameter.requires_grad_(False)

    @contextmanager
    def at(h: H) -> Iterator[Any]:
        batched = next(iter(h.values())).ndim > 0
        hyper.train(batched)
        generated = hyper(h)
        theta = {name: theta0[name] + d if hyper.residual else d for name, d in generated.items()}
        if batched:
            yield [partial(functional_call, net, {n: t[k] for n, t in theta.items()}) for k in range(draws)]
        else:
            yield partial(functional_call, net, theta)

    parameters = [*net.parameters(), *hyper.parameters()]
    space = hyper.space
    return Variant(
        parameters, lambda step: space.sample(seed=seed, step=step, n=draws), at, hyper.match, added(net, hyper)
    )
