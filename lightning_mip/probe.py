"""Running a training step for a look, without a trace; and what a hook has written to in its module."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.utils._pytree import tree_leaves, tree_map
from torchmetrics import Metric

from lightning_mip.apart import NOT_THE_AUTHORS, registered_metrics
from lightning_mip.contents import is_kept, items_of
from lightning_mip.copies import fields_of, is_numpy

# How deep, how many items of each container, and in arrays of how many bytes a description looks.
_DEPTH, _ITEMS, _BYTES = 4, 1000, 2**20


class StepProbe:
    """Runs a module's ``training_step`` on one batch, and leaves module, batch, logs and random numbers as they were.

    That holds for tensors, generators and plain containers in the module and the modules in it. What else a step uses
    up or writes to keeps a trace: an iterator is one item further for each run, and an object of the author's own, a
    file or a service has seen the runs.

    Args:
        trainer: that of the run, at this batch.
        module: the LightningModule.
        network: whose outputs are looked at beside the step's.
        batch: the batch.
        batch_idx: its index.
    """

    def __init__(self, trainer: Any, module: Any, network: nn.Module, batch: Any, batch_idx: int) -> None:
        self.trainer, self.module, self.network = trainer, module, network
        indexed = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
        self.arguments = (batch, batch_idx) if indexed else (batch,)

    def run(self) -> list[Tensor]:
        """Return the tensors of the step's output and of each output of the network; none if the step fails."""
        seen: list[Any] = []
        with ExitStack() as undo:
            undo.enter_context(isolate_rng())
            undo.enter_context(_unchanged(self.module))
            undo.enter_context(replaced(self.module, {"log": _nothing, "print": _nothing}))
            undo.callback(setattr, self.trainer, "loggers", self.trainer.loggers)
            self.trainer.loggers = [DummyLogger()]
            hook = self.network.register_forward_hook(lambda module, args, output: seen.append(output))
            undo.callback(hook.remove)
            undo.enter_context(self.trainer.precision_plugin.train_step_context())
            try:
                seen.append(self.module.training_step(*tree_map(_copied, self.arguments)))
            except Exception:
                # An error of the module's own comes again in training, where it belongs.
                seen.clear()
        # A transform of torch.func wraps what the network sees in it, which ends with it.
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor
        tensors = [leaf for leaf in tree_leaves(seen) if isinstance(leaf, Tensor) and not wrapped(leaf)]
        return [tensor.detach().clone() for tensor in tensors]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two runs gave the same tensors, bit for bit."""
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@contextmanager
def replaced(module: nn.Module, attributes: Mapping[str, Any]) -> Iterator[None]:
    """Let attributes of the instance hide those of its class, or its own, inside the block."""
    hidden = {name: module.__dict__[name] for name in attributes if name in module.__dict__}
    module.__dict__.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            module.__dict__.pop(name, None)
        module.__dict__.update(hidden)


def written_to(module: nn.Module, network: nn.Module, *, apart: bool = False) -> dict[Any, Any]:
    """Describe what a step may write to: descriptions made before and after it differ at the paths it wrote to.

    Those are attributes and buffers of the module and of the modules in it, metrics included, and of plain objects that
    they hold; not parameters, and nothing in ``network``.

    Args:
        module: the LightningModule.
        network: the network in it.
        apart: leave out what a grid of ``h`` keeps apart; keys are then (path, id of an object), and only what is there
            before and after tells.
    """
    inside = {id(child) for child in network.modules()}
    if apart:
        inside |= {id(part) for _, metric in registered_metrics(module) for part in metric.modules()}
    found: dict[Any, Any] = {}
    for prefix, child in module.named_modules():
        if id(child) not in inside:
            own = {name: value for name, value in vars(child).items() if name not in NOT_THE_AUTHORS}
            described = child._buffers if apart and child is module else {**child._buffers, **own}
            for name, value in described.items():
                path = f"{prefix}.{name}" if prefix else name
                found[(path, 0) if apart else path] = _description(value, _DEPTH)
            for name, value in own.items() if described is child._buffers else ():
                found |= {(name, id(each)): _description(each, _DEPTH) for each in _not_apart(value)}
    return found


def _not_apart(value: Any) -> Iterator[Any]:
    """The objects in an attribute that a grid of ``h`` does not keep apart."""
    if isinstance(value, (bool, int, float, str, type(None), Metric)):
        return
    if isinstance(value, tuple) or (is_kept(value) and not isinstance(value, Tensor)):
        for item in items_of(value):
            yield from _not_apart(item)
    elif not is_kept(value):
        yield value


@contextmanager
def watch(module: nn.Module, network: nn.Module) -> Iterator[None]:
    """Warn if a step that runs at every ``h`` of a grid writes to what the grid cannot keep apart."""
    before = written_to(module, network, apart=True)
    yield
    after = written_to(module, network, apart=True)
    mixed = list(dict.fromkeys(key[0] for key in after if key in before and after[key] != before[key]))
    if mixed:
        rank_zero_warn(
            f"The step writes to {', '.join(mixed)}, which the grid of h cannot keep apart, so what is computed from "
            "it mixes all h. Keep it in a torchmetrics object, or in a list, dict or tensor that is an attribute of "
            "the LightningModule; or evaluate at one h alone (eval='center' of Hypernetize, one value as eval_grid)."
        )


@contextmanager
def parameters_kept(module: nn.Module, hook: str) -> Iterator[None]:
    """Raise RuntimeError if a hook that runs at every ``h`` of a grid changes parameters, as weight averaging may."""
    before = sums(module.parameters())
    yield
    if sums(module.parameters()) != before:
        stage = hook.removeprefix("on_").partition("_")[0]
        raise RuntimeError(
            f"{hook} changes parameters of {type(module).__name__}, but it runs once for every h of the grid; change "
            f"them in on_{stage}_start and back in on_{stage}_end, which run once."
        )


def sums(parameters: Iterable[Tensor]) -> list[float]:
    """A number for each parameter that is real and has its shape, by which to see that it has changed."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for parameter in parameters:
        if not isinstance(parameter, UninitializedParameter) and not parameter.is_complex():
            precise = torch.float32 if parameter.device.type == "mps" else torch.float64
            by_device.setdefault(parameter.device, []).append(parameter.detach().sum(dtype=precise))
    return [number for own in by_device.values() for number in torch.stack(own).tolist()]


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stands in for ``log`` and ``print``, of which a look leaves none, and for what has nothing to put back."""


# Not `batches.copied`: no graph goes through a look, and objects of the author's own, which that shares, are copied.
def _copied(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)
    return copy.deepcopy(leaf)


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Put back, after the block, the attributes of all modules: what they are bound to, and what is in them."""
    restorers = [_restorer(vars(child)) for child in module.modules()]
    try:
        yield
    finally:
        for restore in restorers:
            restore()


