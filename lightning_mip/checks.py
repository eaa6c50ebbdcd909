"""What may be wrong with generated weights: not finite, never trained, or written to where nothing will see it."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_mip.generation import Generated, version_of
from lightning_mip.space import HSpace

_SHOWN = 5


def looked_at(device: torch.device) -> bool:
    """Whether values on a device are looked at in each step.

    That waits for a GPU, so there it is left to anomaly detection and the end of each epoch.
    """
    return device.type == "cpu" or torch.is_anomaly_enabled()


def check_finite_in_step(weights: Mapping[str, Tensor], space: HSpace, h: Mapping[str, Any]) -> None:
    """Do as `check_finite`, where looking does not make the step wait."""
    if looked_at(next(iter(weights.values())).device):
        check_finite(weights, space, h)


def check_finite(weights: Mapping[str, Tensor], space: HSpace, h: Mapping[str, Any]) -> None:
    """Raise FloatingPointError if a generated weight is NaN or infinite, naming the tensor and ``h``.

    Of an ``h`` for each sample, the first that gives such a weight is named.
    """
    # One pass over all of them; the norm may overflow, so the tensors themselves decide.
    if torch.nn.utils.get_total_norm([weight.detach() for weight in weights.values()]).isfinite():
        return
    for name, weight in weights.items():
        wrong = ~weight.isfinite()
        if not wrong.any():
            continue
        if space.is_batched(h):
            sample = int(wrong.flatten(1).any(1).nonzero()[0])
            wrong, h = wrong[sample], {component: value[sample] for component, value in h.items()}
        raise FloatingPointError(
            f"The generated weight {name} is not finite at h = ({space.label(h)}): "
            f"{int(wrong.sum())} of {wrong.numel()} numbers are NaN or infinite. "
            "Lower the learning rate, or clip gradients."
        )


def warn_of_untrained(shapes: Mapping[str, torch.Size], reached: Collection[int], stacklevel: int) -> None:
    """Warn of generated tensors that no gradient came back to: the values are used, but never trained.

    Args:
        shapes: of what is generated: name -> shape.
        reached: indices of those that got a gradient.
        stacklevel: that of ``warnings.warn``, from here.
    """
    unused = [name for index, (name, shape) in enumerate(shapes.items()) if index not in reached and shape.numel()]
    if unused:
        more = f" and {len(unused) - _SHOWN} more" if len(unused) > _SHOWN else ""
        warnings.warn(
            "No gradient came back to these generated weights in the first step: "
            f"{', '.join(unused[:_SHOWN])}{more}. Either the loss does not depend on them (exclude= leaves them "
            "out), or the network copies them: slicing an nn.ParameterList in forward does; take its items one by "
            "one.",
            stacklevel=stacklevel,
        )


def warn_of_lost_write(now: Generated, stacklevel: int) -> bool:
    """Warn of a generated tensor that was written to since its backward; returns whether there is one."""
    if not now.mark.spent:
        return False
    each = zip(now.weights, map(version_of, now.weights.values()), now.mark.versions, strict=True)
    name = next((name for name, version, before in each if version != before), None)
    if name is None:
        return False
    warnings.warn(
        f"A write to the generated weight {name} after its backward is lost, as it is no parameter. Write to "
        "theta0 outside of the step, such as in on_train_batch_end; to keep theta(h) in bounds, register a "
        "parametrization (torch.nn.utils.parametrize) before the network is hypernetized.",
        stacklevel=stacklevel,
    )
    return True
