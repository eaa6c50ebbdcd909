"""Evaluate a trained module at every ``h`` of a grid."""

from __future__ import annotations

import importlib
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.utilities.data import sized_len
from torch import Tensor

from lightning_mip.batches import batch_size
from lightning_mip.callbacks.hypernetize import plugin_of
from lightning_mip.evaluation import KEEP_BYTES, grid_of
from lightning_mip.injection import injectors
from lightning_mip.is_hyper import is_hyper
from lightning_mip.priors import MAX_POINTS
from lightning_mip.probe import replaced
from lightning_mip.shown import shown
from lightning_mip.space import HSpace
from lightning_mip.table import Sweep

Grid = int | Mapping[str, Any] | Sequence[Mapping[str, Any]]
Stage = Literal["validate", "test"]
_LOADERS = {"validate": "val_dataloaders", "test": "test_dataloaders"}
_LIMITS = {"validate": "limit_val_batches", "test": "limit_test_batches"}
_STEPS = {"validate": "validation_step", "test": "test_step"}


def sweep(
    model: Any,
    trainer_or_dataloaders: Any,
    grid: Grid = 21,
    *,
    stage: Stage = "validate",
    ckpt_path: str | Path | None = None,
) -> Sweep:
    """Evaluate every metric that a module logs, at every ``h`` of a grid.

    The module's own ``validation_step`` runs once per batch and ``h``, each batch is loaded once, and weights are
    generated once per ``h``. Loggers get none of the numbers: they are in the table.

    Args:
        model: a `HyperLightningModule`, or a LightningModule that the plug-in `Hypernetize` has hypernetized.
        trainer_or_dataloaders: a Trainer, for its own data (its data module, the loaders of its last run, or the
            module's) on its own devices; or dataloaders or a data module, for a Trainer made for this. Under DDP, pass
            the Trainer: its processes share the batches, and each returns the whole table.
        grid: points per component; or component -> number of points, or list of values, where components that are not
            named stay at the center of their priors; or a list of mappings.
        stage: ``validate``, or ``test`` for ``test_step`` and the data of tests.
        ckpt_path: a checkpoint to evaluate instead of the weights that the module has.

    Returns:
        The table: ``.best("val_dice", mode="max")``, ``.plot()``, ``.to_csv(path)``, ``.to_pandas()``.

    Raises:
        TypeError: ``model`` is no LightningModule.
        ValueError: it has no grid of ``h`` (no plug-in, or ``h_from_batch``), the step logs nothing, or the Trainer
            runs no batches or keeps nothing that is logged.

    Example::

        table = mip.sweep(model, trainer, grid=21)
        net = mip.materialize(model, table.best("val_dice", mode="max").h)
    """
    if stage not in tuple(_LOADERS):
        raise ValueError(f"stage is {shown(stage)}, expected 'validate' or 'test'.")
    trainer, data = runner(model, trainer_or_dataloaders, stage)
    _check_batches(trainer, stage)
    owner = grid_owner(model, trainer)
    points = grid_points(owner.space, grid)
    metrics: dict[str, list[Tensor]] = {}
    for chunk in _chunks(model, points):
        logged = evaluate(model, trainer, data, chunk, stage=stage, ckpt_path=ckpt_path)
        ckpt_path = None  # the module has its weights now
        for name, values in logged.items():
            metrics.setdefault(name, []).append(values)
    table = Sweep(owner.space, points, {name: torch.cat(values) for name, values in metrics.items()})
    _warn_of_limit(trainer, stage)
    _show_in_tensorboard(trainer, table)
    return table


def grid_points(space: HSpace, grid: Grid) -> list[dict[str, Tensor]]:
    """The points that ``grid`` of `sweep` stands for.

    >>> from lightning_mip import HSpace, LogUniform, Uniform
    >>> space = HSpace({"lam": Uniform(0, 1), "phi": LogUniform(0.1, 10)})
    >>> [space.label(h) for h in grid_points(space, {"lam": [0.2, 0.3]})]
    ['lam=0.2,phi=1', 'lam=0.3,phi=1']
    """
    if isinstance(grid, int):
        return grid_of(space, space.grid(grid))
    if isinstance(grid, str) or not isinstance(grid, (Mapping, Sequence)):
        raise TypeError(
            f"grid is {shown(grid)}, expected a number of points, component -> number of points or list of values, or "
            "a list of mappings."
        )
    if not isinstance(grid, Mapping):
        return grid_of(space, grid)
    unknown = [name for name in grid if name not in space]
    if unknown:
        raise ValueError(f"grid: {space.unknown(unknown[0])}")
    axes = [_axis(space, name, grid.get(name)) for name in space]
    if (size := math.prod(len(axis) for axis in axes)) > MAX_POINTS:
        raise ValueError(
            f"grid={shown(grid)} has {size} points, expected at most {MAX_POINTS}; give fewer per component."
        )
    return grid_of(space, [dict(zip(space, point, strict=True)) for point in itertools.product(*axes)])


