"""Programs of a plain network: torch.export and ONNX files, and running them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils._pytree import tree_leaves, tree_map

Inputs = tuple[tuple[Any, ...], Mapping[str, Any]]
Run = Callable[..., Any]

# Above this, an ONNX file (a protocol buffer, of at most 2 GiB) keeps its weights in a file beside it.
_ONE_FILE = 3 * 2**29


def write_torch_export(network: nn.Module, inputs: Inputs, path: Path) -> Run:
    """Write a program for ``torch.export.load(path).module()``; returns what the file gives."""
    with _quiet():
        # Written through a handle, as `save` objects to a suffix other than .pt2.
        with path.open("wb") as file:
            torch.export.save(program(network, inputs), file)
        with path.open("rb") as file:
            loaded = torch.export.load(file)
        run: Run = loaded.module()
    return run


def write_onnx(network: nn.Module, inputs: Inputs, path: Path) -> Run:
    """Write an ONNX file; returns a function that runs it in onnxruntime.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not there.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "format='onnx' needs onnx, onnxscript and onnxruntime: pip install 'lightning-mip[onnx]'."
        ) from error
    large = sum(tensor.nbytes for tensor in network.state_dict().values()) > _ONE_FILE
    args, kwargs = inputs
    with _quiet():
        torch.onnx.export(
            program(network, inputs), args, path, kwargs=dict(kwargs), dynamo=True, external_data=large, verbose=False
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*args: Any, **kwargs: Any) -> list[Tensor]:
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        given = {name: leaf.detach().cpu().numpy() for name, leaf in zip(names, leaves, strict=True)}
        return [torch.as_tensor(output) for output in session.run(None, given)]

    return run


def program(network: nn.Module, inputs: Inputs) -> ExportedProgram:
    """Trace a network on example inputs, for any batch size where the network allows it."""
    args, kwargs = tree_map(_at_least_two, inputs)
    free = ShapesCollection()
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor) and leaf.ndim:
            free[leaf] = {0: Dim.AUTO}
    try:
        return torch.export.export(network, args, dict(kwargs), dynamic_shapes=free)  # type: ignore[arg-type]
    except Exception:  # what cannot have a free dimension may still be traced for this one
        return torch.export.export(network, inputs[0], dict(inputs[1]))


def only_batch_size(run: Run, inputs: Inputs) -> int | None:
    """The one batch size that a program takes; None for one that takes others, too, or has no batches."""
    sizes = {len(leaf) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim}
    if len(sizes) != 1:
        return None
    args, kwargs = tree_map(_longer, inputs)
    try:
        run(*args, **kwargs)
    except Exception:  # the question is whether it runs; each runtime says no in its own way
        return sizes.pop()
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what exporters say about their own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _at_least_two(leaf: Any) -> Any:
    """A dimension of size 1 would be traced as a constant."""
    return torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == 1 else leaf


def _longer(leaf: Any) -> Any:
    return torch.cat([leaf, leaf, leaf]) if isinstance(leaf, Tensor) and leaf.ndim else leaf
