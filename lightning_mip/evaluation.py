"""Evaluation at every ``h`` of a grid through a LightningModule's own hooks, which know nothing of it.

While a hook runs at one ``h``, the module holds the metrics and lists of that ``h``, and what it logs is renamed:
``val_loss`` becomes ``val_loss/lam=0.25``. The mean over the grid is logged under the plain name, so checkpoints, early
stopping and schedulers need no change.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lightning_mip.batches import copied
from lightning_mip.copies import is_numpy, with_values, without_graphs
from lightning_mip.generation import Generated
from lightning_mip.injection import Injector
from lightning_mip.logged import result_of
from lightning_mip.metrics import MeanOfMetrics
from lightning_mip.shown import shown
from lightning_mip.space import HSpace

# Weights of all grid points are kept between batches up to this size, so that each is generated once per evaluation.
KEEP_BYTES = 2**30
# Evaluating each batch at more values of h than this deserves a word.
_MANY = 100
# Larger tensors and containers are data, not what an evaluation accumulates: it begins with little.
_LARGE = 2**20
# What every LightningModule has, of either namespace, and what a HyperLightningModule has; the rest is its author's.
NOT_THE_AUTHORS = frozenset(vars(L.LightningModule())) | {
    *("_hparams", "_hparams_name", "_hparams_initial"),
    *("_current", "_draw_losses", "_draws", "_eval_grid", "_evaluation", "_grid", "_injector", "_predict_h"),
    "_sampler",
}


class GridEvaluation:
    """One evaluation run of a module on a grid of ``h``.

    The module's attributes and its metrics exist once per grid point, with lists, tuples, dicts, sets and tensors
    copied; at the end the module keeps the attributes of the middle point.

    Args:
        module: the LightningModule.
        injector: of its primary network.
        grid: the values of ``h``.
        enter: called with each ``h`` as it comes into force (to bind hyperparameters, say); a context manager.
    """

    def __init__(
        self,
        module: Any,
        injector: Injector,
        grid: Sequence[Mapping[str, Tensor]],
        enter: Callable[[Mapping[str, Tensor]], Any] | None = None,
    ) -> None:
        self.module, self.injector, self.grid, self.enter = module, injector, list(grid), enter
        self.labels = [injector.hypernet.space.label(h) for h in self.grid]
        self._metrics = [key for key, _ in _metrics(module)]
        self._states: list[_State] = []
        self._outer: dict[str, Any] = {}
        self._kept: dict[int, Generated] = {}
        self._active = False
        self.watched = False

    @property
    def active(self) -> bool:
        """Whether a hook is running at one ``h``."""
        return self._active

    def run(self, hook: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Run a hook once per grid point and log the means of what it logs; returns its outputs.

        A hook may write to its batch: all points but the last, whose writes are those of a run without a grid, get a
        copy of the arguments.
        """
        if not self._states:  # not before: the module may have begun anew in on_validation_start
            self._states = [self._state().clone() for _ in self.grid]
            self._outer = _attributes(self.module)
        self._follow()
        logs = _Logs(self.module, self.labels)
        outputs = []
        for index in range(len(self.grid)):
            own = copied((args, kwargs)) if index + 1 < len(self.grid) else (args, kwargs)
            with self._at(index, logs):
                outputs.append(hook(*own[0], **own[1]))
        logs.log_means()
        return outputs

    def close(self) -> None:
        """Leave the module its own metrics, and the lists and numbers of the middle grid point."""
        if self._states:
            own, middle = self._state().metrics, self._states[len(self._states) // 2]
            memo: dict[int, Any] = {}
            for key, metric in own.items():
                parts = dict(metric.named_modules())
                memo |= {id(m): parts[name] for name, m in middle.metrics[key].named_modules() if name in parts}
            _State(own, _copied(middle.attributes, memo)).install(self.module)
        self._kept.clear()

    @contextmanager
    def _at(self, index: int, logs: _Logs) -> Iterator[None]:
        h = self.grid[index]
        outer = self._state()
        log = self.module.__dict__.get("log")
        self._states[index].install(self.module)
        self._active = True
        self.module.__dict__["log"] = logs.at(index)
        try:
            with self.injector.at(h, self._kept.get(index)) as generated:
                alone = len(self.grid) == 1
                if generated is not None and (alone or generated.nbytes * len(self.grid) <= KEEP_BYTES):
                    self._kept[index] = generated
                with self.enter(h) if self.enter else _nothing():
                    yield
        finally:
            self.module.__dict__.pop("log", None)
            if log is not None:  # of somebody who listens to what is logged
                self.module.__dict__["log"] = log
            self._active = False
            self._states[index] = self._state()
            outer.install(self.module)

    def _follow(self) -> None:
        """Take over what others have set between two hooks, such as a callback."""
        now = _attributes(self.module)
        changed = {name: value for name, value in now.items() if value is not self._outer.get(name, self)}
        for state in self._states:
            state.attributes.update(_copied(changed, {}))
        self._outer = now

    def _state(self) -> _State:
        metrics = {(owner, name): owner._modules[name] for owner, name in self._metrics}
        return _State(metrics, _attributes(self.module))


def grid_of(space: HSpace, given: int | Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
    """The values of ``h`` that ``eval_grid`` stands for: points per component, or a list of mappings."""
    if isinstance(given, (str, bytes)) or not isinstance(given, (int, Sequence)):
        raise TypeError(f"eval_grid is {shown(given)}, expected points per component or a list of mappings.")
    grid = space.grid(given) if isinstance(given, int) else [space.tensors(h) for h in given]
    for h in grid:
        if space.is_batched(h):
            raise ValueError(f"eval_grid holds a batch of h, ({space.label(h)}); list its values one by one.")
    _check_labels([space.label(h) for h in grid])
    if isinstance(given, int) and len(grid) > _MANY:
        warnings.warn(
            f"eval_grid={given} points per component make {len(grid)} values of h, and each evaluation batch is run at "
            "all of them; give a shorter list of h as eval_grid.",
            stacklevel=3,
        )
    return grid


@contextmanager
def _nothing() -> Iterator[None]:
    yield


class _State:
    """What a module accumulates during an evaluation: metrics by (owner, name), and its author's attributes."""

    def __init__(self, metrics: dict[tuple[nn.Module, str], Any], attributes: dict[str, Any]) -> None:
        self.metrics, self.attributes = metrics, attributes

    def clone(self) -> _State:
        """A fresh copy: metrics reset, containers and tensors copied."""
        memo: dict[int, Any] = {}  # one for all, as what has two names is one thing
        metrics = {key: _cloned(metric, memo) for key, metric in self.metrics.items()}
        for metric in metrics.values():
            metric.reset()
        return _State(metrics, _copied(self.attributes, memo))

    def install(self, module: nn.Module) -> None:
        for name in _attributes(module):
            if name not in self.attributes:
                del module.__dict__[name]
        module.__dict__.update(self.attributes)
        for (owner, name), metric in self.metrics.items():
            owner._modules[name] = metric


class _Logs:
    """Stands in for ``module.log``: renames per ``h``, and logs the means over the grid at the end."""

    def __init__(self, module: Any, labels: Sequence[str]) -> None:
        self.module, self.log, self.labels = module, module.log, labels
        self.arguments: dict[str, dict[str, Any]] = {}

    def at(self, index: int) -> Callable[..., None]:
        # As many names as anybody gives by position.
        def log(
            name: str,
            value: Any,
            prog_bar: bool = False,
            logger: bool | None = None,
            on_step: bool | None = None,
            on_epoch: bool | None = None,
            **arguments: Any,
        ) -> None:
            arguments.update(logger=logger, on_step=on_step, on_epoch=on_epoch)
            if isinstance(value, Metric):
                # Lightning looks the attribute up once and would not know a clone that stands in its place.
                arguments["metric_attribute"] = f"{name}/{self.labels[index]}"
            self.log(f"{name}/{self.labels[index]}", value, prog_bar=False, **arguments)
            self.arguments[name] = {**arguments, "prog_bar": prog_bar}

        return log

    def log_means(self) -> None:
        """Log, under each plain name, the mean of what Lightning makes of the values of each ``h``."""
        for name, arguments in self.arguments.items():
            by_dataloader = arguments.get("add_dataloader_idx", True)
            found = [result_of(self.module, f"{name}/{label}", by_dataloader) for label in self.labels]
            if logged := [each for each in found if each is not None and not each.has_reset]:
                mean = MeanOfMetrics(logged)
                mean.update()
                self.log(name, mean, **{**arguments, "metric_attribute": name})


def _metrics(module: nn.Module) -> Iterator[tuple[tuple[nn.Module, str], nn.Module]]:
    for name, child in module._modules.items():
        if isinstance(child, (Metric, MetricCollection)):
            yield (module, name), child
        elif child is not None:
            yield from _metrics(child)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in NOT_THE_AUTHORS}


def _cloned(metric: Any, memo: dict[int, Any]) -> Any:
    """Clone a metric, also one that holds a graph, as those of training may."""
    for key, tensor in without_graphs(metric).items():
        memo.setdefault(key, tensor)
    return copy.deepcopy(metric, memo)


# Not the copy of a batch: here large things are data, and what has two names, or holds itself, stays one thing.
def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """Copy what a step may fill in place, at every depth; the rest is shared.

    Args:
        value: what to copy.
        memo: id -> copy, as of ``copy.deepcopy``.
    """
    if id(value) not in memo:
        copies = _copy(value, memo)
        if copies is value:
            return value
        memo[id(value)] = copies
    return memo[id(value)]


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, Metric):
        return _cloned(value, memo)
    if isinstance(value, Tensor):
        return value if isinstance(value, nn.Parameter) or value.numel() > _LARGE else value.clone()
    if is_numpy(value):
        return copy.copy(value)
    if not isinstance(value, (list, tuple, dict, set, deque)) or len(value) > _LARGE:
        return value
    if isinstance(value, tuple):
        items = [_copied(item, memo) for item in value]
        if all(map(operator.is_, items, value)):
            return value
        return with_values(value, items)
    result = memo[id(value)] = copy.copy(value)  # unlike the method of a dict, of the same class
    if isinstance(result, dict):
        result.update({key: _copied(item, memo) for key, item in result.items()})
    elif not isinstance(result, set):
        result.clear()
        result.extend(_copied(item, memo) for item in value)
    return result


def _check_labels(labels: Sequence[str]) -> None:
    twice = {label for label in labels if labels.count(label) > 1}
    if twice:
        raise ValueError(
            f"The grid of h has {min(twice)} more than once; metric names would collide. Drop the doubles."
        )
    if not labels:
        raise ValueError("The grid of h is empty, expected at least one value.")
