"""Every cell of the table is right, or refused with the text that the table says, or not applicable."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.matrix.table import COLUMNS, ROWS, NotApplicable, Refused, cell
from tests.module_kinds import exactly


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("column", COLUMNS)
def test_a_cell_is_what_the_table_says(column: str, row: str, tmp_path: Path) -> None:
    declared = cell(row, column)
    if isinstance(declared, Refused):
        with pytest.raises(declared.error, match=exactly(declared.text)):
            COLUMNS[column](ROWS[row], tmp_path)
    elif not isinstance(declared, NotApplicable):
        COLUMNS[column](ROWS[row], tmp_path)
