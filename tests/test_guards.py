"""Mistakes that would otherwise be made without a word: each ends in the right result or in one clear message."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelPruning
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

import lightning_mip as mip
from lightning_mip.injection import injectors
from lightning_mip.past_the_network import warn_of_theta0_read
from tests.habits import InInit
from tests.tasks import Evaluated, Net, Recorder, Task, loader, make

Trainers = Callable[..., L.Trainer]
LAM = {"lam": mip.Uniform(0, 1)}
# pytest.warns records what Lightning uses of torch's deprecated names, and raises it again.
leaf_spec = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec")


def test_the_network_itself_refuses_to_run_with_one_h_per_sample(trainer: Trainers) -> None:
    class Direct(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.primary(batch[0]).mean()  # type: ignore[no-any-return]

    with pytest.raises(RuntimeError, match=r"^per_sample=True gives each sample its own h, and the primary alone runs"):
        trainer().fit(make(Direct, per_sample=True), loader())


def test_an_evaluated_network_has_no_dropout_in_its_hypernetwork() -> None:
    net = nn.Linear(3, 2)
    hyper = mip.hypernetize(net, LAM, dropout=0.5)
    one, other = (mip.materialize(net, lam=0.3) for _ in range(2))
    assert torch.equal(one.weight, other.weight)
    net.eval()
    with mip.at(net, lam=0.3):
        assert torch.equal(net.weight, one.weight)
    assert hyper.training
    assert all(part.training for part in hyper.modules())


@pytest.mark.parametrize("arguments", [{}, {"residual": False}, {"hypernet": mip.HyperNetwork.paper}])
def test_a_padding_row_stays_zero(arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(5, 3, padding_idx=2), nn.Linear(3, 1))
    hyper = mip.hypernetize(net, LAM, **arguments)
    optimizer = torch.optim.Adam([*net.parameters(), *hyper.parameters()], 0.1)
    for step in range(3):
        with mip.at(net, hyper.space.sample(seed=0, step=step)):
            net(torch.arange(5)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    weight = mip.materialize(net, lam=0.3)[0].weight
    assert torch.equal(weight[2], torch.zeros(3))
    assert (weight[[0, 1, 3, 4]] != 0).all()


def test_a_padding_row_behind_the_first_block_of_the_head_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_mip.heads.BLOCK", 4)
    net = nn.Sequential(nn.Linear(2, 3), nn.Embedding(5, 3, padding_idx=3))
    mip.hypernetize(net, LAM)
    weight = mip.materialize(net, lam=0.3)[1].weight
    assert torch.equal((weight == 0).all(1), torch.arange(5) == 3)


def test_a_checkpoint_of_another_trunk_is_refused() -> None:
    shapes = {"weight": torch.Size([2, 2])}
    saved = mip.HyperNetwork(LAM, shapes, hidden_sizes=(4,), activation=nn.Tanh).state_dict()
    message = (
        "The checkpoint is of another hypernetwork: its trunk is ['Sequential', 'Linear', 'Tanh'], here it is "
        "['Sequential', 'Linear', 'LeakyReLU']. Build the same one first."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        mip.HyperNetwork(LAM, shapes, hidden_sizes=(4,)).load_state_dict(saved)


class Saving(Task):
    """Writes the hooks of a checkpoint without super(), as Lightning's documentation does."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["own"] = 3

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.own = checkpoint["own"]


def test_a_hook_of_the_subclass_may_give_again_what_the_checkpoint_could_not_hold(
    trainer: Trainers, tmp_path: Any
) -> None:
    def where(batch: Any) -> dict[str, Tensor]:
        return {"lam": torch.tensor(0.9)}

    class Restoring(Task):
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            self.h_from_batch = where

    runner = trainer()
    runner.fit(make(Restoring, h_from_batch=where), loader())
    runner.save_checkpoint(tmp_path / "run.ckpt")
    assert Restoring.load_from_checkpoint(tmp_path / "run.ckpt", primary=Net()).h_from_batch is where


