"""One ``h`` for each sample of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from lightning_mip.checks import check_finite_in_step
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
        ValueError: the batch and ``h`` differ in size, BatchNorm is in training mode, there is a recurrent layer, or a
            sparse embedding to train, or the network replaces a buffer.
        RuntimeError: the network has something else that torch.vmap cannot run.
        FloatingPointError: a generated weight is NaN or infinite.
    """
    _check_layers(injector.root)
    size = len(next(iter(h.values())))
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and (value.ndim == 0 or len(value) != size):
            raise ValueError(
                f"per_sample=True: an input has shape {tuple(value.shape)}, expected {size} samples, as h has."
            )

    rebuild: Callable[[list[Tensor]], Any]

    def one(weights: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        nonlocal rebuild
        args, kwargs = tree_map(_add_batch, (args, kwargs))
        # Not functional_call, which leaves the weights in modules that have several names.
        with injector.substituted(weights):
            outputs, rebuild = _without_constants(tree_map(_drop_batch, injector.root(*args, **kwargs)))
        return outputs

    in_dims = (0, tree_map(_batch_dim, args), tree_map(_batch_dim, kwargs))
    weights = injector.weights(h)
    if not torch.compiler.is_compiling():
        check_finite_in_step(weights, injector.hypernet.space, h)
    with (
        _buffers_kept(injector.root),
        _without_fast_path(),
        torch.autograd.graph.disable_saved_tensors_hooks(_CHECKPOINTED),
    ):
        try:
            outputs = torch.vmap(one, in_dims=in_dims, randomness="different")(weights, args, kwargs)
            return rebuild(outputs)
        except (RuntimeError, ValueError) as error:
            # It has a ValueError for outputs that are no tensors; others are the network's own.
            if str(error) == _CHECKPOINTED or (type(error) is ValueError and not str(error).startswith("vmap(")):
                raise
            raise RuntimeError(
                f"torch.vmap, by which per_sample=True runs {type(injector.root).__name__}, failed on it for the "
                "reason above; use draws_per_batch instead of per_sample."
            ) from error


def refuse_alone() -> None:
    """Refuse to run the primary by itself while each sample has its own ``h``."""
    raise RuntimeError(
        "per_sample=True gives each sample its own h, and the primary alone runs at one; call self(x) in the step and, "
        "in a forward of your own, super().forward(x) instead of self.primary(x)."
    )


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """Put back the buffers that the network replaces, and refuse to go on with them."""
    kept = [(child._buffers, name, buffer) for child in module.modules() for name, buffer in child._buffers.items()]
    try:
        yield
    finally:
        replaced = [name for own, name, buffer in kept if own[name] is not buffer]
        for own, name, buffer in kept:
            own[name] = buffer
    if replaced:
        raise ValueError(
            f"per_sample=True runs each sample alone, but the network replaces its buffer {replaced[0]} when it runs, "
            "which cannot hold a value for every sample; use draws_per_batch instead of per_sample."
        )


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Transformers in evaluation have one without gradients, and do not see in torch.vmap that gradients are wanted."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(before and not torch.is_grad_enabled())
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _without_constants(output: Any) -> tuple[list[Any], Callable[[list[Tensor]], Any]]:
    """What in an output is no plain Python constant, which vmap takes for a mistake, and how to put the rest back."""
    leaves, structure = tree_flatten(output)
    constants = {k: leaf for k, leaf in enumerate(leaves) if isinstance(leaf, (int, float, str, type(None)))}

    def rebuild(others: list[Tensor]) -> Any:
        each = iter(others)
        return tree_unflatten([constants[k] if k in constants else next(each) for k in range(len(leaves))], structure)

    return [leaf for k, leaf in enumerate(leaves) if k not in constants], rebuild


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
        if isinstance(child, (nn.Embedding, nn.EmbeddingBag)) and child.sparse and torch.is_grad_enabled():
            raise ValueError(
                f"per_sample=True cannot train the sparse embedding layer {name or 'at the root'}, as torch.vmap has "
                "no rule for its gradient; build it with sparse=False, or use draws_per_batch instead of per_sample."
            )
        if isinstance(child, _BatchNorm) and (child.training or not child.track_running_stats):
            raise ValueError(
                f"per_sample=True runs each sample alone, but the BatchNorm layer {name} takes statistics over the "
                "batch; use GroupNorm or LayerNorm, or draws_per_batch instead of per_sample."
            )
