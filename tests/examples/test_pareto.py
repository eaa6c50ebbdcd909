"""The Pareto example: pairs of digits, hypervolume, steps, and the demo on a tiny budget."""

from __future__ import annotations

import itertools
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lightning_mip as mip
from examples.pareto import demo
from examples.pareto.data import MultiMNIST, overlaid
from examples.pareto.front import hypervolume
from examples.pareto.network import TwoHeads
from examples.pareto.task import FixedPreference, Pareto, accuracies, losses
from lightning_mip.cli import main
from tests.examples.test_bayesian_digits_data import arrays

HERE = Path(demo.__file__).parent
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
ON_CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
SMALL = [*QUIET, *ON_CPU, "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]

# Quarters: sums of their products are exact.
quarters = st.integers(0, 8).map(lambda k: k / 4)
clouds = st.lists(st.tuples(quarters, quarters), min_size=1, max_size=6)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def unlogged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps called by hand log nowhere."""
    monkeypatch.setattr(L.LightningModule, "log", lambda *_, **__: None)


def ready(module: MultiMNIST) -> MultiMNIST:
    module.prepare_data()
    module.setup()
    return module


@given(clouds)
def test_the_hypervolume_is_the_area_of_the_cells_that_a_point_dominates(points: list[tuple[float, float]]) -> None:
    cells = itertools.product(np.arange(0, 1.5, 0.25), repeat=2)
    dominated = sum(any(x <= a and y <= b for x, y in points) for a, b in cells)
    assert hypervolume(points, (1.5, 1.5)) == dominated / 16


@given(clouds, st.tuples(quarters, quarters))
def test_another_point_never_makes_the_hypervolume_smaller(
    points: list[tuple[float, float]], other: tuple[float, float]
) -> None:
    assert hypervolume([*points, other], (1.5, 1.5)) >= hypervolume(points, (1.5, 1.5))


def test_digits_are_laid_at_the_left_top_and_the_right_bottom() -> None:
    first, second = torch.full((1, 28, 28), 3, dtype=torch.uint8), torch.full((1, 28, 28), 5, dtype=torch.uint8)
    both = overlaid(first, second)[0]
    assert both.shape == (36, 36)
    assert both[0, 0] == both[27, 0] == both[0, 27] == 3
    assert both[35, 35] == both[8, 8] == both[27, 27] == 5
    assert both[0, 28] == both[28, 0] == 0


def test_each_digit_is_once_on_each_side(tmp_path: Path) -> None:
    np.savez(tmp_path / "mnist.npz", **arrays())
    part = ready(MultiMNIST(tmp_path, val_size=8)).parts["train"]
    x, y = part.all()
    assert x.shape == (32, 1, 15, 15)
    assert y.shape == (32, 2)
    left, right = y.T
    assert left.bincount().tolist() == right.bincount().tolist()
    assert not torch.equal(left, right)


def test_pairs_are_resized_as_a_whole_and_depend_on_the_seed_alone(tmp_path: Path) -> None:
    np.savez(tmp_path / "mnist.npz", **arrays())
    first, again, other = (
        ready(MultiMNIST(tmp_path, val_size=8, image_size=5, seed=seed)).parts["test"].images for seed in (0, 0, 1)
    )
    assert first.shape == (10, 5, 5)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.usefixtures("unlogged")
def test_the_loss_is_the_preferred_mean() -> None:
    torch.manual_seed(0)
    model = Pareto(TwoHeads(2, 4), {"preference": mip.Simplex(2)})
    x, y = torch.rand(6, 1, 8, 8), torch.randint(10, (6, 2))
    with model.at(preference=[0.25, 0.75]):
        left, right = losses(model(x), y).tolist()
        assert model.training_step((x, y), 0).item() == pytest.approx(0.25 * left + 0.75 * right)
    plain = FixedPreference(TwoHeads(2, 4), [1.0, 0.0])
    assert plain.training_step((x, y), 0).item() == pytest.approx(losses(plain.primary(x), y)[0].item())


def test_losses_and_accuracies_are_left_and_right() -> None:
    labels = torch.tensor([[1, 2], [3, 4]])
    sure = [50 * torch.nn.functional.one_hot(column, 10).float() for column in labels.T]
    assert losses((sure[0], sure[1]), labels).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert losses((sure[0], sure[0]), labels).tolist() == pytest.approx([0, 50])
    assert accuracies((sure[0], sure[0]), labels).tolist() == [1, 0]


def test_the_config_validates_both_digits_at_every_ray(tmp_path: Path) -> None:
    np.savez(tmp_path / "mnist.npz", **arrays())
    options = ["--data.root", str(tmp_path), "--data.val_size", "8", "--data.image_size", "8"]
    save = ["--trainer.logger.init_args.save_dir", str(tmp_path)]
    cli = main(["fit", "--config", str(HERE / "pareto.yaml"), *options, *save, *SMALL])
    logged = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    for ray in ((0, 1), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1, 0)):
        label = f"preference={ray[0]:g}:{ray[1]:g}"
        parts = [logged[f"val_loss_{side}/{label}"] for side in ("left", "right")]
        assert logged[f"val_loss/{label}"] == pytest.approx(np.dot(ray, parts), abs=1e-5)


def test_the_demo_prints_fronts_and_hypervolumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "mnist.npz", **arrays())
    data = ["--data.root", str(tmp_path), "--data.val_size", "8", "--data.image_size", "8"]
    out = tmp_path / "new" / "pareto.png"
    outcome = demo.main(["--out", str(out), "--runs", str(tmp_path), *data, *SMALL])
    assert out.read_bytes().startswith(b"\x89PNG")
    assert len(outcome.front) == 25
    assert [point.left for point in outcome.separate] == pytest.approx([1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6])
    assert [point.left for point in outcome.same_rays] == [point.left for point in outcome.separate]
    printed = capsys.readouterr().out
    for points in (outcome.front, outcome.same_rays, outcome.separate):
        for value in demo.volumes(points):
            assert f"{value:.4f}" in printed
    assert demo.volumes(outcome.front)[1] >= demo.volumes(outcome.same_rays)[1] > 0