def runner(model: Any, source: Any, stage: Stage) -> tuple[Any, dict[str, Any]]:
    """The Trainer that evaluates ``model``, and its data, as arguments of ``trainer.validate``."""
    check_logs(model, _STEPS[stage])
    if hasattr(source, "validate") and hasattr(source, "callbacks"):
        _check_strategy(source)
        if source.datamodule is not None:
            return source, {"datamodule": source.datamodule}
        loaders = getattr(source, _LOADERS[stage])
        return source, {} if loaders is None else {"dataloaders": loaders}
    attached = model._trainer
    if attached is not None and attached.world_size > 1:
        return attached, {"dataloaders": source}
    return own_trainer(model), {"dataloaders": source}


def check_logs(model: Any, step: str) -> None:
    """Raise TypeError for what is no LightningModule, whose ``step`` could log metrics."""
    if not any(base.__name__ == "LightningModule" for base in type(model).__mro__):
        raise TypeError(
            f"model is a {type(model).__name__}, expected a LightningModule whose {step} logs metrics; "
            "for a plain network use mip.choose with a function as metric, or `with mip.at(network, h):`."
        )


def own_trainer(model: Any, **arguments: Any) -> Any:
    """A Trainer of the module's namespace for evaluation on one device, with the plug-in that it was used with."""
    base = [base for base in type(model).__mro__ if base.__name__ == "LightningModule"][-1]
    namespace = importlib.import_module(base.__module__.partition(".")[0])
    plugin = plugin_of(model._trainer)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary"), False)
    return namespace.Trainer(devices=1, callbacks=[plugin] if plugin else [], **quiet, **arguments)


def grid_owner(model: Any, trainer: Any) -> Any:
    """What holds the grid of an evaluation: the module itself, or the plug-in among the Trainer's callbacks."""
    if is_hyper(model):
        if model.h_from_batch is not None:
            raise ValueError(
                f"{type(model).__name__} takes h from its batches (h_from_batch), so there is none to sweep; evaluate "
                "one batch at other values inside `with model.at(h):`."
            )
        return model
    plugin = plugin_of(trainer)
    if plugin is None:
        raise ValueError(
            f"{type(model).__name__} is no HyperLightningModule, and its Trainer has no Hypernetize among its "
            "callbacks; pass the Trainer that trained it, or one with the same Hypernetize."
        )
    return plugin


def evaluate(
    model: Any,
    trainer: Any,
    data: Mapping[str, Any],
    points: Sequence[Mapping[str, Tensor]],
    *,
    stage: Stage = "validate",
    ckpt_path: str | Path | None = None,
) -> dict[str, Tensor]:
    """Run the stage once over the data, at every point; returns name -> values, shape ``(points,)``."""
    owner = grid_owner(model, trainer)
    with ExitStack() as undo:
        undo.enter_context(replaced(owner, {"_grid" if owner is model else "grid": list(points)}))
        for logger in trainer.loggers:
            undo.enter_context(replaced(logger, {"log_metrics": _nothing}))
        undo.enter_context(_as_before(model))
        share = _Share()
        trainer.callbacks.append(share)
        undo.callback(trainer.callbacks.remove, share)
        getattr(trainer, stage)(model, **data, ckpt_path=ckpt_path, verbose=False)
        logged = _by_point(trainer.callback_metrics, [owner.space.label(h) for h in points])
    if not logged:
        raise ValueError(
            f"{_STEPS[stage]} of {type(model).__name__} logs nothing at an h, so there is no table; self.log in it."
        )
    return _over_ranks(logged, share.samples)


def _axis(space: HSpace, name: str, given: Any) -> Sequence[Any]:
    prior = space[name]
    if given is None:
        return [prior.center()]
    if isinstance(given, int):
        return list(prior.grid(given))
    if not isinstance(given, (Sequence, Tensor)) or isinstance(given, str) or not len(given):
        raise TypeError(f"grid[{name!r}] is {shown(given)}, expected a number of points or a list of values.")
    return list(given)


