"""Time of the plug-in's own Python per training batch, on a ResNet-18: what it adds to the hypernetwork's own work.

    python -m benchmarks.plugin_overhead

The hypernetwork's own work is its forward and the addition of its output to theta0, which any implementation does; the
look at the weights for NaN and infinite numbers is taken on CPUs only. All the rest is counted: drawing h, setting
attributes, keeping record of the weights, writing them into the modules, looking at each layer's call whether they are
still right (with PyTorch's own time for calling a hook), the progress bar, and cleaning up. The network is narrow, as
the time depends on the number of tensors (62) and modules alone. One thread; medians of alternating runs.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

import lightning_mip as mip
from benchmarks.primaries import resnet18
from lightning_mip.checks import check_finite

ROUNDS = 200


class Classifier(L.LightningModule):
    """Somebody's LightningModule."""

    def __init__(self, smoothing: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = resnet18(width=4, small_images=False)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return self.criterion(self.net(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


class Clock(L.Callback):
    """In the middle of a run, takes the times of the plug-in's parts."""

    def __init__(self, plugin: mip.Hypernetize) -> None:
        self.plugin = plugin
        self.table: dict[str, float] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx != 1:
            return
        plugin, injector = self.plugin, self.plugin.injector
        h = plugin.sampler.draw(trainer, plugin.space)

        def start() -> None:
            plugin.on_train_batch_start(trainer, pl_module, batch, batch_idx)

        parts: dict[str, Callable[[], Any]] = {
            "start of batch": start,
            "end of batch": lambda: plugin.on_train_batch_end(trainer, pl_module, None, batch, batch_idx),
            "  of it, draw": lambda: plugin.sampler.draw(trainer, plugin.space),
            "  of it, hypernetwork": lambda: injector.weights(h),
            "  of it, finite or not": lambda: check_finite(weights, injector.hypernet.space, h),
        }
        weights = injector.weights(h)
        times = alternating(parts)
        start()
        hooks = hook_time(pl_module.net, batch[0])
        others = times["  of it, hypernetwork"] + times["  of it, finite or not"]
        own = times["start of batch"] + times["end of batch"] + hooks - others
        self.table = {**times, "hooks of the layers": hooks, "own Python per batch": own}


def hook_time(net: nn.Module, x: Tensor) -> float:
    """What the plug-in's hooks add to a call of the network, with the same weights in place."""
    places = [(child._forward_pre_hooks, dict(child._forward_pre_hooks)) for child in net.modules()]
    seen: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(ROUNDS):
        for on in (True, False):
            for hooks, own in places:
                hooks.update(own) if on else hooks.clear()
            seen[on].append(milliseconds(lambda: net(x)))
    for hooks, own in places:
        hooks.update(own)
    return statistics.median(seen[True]) - statistics.median(seen[False])


def alternating(parts: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median milliseconds of each part, run in turn."""
    seen: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(ROUNDS):
        for name, part in parts.items():
            seen[name].append(milliseconds(part))
    return {name: statistics.median(times) for name, times in seen.items()}


def milliseconds(part: Callable[[], Any]) -> float:
    """Time of one run."""
    begin = time.perf_counter()
    part()
    return 1e3 * (time.perf_counter() - begin)


def main() -> dict[str, float]:
    """Run a few batches and print the table."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    plugin = mip.Hypernetize("net", {"criterion.label_smoothing": mip.Uniform(0, 0.5)}, hidden_sizes=(16, 16))
    clock = Clock(plugin)
    data = torch.utils.data.TensorDataset(torch.randn(6, 3, 32, 32), torch.randint(10, (6,)))
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[plugin, clock],
    )
    trainer.fit(Classifier(), torch.utils.data.DataLoader(data, 2))
    print("\nmilliseconds per batch")
    for name, value in clock.table.items():
        print(f"{name:26}{value:8.3f}")
    return clock.table


if __name__ == "__main__":
    main()
