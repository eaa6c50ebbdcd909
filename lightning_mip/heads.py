"""Heads: the map from the trunk's features to all generated tensors; here what they share, and the full head."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

Init = str | Mapping[str, float]
Family = Literal["adam", "sgd"]

# Columns of one block of the full head. Blocks of this size keep each gradient below malloc's mmap threshold, which
# page-faults larger ones anew at every step: on CPU that halves the cost of a training step.
BLOCK = 32_768


class Head(nn.Module, ABC):
    """What a hypernetwork asks of its head.

    A head is called with features scaled for the optimizer: of L1 norm about 1 for the ``adam`` family (each number
    moves by about the learning rate ``lr``), of L2 norm about 1 for the ``sgd`` family. One step then moves each
    generated number by about ``lr``, respectively by ``lr`` times its gradient, as it would move a parameter.

    Attributes:
        shapes: name -> shape of each generated tensor.
    """

    shapes: dict[str, torch.Size]

    @property
    @abstractmethod
    def kinds(self) -> dict[str, str]:
        """Name -> how the tensor is generated: ``full``, ``LowRank(rank=4)``, ..."""

    @abstractmethod
    def initialize(self, init: Init) -> None:
        """Draw the weights anew: ``fan_out``, ``zero``, or name -> norm of each tensor for features of norm 1."""

    @abstractmethod
    def silence(self, name: str, row: int) -> None:
        """Make one row of a generated matrix zero; it stays so if the network sends it no gradient."""

    @abstractmethod
    def multiply(self, factors: Mapping[str, float]) -> None:
        """Multiply each generated tensor by its factor from now on."""

    @abstractmethod
    def match(self, family: Family) -> None:
        """Fit the sizes of the weights to a family of optimizers, before training; what is generated stays the same."""

    @abstractmethod
    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Generate all tensors, each of shape ``(batch, *shape)``, from features of shape ``(batch, features)``."""


class FittedHead(Head, ABC):
    """A head that uses its weights in another way for each family of optimizers.

    Attributes:
        sgd: 1 for ``sgd``, 0 for ``adam``. A buffer, as what takes over the weights (a checkpoint, weight averaging)
            takes it over too, and a number to compute with, as a step that looked at it would wait for the device.
    """

    sgd: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sgd", torch.tensor(0.0))

    @property
    def family(self) -> Family:
        """The family for which the weights are made."""
        return "adam" if self.sgd.is_meta or self.sgd < 0.5 else "sgd"

    @family.setter
    def family(self, given: Family) -> None:
        self.sgd.fill_(given == "sgd")

    def by_family(self, number: Callable[[Family], float]) -> Tensor:
        """The number of the family that is in force."""
        adam = number("adam")
        # Averaging rounds.
        return adam + (number("sgd") - adam) * self.sgd.round()


class HeadSpec(ABC):
    """A kind of head and its sizes, as plain data: a frozen dataclass."""

    @abstractmethod
    def covers(self, shape: torch.Size) -> bool:
        """Whether this kind generates a tensor of this shape with fewer numbers than the full head."""

    @abstractmethod
    def make(self, features: int, shapes: Mapping[str, torch.Size], init: Init = "fan_out") -> Head:
        """Make the head for tensors that it covers."""

    def config(self) -> dict[str, Any]:
        """Describe the head in plain data, as a LightningCLI config does."""
        arguments = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {"class_path": f"lightning_mip.{type(self).__name__}", "init_args": arguments}


