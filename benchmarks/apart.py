"""Steps in processes of their own, which wait for their turn.

In one process all steps share the memory allocator, and the large blocks of one decide whether those of another are
kept or given back to the system and page-faulted anew at every step; apart, each is as in a training of its own.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.timing import turn


@contextmanager
def worker(make: Callable[..., tuple[Callable[[], object], Any]], *arguments: Any) -> Iterator[tuple[Any, Any]]:
    """Start a process that has a step; give a function that lets it have a turn, and what was made with the step.

    Args:
        make: a function of a module that returns (step, something to report).
        *arguments: its arguments.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, torch.get_num_threads(), make, arguments), daemon=True)
    process.start()
    there.close()  # so that the end of the process is seen here as the end of the pipe

    def take_turn() -> float:
        here.send(True)
        return here.recv()

    try:
        yield take_turn, here.recv()
    finally:
        here.close()
        process.join(10)
        process.kill()


def _serve(connection: Connection, threads: int, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(threads)
    step, report = make(*arguments)
    connection.send(report)
    try:
        while connection.recv():
            connection.send(turn(step))
    except EOFError:
        return
