"""Bayesian prediction: the mean over draws of ``h``, and how far the draws disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ensemble:
    """Predictions of the networks of several draws of ``h``.

    Attributes:
        draws: the prediction of each draw, shape ``(n, *output)``: probabilities if classes were predicted.
        class_dim: dimension of the classes in a prediction, None where there are none.
    """

    draws: Tensor
    class_dim: int | None = None

    @property
    def mean(self) -> Tensor:
        """The mean over draws, shape ``(*output)``."""
        return self.draws.mean(0)

    @property
    def variance(self) -> Tensor:
        """The variance over draws (divided by n), shape ``(*output)``."""
        return self.draws.var(0, correction=0)

    @property
    def entropy(self) -> Tensor:
        """Entropy of the mean probabilities in nats: 0 when sure, log(classes) when clueless; without classes' dim."""
        return _entropy(self.mean, self._dim())

    @property
    def mutual_information(self) -> Tensor:
        """The part of `entropy` that is there because draws disagree: less the mean entropy of single draws."""
        dim = self._dim()
        # The dimension counts in one prediction, `draws` has one more in front.
        of_draws = _entropy(self.draws, dim + 1 if dim >= 0 else dim).mean(0)
        return (self.entropy - of_draws).clamp(min=0)  # rounding could make it -1e-8

    def _dim(self) -> int:
        if self.class_dim is None:
            raise ValueError(
                "class_dim is None, so the predictions are no class probabilities and have no entropy; say where the "
                "classes are: predict_ensemble(x, n, class_dim=-1)."
            )
        return self.class_dim


def ensemble(outputs: Sequence[Any], class_dim: int | None) -> Ensemble:
    """Put the outputs of the networks of several draws together.

    Args:
        outputs: one tensor per draw, all of one shape; logits if ``class_dim`` is given.
        class_dim: dimension of the classes in one output, whose softmax is taken; None for outputs as they are.

    Raises:
        TypeError: an output is no tensor.
        ValueError: it has no such dimension.
    """
    first = outputs[0]
    if not isinstance(first, Tensor):
        raise TypeError(
            f"predict_ensemble averages tensors, but the network returned {type(first).__name__}; take what you need "
            "of it yourself: `with model.at(h): model(x)` for each h drawn by model.space.sample."
        )
    stacked = torch.stack(list(outputs))
    if class_dim is None:
        return Ensemble(stacked)
    if not -first.ndim <= class_dim < first.ndim:
        raise ValueError(
            f"class_dim is {class_dim}, but the output has shape {tuple(first.shape)}; give the dimension of its "
            "classes, or None for an output without classes."
        )
    return Ensemble(stacked.softmax(class_dim + 1 if class_dim >= 0 else class_dim), class_dim)


def _entropy(probabilities: Tensor, dim: int) -> Tensor:
    each: Tensor = torch.special.entr(probabilities)
    return each.sum(dim)
