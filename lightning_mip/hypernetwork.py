"""HyperNetwork: ``h`` -> encoding -> trunk -> head -> one tensor per parameter of the primary network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.utils.parametrizations import weight_norm

from lightning_mip.encodings import check_encoding, encode
from lightning_mip.heads import FullHead
from lightning_mip.priors import Prior
from lightning_mip.space import HSpace

Priors = HSpace | Mapping[str, Prior | Distribution | Mapping[str, Any]]

# Gains that keep the norm through a layer; the smooth relatives of ReLU share its gain (as the authors do).
_GAINS: dict[type[nn.Module], str] = {nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.SELU: "selu", nn.Identity: "linear"}


class HyperNetwork(nn.Module):
    """Generates the change ``delta(h)`` of a primary network's parameters: ``theta(h) = theta0 + s V f(E(h))``.

    Source: MIP (ICLR 2024). ``E`` is the constant-norm input encoding, ``f`` the trunk, ``V`` the bias-free head, and
    ``theta0`` the primary's own parameters (the output encoding), which stay in the primary. With
    ``residual=False, encoding="none"`` it is the paper's default hypernetwork.

    Args:
        space: the priors of ``h``.
        shapes: parameter name -> shape, what to generate.
        hidden_sizes: widths of the trunk's layers; the last one is the number of basis vectors in weight space.
        activation: class of the trunk's activation.
        norm: normalisation of the trunk: None, ``batch`` (needs several ``h`` per step), ``layer`` or ``weight``.
        dropout: dropout probability in the trunk.
        head: ``full``: one linear map to all generated numbers.
        encoding: ``mip``, ``z|1-z`` or ``none``.
        encoding_norm: ``unit``, or ``paper`` for the published norm sqrt(D) of D components.
        residual: generate a change to theta0; False generates the weights themselves, by a head with bias.
        init: ``fan_out`` (Kaiming, per generated tensor), ``zero`` (the network starts as theta0), or a ratio
            ``||delta|| / ||theta0||``, which `hypernetize` applies to the primary's parameters.
        trunk: a module of your own instead of the MLP; it maps ``(batch, encoding)`` to ``(batch, features)``.

    >>> from lightning_mip import HSpace, Uniform
    >>> hyper = HyperNetwork(HSpace({"lam": Uniform(0, 1)}), {"weight": torch.Size([3, 2])})
    >>> hyper({"lam": 0.3})["weight"].shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        space: Priors,
        shapes: Mapping[str, torch.Size],
        hidden_sizes: Sequence[int] = (16, 64, 128),
        activation: Callable[[], nn.Module] = nn.LeakyReLU,
        norm: Literal["batch", "layer", "weight"] | None = None,
        dropout: float = 0.0,
        head: Literal["full"] = "full",
        encoding: Literal["mip", "z|1-z", "none"] = "mip",
        encoding_norm: Literal["unit", "paper"] = "unit",
        residual: bool = True,
        init: Literal["fan_out", "zero"] | float = "fan_out",
        trunk: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_encoding(encoding, encoding_norm)
        if head != "full":
            raise ValueError(f"head is {head!r}, expected 'full'.")
        if not shapes:
            raise ValueError("shapes is empty, expected at least one tensor to generate.")
        self.space = space if isinstance(space, HSpace) else HSpace(space)
        self.shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
        self.encoding, self.encoding_norm = encoding, encoding_norm
        self.residual = residual
        self.scale = 1.0
        self.init = init
        with torch.device("cpu"):  # also where a size report builds the rest on the meta device
            width = self.encode(self.space.center()).shape[-1]
        # An empty nn.Sequential is a trunk too, but false.
        self.trunk = _mlp(width, tuple(hidden_sizes), activation, norm, dropout) if trunk is None else trunk
        self.head = FullHead(
            _output_width(self.trunk, width), self.shapes, bias=not residual, init=_head_init(init, residual)
        )

    def encode(self, h: Mapping[str, Any]) -> Tensor:
        """Encode ``h`` as this hypernetwork does, shape ``(*batch, features)``."""
        # The checks look at values, which a compiled graph cannot; `at` has made them before.
        values = h if torch.compiler.is_compiling() else self.space.tensors(h)
        return encode(self.space, values, self.encoding, self.encoding_norm)

    def forward(self, h: Mapping[str, Any]) -> dict[str, Tensor]:
        """Generate one tensor per name.

        Args:
            h: component -> value, or a batch of values; outside the priors' support it is an error.

        Returns:
            name -> tensor of shape ``shape``, or ``(B, *shape)`` for a batch of B values of ``h``.
        """
        encoded = self.encode(h)
        weight = next(self.parameters())
        # Half precision would round away the norm and cast a head far larger than the product it computes.
        with torch.autocast(weight.device.type, enabled=False):
            tensors: dict[str, Tensor] = self.head(self._features(encoded.to(weight)))
        if self.scale != 1.0:
            tensors = {name: tensor * self.scale for name, tensor in tensors.items()}
        return tensors if encoded.ndim > 1 else {name: tensor.squeeze(0) for name, tensor in tensors.items()}

    def _features(self, encoded: Tensor) -> Tensor:
        batch = encoded if encoded.ndim > 1 else encoded.unsqueeze(0)
        if len(batch) == 1 and any(isinstance(m, nn.BatchNorm1d) and m.training for m in self.trunk.modules()):
            raise ValueError(
                "norm='batch' needs several values of h per step, but got one; train with draws_per_batch >= 2, or "
                "use norm='layer' or norm='weight'."
            )
        features: Tensor = self.trunk(batch)
        return features

    def initialize_ratio(self, theta0: Mapping[str, Tensor]) -> None:
        """Scale the head so that ``||delta||`` is about ``init`` times ``||theta0||``, tensor by tensor."""
        if isinstance(self.init, (int, float)):
            self.head.initialize({name: self.init * float(theta0[name].detach().norm()) for name in self.shapes})

    def get_extra_state(self) -> dict[str, Any]:
        """What the weights were trained for, in plain data, so that loading them elsewhere is an error."""
        return {
            "h": self.space.config(),
            "encoding": [self.encoding, self.encoding_norm],
            "trunk": [type(layer).__name__ for layer in self.trunk.modules()],
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Compare a checkpoint's space and primary with this one's; raise ValueError where they differ."""
        mine = self.get_extra_state()
        for key, what in (("h", "component"), ("shapes", "generated tensor")):
            names = [*mine[key], *(name for name in state[key] if name not in mine[key])]
            differing = [name for name in names if mine[key].get(name) != state[key].get(name)]
            if differing:
                listed = "; ".join(
                    f"{what} {name!r} is {_describe(state[key].get(name))} in the checkpoint and "
                    f"{_describe(mine[key].get(name))} here"
                    for name in differing[:3]
                )
                more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
                raise ValueError(
                    f"The checkpoint is of another hypernetwork: {listed}{more}. Build the same one first."
                )
        for theirs, ours in zip(state["shapes"], mine["shapes"], strict=True):
            if theirs != ours:  # the head is one flat map, whose columns would go to other tensors
                raise ValueError(
                    "The checkpoint is of another hypernetwork: its generated tensors come in another order, with "
                    f"{theirs!r} where {ours!r} is here. Build the same one first."
                )
        for key in ("encoding", "trunk"):
            if list(mine[key]) != list(state[key]):
                raise ValueError(
                    f"The checkpoint is of another hypernetwork: its {key} is {list(state[key])}, here it is "
                    f"{mine[key]}. Build the same one first."
                )


def _describe(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, Mapping):
        arguments = ", ".join(
            f"{name}={_describe(item) if isinstance(item, Mapping) else item}"
            for name, item in value["init_args"].items()
        )
        return f"{value['class_path'].rpartition('.')[2]}({arguments})"
    return str(tuple(value))


def _head_init(init: str | float, residual: bool) -> str | Mapping[str, float]:
    if isinstance(init, str):
        return init
    if init <= 0 or not residual:
        raise ValueError(f"init is {init!r}, expected 'fan_out', 'zero', or (with residual=True) a ratio > 0.")
    return "fan_out"


def _output_width(trunk: nn.Module, width: int) -> int:
    parameter = next(trunk.parameters(), None)
    probe = torch.zeros(1, width) if parameter is None else parameter.new_zeros(1, width)
    modes = [(module, module.training) for module in trunk.modules()]
    try:
        with torch.no_grad():
            features = trunk.eval()(probe)
    except RuntimeError as error:
        raise ValueError(f"trunk does not take an encoded h of shape (1, {width}): {error}") from error
    finally:
        for module, training in modes:
            module.training = training
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise ValueError(f"trunk maps (1, {width}) to {features!r}, expected a tensor of shape (1, features).")
    return features.shape[1]


def _mlp(
    width: int, hidden_sizes: tuple[int, ...], activation: Callable[[], nn.Module], norm: str | None, dropout: float
) -> nn.Sequential:
    if not hidden_sizes or min(hidden_sizes) < 1:
        raise ValueError(f"hidden_sizes is {hidden_sizes}, expected at least one positive width.")
    if norm not in (None, "batch", "layer", "weight"):
        raise ValueError(f"norm is {norm!r}, expected None, 'batch', 'layer' or 'weight'.")
    layers: list[nn.Module] = []
    for size in hidden_sizes:
        linear = nn.Linear(width, size)
        layers += [_kaiming(linear, activation()) if norm != "weight" else weight_norm(_kaiming(linear, activation()))]
        if norm == "batch":
            layers.append(nn.BatchNorm1d(size))
        layers.append(activation())
        if norm == "layer":
            layers.append(nn.LayerNorm(size))
        if dropout:
            layers.append(nn.Dropout(dropout))
        width = size
    return nn.Sequential(*layers)


def _kaiming(linear: nn.Linear, activation: nn.Module) -> nn.Linear:
    """Kaiming fan-out, zero bias: a hypernetwork widens strongly, and fan-out keeps the norm of its features."""
    gain = nn.init.calculate_gain(_GAINS.get(type(activation), "relu"))  # type: ignore[arg-type]
    nn.init.normal_(linear.weight, std=gain / linear.out_features**0.5)
    nn.init.zeros_(linear.bias)
    return linear
