"""HyperLight 0.0.5 (https://github.com/JJGO/hyperlight), wired as its documentation says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hyperlight as hl
import torch
from torch import Tensor, nn

import lightning_mip as mip
from benchmarks.variants import H, Network, Variant
from lightning_mip.selection import select

# There is no default; these are the sizes that its documentation uses throughout.
SIZES = (16, 64, 128)


class Drawn(dict[str, Tensor]):
    """One draw: ``u`` in [0, 1], which HyperLight takes, and the values of h at it, computed only if asked for."""

    def __init__(self, space: mip.HSpace, u: Tensor) -> None:
        super().__init__()
        self.space, self.u = space, u

    def __missing__(self, name: str) -> Tensor:
        return self.space[name].icdf(self.u[list(self.space).index(name)])


def hyperlight(
    net: nn.Module,
    space: mip.HSpace,
    seed: int = 0,
    include: str | Sequence[str] = "*",
    hidden_sizes: Sequence[int] = SIZES,
) -> Variant:
    """The primary hypernetized by HyperLight, from its existing weights, with HyperLight's defaults.

    Its encoding asks for numbers in [0, 1], so it gets the position of h in its prior, as this package's does.

    Args:
        net: the primary.
        space: of h, with components that are numbers.
        seed: of the draws of h.
        include: which parameters are generated, in this package's patterns.
        hidden_sizes: of the trunk.
    """
    parameters = [net.get_parameter(name) for name in select(net, include, ())]
    main, values = hl.hypernetize(net, parameters=parameters, return_values=True)
    hyper = hl.HyperNet.from_existing(
        values,
        input_shapes={"h": (len(space),)},
        hidden_sizes=list(hidden_sizes),
        # They are overwritten by `values` at once; drawing them fails for BatchNorm's weights.
        init_independent_weights=False,
    )
    generator = torch.Generator().manual_seed(seed)

    def draw(step: int) -> Drawn:
        return Drawn(space, torch.rand(len(space), generator=generator))

    @contextmanager
    def at(h: H) -> Iterator[Network]:
        u = h.u if isinstance(h, Drawn) else _positions(space, h)
        with main.using_externals(hyper(h=u)):
            yield main

    added = [hyper.backbone.output.bias]  # its place for the independent weights
    return Variant([*main.parameters(), *hyper.parameters()], draw, at, added=added)


def _positions(space: mip.HSpace, h: dict[str, Any]) -> Tensor:
    return torch.stack([prior.cdf(torch.as_tensor(h[name])).float() for name, prior in space.items()])
