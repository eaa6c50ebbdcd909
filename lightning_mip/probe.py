"""Running a training step for a look, without a trace; and what a hook has changed in its module."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning.fabric.utilities.seed import isolate_rng
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_mip.evaluation import LIGHTNINGS

_DEPTH = 4
_ITEMS = 1000


class StepProbe:
    """Runs a module's ``training_step`` on one batch, and leaves module, batch, logs and random numbers as they were.

    Args:
        trainer: that of the run, at this batch.
        module: the LightningModule.
        network: whose outputs are looked at beside the step's loss.
        batch: the batch.
        batch_idx: its index.
    """

    def __init__(self, trainer: Any, module: Any, network: nn.Module, batch: Any, batch_idx: int) -> None:
        self.trainer, self.module, self.network = trainer, module, network
        with_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
        self.arguments = (batch, batch_idx) if with_index else (batch,)

    def run(self) -> list[Tensor] | None:
        """Return the tensors of the step's output and of each output of the network; None if the step fails."""
        seen: list[Any] = []
        with ExitStack() as undo:
            undo.enter_context(isolate_rng())
            undo.enter_context(_unchanged(self.module))
            undo.enter_context(replaced(self.module, dict.fromkeys(("log", "print"), _nothing)))
            undo.callback(setattr, self.trainer, "loggers", self.trainer.loggers)
            self.trainer.loggers = [DummyLogger()]
            hook = self.network.register_forward_hook(lambda module, args, output: seen.append(output))
            undo.callback(hook.remove)
            undo.enter_context(self.trainer.precision_plugin.train_step_context())
            try:
                seen.append(self.module.training_step(*tree_map(_copied, self.arguments)))
            except Exception:  # If it is the module's own, the training's own step raises it again, where it belongs.
                return None
        return [leaf.detach().clone() for leaf in tree_leaves(seen) if isinstance(leaf, Tensor)]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two runs gave the same tensors, bit for bit."""
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@contextmanager
def replaced(module: nn.Module, attributes: Mapping[str, Any]) -> Iterator[None]:
    """Let attributes of the instance hide the module's own inside the block."""
    hidden = {name: module.__dict__[name] for name in attributes if name in module.__dict__}
    module.__dict__.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            module.__dict__.pop(name, None)
        module.__dict__.update(hidden)


def written_to(module: nn.Module) -> dict[str, Any]:
    """Describe all that a step may write to: two descriptions differ at the paths that were written to in between.

    Attributes of the module and of those inside it, of plain objects that they hold, buffers; not parameters.
    """
    found: dict[str, Any] = {}
    for prefix, child in module.named_modules():
        values = {**child._buffers, **{k: v for k, v in vars(child).items() if k not in LIGHTNINGS}}
        found.update({f"{prefix}.{name}".lstrip("."): _describe(value, _DEPTH) for name, value in values.items()})
    return found


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _copied(leaf: Any) -> Any:
    return leaf.detach().clone().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Put back, after the block, the attributes of all modules: what they are bound to, and what is in them."""
    restore = [_restorer(vars(child)) for child in module.modules()]
    try:
        yield
    finally:
        for each in restore:
            each()


def _restorer(value: Any) -> Callable[[], None]:
    """A function that fills ``value`` with what is in it now, at every depth of plain containers."""
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return lambda: _done(value.set_state(state))
    if isinstance(value, Tensor):
        if isinstance(value, nn.Parameter) or value.requires_grad:
            return _nothing
        numbers = value.clone()
        return lambda: _done(value.data.copy_(numbers))
    if not isinstance(value, (dict, list, set, deque)):
        return _nothing
    items = dict(value) if isinstance(value, dict) else list(value)
    inner = [_restorer(item) for item in (items.values() if isinstance(items, dict) else items)]

    def restore() -> None:
        value.clear()
        value.extend(items) if isinstance(value, (list, deque)) else value.update(items)
        for each in inner:
            each()

    return restore


def _done(result: Any) -> None:
    pass


def _describe(value: Any, depth: int) -> Any:
    if isinstance(value, nn.Parameter) or depth == 0:
        return None
    if isinstance(value, Tensor):
        return id(value), value._version if not value.is_inference() else None
    if isinstance(value, (dict, list, set, deque)):
        items = list(value.values() if isinstance(value, dict) else value)[:_ITEMS]
        return id(value), len(value), [_describe(item, depth - 1) for item in items]
    if isinstance(value, (bool, int, float, str, type(None))):
        return repr(value)
    if isinstance(value, nn.Module) or callable(value) or not hasattr(value, "__dict__"):
        return id(value)
    return id(value), {name: _describe(item, depth - 1) for name, item in vars(value).items()}
