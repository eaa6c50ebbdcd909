"""The values of one metric, sample by sample or batch by batch, at several ``h``."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import Metric

from lightning_mip.batches import batch_size, check_batches, copied
from lightning_mip.evaluation import KEEP_BYTES
from lightning_mip.injection import evaluated, the_injector
from lightning_mip.predicting import H, at_h, bound_places, output_of
from lightning_mip.probe import replaced
from lightning_mip.shown import shown
from lightning_mip.space import HSpace
from lightning_mip.sweep import check_logs, evaluate, own_trainer

By = str | Callable[[Any], Any] | None


@dataclass(frozen=True, eq=False)
class Measured:
    """A metric at several points.

    Attributes:
        values: shape (points, samples), or (points, batches) where the metric is one number per batch.
        weights: of the samples, or sizes of the batches, shape (samples,).
        groups: the group of each.
        unit: ``samples`` or ``batches``.
    """

    values: Tensor
    weights: Tensor
    groups: list[Any]
    unit: str

    def of(self, group: Any) -> Measured:
        """The part of one group."""
        mine = [k for k, other in enumerate(self.groups) if other == group]
        return Measured(self.values[:, mine], self.weights[mine], [group] * len(mine), self.unit)

    def means(self) -> Tensor:
        """The metric at each point, shape (points,)."""
        return self.values.double() @ self.weights / self.weights.sum()


class FunctionMetric:
    """A metric by a function of a network's output and the batch.

    Args:
        model: a hypernetized network, or a LightningModule with one.
        batches: an iterable that begins anew each time.
        metric: (output, batch) -> one value per sample, or one for the batch.
        by: what tells the group of a sample.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Any], metric: Callable[[Any, Any], Tensor], by: By) -> None:
        check_batches(batches)
        if iter(batches) is batches:
            raise TypeError(
                f"dataloader is a {type(batches).__name__}, which runs once, but several passes are taken; give a "
                "DataLoader or a list of batches."
            )
        self.model, self.batches, self.metric, self.by = model, batches, metric, by
        self.injector = the_injector(model)
        self.output = output_of(model)
        self._sizes: Counter[Any] | None = None
        # Bound attributes that do not change the metric.
        self._unread: set[str] = set()

    @property
    def space(self) -> HSpace:
        """The priors of ``h``."""
        return self.injector.hypernet.space

    def measure(self, points: Sequence[H]) -> Measured:
        """The values at several points, in one pass over the batches."""
        rows: list[list[Tensor]] = [[] for _ in points]
        groups: list[Any] = []
        weights: list[Tensor] = []
        unit = "samples"
        kept: dict[int, Any] = {}
        with torch.no_grad(), self._evaluating():
            for index, batch in enumerate(self._moved()):
                for k, h in enumerate(points):
                    with at_h(self.model, h, kept.get(k)) as generated:
                        values = self._values(batch, index)
                    if generated.nbytes * len(points) <= KEEP_BYTES:
                        kept[k] = generated
                    rows[k].append(values.double().cpu().reshape(-1))
                if values.ndim == 0:
                    unit = "batches"
                groups += self._groups(batch, values)
                weights.append(torch.full_like(rows[0][-1], 1 if values.ndim else batch_size(batch) or 1))
        if not groups:
            raise ValueError("dataloader has no batches, expected at least one to evaluate on.")
        self._sizes = check_sizes(self._sizes, groups)
        return _finite(
            Measured(torch.stack([torch.cat(row) for row in rows]), torch.cat(weights), groups, unit),
            self.space,
            points,
        )

    def slope(self, h_of: Callable[[Tensor], H], point: Tensor, group: Any) -> tuple[float, Tensor | None]:
        """The mean over a group at ``h_of(point)``, and its gradient; None where it has none."""
        point = point.detach().clone().requires_grad_()
        try:
            with torch.enable_grad(), self._evaluating(), _frozen(self.model, self.injector.hypernet), _numbers_made():
                return self._slope(h_of(point), point, group)
        except Exception:
            # Code may take a number where an attribute holds a tensor now. The other searches raise what else it is.
            if not bound_places(self.model):
                raise
            return float("nan"), None

    def _slope(self, h: H, point: Tensor, group: Any) -> tuple[float, Tensor | None]:
        total, weight, gradient = 0.0, 0.0, torch.zeros_like(point)
        # Tensors of their own, to see whether the gradient comes to what each attribute holds.
        held = {name: h[name].clone() for name in bound_places(self.model) if name in h and h[name].requires_grad}
        reached: set[str] = set()
        all_groups: list[Any] = []
        with at_h(self.model, h, attributes={**h, **held}):
            for index, batch in enumerate(self._moved()):
                values = self._values(batch, index)
                groups = self._groups(batch, values)
                all_groups += groups
                mine = torch.tensor([other == group for other in groups])
                if not mine.any():
                    continue
                size = 1 if values.ndim else batch_size(batch) or 1
                part = values.reshape(-1)[mine.to(values.device)].sum() * size
                if not part.requires_grad:
                    return float("nan"), None
                found, *through = torch.autograd.grad(
                    part, [point, *held.values()], retain_graph=True, allow_unused=True
                )
                if found is None:
                    return float("nan"), None
                reached |= {name for name, each in zip(held, through, strict=True) if each is not None}
                gradient += found
                total, weight = total + float(part.detach()), weight + size * int(mine.sum())
            lost = set(held) - reached - self._unread
            if lost and self._reads(lost, h, batch, index):
                return float("nan"), None
            self._unread |= lost
        self._sizes = check_sizes(self._sizes, all_groups)
        return total / weight, gradient / weight if bool(gradient.any()) else None

    @torch.no_grad()
    def _reads(self, names: Iterable[str], h: H, batch: Any, index: int) -> bool:
        """Whether the metric depends on what attributes hold, to which no gradient came: it was cut off on the way."""
        h = {name: value.detach() for name, value in h.items()}
        other = {**h, **{name: self.space.sample(seed=0, step=0)[name] for name in names}}
        values = []
        for attributes in (h, other):
            with isolate_rng(), at_h(self.model, h, attributes=attributes):
                values.append(self._values(batch, index))
        return not torch.equal(*values)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        # All passes begin with the same random numbers, so that a loader that shuffles gives them the same samples.
        with evaluated(self.model), evaluated(self.injector.hypernet), isolate_rng():
            yield

    def _moved(self) -> Iterator[Any]:
        device = next(self.model.parameters()).device
        return (move_data_to_device(batch, device) for batch in self.batches)

    def _values(self, batch: Any, index: int) -> Tensor:
        own = copied(batch)  # it is run at other h too
        output = self.output(own, index)
        try:
            value = self.metric(output, own)
        except Exception as error:
            tensor = f" of shape {tuple(output.shape)}, {output.dtype}" if isinstance(output, Tensor) else ""
            kind = f"{type(output).__name__}{tensor}"
            error.add_note(f"The metric's output is what predict_step, or the network, returns: a {kind}.")
            raise
        return self._checked(value, batch)

    def _checked(self, given: Any, batch: Any) -> Tensor:
        size = batch_size(batch)
        try:
            values: Tensor | None = torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError):
            values = None
        if values is None or values.is_complex():
            raise TypeError(f"metric returned {shown(given)}, expected one number per sample, or one for the batch.")
        if values.ndim and size is None:
            raise ValueError(
                f"metric returned shape {tuple(values.shape)}, but how many samples a batch of type "
                f"{type(batch).__name__} has is not known; give batches that are tensors, or tuples, lists or mappings "
                "with tensors, for one value per sample, or return one number for the batch."
            )
        if values.ndim and tuple(values.shape) != (size,):
            raise ValueError(
                f"metric returned shape {tuple(values.shape)} for a batch of {size}, expected ({size},), one value per "
                "sample; take the mean over the other dimensions in it."
            )
        return values

    def _groups(self, batch: Any, values: Tensor) -> list[Any]:
        return groups_of(batch, self.by, len(values) if values.ndim else None)


