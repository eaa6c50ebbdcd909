"""The DDP column: two processes train every kind; each writes what came of it to ``<folder>/rank<r>.pt``.

Lightning starts this program again for the second process: ``python ddp_program.py <folder>``.
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.matrix.kinds import ROWS, Kind
from tests.matrix.subject import ByHand, value
from tests.matrix.trainer_columns import assert_trained, batches_of, drawn, loader, model_of, precision, sgd, trainer

RANKS, STEPS = 2, 2


class Buffers:
    """The buffers of one process: before each forward, DDP replaces them by those of rank 0."""

    def __init__(self, net: nn.Module) -> None:
        self.places = [(child._buffers, name) for child in net.modules() for name, _ in child._buffers.items()]
        self.take()

    def install(self, first: list[Tensor | None]) -> None:
        for (buffers, name), buffer in zip(self.places, first, strict=True):
            buffers[name] = _copy(buffer)

    def take(self) -> None:
        self.own = [buffers[name] for buffers, name in self.places]


def _copy(buffer: Tensor | None) -> Tensor | None:
    return None if buffer is None else buffer.clone()


def mean_over_ranks(model: Any, reference: ByHand, batches: list[Any]) -> list[Tensor]:
    """Train the reference on the mean of the losses of both processes, each with its own h and batch."""
    trained = [p for p in reference.parameters if p.requires_grad]
    optimizer = sgd(trained)
    ranks = [Buffers(reference.net) for _ in range(RANKS)]
    for step in range(STEPS):
        optimizer.zero_grad()
        first = ranks[0].own
        for rank, buffers in enumerate(ranks):
            buffers.install(first)
            loss = value(reference(*batches[RANKS * step + rank], lam=drawn(model, step, rank)))
            (loss / RANKS).backward()
            buffers.take()
        optimizer.step()
    return [p.detach() for p in reference.parameters]


def cell(kind: Kind, folder: Path) -> None:
    model, reference = model_of(kind)
    batches = batches_of(kind, RANKS * STEPS)
    start = [p.detach().clone() for p in reference.parameters]
    expected = mean_over_ranks(model, reference, batches)
    runner = trainer(folder, devices=RANKS, strategy="ddp", precision=precision(kind), use_distributed_sampler=False)
    runner.fit(model, loader(batches[runner.global_rank :: RANKS]))
    assert_trained(model, start, expected, kind)


def main(folder: Path) -> None:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.simplefilter("ignore")  # here it is about values; the other columns make errors of warnings
    seen: dict[str, list[str]] = {}
    for row, kind in ROWS.items():
        try:
            cell(kind, folder)
        except Exception as error:
            seen[row] = [type(error).__name__, str(error)]
    rank = torch.distributed.get_rank()
    torch.save(seen, folder / f"rank{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
