"""``lightning-mip export`` and ``diagnose``: what they print and write, and errors in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import lightning_mip as mip
from lightning_mip.cli import main
from tests.habits import InInit
from tests.tasks import Evaluated, Net, loader

REGRESSION = Path(__file__).parent / "configs" / "regression.yaml"

Trained = tuple[Evaluated, str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A trained module, and its checkpoint in a folder beside its config."""
    folder = tmp_path_factory.mktemp("run")
    model = main(["fit", f"--config={REGRESSION}", f"--trainer.default_root_dir={folder}"]).model
    (path,) = folder.glob("**/*.ckpt")
    return model, str(path)


@pytest.fixture
def trained(run: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """The same, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", ["net.pt", "net.ckpt", "net.pt2", "net.onnx"])
def test_export_writes_and_checks_a_file(trained: Trained, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, path = trained
    exported = main(["export", f"--ckpt_path={path}", f"--config={REGRESSION}", "--h=lam=0.3", f"--out={name}"])
    assert exported.difference < 1e-5
    assert exported.samples == 4
    assert capsys.readouterr().out.splitlines()[-1] == str(exported)
    assert [file.name for file in Path().iterdir()] == [name]


def test_weights_are_exported_from_the_checkpoint_alone(trained: Trained) -> None:
    model, path = trained
    main(["export", f"--ckpt_path={path}", "--h", "lam=0.3", "--out", "some/net.pt"])
    network, x = Net(width=4), torch.ones(2, 3)
    network.load_state_dict(torch.load("some/net.pt", weights_only=True))
    with torch.no_grad(), mip.at(model, lam=0.3):
        torch.testing.assert_close(network(x), model(x))


def plugin_config(path: Path) -> None:
    config = yaml.safe_load(REGRESSION.read_text())
    config["model"] = {"class_path": "tests.habits.InInit"}
    prior = {"class_path": "Uniform", "init_args": {"low": 0, "high": 1}}
    arguments = {"target": "net", "h": {"hparams.lam": prior}, "eval_grid": 2, "hypernet": {"hidden_sizes": [4]}}
    config["trainer"]["callbacks"] = [{"class_path": "Hypernetize", "init_args": arguments}]
    path.write_text(yaml.safe_dump(config))


@pytest.mark.slow
def test_runs_with_the_plugin_are_served_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plugin_config(tmp_path / "plugin.yaml")
    module = main(["fit", "--config=plugin.yaml"]).model
    (path,) = tmp_path.glob("**/*.ckpt")
    # The config as the run has saved it, which holds arguments of `fit`, too.
    h = {"hparams.lam": 0.7}
    main(["export", f"--ckpt_path={path}", "--config=config.yaml", "--h=hparams.lam=0.7", "--out=net.ckpt"])
    loaded, x = InInit.load_from_checkpoint("net.ckpt"), next(iter(loader()))[0]
    torch.testing.assert_close(loaded.net(x), mip.materialize(module, h)(x))
    assert loaded.hparams.lam == 0.7
    report = main(["diagnose", f"--ckpt_path={path}", "--config=config.yaml", "--draws=2"])
    assert report.h == {"hparams.lam": "Uniform(low=0.0, high=1.0, endpoints=0.0)"}
    assert report.now.exponent == pytest.approx(mip.diagnose(module, loader(seed=1), draws=2).now.exponent)


@pytest.mark.slow
@pytest.mark.parametrize("command", [["diagnose", "--draws=2"], ["export", "--h=lam=0.3", "--out=net.ckpt"]], ids=str)
def test_one_process_does_it_whatever_the_run_was_trained_on(trained: Trained, command: list[str]) -> None:
    _, path = trained
    config = yaml.safe_load(REGRESSION.read_text())
    config["trainer"] |= {"devices": 2, "strategy": "ddp"}
    Path("run.yaml").write_text(yaml.safe_dump(config))
    # By itself, as Lightning would start the second process with the command line of this one.
    words = [sys.executable, "-m", "lightning_mip", *command, f"--ckpt_path={path}", "--config=run.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(REGRESSION.parents[2])}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert "MEMBER" not in done.stderr  # of a process group
    assert done.stdout.count("matter  " if command[0] == "diagnose" else "net.ckpt") == 1


def test_running_statistics_take_batches_of_the_training_data(trained: Trained) -> None:
    _, path = trained
    options = [f"--ckpt_path={path}", f"--config={REGRESSION}", "--h=lam=0.3", "--out=net.pt"]
    assert main(["export", *options, "--recalibrate"]).difference < 1e-5
    assert main(["export", *options, "--recalibrate=2"]).difference < 1e-5


def test_diagnose_prints_its_report_and_writes_it(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    model, path = trained
    report = main(["diagnose", f"--ckpt_path={path}", f"--config={REGRESSION}", "--draws=2", "--out=results"])
    printed = capsys.readouterr().out
    assert str(report) in printed
    assert printed.splitlines()[-1] == "wrote results/diagnosis.txt, results/diagnosis.json, results/diagnosis.png"
    assert json.loads(Path("results/diagnosis.json").read_text())["verdicts"] == report.verdicts
    same = mip.diagnose(model, loader(seed=1), draws=2)
    assert report.verdicts == same.verdicts
    assert [file.name for file in Path().iterdir()] == ["results"]


def test_diagnose_looks_at_the_data_that_are_named(trained: Trained) -> None:
    model, path = trained
    for part, seed in (("train", 0), ("val", 1), ("test", 2)):
        report = main(
            ["diagnose", f"--ckpt_path={path}", f"--config={REGRESSION}", "--draws=2", "--batches=3", f"--part={part}"]
        )
        expected = mip.diagnose(model, loader(seed=seed), draws=2, batches=3)
        assert report.matter.right == pytest.approx(expected.matter.right), part
        assert report.batches == 3


@pytest.mark.parametrize("command", ["export", "diagnose"])
def test_help_shows_examples_and_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code in (0, None)
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: lightning-mip {command} ")
    assert f"  lightning-mip {command} --c" in printed
    options = {"--config", "--ckpt_path", "--out"}
    options |= {"--h", "--format", "--recalibrate"} if command == "export" else {"--draws", "--batches", "--part"}
    assert all(f"\n  {option} " in printed for option in options)


def test_the_commands_are_listed_with_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "diagnose (say whether the hypernetwork of a trained module does anything)" in printed
    assert "export (take the plain network of one h out, as weights, a checkpoint or a program)" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            [],
            "diagnose: error: LightningDataModule has no val_dataloader or train_dataloader, so there are no batches "
            "to look at; define it, or name a data module that has it, --data=package.module.Class.",
        ),
        (
            ["--part=test"],
            "diagnose: error: LightningDataModule has no test_dataloader, so there are no batches to look at; define "
            "it, or name a data module that has it, --data=package.module.Class.",
        ),
    ],
)
def test_diagnose_needs_a_data_module_with_data(
    trained: Trained, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = trained
    config = yaml.safe_load(REGRESSION.read_text())
    config["data"] = {"class_path": "lightning.pytorch.LightningDataModule"}
    Path("run.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as stop:
        main(["diagnose", f"--ckpt_path={path}", "--config=run.yaml", *options])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"lightning-mip {message}"


def _export(*options: str) -> list[str]:
    return ["export", "--ckpt_path=CKPT", "--out=net.pt", *options]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (_export(), "export: error: --h lacks lam: nothing was given, expected lam=0.5 with all components of h."),
        (
            _export("--h=0.3"),
            "export: error: --h 0.3: expected a value such as lam=0.5; the one component of h is lam.",
        ),
        (
            _export("--h=lan=0.3"),
            "export: error: --h lan=0.3: h has no component 'lan'; its components are lam. Did you mean 'lam'?",
        ),
        (
            _export("--h=lam=3"),
            "export: error: --h lam=3: h['lam'] = 3 is outside the support of its prior Uniform(low=0.0, high=1.0, "
            "endpoints=0.0).",
        ),
        (
            _export("--h=lam=a"),
            "export: error: --h lam=a: expected a value such as lam=0.5; the one component of h is lam.",
        ),
        (
            _export("--h=lam=0.3", "--recalibrate"),
            "export: error: --recalibrate needs training batches: give the run's --config, with a data module.",
        ),
        (
            _export("--h=lam=0.3", "--data.batch_size=3"),
            "export: error: unknown argument --data.batch_size=3; arguments of the module and its data need the run's "
            "--config.",
        ),
        (
            ["export", "--ckpt_path=CKPT", "--h=lam=0.3"],
            "export: error: --out is missing: give the file to write, --out=net.pt, .ckpt, .pt2 or .onnx.",
        ),
        (
            ["export", "--ckpt_path=CKPT", "--h=lam=0.3", "--out=net"],
            "export: error: net does not say by its suffix what to write; use one of .pt, .pth, .ckpt, .pt2, .onnx, or "
            "give format: state_dict, checkpoint, torch_export, onnx.",
        ),
        (
            ["export", "--ckpt_path=none.ckpt"],
            "export: error: --ckpt_path none.ckpt: there is no such file.",
        ),
        (
            ["diagnose", "--config=CONFIG"],
            "diagnose: error: --ckpt_path is missing: give the checkpoint of the trained module, --ckpt_path=PATH.",
        ),
        (
            ["diagnose", "--ckpt_path=CKPT", "--config=CONFIG", "--metric=val_acc"],
            "diagnose: error: metric is 'val_acc', but validation_step logs no such value; it logs val_loss.",
        ),
        (
            ["diagnose", "--ckpt_path=CKPT", "--config=CONFIG", "--draws=0"],
            "diagnose: error: draws is 0, expected at least 1.",
        ),
    ],
)
def test_messages_are_one_line(
    trained: Trained, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = trained
    given = [argument.replace("CKPT", path).replace("CONFIG", str(REGRESSION)) for argument in arguments]
    with pytest.raises(SystemExit) as stop:
        main(given)
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lightning-mip ")]
    assert lines == [f"lightning-mip {message}"]
