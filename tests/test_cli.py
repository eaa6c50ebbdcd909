"""The command line: every command by a config, short class names, and errors that one can act on."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

import lightning_mip as mip
from lightning_mip.cli import main
from tests.tasks import Data, Evaluated, Net, Preferring, drawn, loader, sequence

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "tests" / "configs"
REGRESSION = str(CONFIGS / "regression.yaml")

Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder, with a config and further arguments."""
    monkeypatch.chdir(tmp_path)
    return lambda command, config=REGRESSION, *more: main([command, f"--config={config}", *more])


def test_fit_trains_the_module_that_the_config_describes(run: Run, tmp_path: Path) -> None:
    cli = run("fit")
    assert type(cli.model) is Evaluated
    assert type(cli.model.primary) is Net
    assert cli.model.space["lam"] == mip.Uniform(0, 1)
    assert [layer.out_features for layer in cli.model.hypernet.trunk if hasattr(layer, "out_features")] == [4]
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == 1e-2
    assert drawn(cli.model) == sequence(cli.model, 8)
    assert {"val_loss", "val_loss/lam=0", "val_loss/lam=0.5", "val_loss/lam=1"} < set(cli.trainer.callback_metrics)
    assert list(tmp_path.glob("**/*.ckpt"))


def test_a_config_of_every_argument_trains_logs_and_saves_it_all(run: Run, tmp_path: Path) -> None:
    cli = run("fit", str(CONFIGS / "everything.yaml"))
    assert type(cli.model) is Preferring
    kinds = {name: type(prior).__name__ for name, prior in cli.model.space.items()}
    assert kinds == {
        "kind": "Categorical",
        "lam": "LogUniform",
        "noise": "Normal",
        "tail": "FromTorch",
        "weights": "Simplex",
    }
    assert list(cli.model.hypernet.shapes) == ["last.weight"]
    assert cli.model.hypernet.encoding == "z|1-z"
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(2.5e-3)
    (sampler,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, mip.SampleH)]
    assert (sampler.seed, sampler.strategy) == (5, "sobol")
    header = next(tmp_path.glob("**/metrics.csv")).read_text().splitlines()[0].split(",")
    assert {"train_loss/weights=max0", "train_loss/kind=0.5", "train_loss/lam=0.01..0.1", "val_loss"} < set(header)


