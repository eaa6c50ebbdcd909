"""Loading what somebody else made never runs code, and pages show what they are given as text."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor

import lightning_mip as mip
from tests.tasks import Evaluated, Net, loader

PACKAGE = Path(mip.__file__).parent


class Hostile:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@dataclass(frozen=True)
class Own(mip.Uniform):
    """A prior that a user wrote."""

    def cdf(self, h: Tensor) -> Tensor:
        return super().cdf(h)


def trained(folder: Path, prior: mip.Prior) -> Path:
    """A checkpoint of one epoch."""
    model = Evaluated(Net(), {"lam": prior}, hypernet={"hidden_sizes": [4]}, eval_grid=2)
    trainer = L.Trainer(
        default_root_dir=folder, max_epochs=1, logger=False, accelerator="cpu", enable_progress_bar=False
    )
    trainer.fit(model, loader(), loader())
    trainer.save_checkpoint(folder / "run.ckpt")
    return folder / "run.ckpt"


@pytest.mark.parametrize("prior", [mip.Uniform(0, 1), Own(0, 1)], ids=["of the package", "of a user"])
def test_a_checkpoint_is_plain_data_with_priors_of_any_kind(tmp_path: Path, prior: mip.Prior) -> None:
    checkpoint = torch.load(trained(tmp_path, prior), weights_only=True)
    assert type(prior).__name__ in str(checkpoint["hyper_parameters"])


def test_export_of_a_checkpoint_with_code_in_it_is_refused_and_the_code_is_not_run(tmp_path: Path) -> None:
    path, made = trained(tmp_path, mip.Uniform(0, 1)), tmp_path / "made by the checkpoint"
    torch.save({**torch.load(path, weights_only=True), "extra": Hostile(made)}, path)
    text = (
        f"{path} is no checkpoint, or holds more than plain data, which loading would have to run; it was not loaded."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        mip.export(path, {"lam": 0.5}, tmp_path / "net.pt")
    assert not made.exists()


def test_what_is_no_checkpoint_of_a_trainer_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    text = f"{tmp_path / 'other.pt'} has no state_dict in it, expected a checkpoint that a Trainer has written."
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        mip.export(tmp_path / "other.pt", {"lam": 0.5}, tmp_path / "net.pt")


def calls(name: str) -> Iterator[tuple[Path, ast.Call]]:
    """Calls of a function by the last part of its name, in the whole package."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == name:
                yield path, node


def test_the_package_neither_evaluates_text_nor_unpickles() -> None:
    for path in PACKAGE.rglob("*.py"):
        imported = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        assert not imported & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}, path
    evaluated = [path for name in ("eval", "exec") for path, call in calls(name) if isinstance(call.func, ast.Name)]
    assert not evaluated


def test_files_that_others_could_have_made_are_loaded_as_plain_data_alone() -> None:
    loads = [(path.name, call) for path, call in calls("load") if ast.unparse(call.func) == "torch.load"]
    trusting = [name for name, call in loads if "weights_only=True" not in ast.unparse(call)]
    # What this very process has written a line before.
    assert sorted(trusting) == ["exporting.py", "hypernetize.py"]
