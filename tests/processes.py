"""Real processes for the tests, forked from a server that has imported everything: a run of Lightning takes a second.

Each process finds its rank in the environment, as one started by a cluster's launcher does, so a Trainer with
``strategy="ddp"`` in it is one of the ranks.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import time
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

# Lightning's advice, and its own use of what torch 2.13 deprecates.
HARMLESS = (
    "The '.*_dataloader' does not have many workers",
    "Using `DistributedSampler` with the dataloaders",
    "It is recommended to use `self.log\\('val_loss",
    r"`isinstance\(treespec, LeafSpec\)`",
)
_SERVER = multiprocessing.get_context("forkserver")
_IMPORTED = ["lightning_mip", "tests.processes"]


def preload(module: str) -> None:
    """Import a module before the processes are forked; for the one that holds their targets."""
    _IMPORTED.append(module)
    _SERVER.set_forkserver_preload(_IMPORTED)


def quiet() -> None:
    """What pyproject.toml and conftest set up for the tests' own process."""
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.simplefilter("error")
    ignore(*HARMLESS)


def ignore(*messages: str) -> None:
    """Let warnings pass in this process."""
    for message in messages:
        warnings.filterwarnings("ignore", message=message)


def start(ranks: int, target: Callable[..., None], *arguments: Any) -> list[BaseProcess]:
    """Start ``target(*arguments)`` in processes of their own, one for each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [_SERVER.Process(target=_run, args=(rank, port, target, arguments)) for rank in range(ranks)]
    for process in processes:
        process.start()
    return processes  # type: ignore[return-value]


def ended(processes: list[BaseProcess], within: float = 60) -> list[int | None]:
    """Wait for all of them; returns exit codes, -9 of one that was killed."""
    limit = time.monotonic() + within
    for process in processes:
        process.join(max(limit - time.monotonic(), 0))
    late = _stopped(processes)
    assert not late, f"{len(late)} of {len(processes)} processes were still running after {within} s"
    return [process.exitcode for process in processes]


def run(ranks: int, target: Callable[..., None], *arguments: Any, within: float = 60) -> None:
    """Run ``target(*arguments)`` in processes of their own, one for each rank, all of which must succeed."""
    processes, limit = start(ranks, target, *arguments), time.monotonic() + within
    # One that fails may leave the others waiting for it.
    while any(p.is_alive() for p in processes) and not any(p.exitcode for p in processes) and time.monotonic() < limit:
        processes[0].join(0.02)
        time.sleep(0.02)
    late = _stopped(processes)
    assert [process.exitcode for process in processes] == [0] * ranks, f"{len(late)} had to be stopped"


def results(ranks: int, folder: Path, target: Callable[..., None], *arguments: Any) -> list[Any]:
    """Run ``target(folder, *arguments)`` in all processes; returns what each has written, by rank."""
    run(ranks, target, folder, *arguments)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]


def write(folder: Path, found: Any) -> None:
    """Hand something to `results`."""
    torch.save(found, folder / f"rank{os.environ['LOCAL_RANK']}.pt")


def _stopped(processes: list[BaseProcess]) -> list[BaseProcess]:
    """Kill those that still run; returns them."""
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    return late


def _run(rank: int, port: int, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    quiet()
    place = {"LOCAL_RANK": rank, "NODE_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    try:
        target(*arguments)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
