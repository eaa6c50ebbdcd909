"""Much of everything: many steps, many h, many components, many tensors."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.eval_frame import _debug_get_cache_entry_list

import lightning_mip as mip
from tests.tasks import Evaluated, Net, Task, loader

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
    assert memory[-1] <= 1.1 * memory[1]  # what the allocator keeps
    assert tensors[-1] <= tensors[1] + 5
    assert names[-1] == names[1]


class NoNewCode(L.Callback):
    """From a batch on, makes an error of what torch.compile would have to compile again; counts what it keeps."""

    def __init__(self, network: nn.Module, after: int) -> None:
        self.network, self.after, self.kept = network, after, list[int]()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.after:
            torch.compiler.set_stance("fail_on_recompile")

    def on_train_batch_end(self, *_: Any) -> None:
        self.kept.append(len(_debug_get_cache_entry_list(type(self.network).forward.__code__)))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo looks at it
def test_compiled_networks_are_not_compiled_again_over_hundreds_of_steps() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    model = Task(Net(), {"lam": mip.Uniform(0, 1)}, hypernet={"hidden_sizes": [4]})
    model.primary.compile(backend=backend, fullgraph=True)
    watch = NoNewCode(model.primary, after=3)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    try:
        # Every batch at another h, with weights that an optimizer has changed since the last one.
        trainer = L.Trainer(max_steps=500, callbacks=[watch], **QUIET, enable_checkpointing=False)
        trainer.fit(model, loader(2000, 4))
    finally:
        torch.compiler.set_stance("default")
        torch.compiler.reset()
    assert len(watch.kept) == 500
    assert len(graphs) == 1
    assert set(watch.kept) == {watch.kept[0]}
    assert not any(map(torch.equal, before, model.parameters()))


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
