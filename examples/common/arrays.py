"""Reading the arrays of an .npz file from the folder of the data."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np


def data_root(name: str) -> Path:
    """The folder in LIGHTNING_MIP_DATA, else a cache folder of the user, named after the data."""
    if named := os.environ.get("LIGHTNING_MIP_DATA"):
        return Path(named).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "lightning_mip" / name


def read(folder: Path, name: str) -> dict[str, np.ndarray]:
    """The arrays of one .npz file."""
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist. Give the folder of {name} as --data or in LIGHTNING_MIP_DATA; "
            "docs/benchmarks/README.md says what it holds."
        )
    with np.load(path) as file:
        return dict(file)
