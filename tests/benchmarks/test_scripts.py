"""Each script on next to nothing: it runs, and its table is whole."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import curves, gain, memory, ranks, scaling, step_time, tables, time_to_accuracy
from benchmarks.curves import Point
from benchmarks.primaries import resnet18
from benchmarks.tasks import TASKS, Task, load
from benchmarks.update_matching import BATCH
from benchmarks.variants import VARIANTS
from lightning_mip import matching
from lightning_mip.selection import select

TINY = ["--rounds", "1", "--batch", "2", "--optimizers", "fused"]


@pytest.fixture(params=[["plain", "ours", "ours_paper"], ["plain", "ours", "hyperlight"]], ids=["ours", "hyperlight"])
def variants(request: pytest.FixtureRequest) -> list[str]:
    return request.param


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Random files of the forms that the tasks read."""
    rng = np.random.default_rng(0)

    def image(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, shape, dtype=np.uint8)

    def index(start: int, stop: int) -> np.ndarray:
        return np.arange(start, stop, dtype=np.int16)

    digits = {"x_train": image(20, 28, 28), "y_train": rng.integers(0, 10, 20, dtype=np.uint8)}
    np.savez(tmp_path / "mnist.npz", **digits, train_idx=index(0, 12), val_idx=index(12, 20))
    brains = {"image": image(5, 16, 16, 16), "seg": rng.integers(0, 4, (5, 16, 16, 16), dtype=np.uint8)}
    splits = {"train_idx": index(0, 3), "val_idx": index(3, 5)}
    np.savez(tmp_path / "ixi_brain2d.npz", **brains, **splits, label_names=np.array(list("abcd")))
    cells = {"image": image(5, 128, 128, 3), "label": rng.integers(0, 3, (5, 128, 128), dtype=np.uint8)}
    np.savez(tmp_path / "wbc.npz", **cells, **splits)
    return tmp_path


def rows(text: str) -> list[list[str]]:
    """Cells of all lines of tables but the rules."""
    lines = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_step_time(variants: list[str], tmp_path: Path) -> None:
    out = tmp_path / "step_time.md"
    text = step_time.main(["--primaries", "conv", *TINY, "--out", str(out), "--variants", *variants])
    assert out.read_text() == text
    assert [row[0] for row in rows(text)[1:]] == variants
    assert rows(text)[1][5:7] == ["1.00", "1.00"]
    assert {len(row) for row in rows(text)} == {len(step_time.HEADER)}


@pytest.mark.slow
def test_step_time_apart(variants: list[str]) -> None:
    text = step_time.main(["--primaries", "conv", "--apart", *TINY, "--variants", *variants[::2]])
    assert [row[0] for row in rows(text)[1:]] == variants[::2]


@pytest.mark.slow
def test_memory(variants: list[str]) -> None:
    text = memory.main(
        ["--primaries", "conv", "--steps", "1", "--batch", "2", "--optimizers", "fused", "--variants", *variants[::2]]
    )
    found = {row[0]: float(row[3]) for row in rows(text)[1:]}
    assert list(found) == variants[::2]
    assert all(value > 0 for value in found.values())
    assert rows(text)[1][6] == "1.00"
    assert "Plain alone: " in text


@pytest.mark.slow
def test_ranks(tmp_path: Path) -> None:
    out = tmp_path / "ranks.md"
    text = ranks.main(["--quick", "--ranks", "2", "--out", str(out)])
    assert out.read_text() == text
    variance, times, reduced = (rows(section)[1:] for section in text.split("\n## ")[1:])
    assert [row[:2] for row in variance] == [["1", "1.0000"], ["2", "0.5000"]]
    assert all(float(cell) > 0 for row in [*variance, *times] for cell in row)
    assert reduced[0][:2] == ["plain network", "61130"]


def test_gradients_of_more_processes_are_less_apart() -> None:
    assert ranks.computed(4, 6)["own h"] < ranks.computed(1, 24)["own h"]


@pytest.mark.parametrize("table", ["width", "batch", "dimension", "per_sample"])
def test_scaling(table: str, variants: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WIDTHS", "BATCHES", "DIMENSIONS"):
        monkeypatch.setattr(scaling, name, (2, 4))
    text = scaling.main(["--tables", table, *TINY, "--variants", *variants])
    if table == "per_sample":
        ours = [name for name in ("ours", "ours_paper") if name in variants]
        assert text.count("| grouped convolution by hand |") == len(ours)
    else:
        assert [row[0] for row in rows(text)[1:]] == ["2", "4"]
        assert all(float(cell) > 0 for row in rows(text)[1:] for cell in row)


@pytest.mark.slow
def test_scaling_of_a_compiled_hypernetwork() -> None:
    torch.compiler.reset()
    text = scaling.main(["--tables", "compiled", "--quick", *TINY])
    torch.compiler.reset()
    assert [row[0] for row in rows(text)[1:]] == ["eager", "compiled"]


def test_scaling_by_weights(variants: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "PARTS", {name: scaling.PARTS[name] for name in ("linear", "stage 1")})
    text = scaling.main(["--tables", "weights", *TINY, "--variants", *variants])
    assert [row[0] for row in rows(text)[1:]] == ["linear: 1,290", "stage 1: 9,808"]


def test_parts_of_the_resnet_grow_to_all_of_it() -> None:
    net = resnet18()
    sizes = [sum(net.get_parameter(n).numel() for n in select(net, part, ())) for part in scaling.PARTS.values()]
    assert sizes == sorted(sizes)
    assert sizes[-1] == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("task", TASKS)
def test_time_to_accuracy(task: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_to_accuracy, "load", _with_short_blocks)
    raw = tmp_path / "curves.json"
    argv = ["--tasks", task, "--steps", "2", "--lrs", "1e-3", "3e-3", "--seeds", "0", "1", "--data", str(data)]
    text = time_to_accuracy.main([*argv, "--batch", "2", "--variants", "plain", "ours", "--curves", str(raw)])
    plain, ours = ["plain"] * 2 * (task == "digits"), ["ours"] * 2  # at two learning rates
    assert [row[0].removesuffix(r" \*") for row in rows(text)] == ["variant", *plain, *ours]
    assert str(tmp_path) not in text  # the data are there too
    curve = json.loads(raw.read_text())[0][-1]
    assert [point[0] for point in curve] == [0, 1, 2]
    assert [point[1] for point in curve] == sorted(point[1] for point in curve)


def test_time_to_accuracy_against_hyperlight(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_to_accuracy, "load", _with_short_blocks)
    text = time_to_accuracy.main(["--tasks", "digits", "--steps", "2", "--quick", "--data", str(data), "--batch", "2"])
    assert "of the best of hyperlight" in text


def test_missing_data_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="LIGHTNING_MIP_DATA"):
        time_to_accuracy.main(["--data", str(tmp_path)])


