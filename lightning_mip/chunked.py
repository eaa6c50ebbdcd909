"""The chunked head: tensors cut in chunks that one small shared map generates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mip.heads import Family, FittedHead, FullHead, HeadSpec, Init, check_family, spread, wanted_norms
from lightning_mip.positive import check_positive


@dataclass(frozen=True)
class Chunked(HeadSpec):
    """Cut the tensors in chunks of at most ``size`` numbers, each generated as ``(f(h) Z_c) W``.

    ``Z_c``, of shape (features, embedding), is the learned embedding of chunk ``c``; ``W``, of shape (embedding, size),
    is shared by all chunks of all tensors. Features and embedding are multiplied, so every chunk follows ``h`` in its
    own way. A tensor is cut in equal chunks (but for the last one), none of which reaches into another tensor. Tensors
    of which the chunks would need no fewer numbers than the tensor has are generated in full.

    Source: chunked hypernetworks (Ha et al., ICLR 2017; von Oswald et al., ICLR 2020), with a product in place of their
    concatenation of ``h`` and embedding, so that magnitudes stay proportional to the features' norm.

    Args:
        size: numbers of a chunk; larger ones make the hypernetwork smaller.
        embedding: how many directions in the space of chunks there are.

    >>> Chunked(1024).covers(torch.Size([768, 768])), Chunked(1024).covers(torch.Size([4]))
    (True, False)
    """

    size: int
    embedding: int = 8

    def __post_init__(self) -> None:
        """Check the sizes."""
        check_positive("size", self.size, "Chunked(1024)")
        check_positive("embedding", self.embedding, "Chunked(1024, embedding=8)")
        if self.embedding >= self.size:
            raise ValueError(
                f"embedding is {self.embedding}, expected less than size ({self.size}), as the chunks would be no "
                "smaller otherwise; use head='full'."
            )

    def covers(self, shape: torch.Size) -> bool:
        """Whether the chunks need fewer numbers than the tensor has."""
        return -(-shape.numel() // self.size) * self.embedding < shape.numel()

    def make(self, features: int, shapes: Mapping[str, torch.Size], init: Init = "fan_out") -> ChunkedHead:
        """Make the head for tensors that it covers."""
        return ChunkedHead(features, shapes, self, init=init)


class ChunkedHead(FittedHead):
    """Generates the coefficients ``f Z_c`` of all chunks by one flat map, then multiplies them with the shared ``W``.

    Zero at the start is ``Z = 0``: ``W`` is drawn at random, so that ``Z`` has a gradient from the first step.

    Args:
        features: width of the trunk's output.
        shapes: name -> shape of each generated tensor.
        spec: the sizes.
        init: ``fan_out``, ``zero``, or name -> wanted norm of each generated tensor for features of norm 1.
    """

    def __init__(
        self, features: int, shapes: Mapping[str, torch.Size], spec: Chunked, *, init: Init = "fan_out"
    ) -> None:
        super().__init__()
        self.shapes, self.spec = dict(shapes), spec
        self.silenced: dict[str, list[int]] = {}
        self.counts = {name: -(-shape.numel() // spec.size) for name, shape in shapes.items()}
        self.lengths = {name: math.ceil(shape.numel() / self.counts[name]) for name, shape in shapes.items()}
        coefficients = {name: torch.Size([count, spec.embedding]) for name, count in self.counts.items()}
        self.shared = nn.Parameter(torch.empty(spec.embedding, max(self.lengths.values())))
        self.embeddings = FullHead(features, coefficients, init=self._norms(init))
        self._draw_shared()

    @property
    def kinds(self) -> dict[str, str]:
        """Name -> the sizes."""
        return dict.fromkeys(self.shapes, repr(self.spec))

    def initialize(self, init: Init) -> None:
        """Draw ``W`` in the size that matches the optimizer, and the embeddings for the wanted norm of delta."""
        self.embeddings.initialize(self._norms(init))
        self._draw_shared()

    def silence(self, name: str, row: int) -> None:
        """Leave one row of a generated matrix zero: as its chunks share ``W`` with all others, for good."""
        self.silenced[name] = sorted({row, *self.silenced.get(name, ())})

    def multiply(self, factors: Mapping[str, float]) -> None:
        """Multiply the embeddings, and so the chunks."""
        self.embeddings.multiply(factors)

    def match(self, family: Family) -> None:
        """Move size from ``W`` to the embeddings."""
        check_family(family)
        before, self.family = self.family, family
        self.embeddings.multiply(
            {n: self._spread(before, k) / self._spread(family, k) for n, k in self.lengths.items()}
        )
        with torch.no_grad():
            self.shared.mul_(self._stored(family) / self._stored(before))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Generate all tensors, each of shape ``(batch, *shape)``, from features of shape ``(batch, features)``."""
        coefficients = self.embeddings(features)
        basis = {n: self.shared[:, :n] * self.by_family(partial(self._in_use, n)) for n in set(self.lengths.values())}
        tensors = {}
        # One product per tensor: cutting one large product would copy its gradient, of the size of the network.
        for name, shape in self.shapes.items():
            chunks = coefficients[name] @ basis[self.lengths[name]]
            tensor = chunks.flatten(1)[:, : shape.numel()].reshape(-1, *shape)
            for row in self.silenced.get(name, ()):
                tensor = tensor.select_scatter(torch.zeros_like(tensor[:, row]), 1, row)
            tensors[name] = tensor
        return tensors

    def get_extra_state(self) -> dict[str, Any]:
        """The rows that stay zero."""
        return {"silenced": self.silenced}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over those of the weights that come with it."""
        self.silenced = {name: list(rows) for name, rows in state["silenced"].items()}

    def _norms(self, init: Init) -> dict[str, float]:
        """Norms of the embeddings, for features of norm 1."""
        sizes = {name: math.sqrt(shape.numel() / self.counts[name]) for name, shape in self.shapes.items()}
        norms, family = wanted_norms(init, self.shapes), self.family
        return {name: norm / (self._spread(family, self.lengths[name]) * sizes[name]) for name, norm in norms.items()}

    def _draw_shared(self) -> None:
        if not self.shared.is_meta:
            nn.init.normal_(self.shared, std=self._stored(self.family))

    def _in_use(self, length: int, family: Family) -> float:
        """By what to multiply ``W`` for chunks of this length."""
        return self._spread(family, length) / self._stored(family)

    def _spread(self, family: Family, length: int) -> float:
        """Standard deviation that ``W`` has for chunks of this length."""
        return spread(family, self.spec.embedding, length)

    def _stored(self, family: Family) -> float:
        """Standard deviation with which ``W`` is stored.

        Under SGD its gradient is a sum over all chunks. Stored larger by the root of their number, and divided by it in
        use, ``W`` takes the mean of their steps. Adam's steps do not depend on the size of gradients.
        """
        own = self._spread(family, self.shared.shape[1])
        return own * math.sqrt(sum(self.counts.values())) if family == "sgd" else own
