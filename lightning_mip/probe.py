"""Running a training step for a look, without a trace."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_mip.evaluation import preserved


class StepProbe:
    """Runs a module's ``training_step`` on one batch and leaves the module, its metrics, buffers and the RNG as found.

    Args:
        module: the LightningModule.
        network: whose outputs are looked at beside the step's loss.
        batch: the batch.
        batch_idx: its index.
    """

    def __init__(self, module: Any, network: nn.Module, batch: Any, batch_idx: int) -> None:
        self.module, self.network = module, network
        wanted = len(inspect.signature(module.training_step).parameters)
        self.arguments = (batch, batch_idx)[: max(wanted, 1)]

    def run(self) -> list[Tensor]:
        """Return the tensors of the step's output and of each output of the network."""
        seen: list[Any] = []
        hook = self.network.register_forward_hook(lambda module, args, output: seen.append(output))
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        self.module.__dict__["log"] = lambda *args, **kwargs: None
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        try:
            with torch.random.fork_rng(devices), torch.no_grad(), preserved(self.module):
                seen.append(self.module.training_step(*self.arguments))
        finally:
            hook.remove()
            del self.module.__dict__["log"]
            for name, buffer in self.module.named_buffers():
                buffer.data.copy_(buffers[name])
        return [leaf.detach().clone() for leaf in tree_leaves(seen) if isinstance(leaf, Tensor)]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two runs gave the same tensors, bit for bit."""
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
