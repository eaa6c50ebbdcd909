"""Checkpoints hold plain data, keep the names of the primary network, and rebuild the module."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lightning_mip as mip
from tests.tasks import SMALL, Evaluated, Net, Task, loader, make

Trainers = Callable[..., L.Trainer]


@pytest.fixture
def saved(trainer: Trainers, tmp_path: Path) -> Callable[[L.LightningModule], Path]:
    """Train a module for an epoch and save it."""

    def save(model: L.LightningModule) -> Path:
        runner = trainer(max_epochs=1)
        runner.fit(model, loader(), loader(seed=1) if isinstance(model, Evaluated) else None)
        runner.save_checkpoint(tmp_path / "model.ckpt")
        return tmp_path / "model.ckpt"

    return save


def assert_same_outputs(model: Any, other: Any, *dials: dict[str, Any]) -> None:
    x = torch.ones(2, 3)
    for h in dials:
        with torch.no_grad(), mip.at(model, h), mip.at(other, h):
            assert torch.equal(model(x), other(x)), h


@dataclass(frozen=True)
class Triangular(mip.Prior):
    """A user's prior: density 2 h / high^2 on [0, high]."""

    high: float

    def cdf(self, h: Tensor) -> Tensor:
        return (h / self.high) ** 2

    def icdf(self, u: Tensor) -> Tensor:
        return self.high * u.sqrt()

    def contains(self, h: Tensor) -> Tensor:
        return (h >= 0) & (h <= self.high)

    def grid(self, n: int) -> Tensor:
        return self.icdf(torch.linspace(0, 1, n))


PRIORS: dict[str, Any] = {
    "Uniform": mip.Uniform(0, 1, endpoints=0.2),
    "LogUniform": mip.LogUniform(0.1, 1),
    "Normal": mip.Normal(0.5, 0.1),
    "Categorical": mip.Categorical([0.1, 0.2, 0.5]),
    "torch.distributions": torch.distributions.Kumaraswamy(2.0, 3.0),
    "user": Triangular(1.0),
}


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_one_made_in_python_is_rebuilt_with_its_network(saved: Callable[..., Path], prior: Any) -> None:
    model = make(Task, h={"lam": prior})
    path = saved(model)
    loaded = Task.load_from_checkpoint(path, primary=Net(), weights_only=True)
    assert loaded.space.config() == model.space.config()
    assert type(loaded.space["lam"]) is type(model.space["lam"])
    assert_same_outputs(model, loaded, *model.space.grid(3))


def test_preference_vectors_are_rebuilt(trainer: Trainers, tmp_path: Path) -> None:
    model = make(Task, h={"weights": mip.Simplex(3), "lam": mip.Uniform(0, 1)})
    runner = trainer()
    runner.strategy.connect(model)
    runner.save_checkpoint(tmp_path / "model.ckpt")
    loaded = Task.load_from_checkpoint(tmp_path / "model.ckpt", primary=Net())
    assert_same_outputs(model, loaded, *model.space.grid(2))


class Sized(Task):
    """Makes its own network from plain arguments, and passes others on."""

    def __init__(self, width: int, loss: str = "l2", **arguments: Any) -> None:
        super().__init__(primary=Net(width), h={"lam": mip.Uniform(0, 1)}, hypernet=SMALL, **arguments)
        self.width, self.loss_name = width, loss


class Strict(Task):
    """The same without further arguments; it sets some of the base class."""

    def __init__(self, width: int) -> None:
        super().__init__(primary=Net(width), h={"lam": mip.Uniform(0, 1)}, hypernet=SMALL, eval_grid=2)


class Saving(Task):
    """Saves its arguments itself, as Lightning's documentation shows, objects included."""

    def __init__(self, width: int, activation: nn.Module | None = None, **arguments: Any) -> None:
        super().__init__(primary=Net(width), h={"lam": mip.Uniform(0, 1)}, hypernet=SMALL, **arguments)
        self.save_hyperparameters()


class SavingFirst(Task):
    """The same before the base class is ready, with the base class's arguments its own."""

    def __init__(self, primary: nn.Module, h: Any, alpha: float = 0.5, **arguments: Any) -> None:
        self.save_hyperparameters()
        super().__init__(primary, h, **arguments)
        self.alpha = alpha


