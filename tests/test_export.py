"""export: the plain network of one h as a file, which puts out what the hypernetwork does."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import lightning_mip as mip
from tests.habits import InInit
from tests.tasks import SMALL, Evaluated, Net, Task, loader, make

Trainers = Callable[..., L.Trainer]
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def model() -> Any:
    return make(Task, hypernet={**SMALL, "init": 0.5})


def expected(model: Any, x: Tensor, lam: float = 0.3) -> Tensor:
    with torch.no_grad(), model.at(lam=lam):
        return model(x)


def test_a_state_dict_is_for_the_network_itself(model: Any, tmp_path: Path) -> None:
    exported = mip.export(model, {"lam": 0.3}, tmp_path / "net.pt")
    network = Net()
    network.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    torch.testing.assert_close(network(X), expected(model, X))
    assert str(exported) == (
        f"{tmp_path / 'net.pt'}: state_dict of Net at lam=0.3; differs from the generated weights by 0.0e+00"
    )


class Plain(L.LightningModule):
    """What somebody without this package has."""

    def __init__(self, primary: nn.Module) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="primary")
        self.primary = primary


def test_a_checkpoint_is_for_a_plain_module_with_the_network(model: Any, tmp_path: Path) -> None:
    exported = mip.export(model, {"lam": 0.3}, tmp_path / "net.ckpt", example=X)
    loaded = Plain.load_from_checkpoint(tmp_path / "net.ckpt", primary=Net(), weights_only=True)
    torch.testing.assert_close(loaded.primary(X), expected(model, X))
    assert exported.difference < 1e-6
    assert exported.samples == 4


def test_a_checkpoint_of_a_module_with_the_plugin_is_for_its_own_class(trainer: Trainers, tmp_path: Path) -> None:
    module = InInit()
    plugin = mip.Hypernetize("net", h={"hparams.lam": mip.Uniform(0, 1)}, eval_grid=2, **SMALL)
    trainer(callbacks=[plugin], max_epochs=1).fit(module, loader(), loader())
    mip.export(module, {"hparams.lam": 0.7}, tmp_path / "net.ckpt", example=[X, X[:, :2]])
    loaded = InInit.load_from_checkpoint(tmp_path / "net.ckpt", weights_only=True)
    assert loaded.hparams.lam == 0.7
    torch.testing.assert_close(loaded.net(X), mip.materialize(module, {"hparams.lam": 0.7})(X))


class Amplified(nn.Module):
    """Reads what the plug-in binds: an attribute, a buffer, and a setting that its module shares with it."""

    def __init__(self, settings: dict[str, float]) -> None:
        super().__init__()
        self.layer, self.gain, self.settings = nn.Linear(3, 2), 0.5, settings
        self.register_buffer("shift", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.gain + self.shift * self.settings["power"]


class Amplifying(L.LightningModule):
    """Trains one."""

    def __init__(self) -> None:
        super().__init__()
        self.settings = {"power": 0.5}
        self.net = Amplified(self.settings)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self.net(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), 0.1)


AMPLIFIED = {"net.gain": 0.9, "net.shift": 0.7, "settings.power": 0.8}


@pytest.fixture
def amplifying(trainer: Trainers) -> tuple[L.Trainer, Amplifying, Tensor]:
    """A Trainer, a trained module, and what it puts out at `AMPLIFIED`, by attributes that are set by hand."""
    plugin = mip.Hypernetize("net", h=dict.fromkeys(AMPLIFIED, mip.Uniform(0.1, 1)), eval_grid=1, **SMALL)
    runner, module = trainer(callbacks=[plugin], max_epochs=1), Amplifying()
    runner.fit(module, loader())
    other = copy.deepcopy(module)
    other.net.gain, other.settings["power"] = 0.9, 0.8
    other.net.shift.fill_(0.7)
    with mip.at(other, AMPLIFIED), torch.no_grad():
        return runner, module, other.net(X)


@pytest.mark.parametrize("of", ["the module", "its network", "a copy"])
def test_the_plain_network_holds_the_values_that_it_reads(amplifying: Any, of: str) -> None:
    _, module, wanted = amplifying
    source = {"the module": module, "its network": module.net, "a copy": copy.deepcopy(module)}[of]
    plain = mip.materialize(source, AMPLIFIED)
    torch.testing.assert_close(plain(X), wanted)
    assert (plain.gain, plain.settings["power"]) == (0.9, 0.8)
    assert float(plain.state_dict()["shift"]) == pytest.approx(0.7)
    assert (module.net.gain, module.settings, float(module.net.shift)) == (0.5, {"power": 0.5}, 0.5)


@pytest.mark.parametrize("suffix", ["pt", "ckpt"])
def test_an_export_names_the_attributes_that_weights_do_not_hold(amplifying: Any, tmp_path: Path, suffix: str) -> None:
    _, module, wanted = amplifying
    exported = mip.export(module, AMPLIFIED, tmp_path / f"net.{suffix}", example=(X, X[:, :2]))
    assert exported.difference < 1e-6
    assert str(exported).endswith(" on 4 samples; holds no attributes: set net.gain = 0.9, settings.power = 0.8")
    if suffix == "pt":
        network = Amplified({"power": 0.8})
        network.load_state_dict(torch.load(exported.path, weights_only=True))
    else:
        network = Amplifying.load_from_checkpoint(exported.path, weights_only=True).net
    network.gain, network.settings["power"] = 0.9, 0.8
    torch.testing.assert_close(network(X), wanted)


@pytest.mark.slow
def test_a_program_holds_the_values_that_its_network_reads(amplifying: Any, tmp_path: Path) -> None:
    _, module, wanted = amplifying
    exported = mip.export(module, AMPLIFIED, tmp_path / "net.pt2", example=(X, X[:, :2]))
    torch.testing.assert_close(torch.export.load(exported.path).module()(X), wanted)
    assert not exported.attributes


@pytest.mark.parametrize("of", ["trainer", "file", "file by export"])
def test_a_checkpoint_holds_the_values_of_bound_buffers(amplifying: Any, tmp_path: Path, of: str) -> None:
    runner, _, _ = amplifying
    runner.save_checkpoint(tmp_path / "run.ckpt")
    if of == "file by export":
        exported = mip.export(tmp_path / "run.ckpt", AMPLIFIED, tmp_path / "plain.ckpt")
        assert str(exported).endswith("by 0.0e+00; holds no attributes: set net.gain = 0.9")
    else:
        source = runner if of == "trainer" else tmp_path / "run.ckpt"
        mip.Hypernetize.export(source, AMPLIFIED, tmp_path / "plain.ckpt")
    loaded = Amplifying.load_from_checkpoint(tmp_path / "plain.ckpt", weights_only=True)
    assert float(loaded.net.shift) == pytest.approx(0.7)


@pytest.mark.slow
def test_a_program_takes_any_batch_and_needs_no_python_code(model: Any, tmp_path: Path) -> None:
    exported = mip.export(model, {"lam": 0.3}, tmp_path / "net.pt2", example=[X, X[:, :2]])
    program = torch.export.load(tmp_path / "net.pt2").module()
    for samples in (1, 3, 4):
        torch.testing.assert_close(program(X[:samples]), expected(model, X[:samples]))
    assert (exported.format, exported.samples, exported.batch) == ("torch_export", 4, None)
    assert exported.difference < 1e-5
    assert str(exported).startswith(
        f"{tmp_path / 'net.pt2'}: torch_export of Net at lam=0.3; differs from the output of the hypernetized network "
    )


@pytest.mark.slow
def test_an_onnx_file_runs_in_onnxruntime(model: Any, tmp_path: Path) -> None:
    exported = mip.export(model, {"lam": 0.3}, tmp_path / "net.onnx", example=X)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    (entry,) = session.get_inputs()
    for samples in (1, 4):
        (found,) = session.run(None, {entry.name: X[:samples].numpy()})
        torch.testing.assert_close(torch.as_tensor(found), expected(model, X[:samples]), rtol=1e-5, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert exported.difference < 1e-5


class Fixed(Net):
    """Knows its batch size."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(4, 3))


