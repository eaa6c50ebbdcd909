"""Where the data are: an option that several scripts share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path


def with_data(parser: argparse.ArgumentParser, files: str = "the .npz files") -> argparse.ArgumentParser:
    """Add ``--data``, by default what the environment says."""
    data = os.environ.get("LIGHTNING_MIP_DATA")
    parser.add_argument("--data", type=Path, default=data, help=f"folder of {files}, or LIGHTNING_MIP_DATA")
    return parser


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; without data, end with what to give."""
    given = parser.parse_args(argv)
    if given.data is None:
        parser.error("give --data or set LIGHTNING_MIP_DATA")
    return given
