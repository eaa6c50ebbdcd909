"""Tells how many cells of the matrix a run has tested, and what they are."""

from __future__ import annotations

from collections import Counter
from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    passed = [dict(report.user_properties).get("cell") for report in terminalreporter.stats.get("passed", [])]
    found = Counter(status for status in passed if status)
    if found:
        each = ", ".join(f"{count} {status}" for status, count in found.items())
        terminalreporter.write_line(f"support matrix: {found.total()} cells tested: {each}")