@pytest.mark.slow
def test_a_program_that_takes_one_batch_size_says_so(tmp_path: Path) -> None:
    exported = mip.export(make(primary=Fixed()), {"lam": 0.3}, tmp_path / "net.pt2", example=X)
    assert exported.batch == 4
    assert str(exported).endswith(" on 4 samples; takes batches of 4 only")


class Rescaled(Task):
    """Its network gets something else than the batch."""

    def loss(self, batch: Any) -> Tensor:
        return (self(batch["x"] * 2, shift=batch["shift"]) ** 2).mean()


class Shifted(Net):
    def forward(self, x: Tensor, shift: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x + shift)


@pytest.mark.slow
def test_the_inputs_are_those_that_the_network_gets_in_the_modules_step(tmp_path: Path) -> None:
    model = make(Rescaled, primary=Shifted())
    mip.export(model, {"lam": 0.3}, tmp_path / "net.pt2", example={"x": X, "shift": X + 1})
    program = torch.export.load(tmp_path / "net.pt2").module()
    with model.at(lam=0.3):
        torch.testing.assert_close(program(X, shift=X), model(X, X))


def test_an_example_may_be_a_loader_or_that_of_the_module(model: Any, tmp_path: Path) -> None:
    assert mip.export(model, {"lam": 0.3}, tmp_path / "net.pt", example=loader(batch_size=8)).samples == 8
    model.example_input_array = X[:3]
    assert mip.export(model, {"lam": 0.3}, tmp_path / "net.pt").samples == 3


