"""The table that a sweep returns."""

from __future__ import annotations

import builtins
import csv
import pickle
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

import lightning_mip as mip
from tests.module_kinds import exactly

SPACE = mip.HSpace({"lam": mip.Uniform(0, 1), "w": mip.Simplex(2)})
GRID = SPACE.grid({"lam": 3, "w": 2})
LOSS = torch.tensor([3.0, 0.1, 2.0, float("nan"), 5.0, 4.0])


@pytest.fixture
def table() -> mip.Sweep:
    return mip.Sweep(SPACE, GRID, {"val_loss": LOSS, "lam": -LOSS})


def test_it_says_what_it_holds(table: mip.Sweep) -> None:
    assert len(table) == 6
    assert repr(table) == "Sweep(6 points of lam, w; val_loss, lam)"
    assert table["val_loss"] is LOSS
    assert table.labels[0] == "lam=0,w=0:1"
    assert table.values("w").shape == (6, 2)


def test_printed_it_is_a_table(table: mip.Sweep) -> None:
    assert str(table.select(lam=0.5)).splitlines() == [
        "lam  w[0]  w[1]  val_loss  metric lam",
        "0.5     0     1         2          -2",
        "0.5     1     0       nan         nan",
    ]
    space = mip.HSpace({"id": mip.Categorical(values=[1234567, 1234568])})
    ids = mip.Sweep(space, space.grid(2), {"loss": torch.tensor([1.0, 2.0])})
    assert str(ids).splitlines() == ["     id  loss", "1234567     1", "1234568     2"]


def test_best_is_the_lowest_or_highest_and_no_nan(table: mip.Sweep) -> None:
    low, high = table.best("val_loss", "min"), table.best("val_loss", "max")
    assert (low.value, high.value) == (pytest.approx(0.1), 5)
    assert SPACE.label(low.h) == "lam=0,w=1:0"
    assert SPACE.label(high.h) == "lam=1,w=0:1"


def test_best_names_what_there_is(table: mip.Sweep) -> None:
    with pytest.raises(KeyError, match="The sweep has no metric 'val_los'; its metrics are val_loss, lam"):
        table.best("val_los", "min")
    with pytest.raises(ValueError, match=exactly("mode is 'low', expected 'min' or 'max'.")):
        table.best("val_loss", "low")  # type: ignore[arg-type]


def test_nothing_is_best_where_all_is_nan() -> None:
    table = mip.Sweep(SPACE, GRID, {"val_loss": torch.full((6,), torch.nan)})
    with pytest.raises(
        ValueError, match=exactly("val_loss is NaN at all 6 points of the sweep, so none of them is best.")
    ):
        table.best("val_loss", "min")


def test_a_part_is_taken_by_value(table: mip.Sweep) -> None:
    part = table.select(lam=0.5)
    assert part.labels == ["lam=0.5,w=0:1", "lam=0.5,w=1:0"]
    assert part["val_loss"].tolist()[0] == 2
    assert part.varying == ["w"]
    assert table.select({"lam": 1}, w=[1, 0])["val_loss"].tolist() == [4]


def test_values_that_are_not_there_are_answered_with_those_that_are(table: mip.Sweep) -> None:
    with pytest.raises(
        ValueError, match=exactly("No point of the sweep has lam=0.3; its values are lam=0, lam=0.5, lam=1.")
    ):
        table.select(lam=0.3)


def test_the_file_has_a_column_per_number_and_metric(table: mip.Sweep, tmp_path: Path) -> None:
    table.to_csv(tmp_path / "sweep.csv")
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["lam", "w[0]", "w[1]", "val_loss", "metric lam"]
    assert rows[2] == ["0.0", "1.0", "0.0", "0.1", "-0.1"]
    assert len(rows) == 7


def test_pandas_gets_the_same_columns(table: mip.Sweep) -> None:
    frame = table.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame) == list(table.columns())
    assert frame["val_loss"].isna().sum() == 1


def test_without_pandas_it_says_what_to_install(table: mip.Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "pandas":
            raise ImportError
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=exactly("to_pandas needs pandas; pip install pandas, or use to_csv(path).")):
        table.to_pandas()


def test_it_is_pickled(table: mip.Sweep) -> None:
    assert pickle.loads(pickle.dumps(table)).columns()["lam"] == table.columns()["lam"]
