"""Tables in markdown, with what is needed to make them again: command, versions, threads."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("lightning-mip", "torch", "hyperlight")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = [list(header), ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def page(title: str, script: str, argv: Sequence[str], notes: Sequence[str], sections: Sequence[str]) -> str:
    """A whole page: title, how it was made, what the columns are, the tables."""
    made = f"Made by `{command(script, argv)}` with {versions()}; {threads()}."
    return "\n\n".join([f"# {title}", made, *notes, *sections]) + "\n"


def command(script: str, argv: Sequence[str]) -> str:
    """The command line, without the places of this machine: DATA for the data, and names alone of other files."""
    words: list[str] = []
    for word in argv:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        data = option == "--data" or (words[-1:] == ["--data"])
        words.append(option + equals + (value and ("DATA" if data else _without_folder(value))))
    return shlex.join(["python", "-m", f"benchmarks.{script}", *words])


def versions() -> str:
    """Versions of Python and of what is measured."""
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join(found)


def threads() -> str:
    """Threads and cores."""
    return f"{torch.get_num_threads()} threads on {os.cpu_count()} cores ({torch.backends.cpu.get_cpu_capability()})"


def write(text: str, out: Path | None) -> None:
    """Write the page, if a place is given: a table that is checked in is never overwritten by chance."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)


def _cell(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:.2f}" if abs(cell) < 100 else f"{cell:.0f}"
    return str(cell)


def _without_folder(value: str) -> str:
    return Path(value).name if Path(value).is_absolute() else value
