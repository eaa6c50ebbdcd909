"""Whether a training step reads the attributes that hold its ``h``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from lightning_mip.binding import bound
from lightning_mip.injection import Injector
from lightning_mip.probe import StepProbe, same


def warn_of_unread(probe: StepProbe, injector: Injector, path: str, bound_paths: Sequence[str]) -> None:
    """Warn of attributes that the step does not read, such as one that was used up when a layer was made.

    Args:
        probe: of the step, and of the network at ``path``.
        injector: of that network, with an ``h`` in force.
        path: of the network in the module.
        bound_paths: of the attributes in the module.
    """
    module = probe.module
    # Manual optimization would take its steps; a step that takes the iterator would use up batches.
    by_hand = not module.automatic_optimization
    if by_hand or is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        return
    h, space = injector.h or {}, injector.hypernet.space
    before = probe.run() if bound_paths else []
    for name in bound_paths:
        other = next((g[name] for g in space.grid(2) if not torch.equal(g[name], h[name])), None)
        if not before or other is None:
            continue
        with bound(module, {name: other}):
            unread = same(before, probe.run())
        if unread:
            rank_zero_warn(
                f"On the first batch, changing {name} changes neither what training_step returns nor the output of "
                f"{path!r}: the step does not seem to read it. If a layer was made from it, bind that "
                f"layer's attribute instead (such as '{path}.dropout.p'); leave it out of bind if nothing is "
                "to read it. A learning rate is no dial."
            )