class Normed(Net):
    """Keeps running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


@pytest.mark.filterwarnings("ignore:Norm layers keep running statistics")
def test_running_statistics_are_estimated_anew_and_compared_like_with_like(tmp_path: Path) -> None:
    model = make(primary=Normed())
    before = model.primary.norm.running_mean.clone()
    data = [*loader()]
    exported = mip.export(model, {"lam": 0.3}, tmp_path / "net.pt", example=data[0], recalibrate=data)
    weights = torch.load(tmp_path / "net.pt", weights_only=True)
    torch.testing.assert_close(weights["norm.running_mean"], torch.cat([x for x, _ in data]).mean(0))
    assert torch.equal(model.primary.norm.running_mean, before)
    assert exported.difference < 1e-5


class Remembering(Net):
    """Keeps its last output, whose shape it does not know before it runs, and says how old it is in its state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not torch.compiler.is_compiling():
            self.seen = y.detach()
        return y

    def get_extra_state(self) -> dict[str, Any]:
        return {"age": 1}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Nothing to keep."""


@pytest.mark.parametrize("name", ["net.pt", "net.pt2"])
def test_a_network_may_have_state_of_its_own_and_buffers_that_grow(tmp_path: Path, name: str) -> None:
    model = make(Task, primary=Remembering())
    exported = mip.export(model, {"lam": 0.3}, tmp_path / name, example=X)
    assert exported.difference < 1e-6
    assert model.primary.seen.shape == (0,)


class Random(Net):
    """Is another at each call."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(())


def test_a_file_that_puts_out_something_else_is_not_left_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        mip.export(make(primary=Random()), {"lam": 0.3}, tmp_path / "net.pt", example=X)
    (difference,) = re.findall(r" by (\S+) at ", str(caught.value))
    assert str(caught.value) == (
        f"{tmp_path / 'net.pt'} differs from the hypernetized network by {difference} at lam=0.3, more than 1e-05, and "
        "was deleted: the network does something else when it is traced, or draws random numbers. Its weights can be "
        "exported without being run: format='state_dict', without example."
    )
    assert float(difference) > 1e-5
    assert not [*tmp_path.iterdir()]


HYPERNETS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "none": {"hypernet": None},
    "arguments": {"hypernet": {**SMALL, "encoding": "none", "residual": False}},
    "a part": {"include": "last.*", "hypernet": {**SMALL, "init": 0.1}},
}


