"""PerHMetrics: training metrics by ``h``."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_mip.batches import batch_size
from lightning_mip.callbacks.sample_h import injector_of
from lightning_mip.metrics import BinnedMean, PerH, bin_index, bin_labels
from lightning_mip.positive import check_whole
from lightning_mip.space import HSpace


class PerHMetrics(L.Callback):
    """Logs every scalar that ``training_step`` logs, by bins of each component of ``h``, once per epoch.

    ``self.log("train_loss", ...)`` gives ``train_loss/lam=0..0.125``, ... beside ``train_loss``. Bins are equally
    likely under the prior; empty ones are not logged. Under DDP the bins of all ranks are combined. `PerH` metrics of
    the module are logged and reset too.

    Args:
        bins: bins per component; Categorical components have one per class.
    """

    def __init__(self, bins: int = 8) -> None:
        check_whole("bins", bins)
        if bins < 1:
            raise ValueError(f"bins is {bins}, expected at least 1.")
        self.bins = bins
        self._means: dict[tuple[str, str], BinnedMean] = {}
        self._warned: set[str] = set()
        self._batch_size = 1

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start a new epoch's means."""
        self._means = {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Listen to what the step logs."""
        self._batch_size = batch_size(batch) or 1
        pl_module.__dict__["log"] = functools.partial(self._log, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop listening."""
        pl_module.__dict__.pop("log", None)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop listening."""
        pl_module.__dict__.pop("log", None)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Combine the ranks and log the bins that are not empty."""
        pl_module.__dict__.pop("log", None)  # of a batch that on_train_batch_start of the module has ended
        space = injector_of(pl_module, self).hypernet.space
        for name, component in self._keys():
            mean = self._mean(pl_module, space, name, component)
            mean._update_count = max(mean._update_count, 1)  # a rank without a value takes part in the sum all the same
            values = mean.compute().reshape(-1)  # torchmetrics makes a single bin a number
            for label, value in zip(bin_labels(component, space[component], self.bins), values, strict=True):
                if not value.isnan():
                    pl_module.log(f"{name}/{label}", value, sync_dist=True)  # equal by now; else Lightning warns
        for name, metric in pl_module.named_modules():
            if isinstance(metric, PerH):
                self._log_metric(pl_module, name, metric)

    def _log_metric(self, pl_module: L.LightningModule, name: str, metric: PerH) -> None:
        values = metric.compute()
        if not all(isinstance(value, Tensor) and value.numel() == 1 for value in values.values()):
            self._warn(
                name, "computes more than a number; log what you need of compute() in on_train_epoch_end, and reset"
            )
            return
        for label, value in values.items():
            pl_module.log(f"{name}/{label}", value, sync_dist=True)
        metric.reset()

    def _keys(self) -> list[tuple[str, str]]:
        """All (logged name, component) of all ranks, in one order: each is a collective operation."""
        keys = sorted(self._means)
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return keys
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, keys)
        return sorted({key for part in gathered for key in part})

    def _mean(self, pl_module: L.LightningModule, space: HSpace, name: str, component: str) -> BinnedMean:
        key = (name, component)
        if key not in self._means:
            bins = len(bin_labels(component, space[component], self.bins))
            self._means[key] = BinnedMean(bins).to(pl_module.device)
        return self._means[key]

    def _log(self, pl_module: L.LightningModule, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        type(pl_module).log(pl_module, name, value, *args, **kwargs)
        if isinstance(value, Metric):
            self._warn(name, "is a torchmetrics object; wrap it in lightning_mip.metrics.PerH to have it by h")
        elif pl_module._current_fx_name == "training_step":
            injector = injector_of(pl_module, self)
            h = injector.h
            if h is None or getattr(pl_module, "per_sample", False):
                self._warn(name, "is a mean over samples with different h; use lightning_mip.metrics.PerH to split it")
            else:
                # As Lightning weights the batches of an epoch.
                weight = kwargs.get("batch_size") or self._batch_size
                for component, prior in injector.hypernet.space.items():
                    mean = self._mean(pl_module, injector.hypernet.space, name, component)
                    mean.update(torch.as_tensor(value), bin_index(prior, h[component], self.bins), weight)

    def _warn(self, name: str, reason: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            warnings.warn(f"PerHMetrics leaves out {name!r}: it {reason}.", stacklevel=2)
