"""Steps that their author has decorated: they get the arguments that they get from Lightning alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

import lightning_mip as mip
from tests import habits
from tests.tasks import SMALL, Task, loader, make


def counted(step: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator of the author's own."""

    @functools.wraps(step)
    def run(self: Any, *args: Any) -> Any:
        self.calls[step.__name__] = self.calls.get(step.__name__, 0) + 1
        return step(self, *args)

    return run


class Decorated(Task):
    """None of its steps takes the index of its batch."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.calls: dict[str, int] = {}

    @counted
    def training_step(self, batch: Any) -> Tensor:
        return self.loss(batch)

    @torch.no_grad()
    def validation_step(self, batch: Any) -> None:
        self.log("val_loss", self.loss(batch))

    @torch.no_grad()
    def test_step(self, batch: Any) -> None:
        self.log("test_loss", self.loss(batch))

    @torch.no_grad()
    def predict_step(self, batch: Any) -> Tensor:
        return self(batch[0])


class DecoratedPlain(habits.InInit):
    """The same of somebody who knows nothing of h."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    @counted
    def training_step(self, batch: Any) -> Tensor:
        return habits.penalised(self(batch[0]), batch[1], self.hparams.lam)

    @torch.no_grad()
    def validation_step(self, batch: Any) -> None:
        self.log("val_loss", habits.penalised(self(batch[0]), batch[1], self.hparams.lam))


def test_decorated_steps_of_a_hyper_module_need_no_batch_idx(trainer: Callable[..., L.Trainer]) -> None:
    model, runner = make(Decorated, eval_grid=2), trainer()
    runner.fit(model, loader(), loader(seed=1))
    assert {"val_loss/lam=0", "val_loss/lam=1", "val_loss"} <= set(runner.callback_metrics)
    assert model.calls == {"training_step": runner.global_step}
    runner.test(model, loader(seed=1), verbose=False)
    assert {"test_loss/lam=0", "test_loss/lam=1"} <= set(runner.callback_metrics)
    assert len(runner.predict(model, loader(seed=1)) or []) == len(loader(seed=1))


@pytest.mark.parametrize(
    ("eval", "names"), [("grid", {"val_loss/hparams.lam=0", "val_loss"}), ("center", {"val_loss"})]
)
def test_nor_do_those_of_a_module_with_the_plug_in(
    trainer: Callable[..., L.Trainer], eval: Any, names: set[str]
) -> None:
    model = DecoratedPlain()
    plugin = mip.Hypernetize("net", h={"hparams.lam": mip.Uniform(0, 1)}, eval=eval, eval_grid=2, **SMALL)
    runner = trainer(callbacks=[plugin])
    runner.fit(model, loader(), loader(seed=1))
    assert names <= set(runner.callback_metrics)
    assert model.calls == {"training_step": runner.global_step}


def test_one_that_takes_the_index_gets_it(trainer: Callable[..., L.Trainer]) -> None:
    class Indexed(Decorated):
        @counted
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.calls[f"batch {batch_idx}"] = 1
            return self.loss(batch)

    model = make(Indexed)
    trainer(max_epochs=1).fit(model, loader(8), loader(seed=1))
    assert model.calls == {"training_step": 2, "batch 0": 1, "batch 1": 1}
