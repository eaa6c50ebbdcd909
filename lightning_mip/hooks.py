"""The evaluation hooks of a LightningModule that knows nothing of ``h``, run at every value of a grid."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning_mip.evaluation import GridEvaluation
from lightning_mip.probe import parameters_kept, watch
from lightning_mip.wrapping import wraps

# From the first one in which the weights of the evaluation are in place: weight averaging swaps them just before.
_HOOKS = ("on_{}_epoch_start", "on_{}_batch_start", "{}_step", "on_{}_batch_end", "on_{}_epoch_end")
_NAMESPACES = ("lightning.", "pytorch_lightning.")

Hooks = Mapping[str, Callable[..., Any]]


def overrides(module: Any, name: str) -> bool:
    """Whether the module has a hook of its own; by name, since it may be of either namespace."""
    return not getattr(getattr(module, name), "__module__", "").startswith(_NAMESPACES)


def evaluation_hooks(module: Any, stage: str) -> dict[str, Callable[..., Any]]:
    """The module's own hooks of ``stage``, ``validation`` or ``test``."""
    names = [hook.format(stage) for hook in _HOOKS]
    return {name: getattr(module, name) for name in names if overrides(module, name)}


def hooks_at(hooks: Hooks, at: Callable[[], AbstractContextManager[Any]]) -> Hooks:
    """Make each hook run inside a context."""

    def wrap(hook: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(hook)
        def run(*args: Any, **kwargs: Any) -> Any:
            with at():
                return hook(*args, **kwargs)

        return run

    return {name: wrap(hook) for name, hook in hooks.items()}


class GridHooks:
    """Makes hooks run at every ``h`` of an evaluation.

    ``on_*_batch_end`` gets the output of its own ``h``, and callbacks that of the middle grid point.

    Args:
        evaluation: which runs them.
        watch: whether to warn of what the first step writes to and the evaluation cannot keep apart.
    """

    def __init__(self, evaluation: GridEvaluation, watch: bool) -> None:
        self.evaluation = evaluation
        self._watch = watch
        self._outputs: list[Any] = []

    def wrap(self, hooks: Hooks) -> Hooks:
        """Return the hooks that take the place of the module's own."""
        return {name: self._wrapped(name, hook) for name, hook in hooks.items()}

    def _wrapped(self, name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        run: Callable[..., Any] = functools.partial(self._run, name)
        if name.endswith(("_step", "_batch_end")):
            run = self._step if name.endswith("_step") else self._batch_end

        @wraps(hook)
        def on_grid(*args: Any, **kwargs: Any) -> Any:
            if self.evaluation.active:  # called by another hook
                return hook(*args, **kwargs)
            return run(hook, *args, **kwargs)

        return on_grid

    def _run(self, name: str, hook: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        with parameters_kept(self.evaluation.module, name) if "_epoch_" in name else nullcontext():
            self.evaluation.run(hook, *args, **kwargs)

    def _step(self, hook: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        module, network = self.evaluation.module, self.evaluation.injector.root
        with watch(module, network) if self._watch else nullcontext():
            self._watch = False
            self._outputs = self.evaluation.run(hook, *args, **kwargs)
        return self._outputs[len(self._outputs) // 2]

    def _batch_end(self, hook: Callable[..., Any], output: Any, *args: Any, **kwargs: Any) -> None:
        outputs = iter(self._outputs)
        self.evaluation.run(lambda *own, **named: hook(next(outputs), *own, **named), *args, **kwargs)
