"""Every cell of the table is right, or refused with the text that the table says, or not applicable."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.matrix.network_columns import LAMS, compiled
from tests.matrix.page import PAGE, page
from tests.matrix.subject import COARSE, assert_near, made, value
from tests.matrix.table import COLUMNS, EXCEPTIONS, ROWS, NotApplicable, Refused, cell, status
from tests.module_kinds import exactly

pytestmark = [
    # Dynamo, and scripted modules that were copied, look at it.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
    pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching"),
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),
    pytest.mark.filterwarnings("ignore:The verbose parameter is deprecated"),
]

ROOT = Path(__file__).parents[2]
SLOW = {("deep", "compile"), ("deep", "export")}
CELLS = [
    pytest.param(row, column, id=f"{column}-{row}", marks=[pytest.mark.slow] if (row, column) in SLOW else [])
    for column in COLUMNS
    for row in ROWS
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("row", "column"), CELLS)
def test_a_cell_is_what_the_table_says(
    row: str, column: str, tmp_path: Path, record_property: Callable[[str, str], None]
) -> None:
    declared, kind, check = cell(row, column), ROWS[row], COLUMNS[column]
    if isinstance(declared, Refused):
        with pytest.raises(declared.error, match=exactly(declared.text)):
            check(kind, tmp_path)
    elif isinstance(declared, NotApplicable):
        declared.shown_by(kind)
    else:
        check(kind, tmp_path)
    record_property("cell", status(row, column))


@pytest.mark.slow
def test_a_run_by_workers_tells_how_many_cells_it_tested() -> None:
    # All but this folder is left out, as collecting takes long, but by name the folder's own conftest would be found.
    others = [f"--ignore={path}" for path in (ROOT / "tests").iterdir() if path.name not in ("conftest.py", "matrix")]
    chosen = "eager-linear_root or eager-lazy_after_a_forward or eager-scripted_excluded or eager-complex"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--numprocesses", "1", *others, "-k", chosen],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "support matrix: 5 cells tested, 4 right, 1 refused, 0 not applicable" in done.stdout, done.stdout


def test_every_exception_is_of_a_cell_that_exists() -> None:
    assert {row for row, _ in EXCEPTIONS} <= set(ROWS)
    assert {column for _, column in EXCEPTIONS} <= {*COLUMNS, "*"}


def test_the_page_is_what_the_table_makes() -> None:
    assert PAGE.read_text() == page(), "run python -m tests.matrix.page"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("row", ["linear_root", "convolution_2d", "attention"])
def test_inductor_compiles_it_too(row: str) -> None:
    compiled(ROWS[row], backend="inductor")


# delta hardly changes their gradients: the columns in bfloat16 say nothing about h there, the exact ones do.
INSENSITIVE = {"checkpoint", "checkpoint_reentrant"}


@pytest.mark.parametrize("row", [row for row in ROWS if (row, "*") not in EXCEPTIONS and row not in INSENSITIVE])
def test_gradients_at_another_h_are_farther_away_than_the_coarsest_tolerance(row: str) -> None:
    _, inputs, by_hand = made(ROWS[row])
    found = []
    for lam in LAMS:
        for parameter in by_hand.parameters:
            parameter.grad = None
        value(by_hand(*inputs, lam=lam)).backward()
        found.append(by_hand.gradients())
    with pytest.raises(AssertionError, match="gradient"):
        assert_near(*found, COARSE, "gradient")
