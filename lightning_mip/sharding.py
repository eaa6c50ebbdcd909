"""Strategies that generated weights do not go with: those that split parameters, and DDP with sparse gradients."""

from __future__ import annotations

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_mip.injection import Injector

# By name, as they are of either namespace, and DeepSpeed's may not be installed.
_SHARDED = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


def check_whole_parameters(trainer: Any, pl_module: Any) -> None:
    """Refuse strategies under which a process does not hold whole parameters."""
    names = {base.__name__ for base in type(trainer.strategy).__mro__}
    found = next((name for name in _SHARDED if name in names), None)
    if found is not None:
        raise MisconfigurationException(
            f"strategy is {found}, which splits or flattens parameters over processes, but {type(pl_module).__name__} "
            "is hypernetized: each process generates weights from whole ones, theta0 and the hypernetwork's. Use "
            "strategy='ddp'; where memory is short, head=LowRank(4), or include= for fewer generated weights."
        )


def check_dense_gradients(trainer: Any, injector: Injector) -> None:
    """Refuse sparse embeddings under DDP, which tells by the module what gradient its weight will have."""
    if not any(base.__name__ == "DDPStrategy" for base in type(trainer.strategy).__mro__):
        return
    for path, module in injector.root.named_modules():
        weight = f"{path}.weight".removeprefix(".")
        generated = any(weight in names for names in injector.names.values())
        if generated and isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
            raise MisconfigurationException(
                f"{weight} is of a sparse embedding, whose gradient DDP expects to be sparse, but it is generated, and "
                f"gradients of generated weights are dense; build it with sparse=False, or exclude='{weight}'."
            )
