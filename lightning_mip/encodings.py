"""Encodings of ``h``: what the hypernetwork sees of each component.

``mip`` has norm 1 for every value (MIP, ICLR 2024, input encoding); ``z|1-z`` and ``none`` are kept for ablation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lightning_mip.priors import Categorical, Prior, Simplex
from lightning_mip.shown import shown


def _mip(prior: Prior, h: Tensor) -> Tensor:
    return prior.encode(h)


def _pair(prior: Prior, h: Tensor) -> Tensor:
    position = _one_hot_or(prior, h, prior.cdf)
    return torch.cat([position, 1 - position], dim=-1)


def _raw(prior: Prior, h: Tensor) -> Tensor:
    return _one_hot_or(prior, h, lambda value: value)


def _one_hot_or(prior: Prior, h: Tensor, scalar: Callable[[Tensor], Tensor]) -> Tensor:
    """Class ids and preference vectors have no scale of their own: one-hot and the vector itself."""
    if isinstance(prior, Categorical):
        return prior.encode(h)
    return h if isinstance(prior, Simplex) else scalar(h).unsqueeze(-1)


ENCODINGS: dict[str, Callable[[Prior, Tensor], Tensor]] = {"mip": _mip, "z|1-z": _pair, "none": _raw}
NORMS = ("unit", "paper")


def check_encoding(encoding: str, norm: str) -> None:
    """Raise ValueError for an encoding or a norm that does not exist."""
    if encoding not in tuple(ENCODINGS):
        raise ValueError(f"encoding is {shown(encoding)}, expected one of {', '.join(map(repr, ENCODINGS))}.")
    if norm not in NORMS:
        raise ValueError(f"encoding norm is {shown(norm)}, expected one of {', '.join(map(repr, NORMS))}.")


def encode(priors: Mapping[str, Prior], h: Mapping[str, Tensor], encoding: str = "mip", norm: str = "unit") -> Tensor:
    """Encode the components, in the order of ``priors``, into one vector.

    Args:
        priors: the prior of each component.
        h: values, each of shape ``(*batch, *event_shape)``.
        encoding: ``mip`` (norm 1 per component), ``z|1-z`` (position and its complement) or ``none`` (raw values).
        norm: ``unit`` divides the ``mip`` encoding of D components by sqrt(D), so that its norm is 1 for every
            space; ``paper`` leaves it at sqrt(D), as HyperLight does.

    Returns:
        Tensor of shape ``(*batch, features)``.
    """
    check_encoding(encoding, norm)
    blocks = [ENCODINGS[encoding](prior, h[name]) for name, prior in priors.items()]
    vector = torch.cat(blocks, dim=-1)
    if encoding == "mip" and norm == "unit":
        vector = vector / math.sqrt(len(blocks))
    return vector
