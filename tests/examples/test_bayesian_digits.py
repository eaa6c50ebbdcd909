"""The Bayesian digits example: its steps, its ensemble, its measures, and the demo on a tiny budget."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from examples.bayesian_digits import demo, figure
from examples.bayesian_digits.metrics import entropy, quality
from examples.bayesian_digits.task import BayesianDigits
from examples.common.running import fit
from lightning_mip.cli import main
from tests.examples.test_bayesian_digits_data import arrays, write_idx

HERE = Path(demo.__file__).parent
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
ON_CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
SMALL = [*QUIET, *ON_CPU, "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_quality_of_known_probabilities() -> None:
    sure = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.1]])
    measured = quality(sure, torch.tensor([0, 0, 1, 1]))
    assert measured.accuracy == 0.75
    assert measured.nll == pytest.approx(-(3 * math.log(0.9) + math.log(0.1)) / 4)
    assert measured.ece == pytest.approx(0.15, abs=1e-6)


def test_a_probability_of_zero_leaves_the_nll_finite() -> None:
    assert math.isfinite(quality(torch.tensor([[1.0, 0.0]]), torch.tensor([1])).nll)


def test_quality_refuses_draws_that_were_not_averaged() -> None:
    with pytest.raises(ValueError, match="Average"):
        quality(torch.full((3, 2, 2), 0.5), torch.tensor([0, 1, 0]))


def test_entropy() -> None:
    assert entropy(torch.full((10,), 0.1)).item() == pytest.approx(math.log(10))
    assert entropy(torch.tensor([1.0, 0.0])).item() == 0


def test_the_plain_network_has_the_same_data_and_budget() -> None:
    hyper, plain = (yaml.safe_load((HERE / name).read_text()) for name in ("demo.yaml", "plain.yaml"))
    assert hyper["data"] == plain["data"]
    assert hyper["seed_everything"] == plain["seed_everything"]
    for run in (hyper, plain):
        del run["trainer"]["logger"]
    assert hyper["trainer"] == plain["trainer"]
    for name in ("primary", "lr_scheduler"):
        assert hyper["model"]["init_args"][name] == plain["model"]["init_args"][name]


def test_validation_logs_each_h_and_their_mean(tmp_path: Path) -> None:
    cli = fit(HERE / "demo.yaml", tmp_path, SMALL)
    logged = {name: value.item() for name, value in cli.trainer.callback_metrics.items()}
    for metric in ("val_loss", "val_acc"):
        per_h = [value for name, value in logged.items() if name.startswith(f"{metric}/")]
        assert len(per_h) == 16
        assert logged[metric] == pytest.approx(sum(per_h) / 16, abs=1e-5)
    curve = figure.read_curve(Path(cli.trainer.logger.log_dir) / "metrics.csv", "val_loss")
    assert curve.epoch.tolist() == [1]
    assert curve.low[0] < curve.value[0] < curve.high[0]


def test_a_checkpoint_gives_the_same_ensemble(tmp_path: Path) -> None:
    cli = fit(HERE / "demo.yaml", tmp_path, SMALL)
    loaded = BayesianDigits.load_from_checkpoint(cli.trainer.checkpoint_callback.best_model_path, weights_only=True)
    x = torch.rand(3, 1, 8, 8)
    one, two = (model.predict_ensemble(x, 2, class_dim=-1).draws for model in (loaded, cli.model.cpu()))
    assert torch.equal(one, two)


def test_the_test_command_runs_on_the_grid(tmp_path: Path) -> None:
    save = ["--trainer.logger.init_args.save_dir", str(tmp_path)]
    cli = main(
        ["test", "--config", str(HERE / "demo.yaml"), *save, *QUIET, *ON_CPU, "--trainer.limit_test_batches", "1"]
    )
    assert {"test_loss", "test_acc"} <= cli.trainer.callback_metrics.keys()


def test_the_mnist_config_is_complete(tmp_path: Path) -> None:
    write_idx(tmp_path / "data", arrays(size=28), zipped=True)
    data = ["--data.root", str(tmp_path / "data"), "--data.val_size", "8"]
    save = ["--trainer.logger.init_args.save_dir", str(tmp_path)]
    cli = main(["fit", "--config", str(HERE / "mnist.yaml"), *data, *save, *SMALL])
    assert cli.datamodule.parts["train"].images.shape == (32, 14, 14)


def test_the_demo_prints_a_table_and_writes_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "demo.png"
    outcome = demo.main(["--out", str(out), "--runs", str(tmp_path), "--draws", "3", *SMALL])
    assert outcome.predicted.draws.shape == (3, 360, 10)
    assert out.read_bytes().startswith(b"\x89PNG")
    assert out.stat().st_size < 200_000
    printed = capsys.readouterr().out
    for word in ("one draw of h", "mean over draws of h", "plain network", "accuracy", "NLL", "ECE", str(out)):
        assert word in printed
    accuracies = [one.accuracy for one in outcome.single]
    assert f"{min(accuracies):.4f}" in printed
    assert f"{outcome.plain.nll:.4f}" in printed


def test_a_log_without_validation_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,train_loss\n0,1.0\n")
    with pytest.raises(ValueError, match="no values of 'val_loss'"):
        figure.read_curve(tmp_path / "metrics.csv", "val_loss")


def test_equal_values_are_piled_up() -> None:
    assert figure.stacked([0.5, 0.7, 0.5, 0.5]) == [1, 1, 2, 3]
