"""Norm and variance of the loss gradient: across draws of ``h`` at fixed data, and across data at fixed ``h``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mip.diagnosis.matter import Case
from lightning_mip.diagnosis.subject import Subject
from lightning_mip.magnitude import norm_of


@dataclass(frozen=True)
class Scatter:
    """Gradients of one set of parameters at several points.

    Attributes:
        norms: of each gradient.
        mean_norm: of the mean gradient.
        std: root mean square distance of a gradient from the mean gradient.
    """

    norms: list[float]
    mean_norm: float
    std: float

    @property
    def noise(self) -> float | None:
        """The scatter, relative to the mean gradient: what one point's gradient is worth."""
        return self.std / self.mean_norm if self.mean_norm else None


@dataclass(frozen=True)
class Gradients:
    """Each a mapping with ``theta0`` (the primary's own parameters) and ``hypernet``, as far as they are trained.

    Attributes:
        across_h: draws of ``h``, the first batch.
        across_data: batches, one ``h``.
    """

    across_h: dict[str, Scatter]
    across_data: dict[str, Scatter]


def gradients(subject: Subject, all_cases: Sequence[Case], seed: int) -> Gradients:
    """Compute the gradient of the loss at the draws and batches of the cases."""
    first, batches = all_cases[0], [batch for case in all_cases for batch in case.batches]
    if first.drawn:
        batches, h = first.batches, subject.space.center()
    else:
        h = first.h
    return Gradients(
        across_h=_scatter(subject, [(case.h, batches[0]) for case in all_cases], seed),
        across_data=_scatter(subject, [(h, batch) for batch in batches], seed),
    )


def _scatter(subject: Subject, points: Sequence[tuple[Mapping[str, Tensor], Any]], seed: int) -> dict[str, Scatter]:
    groups = {
        "theta0": [p for p in subject.injector.root.parameters() if p.requires_grad],
        "hypernet": [p for p in subject.injector.hypernet.parameters() if p.requires_grad],
    }
    groups = {name: parameters for name, parameters in groups.items() if parameters}
    sums = {name: [torch.zeros_like(p, dtype=torch.float32) for p in group] for name, group in groups.items()}
    norms: dict[str, list[float]] = {name: [] for name in groups}
    for h, batch in points:
        found = iter(_gradient(subject, h, batch, [p for group in groups.values() for p in group], seed))
        for name, group in groups.items():
            own = [next(found) for _ in group]
            norms[name].append(norm_of(own))
            for total, gradient in zip(sums[name], own, strict=True):
                total += gradient
    n = len(points)
    result = {}
    for name, summed in sums.items():
        mean = norm_of(summed) / n
        variance = sum(norm**2 for norm in norms[name]) / n - mean**2
        result[name] = Scatter(norms[name], mean, max(variance, 0.0) ** 0.5)
    return result


def _gradient(
    subject: Subject, h: Mapping[str, Tensor], batch: Any, parameters: list[nn.Parameter], seed: int
) -> list[Tensor]:
    torch.manual_seed(seed)
    # cuDNN has no backward of recurrent layers in evaluation mode.
    recurrent = [module for module in subject.module.modules() if isinstance(module, nn.RNNBase)]
    for module in recurrent:
        module.training = True
    with torch.enable_grad(), subject.at(h):
        loss = subject.loss(batch)
        if not loss.requires_grad:
            return [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    for module in recurrent:
        module.training = False
    return [
        torch.zeros_like(p, dtype=torch.float32) if gradient is None else gradient.detach().float()
        for p, gradient in zip(parameters, found, strict=True)
    ]
