"""What users do before, between and after runs, in the orders that they do it in."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import types
import weakref
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

import lightning_mip as mip
from tests.tasks import Evaluated, loader, make

Trainers = Callable[..., L.Trainer]
H = {"lam": mip.Uniform(0, 1)}
X = torch.zeros(2, 3)


class Plain(L.LightningModule):
    """A module that knows nothing of hypernetworks."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.lam = nn.Linear(3, 2), 0.5

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return (1 + self.lam) * (self.net(x) - y).square().mean()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", (self.net(x) - y).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), 1e-2)


def plugin() -> mip.Hypernetize:
    return mip.Hypernetize("net", h=H, hidden_sizes=(4,), eval_grid=2)


def test_a_look_at_an_output_between_runs(trainer: Trainers) -> None:
    model = make(Evaluated)
    model(X)
    trainer().fit(model, loader(), loader(seed=1))
    model(X)
    trainer().validate(model, loader(seed=1), verbose=False)


def test_a_look_at_an_output_between_runs_with_the_plug_in(trainer: Trainers) -> None:
    module = Plain()
    trainer(max_epochs=1, callbacks=[plugin()]).fit(module, loader(), loader(seed=1))
    module.net(X)
    (found,) = trainer(callbacks=[plugin()]).validate(module, loader(seed=1), verbose=False)
    assert {"val_loss/lam=0", "val_loss/lam=1"} <= set(found)
    before = [parameter.detach().clone() for parameter in module.hypernet.parameters()]
    trainer(max_epochs=1, callbacks=[plugin()]).fit(module, loader(), loader(seed=1))
    assert not all(map(torch.equal, before, module.hypernet.parameters()))


# pytest.warns records what Lightning uses of torch's deprecated names, and raises it again.
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec")
def test_evaluation_without_the_plug_in_between_two_fits(trainer: Trainers) -> None:
    module = Plain()
    trainer(max_epochs=1, callbacks=[plugin()]).fit(module, loader(), loader(seed=1))
    with pytest.warns(UserWarning, match="it runs at the center of the priors"):
        trainer().validate(module, loader(seed=1), verbose=False)
    trainer(max_epochs=1, callbacks=[plugin()]).fit(module, loader(), loader(seed=1))


def test_a_trained_module_teaches_another(trainer: Trainers) -> None:
    teacher = Plain()
    trainer(max_epochs=1, callbacks=[plugin()]).fit(teacher, loader(), loader(seed=1))

    class Student(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = teacher

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return (self.net(batch[0]) - self.teacher.net(batch[0]).detach()).square().mean()

    trainer(max_epochs=1).fit(Student(), loader(), loader(seed=1))


def test_a_network_out_of_the_module_is_no_more_than_a_network(trainer: Trainers) -> None:
    module = Plain()
    module.other = (number for number in range(3))  # nothing that could be copied
    trainer(max_epochs=1, callbacks=[plugin()]).fit(module, loader(), loader(seed=1))
    copy.deepcopy(module.net)
    assert len(pickle.dumps(module.net)) < 100_000
    net, reference = module.net, weakref.ref(module)
    del module
    gc.collect()
    assert reference() is None
    net(X)


def test_attributes_that_modules_have_are_free(trainer: Trainers) -> None:
    class Losses(Evaluated):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.losses = nn.ModuleDict({"mse": nn.MSELoss()})
            self.wrap_steps = 3

    trainer(max_epochs=1).fit(make(Losses), loader(), loader(seed=1))


def test_steps_of_the_instance_that_run_at_one_h(trainer: Trainers) -> None:
    model = make(Evaluated)
    model.training_step = types.MethodType(type(model).training_step, model)
    model.validation_step = functools.partial(model.validation_step)
    model.configure_callbacks = model.configure_callbacks
    trainer(max_epochs=1).fit(model, loader(), loader(seed=1))


def test_a_hypernetwork_that_starts_in_a_later_epoch(trainer: Trainers) -> None:
    class Staged(Plain):
        def configure_optimizers(self) -> Any:
            groups = [{"params": list(self.net.parameters())}, {"params": list(self.hypernet.parameters())}]
            optimizer = torch.optim.Adam(groups, 1e-2)
            staged = [lambda epoch: 1.0, lambda epoch: float(epoch > 0)]
            return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, staged)]

    module = Staged()
    trainer(max_epochs=2, callbacks=[plugin()]).fit(module, loader(), loader(seed=1))


def test_a_list_of_the_networks_parameters_is_no_second_use(trainer: Trainers) -> None:
    module = Plain()
    module.penalized = nn.ParameterList(module.net.parameters())
    trainer(max_epochs=1, callbacks=[plugin()]).fit(module, loader(), loader(seed=1))