@pytest.mark.parametrize("kind", [Task, Saving])
def test_a_function_that_no_checkpoint_holds_is_asked_for_again(kind: Any, trainer: Trainers, tmp_path: Any) -> None:
    def where(batch: Any) -> dict[str, Tensor]:
        return {"lam": torch.tensor(0.9)}

    runner = trainer()
    runner.fit(make(kind, h_from_batch=where), loader())
    runner.save_checkpoint(tmp_path / "run.ckpt")
    message = (
        "The checkpoint is of a module with a function as h_from_batch, which no checkpoint holds; give it again: "
        "load_from_checkpoint(path, h_from_batch=...)."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        kind.load_from_checkpoint(tmp_path / "run.ckpt", primary=Net())
    loaded = kind.load_from_checkpoint(tmp_path / "run.ckpt", primary=Net(), h_from_batch=where)
    assert loaded.h_from_batch is where
    assert getattr(loaded, "own", None) == (3 if kind is Saving else None)


@leaf_spec
def test_what_a_step_writes_outside_of_the_module_is_named(trainer: Trainers) -> None:
    class Counter:
        count = 0

    class Counting(Evaluated):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.counter = Counter()
            self.register_buffer("seen", torch.zeros(()))

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.counter.count += 1
            self.seen += 1

    message = (
        "The step writes to seen, counter, which the grid of h cannot keep apart, so what is computed from it mixes "
        "all h. Keep it in a torchmetrics object, or in a list, dict or tensor that is an attribute of the "
        "LightningModule; or evaluate at one h alone (eval='center' of Hypernetize, one value as eval_grid)."
    )
    with pytest.warns(UserWarning, match="cannot keep apart") as caught:
        trainer().validate(make(Counting), loader(), verbose=False)
    assert message in [str(warning.message) for warning in caught]


def test_weights_that_a_hook_swaps_at_every_h_are_an_error(trainer: Trainers) -> None:
    class Swapping(Evaluated):
        def on_validation_epoch_start(self) -> None:
            for parameter in self.primary.parameters():
                parameter.data.add_(1.0)

    message = (
        "on_validation_epoch_start changes parameters of Swapping, but it runs once for every h of the grid; change "
        "them in on_validation_start and back in on_validation_end, which run once."
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        trainer().validate(make(Swapping), loader(), verbose=False)


@leaf_spec
def test_a_network_that_is_not_trained_is_named(trainer: Trainers) -> None:
    class Elsewhere(Task):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.other = Net()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.other(batch[0]).mean()  # type: ignore[no-any-return]

    message = (
        "No gradient has reached the generated weights of Elsewhere: training_step does not run self(x) or "
        "self.primary, or its loss does not depend on them."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        trainer(max_epochs=1).fit(make(Elsewhere), loader())


def test_a_module_inside_another_is_told_that_nothing_draws_its_h(trainer: Trainers) -> None:
    class Outer(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.inner(batch[0]).mean()  # type: ignore[no-any-return]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    message = (
        "Task is a child of Outer, where nothing draws its h; use `with child.at(...):`, or hypernetize the network in "
        "the outer module."
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        trainer().fit(Outer(), loader())


def test_two_plug_ins_are_one_too_many(trainer: Trainers) -> None:
    class Plain(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.lam = Net(), Net(), 0.1

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return (self.one(batch[0]) + self.two(batch[0])).mean() * self.lam

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    message = (
        "callbacks has two Hypernetize, but a module has one hypernetwork; name the module that holds both networks as "
        "target, and choose what is generated by include."
    )
    with pytest.raises(MisconfigurationException, match=f"^{re.escape(message)}$"):
        trainer(callbacks=[mip.Hypernetize(name, LAM) for name in ("one", "two")]).fit(Plain(), loader())


def test_an_unknown_component_is_answered_with_those_that_exist() -> None:
    with pytest.raises(KeyError) as error:
        make().h["lambda"]
    assert error.value.args == ("h has no component 'lambda'; its components are lam. Did you mean 'lam'?",)


@pytest.mark.filterwarnings("ignore:Trying to infer the .batch_size.")
def test_a_step_may_hand_a_batch_of_another_form_to_the_step_it_extends(trainer: Trainers) -> None:
    class Extended(Evaluated):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step((batch["x"], batch["y"]), batch_idx)

    data = [{"x": torch.ones(4, 3), "y": torch.zeros(4, 2), "te": torch.tensor(0.25)}]
    model, runner = make(Extended, h_from_batch="te"), trainer()
    runner.validate(model, DataLoader(data, batch_size=None), verbose=False)
    with torch.no_grad():
        error = mip.materialize(model, lam=0.25)(data[0]["x"])
    assert_close(runner.callback_metrics["val_loss"], 0.75 * (error**2).mean() + 0.25 * error.abs().mean())


def test_bins_weight_batches_by_their_size(trainer: Trainers) -> None:
    class Sizes(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.log("size", float(len(batch[0])), on_epoch=True, on_step=False)
            return self.loss(batch)

    recorder = Recorder()
    trainer(max_epochs=1, callbacks=[mip.PerHMetrics(1)], logger=recorder).fit(make(Sizes), loader(6, 4))
    found = {name: value for logged in recorder.logged for name, value in logged.items()}
    assert found["size/lam=0..1"] == pytest.approx((4 * 4 + 2 * 2) / 6)
    assert found["size"] == pytest.approx(found["size/lam=0..1"])


def test_prediction_gives_the_network_as_many_items_as_it_takes(trainer: Trainers) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.layer(x) + y

    model = make(primary=Sum())
    x, y = torch.randn(4, 3), torch.randn(4, 2)
    (found,) = trainer().predict(model, DataLoader([(x, y)], batch_size=None))
    with torch.no_grad():
        assert_close(found, mip.materialize(model, lam=0.5)(x, y))


def test_values_that_are_close_to_zero_are_told_apart() -> None:
    space = mip.HSpace({"rate": mip.Categorical([1e-8, 1e-7, 1e-6])})
    with pytest.raises(ValueError, match="is outside the support"):
        space.tensors({"rate": 5e-7})
    assert_close(space.encode({"rate": 1e-7}), torch.tensor([0.0, 1.0, 0.0]))


def test_lightnings_pruning_is_refused_with_what_to_do(trainer: Trainers) -> None:
    model = make(Evaluated)
    pruning = ModelPruning("l1_unstructured", [(model.primary.first, "weight")], amount=0.5)
    message = (
        "There is no parameter first.weight to generate in Net: a layer was replaced, wrapped, pruned or parametrized "
        "since. Do that before the network is hypernetized, or undo it, mip.dehypernetize, do it, and hypernetize anew."
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        trainer(callbacks=[pruning]).fit(model, loader(), loader(seed=1))


@leaf_spec
def test_weights_that_are_clamped_after_the_optimizers_step_are_named(trainer: Trainers) -> None:
    class Clamping(Evaluated):
        hook = "optimizer_step"

        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            super().optimizer_step(*args, **kwargs)
            self.clamp() if self.hook == "optimizer_step" else None

        def on_train_batch_end(self, *args: Any) -> None:
            self.clamp() if self.hook == "on_train_batch_end" else None

        @torch.no_grad()
        def clamp(self) -> None:
            self.primary.first.weight.clamp_(-0.01, 0.01)

    with pytest.warns(UserWarning, match=r"^A write to the generated weight first\.weight after its backward is lost"):
        trainer().fit(make(Clamping), loader(), loader(seed=1))
    model = make(Clamping)
    model.hook = "on_train_batch_end"
    trainer().fit(model, loader(), loader(seed=1))
    assert model.primary.first.weight.abs().max() <= 0.01


def test_the_package_lists_its_public_names_alone() -> None:
    assert dir(mip) == mip.__all__
    assert all(getattr(mip, name).__module__.startswith("lightning_mip.") for name in dir(mip))


# --- A penalty on the weights


def of_parameters(net: nn.Module) -> Tensor:
    return sum(parameter.square().sum() for parameter in net.parameters())  # type: ignore[return-value]


def of_attributes(net: nn.Module) -> Tensor:
    return sum(layer.weight.square().sum() for layer in (net.first, net.last))  # type: ignore[return-value, union-attr]


def of_what_is_left_out(net: nn.Module) -> Tensor:
    return net.get_parameter("last.bias").square()  # type: ignore[no-any-return]


THETA0_READ = (
    "The loss reads parameters of {path!r} themselves (first.weight, first.bias, last.weight): they are theta0, "
    "without the part that depends on h, which a penalty on them leaves free. Read the weights as attributes of their "
    "layers, which hold those of the current h: layer.weight for layer in the network's modules(), not parameters()."
)


@pytest.mark.parametrize("penalty", [of_parameters, of_attributes, of_what_is_left_out])
@pytest.mark.parametrize("way", ["plug-in", "subclass", "two draws"])
def test_a_penalty_on_theta0_alone_is_named_as_h_would_have_no_effect(
    trainer: Trainers, way: str, penalty: Callable[[nn.Module], Tensor], recwarn: pytest.WarningsRecorder
) -> None:
    class Penalised(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.loss(batch) + self.h["lam"] * penalty(self.primary).sum()

    class Plain(InInit):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.net(batch[0]).square().mean() + self.hparams.lam * penalty(self.net).sum()

    exclude = "last.bias"
    if way == "plug-in":
        plugin = mip.Hypernetize("net", h={"hparams.lam": mip.Uniform(0, 1)}, exclude=exclude)
        trainer(callbacks=[plugin]).fit(Plain(), loader())
    else:
        draws = 2 if way == "two draws" else 1
        trainer().fit(make(Penalised, exclude=exclude, draws_per_batch=draws), loader())
    told = [str(each.message) for each in recwarn if "theta0" in str(each.message)]
    path = "net" if way == "plug-in" else "primary"
    assert told == ([THETA0_READ.format(path=path)] if penalty is of_parameters else [])


def test_a_long_graph_is_not_followed_to_its_end() -> None:
    net = nn.Linear(2, 1)
    mip.hypernetize(net, LAM)
    with mip.at(net, lam=0.3):
        loss = net(torch.ones(1, 2)).sum()
        for _ in range(100_000):
            loss = loss + 1
        warn_of_theta0_read(loss, injectors(net)[0], "net")
        with pytest.warns(UserWarning, match="they are theta0"):
            warn_of_theta0_read(loss + next(net.parameters()).sum(), injectors(net)[0], "net")
        del loss  # which ends the process if all of its nodes were looked at