def _chunks(model: Any, points: list[dict[str, Tensor]]) -> Iterator[list[dict[str, Tensor]]]:
    """Parts of the grid whose weights all fit in what an evaluation keeps, so that none is generated twice."""
    found = injectors(model)
    shapes = [parameter.shape for parameter in model.parameters()] if not found else found[0].hypernet.shapes.values()
    each = 4 * sum(shape.numel() for shape in shapes)
    size = max(KEEP_BYTES // max(each, 1), 1)
    for start in range(0, len(points), size):
        yield points[start : start + size]


def _by_point(logged: Mapping[str, Tensor], labels: Sequence[str]) -> dict[str, Tensor]:
    """Gather ``val_loss/lam=0``, ``val_loss/lam=0.5/dataloader_idx_1``, ... by metric."""
    indices = {label: index for index, label in enumerate(labels)}
    metrics: dict[str, Tensor] = {}
    for key, value in logged.items():
        parts = key.split("/")
        at = next((k for k, part in enumerate(parts) if k and part in indices), None)
        if at is not None:
            name = "/".join(parts[:at] + parts[at + 1 :])
            values = metrics.setdefault(name, torch.full((len(labels),), torch.nan))
            values[indices[parts[at]]] = value.detach().float().cpu()
    return metrics


class _Share(L.Callback):
    """Counts the samples that this process evaluates."""

    def __init__(self) -> None:
        self.samples = 0

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        """Count a batch."""
        self.samples += batch_size(batch) or 1

    def on_test_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        """Count a batch."""
        self.samples += batch_size(batch) or 1


def _over_ranks(metrics: dict[str, Tensor], samples: int) -> dict[str, Tensor]:
    """The mean over the samples of all ranks; no change where ``sync_dist=True`` has made it."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return metrics
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, (metrics, samples))
    total = sum(count for _, count in parts)
    return {name: sum(found[name] * (count / total) for found, count in parts) for name in metrics}


def _check_strategy(trainer: Any) -> None:
    if any(base.__name__ == "_MultiProcessingLauncher" for base in type(trainer.strategy.launcher).__mro__):
        raise ValueError(
            "The Trainer's strategy spawns or forks its processes, of which one alone brings its metrics back; use "
            "strategy='ddp', or pass dataloaders instead of the Trainer."
        )


def _check_batches(trainer: Any, stage: Stage) -> None:
    """Refuse a Trainer that would give no table."""
    if trainer.barebones:
        raise ValueError(
            "The Trainer is barebones=True, so it keeps nothing that a step logs; pass dataloaders instead of it."
        )
    if getattr(trainer, _LIMITS[stage]) == 0:
        raise ValueError(
            f"The Trainer has {_LIMITS[stage]}=0, so it evaluates no batch; pass dataloaders instead of it."
        )


def _warn_of_limit(trainer: Any, stage: Stage) -> None:
    """Say that the table is of a part of the data."""
    limit, loop = getattr(trainer, _LIMITS[stage]), getattr(trainer, f"{stage}_loop")
    counts = loop.max_batches
    lengths = [sized_len(loader) for loader in loop._combined_loader.flattened]
    if any(count < (math.inf if length is None else length) for count, length in zip(counts, lengths, strict=True)):
        given = f"fast_dev_run={trainer.fast_dev_run}" if trainer.fast_dev_run else f"{_LIMITS[stage]}={limit}"
        size = f"{sum(counts)} batch{'' if sum(counts) == 1 else 'es'}"
        warnings.warn(
            f"The table is of {size}, as the Trainer has {given}; pass dataloaders instead of it for all.",
            stacklevel=3,
        )


def _show_in_tensorboard(trainer: Any, table: Sweep) -> None:
    """Add the figure where that logger is used and the table can be drawn."""
    if any(type(logger).__name__ == "TensorBoardLogger" for logger in trainer.loggers):
        from lightning_mip.plotting import drawable, log_figure, matplotlib_is_there

        if matplotlib_is_there() and drawable(table):
            log_figure(trainer.loggers, "sweep", table.plot()[0], trainer.global_step)


@contextmanager
def _as_before(model: Any) -> Iterator[None]:
    """Give the module its device back, and its Trainer if it has one."""
    device, trainer = model.device, model._trainer
    try:
        yield
    finally:
        model.to(device)
        model._trainer = model._trainer if trainer is None else trainer


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stands in for a logger's ``log_metrics``: the table takes its place."""
