"""Telling a HyperLightningModule from other modules, also where the class cannot be imported."""

from __future__ import annotations

from typing import Any


def is_hyper(pl_module: Any) -> bool:
    """Whether it is a HyperLightningModule."""
    return any(base.__name__ == "HyperLightningModule" for base in type(pl_module).__mro__)
