"""Evaluation at every ``h`` of a grid through a LightningModule's own hooks, which know nothing of it.

While a hook runs at one ``h``, the module is in the state of that ``h``, and what it logs is renamed: ``val_loss``
becomes ``val_loss/lam=0.25``. The mean over the grid is logged under the plain name, so checkpoints, early stopping and
schedulers need no change.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torchmetrics import Metric

from lightning_mip.apart import Apart
from lightning_mip.batches import copied
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


class GridEvaluation:
    """Evaluation runs of a module on a grid of ``h``.

    The module's attributes, its metrics, and what is in its lists, tuples, dicts, sets, deques, arrays, tensors and
    generators exist once per grid point, from one run to the next, as they would in a module of its own. Between two
    hooks, and after the run, the module is that of the middle point. What others set then, all points get.

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
        self._apart = Apart(module, len(self.grid))
        self._kept: dict[int, Generated] = {}
        self._running = self._active = False
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
        if self._running:
            self._apart.follow()
        else:  # not before: the module may have begun anew in on_validation_start
            self._running = True
            self._apart.begin()
        logs = _Logs(self.module, self.labels)
        outputs = []
        try:
            for index in range(len(self.grid)):
                own = copied((args, kwargs)) if index + 1 < len(self.grid) else (args, kwargs)
                with self._at(index, logs):
                    outputs.append(hook(*own[0], **own[1]))
        finally:
            self._apart.rest()
        logs.log_means()
        return outputs

    def close(self) -> None:
        """End a run."""
        if self._running:
            self._apart.end()
        self._running = False
        self._kept.clear()

    @contextmanager
    def _at(self, index: int, logs: _Logs) -> Iterator[None]:
        h = self.grid[index]
        self._apart.install(index)
        log = self.module.__dict__.get("log")
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
            self._apart.note(index)


def evaluation_of(
    earlier: GridEvaluation | None,
    module: Any,
    injector: Injector,
    grid: Sequence[Mapping[str, Tensor]],
    enter: Callable[[Mapping[str, Tensor]], Any] | None = None,
) -> GridEvaluation:
    """The evaluation of earlier runs, which has the states that they left, if it is on the same grid; or a new one."""
    new = GridEvaluation(module, injector, grid, enter)
    if earlier is None or (earlier.module, earlier.injector, earlier.labels) != (module, injector, new.labels):
        return new
    return earlier


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


def _check_labels(labels: Sequence[str]) -> None:
    twice = {label for label, count in Counter(labels).items() if count > 1}
    if twice:
        raise ValueError(
            f"The grid of h has {min(twice)} more than once; metric names would collide. Drop the doubles."
        )
    if not labels:
        raise ValueError("The grid of h is empty, expected at least one value.")
