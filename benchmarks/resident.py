"""Memory of this process, and that of a plain training in a process that has imported torch alone.

    python -m benchmarks.resident '{"name": "conv", "fused": true, "steps": 5, "batch_size": null, "threads": 2}'

Imports of this package load parts of torch that such a training loads with its first optimizer and step; what counts as
memory of the training depends on where one starts to count, and this is the start that leaves nothing of torch out.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import torch


def resident(peak: bool) -> float:
    """MiB of this process: its peak, or what it holds now.

    From /proc where there is one: getrusage's peak begins with that of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM" if peak else "VmRSS"].split()[0]) / 2**10
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / 2 ** (20 if sys.platform == "darwin" else 10)


def train_plain(name: str, fused: bool, steps: int, batch_size: int | None, threads: int) -> float:
    """Train a primary network by Adam; MiB at the peak less those after the import of torch."""
    imports = resident(peak=False)
    from benchmarks.primaries import PRIMARIES

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    primary = PRIMARIES[name]
    net = primary.make()
    optimizer = torch.optim.Adam(net.parameters(), fused=fused)
    batch = primary.batch(batch_size)
    for _ in range(steps):
        optimizer.zero_grad()
        primary.loss(net(batch[0]), batch[1]).backward()
        optimizer.step()
    return resident(peak=True) - imports


if __name__ == "__main__":
    print(train_plain(**json.loads(sys.argv[1])))
