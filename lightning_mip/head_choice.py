"""Which head generates which tensor: from what a user gives to one head for all tensors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lightning_mip.chunked import Chunked
from lightning_mip.heads import Family, FullHead, Head, HeadSpec, Init
from lightning_mip.low_rank import LowRank
from lightning_mip.selection import listing, matches_glob, there_are
from lightning_mip.shown import shown

HeadKind = Literal["full"] | HeadSpec
HeadChoice = HeadKind | dict[str, HeadKind]

_KINDS: dict[str, type[HeadSpec]] = {"LowRank": LowRank, "Chunked": Chunked}
_EXPECTED = "expected 'full', LowRank(rank) or Chunked(size)"
_OR_PATTERNS = ", or a mapping of patterns such as {'*.weight': LowRank(4), '*': 'full'}"


def make_head(choice: Any, features: int, shapes: Mapping[str, torch.Size], *, bias: bool, init: Init) -> Head:
    """Make the head that generates all tensors.

    Args:
        choice: ``full``, a `LowRank` or `Chunked`, or glob -> one of these, in any of the forms that `as_head` takes.
        features: width of the trunk's output.
        shapes: name -> shape of each generated tensor.
        bias: add a trainable bias to each tensor, zero at the start.
        init: as `Head.initialize` takes it.

    Raises:
        ValueError: a pattern matches nothing, nothing that an earlier one does not match, or a tensor is not named.
    """
    kinds = _assigned(as_head(choice), shapes)
    groups: dict[HeadKind, dict[str, torch.Size]] = {}
    for name, shape in shapes.items():
        groups.setdefault(kinds[name], {})[name] = shape
    if list(groups) == ["full"]:
        return FullHead(features, shapes, bias=bias, init=init)
    parts = [
        FullHead(features, own, init=init) if kind == "full" else kind.make(features, own, init)
        for kind, own in groups.items()
    ]
    return MixedHead(parts, shapes, bias=bias)


def as_head(given: Any) -> HeadChoice:
    """Read what stands for a head: also a ``{"class_path": ..., "init_args": ...}`` mapping, as configs hold it."""
    if isinstance(given, Mapping) and "class_path" not in given:
        if not given:
            raise ValueError(
                "head is an empty mapping, expected patterns such as {'*.weight': LowRank(4), '*': 'full'}."
            )
        for pattern in given:
            if not isinstance(pattern, str):
                raise TypeError(f"head has the pattern {shown(pattern)}, expected a glob such as '*.weight'.")
        return {pattern: _as_kind(f"head[{pattern!r}]", value, _EXPECTED) for pattern, value in given.items()}
    return _as_kind("head", given, _EXPECTED + _OR_PATTERNS)


def head_config(given: Any) -> Any:
    """Describe what stands for a head in plain data, which `as_head` reads."""
    choice = as_head(given)
    if isinstance(choice, dict):
        return {pattern: _kind_config(kind) for pattern, kind in choice.items()}
    return _kind_config(choice)


class MixedHead(Head):
    """Several heads side by side, each for tensors of its own.

    Args:
        parts: the heads.
        shapes: name -> shape of all tensors, in the order in which they are generated.
        bias: add a trainable bias, zero at the start.
    """

    def __init__(self, parts: list[Head], shapes: Mapping[str, torch.Size], *, bias: bool = False) -> None:
        super().__init__()
        self.shapes = dict(shapes)
        self.sizes = [shape.numel() for shape in shapes.values()]
        self.parts = nn.ModuleList(parts)
        self.bias = nn.Parameter(torch.zeros(sum(self.sizes))) if bias else None

    @property
    def kinds(self) -> dict[str, str]:
        """Name -> how the tensor is generated."""
        found = {name: kind for part in self._heads() for name, kind in part.kinds.items()}
        return {name: found[name] for name in self.shapes}

    def initialize(self, init: Init) -> None:
        """Draw the weights of all parts anew."""
        for part in self._heads():
            part.initialize(init)

    def silence(self, name: str, row: int) -> None:
        """Make one row of a generated matrix zero, in the head that generates it."""
        next(part for part in self._heads() if name in part.shapes).silence(name, row)

    def multiply(self, factors: Mapping[str, float]) -> None:
        """Multiply the tensors of all parts."""
        for part in self._heads():
            part.multiply({name: factors[name] for name in part.shapes})

    def match(self, family: Family) -> None:
        """Fit all parts to a family of optimizers."""
        for part in self._heads():
            part.match(family)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Generate all tensors, each of shape ``(batch, *shape)``, from features of shape ``(batch, features)``."""
        found = {name: tensor for part in self._heads() for name, tensor in part(features).items()}
        tensors = [found[name] for name in self.shapes]
        if len(self.parts) > 1 and not torch.compiler.is_compiling():  # a compiled function gives zeros by itself
            tensors = _Together.apply(*tensors)  # type: ignore[no-untyped-call]
        if self.bias is not None:
            biases = zip(self.bias.split(self.sizes), self.shapes.values(), strict=True)
            tensors = [t + bias.reshape(shape) for t, (bias, shape) in zip(tensors, biases, strict=True)]
        return dict(zip(self.shapes, tensors, strict=True))

    def _heads(self) -> list[Head]:
        return cast(list[Head], list(self.parts))


