"""torchmetrics by ``h``: means per bin, any metric per bin, and the mean over a grid."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.wrappers.abstract import WrapperMetric

from lightning_mip.positive import check_whole
from lightning_mip.priors import Categorical, Prior, Simplex


def bin_labels(name: str, prior: Prior, bins: int) -> list[str]:
    """Name the bins of a component: ``lam=0..0.25``; classes by value; preference vectors by their largest weight."""
    check_whole("bins", bins)
    if bins < 1:
        raise ValueError(f"bins is {bins}, expected at least 1.")
    if isinstance(prior, Categorical):
        return [f"{name}={prior.text(value)}" for value in prior.grid(1)]
    if isinstance(prior, Simplex):
        return [f"{name}=max{k}" for k in range(prior.n)]
    edges = prior.icdf(torch.linspace(0, 1, bins + 1, dtype=torch.float64))
    labels = [f"{name}={low}..{high}" for low, high in itertools.pairwise(map(prior.text, edges))]
    if len(set(labels)) < bins:
        raise ValueError(f"bins is {bins}, more than metric names tell apart for {prior}; give fewer.")
    return labels


def bin_index(prior: Prior, h: Tensor, bins: int) -> Tensor:
    """The bin of each value: bins are equally likely under the prior; shape ``(*batch,)``, int64."""
    if isinstance(prior, (Categorical, Simplex)):
        return prior.encode(h).argmax(-1)
    return (prior.cdf(h) * bins).long().clamp(0, bins - 1)


class BinnedMean(Metric):
    """Mean of a scalar in each bin; right under DDP when ranks see different bins.

    Args:
        bins: number of bins.

    >>> mean = BinnedMean(3)
    >>> mean.update(torch.tensor(2.0), torch.tensor(1))
    >>> mean.compute()
    tensor([nan, 2., nan])
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, bins: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(bins), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(bins), dist_reduce_fx="sum")

    def update(self, value: Tensor, index: Tensor, weight: float = 1.0) -> None:
        """Add one value to a bin, with a weight such as the number of samples that it is the mean of."""
        self.total[index] += weight * value.detach().reshape(()).to(self.total)
        self.count[index] += weight

    def compute(self) -> Tensor:
        """Mean per bin, NaN for empty bins, shape ``(bins,)``."""
        return self.total / self.count