class Deeper(Sized):
    """A subclass of a subclass with defaults of its own."""

    def __init__(self, depth: int = 1, eval_grid: int = 3) -> None:
        super().__init__(width=4 + depth, eval_grid=eval_grid, predict_h={"lam": 0.25})
        self.depth = depth


OWN = {
    "own and further arguments": (lambda: Sized(6, eval_grid=3, predict_h="grid"), {}),
    "own arguments alone": (lambda: Strict(6), {}),
    "sub-subclass": (lambda: Deeper(depth=3), {}),
    "own save_hyperparameters": (lambda: Saving(6, nn.Tanh(), optimizer=torch.optim.SGD), {}),
    "save_hyperparameters first": (
        lambda: make(SavingFirst, alpha=0.25, eval_grid=2),  # type: ignore[arg-type]
        {"primary": Net},
    ),
}


@pytest.mark.parametrize(("build", "given"), OWN.values(), ids=OWN)
def test_a_subclass_with_arguments_of_its_own_is_rebuilt(
    saved: Callable[..., Path], build: Callable[[], Any], given: dict[str, Callable[[], Any]]
) -> None:
    model = build()
    path = saved(model)
    loaded = type(model).load_from_checkpoint(path, **{name: value() for name, value in given.items()})
    assert_same_outputs(model, loaded, {"lam": 0.1}, {"lam": 0.9})
    plain = {name: value for name, value in vars(model).items() if isinstance(value, (int, float, str, dict))}
    assert {name: getattr(loaded, name) for name in plain if not name.startswith("_")} == {
        name: value for name, value in plain.items() if not name.startswith("_")
    }
    assert (loaded.eval_grid, loaded.predict_h) == (model.eval_grid, model.predict_h)


@pytest.mark.parametrize(("build", "given"), OWN.values(), ids=OWN)
def test_checkpoints_hold_plain_data(
    saved: Callable[..., Path], build: Callable[[], Any], given: dict[str, Callable[[], Any]]
) -> None:
    checkpoint = torch.load(saved(build()), weights_only=True)
    assert not set(checkpoint["hyper_parameters"]) & {"primary", "activation", "optimizer"}


def test_the_hyperparameters_are_the_arguments_that_are_plain() -> None:
    space = {"lam": mip.Uniform(0, 1).config()}
    model = make(SavingFirst, alpha=0.25, eval_grid=2)  # type: ignore[arg-type]
    assert dict(model.hparams) == {"h": space, "alpha": 0.25, "eval_grid": 2, "hypernet": SMALL}
    assert dict(Sized(6, eval_grid=3).hparams) == {"width": 6, "loss": "l2", "eval_grid": 3}
    assert model.hparams_initial == model.hparams


def test_arguments_that_are_arrays_are_left_out() -> None:
    class Weighted(Task):
        def __init__(self, weights: Any, alpha: float) -> None:
            super().__init__(primary=Net(), h={"lam": mip.Uniform(0, 1)})

    assert dict(Weighted(np.ones(3), 0.5).hparams) == {"alpha": 0.5}


def test_a_module_made_inside_another_saves_its_own_arguments() -> None:
    class Outer(L.LightningModule):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.inner = Sized(2 * width)

    assert dict(Outer(3).inner.hparams) == {"width": 6, "loss": "l2"}


def test_a_logger_gets_the_hyperparameters(trainer: Trainers, tmp_path: Path) -> None:
    trainer(logger=L.pytorch.loggers.CSVLogger(tmp_path)).fit(make(Task), loader())
    (written,) = tmp_path.glob("**/hparams.yaml")
    assert "lightning_mip.priors.Uniform" in written.read_text()


def test_the_names_of_the_network_do_not_change(saved: Callable[..., Path]) -> None:
    model = make(Task)
    state = torch.load(saved(model), weights_only=True)["state_dict"]
    own = {name.removeprefix("primary."): v for name, v in state.items() if name.startswith("primary.")}
    assert list(own) == list(Net().state_dict())
    assert {name.split(".")[0] for name in state} == {"primary", "hypernet"}
    plain = Net()
    plain.load_state_dict(own)
    assert torch.equal(plain.first.weight, model.primary.first.weight)


