"""Wrappers around the steps of a `HyperLightningModule`, which its users write once, for one ``h``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import lightning as L
import torch
from torch import Tensor

from lightning_mip.batches import copied, split_batch
from lightning_mip.callbacks.sample_h import SampleH, SampleHInSearch
from lightning_mip.checkpoints import GIVEN_AGAIN
from lightning_mip.logged import result_of
from lightning_mip.probe import parameters_kept, replaced, watch
from lightning_mip.wrapping import wraps

if TYPE_CHECKING:
    from lightning_mip.module import HyperLightningModule

_Method = TypeVar("_Method", bound=Callable[..., Any])


def on_draws(step: _Method) -> _Method:
    """Run the user's step once, or once per draw on a part of the batch."""

    @wraps(step)
    def run(self: HyperLightningModule, batch: Any, *args: Any, **kwargs: Any) -> Any:
        draws = self._draws
        if len(draws) < 2 or self._injector.active:
            return step(self, batch, *args, **kwargs)
        outputs, losses, sizes = [], [], []
        self._draw_losses = []
        logs = _DrawLogs(self)
        parts = split_batch(batch, len(draws))
        compiling = torch.compiler.is_compiling()
        kept: Iterable[Any] = [None] * len(draws) if compiling else self._injector.generate(draws)
        for draw, (h, (part, size), own) in enumerate(zip(draws, parts, kept, strict=True)):
            with self._injector.at(h, own), replaced(self, {"log": functools.partial(logs.log, draw, size)}):
                output = step(self, part, *args, **kwargs)
                loss = output["loss"] if isinstance(output, Mapping) else output
                if loss is not None:
                    self._injector.keep_for_backward(loss)
                    self._draw_losses.append((loss.detach(), h))
                    outputs.append(output)
                    losses.append(loss * size)
                    sizes.append(size)
        logs.log_means()
        mean = sum(losses) / sum(sizes) if losses else None
        in_dicts = outputs and all(isinstance(output, Mapping) for output in outputs)
        return {**_joined(outputs, sizes), "loss": mean} if in_dicts else mean

    return run  # type: ignore[return-value]


