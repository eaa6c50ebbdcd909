"""The three tasks of the MIP paper in small: Bayesian digits, registration, segmentation over scale."""

from __future__ import annotations

import importlib
from pathlib import Path

from benchmarks.tasks.base import Task

TASKS = ("digits", "registration", "scale_space")


def load(name: str, data: Path) -> Task:
    """Read the data of a task and make it.

    Args:
        name: one of `TASKS`.
        data: folder of the .npz files that docs/benchmarks/README.md describes.
    """
    task: Task = importlib.import_module(f"benchmarks.tasks.{name}").load(data)
    return task
