"""The DDP column of the matrix: one pair of processes runs through all rows."""

from __future__ import annotations

import builtins
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from tests.matrix.kinds import ROWS, Kind

ROOT = Path(__file__).parents[2]


@functools.cache
def results() -> list[dict[str, list[str]]]:
    """Of each process: row -> class and text of the error, for rows that ended in one."""
    environment = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "MASTER_PORT")}
    paths = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH", "")]))
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, str(ROOT / "tests" / "matrix" / "ddp_program.py"), folder],
            cwd=folder,
            env={**environment, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def trained_on_two_processes(kind: Kind) -> None:
    """Raise what each process raised."""
    row = next(name for name, other in ROWS.items() if other is kind)
    first, second = (each.get(row) for each in results())
    assert first == second, f"{first} and {second}"
    if first is not None:
        raise {**vars(builtins), "MisconfigurationException": MisconfigurationException}[first[0]](first[1])
