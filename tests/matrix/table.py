"""The table: every row by every column, and the cells that are not simply right, with the reason."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from tests.matrix import network_columns as network
from tests.matrix import plain
from tests.matrix import trainer_columns as training
from tests.matrix.ddp_column import trained_on_two_processes
from tests.matrix.kinds import ROWS, Kind


@dataclass(frozen=True)
class Refused:
    """An error with this whole text."""

    error: type[Exception]
    text: str


@dataclass(frozen=True)
class NotApplicable:
    """Nothing to be right or wrong about: the plain network is no better off, which ``shown_by`` asserts."""

    reason: str
    shown_by: Callable[[Kind], None]


Cell = Refused | NotApplicable | None
Check = Callable[[Kind, Path], None]


def _in_memory(check: Callable[[Kind], Any]) -> Check:
    return lambda kind, folder: check(kind)


COLUMNS: dict[str, Check] = {
    "eager": _in_memory(network.eager),
    "compile": _in_memory(network.compiled),
    "bf16-mixed": functools.partial(training.in_coarse, how="bf16-mixed"),
    "bf16-true": functools.partial(training.in_coarse, how="bf16-true"),
    "64-true": training.in_double,
    "checkpointing": _in_memory(network.recomputed),
    "accumulation": training.accumulated,
    "clipping": training.clipped,
    "forwards": training.several_forwards,
    "LBFGS": training.by_lbfgs,
    "manual": training.manual,
    "EMA": training.averaged,
    "SWA": training.averaged_over_epochs,
    "deepcopy": _in_memory(network.deep_copied),
    "pickle": _in_memory(network.pickled),
    "resume": training.resumed,
    "materialize": _in_memory(network.materialized),
    "export": network.exported,
    "per sample": _in_memory(network.per_sample),
    "DDP": _in_memory(trained_on_two_processes),
}


def _vmap(network: str) -> Refused:
    return Refused(
        RuntimeError,
        f"torch.vmap, by which per_sample=True runs {network}, failed on it for the reason above; use draws_per_batch "
        "instead of per_sample.",
    )


_RECURRENT = Refused(
    ValueError,
    "per_sample=True cannot run the recurrent layer at the root, as torch.vmap has no rule for it; use draws_per_batch "
    "instead of per_sample.",
)
_UNCOPIED = NotApplicable("torch cannot copy it: its `weight` is a computed tensor", plain.cannot_be_copied)
_UNPICKLED = NotApplicable("torch saves parametrized modules only as a state_dict", plain.cannot_be_pickled)
_REWRITTEN = NotApplicable(
    "running it again is another run in plain PyTorch, too: it writes to its buffers",
    plain.is_another_network_when_recomputed,
)

# By row and column; "*" for every column.
EXCEPTIONS: dict[tuple[str, str], Refused | NotApplicable] = {
    ("scripted", "*"): Refused(
        TypeError,
        "1.weight belongs to a scripted module, whose weights are fixed; exclude='1.weight' leaves it out.",
    ),
    ("complex", "*"): Refused(
        TypeError, "filter has dtype torch.complex64, which cannot be generated; exclude='filter' leaves it out."
    ),
    ("lazy", "*"): Refused(
        TypeError, "0.weight of the lazy LazyLinear has no shape yet; run the network once on a batch first."
    ),
    # As a child of the module that runs it again.
    ("scripted", "checkpointing"): Refused(
        TypeError,
        "net.1.weight belongs to a scripted module, whose weights are fixed; exclude='net.1.weight' leaves it out.",
    ),
    ("complex", "checkpointing"): Refused(
        TypeError,
        "net.filter has dtype torch.complex64, which cannot be generated; exclude='net.filter' leaves it out.",
    ),
    ("lazy", "checkpointing"): Refused(
        TypeError, "net.0.weight of the lazy LazyLinear has no shape yet; run the network once on a batch first."
    ),
    ("batch_norm", "per sample"): Refused(
        ValueError,
        "per_sample=True runs each sample alone, but the BatchNorm layer 1 takes statistics over the batch; use "
        "GroupNorm or LayerNorm, or draws_per_batch instead of per_sample.",
    ),
    ("sparse_embedding", "per sample"): Refused(
        ValueError,
        "per_sample=True cannot train the sparse embedding layer at the root, as torch.vmap has no rule for its "
        "gradient; build it with sparse=False, or use draws_per_batch instead of per_sample.",
    ),
    ("lstm", "per sample"): _RECURRENT,
    ("gru", "per sample"): _RECURRENT,
    ("checkpoint", "per sample"): Refused(
        RuntimeError,
        "per_sample=True cannot run a network with activation checkpointing (or other hooks on saved tensors); switch "
        "it off in the network, or use draws_per_batch instead of per_sample.",
    ),
    ("checkpoint_reentrant", "per sample"): _vmap("Checkpointed"),
    ("spectral_norm_hook", "per sample"): _vmap("Linear"),
    ("nested_hypernetwork", "per sample"): _vmap("HyperNetwork"),
    ("quantization_aware", "per sample"): _vmap("Sequential"),
    ("buffers", "per sample"): _vmap("Buffered"),
    ("buffers_replaced", "per sample"): Refused(
        ValueError,
        "per_sample=True runs each sample alone, but the network replaces its buffer mean when it runs, which cannot "
        "hold a value for every sample; use draws_per_batch instead of per_sample.",
    ),
    ("attention", "per sample"): NotApplicable(
        "its samples are the second dimension; see the row with the batch first", plain.has_samples_second
    ),
    ("sparse_embedding", "DDP"): Refused(
        MisconfigurationException,
        "weight is of a sparse embedding, whose gradient DDP expects to be sparse, but it is generated, and gradients "
        "of generated weights are dense; build it with sparse=False, or exclude='weight'.",
    ),
    ("checkpoint_reentrant", "DDP"): Refused(
        RuntimeError,
        "Activation checkpointing with use_reentrant=True runs a backward for each of its parts, and several processes "
        "would average the gradients of the hypernetwork before the last of them; use use_reentrant=False, or one "
        "process.",
    ),
    ("spectral_norm_hook", "checkpointing"): _REWRITTEN,
    ("quantization_aware", "checkpointing"): _REWRITTEN,
    ("quantization_aware", "export"): NotApplicable(
        "a program of it, read back from its file, resizes buffers, which torch refuses",
        plain.cannot_run_once_exported,
    ),
    ("deep", "bf16-true"): NotApplicable(
        "bfloat16 rounds as much in the plain network of so many layers", plain.rounds_as_much
    ),
    ("buffers", "checkpointing"): _REWRITTEN,
    ("buffers_replaced", "checkpointing"): _REWRITTEN,
    ("quantization_aware", "bf16-mixed"): NotApplicable(
        "torch quantizes float32 only", plain.cannot_run_under_autocast
    ),
    ("quantization_aware", "bf16-true"): NotApplicable(
        "torch quantizes float32 only", plain.cannot_run_in(torch.bfloat16)
    ),
    ("quantization_aware", "64-true"): NotApplicable(
        "torch quantizes float32 only", plain.cannot_run_in(torch.float64)
    ),
    ("quantization_aware", "EMA"): NotApplicable(
        "torch cannot average buffers whose shape changes", plain.cannot_be_averaged
    ),
    ("quantization_aware", "pickle"): NotApplicable("torch cannot pickle its observers", plain.cannot_be_pickled),
    ("complex_excluded", "bf16-true"): NotApplicable(
        "torch drops the imaginary part, with a warning", plain.loses_what_is_imaginary
    ),
    ("batch_norm", "SWA"): NotApplicable(
        "after its pass for running statistics, Lightning's SWA moves the weights away from the mean",
        plain.is_trained_on_after_the_mean,
    ),
    ("weight_norm_hook", "deepcopy"): _UNCOPIED,
    ("weight_norm_hook", "EMA"): _UNCOPIED,
    ("weight_norm_hook", "SWA"): _UNCOPIED,
    ("weight_norm", "pickle"): _UNPICKLED,
    ("spectral_norm", "pickle"): _UNPICKLED,
    ("parametrized", "pickle"): _UNPICKLED,
    ("scripted_excluded", "pickle"): NotApplicable("torch cannot pickle scripted modules", plain.cannot_be_pickled),
    ("scripted_excluded", "export"): NotApplicable("torch cannot export scripted modules", plain.cannot_be_exported),
    ("scripted_excluded", "deepcopy"): NotApplicable(
        "torch copies scripted modules as something that is not trained", plain.is_not_trained_in_a_copy
    ),
}


def cell(row: str, column: str) -> Cell:
    """What is declared of a cell; None for right."""
    return EXCEPTIONS.get((row, column)) or EXCEPTIONS.get((row, "*"))


def status(row: str, column: str) -> str:
    """``right``, ``refused`` or ``not applicable``."""
    names = {Refused: "refused", NotApplicable: "not applicable"}
    return names.get(type(cell(row, column)), "right")


def counts() -> dict[str, int]:
    """How many cells there are of each status."""
    return dict(Counter(status(row, column) for row in ROWS for column in COLUMNS))


__all__ = ["COLUMNS", "EXCEPTIONS", "ROWS", "Cell", "NotApplicable", "Refused", "cell", "counts", "status"]