class PerH(WrapperMetric):
    """Any torchmetrics metric, for each bin of one component of ``h``.

    Set it as an attribute of the LightningModule and call ``update(..., h=self.h)`` in the step; the `PerHMetrics`
    callback logs and resets it, or log ``compute()`` yourself.

    Args:
        metric: the metric; each bin gets a clone.
        name: the component of ``h``.
        prior: its prior, whose equally likely ranges are the bins.
        bins: number of bins; a Categorical prior has one per class.

    >>> from torchmetrics.classification import BinaryAccuracy
    >>> from lightning_mip import Uniform
    >>> accuracy = PerH(BinaryAccuracy(), "lam", Uniform(0, 1), bins=2)
    >>> accuracy.update(torch.tensor([1, 1]), torch.tensor([1, 0]), h={"lam": torch.tensor(0.7)})
    >>> accuracy.compute()
    {'lam=0.5..1': tensor(0.5000)}
    """

    count: Tensor

    def __init__(self, metric: Metric, name: str, prior: Prior, bins: int = 8) -> None:
        super().__init__()
        if not isinstance(metric, Metric):
            raise TypeError(f"Expected argument `metric` to be a torchmetrics Metric, but got {metric!r}.")
        self.name, self.prior, self.bins = name, prior, bins
        self.labels = bin_labels(name, prior, bins)
        self.metrics: Sequence[Metric] = nn.ModuleList(metric.clone() for _ in self.labels)  # type: ignore[assignment]
        for each in _inner(self):
            each.dist_sync_fn = each.dist_sync_fn or gather
        self.add_state("count", torch.zeros(len(self.labels)), dist_reduce_fx="sum")

    def update(self, *args: Any, h: Any, **kwargs: Any) -> None:
        """Update the metric of the bin of ``h``.

        Args:
            *args: the metric's own arguments; with a batch of ``h``, tensors of that length are split by sample.
            h: the mapping ``self.h``, or the component's value: 0-dim, or one per sample.
            **kwargs: the metric's own keyword arguments, split likewise.
        """
        for index, part_args, part_kwargs in self._parts(args, kwargs, h):
            self.metrics[index].update(*part_args, **part_kwargs)
            self.count[index] += 1

    def forward(self, *args: Any, h: Any, **kwargs: Any) -> dict[str, Any]:
        """Update, and return the batch's own value per bin."""
        values = {}
        for index, part_args, part_kwargs in self._parts(args, kwargs, h):
            values[self.labels[index]] = self.metrics[index](*part_args, **part_kwargs)
            self.count[index] += 1
        self._update_count += 1
        self._computed = None
        return values

    def compute(self) -> dict[str, Any]:
        """Bin label -> value; empty bins are left out."""
        # A wrapper is not synchronised by torchmetrics; every rank has to compute the bins that any rank has filled.
        counts = torch.stack(gather(self.count)).sum(0) if _distributed() else self.count
        filled = [index for index, count in enumerate(counts.tolist()) if count]
        return {self.labels[index]: _computed(self.metrics[index]) for index in filled}

    def reset(self) -> None:
        """Forget all updates."""
        super().reset()
        for metric in self.metrics:
            metric.reset()

    def _parts(
        self, args: Sequence[Any], kwargs: dict[str, Any], h: Any
    ) -> Iterator[tuple[int, list[Any], dict[str, Any]]]:
        if isinstance(h, Mapping) and self.name not in h:
            raise ValueError(f"h has no component {self.name!r}; given were {', '.join(h)}.")
        value = torch.as_tensor(h[self.name] if isinstance(h, Mapping) else h)
        index = bin_index(self.prior, value, self.bins)
        if index.ndim == 0:
            yield int(index), list(args), kwargs
            return
        for found in index.unique().tolist():
            chosen = index == found
            yield found, [_rows(a, chosen) for a in args], {key: _rows(a, chosen) for key, a in kwargs.items()}


def gather(tensor: Tensor, group: Any = None) -> list[Tensor]:
    """The tensors of all ranks, whatever their shapes: a rank that saw nothing of a bin has an empty one, of any dtype.

    In the place of torchmetrics' own, which expects the dtype and the number of dimensions to be the same on all ranks.
    """
    parts: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(parts, tensor.detach().cpu(), group=group)
    dtype = next((part.dtype for part in parts if part.numel()), tensor.dtype)
    return [part.to(tensor.device, part.dtype if part.numel() else dtype) for part in parts]


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _inner(metric: nn.Module) -> Iterator[Metric]:
    return (module for module in metric.modules() if isinstance(module, Metric))


def _computed(metric: Metric) -> Any:
    for each in _inner(metric):
        each._update_count = max(each._update_count, 1)  # another rank has updated it, so that no warning is due
    return metric.compute()


def _rows(value: Any, chosen: Tensor) -> Any:
    if isinstance(value, Tensor) and value.ndim and len(value) == len(chosen):
        return value[chosen.to(value.device)]
    return value


class MeanOfMetrics(Metric):
    """Mean of the values of other metrics, which are updated, synchronised and reset on their own."""

    full_state_update = False

    def __init__(self, metrics: Sequence[Metric]) -> None:
        super().__init__()
        # A tuple, not a ModuleList: they belong to the module that logs them.
        self.metrics = tuple(metrics)

    def update(self) -> None:
        """Nothing to do but the mean of the last values: the metrics are updated where they are used."""
        last: list[Any] = [metric._forward_cache for metric in self.metrics]
        self._forward_cache: Any = None if any(value is None for value in last) else _mean(last)

    def compute(self) -> Tensor:
        """Mean over the metrics."""
        return _mean([metric.compute() for metric in self.metrics])


def _mean(values: Sequence[Any]) -> Tensor:
    stacked = torch.stack([torch.as_tensor(value) for value in values])
    return stacked.to(torch.promote_types(stacked.dtype, torch.float32)).mean(0)
