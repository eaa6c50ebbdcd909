"""What every test starts from and leaves behind: seeds, environment, process group, and a quiet Trainer.

And what a run tells of the matrix: here, as a conftest of its folder is not loaded where workers run the tests.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

for _name in ("lightning.pytorch", "lightning.fabric"):  # what a Trainer tells of devices and epochs drowns failures
    logging.getLogger(_name).setLevel(logging.WARNING)


@pytest.fixture(autouse=True)
def _clean_process() -> Iterator[None]:
    """Fix the seed before a test; restore the environment and the torch settings that Trainers change after it."""
    environment, threads = dict(os.environ), torch.get_num_threads()
    torch.manual_seed(0)
    yield
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    left = torch.distributed.is_available() and torch.distributed.is_initialized()
    if left:
        torch.distributed.destroy_process_group()
    assert not left, "the test left a process group behind"
    assert torch.get_default_dtype() == torch.float32, "the test left another default dtype behind"


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., L.Trainer]:
    """A Trainer that writes nothing but what a test asks for, two epochs unless told."""

    def make(**arguments: Any) -> L.Trainer:
        defaults: dict[str, Any] = {
            "default_root_dir": tmp_path,
            "max_epochs": 2,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
        }
        return L.Trainer(**{**defaults, **arguments})

    return make


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tell how many cells of the support matrix were tested, and what they are."""
    passed = [dict(report.user_properties).get("cell") for report in terminalreporter.stats.get("passed", [])]
    found = Counter(status for status in passed if status)
    if found:
        each = ", ".join(f"{found[status]} {status}" for status in ("right", "refused", "not applicable"))
        terminalreporter.write_line(f"support matrix: {found.total()} cells tested, {each}")