@pytest.mark.parametrize("config", ["regression.yaml", "everything.yaml"])
def test_the_saved_config_is_complete_and_repeats_the_run(run: Run, tmp_path: Path, config: str) -> None:
    first = run("fit", str(CONFIGS / config), "--trainer.max_epochs=1")
    saved = next(tmp_path.glob("**/config.yaml"))
    assert "Unable to serialize" not in saved.read_text()
    second = run("fit", str(saved), "--trainer.default_root_dir=second")
    for (name, one), two in zip(first.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_second_run_in_the_same_folder_writes_its_own_config(run: Run, tmp_path: Path) -> None:
    for epochs in (1, 2):
        run("fit", REGRESSION, f"--trainer.max_epochs={epochs}")
        assert yaml.safe_load((tmp_path / "config.yaml").read_text())["trainer"]["max_epochs"] == epochs


@pytest.fixture
def trained(run: Run, tmp_path: Path) -> tuple[Evaluated, str]:
    model = run("fit").model
    (path,) = tmp_path.glob("**/*.ckpt")
    return model, str(path)


def test_validate_test_and_predict_run_a_checkpoint(run: Run, trained: tuple[Evaluated, str]) -> None:
    model, path = trained
    validated = run("validate", REGRESSION, f"--ckpt_path={path}").trainer.callback_metrics
    tested = run("test", REGRESSION, f"--ckpt_path={path}").trainer.callback_metrics
    with torch.no_grad():
        for name, values, seed in (("val_loss", validated, 1), ("test_loss", tested, 2)):
            network, (x, y) = mip.materialize(model, lam=1), loader(seed=seed).dataset.tensors
            assert float(values[f"{name}/lam=1"]) == pytest.approx(float((network(x) - y).abs().mean()), rel=1e-5)
        x, _ = loader(seed=3).dataset.tensors
        expected = {f"lam={lam:g}": mip.materialize(model, lam=lam)(x) for lam in (0, 0.5, 1)}
    cli = run("predict", REGRESSION, f"--ckpt_path={path}", "--model.init_args.predict_h=grid")
    batches = cli.trainer.predict_loop.predictions
    for label, values in expected.items():
        torch.testing.assert_close(torch.cat([batch[label] for batch in batches]), values)


def test_a_checkpoint_of_the_command_line_is_rebuilt_from_the_path_alone(trained: tuple[Evaluated, str]) -> None:
    model, path = trained
    torch.load(path, weights_only=True)
    for kind in (Evaluated, L.LightningModule):
        loaded: Any = kind.load_from_checkpoint(path)
        assert type(loaded) is Evaluated
        x = torch.ones(2, 3)
        with torch.no_grad(), mip.at(model, lam=0.2), mip.at(loaded, lam=0.2):
            assert torch.equal(model(x), loaded(x))
        assert loaded.configure_optimizers().param_groups[0]["lr"] == 1e-2


def test_arguments_of_the_command_line_change_the_config(run: Run) -> None:
    cli = run(
        "fit",
        REGRESSION,
        "--model.init_args.h.lam.init_args.high=2",
        "--model.init_args.primary.init_args.width=3",
        "--model.init_args.eval_grid=2",
        "--trainer.max_epochs=1",
        "--trainer.callbacks+=SampleH",
        "--trainer.callbacks.seed=7",
    )
    assert cli.model.space["lam"] == mip.Uniform(0, 2)
    assert cli.model.primary.first.out_features == 3
    assert "val_loss/lam=2" in cli.trainer.callback_metrics
    assert drawn(cli.model) == sequence(cli.model, 4, seed=7)


def test_everything_can_be_given_without_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = "--model tests.tasks.Evaluated --model.primary tests.tasks.Net --model.primary.width 3"
    h = "--model.h.lam Uniform --model.h.lam.low 0 --model.h.lam.high 1"
    quiet = "--trainer.logger false --trainer.enable_progress_bar false --trainer.enable_model_summary false"
    rest = "--data tests.tasks.Data --trainer.max_epochs 1 --trainer.accelerator cpu --trainer.log_every_n_steps 1"
    cli = main(["fit", *f"{model} {h} {quiet} {rest}".split()])
    assert drawn(cli.model) == sequence(cli.model, 4)


def test_print_config_prints_every_argument_with_its_default(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("fit", REGRESSION, "--print_config")
    assert stop.value.code in (0, None)
    model = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert model["draws_per_batch"] == 1
    assert model["h"]["lam"] == {
        "class_path": "lightning_mip.Uniform",
        "init_args": {"low": 0.0, "high": 1.0, "endpoints": 0.0},
    }
    assert set(model) >= {"include", "exclude", "lr_scheduler", "predict_h", "per_sample", "h_from_batch"}


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code in (0, None)
    printed = capsys.readouterr().out
    assert "usage: lightning-mip" in printed
    assert all(command in printed for command in ("fit", "validate", "test", "predict"))


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "lightning_mip", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: lightning-mip")


def test_the_users_modules_are_found_from_the_working_directory_wherever_the_config_is(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "my_project.py").write_text("from tests.tasks import Evaluated as Mine\n")
    text = Path(REGRESSION).read_text()
    assert "tests.tasks.Evaluated" in text
    (tmp_path / "configs" / "run.yaml").write_text(text.replace("tests.tasks.Evaluated", "my_project.Mine"))
    # As a console script does, which puts its own folder on the path and not the working directory.
    start = f"import sys; sys.path[0] = {str(ROOT)!r}; from lightning_mip.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", start, "validate", "--config", "configs/run.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_console_script_is_the_same_and_ends_with_status_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["lightning-mip"].partition(":")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-mip", "validate", f"--config={REGRESSION}"])
    assert getattr(import_module(module), name)() is None


LAM = "--model.init_args.h.lam"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            [f"{LAM}.init_args.low=2"],
            ["Uniform(low=2.0, high=1.0, endpoints=0.0): expected finite bounds with low < high."],
        ),
        (
            [f"{LAM}.class_path=LogUniform"],
            [
                "LogUniform(low=0.0, high=1.0, endpoints=0.0): low is 0.0, expected a positive number; use Uniform for "
                "a range with 0."
            ],
        ),
        (["--model.init_args.draws_per_batch=0"], ["draws_per_batch is 0, expected at least 1"]),
        (["--trainer.callbacks+=PerHMetrics", "--trainer.callbacks.bins=0"], ["bins is 0, expected at least 1."]),
    ],
)
def test_values_that_a_class_refuses_are_named_with_the_class(
    run: Run, arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((ValueError, SystemExit)) as caught:
        run("fit", REGRESSION, *arguments)
    text = str(caught.value) + capsys.readouterr().err
    assert all(part in text for part in parts), text


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([f"{LAM}.class_path=Unifrom"], ["Unifrom"]),
        ([f"{LAM}.init_args.hihg=3"], ["hihg", "Uniform"]),
        (["--model.init_args.primary.class_path=tests.tasks.Nett"], ["tests.tasks.Nett"]),
        (["--model.init_args.primary.init_args.widht=3"], ["widht"]),
        (["--trainer.callbacks+=PreHMetrics"], ["PreHMetrics"]),
        (["--model.init_args.optimizer.class_path=torch.optim.Adamm"], ["torch.optim.Adamm"]),
    ],
)
def test_names_that_do_not_exist_are_named(
    run: Run, arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run("fit", REGRESSION, *arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert all(part in printed for part in parts), printed


def test_a_data_module_is_optional_in_the_call_from_python(run: Run) -> None:
    assert type(run("validate").datamodule) is Data
