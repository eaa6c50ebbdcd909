"""Fits that examples start: a plain network differs from the hypernetwork in nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import examples.scale_space
from examples.common import running

CONFIG = Path(examples.scale_space.__file__).parent / "cells.yaml"


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
