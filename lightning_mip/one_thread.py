"""One thread at a time runs a network at an ``h`` of its own, as all threads share the modules with its weights."""

from __future__ import annotations

import threading

import torch


class OneThread:
    """Counts who holds a network, and refuses it to a second thread.

    Args:
        network: its name, for the error.
    """

    def __init__(self, network: str) -> None:
        self.network = network
        self._holders: list[int] = []

    def enter(self) -> int:
        """Take hold, and return what `leave` wants; RuntimeError if another thread has."""
        thread = threading.get_ident()
        self._holders.append(thread)
        # First among the others, then look: of two threads at once, at least one sees the other. A backward runs in
        # threads of autograd's own, while the one that began it waits.
        if any(other != thread for other in self._holders) and torch._C._current_graph_task_id() == -1:
            self._holders.remove(thread)
            raise RuntimeError(
                f"Another thread runs this {self.network} at an h of its own, in a `with mip.at(...)` block or a "
                "training step; it runs with one h at a time. Use a lock around both, or a copy.deepcopy of the "
                "network, or mip.materialize, for each thread."
            )
        return thread

    def leave(self, thread: int) -> None:
        """Let go; in any order."""
        self._holders.remove(thread)