class _Together(torch.autograd.Function):
    """The same tensors, of which those without a gradient get zero: so every parameter has one, as DDP requires."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Keep nothing: the backward needs the gradients alone."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> tuple[Tensor, ...]:
        return tuple(tangent.view_as(tangent) for tangent in tangents)


def _assigned(choice: HeadChoice, shapes: Mapping[str, torch.Size]) -> dict[str, HeadKind]:
    chosen: dict[str, HeadKind] = {}
    for pattern, kind in choice.items() if isinstance(choice, dict) else [("*", choice)]:
        named = [name for name in shapes if matches_glob(pattern, name)]
        if not named:
            found = there_are(pattern, {name: [name] for name in shapes})
            raise ValueError(f"head has the pattern {pattern!r}, which matches no generated tensor; {found}")
        if pattern != "*" and all(name in chosen for name in named):  # "*" is for the rest, of which there may be none
            raise ValueError(
                f"head has the pattern {pattern!r}, but earlier patterns match all of its tensors ({listing(named)}), "
                "and the first match wins; write it before them."
            )
        chosen = {**dict.fromkeys(named, kind), **chosen}
    missing = [name for name in shapes if name not in chosen]
    if missing:
        raise ValueError(f"head names no kind for {listing(missing)}; add a last pattern for the rest, '*': 'full'.")
    fits = {name: kind == "full" or kind.covers(shapes[name]) for name, kind in chosen.items()}
    return {name: kind if fits[name] else "full" for name, kind in chosen.items()}


def _as_kind(where: str, given: Any, expected: str) -> HeadKind:
    if isinstance(given, HeadSpec):
        return given
    if isinstance(given, str) and given == "full":
        return "full"
    if not isinstance(given, Mapping) or "class_path" not in given:
        raise ValueError(f"{where} is {shown(given)}, {expected}.")
    path = given["class_path"]
    kind = next(
        (k for name, k in _KINDS.items() if path in (name, f"lightning_mip.{name}", f"{k.__module__}.{name}")), None
    )
    if kind is None:
        raise ValueError(f"{where} names the class {shown(path)}, expected LowRank or Chunked.")
    try:
        return kind(**given.get("init_args", {}))
    except TypeError as error:
        takes = f"{kind.__name__} takes {', '.join(inspect.signature(kind).parameters)}"
        raise ValueError(f"{where} is {shown(given)}, but {error}; {takes}.") from error


def _kind_config(kind: HeadKind) -> Any:
    return kind.config() if isinstance(kind, HeadSpec) else kind
