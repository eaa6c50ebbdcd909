"""A checkpoint that names classes of modules which nobody has imported: loading it does not import them."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from lightning_mip.cli import main
from tests.module_kinds import exactly
from tests.tasks import Evaluated

REGRESSION = Path(__file__).parent / "configs" / "regression.yaml"
# Importing it leaves a file in the working directory.
HOSTILE = """
from pathlib import Path
from torch import nn

Path("imported").touch()
class Evil(nn.Module):
    pass
"""
EVIL = "hostile_module.Evil"


class Other(L.LightningModule):
    """One that is none of ours."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


class Named(Evaluated):
    """One with an argument that may be a text."""

    def __init__(self, *args: Any, loss: nn.Module | str = "mean", **others: Any) -> None:
        super().__init__(*args, **others)


# What a checkpoint says of an argument -> whether loading is refused; else the text is a text.
HYPERPARAMETERS: dict[str, tuple[dict[str, Any], bool]] = {
    "primary": ({"primary": {"class_path": EVIL}}, True),
    "primary, by name alone": ({"primary": EVIL}, True),
    "inside the primary": (
        {
            "primary": {
                "class_path": "torch.nn.TransformerEncoder",
                "init_args": {"encoder_layer": {"class_path": EVIL}},
            }
        },
        True,
    ),
    "optimizer": ({"optimizer": {"class_path": EVIL}}, True),
    "optimizer, by name alone": ({"optimizer": EVIL}, True),
    "lr_scheduler": ({"lr_scheduler": {"class_path": EVIL}}, True),
    "hypernet": ({"hypernet": {"class_path": EVIL}}, True),
    "activation": ({"hypernet": {"activation": {"class_path": EVIL}}}, True),
    "prior": ({"h": {"lam": {"class_path": EVIL}}}, True),
    "module": ({"_class_path": EVIL}, True),
    "module of a package": ({"primary": {"class_path": "tests.hostile_module.Evil"}}, True),
    "h_from_batch": ({"h_from_batch": EVIL}, False),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run of the command line leaves."""
    folder = tmp_path_factory.mktemp("run")
    main(["fit", f"--config={REGRESSION}", f"--trainer.default_root_dir={folder}", "--trainer.max_epochs=1"])
    (path,) = folder.glob("**/*.ckpt")
    return torch.load(path, weights_only=True)


@pytest.fixture
def hostile(saved: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Writes a checkpoint with other hyperparameters; at the end nothing of its module was imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys.modules["tests"], "__path__", [*sys.modules["tests"].__path__, str(tmp_path)])
    Path("hostile_module.py").write_text(HOSTILE)

    def write(hyperparameters: dict[str, Any]) -> Path:
        checkpoint = copy.deepcopy(saved)
        checkpoint["hyper_parameters"] |= hyperparameters
        torch.save(checkpoint, "hostile.ckpt")
        return Path("hostile.ckpt")

    yield write
    imported = [sys.modules.pop(name) for name in [*sys.modules] if "hostile_module" in name]
    assert not imported
    assert not Path("imported").exists()


@pytest.mark.parametrize("case", HYPERPARAMETERS)
def test_loading_imports_nothing(hostile: Callable[..., Path], case: str) -> None:
    hyperparameters, refused = HYPERPARAMETERS[case]
    path = hostile(hyperparameters)
    if refused:
        with pytest.raises(ValueError, match=r"hostile_module\.Evil"):
            Evaluated.load_from_checkpoint(path)
    else:
        Evaluated.load_from_checkpoint(path)


def test_the_error_names_the_class_and_the_way_out(hostile: Callable[..., Path]) -> None:
    path = hostile({"primary": {"class_path": EVIL}})
    text = (
        "The checkpoint names hostile_module.Evil, but its module is not imported, and loading imports nothing that a "
        "checkpoint names; if you trust it, import hostile_module first."
    )
    with pytest.raises(ValueError, match=exactly(text)):
        Evaluated.load_from_checkpoint(path)


def test_an_error_of_the_weights_is_told_as_it_is(hostile: Callable[..., Path]) -> None:
    # Asked for as a class first, and then taken as a text.
    path = hostile({"_class_path": f"{__name__}.Named", "loss": EVIL})
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"].popitem()
    torch.save(checkpoint, path)
    with pytest.raises(RuntimeError, match="Missing key"):
        Named.load_from_checkpoint(path)


def test_what_is_given_again_is_not_asked_of_the_checkpoint(hostile: Callable[..., Path]) -> None:
    path = hostile({"optimizer": {"class_path": EVIL}})
    assert Evaluated.load_from_checkpoint(path, optimizer=None).optimizer is None


def test_a_module_that_was_imported_may_be_named(hostile: Callable[..., Path], tmp_path: Path) -> None:
    Path("trusted_module.py").write_text(
        "from tests.tasks import Net\nclass Own(Net):\n    class Inner(Net):\n        pass\n"
    )
    path = hostile({"primary": {"class_path": "trusted_module.Own", "init_args": {"width": 4}}})
    with pytest.raises(ValueError, match="import trusted_module first"):
        Evaluated.load_from_checkpoint(path)
    try:
        import trusted_module

        assert type(Evaluated.load_from_checkpoint(path).primary) is trusted_module.Own
        path = hostile({"primary": {"class_path": "trusted_module.Own.Inner", "init_args": {"width": 4}}})
        assert type(Evaluated.load_from_checkpoint(path).primary) is trusted_module.Own.Inner
    finally:
        sys.modules.pop("trusted_module", None)


def test_configs_may_name_what_is_not_imported_after_a_load_too(hostile: Callable[..., Path]) -> None:
    Evaluated.load_from_checkpoint(hostile({}))
    config = Path("config.yaml")
    config.write_text(REGRESSION.read_text().replace("tests.tasks.Net", "named_by_a_config.Own"))
    Path("named_by_a_config.py").write_text("from tests.tasks import Net\nclass Own(Net):\n    pass\n")
    try:
        main(["fit", f"--config={config}", "--trainer.max_epochs=0", f"--trainer.default_root_dir={os.getcwd()}"])
    finally:
        assert sys.modules.pop("named_by_a_config", None)


ALL_OF_THEM = {
    name: {"class_path": EVIL} for name in ("primary", "optimizer", "lr_scheduler", "hypernet", "_class_path", "data")
}


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize(
    "command",
    [
        ["fit", "--trainer.max_epochs=2", "--trainer.enable_checkpointing=false"],
        ["validate"],
        ["sweep", "--grid=lam=2"],
        ["diagnose", "--draws=2", "--batches=1"],
        ["export", "--h=lam=0.3", "--out=net.pt"],
    ],
    ids=lambda command: command[0],
)
def test_commands_take_the_weights_and_leave_what_the_checkpoint_names(
    hostile: Callable[..., Path], command: list[str]
) -> None:
    name, *options = command
    path = hostile(ALL_OF_THEM)
    main([name, f"--config={REGRESSION}", f"--ckpt_path={path}", *options])


def test_export_without_a_config_refuses_it(hostile: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = hostile(ALL_OF_THEM)
    with pytest.raises(SystemExit):
        main(["export", f"--ckpt_path={path}", "--h=lam=0.3", "--out=net.pt"])
    assert capsys.readouterr().err.startswith(
        "lightning-mip export: error: The hypernetwork was made with hostile_module.Evil, which the checkpoint cannot"
    )


def test_of_other_modules_lightning_imports_what_a_checkpoint_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What docs/resume.md says of Lightning's own method; where this fails, Lightning has become stricter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("hostile_module.py").write_text(HOSTILE)
    hyperparameters = {"_instantiator": "lightning.pytorch.cli.instantiate_module", "net": {"class_path": EVIL}}
    checkpoint = {"state_dict": {}, "hyper_parameters": hyperparameters, "pytorch-lightning_version": L.__version__}
    torch.save(checkpoint, "hostile.ckpt")
    try:
        with pytest.warns(UserWarning, match="contains no parameters"):
            Other.load_from_checkpoint("hostile.ckpt")
        assert Path("imported").exists()
    finally:
        sys.modules.pop("hostile_module", None)
