"""One thread at a time runs a network at an ``h`` of its own, as all threads share the modules with its weights."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class OneThread:
    """Counts who holds a network, and refuses it to a second thread.

    Args:
        network: its name, for the error.
    """

    def __init__(self, network: str) -> None:
        self.network = network
        self._holders: list[int] = []
        # Reentrant, as a garbage collection inside may end a block.
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is of a network that nobody holds."""
        return OneThread, (self.network,)

    def enter(self) -> int:
        """Take hold, and return what `leave` wants; RuntimeError if another thread has."""
        thread = threading.get_ident()
        with self.free():
            self._holders.append(thread)
        return thread

    def leave(self, thread: int) -> None:
        """Let go; in any order."""
        self._holders.remove(thread)

    @contextmanager
    def free(self) -> Iterator[None]:
        """Let no other thread take hold inside the block; RuntimeError if one has."""
        with self._lock:
            self.check()
            yield

    def check(self) -> None:
        """Raise RuntimeError if another thread has hold; without the lock, as each layer asks."""
        thread = threading.get_ident()
        for holder in self._holders:
            # A backward runs in threads of autograd's own, while the one that began it waits.
            if holder != thread and torch._C._current_graph_task_id() == -1:
                raise RuntimeError(
                    f"Another thread runs this {self.network} at an h of its own, in a `with mip.at(...)` block, a "
                    "training step or mip.materialize; it runs with one h at a time. Use a lock around both, or give "
                    "each thread a network of its own before the threads begin: copy.deepcopy(network) or "
                    "mip.materialize(network, h)."
                )