class LoggedMetric:
    """A metric that ``validation_step`` logs, batch by batch.

    Args:
        model: a LightningModule.
        batches: a list of batches, dataloaders or a data module.
        metric: the name under which it is logged.
        by: what tells the group of a batch.
    """

    def __init__(self, model: Any, batches: Any, metric: str, by: By) -> None:
        check_logs(model, "validation_step")
        if isinstance(batches, list) and not any(isinstance(each, DataLoader) for each in batches):
            # A Trainer takes a list for a list of loaders.
            batches = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
        self.model, self.batches, self.metric, self.by = model, batches, metric, by
        self.trainer = own_trainer(model, enable_progress_bar=False)
        self._sizes: Counter[Any] | None = None

    @property
    def space(self) -> HSpace:
        """The priors of ``h``."""
        return the_injector(self.model).hypernet.space

    def measure(self, points: Sequence[H]) -> Measured:
        """The values at several points, in one run of validation."""
        labels = [f"{self.metric}/{self.space.label(h)}" for h in points]
        # Points of a search may be so close that they have the same name, and so the same values.
        distinct = dict(zip(labels, points, strict=True))
        rows = {label: row for row, label in enumerate(distinct)}
        listener = _Listener(self.model.log, rows, self.by)
        with ExitStack() as undo, isolate_rng():
            undo.enter_context(replaced(self.model, {"log": listener.log}))
            self.trainer.callbacks.append(listener)
            undo.callback(self.trainer.callbacks.remove, listener)
            logged = evaluate(self.model, self.trainer, {"dataloaders": self.batches}, list(distinct.values()))
        if self.metric not in logged:
            raise ValueError(
                f"metric is {self.metric!r}, but validation_step logs no such; it logs {', '.join(logged)}. Name one "
                "of them, or give a function of (output, batch)."
            )
        if not listener.groups or any(len(row) != len(listener.groups) for row in listener.rows):
            raise ValueError(
                f"metric is {self.metric!r}, which is not logged once per batch, so nothing tells how sure it is; log "
                "it in validation_step, or give a function of (output, batch)."
            )
        self._sizes = check_sizes(self._sizes, listener.groups)
        values = torch.tensor(listener.rows, dtype=torch.float64)[[rows[label] for label in labels]]
        weights = torch.tensor(listener.weights, dtype=torch.float64)
        return _finite(Measured(values, weights, listener.groups, "batches"), self.space, points)


