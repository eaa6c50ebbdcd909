"""HyperLightningModule: what it is made of, which h is in force, and what it says of bad arguments."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

import lightning_mip as mip
from lightning_mip.steps import WRAPPERS
from tests.tasks import SMALL, Evaluated, Net, Task, loader, make

X = torch.ones(2, 3)


def output(model: Any, **h: Any) -> Tensor:
    with torch.no_grad(), mip.at(model, h):
        return model(X)


def test_the_module_runs_its_network_with_the_weights_of_the_current_h() -> None:
    model = make(Task)
    with torch.no_grad():
        for lam in (0.0, 0.4, 1.0):
            with model.at(lam=lam):
                assert model.h == {"lam": torch.tensor(lam)}
                torch.testing.assert_close(model(X), mip.materialize(model, lam=lam)(X))
                torch.testing.assert_close(model.primary(X), mip.materialize(model, lam=lam)(X))


def test_at_nests_takes_a_mapping_and_gives_back_what_was_in_force() -> None:
    model = make(Task)
    with model.at({"lam": 0.1}):
        with model.at(lam=0.2):
            assert float(model.h["lam"]) == pytest.approx(0.2)
        assert float(model.h["lam"]) == pytest.approx(0.1)
        with pytest.raises(KeyError, match="inside"), model.at(lam=0.3):
            raise KeyError("inside")
        assert float(model.h["lam"]) == pytest.approx(0.1)
    assert model.h == {"lam": torch.tensor(0.5)}


def test_at_takes_one_h_for_modules_that_draw_one_per_sample() -> None:
    model = make(Task, per_sample=True)
    model.start_batch({"lam": torch.rand(2)})
    with torch.no_grad(), model.at(lam=0.3):
        torch.testing.assert_close(model(X), mip.materialize(model, lam=0.3)(X))
    assert model.h["lam"].shape == (2,)


def test_by_hand_the_center_of_the_priors_is_in_force() -> None:
    space = {"lam": mip.LogUniform(0.01, 1), "weights": mip.Simplex(2), "kind": mip.Categorical([3, 7])}
    model = make(Task, h=space)
    assert model.h["lam"].item() == pytest.approx(0.1)
    assert model.h["weights"].tolist() == [0.5, 0.5]
    assert model.h["kind"].item() in (3, 7)
    with torch.no_grad():
        torch.testing.assert_close(model(X), mip.materialize(model, model.h)(X))


def change_in_place(model: Any) -> None:
    with torch.no_grad():
        model.hypernet.head.blocks[0].add_(1)


def change_data(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(2)  # as old averaging code does: autograd does not see it


def load(model: Any) -> None:
    model.load_state_dict({name: v * 2 if v_is_float(v) else v for name, v in model.state_dict().items()})


def v_is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("change", [change_in_place, change_data, load])
def test_calls_by_hand_see_every_change_of_the_weights(change: Callable[[Any], None], grad: bool) -> None:
    model = make(Task)
    with torch.set_grad_enabled(grad):
        before = model(X)
        change(model)
        after = model(X)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, mip.materialize(model, model.h)(X))


@pytest.mark.parametrize("change", [change_in_place, load])
def test_so_do_layers_called_alone(change: Callable[[Any], None]) -> None:
    model = make(Task)
    with torch.no_grad():
        model.primary.first(X)
        change(model)
        torch.testing.assert_close(model.primary.first(X), mip.materialize(model, model.h).first(X))  # type: ignore[operator,union-attr]


def test_a_copy_runs_by_hand_at_the_center_too() -> None:
    model = make(Task)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model)(X), model(X))
    with model.at(lam=0.1):
        twin = copy.deepcopy(model)
    assert twin.h == {"lam": torch.tensor(0.5)}


HYPERNETS: dict[str, Any] = {
    "arguments": {"hidden_sizes": (4,), "encoding": "z|1-z"},
    "function": lambda space, shapes: mip.HyperNetwork(space, shapes, hidden_sizes=(4,), encoding="z|1-z"),
    "made before": mip.HyperNetwork(
        mip.HSpace({"lam": mip.Uniform(0, 1)}),
        {name: p.shape for name, p in Net().named_parameters()},
        hidden_sizes=(4,),
        encoding="z|1-z",
    ),
}


@pytest.mark.parametrize("hypernet", HYPERNETS.values(), ids=HYPERNETS)
def test_the_hypernetwork_is_given_in_three_ways(hypernet: Any) -> None:
    model = make(Task, hypernet=copy.deepcopy(hypernet))
    assert isinstance(model.hypernet, mip.HyperNetwork)
    assert model.hypernet.encoding == "z|1-z"
    assert model.hypernet.trunk[0].out_features == 4
    assert not torch.equal(output(model, lam=0.1), output(model, lam=0.9))


def test_without_arguments_it_is_the_default_hypernetwork() -> None:
    model = make(Task, hypernet=None)
    assert [layer.out_features for layer in model.hypernet.trunk if isinstance(layer, nn.Linear)] == [16, 8]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"include": "last.*"}, ["last.weight", "last.bias"]),
        ({"include": ["first.weight", "last.bias"]}, ["first.weight", "last.bias"]),
        ({"exclude": ["*.bias"]}, ["first.weight", "last.weight"]),
        ({"include": "first", "exclude": "first.bias"}, ["first.weight"]),
    ],
)
def test_a_part_of_the_network_is_generated(arguments: dict[str, Any], names: list[str]) -> None:
    assert list(make(Task, **arguments).hypernet.shapes) == names
    function = HYPERNETS["function"]
    assert list(make(Task, hypernet=function, **arguments).hypernet.shapes) == names


def test_a_space_a_mapping_and_a_torch_distribution_are_priors() -> None:
    distribution = torch.distributions.Uniform(0.0, 1.0)
    for h in ({"lam": mip.Uniform(0, 1)}, mip.HSpace({"lam": mip.Uniform(0, 1)}), {"lam": distribution}):
        assert list(make(Task, h=h).space) == ["lam"]


def test_materialize_at_and_summary_take_the_module(capsys: pytest.CaptureFixture[str]) -> None:
    model = make(Task)
    assert isinstance(mip.materialize(model, lam=0.3), Net)
    report = mip.summary(model)
    assert report.parameters == sum(p.numel() for p in model.hypernet.parameters())
    assert "first.weight" in capsys.readouterr().out


def test_the_optimizer_gets_theta0_and_the_hypernetwork() -> None:
    model = make(Task, optimizer=torch.optim.AdamW)
    optimizer = model.configure_optimizers()
    assert type(optimizer) is torch.optim.AdamW
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert given == {id(p) for p in model.parameters()}
    assert given == {id(p) for p in [*model.primary.parameters(), *model.hypernet.parameters()]}


def test_schedulers_are_made_from_the_optimizer() -> None:
    model = make(Task, lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5))
    (optimizer,), (scheduler,) = model.configure_optimizers()
    assert scheduler.optimizer is optimizer


@pytest.mark.parametrize(
    ("kind", "monitor"),
    [
        (torch.optim.lr_scheduler.ReduceLROnPlateau, "val_loss"),
        (lambda optimizer: L.pytorch.cli.ReduceLROnPlateau(optimizer, monitor="val_mse"), "val_mse"),
    ],
)
def test_a_plateau_scheduler_watches_the_mean_over_h_or_what_it_is_told(kind: Any, monitor: str) -> None:
    configured = make(Task, lr_scheduler=kind).configure_optimizers()
    assert configured["lr_scheduler"]["monitor"] == monitor
    assert configured["lr_scheduler"]["scheduler"].optimizer is configured["optimizer"]


def test_without_theta0_the_network_is_the_hypernetworks_alone(trainer: Callable[..., L.Trainer]) -> None:
    model = make(Evaluated, hypernet={**SMALL, "residual": False})
    theta0 = copy.deepcopy(model.primary.state_dict())
    before = output(model, lam=0.3)
    trainer().fit(model, loader(), loader(seed=1))
    for name, value in model.primary.state_dict().items():
        assert torch.equal(value, theta0[name]), name
    assert not torch.equal(before, output(model, lam=0.3))
    with torch.no_grad():
        torch.testing.assert_close(output(model, lam=0.3), mip.materialize(model, lam=0.3)(X))


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_methods_keep_their_names_and_signatures(name: str) -> None:
    def method(self: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Its own words."""

    kind = type("Named", (Task,), {name: method})
    wrapped = getattr(kind, name)
    assert wrapped.__doc__ == "Its own words."
    assert inspect.signature(wrapped) == inspect.signature(method)


