"""``lightning-mip sweep``."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import lightning_mip as mip
from lightning_mip.cli import main
from tests.tasks import Data

ROOT = Path(__file__).parents[2]
REGRESSION = str(ROOT / "tests" / "configs" / "regression.yaml")

Run = Callable[..., mip.Sweep]
DOUBLES = "The grid of h has lam=0.1 more than once; metric names would collide. Drop the doubles."


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A trained run in the working directory, an empty folder."""
    monkeypatch.chdir(tmp_path)
    main(["fit", f"--config={REGRESSION}"])
    (path,) = tmp_path.glob("**/*.ckpt")
    return str(path)


@pytest.fixture
def run(checkpoint: str) -> Run:
    return lambda *more: main(["sweep", f"--config={REGRESSION}", f"--ckpt_path={checkpoint}", *more])


def test_it_writes_table_figure_and_page(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (tmp_path / "config.yaml").read_text()
    table = run("--grid", "lam=0:1:3", "--best=val_loss=min", "--out=results")
    with (tmp_path / "results" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["lam"] for row in rows] == ["0.0", "0.5", "1.0"]
    assert [float(row["val_loss"]) for row in rows] == pytest.approx(table["val_loss"].tolist())
    assert (tmp_path / "results" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "Evaluated over lam" in (tmp_path / "results" / "sweep.html").read_text(encoding="utf-8")
    best = table.best("val_loss", "min")
    assert capsys.readouterr().out.splitlines()[-4:] == [
        f"best val_loss = {best.value:.6g} at {table.space.label(best.h)}",
        "wrote results/sweep.csv: 3 values of h, 1 metrics",
        "wrote results/sweep.png",
        "wrote results/sweep.html",
    ]
    assert (tmp_path / "config.yaml").read_text() == before


def test_the_values_are_those_of_the_checkpoint(run: Run, checkpoint: str) -> None:
    table = run("--grid=lam=at:0.3")
    cli = main(
        ["validate", f"--config={REGRESSION}", f"--ckpt_path={checkpoint}", "--model.init_args.eval_grid=[{lam: 0.3}]"]
    )
    assert table["val_loss"].tolist() == pytest.approx([float(cli.trainer.callback_metrics["val_loss"])])


def test_the_grid_is_21_points_unless_told(run: Run) -> None:
    assert len(run()) == 21


def test_arguments_of_validate_change_the_config(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: set[int] = set()
    given = Data.val_dataloader
    monkeypatch.setattr(Data, "val_dataloader", lambda self: sizes.add(self.batch_size) or given(self))
    run("--grid=lam=2", "--data.init_args.batch_size=16")
    assert sizes == {16}


def test_the_test_stage(run: Run) -> None:
    assert list(run("--grid=lam=2", "--stage=test").metrics) == ["test_loss"]


PLUGGED = {
    "model": "tests.test_sweep.Plain",
    "data": "tests.tasks.Data",
    "trainer": {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "callbacks": [
            {
                "class_path": "Hypernetize",
                "init_args": {
                    "target": "net",
                    "h": {"hparams.lam": {"class_path": "Uniform", "init_args": {"low": 0, "high": 1}}},
                    "hypernet": {"hidden_sizes": [4]},
                },
            }
        ],
    },
}


def test_a_module_with_the_plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(PLUGGED))
    main(["fit", "--config=run.yaml"])
    (path,) = tmp_path.glob("**/*.ckpt")
    table = main(["sweep", "--config=run.yaml", f"--ckpt_path={path}", "--grid=hparams.lam=0:1:3"])
    assert table["val_penalty"].tolist() == [0, 0.5, 1]


def test_help_is_enough_to_begin_with(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sweep", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: lightning-mip sweep")
    assert all(
        part in printed for part in ("sweep.csv", "sweep.png", "sweep.html", "--grid lam=0:1:21", "log:1e-3:10:9")
    )
    assert max(map(len, printed.splitlines())) <= 120


def test_help_of_the_program_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "sweep (evaluate a trained module" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--grid=lam=0:1"],
            "--grid lam=0:1: expected lam=0:1:21 (low:high:points), lam=5 (points over its prior) or lam=at:0,0.5,1 "
            "(values); the one component of h is lam.",
        ),
        (["--grid=lma=3"], "--grid lma=3: h has no component 'lma'; its components are lam. Did you mean 'lam'?"),
        (["--best=val_loss"], "--best val_loss: expected METRIC=min or METRIC=max, such as val_loss=min."),
        (["--grid=lam=2", "--best=val_los=min"], "--best val_los: no such metric was logged; there are val_loss."),
        (["--grid=lam=200000"], "--grid lam=200000: grid(200000): expected at most 100000 points."),
        (["--grid=lam=at:0.1,0.1"], DOUBLES),
    ],
)
def test_a_mistake_is_answered_in_one_line(
    run: Run, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"lightning-mip sweep: error: {message}"


def test_a_checkpoint_is_asked_for_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([], "--ckpt_path is missing: give the checkpoint of the trained module, --ckpt_path=PATH."),
        ([f"--ckpt_path={tmp_path}/no.ckpt"], f"--ckpt_path {tmp_path}/no.ckpt: there is no such file."),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["sweep", f"--config={REGRESSION}", *arguments])
        assert stop.value.code == 2
        assert capsys.readouterr().err == f"lightning-mip sweep: error: {message}\n"
