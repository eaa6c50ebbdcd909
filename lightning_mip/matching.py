"""Update matching: features of such a size that the primary trains at the learning rate of the plain network.

Derivation and measurements: docs/update_matching.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import ASGD, LBFGS, SGD, Optimizer

from lightning_mip.heads import Family

# How far the hypernetwork moves theta in one step, as a share of how far the plain network would move: small enough for
# learning rates at the edge of the plain network's stable range.
SHARE = 0.3
# Bound of the gain's logarithm. With Adam the share grows with the gain, with SGD with its square: 3.5 makes it 3.7,
# and 4.5 is too much to be stable.
_LIMITS: dict[Family, float] = {"adam": 4.0, "sgd": 1.25}
# How fast the gain is learned. Adam changes it, relative to its size, as fast as a weight of size 0.1, a common one; a
# step of SGD is proportional to the gradient, in which the pace comes in a second time.
_PACES: dict[Family, float] = {"adam": 10.0, "sgd": 2.0}
# By what the weights of each of the trunk's layers are multiplied: a step of SGD turns a layer by its square less.
# Powers of 2, so that nothing is rounded.
_SIZES: dict[Family, float] = {"adam": 1.0, "sgd": 4.0}
_DEEPEST = 6  # layers that are multiplied, so that the square of what they put out does not overflow
_HOMOGENEOUS = (nn.Identity, nn.ReLU, nn.LeakyReLU, nn.PReLU)  # twice the input, twice the output
_FULLEST = 0.99  # share of the bound that a gain keeps under another family, so that it still can be learned
_EPS = 1e-6


def family_of(optimizer: Optimizer) -> Family:
    """Name the family: ``sgd``, whose step is proportional to the gradient, or ``adam``, which divides by its size.

    An optimizer of another library counts as ``adam``: for it the scale is the smaller one, so the safe one.
    """
    return "sgd" if isinstance(optimizer, (SGD, ASGD, LBFGS)) else "adam"


class Matched(nn.Module):
    """Divides features of shape ``(batch, features)`` by their root mean square and multiplies them by a scale.

    The scale is the matched one at the start, times a learned gain: where ``h`` matters the gain grows, and with it the
    share of the hypernetwork, which training with little of it at the start keeps stable.

    Attributes:
        scale: a buffer, so that copies and checkpoints of the weights, which are made for it, hold it too.
        pace: of the gain, a buffer for the same reason.
        limit: of the gain's logarithm, a buffer for the same reason.
        shrink: makes features of resized layers as small as they were, so that the norm's epsilon means the same.
        log_gain: the logarithm of the gain, in units of the pace and where it is small; 0 at the start.
    """

    scale: Tensor
    pace: Tensor
    limit: Tensor
    shrink: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("pace", torch.tensor(_PACES["adam"]))
        self.register_buffer("limit", torch.tensor(_LIMITS["adam"]))
        self.register_buffer("shrink", torch.tensor(1.0))
        self.log_gain = nn.Parameter(torch.zeros(()))

    @property
    def gain(self) -> Tensor:
        """By how much the scale has grown since the start, bounded: no step of any optimizer can drown the rest."""
        return torch.exp(self.limit * torch.tanh(self.pace * self.log_gain / self.limit))

    @property
    def size(self) -> Tensor:
        """By what normalized features are multiplied: the scale times the gain."""
        return self.scale * self.gain

    @property
    def family(self) -> Family:
        """The family for which scale and pace are fitted, and weights made."""
        if self.pace.is_meta:
            return "adam"
        pace = float(self.pace)  # which averaging rounds
        return min(_PACES, key=lambda family: abs(_PACES[family] - pace))

    @torch.no_grad()
    def fit(self, features: Tensor, family: Family) -> None:
        """Fit scale, pace and limit to a family of optimizers; the gain stays as it is within the limit.

        Args:
            features: as of `matched_scale`.
            family: of the optimizer.
        """
        growth = self.gain.log()
        self.pace.fill_(_PACES[family])
        self.limit.fill_(_LIMITS[family])
        within = (growth / self.limit).clamp(-_FULLEST, _FULLEST)
        self.log_gain.copy_(self.limit * torch.atanh(within) / self.pace)
        self.scale.fill_(matched_scale(features * self.shrink.to(features), family))

    def forward(self, features: Tensor) -> Tensor:
        """Normalize and scale."""
        return _normalized(features * self.shrink) * self.size


def matched_scale(features: Tensor, family: Family) -> float:
    """By what to multiply normalized features, so that the head moves theta by `SHARE` of the plain network's step.

    A step of ``lr`` on each number of ``V`` (Adam) moves ``V f`` by ``lr * ||f||_1``, and one of ``lr`` times the
    gradient (SGD) by ``lr * ||f||_2^2`` times the gradient of ``V f``.

    Args:
        features: the trunk's output for some draws of ``h``, shape ``(draws, features)``.
        family: of the optimizer.
    """
    width = features.shape[-1]
    if family == "sgd":
        return math.sqrt(SHARE / width)
    # Never below that of one single active feature, so that features which start at zero are no division by zero.
    return SHARE / max(float(_normalized(features).abs().sum(-1).mean()), math.sqrt(width))


def layers_to_resize(trunk: nn.Module) -> list[nn.Linear]:
    """The layers of an MLP that computes the same, times a number, with larger weights; none of any other trunk."""
    modules = list(trunk) if type(trunk) is nn.Sequential else []
    linear = [module for module in modules if isinstance(module, nn.Linear)]
    others = [module for module in modules if not isinstance(module, (nn.Linear, nn.Dropout))]
    return linear if all(type(module) in _HOMOGENEOUS for module in others) else []


@torch.no_grad()
def resize(layers: Sequence[nn.Linear], before: Family, after: Family) -> float:
    """Give a trunk's layers the size for another family of optimizers, in which SGD turns them more slowly.

    With weights ``c`` times as large and the bias of layer ``l`` ``c**l`` times, layer ``l`` puts out ``c**l`` times
    what it did, and what is normalized does not change. The gradient of each weight is divided by ``c``, and a step of
    SGD relative to the weight by ``c**2``.

    Args:
        layers: of `layers_to_resize`.
        before: the family for which they are made.
        after: the family to which they shall be fitted.

    Returns:
        By what the output of the last layer is multiplied.
    """
    factor = _SIZES[after] / _SIZES[before]
    for depth, layer in enumerate(layers, 1):
        for name, parameter in layer.named_parameters():  # a weight may be a direction and a length, both of its size
            if name == "bias":
                parameter.mul_(factor ** min(depth, _DEEPEST))
            elif depth <= _DEEPEST:
                parameter.mul_(factor)
    return float(factor ** min(len(layers), _DEEPEST))


def _normalized(features: Tensor) -> Tensor:
    return nn.functional.rms_norm(features, features.shape[-1:], eps=_EPS)
