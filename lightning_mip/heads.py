"""Heads: the map from the trunk's features to all generated tensors at once."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

# Columns of one block of the full head. Blocks of this size keep each gradient below malloc's mmap threshold, which
# page-faults larger ones anew at every step: on CPU that halves the cost of a training step.
BLOCK = 32_768


class FullHead(nn.Module):
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
        self,
        features: int,
        shapes: Mapping[str, torch.Size],
        *,
        bias: bool = False,
        init: str | Mapping[str, float] = "fan_out",
    ) -> None:
        super().__init__()
        self.shapes = dict(shapes)
        self.sizes = [shape.numel() for shape in shapes.values()]
        total = sum(self.sizes)
        columns = [min(BLOCK, total - start) for start in range(0, max(total, 1), BLOCK)]
        self.blocks = nn.ParameterList(nn.Parameter(torch.empty(features, size)) for size in columns)
        self.bias = nn.Parameter(torch.zeros(total)) if bias else None
        self.initialize(init)

    def initialize(self, init: str | Mapping[str, float]) -> None:
        """Draw the weights anew: Kaiming fan-out per generated tensor, so that each one's norm is that of the features.

        A Kaiming fan-out over the flat map would instead make a tensor's scale depend on the size of all others
        (MIP, ICLR 2024, initialisation; gain 1 as the map is linear).
        """
        if init == "zero":
            norms = dict.fromkeys(self.shapes, 0.0)
        elif init == "fan_out":
            norms = dict.fromkeys(self.shapes, 1.0)
        elif isinstance(init, Mapping):
            norms = dict(init)
        else:
            raise ValueError(f"init is {init!r}, expected 'fan_out', 'zero', or a ratio ||delta|| / ||theta0|| > 0.")
        if any(block.is_meta for block in self.blocks):
            return
        scales = torch.tensor([norms[name] / math.sqrt(max(shape.numel(), 1)) for name, shape in self.shapes.items()])
        columns = scales.repeat_interleave(torch.tensor(self.sizes)).split([block.shape[1] for block in self.blocks])
        with torch.no_grad():
            for block, scale in zip(self.blocks, columns, strict=True):
                block.normal_().mul_(scale.to(block))

    def silence(self, name: str, row: int) -> None:
        """Make one row of a generated matrix zero; it stays so if the network sends it no gradient."""
        shape = self.shapes[name]
        before = sum(other.numel() for other in list(self.shapes.values())[: list(self.shapes).index(name)])
        low = before + row * shape[1]
        with torch.no_grad():
            for start, block in zip(range(0, sum(self.sizes), BLOCK), self.blocks, strict=True):
                block[:, max(low - start, 0) : max(low + shape[1] - start, 0)] = 0

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
