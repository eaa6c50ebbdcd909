"""A checkpoint that is damaged, or that somebody has changed: one line says what is odd, and nothing large is made."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

import lightning_mip as mip
from tests.habits import InInit
from tests.module_kinds import exactly
from tests.tasks import SMALL, Evaluated, Net, loader, make

EXTRA = "hypernet._extra_state"
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A checkpoint of a run."""
    path = tmp_path_factory.mktemp("whole") / "last.ckpt"
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, **QUIET)
    trainer.fit(make(Evaluated), loader(), loader(seed=1))
    trainer.save_checkpoint(path)
    return dict(torch.load(path, weights_only=True))


QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}


def damaged(whole: dict[str, Any], change: Change, folder: Path) -> Path:
    checkpoint, path = copy.deepcopy(whole), folder / "damaged.ckpt"
    change(checkpoint)
    torch.save(checkpoint, path)
    return path


def extra(key: str, value: Any) -> Change:
    return lambda checkpoint: checkpoint["state_dict"][EXTRA].__setitem__(key, value)


def state(key: str, value: Any) -> Change:
    return lambda checkpoint: checkpoint["state_dict"].__setitem__(key, value)


OF_HYPERNETWORK: list[tuple[Change, str]] = [
    (state(EXTRA, "x"), "The checkpoint is damaged: its hypernetwork's _extra_state is 'x'."),
    (
        lambda checkpoint: checkpoint["state_dict"][EXTRA].pop("shapes"),
        "The checkpoint is damaged: its hypernetwork's _extra_state lacks 'shapes'.",
    ),
    (extra("shapes", [1]), "The checkpoint is damaged: its hypernetwork's shapes is [1]."),
    (extra("head", "x"), "The checkpoint is damaged: its hypernetwork's head is 'x'."),
    (
        extra("shapes", {"first.weight": [-1, 3]}),
        "The checkpoint is damaged: its hypernetwork's shape of 'first.weight' is [-1, 3].",
    ),
]


@pytest.mark.parametrize(("change", "message"), OF_HYPERNETWORK)
@pytest.mark.parametrize(
    "read",
    [
        lambda path: mip.export(path, {"lam": 0.3}, path.with_name("net.pt")),
        lambda path: Evaluated.load_from_checkpoint(path, primary=Net()),
    ],
)
def test_what_it_says_of_the_hypernetwork(
    whole: dict[str, Any], tmp_path: Path, change: Change, message: str, read: Callable[[Path], Any]
) -> None:
    path = damaged(whole, change, tmp_path)
    with pytest.raises(ValueError, match=exactly(message)):
        read(path)
    assert not (tmp_path / "net.pt").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda checkpoint: checkpoint["state_dict"][EXTRA]["shapes"].update({"first.weight": [10**6, 10**6]}),
            "The checkpoint is damaged: its hypernetwork generates first.weight of shape (1000000, 1000000), but "
            "primary.first.weight has shape (5, 3).",
        ),
        (
            lambda checkpoint: checkpoint["state_dict"].pop("primary.first.weight"),
            "The checkpoint is damaged: it has no tensor primary.first.weight, which its hypernetwork generates.",
        ),
        (
            lambda checkpoint: checkpoint["state_dict"].pop("hypernet.trunk.0.weight"),
            "The checkpoint is damaged: Error(s) in loading state_dict for HyperNetwork: Missing key(s) in state_dict: "
            '"trunk.0.weight".',
        ),
        (
            lambda checkpoint: checkpoint.update(state_dict=[1]),
            "{path} has no state_dict in it, expected a checkpoint that a Trainer has written.",
        ),
        (
            lambda checkpoint: checkpoint.update(hyper_parameters=[1]),
            "{path} is damaged: its hyper_parameters is [1], expected a mapping.",
        ),
        (
            lambda checkpoint: checkpoint.update(callbacks=[1]),
            "{path} is damaged: its callbacks is [1], expected a mapping.",
        ),
    ],
)
def test_what_an_export_needs(whole: dict[str, Any], tmp_path: Path, change: Change, message: str) -> None:
    path = damaged(whole, change, tmp_path)
    with pytest.raises(ValueError, match=exactly(message.format(path=path))):
        mip.export(path, {"lam": 0.3}, tmp_path / "net.pt")
    assert not (tmp_path / "net.pt").exists()


def test_weights_that_are_not_finite_are_not_exported(
    whole: dict[str, Any], trainer: Callable[..., Any], tmp_path: Path
) -> None:
    path = damaged(
        whole, lambda checkpoint: checkpoint["state_dict"]["hypernet.trunk.0.weight"].fill_(torch.nan), tmp_path
    )
    message = (
        "The generated weight first.weight is not finite at h = (lam=0.3): 15 of 15 numbers are NaN or infinite. Lower "
        "the learning rate, or clip gradients."
    )
    for file in ("net.pt", "net.ckpt"):
        with pytest.raises(FloatingPointError, match=exactly(message)):
            mip.export(path, {"lam": 0.3}, tmp_path / file)
    plugin = mip.Hypernetize("net", {"hparams.lam": mip.Uniform(0, 1)}, **SMALL)
    runner, module = trainer(max_epochs=1, callbacks=[plugin]), InInit()
    runner.fit(module, loader(), loader(seed=1))
    torch.nn.init.constant_(plugin.injector.hypernet.trunk[0].weight, torch.nan)
    with pytest.raises(FloatingPointError, match=exactly(message.replace("(lam", "(hparams.lam"))):
        plugin.export(runner, {"hparams.lam": 0.3}, tmp_path / "plain.ckpt")
    assert {each.name for each in tmp_path.iterdir()} == {"damaged.ckpt"}
