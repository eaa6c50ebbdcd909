"""Fits that examples start: a plain network differs from the hypernetwork in nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from examples.bayesian_digits import mnist
from examples.common import running
from examples.pareto import demo as pareto
from examples.scale_space import demo as scale_space
from lightning_mip.cli import main

CONFIG = scale_space.HERE / "cells.yaml"


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The config of a plain network as it is fitted."""
    fitted: list[Path] = []
    monkeypatch.setattr(running, "fit", lambda config, runs, extra: fitted.append(config))
    running.fit_plain(CONFIG, tmp_path / "runs", [], "some.Plain", "own", phi=0.25)
    return yaml.safe_load(fitted[0].read_text())


def test_a_plain_network_has_the_same_data_budget_and_seed(plain: dict) -> None:
    hyper = yaml.safe_load(CONFIG.read_text())
    assert plain["trainer"]["logger"]["init_args"].pop("name") == "own"
    assert hyper["trainer"]["logger"]["init_args"].pop("name") == "cells"
    for key in ("data", "trainer", "seed_everything"):
        assert plain[key] == hyper[key]


def test_a_plain_network_takes_over_what_is_not_about_h(plain: dict) -> None:
    given = yaml.safe_load(CONFIG.read_text())["model"]["init_args"]
    assert plain["model"] == {
        "class_path": "some.Plain",
        "init_args": {"phi": 0.25, **{key: given[key] for key in ("primary", "optimizer", "lr_scheduler")}},
    }


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (scale_space.HERE / "cells.yaml", scale_space.full_budget(*scale_space.FULL["cells"])),
        (scale_space.HERE / "brain.yaml", scale_space.full_budget(*scale_space.FULL["brain"])),
        (pareto.HERE / "pareto.yaml", pareto.full_budget()),
        (mnist.HERE / "mnist.yaml", mnist.full_budget()),
    ],
)
def test_the_full_budgets_train_longer_and_anneal_to_the_end(
    config: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", str(config), *options, "--print_config"])
    assert not exit_.value.code
    found, small = yaml.safe_load(capsys.readouterr().out), yaml.safe_load(config.read_text())
    assert found["trainer"]["max_epochs"] > small["trainer"]["max_epochs"]
    for run in (found, small):
        assert run["model"]["init_args"]["lr_scheduler"]["init_args"]["T_max"] == run["trainer"]["max_epochs"]
    assert (found["data"]["init_args"]["image_size"] or 36) > small["data"]["init_args"]["image_size"]
