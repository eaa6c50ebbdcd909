"""Wrappers around the steps of a `HyperLightningModule`, which its users write once, for one ``h``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from lightning_mip.batches import split_batch

if TYPE_CHECKING:
    from lightning_mip.module import HyperLightningModule

_Method = TypeVar("_Method", bound=Callable[..., Any])


def on_draws(step: _Method) -> _Method:
    """Run the user's step once, or once per draw on a part of the batch."""

    @functools.wraps(step)
    def run(self: HyperLightningModule, batch: Any, *args: Any, **kwargs: Any) -> Any:
        draws = self._draws
        if len(draws) < 2 or self._injector.active:
            return step(self, batch, *args, **kwargs)
        outputs, sizes = [], []
        for h, (part, size) in zip(draws, split_batch(batch, len(draws)), strict=True):
            with self._injector.at(h):
                outputs.append(step(self, part, *args, **kwargs))
            sizes.append(size)
        return _mean_loss(outputs, sizes)

    return run  # type: ignore[return-value]


def on_grid(step: _Method) -> _Method:
    """Run the user's hook at every ``h`` of the grid, or at the batch's own ``h``."""

    @functools.wraps(step)
    def run(self: HyperLightningModule, *args: Any, **kwargs: Any) -> Any:
        evaluation = self._evaluation
        if evaluation is None or evaluation.active:
            context = self._batch_at(self.batch_h(args[0])) if args and self.h_from_batch else nullcontext()
            with context:
                return step(self, *args, **kwargs)
        return evaluation.run(functools.partial(step, self, *args, **kwargs))

    return run  # type: ignore[return-value]


def at_predict_h(step: _Method) -> _Method:
    """Run the user's step at ``predict_h``."""

    @functools.wraps(step)
    def run(self: HyperLightningModule, batch: Any, *args: Any, **kwargs: Any) -> Any:
        if self.h_from_batch is not None:
            with self._batch_at(self.batch_h(batch)):
                return step(self, batch, *args, **kwargs)
        if self.predict_h == "grid":
            outputs = {}
            for h in self._grid:
                with self._injector.at(h):
                    outputs[self.space.label(h)] = step(self, batch, *args, **kwargs)
            return outputs
        with self._injector.at(self.space.center() if self.predict_h is None else self.predict_h):
            return step(self, batch, *args, **kwargs)

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
    "predict_step": at_predict_h,
}


def _mean_loss(outputs: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Mean of the parts' losses, by their numbers of samples."""
    losses = [output["loss"] if isinstance(output, Mapping) else output for output in outputs]
    used = [(loss, size) for loss, size in zip(losses, sizes, strict=True) if loss is not None]
    if not used:
        return None
    return sum(loss * size for loss, size in used) / sum(size for _, size in used)
