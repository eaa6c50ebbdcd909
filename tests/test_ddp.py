"""Training on two processes: `ddp_program` runs there, these tests look at what each process saw."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torchmetrics.classification import BinaryAUROC

import lightning_mip as mip
from tests.ddp_program import watched
from tests.tasks import BATCHES, Evaluated, loader, make

ROOT = Path(__file__).parents[1]
# Two processes see two batches each, in each of two epochs.
EACH = BATCHES // 2
RANKS = (0, 1)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two processes wrote, by rank."""
    folder = tmp_path_factory.mktemp("ddp")
    environment = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "MASTER_PORT")}
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "ddp_program.py"), str(folder)],
        cwd=folder,
        env={**environment, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in RANKS]


def assert_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert list(one) == list(other)
    for name in one:
        assert torch.equal(one[name], other[name]), name


RUNS = ["plain", "same", "sobol", "recomputed", "without theta0", "heads", "draws"]


@pytest.mark.parametrize("run", RUNS)
def test_parameters_are_equal_on_both_processes_and_trained(seen: list[dict[str, Any]], run: str) -> None:
    first, second = (each[run] for each in seen)
    assert_equal(first["parameters"], second["parameters"])
    start = dict(watched().named_parameters())
    same = {name for name, value in first["parameters"].items() if name in start and torch.equal(value, start[name])}
    assert same == ({name for name in start if name.startswith("primary")} if run == "without theta0" else set())


@pytest.mark.parametrize("run", [run for run in RUNS if run != "draws"])
def test_gradients_are_the_mean_of_those_of_the_processes(seen: list[dict[str, Any]], run: str) -> None:
    first, second = (each[run] for each in seen)
    assert_equal(first["gradients"], second["gradients"])
    for name, gradient in first["gradients"].items():
        mean = (first["local"][name] + second["local"][name]) / 2
        torch.testing.assert_close(gradient, mean, msg=lambda text, name=name: f"{name}: {text}")
        assert gradient.abs().sum() > 0, name
    assert any(not torch.equal(first["local"][name], second["local"][name]) for name in first["local"])


@pytest.mark.parametrize("run", ["plain", "recomputed"])
def test_inside_the_network_each_process_has_its_own_h(seen: list[dict[str, Any]], run: str) -> None:
    space = mip.HSpace({"lam": mip.Uniform(0, 1)})
    drawn = [each[run]["lam"] for each in seen]
    for rank in RANKS:
        expected = [float(space.sample(seed=0, rank=rank, step=step)["lam"]) for step in range(2 * EACH)]
        runs = 2 if run == "recomputed" else 1  # the same h when the network runs again in the backward
        assert drawn[rank] == [lam for lam in expected for _ in range(runs)]
    assert not set(drawn[0]) & set(drawn[1])


def test_one_h_for_all_processes_if_asked_for(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["same"]["lam"] == seen[1]["same"]["lam"] == seen[0]["plain"]["lam"]


def test_low_discrepancy_draws_are_spread_over_the_processes(seen: list[dict[str, Any]]) -> None:
    drawn = [lam for each in seen for lam in each["sobol"]["lam"]]
    assert sorted(int(lam * 8) for lam in drawn) == list(range(8))


def test_a_resumed_run_goes_on_with_the_h_of_each_process(seen: list[dict[str, Any]]) -> None:
    for each in seen:
        whole, later = each["resumed"]["whole"], each["resumed"]["later"]
        assert later["lam"] == whole["lam"][EACH:]
        assert_equal(later["parameters"], whole["parameters"])


def test_metrics_on_the_grid_are_those_of_all_samples(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["evaluated"]["table"] == seen[1]["evaluated"]["table"]
    model = make(Evaluated)
    assert_equal(dict(model.named_parameters()), seen[0]["evaluated"]["parameters"])
    x, y = loader(seed=1).dataset.tensors
    expected = {}
    for lam in (0, 0.25, 0.5, 0.75, 1):
        with torch.no_grad():
            predicted = mip.materialize(model, lam=lam)(x)
        error = predicted - y
        expected[f"val_loss/lam={lam:g}"] = float((1 - lam) * error.square().mean() + lam * error.abs().mean())
        expected[f"auroc/lam={lam:g}"] = float(BinaryAUROC()(predicted[:, 0].sigmoid(), (y[:, 0] > 0).long()))
    for name in ("val_loss", "auroc"):
        values = [value for key, value in expected.items() if key.startswith(f"{name}/")]
        expected[name] = sum(values) / len(values)
    assert seen[0]["evaluated"]["table"] == pytest.approx(expected, rel=1e-5)


def test_a_sweep_shares_the_samples_and_gives_each_process_the_whole_table(seen: list[dict[str, Any]]) -> None:
    model = make(Evaluated)
    x, y = loader(seed=1).dataset.tensors
    expected = []
    for lam in (0, 0.5, 1):
        with torch.no_grad():
            error = mip.materialize(model, lam=lam)(x) - y
        expected.append((1 - lam) * error.square().mean() + lam * error.abs().mean())
    for each in seen:
        assert each["swept"]["steps"] == EACH  # at each h
        torch.testing.assert_close(each["swept"]["values"], torch.stack(expected))


def test_bins_that_only_one_process_sees_are_kept_apart(seen: list[dict[str, Any]]) -> None:
    labels = {0: "lam=0..0.25", 1: "lam=0.75..1"}
    for each in seen:
        logged = {name: float(value) for name, value in each["binned"]["logged"].items() if "/lam=" in name}
        assert {name for name in logged if "loss" not in name} == {
            f"{name}/{label}" for name in ("rank", "auroc", "mean") for label in labels.values()
        }
        for rank, label in labels.items():
            scores, targets = seen[rank]["binned"]["scores"], seen[rank]["binned"]["targets"]
            assert logged[f"rank/{label}"] == rank + (EACH - 1) / 2
            assert logged[f"auroc/{label}"] == pytest.approx(float(BinaryAUROC()(scores, targets)))
            assert logged[f"mean/{label}"] == pytest.approx(float(scores.mean()))


@pytest.mark.slow
def test_spawned_processes_bring_the_trained_module_back(tmp_path: Path, seen: list[dict[str, Any]]) -> None:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    model = watched()
    trainer = Trainer(
        default_root_dir=tmp_path, max_epochs=2, accelerator="cpu", devices=2, strategy="ddp_spawn", **quiet
    )
    trainer.fit(model, loader(), loader(seed=1))
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, seen[0]["plain"]["parameters"][name])
    with torch.no_grad():
        torch.testing.assert_close(model(torch.ones(1, 3)), mip.materialize(model, lam=0.5)(torch.ones(1, 3)))
