"""Optimizers and schedulers with arguments that torch cannot use are refused before training, in a line or two."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn, optim
from torch.optim import lr_scheduler

import lightning_mip as mip
from lightning_mip.cli import main
from lightning_mip.factories import called
from tests.module_kinds import exactly

REGRESSION = Path(__file__).parent / "configs" / "regression.yaml"
# Each with what it cannot do without.
SCHEDULERS: dict[type, dict[str, Any]] = {
    lr_scheduler.StepLR: {"step_size": 1},
    lr_scheduler.MultiStepLR: {"milestones": [1]},
    lr_scheduler.ExponentialLR: {"gamma": 0.9},
    lr_scheduler.PolynomialLR: {},
    lr_scheduler.ConstantLR: {},
    lr_scheduler.LinearLR: {},
    lr_scheduler.CosineAnnealingLR: {"T_max": 3},
    lr_scheduler.CosineAnnealingWarmRestarts: {"T_0": 2},
    lr_scheduler.OneCycleLR: {"max_lr": 0.1, "total_steps": 9},
    lr_scheduler.CyclicLR: {"base_lr": 0.1, "max_lr": 0.2},
    lr_scheduler.ReduceLROnPlateau: {},
}
OPTIMIZERS = [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.Adagrad, optim.Adadelta, optim.NAdam]


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3))]


def without(kind: type, given: dict[str, Any]) -> list[Any]:
    """One case for each argument: the class, the arguments, and the one that is None."""
    names = [*inspect.signature(kind).parameters][1:]
    return [pytest.param(kind, {**given, name: None}, name, id=f"{kind.__name__}-{name}") for name in names]


def made(argument: str, kind: type, arguments: dict[str, Any], given: Any) -> Any:
    """What it makes, or None where that is refused by an error that names the class."""
    try:
        return called(argument, lambda given: kind(given, **arguments), given)
    except ValueError as error:
        text = str(error)
        assert text.startswith((f"{argument} cannot be made: {kind.__name__}", f"{argument} cannot be made: Adam"))
        assert len(text) < 360
        assert "\n" not in text
        return None


@pytest.mark.parametrize(
    ("kind", "arguments", "name"), [case for kind, given in SCHEDULERS.items() for case in without(kind, given)]
)
def test_a_scheduler_with_none_is_refused_or_steps(kind: type, arguments: dict[str, Any], name: str) -> None:
    optimizer = optim.SGD(weights(), lr=0.1, momentum=0.9)
    scheduler = made("lr_scheduler", kind, arguments, optimizer)
    if scheduler is not None:
        optimizer.step()
        for loss in (3.0, *[4.0] * 7):
            scheduler.step(*[loss] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else [])
        assert optimizer.param_groups[0]["lr"] >= 0


@pytest.mark.parametrize(("kind", "arguments", "name"), [case for kind in OPTIMIZERS for case in without(kind, {})])
def test_an_optimizer_with_none_is_refused_or_steps(kind: type, arguments: dict[str, Any], name: str) -> None:
    given = weights()
    optimizer = made("optimizer", kind, arguments, given)
    if optimizer is not None:
        for _ in range(2):
            given[0].square().sum().backward()
            optimizer.step()
        assert given[0].isfinite().all()


@pytest.mark.parametrize(
    ("argument", "kind", "arguments", "text"),
    [
        (
            "lr_scheduler",
            lr_scheduler.StepLR,
            {"step_size": 2, "gamma": None},
            "lr_scheduler cannot be made: StepLR has None for gamma, which torch cannot use; give it "
            "a value, or leave it out if it has a default.",
        ),
        (
            "lr_scheduler",
            lr_scheduler.ExponentialLR,
            {"gamma": None},
            "lr_scheduler cannot be made: ExponentialLR has None for gamma, which torch cannot use; "
            "give it a value, or leave it out if it has a default.",
        ),
        (
            "lr_scheduler",
            lr_scheduler.LinearLR,
            {"start_factor": None},
            "lr_scheduler cannot be made: LinearLR(start_factor=None): '>' not supported between instances of "
            "'NoneType' and 'float'",
        ),
        (
            "lr_scheduler",
            lr_scheduler.LambdaLR,
            {"lr_lambda": None, "last_epoch": 2},
            "lr_scheduler cannot be made: LambdaLR(lr_lambda=None, last_epoch=2): param 'initial_lr' is not specified "
            "in param_groups[0] when resuming scheduler with last_epoch >= 0.",
        ),
        (
            "optimizer",
            optim.SGD,
            {"momentum": 0.9, "dampening": None},
            "optimizer cannot be made: SGD has None for dampening, which torch cannot use; give it a "
            "value, or leave it out if it has a default.",
        ),
        (
            "optimizer",
            optim.Adam,
            {"lr": None},
            "optimizer cannot be made: Adam(lr=None): '<=' not supported between instances of 'float' and 'NoneType'",
        ),
    ],
)
def test_the_text_names_the_class_and_its_argument(
    argument: str, kind: type, arguments: dict[str, Any], text: str
) -> None:
    given: Any = weights() if argument == "optimizer" else optim.SGD(weights(), lr=0.1)
    with pytest.raises(ValueError, match=exactly(text)):
        called(argument, lambda given: kind(given, **arguments), given)


def test_a_scheduler_may_be_in_lightnings_mapping_or_be_left_out() -> None:
    optimizer = optim.SGD(weights(), lr=0.1)

    def in_mapping(given: optim.Optimizer, gamma: float | None) -> dict[str, Any]:
        return {"scheduler": lr_scheduler.StepLR(given, 1, gamma=gamma), "interval": "step"}  # type: ignore[arg-type]

    assert called("lr_scheduler", lambda given: in_mapping(given, 0.5), optimizer)["interval"] == "step"
    assert called("lr_scheduler", lambda given: None, optimizer) is None
    with pytest.raises(ValueError, match="lr_scheduler cannot be made: StepLR has None for gamma"):
        called("lr_scheduler", lambda given: in_mapping(given, None), optimizer)


def test_of_a_class_of_ones_own_the_arguments_are_torchs() -> None:
    class Own(lr_scheduler.StepLR):
        def __init__(self, optimizer: optim.Optimizer, after: int | None = 3, **others: Any) -> None:
            super().__init__(optimizer, step_size=1, **others)
            self.after = None

    optimizer = optim.SGD(weights(), lr=0.1)
    assert called("lr_scheduler", Own, optimizer).after is None
    with pytest.raises(
        ValueError,
        match="Own has None for gamma",
    ):
        called("lr_scheduler", lambda given: Own(given, gamma=None), optimizer)


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("StepLR", {"step_size": 1, "gamma": None}, "StepLR has None for gamma"),
        ("ConstantLR", {"last_epoch": None}, "ConstantLR(last_epoch=None)"),
    ],
)
def test_null_in_a_config_ends_in_a_line(
    name: str,
    arguments: dict[str, Any],
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(REGRESSION.read_text())
    config["model"]["init_args"]["lr_scheduler"] = {
        "class_path": f"torch.optim.lr_scheduler.{name}",
        "init_args": arguments,
    }
    Path("run.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit):
        main(["fit", "--config=run.yaml"])
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Seed set")]
    assert told[0].startswith(f"lightning-mip fit: error: lr_scheduler cannot be made: {text}")
    assert len(told) <= 3


@pytest.mark.parametrize(
    ("argument", "given", "text"),
    [
        (
            "optimizer",
            optim.SGD(weights(), lr=0.1),
            "optimizer is of type SGD, expected what makes one, such as lambda parameters: "
            "torch.optim.Adam(parameters, 1e-3).",
        ),
        (
            "lr_scheduler",
            "cosine",
            "lr_scheduler is of type str, expected what makes one, such as lambda optimizer: "
            "torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99).",
        ),
    ],
)
def test_what_is_no_call_is_refused_when_the_module_is_made(argument: str, given: Any, text: str) -> None:
    with pytest.raises(TypeError, match=exactly(text)):
        mip.HyperLightningModule(nn.Linear(1, 1), {"lam": mip.Uniform(0, 1)}, **{argument: given})


def test_a_module_may_make_no_scheduler() -> None:
    model = mip.HyperLightningModule(nn.Linear(1, 1), {"lam": mip.Uniform(0, 1)}, lr_scheduler=lambda optimizer: None)
    assert isinstance(model.configure_optimizers(), optim.Adam)
