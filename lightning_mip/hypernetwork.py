"""HyperNetwork: ``h`` -> encoding -> trunk -> head -> one tensor per parameter of the primary network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.utils.parametrizations import weight_norm

from lightning_mip.encodings import check_encoding, encode
from lightning_mip.head_choice import HeadChoice, make_head
from lightning_mip.heads import Family
from lightning_mip.matching import Matched, family_of, layers_to_resize, resize
from lightning_mip.priors import Prior
from lightning_mip.shown import on_one_line, shown
from lightning_mip.space import HSpace

_WIDEST = 2**31  # no layer of torch has so many units
_LARGEST_RATIO = 1e30  # of delta and theta0, so that single precision holds both
_DRAWS = 64  # of h, over which the size of the trunk's features is measured
Priors = HSpace | Mapping[str, Prior | Distribution | Mapping[str, Any]]

# Gains that keep the norm through a layer; the smooth relatives of ReLU share its gain (as the authors do).
_GAINS: dict[type[nn.Module], str] = {nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.SELU: "selu", nn.Identity: "linear"}


class HyperNetwork(nn.Module):
    """Generates the change ``delta(h)`` of a primary network's parameters: ``theta(h) = theta0 + s V f(E(h))``.

    Source: MIP (ICLR 2024). ``E`` is the constant-norm input encoding, ``f`` the trunk, ``V`` the bias-free head, and
    ``theta0`` the primary's own parameters (the output encoding), which stay in the primary. Unlike in the paper, ``f``
    is normalized, and ``s`` is such that the primary trains at the learning rate that it has as a plain network, times
    a learned gain that starts at 1 (``scale``); `paper` makes the published form. ``residual=False, encoding="none"``
    is the paper's default hypernetwork.

    Args:
        space: the priors of ``h``.
        shapes: parameter name -> shape, what to generate.
        hidden_sizes: widths of the trunk's layers; the last one is the number of basis vectors in weight space, which
            memory and time depend on. By default 8 and 4 for each number of the encoding, at most 128: 16 and 8 for one
            continuous component.
        activation: class of the trunk's activation.
        norm: normalisation of the trunk: None, ``batch`` (needs several ``h`` per step), ``layer`` or ``weight``.
        dropout: dropout probability in the trunk.
        head: ``full``, one linear map to all generated numbers; `LowRank`; `Chunked`; or glob on names of parameters or
            modules -> one of these (``{"*.weight": LowRank(4), "*": "full"}``): the first match wins, and every tensor
            needs one.
        encoding: ``mip``, ``z|1-z`` or ``none``.
        encoding_norm: ``unit``, or ``paper`` for the published norm sqrt(D) of D components.
        residual: generate a change to theta0; False generates the weights themselves, by a head with bias.
        init: ``fan_out`` (Kaiming, per generated tensor), ``zero`` (the network starts as theta0), or a ratio
            ``||delta|| / ||theta0||``, which `hypernetize` applies to the primary's parameters.
        scale: ``matched``: the learning rate of the plain network is right; ``paper``: features enter the head as they
            are, so that theta moves some times as far as the learning rate says. By default ``matched``, but ``paper``
            where one of the two encodings is left out, as the ablations of the paper do.
        trunk: a module of your own instead of the MLP; it maps ``(batch, encoding)`` to ``(batch, features)``.

    Attributes:
        width: of the features, the number of basis vectors in weight space.
        scaling: what normalizes and scales the features, fitted to optimizers such as Adam until `match` is called;
            None in the published form.
        is_fresh: it was not attached to a network yet, and holds no weights that were loaded.

    >>> from lightning_mip import HSpace, Uniform
    >>> hyper = HyperNetwork(HSpace({"lam": Uniform(0, 1)}), {"weight": torch.Size([3, 2])})
    >>> hyper({"lam": 0.3})["weight"].shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        space: Priors,
        shapes: Mapping[str, torch.Size],
        hidden_sizes: Sequence[int] | None = None,
        activation: Callable[[], nn.Module] = nn.LeakyReLU,
        norm: Literal["batch", "layer", "weight"] | None = None,
        dropout: float = 0.0,
        head: HeadChoice = "full",
        encoding: Literal["mip", "z|1-z", "none"] = "mip",
        encoding_norm: Literal["unit", "paper"] = "unit",
        residual: bool = True,
        init: Literal["fan_out", "zero"] | float = "fan_out",
        scale: Literal["matched", "paper"] | None = None,
        trunk: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_encoding(encoding, encoding_norm)
        self.space = space if isinstance(space, HSpace) else HSpace(space)
        self.shapes = _checked_shapes(shapes)
        if not isinstance(residual, bool):
            raise TypeError(f"residual is {shown(residual)}, expected True or False.")
        self.encoding, self.encoding_norm = encoding, encoding_norm
        self.residual = residual
        self.init = init
        with torch.device("cpu"):  # also where a size report builds the rest on the meta device
            inputs = self.encode(self.space.center()).shape[-1]
        # An empty nn.Sequential is a trunk too, but false.
        sizes = (min(8 * inputs, 128), min(4 * inputs, 128)) if hidden_sizes is None else _checked_sizes(hidden_sizes)
        self.trunk = _mlp(inputs, sizes, activation, norm, dropout) if trunk is None else trunk
        self._own_trunk = trunk is None
        self.width = _output_width(self.trunk, inputs)
        self.head = make_head(head, self.width, self.shapes, bias=not residual, init=_head_init(init, residual))
        self.scaling = Matched() if _is_matched(scale, encoding, residual) else None
        self._fit_scale(self.family)
        self.is_fresh = True

    @classmethod
    def paper(cls, space: Priors, shapes: Mapping[str, torch.Size], **arguments: Any) -> HyperNetwork:
        """Make the published MIP hypernetwork (and HyperLight's): 16-64-128, unscaled, encodings of norm sqrt(D).

        Args:
            space: the priors of ``h``.
            shapes: parameter name -> shape, what to generate.
            **arguments: those of `HyperNetwork`, to differ from it.
        """
        published = {"hidden_sizes": (16, 64, 128), "encoding_norm": "paper", "scale": "paper", "init": "fan_out"}
        return cls(space, shapes, **{**published, **arguments})

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
        return tensors if encoded.ndim > 1 else {name: tensor.squeeze(0) for name, tensor in tensors.items()}

    def _features(self, encoded: Tensor) -> Tensor:
        batch = encoded if encoded.ndim > 1 else encoded.unsqueeze(0)
        if len(batch) == 1 and any(isinstance(m, nn.BatchNorm1d) and m.training for m in self.trunk.modules()):
            raise ValueError(
                "norm='batch' needs several values of h per step, but got one; train with draws_per_batch >= 2, or "
                "use norm='layer' or norm='weight'."
            )
        features: Tensor = self.trunk(batch)
        return features if self.scaling is None else self.scaling(features)

    @torch.no_grad()
    def match(self, optimizer: torch.optim.Optimizer) -> None:
        """Fit the scale to the optimizer, such that theta moves at the learning rate of the plain network.

        Under Lightning this happens by itself. In a training loop of your own call it before the first step with SGD;
        Adam and its relatives need no call. What is generated stays the same.

        Raises:
            ValueError: the optimizer has no parameter of the hypernetwork.
        """
        trained = {id(parameter) for parameter in self.parameters() if parameter.requires_grad}
        if trained and trained.isdisjoint(id(p) for group in optimizer.param_groups for p in group["params"]):
            raise ValueError(
                f"optimizer is {type(optimizer).__name__} without a parameter of the hypernetwork, which would never "
                "learn; give it [*net.parameters(), *hyper.parameters()]."
            )
        family = family_of(optimizer)
        if self.scaling is None or family == self.family:
            return
        before = float(self.scaling.size)
        if self._own_trunk:  # one that is given may share its weights with others
            self.scaling.shrink.div_(resize(layers_to_resize(self.trunk), self.family, family))
        self._fit_scale(family)
        self.head.match(family)
        self.head.multiply(dict.fromkeys(self.shapes, before / float(self.scaling.size)))

    @property
    def family(self) -> Family:
        """The family of optimizers for which the weights are made."""
        return "adam" if self.scaling is None else self.scaling.family

    @property
    def scale(self) -> float:
        """``s`` without its learned gain; 1 in the published form."""
        return 1.0 if self.scaling is None else float(self.scaling.scale)

    def _fit_scale(self, family: Family) -> None:
        if self.scaling is None or self.scaling.scale.is_meta:
            return
        with torch.device("cpu"):
            encoded = self.encode(self.space.sample(seed=0, step=0, n=_DRAWS))
        self.scaling.fit(_in_evaluation(self.trunk, encoded), family)

    def initialize_ratio(self, theta0: Mapping[str, Tensor]) -> None:
        """Scale the head so that ``||delta||`` is about ``init`` times ``||theta0||``, tensor by tensor."""
        if isinstance(self.init, (int, float)):
            # Normalized features have this norm; the trunk's own start near 1.
            norm = 1.0 if self.scaling is None else self.scale * self.width**0.5
            self.head.initialize({n: self.init * float(theta0[n].detach().norm()) / norm for n in self.shapes})

    def get_extra_state(self) -> dict[str, Any]:
        """What the weights were trained for, in plain data, so that loading them elsewhere is an error."""
        return {
            "h": self.space.config(),
            "encoding": [self.encoding, self.encoding_norm],
            "trunk": [type(layer).__name__ for layer in self.trunk.modules()],
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "head": self.head.kinds,
            "scale": ["paper" if self.scaling is None else "matched"],
            "family": self.family,
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Compare a checkpoint's space and primary with this one's; raise ValueError where they differ."""
        check_extra_state(state)
        self.is_fresh = False
        mine = self.get_extra_state()
        for key, what in (("h", "component"), ("shapes", "generated tensor"), ("head", "the head of")):
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
        for key in ("encoding", "trunk", "scale"):
            if list(mine[key]) != list(state[key]):
                raise ValueError(
                    f"The checkpoint is of another hypernetwork: its {key} is {list(state[key])}, here it is "
                    f"{mine[key]}. Build the same one first."
                )


def check_extra_state(state: Any) -> None:
    """Raise ValueError if what a checkpoint says of its hypernetwork is not what `HyperNetwork` has written."""
    if not isinstance(state, Mapping):
        raise ValueError(f"The checkpoint is damaged: its hypernetwork's _extra_state is {shown(state)}.")
    kinds = {"h": Mapping, "shapes": Mapping, "encoding": list, "trunk": list, "head": Mapping, "scale": list}
    for key, kind in {**kinds, "family": str}.items():
        if key not in state:
            raise ValueError(f"The checkpoint is damaged: its hypernetwork's _extra_state lacks {key!r}.")
        if not isinstance(state[key], kind):
            raise ValueError(f"The checkpoint is damaged: its hypernetwork's {key} is {shown(state[key])}.")
    for name, shape in state["shapes"].items():
        if not isinstance(shape, (list, tuple)) or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ValueError(f"The checkpoint is damaged: its hypernetwork's shape of {name!r} is {shown(shape)}.")


def _describe(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        arguments = ", ".join(
            f"{name}={_describe(item) if isinstance(item, Mapping) else item}"
            for name, item in value["init_args"].items()
        )
        return f"{value['class_path'].rpartition('.')[2]}({arguments})"
    return str(tuple(value))


def _checked_shapes(given: Any) -> dict[str, torch.Size]:
    if not isinstance(given, Mapping):
        raise TypeError(f"shapes is {shown(given)}, expected name -> shape such as {{'weight': (3, 2)}}.")
    if not given:
        raise ValueError("shapes is empty, expected at least one tensor to generate.")
    shapes = {}
    for name, shape in given.items():
        try:
            shapes[name] = torch.Size(shape)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            shapes[name] = torch.Size([-1])
        if min(shapes[name], default=0) < 0:
            raise ValueError(f"shapes[{name!r}] is {shown(shape)}, expected a shape such as (3, 2).")
    return shapes


def _checked_sizes(given: Any) -> tuple[int, ...]:
    sizes = tuple(given) if isinstance(given, Iterable) and getattr(given, "ndim", None) != 0 else (given,)
    if not all(isinstance(size, int) and not isinstance(size, bool) and size < _WIDEST for size in sizes):
        raise TypeError(f"hidden_sizes is {shown(given)}, expected a list of whole numbers such as [16, 8].")
    if min(sizes, default=0) < 1:
        raise ValueError(f"hidden_sizes is {sizes}, expected at least one positive width.")
    return sizes


def _head_init(init: str | float, residual: bool) -> str | Mapping[str, float]:
    if isinstance(init, str):
        return init
    ratio = isinstance(init, (int, float)) and not isinstance(init, bool) and 0 < init < _LARGEST_RATIO
    if not ratio or not residual:
        raise ValueError(f"init is {shown(init)}, expected 'fan_out', 'zero', or (with residual=True) a ratio > 0.")
    return "fan_out"


def _is_matched(scale: str | None, encoding: str, residual: bool) -> bool:
    if scale not in (None, "matched", "paper"):
        raise ValueError(f"scale is {shown(scale)}, expected 'matched' or 'paper'.")
    if scale == "matched" and not residual:
        raise ValueError(
            "scale is 'matched' with residual=False, but without theta0 there is no learning rate of its own to match; "
            "expected scale='paper'."
        )
    return scale == "matched" or (scale is None and residual and encoding == "mip")


def _output_width(trunk: nn.Module, width: int) -> int:
    if not isinstance(trunk, nn.Module):
        raise TypeError(f"trunk is {shown(trunk)}, expected a module that maps (batch, encoding) to (batch, features).")
    try:
        features = _in_evaluation(trunk, torch.zeros(1, width))
    except Exception as error:  # whatever a module of somebody else raises
        told = on_one_line(str(error))
        raise ValueError(f"trunk does not take an encoded h of shape (1, {width}): {told}") from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise ValueError(f"trunk maps (1, {width}) to {shown(features)}, expected a tensor of shape (1, features).")
    return features.shape[1]


def _in_evaluation(trunk: nn.Module, encoded: Tensor) -> Any:
    """Run the trunk as in evaluation, on its own device, and leave it in the mode it was in."""
    parameter = next(trunk.parameters(), None)
    modes = [(module, module.training) for module in trunk.modules()]
    try:
        with torch.no_grad():
            return trunk.eval()(encoded if parameter is None else encoded.to(parameter))
    finally:
        for module, training in modes:
            module.training = training


def _mlp(
    width: int, hidden_sizes: tuple[int, ...], activation: Callable[[], nn.Module], norm: str | None, dropout: float
) -> nn.Sequential:
    if not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
        raise ValueError(f"dropout is {shown(dropout)}, expected a probability, 0 <= dropout <= 1.")
    _check_activation(activation)
    if norm not in (None, "batch", "layer", "weight"):
        raise ValueError(f"norm is {shown(norm)}, expected None, 'batch', 'layer' or 'weight'.")
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


def _check_activation(activation: Any) -> None:
    try:
        made = activation()
    except TypeError:  # it is not called so, or not at all
        made = None
    if not isinstance(made, nn.Module):
        raise TypeError(f"activation is {shown(activation)}, expected a class of modules such as torch.nn.LeakyReLU.")


def _kaiming(linear: nn.Linear, activation: nn.Module) -> nn.Linear:
    """Kaiming fan-out, zero bias: a hypernetwork widens strongly, and fan-out keeps the norm of its features."""
    gain = nn.init.calculate_gain(_GAINS.get(type(activation), "relu"))  # type: ignore[arg-type]
    nn.init.normal_(linear.weight, std=gain / linear.out_features**0.5)
    nn.init.zeros_(linear.bias)
    return linear
