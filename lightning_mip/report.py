"""Size report: what a hypernetwork generates, and the memory that training it takes."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lightning_mip.hypernetwork import HyperNetwork

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_MIB = 2**20


@dataclass(frozen=True)
class Summary:
    """Sizes of a hypernetwork.

    Attributes:
        shapes: generated tensor -> shape.
        parameters: number of parameters of the hypernetwork.
        weight_bytes: bytes of these parameters.
        heads: generated tensor -> the head that generates it.
    """

    shapes: dict[str, torch.Size]
    parameters: int
    weight_bytes: int
    heads: dict[str, str] = field(default_factory=dict)

    @property
    def generated(self) -> int:
        """How many numbers are generated."""
        return sum(shape.numel() for shape in self.shapes.values())

    @property
    def training_bytes(self) -> int:
        """Bytes of the hypernetwork's weights, their gradients and Adam's two moments."""
        return 4 * self.weight_bytes

    def __str__(self) -> str:
        width = max(len("generated tensor"), *map(len, self.shapes))
        several = {*self.heads.values()} - {"full"}
        lines = [
            f"{'generated tensor':<{width}}  {'shape':>18}  {'numbers':>12}  {'share':>6}{'  head' if several else ''}"
        ]
        for name, shape in self.shapes.items():
            share = shape.numel() / max(self.generated, 1)
            head = f"  {self.heads[name]}" if several else ""
            lines.append(f"{name:<{width}}  {tuple(shape)!s:>18}  {shape.numel():>12,}  {share:>6.1%}{head}")
        lines.append(f"{'all':<{width}}  {'':>18}  {self.generated:>12,}  {1:>6.1%}")
        lines.append(
            f"hypernetwork: {self.parameters:,} parameters; training takes {self.training_bytes / _MIB:,.1f} MiB "
            f"(weights {self.weight_bytes / _MIB:,.1f}, gradients {self.weight_bytes / _MIB:,.1f}, "
            f"Adam {2 * self.weight_bytes / _MIB:,.1f})"
        )
        return "\n".join(lines)


def summarize(hypernet: HyperNetwork) -> Summary:
    """Collect the sizes of ``hypernet``."""
    parameters = list(hypernet.parameters())
    return Summary(
        hypernet.shapes,
        sum(parameter.numel() for parameter in parameters),
        sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        hypernet.head.kinds,
    )


def available_memory(device: torch.device) -> int | None:
    """Bytes of memory of a device: free on CUDA, installed (or the container's limit) on CPU, None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu" or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else "max"
    return installed if limit == "max" else min(installed, int(limit))