def _restorer(value: Any) -> Callable[[], object]:
    """A function that puts back into ``value`` what is in it now, at every depth of plain containers."""
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return lambda: value.set_state(state)
    if isinstance(value, nn.Parameter):
        return _nothing if isinstance(value, UninitializedParameter) else _restorer_of_parameter(value)
    if isinstance(value, Tensor) and not value.requires_grad:
        numbers = value.clone()
        return lambda: value.data.copy_(numbers)
    if not isinstance(value, (dict, list, tuple, set, deque)):
        return _nothing
    items = copy.copy(value)
    inner = [_restorer(item) for item in (items.values() if isinstance(items, dict) else items)]

    def restore() -> None:
        if not isinstance(value, tuple):
            value.clear()
            value.extend(items) if isinstance(value, (list, deque)) else value.update(items)
        for each in inner:
            each()

    return restore


def _restorer_of_parameter(parameter: nn.Parameter) -> Callable[[], object]:
    """A step may move one that no optimizer has, such as those of a momentum encoder."""
    data, numbers = parameter.data, parameter.detach().clone()

    def restore() -> None:
        parameter.data = data  # a step may have put another tensor in its place
        if not torch.equal(parameter, numbers):
            with torch.no_grad():
                parameter.copy_(numbers)

    return restore


def _description(value: Any, depth: int) -> Any:
    if depth == 0 or isinstance(value, nn.Parameter):
        return None
    if isinstance(value, (bool, int, float, str, type(None))):
        return repr(value)
    if isinstance(value, Tensor):
        return id(value), None if value.is_inference() else value._version
    if isinstance(value, (dict, list, tuple, set, deque)):
        items = list(value.values() if isinstance(value, dict) else value)[:_ITEMS]
        return id(value), len(value), [_description(item, depth - 1) for item in items]
    if is_numpy(value):
        return id(value), hash(value.tobytes()) if value.nbytes <= _BYTES else None
    if isinstance(value, nn.Module):
        metrics = [part for part in value.modules() if isinstance(part, Metric)]
        return id(value), [_description(vars(metric), depth - 1) for metric in metrics]
    if callable(value) or _of_lightning(value):
        return id(value)
    return id(value), {name: _description(item, depth - 1) for name, item in fields_of(value).items()}


def _of_lightning(value: Any) -> bool:
    """Whether it is a data module, logger or the like, which change with every batch."""
    return any(base.__module__.startswith(("lightning.", "pytorch_lightning.")) for base in type(value).__mro__)
