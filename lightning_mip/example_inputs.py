"""Inputs of a hypernetized network, found by running its module on an example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_mip.batches import inputs_of, moved
from lightning_mip.diagnosis.subject import Subject, copied_module
from lightning_mip.injection import the_injector
from lightning_mip.programs import Inputs


def example_inputs(module: nn.Module, h: Mapping[str, Tensor], example: Any) -> Inputs | None:
    """Find the arguments that the network gets when the module runs.

    Args:
        module: the hypernetized network, or a LightningModule that holds it.
        h: the value to run it at.
        example: a batch, or a DataLoader, whose first one is taken; None for ``example_input_array`` of the module.

    Returns:
        Arguments and keyword arguments; None without an example.
    """
    if isinstance(example, DataLoader):
        example = next(iter(example))
    if example is not None:
        network = the_injector(module).root
        inputs = moved(inputs_of(network, example), next(network.parameters()).device)
        return _of_step(module, h, example) or (inputs, {})
    given = getattr(module, "example_input_array", None)
    if given is None:
        return None
    other = copied_module(module).eval()
    args, kwargs = ((), given) if isinstance(given, Mapping) else (given if isinstance(given, tuple) else (given,), {})
    with the_injector(other).at(h):
        return _seen(the_injector(other).root, lambda: other(*args, **kwargs))


def _of_step(module: nn.Module, h: Mapping[str, Tensor], batch: Any) -> Inputs | None:
    """What the network gets in the module's training step; None where that cannot be run."""
    try:
        subject = Subject(module)
        with subject.at(h):
            return _seen(subject.injector.root, lambda: subject.loss(subject.moved(batch)))
    except Exception:  # whatever an author's step may need of a run
        return None


@torch.no_grad()
def _seen(network: nn.Module, run: Any) -> Inputs | None:
    seen: list[Inputs] = []
    hook = network.register_forward_pre_hook(lambda m, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    try:
        run()
    finally:
        hook.remove()
    return seen[0] if seen else None