class _Listener(L.Callback):
    """Keeps what is logged under some names, and the size and group of each batch."""

    def __init__(self, log: Callable[..., None], rows: Mapping[str, int], by: By) -> None:
        self._log, self._rows, self._by = log, rows, by
        self.rows: list[list[float]] = [[] for _ in rows]
        self.weights: list[float] = []
        self.groups: list[Any] = []
        self._batch: Any = None

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        """Note the batch."""
        self._batch = batch

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        """Nothing that is logged later is of this batch."""
        self._batch = None

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Stand in for ``self.log`` of the module."""
        self._log(name, value, *args, **kwargs)
        row = self._rows.get(name)
        if row is None or self._batch is None:
            return
        if isinstance(value, Metric):
            value = value._forward_cache
            if value is None:
                raise ValueError(
                    f"metric is {name.rpartition('/')[0]!r}, a torchmetrics object that validation_step only updates, "
                    "so it has no value per batch; call it instead (self.metric(...)), or give a function of (output, "
                    "batch)."
                )
        self.rows[row].append(float(value))
        if row == 0:
            self.weights.append(kwargs.get("batch_size") or batch_size(self._batch) or 1)
            self.groups += groups_of(self._batch, self._by, None)


def check_sizes(before: Counter[Any] | None, groups: Sequence[Any]) -> Counter[Any]:
    """Count the groups of a pass over the batches; ValueError if they are not those of the pass before."""
    now = Counter(groups)
    if before is not None and now != before:
        group = next(group for group in (*before, *now) if before[group] != now[group])
        raise ValueError(
            f"dataloader gives {before[group]} values of the metric in one pass and {now[group]} in the next, but h "
            "are compared on the same ones; give a DataLoader with shuffle=False, or a list of batches."
        )
    return now


def groups_of(batch: Any, by: By, samples: int | None) -> list[Any]:
    """The groups of a batch's samples, or of the batch itself, with ``samples`` None.

    Raises:
        ValueError: the batch lacks the key, the number of groups is not that of the samples, or a batch that counts as
            one value holds several.
    """
    if by is None:
        return [None] * (1 if samples is None else samples)
    if callable(by):
        found = by(batch)
    else:
        try:
            found = batch[by]
        except (KeyError, TypeError, IndexError) as error:
            keys = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
            raise ValueError(
                f"by is {by!r}, but the batch has no such key: it is {keys}. Give a function of the batch, such as "
                "lambda batch: batch[2]."
            ) from error
    listed = found.tolist() if isinstance(found, Tensor) else found
    groups = list(listed) if isinstance(listed, (list, tuple)) else [listed] * (1 if samples is None else samples)
    if samples is None:
        if len(set(groups)) != 1:
            raise ValueError(
                f"by gives a batch several groups ({', '.join(map(str, dict.fromkeys(groups)))}), but metric is one "
                "number per batch; give a function that returns one value per sample, or batches of one group each."
            )
        return groups[:1]
    if len(groups) != samples:
        raise ValueError(f"by gives {len(groups)} groups for a batch of {samples} samples, expected one per sample.")
    return groups


@contextmanager
def _frozen(*modules: nn.Module) -> Iterator[None]:
    """Let no parameter want a gradient, so that none is computed."""
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _numbers_made() -> Iterator[None]:
    """Let code make a number of what an attribute holds: `FunctionMetric._reads` sees that the gradient is lost."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad=True to a scalar")
        yield


def _finite(measured: Measured, space: HSpace, points: Sequence[H]) -> Measured:
    bad = ~measured.values.isfinite()
    if bad.any():
        row = int(bad.any(1).nonzero()[0])
        raise ValueError(
            f"metric is NaN or infinite at {int(bad[row].sum())} of {bad.shape[1]} {measured.unit} at "
            f"{space.label(points[row])}; let it return a number for each."
        )
    return measured
