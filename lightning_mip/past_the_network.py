"""Whether a loss reads the parameters of a network itself, which are theta0, and not the weights that it runs with."""

from __future__ import annotations

from collections import deque
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_mip.generation import Generate, Part
from lightning_mip.injection import Injector
from lightning_mip.selection import listing

_MOST = 4000  # nodes; torch frees a far longer chain of nodes that were looked at by recursion, and so crashes
# Generation reads theta0 as it should; what was compiled may hold a generation.
_GENERATION = (f"{Generate.__name__}Backward", f"{Part.__name__}Backward", "CompiledFunctionBackward")


def warn_of_theta0_read(loss: Tensor, injector: Injector, path: str) -> None:
    """Warn of a loss that depends on theta0 past what is generated, as one with a penalty on ``parameters()`` does.

    Args:
        loss: of a training step, with its graph.
        injector: of the network.
        path: of the network in the module.
    """
    read = _parameters_of(loss)
    names = [name for name, parameter in injector.slots.theta0().items() if id(parameter) in read]
    if names:
        rank_zero_warn(
            f"The loss reads parameters of {path!r} themselves ({listing(names)}): they are theta0, without the part "
            "that depends on h, which a penalty on them leaves free. Read the weights as attributes of their layers, "
            "which hold those of the current h: layer.weight for layer in the network's modules(), not parameters()."
        )


def _parameters_of(loss: Tensor) -> set[int]:
    """Ids of the tensors that the graph of a loss begins with, but for those behind a generation, nearest first."""
    nodes: deque[Any] = deque([loss.grad_fn])
    seen, found = set[Any](), set[int]()
    while nodes and len(seen) < _MOST:
        node = nodes.popleft()
        if node is None or node in seen or node.name() in _GENERATION:
            continue
        seen.add(node)
        found.add(id(getattr(node, "variable", None)))
        nodes.extend(following for following, _ in node.next_functions)
    return found
