"""A look into the hypernetwork: trunk units that are dead, and a fresh hypernetwork of the same making."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mip.hypernetize import hypernetize, materialize
from lightning_mip.hypernetwork import HyperNetwork
from lightning_mip.injection import Injector, evaluated, the_injector
from lightning_mip.magnitude import Magnitudes

# A unit whose values over h differ by less, relative to the largest of its layer, is constant but for rounding.
_ROUNDING = 1e-6
# Beyond these factors, a generated tensor's scale is called off.
_DELTA, _KAIMING = 5.0, 5.0


@dataclass(frozen=True)
class Units:
    """Units of one layer of activations in the trunk.

    Attributes:
        layer: name of the activation in the trunk.
        units: how many it has.
        dead: how many have one value at all ``h``.
    """

    layer: str
    units: int
    dead: int


@torch.no_grad()
def trunk_units(hypernet: HyperNetwork, hs: Sequence[Mapping[str, Tensor]]) -> list[Units]:
    """Run the trunk at each ``h``, and count the units of its activations (or of its output) that never change."""
    layers = {n: m for n, m in hypernet.trunk.named_modules() if type(m).__module__ == "torch.nn.modules.activation"}
    layers = layers or {"output": hypernet.trunk}
    values: dict[str, list[Tensor]] = {name: [] for name in layers}
    hooks = [_listen(layer, values[name]) for name, layer in layers.items()]
    with evaluated(hypernet):
        for h in hs:
            hypernet(h)
    for hook in hooks:
        hook.remove()
    result = []
    for name, seen in values.items():
        stacked = torch.stack(seen)
        spread = stacked.amax(0) - stacked.amin(0)
        limit = _ROUNDING * stacked.abs().max()
        result.append(Units(name, len(spread), int((spread <= limit).sum())))
    return result


def off_scale(injector: Injector, now: Magnitudes) -> dict[str, str]:
    """Generated tensors that are far from where they ought to be -> in which way.

    A matrix or a kernel is compared with Kaiming's scale, ``1 / sqrt(fan_in)`` per number, its ``delta`` with its
    theta0. A bias starts near 0, so nothing is large beside it.
    """
    found: dict[str, str] = {}
    if not now.delta.any():
        return found  # which is said of all of them together
    residual = injector.hypernet.residual
    for k, name in enumerate(now.names):
        shape = injector.hypernet.shapes[name]
        delta, theta, theta0 = float(now.delta[:, k].mean()), float(now.theta[:, k].mean()), float(now.theta0[k])
        matrix = len(shape) > 1
        of_kaiming = theta / (shape[0] ** 0.5) if matrix else 1.0
        if residual and matrix and theta0 and delta > _DELTA * theta0:
            found[name] = f"delta is {delta / theta0:.1f} times theta0"
        elif residual and not delta:
            found[name] = "delta is 0"
        elif not 1 / _KAIMING < of_kaiming < _KAIMING and not _is_embedding(injector.root, name):
            found[name] = f"theta is {of_kaiming:.2g} times as large as at a usual initialisation"
    return found


def fresh(injector: Injector) -> Injector | None:
    """A copy of the primary with a hypernetwork as it was at the start; None where its making is not known."""
    recipe = injector.recipe
    if recipe is None:
        return None
    own, space = injector.hypernet, injector.hypernet.space
    plain = materialize(injector.root, space.center())
    with torch.no_grad(), injector.paused():
        for name in own.shapes:
            plain.get_parameter(name).copy_(injector.root.get_parameter(name))
    arguments: dict[str, Any] = {"hypernet": recipe} if callable(recipe) else dict(recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of BatchNorm, said before
        hypernetize(plain, space, include=list(own.shapes), force=True, **arguments)
    return the_injector(plain)


def _is_embedding(root: nn.Module, name: str) -> bool:
    """A row of it is added up over no inputs, so its scale is its own."""
    return isinstance(root.get_submodule(name.rpartition(".")[0]), (nn.Embedding, nn.EmbeddingBag))


def _listen(layer: nn.Module, values: list[Tensor]) -> Any:
    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        values.append(output.detach().flatten().float().cpu())

    return layer.register_forward_hook(keep)
