"""The low-rank head: the change of a matrix as a product of two generated factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_mip.heads import Family, FittedHead, FullHead, HeadSpec, Init, check_family, spread, wanted_norms
from lightning_mip.positive import check_positive


@dataclass(frozen=True)
class LowRank(HeadSpec):
    """Generate the change of a matrix as a product, ``delta(h) = U(h) D(h)`` with ``rank`` inner numbers.

    A tensor of more dimensions counts as the matrix ``(shape[0], the rest)``: a convolution as (out, in * k * k), a
    grouped one as (out, in / groups * k * k), a transposed one as (in, out * k * k), an embedding as (tokens,
    dimensions), and the stacked ``in_proj_weight`` of attention as (3 * dimensions, dimensions), one product for the
    three. Tensors of less than two dimensions, and those for which the factors would have no fewer numbers than the
    tensor, are generated in full.

    Source: LoRA (Hu et al., ICLR 2022) for the product and for starting with one factor at zero.

    Args:
        rank: how many columns ``U`` has.

    >>> LowRank(4).covers(torch.Size([64, 32, 3, 3])), LowRank(4).covers(torch.Size([64]))
    (True, False)
    """

    rank: int

    def __post_init__(self) -> None:
        """Check the rank."""
        check_positive("rank", self.rank, "LowRank(4)")

    def covers(self, shape: torch.Size) -> bool:
        """Whether the factors have fewer numbers than the tensor."""
        return len(shape) > 1 and self.rank * (shape[0] + shape[1:].numel()) < shape.numel()

    def make(self, features: int, shapes: Mapping[str, torch.Size], init: Init = "fan_out") -> LowRankHead:
        """Make the head for tensors that it covers."""
        return LowRankHead(features, shapes, self, init=init)


class LowRankHead(FittedHead):
    """Generates both factors of each matrix by linear maps, then multiplies them.

    ``U`` is linear in the features. ``D`` is made from their direction alone, so that ``delta`` is as proportional to
    the features' norm as it is in the full head, and not to its square. Zero at the start is ``U = 0``: ``D`` is drawn
    at random, so that ``U`` has a gradient from the first step. All factors of one side come from one flat map.

    Args:
        features: width of the trunk's output.
        shapes: name -> shape of each generated tensor.
        spec: the rank.
        init: ``fan_out``, ``zero``, or name -> wanted norm of each generated tensor for features of norm 1.
    """

    def __init__(
        self, features: int, shapes: Mapping[str, torch.Size], spec: LowRank, *, init: Init = "fan_out"
    ) -> None:
        super().__init__()
        self.shapes, self.spec = dict(shapes), spec
        self.widths = {name: shape[1:].numel() for name, shape in shapes.items()}
        self.features = features
        rows = {name: torch.Size([shape[0], spec.rank]) for name, shape in shapes.items()}
        columns = {name: torch.Size([spec.rank, width]) for name, width in self.widths.items()}
        left, right = self._norms(init)
        self.left, self.right = FullHead(features, rows, init=left), FullHead(features, columns, init=right)

    @property
    def kinds(self) -> dict[str, str]:
        """Name -> the rank."""
        return dict.fromkeys(self.shapes, repr(self.spec))

    def initialize(self, init: Init) -> None:
        """Draw both factors anew: ``D`` in the size that matches the optimizer, ``U`` for the wanted norm of delta."""
        left, right = self._norms(init)
        self.left.initialize(left)
        self.right.initialize(right)

    def silence(self, name: str, row: int) -> None:
        """Make one row of ``U`` zero, and so that of the product."""
        self.left.silence(name, row)

    def multiply(self, factors: Mapping[str, float]) -> None:
        """Multiply ``U``, and so the product."""
        self.left.multiply(factors)

    def match(self, family: Family) -> None:
        """Move size from one factor to the other, and from the features of ``D`` to its map."""
        check_family(family)
        spreads, length = self._spreads(), self._length(self.family)
        self.family = family
        ratios = {name: after / spreads[name] for name, after in self._spreads().items()}
        self.left.multiply({name: 1 / ratio for name, ratio in ratios.items()})
        self.right.multiply({name: ratio * length / self._length(family) for name, ratio in ratios.items()})

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Generate all tensors, each of shape ``(batch, *shape)``, from features of shape ``(batch, features)``."""
        left = self.left(features)
        right = self.right(nn.functional.normalize(features, dim=-1) * self.by_family(self._length))
        return {name: (left[name] @ right[name]).reshape(-1, *shape) for name, shape in self.shapes.items()}

    def _norms(self, init: Init) -> tuple[dict[str, float], dict[str, float]]:
        """Norms of the factors, for features of norm 1."""
        norms, spreads, widths = wanted_norms(init, self.shapes), self._spreads(), self.widths
        left = {name: norm / (spreads[name] * math.sqrt(widths[name])) for name, norm in norms.items()}
        right = {n: spreads[n] * math.sqrt(self.spec.rank * widths[n]) / self._length(self.family) for n in norms}
        return left, right

    def _spreads(self) -> dict[str, float]:
        family = self.family
        return {name: spread(family, self.spec.rank, width) for name, width in self.widths.items()}

    def _length(self, family: Family) -> float:
        """L2 norm of the features of ``D``: with it their L1 norm (for ``adam``) is at most 1, and mostly above 1/2."""
        return 1 / math.sqrt(self.features) if family == "adam" else 1.0
