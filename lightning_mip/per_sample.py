"""One ``h`` for each sample of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from lightning_mip.injection import Injector

_CHECKPOINTED = (
    "per_sample=True cannot run a network with activation checkpointing (or other hooks on saved tensors); switch it "
    "off in the network, or use draws_per_batch instead of per_sample."
)


def run_per_sample(injector: Injector, h: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the primary with the weights of ``h[i]`` on sample ``i``, all samples at once.

    Args:
        injector: of the primary network.
        h: component -> tensor of shape ``(B, ...)``.
        args: inputs; tensors have the batch as first dimension.
        kwargs: keyword inputs, likewise.

    Raises:
        ValueError: the batch and ``h`` differ in size, BatchNorm is in training mode, or there is a recurrent layer.
    """
    _check_layers(injector.root)
    size = len(next(iter(h.values())))
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and (value.ndim == 0 or len(value) != size):
            raise ValueError(
                f"per_sample=True: an input has shape {tuple(value.shape)}, expected {size} samples, as h has."
            )

    def one(weights: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = tree_map(_add_batch, (args, kwargs))
        # Not functional_call, which leaves the weights in modules that have several names.
        with injector.substituted(weights):
            return tree_map(_drop_batch, injector.root(*args, **kwargs))

    in_dims = (0, tree_map(_batch_dim, args), tree_map(_batch_dim, kwargs))
    weights = injector.weights(h)
    with torch.autograd.graph.disable_saved_tensors_hooks(_CHECKPOINTED):
        return torch.vmap(one, in_dims=in_dims, randomness="different")(weights, args, kwargs)


def _add_batch(value: Any) -> Any:
    return value.unsqueeze(0) if isinstance(value, Tensor) else value


def _drop_batch(value: Any) -> Any:
    return value.squeeze(0) if isinstance(value, Tensor) else value


def _batch_dim(value: Any) -> int | None:
    return 0 if isinstance(value, Tensor) else None


def _check_layers(module: nn.Module) -> None:
    for name, child in module.named_modules():
        if isinstance(child, nn.RNNBase):
            raise ValueError(
                f"per_sample=True cannot run the recurrent layer {name or 'at the root'}, as torch.vmap has no rule "
                "for it; use draws_per_batch instead of per_sample."
            )
        if isinstance(child, _BatchNorm) and (child.training or not child.track_running_stats):
            raise ValueError(
                f"per_sample=True runs each sample alone, but the BatchNorm layer {name} takes statistics over the "
                "batch; use GroupNorm or LayerNorm, or draws_per_batch instead of per_sample."
            )
