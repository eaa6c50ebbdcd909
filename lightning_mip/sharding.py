"""Strategies that split parameters over processes, which generated weights do not go with."""

from __future__ import annotations

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

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
