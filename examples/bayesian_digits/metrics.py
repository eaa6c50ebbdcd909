"""How right and how sure: measures of class probabilities (draws, N, classes) against labels (N,)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error


@dataclass(frozen=True)
class Quality:
    """Accuracy, negative log-likelihood and expected calibration error of one set of predictions."""

    accuracy: float
    nll: float
    ece: float


def quality(probabilities: Tensor, target: Tensor, bins: int = 10) -> Quality:
    """Measure probabilities (N, classes)."""
    if probabilities.ndim != 2 or len(probabilities) != len(target):
        raise ValueError(
            f"probabilities of shape {tuple(probabilities.shape)} for {len(target)} labels; expected (N, classes) and "
            "(N,). Average (draws, N, classes) over the draws first, or measure each draw."
        )
    hit = (probabilities.argmax(-1) == target).float().mean()
    # A probability that underflowed to 0 would make the mean over all images infinite.
    likelihood = probabilities.gather(1, target.unsqueeze(1)).clamp_min(torch.finfo(probabilities.dtype).tiny)
    ece = multiclass_calibration_error(probabilities, target, num_classes=probabilities.shape[-1], n_bins=bins)
    return Quality(hit.item(), -likelihood.log().mean().item(), ece.item())


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy in nats over the last dimension: 0 when sure, log(classes) when clueless."""
    return torch.special.entr(probabilities).sum(-1)