def test_a_run_and_a_test_start_from_a_path(saved: Callable[..., Path], trainer: Trainers) -> None:
    model = make(Evaluated)
    path = saved(model)
    (expected,) = trainer().test(model, loader(seed=2), verbose=False)
    fresh = make(Evaluated)
    assert trainer().test(fresh, loader(seed=2), ckpt_path=path, verbose=False) == [expected]
    trainer(max_epochs=3).fit(make(Evaluated), loader(), loader(seed=1), ckpt_path=path)


def test_a_pretrained_network_is_the_start_of_theta0() -> None:
    pretrained = Net()
    expected = pretrained.first.weight.clone()
    model = make(Task, primary=pretrained, hypernet={**SMALL, "init": "zero"})
    assert torch.equal(model.primary.first.weight, expected)
    with torch.no_grad(), mip.at(model, lam=0.2):
        assert torch.equal(model(torch.ones(1, 3)), Net.forward(pretrained, torch.ones(1, 3)))


class Other(nn.Module):
    """Another layer in the place of one, and one more."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).tanh())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"h": {"lam": mip.Uniform(0, 2)}},
            "component 'lam' is Uniform(low=0, high=1, endpoints=0.0) in the checkpoint and Uniform(low=0, high=2, "
            "endpoints=0.0) here.",
        ),
        (
            {"h": {"phi": mip.Uniform(0, 1)}},
            "component 'phi' is absent in the checkpoint and Uniform(low=0, high=1, endpoints=0.0) here; component "
            "'lam' is Uniform(low=0, high=1, endpoints=0.0) in the checkpoint and absent here.",
        ),
        (
            {"primary": Net(width=6)},
            "generated tensor 'first.weight' is (5, 3) in the checkpoint and (6, 3) here; generated tensor "
            "'first.bias' is (5,) in the checkpoint and (6,) here; generated tensor 'last.weight' is (2, 5) in the "
            "checkpoint and (2, 6) here.",
        ),
        (
            {"primary": Other()},
            "generated tensor 'head.weight' is absent in the checkpoint and (2, 5) here; generated tensor 'head.bias' "
            "is absent in the checkpoint and (2,) here; generated tensor 'last.weight' is (2, 5) in the checkpoint and "
            "absent here; and 1 more.",
        ),
        (
            {"include": "first.*"},
            "generated tensor 'last.weight' is (2, 5) in the checkpoint and absent here; "
            "generated tensor 'last.bias' is (2,) in the checkpoint and absent here.",
        ),
        (
            {"hypernet": {**SMALL, "encoding": "z|1-z"}},
            "its encoding is ['mip', 'unit'], here it is ['z|1-z', 'unit'].",
        ),
    ],
)
def test_a_checkpoint_of_another_space_or_network_is_refused(
    saved: Callable[..., Path], arguments: dict[str, Any], message: str
) -> None:
    path = saved(make(Task))
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Task.load_from_checkpoint(path, **{"primary": Net(), **arguments})
    assert str(caught.value) == f"The checkpoint is of another hypernetwork: {message} Build the same one first."


def test_a_prior_that_is_not_imported_is_named(saved: Callable[..., Path]) -> None:
    path = saved(make(Task))
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyper_parameters"]["h"]["lam"]["class_path"] = "elsewhere.Exotic"
    torch.save(checkpoint, path)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Task.load_from_checkpoint(path, primary=Net())
    start, _, rest = str(caught.value).partition(" known are ")
    assert start == "h['lam'] names the prior 'elsewhere.Exotic', which is not imported;"
    assert rest.endswith(" Import the module that defines it first.")


def test_without_its_network_lightning_asks_for_it(saved: Callable[..., Path]) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'primary'"):
        Task.load_from_checkpoint(saved(make(Task)))


def test_loaded_weights_are_those_that_run_at_once(saved: Callable[..., Path]) -> None:
    model = make(Task)
    path = saved(model)
    fresh, x = make(Task), torch.ones(2, 3)
    with torch.no_grad():
        before = fresh.primary.first(x)
        fresh.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        assert torch.equal(fresh.primary.first(x), model.primary.first(x))
        assert not torch.equal(fresh.primary.first(x), before)
    assert math.isfinite(float(before.sum()))