@pytest.mark.parametrize("name", HYPERNETS)
def test_weights_come_out_of_a_checkpoint_alone(trainer: Trainers, tmp_path: Path, name: str) -> None:
    model = make(Evaluated, **HYPERNETS[name])
    runner = trainer(max_epochs=1)
    runner.fit(model, loader(), loader())
    runner.save_checkpoint(tmp_path / "run.ckpt")
    exported = mip.export(tmp_path / "run.ckpt", {"lam": 0.3}, tmp_path / "net.pt")
    network = Net()
    network.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    torch.testing.assert_close(network(X), expected(model, X))
    assert exported.network == "primary"
    mip.export(tmp_path / "run.ckpt", {"lam": 0.3}, tmp_path / "net.ckpt")
    loaded = Plain.load_from_checkpoint(tmp_path / "net.ckpt", primary=Net(), weights_only=True)
    torch.testing.assert_close(loaded.primary(X), expected(model, X))


def test_weights_come_out_of_a_checkpoint_of_the_plugin(trainer: Trainers, tmp_path: Path) -> None:
    module = InInit()
    plugin = mip.Hypernetize("net", h={"hparams.lam": mip.Uniform(0, 1)}, eval_grid=2, **SMALL)
    runner = trainer(callbacks=[plugin], max_epochs=1)
    runner.fit(module, loader(), loader())
    runner.save_checkpoint(tmp_path / "run.ckpt")
    mip.export(tmp_path / "run.ckpt", {"hparams.lam": 0.7}, tmp_path / "net.pt")
    network = Net()
    network.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    torch.testing.assert_close(network(X), mip.materialize(module, {"hparams.lam": 0.7})(X))


def _act(*, of: str = "module", h: Any = None, path: str = "net.pt", **arguments: Any) -> Callable[..., Any]:
    def act(trainer: Trainers, folder: Path) -> None:
        source: Any = make(Task)
        if of == "network":
            source = source.primary
        elif of != "module":
            given = {"activation": nn.Tanh} if of == "function" else {}
            source = make(Evaluated, hypernet={**SMALL, **given})
            runner = trainer(max_epochs=1)
            runner.fit(source, loader(), loader())
            runner.save_checkpoint(folder / "run.ckpt")
            source = folder / "run.ckpt"
        mip.export(source, {"lam": 0.3} if h is None else h, folder / path, **arguments)

    return act


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            _act(path="net.bin"),
            "FOLDER/net.bin does not say by its suffix what to write; use one of .pt, .pth, .ckpt, .pt2, .onnx, or "
            "give format: state_dict, checkpoint, torch_export, onnx.",
        ),
        (
            _act(format="pickle"),
            "format is 'pickle', expected one of 'state_dict', 'checkpoint', 'torch_export', 'onnx'.",
        ),
        (_act(h={"phi": 0.3}), "h has no component 'phi'; its components are lam."),
        (
            _act(h={"lam": [0.3, 0.4]}),
            "h holds several values (lam=0.3:0.4), expected one; export one by one.",
        ),
        (
            _act(path="net.pt2"),
            "format='torch_export' traces the network on an example, but Task has no example_input_array; give a "
            "batch: export(..., example=batch), or, on the command line, a --config with a data module.",
        ),
        (
            _act(of="network", path="net.ckpt"),
            "format='checkpoint' is for LightningModules, but Net is none; use 'state_dict'.",
        ),
        (
            _act(of="checkpoint", path="net.pt2"),
            "FOLDER/run.ckpt is a checkpoint, from which only weights can be exported, without example and "
            "recalibrate: it does not hold the network. Give the module: export(module, h, ...), or, on the command "
            "line, the run's --config.",
        ),
        (
            _act(of="function"),
            "The hypernetwork was made with what is no plain data, which the checkpoint cannot hold. Export from the "
            "module itself: export(module, h, ...), or, on the command line, with the run's --config.",
        ),
    ],
)
def test_messages(trainer: Trainers, tmp_path: Path, act: Callable[..., None], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        act(trainer, tmp_path)
    assert str(caught.value).replace(str(tmp_path), "FOLDER") == message


def test_onnx_names_what_to_install(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError) as caught:
        mip.export(model, {"lam": 0.3}, tmp_path / "net.onnx", example=X)
    assert str(caught.value) == (
        "format='onnx' needs onnx, onnxscript and onnxruntime: pip install 'lightning-mip[onnx]'."
    )