class FullHead(Head):
    """One linear map from features to every generated number.

    It is a flat ``Linear`` stored in blocks of shape ``(features, columns)``. The flat form (against one layer per
    tensor) gives every block a gradient even when a generated tensor goes unused, as DDP requires.

    Args:
        features: width of the trunk's output.
        shapes: name -> shape of each generated tensor.
        bias: add a trainable bias, zero at the start.
        init: ``fan_out``, ``zero``, or name -> wanted norm of each generated tensor for features of norm 1.
    """

    def __init__(
        self, features: int, shapes: Mapping[str, torch.Size], *, bias: bool = False, init: Init = "fan_out"
    ) -> None:
        super().__init__()
        self.shapes = dict(shapes)
        self.sizes = [shape.numel() for shape in shapes.values()]
        total = sum(self.sizes)
        columns = [min(BLOCK, total - start) for start in range(0, max(total, 1), BLOCK)]
        self.blocks = nn.ParameterList(nn.Parameter(torch.empty(features, size)) for size in columns)
        self.bias = nn.Parameter(torch.zeros(total)) if bias else None
        self.initialize(init)

    @property
    def kinds(self) -> dict[str, str]:
        """Every tensor is ``full``."""
        return dict.fromkeys(self.shapes, "full")

    def initialize(self, init: Init) -> None:
        """Draw the weights anew: Kaiming fan-out per generated tensor, so that each one's norm is that of the features.

        A Kaiming fan-out over the flat map would instead make a tensor's scale depend on the size of all others
        (MIP, ICLR 2024, initialisation; gain 1 as the map is linear).
        """
        norms = wanted_norms(init, self.shapes)
        if any(block.is_meta for block in self.blocks):
            return
        with torch.no_grad():
            for block in self.blocks:
                block.normal_()
        self.multiply({name: norms[name] / math.sqrt(max(shape.numel(), 1)) for name, shape in self.shapes.items()})

    def multiply(self, factors: Mapping[str, float]) -> None:
        """Multiply each generated tensor by its factor from now on."""
        flat = torch.tensor([factors[name] for name in self.shapes], dtype=torch.float64, device="cpu")
        columns = flat.repeat_interleave(torch.tensor(self.sizes, device="cpu"))
        with torch.no_grad():
            for block, part in zip(self.blocks, columns.split([b.shape[1] for b in self.blocks]), strict=True):
                block.mul_(part.to(block))

    def silence(self, name: str, row: int) -> None:
        """Make one row of a generated matrix zero; it stays so if the network sends it no gradient."""
        shape = self.shapes[name]
        before = sum(other.numel() for other in list(self.shapes.values())[: list(self.shapes).index(name)])
        low = before + row * shape[1]
        with torch.no_grad():
            for start, block in zip(range(0, sum(self.sizes), BLOCK), self.blocks, strict=True):
                block[:, max(low - start, 0) : max(low + shape[1] - start, 0)] = 0

    def match(self, family: Family) -> None:
        """Nothing to do: one map moves as the contract of the features says."""
        check_family(family)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Generate all tensors.

        Args:
            features: shape ``(batch, features)``.

        Returns:
            name -> tensor of shape ``(batch, *shape)``.
        """
        flat = torch.cat([features @ block for block in self.blocks], dim=-1)
        if self.bias is not None:
            flat = flat + self.bias
        parts = flat.split(self.sizes, dim=-1)
        return {
            name: part.reshape(len(features), *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }


def wanted_norms(init: Init, names: Iterable[str]) -> dict[str, float]:
    """Name -> norm that each generated tensor starts with, for features of norm 1."""
    if init == "zero":
        return dict.fromkeys(names, 0.0)
    if init == "fan_out":
        return dict.fromkeys(names, 1.0)
    if isinstance(init, Mapping):
        return {name: init[name] for name in names}
    raise ValueError(f"init is {init!r}, expected 'fan_out', 'zero', or a ratio ||delta|| / ||theta0|| > 0.")


def check_family(family: str) -> None:
    """Raise ValueError for an unknown family of optimizers."""
    if family not in ("adam", "sgd"):
        raise ValueError(f"family is {family!r}, expected 'adam' or 'sgd'.")


def spread(family: Family, inner: int, outer: int) -> float:
    """Standard deviation of the numbers of a factor ``D`` of shape (inner, outer), in ``delta = U D``.

    It makes a step move ``delta`` by what the contract of `Head` says, as long as ``U`` is small, where the step of
    ``U`` is the one that counts.

    Under Adam each number of ``U`` moves by ``lr``, with a sign that is almost independent of a single number of ``D``,
    so one of ``delta`` moves by about ``lr * ||D[:, j]||_2``: columns of ``D`` have norm 1. (It moves by
    ``lr * ||D[:, j]||_1`` only where all signs agree; norm 1 of this kind would make the steps smaller by the root of
    ``inner``.) Under SGD ``delta`` moves by ``-lr * G D^T D`` for its gradient ``G``: rows of ``D`` have norm 1, and as
    they are almost orthogonal, this is the projection of the plain step on their span, and stable where that is.
    """
    return 1 / math.sqrt(inner if family == "adam" else outer)