def _joined(outputs: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> dict[str, Any]:
    """The outputs of the parts as one: tensors of all their samples, and what else the last part has returned."""

    def join(name: str, last: Any) -> Any:
        parts: list[Any] = [output.get(name) for output in outputs]
        shapes = [getattr(part, "shape", None) for part in parts]
        whole = isinstance(last, Tensor) and last.ndim and shapes == [(size, *last.shape[1:]) for size in sizes]
        return torch.cat(parts) if whole else last

    return {name: join(name, last) for name, last in outputs[-1].items()}


class _DrawLogs:
    """Stands in for ``module.log`` of the parts of a batch: each weighs by its samples."""

    def __init__(self, module: HyperLightningModule) -> None:
        self.module, self._log = module, module.log
        self.steps: dict[str, dict[int, tuple[Any, int]]] = {}

    def log(self, draw: int, size: int, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        kwargs["batch_size"] = kwargs.get("batch_size") or size
        self._log(name, value, *args, **kwargs)
        result = result_of(self.module, name)
        if result is not None and result.is_tensor and result.meta.on_step:
            self.steps.setdefault(name, {})[draw] = result._forward_cache, size

    def log_means(self) -> None:
        """Give the step the mean over its samples, instead of what the last part has logged."""
        for name, parts in self.steps.items():
            total = sum(size for _, size in parts.values())
            result_of(self.module, name)._forward_cache = sum(value * (size / total) for value, size in parts.values())


def on_grid(step: _Method) -> _Method:
    """Run the user's hook at every ``h`` of the grid, or at the batch's own ``h``."""

    @wraps(step)
    def run(self: HyperLightningModule, *args: Any, **kwargs: Any) -> Any:
        evaluation = self._evaluation
        if evaluation is None or evaluation.active:
            with _at_own_h(self, *args):
                return step(self, *args, **kwargs)
        name = step.__name__
        watched = name.endswith("_step") and not evaluation.watched
        evaluation.watched |= watched
        guard = watch(self, self.primary) if watched else nullcontext()
        with parameters_kept(self, name) if "_epoch_" in name else guard:
            return evaluation.run(functools.partial(step, self), *args, **kwargs)

    return run  # type: ignore[return-value]


def on_outputs_of_grid(hook: _Method) -> _Method:
    """Run the user's ``on_*_batch_end`` like the step before it, with the output of each ``h``."""

    @wraps(hook)
    def run(self: HyperLightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> None:
        evaluation = self._evaluation
        if evaluation is None or evaluation.active:
            with _at_own_h(self, batch):
                hook(self, outputs, batch, *args, **kwargs)
            return
        each = iter(outputs)
        evaluation.run(lambda *own, **named: hook(self, next(each), *own, **named), batch, *args, **kwargs)

    return run  # type: ignore[return-value]


def at_predict_h(step: _Method) -> _Method:
    """Run the user's step at ``predict_h``."""

    @wraps(step)
    def run(self: HyperLightningModule, batch: Any, *args: Any, **kwargs: Any) -> Any:
        if self._injector.active:  # called by another step, or by hand inside `at`
            return step(self, batch, *args, **kwargs)
        if self.h_from_batch is not None:
            with self._batch_at(self.batch_h(batch)):
                return step(self, batch, *args, **kwargs)
        if self.predict_h == "grid":
            outputs = {}
            for h in self._grid:
                own = batch if h is self._grid[-1] else copied(batch)
                with self._injector.at(h):
                    outputs[self.space.label(h)] = step(self, own, *args, **kwargs)
            return outputs
        with self._injector.at(self.space.center() if self.predict_h is None else self.predict_h):
            return step(self, batch, *args, **kwargs)

    return run  # type: ignore[return-value]


def with_sampler(configure_callbacks: _Method) -> _Method:
    """Add `SampleH` to what the user's hook returns, unless the user gave one there or to the Trainer."""

    @wraps(configure_callbacks)
    def run(self: HyperLightningModule) -> list[L.Callback]:
        found = configure_callbacks(self)
        callbacks = [callback for callback in _listed(found) if callback is not self._sampler]
        there: list[L.Callback] = [*self.trainer.callbacks, *callbacks]  # type: ignore[attr-defined]
        return callbacks if any(isinstance(callback, SampleH) for callback in there) else [*callbacks, self._sampler]

    return run  # type: ignore[return-value]


def with_draws(on_train_start: _Method) -> _Method:
    """Draw ``h`` also in the searches of Lightning that train without the callbacks of the Trainer."""

    @wraps(on_train_start)
    def run(self: HyperLightningModule) -> None:
        trainer: Any = self.trainer
        if not any(isinstance(callback, SampleH) for callback in trainer.callbacks):
            sampler = SampleHInSearch()
            sampler.on_fit_start(trainer, self)
            trainer.callbacks = [*trainer.callbacks, sampler]  # a search puts the others back when it ends
        on_train_start(self)

    return run  # type: ignore[return-value]


def noting_given_again(on_save_checkpoint: _Method) -> _Method:
    """Note what a checkpoint cannot hold and evaluation needs."""

    @wraps(on_save_checkpoint)
    def run(self: HyperLightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[GIVEN_AGAIN] = ["h_from_batch"] if callable(self.h_from_batch) else []
        on_save_checkpoint(self, checkpoint)

    return run  # type: ignore[return-value]


def asking_for_given_again(on_load_checkpoint: _Method) -> _Method:
    """Ask for what the checkpoint could not hold, where it is not given again."""

    @wraps(on_load_checkpoint)
    def run(self: HyperLightningModule, checkpoint: dict[str, Any]) -> None:
        on_load_checkpoint(self, checkpoint)
        if "h_from_batch" in checkpoint.get(GIVEN_AGAIN, []) and self.h_from_batch is None:
            raise ValueError(
                "The checkpoint is of a module with a function as h_from_batch, which no checkpoint holds; give it "
                "again: load_from_checkpoint(path, h_from_batch=...)."
            )

    return run  # type: ignore[return-value]


# What HyperLightningModule does to the methods that a subclass writes.
WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "training_step": on_draws,
    "validation_step": on_grid,
    "test_step": on_grid,
    "on_validation_epoch_start": on_grid,
    "on_validation_epoch_end": on_grid,
    "on_test_epoch_start": on_grid,
    "on_test_epoch_end": on_grid,
    "on_validation_batch_start": on_grid,
    "on_validation_batch_end": on_outputs_of_grid,
    "on_test_batch_start": on_grid,
    "on_test_batch_end": on_outputs_of_grid,
    "predict_step": at_predict_h,
    "configure_callbacks": with_sampler,
    "on_train_start": with_draws,
    "on_save_checkpoint": noting_given_again,
    "on_load_checkpoint": asking_for_given_again,
}


# Attribute of a wrapped step that is the step itself; on another one it is a copy, by functools.wraps.
_OWN = "_lightning_mip_step"


def wrap_steps(kind: type, base: type) -> None:
    """Wrap the steps that a subclass of ``base`` or a mix-in of it writes, so that each runs at the right ``h``."""
    for name, wrapper in WRAPPERS.items():
        owner = next(each for each in kind.__mro__ if name in each.__dict__)
        step = owner.__dict__[name]
        if owner is not base and owner not in L.LightningModule.__mro__ and getattr(step, _OWN, None) is not step:
            wrapped = wrapper(step)
            setattr(wrapped, _OWN, wrapped)
            setattr(kind, name, wrapped)


# What SampleH calls in a run, by names that somebody might give to a method of his own.
_OF_A_RUN = (
    "start_batch",
    "end_batch",
    "release_h",
    "start_evaluation",
    "end_evaluation",
    "check_finite",
    "check_used",
)


def check_names(kind: type, base: type) -> None:
    """Raise TypeError for a method of a subclass that would take the place of one that a run needs."""
    name = next((name for name in _OF_A_RUN if getattr(kind, name) is not getattr(base, name)), None)
    if name is not None:
        raise TypeError(
            f"{kind.__name__} has a method {name} of its own, but {base.__name__} has one of that name, which SampleH "
            "calls in training and evaluation; give yours another name."
        )


def check_own_steps(module: Any) -> None:
    """Raise AttributeError for a step that is an attribute of the instance, where nothing wraps it."""
    # What runs a step of the class, compiled or in a wrapper, is right, as is one that runs at the one h of a batch.
    right = {"training_step"} if module.draws_per_batch == 1 else set()
    right |= {"configure_callbacks", "on_train_start", "on_save_checkpoint", "on_load_checkpoint"}
    found = {name: _inside(vars(module)[name]) for name in WRAPPERS if name in vars(module) and name not in right}
    of_class = (_OWN, "_torchdynamo_orig_callable")
    name = next((name for name, step in found.items() if not any(hasattr(step, mark) for mark in of_class)), None)
    if name is not None:
        kind = type(module).__name__
        raise AttributeError(
            f"{name} is set on this instance of {kind}, where it would run at no h of its own; set it on the class, "
            f"{kind}.{name} = ..., or write it in a subclass."
        )


def _inside(step: Any) -> Any:
    while isinstance(step, functools.partial):
        step = step.func
    return step


def _at_own_h(module: HyperLightningModule, *batch: Any) -> AbstractContextManager[None]:
    """Bring the ``h`` of a batch into force, if batches bring one, the hook has one, and no outer step did so."""
    inside = module._injector.active or module._current is not None
    if inside or not batch or module.h_from_batch is None:
        return nullcontext()
    return module._batch_at(module.batch_h(batch[0]))


def _listed(callbacks: Any) -> list[L.Callback]:
    return list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]
