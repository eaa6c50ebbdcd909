"""Export: a checkpoint for one h that the original class loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

import lightning_mip as mip
from lightning_mip.checkpoints import plain_checkpoint
from tests.habits import InInit, LossModule
from tests.module_kinds import Tied
from tests.tasks import SMALL, SaveAt, loader

Trainers = Callable[..., L.Trainer]
export = mip.Hypernetize.export
PATH = "hparams.lam"


def plugin(**arguments: Any) -> mip.Hypernetize:
    defaults = {"target": "net", "h": {PATH: mip.Uniform(0, 1)}, "eval_grid": 2, **SMALL}
    return mip.Hypernetize(**{**defaults, **arguments})


def fit(trainer: Trainers, module: Any, **arguments: Any) -> L.Trainer:
    runner = trainer(max_epochs=1, callbacks=[plugin(**arguments)])
    runner.fit(module, loader(), loader(seed=1))
    return runner


class Words(InInit):
    """Its network ties weights."""

    def __init__(self, lam: float = 0.25) -> None:
        super().__init__(lam)
        self.net = Tied()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.abs().long().clamp(max=6)).mean(1)[:, :2]


class Compiled(InInit):
    """Compiles its network when it is made."""

    def __init__(self, lam: float = 0.25) -> None:
        super().__init__(lam)
        self.net = torch.compile(self.net, backend="eager")  # type: ignore[assignment]


class Extra(InInit):
    """Saves something of its own, and hyperparameters that are no plain data."""

    def __init__(self, lam: float = 0.25, activation: Any = nn.Tanh) -> None:
        super().__init__(lam)
        self.save_hyperparameters()
        self.vocabulary: Any = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["vocabulary"] = ["a", "b"]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.vocabulary = checkpoint["vocabulary"]


CASES: dict[str, tuple[type[InInit], dict[str, Any]]] = {
    "plain": (InInit, {}),
    "a part": (InInit, {"include": "last.*"}),
    "tied weights": (Words, {}),
    "compiled": (Compiled, {}),
    "no residual": (InInit, {"residual": False, "encoding": "none"}),
    "arguments": (InInit, {"encoding": "z|1-z", "norm": "layer", "dropout": 0.5, "init": 0.1}),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor", "ignore:.*was not a|Full backward hook")
@pytest.mark.parametrize("source", ["trainer", "path"])
@pytest.mark.parametrize("name", CASES)
def test_the_class_itself_loads_the_network_of_one_h(trainer: Trainers, tmp_path: Path, name: str, source: str) -> None:
    kind, arguments = CASES[name]
    module, path = kind(), tmp_path / "plain.ckpt"
    torch.compiler.reset()
    runner = fit(trainer, module, **arguments)
    runner.save_checkpoint(tmp_path / "full.ckpt")
    before = {key: value.clone() for key, value in module.state_dict().items() if isinstance(value, Tensor)}
    export(runner if source == "trainer" else tmp_path / "full.ckpt", {PATH: 0.7}, path)

    loaded = kind.load_from_checkpoint(path)
    module.hypernet.eval()
    expected = mip.materialize(module, {PATH: 0.7}).state_dict()
    network: nn.Module = getattr(loaded.net, "_orig_mod", loaded.net)  # type: ignore[assignment]
    assert list(network.state_dict()) == list(expected)
    for key, value in network.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert loaded.hparams.lam == 0.7
    assert loaded.hparams.lr == 0.05
    assert all(torch.equal(module.state_dict()[key], value) for key, value in before.items())
    if name == "tied weights":
        checkpoint = torch.load(path, weights_only=True)["state_dict"]
        assert checkpoint["net.output.weight"].data_ptr() == checkpoint["net.embedding.weight"].data_ptr()


@pytest.mark.parametrize("source", ["trainer", "path"])
def test_a_component_that_is_not_bound_is_no_hyperparameter_of_its_name(
    trainer: Trainers, tmp_path: Path, source: str
) -> None:
    runner = fit(trainer, InInit(), bind=False)
    runner.save_checkpoint(tmp_path / "full.ckpt")
    export(runner if source == "trainer" else tmp_path / "full.ckpt", {PATH: 0.7}, tmp_path / "plain.ckpt")
    assert InInit.load_from_checkpoint(tmp_path / "plain.ckpt").hparams.lam == 0.25


def test_a_checkpoint_is_of_the_module_and_nothing_of_the_training(trainer: Trainers, tmp_path: Path) -> None:
    runner = fit(trainer, Extra())
    export(runner, {PATH: 0.7}, tmp_path / "plain.ckpt")
    checkpoint = torch.load(tmp_path / "plain.ckpt", weights_only=False)
    assert set(checkpoint) == {
        "epoch",
        "global_step",
        "pytorch-lightning_version",
        "state_dict",
        "hparams_name",
        "hyper_parameters",
        "vocabulary",
    }
    loaded = Extra.load_from_checkpoint(tmp_path / "plain.ckpt", weights_only=False)
    assert loaded.vocabulary == ["a", "b"]
    assert runner.lightning_module.hparams.lam == 0.25
    (table,) = trainer().test(
        Extra(0.7), loader(), ckpt_path=tmp_path / "plain.ckpt", weights_only=False, verbose=False
    )
    assert set(table) == {"test_loss"}


def test_h_that_hyperparameters_do_not_have_is_not_written(trainer: Trainers, tmp_path: Path) -> None:
    module = LossModule()
    h = {"loss.alpha": mip.Uniform(0, 1), "noise": mip.Normal(0, 1)}
    runner = fit(trainer, module, h=h, bind=["loss.alpha"])
    export(runner, {"loss.alpha": 0.7, "noise": -1.0}, tmp_path / "plain.ckpt")
    checkpoint = torch.load(tmp_path / "plain.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"] == {"lam": 0.25, "lr": 0.05}
    assert LossModule.load_from_checkpoint(tmp_path / "plain.ckpt").loss.alpha == 0.25


def test_it_may_be_taken_out_of_a_trainer_that_only_loaded_it(trainer: Trainers, tmp_path: Path) -> None:
    full, path = tmp_path / "full.ckpt", tmp_path / "plain.ckpt"
    module = InInit()
    callback = plugin(activation=nn.Tanh)
    trainer(max_epochs=1, callbacks=[callback, SaveAt(full, epoch=0)]).fit(module, loader(), loader(seed=1))
    runner = trainer(callbacks=[plugin(activation=nn.Tanh)])
    runner.validate(InInit(), loader(), ckpt_path=full, verbose=False)
    export(runner, {PATH: 0.7}, path)
    expected = mip.materialize(module, {PATH: 0.7})
    assert torch.equal(InInit.load_from_checkpoint(path).net.first.weight, expected.first.weight)


def _export(h: Any = None, **arguments: Any) -> Callable[[Trainers, Path], None]:
    def act(trainer: Trainers, folder: Path) -> None:
        runner = fit(trainer, InInit(), **arguments)
        runner.save_checkpoint(folder / "full.ckpt")
        export(folder / "full.ckpt", {PATH: 0.5} if h is None else h, folder / "plain.ckpt")

    return act


def _of_weights(trainer: Trainers, folder: Path) -> None:
    fit(trainer, InInit()).save_checkpoint(folder / "weights.ckpt", weights_only=True)
    export(folder / "weights.ckpt", {PATH: 0.5}, folder / "plain.ckpt")


def _without_plugin(trainer: Trainers, folder: Path) -> None:
    export(trainer(), {PATH: 0.5}, folder / "plain.ckpt")


_LOADED = "Export from a Trainer that has loaded it, by validate(ckpt_path=...)."


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            _export({"lam": 0.5}),
            "h has no component 'lam'; its components are hparams.lam.",
        ),
        (
            _export({PATH: [0.2, 0.3]}),
            "h holds several values (hparams.lam=0.2:0.3), expected one; export one by one.",
        ),
        (
            _export(activation=nn.Tanh),
            f"The hypernetwork was made with activation, which the checkpoint cannot hold. {_LOADED}",
        ),
        (
            _of_weights,
            "The checkpoint has no state of Hypernetize: it is of a run without it, or of its weights alone "
            f"(save_weights_only=True). {_LOADED}",
        ),
        (
            _without_plugin,
            "The Trainer has no Hypernetize among its callbacks; give the one that ran with it.",
        ),
        (
            lambda trainer, folder: export(trainer(), {PATH: 0.5}, "net.onnx"),
            "path is 'net.onnx', expected a checkpoint, *.ckpt; mip.export(module, h, path) writes the network alone, "
            "as .pt, .pt2 or .onnx.",
        ),
    ],
)
def test_messages(trainer: Trainers, tmp_path: Path, act: Callable[..., None], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        act(trainer, tmp_path)
    assert str(caught.value) == message


def test_a_module_is_no_trainer() -> None:
    with pytest.raises(TypeError) as caught:
        export(InInit(), {PATH: 0.5}, "net.ckpt")
    assert str(caught.value) == (
        "source is a InInit, expected the Trainer that ran with this callback, or the path of a checkpoint that it has "
        "written."
    )


def test_the_checkpoint_that_is_given_stays_as_it_is() -> None:
    module = InInit()
    hypernet = mip.hypernetize(module.net, {PATH: mip.Uniform(0, 1)}, **SMALL)
    given = {"state_dict": module.state_dict(), "hyper_parameters": {"lam": 0.25, "list": [1]}, "callbacks": {}}
    plain = plain_checkpoint(given, hypernet, "net", {PATH: 0.7}, [PATH])
    assert given["hyper_parameters"] == {"lam": 0.25, "list": [1]}
    assert plain["hyper_parameters"] == {"lam": 0.7, "list": [1]}
    assert plain["hyper_parameters"]["list"] is not given["hyper_parameters"]["list"]
    assert torch.equal(given["state_dict"]["net.first.weight"], module.net.first.weight)  # type: ignore[index]


class Smoothed(InInit):
    """Its dial is in a layer, where no checkpoint holds it."""

    def __init__(self, lam: float = 0.25) -> None:
        super().__init__(lam)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=lam)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return self.criterion(self(x), y.argmax(1))


def test_what_a_checkpoint_cannot_hold_is_told(
    trainer: Trainers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("lightning_mip.checkpoints.rank_zero_info", told.append)
    runner = fit(trainer, Smoothed(), h={"criterion.label_smoothing": mip.Uniform(0, 1)})
    export(runner, {"criterion.label_smoothing": 0.7}, tmp_path / "net.ckpt")
    text = (
        "A checkpoint holds hyperparameters and buffers alone; after loading it, set what else held h yourself: "
        "criterion.label_smoothing = 0.7."
    )
    assert told == [text]
    told.clear()
    export(fit(trainer, InInit()), {PATH: 0.7}, tmp_path / "other.ckpt")
    assert told == []