def test_hooks_that_nobody_wrote_stay_those_of_lightning() -> None:
    needed = {"configure_callbacks", "on_train_start", "on_save_checkpoint", "on_load_checkpoint"}
    untouched = WRAPPERS.keys() - {"training_step", "predict_step", *needed}
    assert all(getattr(Task, name) is getattr(L.LightningModule, name) for name in untouched)


def test_steps_work_by_hand_without_a_trainer() -> None:
    model = make(Evaluated)
    batch = next(iter(loader()))
    with pytest.warns(UserWarning, match="self.trainer"), model.at(lam=0.3):
        loss = model.training_step(batch, 0)
    with model.at(lam=0.3):
        torch.testing.assert_close(loss, model.loss(batch))
        loss.backward()
    assert model.hypernet.head.blocks[0].grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (
            lambda: make(Task, h={}),
            ValueError,
            "h is empty, expected at least one component such as {'lam': Uniform(0, 1)}.",
        ),
        (
            lambda: make(Task, h=0.3),
            TypeError,
            "h is 0.3, expected a mapping such as {'lam': Uniform(0, 1)}.",
        ),
        (
            lambda: make(Task, h={"lam": 0.3}),
            TypeError,
            "h['lam'] is 0.3, expected a prior such as Uniform(0, 1) or a torch.distributions object.",
        ),
        (
            lambda: type("Counting", (Task,), {"end_batch": lambda self: None}),
            TypeError,
            "Counting has a method end_batch of its own, but HyperLightningModule has one of that name, which SampleH "
            "calls in training and evaluation; give yours another name.",
        ),
        (
            lambda: make(Task).h.lam,
            AttributeError,
            "h has no attribute 'lam'; its components are items: h['lam'].",
        ),
        (
            lambda: make(Task, per_sample="yes"),
            TypeError,
            "per_sample is 'yes', expected True or False.",
        ),
        (
            lambda: make(Task, draws_per_batch=2.5),
            TypeError,
            "draws_per_batch is 2.5, expected a whole number.",
        ),
        (
            lambda: make(Task, predict_h=0.5),
            TypeError,
            "predict_h is 0.5, expected 'grid', None, or a mapping with lam.",
        ),
        (
            lambda: make(Task, h_from_batch=["lam"]),
            TypeError,
            "h_from_batch is ['lam'], expected a key of the batch, or a function of it that returns a mapping.",
        ),
        (
            lambda: make(Task, include="nothing.*"),
            ValueError,
            "include='nothing.*' matches no parameter; there are first.weight, first.bias, last.weight, last.bias.",
        ),
        (
            lambda: make(Task, primary=nn.ReLU()),
            ValueError,
            "ReLU has no parameters, so there is nothing to generate.",
        ),
        (
            lambda: make(Task, primary=make(Task).primary),
            ValueError,
            "Net is hypernetized already (at its root); call mip.dehypernetize first.",
        ),
        (
            lambda: make(Task, hypernet={"hiden_sizes": (4,)}),
            TypeError,
            "HyperNetwork has no argument 'hiden_sizes'; its arguments are hidden_sizes, activation, norm, dropout, "
            "head, encoding, encoding_norm, residual, init, scale, trunk. Did you mean 'hidden_sizes'?",
        ),
        (
            lambda: make(Task, hypernet=copy.deepcopy(HYPERNETS["made before"]), h={"lam": mip.Uniform(0, 2)}),
            ValueError,
            "hypernet was made for h = HSpace({'lam': Uniform(low=0, high=1, endpoints=0.0)}), but h is "
            "HSpace({'lam': Uniform(low=0, high=2, endpoints=0.0)}); pass the same space.",
        ),
        (
            lambda: make(Task).at(lam=1.5).__enter__(),
            ValueError,
            "h['lam'] = 1.5 is outside the support of its prior Uniform(low=0, high=1, endpoints=0.0).",
        ),
        (
            lambda: make(Task).at(lam=[0.1, 0.2]).__enter__(),
            ValueError,
            "h has a batch dimension, but a network runs with one h at a time; take one value, or use per_sample=True "
            "of HyperLightningModule.",
        ),
    ],
)
def test_messages(act: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        act()
    assert str(caught.value) == message


def test_another_hypernetwork_is_refused_where_it_would_not_be_used() -> None:
    model = make(Task)
    message = (
        "hypernet cannot be replaced by a HyperNetwork: the primary runs with the hypernetwork that Task was made "
        "with. Pass another when you make the module, hypernet=..., or load weights into this one: "
        "model.hypernet.load_state_dict(...)."
    )
    with pytest.raises(AttributeError) as caught:
        model.hypernet = copy.deepcopy(model.hypernet)
    assert str(caught.value) == message
    model.hypernet = model.hypernet
    assert copy.deepcopy(model).hypernet is not model.hypernet


@pytest.mark.parametrize("other", [Net(), None], ids=["a network", "nothing"])
def test_another_primary_is_refused_as_it_would_run_without_the_hypernetwork(other: nn.Module | None) -> None:
    model = make(Task)
    message = (
        f"primary cannot be replaced by a {type(other).__name__}: Task has hypernetized the one that it was made with. "
        "Pass another when you make the module, primary=..., or load weights into this one: "
        "model.primary.load_state_dict(...)."
    )
    with pytest.raises(AttributeError) as caught:
        model.primary = other
    assert str(caught.value) == message
    model.primary = nn.Sequential(model.primary)  # in a wrapper it is the same
    assert not torch.equal(output(model, lam=0.1), output(model, lam=0.9))
