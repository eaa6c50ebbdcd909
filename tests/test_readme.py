"""The README's first program, as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_first_program_prints_about_what_it_says(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", blocks[0]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    exact = [float(number) for number in re.search(r"# exact: (.*)", blocks[0])[1].split(",")]
    printed = [line.split() for line in done.stdout.splitlines() if re.fullmatch(r"0\.\d \S+", line)]
    assert [float(tau) for tau, _ in printed] == [0.1, 0.5, 0.9]
    assert [float(value) for _, value in printed] == pytest.approx(exact, abs=0.1)