def _with_short_blocks(name: str, folder: Path) -> Task:
    return dataclasses.replace(load(name, folder), every=1)


def test_one_lucky_evaluation_does_not_count() -> None:
    curve = [Point(step, float(step), value) for step, value in enumerate([0.1, 0.2, 0.9, 0.3, 0.8, 0.85])]
    assert [point.value for point in curves.smoothed(curve)] == [0.1, 0.1, 0.2, 0.3, 0.8, 0.8]
    assert curves.best(curve) == 0.8
    assert curves.reached(curve, 0.75).step == 4
    assert curves.reached(curve, 0.85) is None
    assert curves.milliseconds_per_step(curve) == 1000


def test_the_learning_rate_that_counts_reaches_the_target_on_most_seeds_and_first() -> None:
    def curve(*values: float) -> list[Point]:
        return [Point(step, 2.0 * step, value) for step, value in enumerate(values)]

    fast, slow, failed = curve(0, 0.8, 0.8, 0.8), curve(0, 0.5, 0.8, 0.8), curve(0, 0.8, 0.1, 0.1)
    results = {
        ("ours", "adam", 1.0): [fast, failed],
        ("ours", "adam", 2.0): [slow, slow],
        ("hyperlight", "adam", 1.0): [slow, slow],
        ("hyperlight", "adam", 2.0): [failed, failed],
    }
    target = time_to_accuracy.target_of(results, "hyperlight", 1.0)
    assert target == 0.8
    assert time_to_accuracy.target_of(results, "hyperlight", 0.5, 0.6) == pytest.approx(0.7)
    assert time_to_accuracy.chosen(results, target) == {
        ("ours", "adam"): ("ours", "adam", 2.0),
        ("hyperlight", "adam"): ("hyperlight", "adam", 1.0),
    }
    (line,) = time_to_accuracy.ratios(results, time_to_accuracy.chosen(results, target), "hyperlight", target)
    assert line == "- ours / hyperlight, adam: **1.00** of the seconds, 1.00 of the steps."
    own = {("ours", "fused", 1.0): [fast, fast], ("hyperlight", "adam", 1.0): [slow, slow]}
    (line,) = time_to_accuracy.ratios(own, time_to_accuracy.chosen(own, target), "hyperlight", target)
    assert line == "- ours / hyperlight, fused / adam: **0.67** of the seconds, 0.67 of the steps."


def test_page_says_how_it_was_made_but_not_where() -> None:
    argv = [
        "--data",
        "/home/somebody/data",
        "--data=/home/somebody/data",
        "--rounds",
        "3",
        "--out=/home/somebody/page.md",
    ]
    text = tables.page("Title", "step_time", argv, [], [])
    assert "python -m benchmarks.step_time --data DATA --data=DATA --rounds 3 --out=page.md" in text
    assert "somebody" not in text
    assert f"{torch.get_num_threads()} threads" in text


def test_variants_are_those_of_the_tables() -> None:
    assert list(VARIANTS) == ["plain", "ours", "ours_paper", "hyperlight"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec", "ignore:.*does not have many workers")
def test_gain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, count = np.random.default_rng(0), BATCH + 8
    digits = {"x_train": rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), "y_train": np.arange(count) % 10}
    np.savez(tmp_path / "mnist.npz", **digits, train_idx=np.arange(BATCH), val_idx=np.arange(BATCH, count))
    monkeypatch.chdir(tmp_path)  # Lightning's Transformer looks for its text there
    tiny = ["--seeds", "1", "--train", str(BATCH), "--epochs", "1", "--batches", "1", "--sines", "1", "--steps", "1"]
    text = gain.main([*tiny, "--data", str(tmp_path)])
    tasks, (_, *sines) = rows(text)[: 2 + len(gain.GAINS)], rows(text)[2 + len(gain.GAINS) :]
    assert [row[0] for row in tasks[1:]] == ["plain", *gain.GAINS]
    assert all(float(row[column].split()[0]) > 0 for row in tasks[1:] for column in (3, 4))
    assert [row[0] for row in sines] == ["trunk 1", "trunk 2", "trunk 4 (default)", "trunk 8"]
    assert {cell.split(",")[0] for row in sines for cell in row[1:]} <= {"0 of 1", "1 of 1"}
    assert (matching._LIMITS["sgd"], matching._PACES["sgd"], matching._SIZES["sgd"]) == (1.25, 2.0, 4.0)
