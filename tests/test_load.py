"""Much of everything: many steps, many h, many components, many tensors."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

import lightning_mip as mip
from tests.tasks import Evaluated, Net, loader

QUIET = {"logger": False, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
PAGE = 4096


def resident() -> int:
    """Bytes that this process holds."""
    return PAGE * int(Path("/proc/self/statm").read_text().split()[1])


class Watch(L.Callback):
    """Memory, live tensors and logged names, every thousand steps."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step % 1000 == 0:
            gc.collect()
            tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
            self.seen.append((resident(), tensors, len(trainer.callback_metrics)))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_memory_tensors_and_logged_names_stay_the_same_over_thousands_of_steps() -> None:
    model = Evaluated(Net(), {"lam": mip.Uniform(0, 1)}, hypernet={"hidden_sizes": [4]}, eval_grid=2)
    watch = Watch()
    trainer = L.Trainer(max_steps=6000, callbacks=[watch, mip.PerHMetrics()], **QUIET, enable_checkpointing=False)
    trainer.fit(model, loader(4000, 4), loader(8, 4))
    memory, tensors, names = zip(*watch.seen, strict=True)
    assert len(watch.seen) == 6
    assert memory[-1] <= 1.01 * memory[1]
    assert tensors[-1] <= tensors[1] + 5
    assert names[-1] == names[1]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ten_thousand_values_of_h_are_swept() -> None:
    model = Evaluated(Net(), {"lam": mip.Uniform(0, 1)}, hypernet={"hidden_sizes": [4]})
    table = mip.sweep(model, loader(4, 4), grid=10_000)
    assert len(table) == 10_000
    torch.testing.assert_close(table.values("lam"), torch.linspace(0, 1, 10_000))
    x, y = next(iter(loader(4, 4)))
    for place in (0, 4999, 9999):
        lam = table.h[place]["lam"]
        with mip.at(model.primary, lam=lam), torch.no_grad():
            error = model.primary(x) - y
        expected = (1 - lam) * error.square().mean() + lam * error.abs().mean()
        torch.testing.assert_close(table["val_loss"][place].float(), expected, rtol=1e-5, atol=0)


def test_a_space_of_64_components_is_encoded_to_norm_one_and_trained() -> None:
    space = mip.HSpace({f"h{i:02}": mip.Uniform(0, 1) for i in range(64)})
    h = space.sample(seed=0, step=3)
    assert space.encode(h).norm() == pytest.approx(1, rel=1e-6)
    net = nn.Linear(3, 2)
    hyper = mip.hypernetize(net, space)
    with mip.at(net, h):
        net(torch.ones(1, 3)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in hyper.trunk.parameters())


@pytest.mark.timeout(120)
def test_a_network_of_two_thousand_tensors_is_generated_and_taken_out() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(1000))).double()
    hyper = mip.hypernetize(net, {"lam": mip.Uniform(0, 1)}).double()
    assert len(hyper.shapes) == 2000
    x = torch.ones(1, 2, dtype=torch.float64)
    plain = mip.materialize(net, lam=0.3)
    with mip.at(net, lam=0.3):
        torch.testing.assert_close(net(x), plain(x), rtol=1e-12, atol=0)
        net(x).sum().backward()
    assert sum(p.grad is not None for p in net.parameters()) == 2000
