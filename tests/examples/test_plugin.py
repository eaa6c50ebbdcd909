from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

import lightning_mip as mip
from examples.plugin import story, tour
from examples.plugin.cases import CASES
from examples.plugin.demo_data import EXPECTED, HalfDigits, PythonManual
from examples.plugin.digits import Classifier, FewDigits
from examples.plugin.stocks import Stocks, monthly
from examples.plugin.tumours import Tumours
from lightning_mip.cli import main as lightning_mip

CONFIGS = Path(story.__file__).parent
QUICK = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1}

pytestmark = [
    # Advice of Lightning to the authors of these modules.
    pytest.mark.filterwarnings("ignore:Attribute '.*' is an instance of `nn.Module`"),
    pytest.mark.filterwarnings("ignore:.*requires that lr_scheduler.step:UserWarning"),
]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The language model's text and all output go here; one thread, as tests in parallel wait for each other's."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", CASES)
def test_a_module_of_others_becomes_a_hypernetwork(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    seen = tour.visit(case, tmp_path, **QUICK)
    assert seen.exported == 0, "the original class has to load exactly what was taken out"
    assert len(seen.plugged) == 3
    assert len(set(seen.plugged.values())) == 3, "each h is a network of its own"
    assert all(map(math.isfinite, seen.plugged.values()))
    assert set(seen.separate) == (set(seen.plugged) if case.path else set())


@pytest.mark.parametrize("name", CASES)
def test_training_reaches_all_parts_and_leaves_the_hyperparameter(name: str) -> None:
    case = CASES[name]()
    module, plugin = case.module(), case.plugin()
    before: dict[str, torch.Tensor] = {}

    class Keep(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            before.update({key: p.detach().clone() for key, p in pl_module.named_parameters()})

    fixed = held(module, case.path)
    tour.trainer(case, QUICK, plugin, Keep()).fit(module, datamodule=case.data())
    changed = {key for key, p in module.named_parameters() if not torch.equal(p, before[key])}
    for part in ("hypernet.head", "hypernet.trunk", f"{plugin.target}."):
        assert any(key.startswith(part) for key in changed), part
    assert held(module, case.path) == fixed
    assert type(held(module, case.path)) is type(fixed)


@pytest.mark.parametrize("name", ["boring", "transformer", "nbeats", "deeptda"])
def test_the_config_says_what_python_says(name: str) -> None:
    case = CASES[name]()
    cli = fit(name)
    module, plugin, expected = case.module(), the_plugin(cli), case.plugin()
    assert type(cli.model) is type(module)
    assert plain(plugin.state_dict()) == plain(expected.state_dict())
    assert [plugin.space.label(h) for h in plugin.grid] == [expected.space.label(h) for h in expected.grid]
    ours = {key: p.shape for key, p in cli.model.named_parameters() if not key.startswith("hypernet.")}
    assert ours == {key: p.shape for key, p in module.named_parameters()}


@pytest.mark.parametrize(
    ("name", "metric"), [("digits", "val_loss"), ("nbeats", "val_MAE"), ("deeptda", "valid_loss_sigmas")]
)
def test_a_config_logs_each_value_and_the_mean(name: str, metric: str) -> None:
    cli = fit(name)
    plugin, found = the_plugin(cli), cli.trainer.callback_metrics
    values = [found[f"{metric}/{plugin.space.label(h)}"] for h in plugin.grid]
    torch.testing.assert_close(found[metric], torch.stack(values).mean())


@pytest.mark.slow
def test_the_story(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = story.main(["--seeds", "2", "--epochs", "2", "--points", "3", "--jobs", "1"])
    assert outcome.separate["loss"].shape == (2, 3)
    assert outcome.plugged["loss"].shape == (2, 2 * story.STEP + 1)
    best, loss, exported = outcome.exported
    assert outcome.fine.min() <= best <= outcome.fine.max()
    assert exported == pytest.approx(loss, rel=1e-5), "the network taken out is the one of the curve"
    picture = Path("runs/plugin/story.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 200_000
    printed = capsys.readouterr().out
    assert "Validation loss" in printed
    assert "the same in" in printed


def test_the_curve_passes_the_grid_of_the_separate_trainings() -> None:
    space = mip.HSpace({"reg_weight": story.DIALS["reg_weight"]})
    grid, fine = space.grid(5), space.grid(4 * story.STEP + 1)
    for coarse, match in zip(grid, fine[:: story.STEP], strict=True):
        torch.testing.assert_close(match["reg_weight"], coarse["reg_weight"])


def test_the_table_compares_seed_by_seed() -> None:
    alone = np.array([[1.0, 0.5, 2.0], [1.2, 0.7, 2.2]])
    fine = np.repeat([[1.05, 0.6, 9.0], [1.3, 0.6, 9.0]], story.STEP, axis=1)[:, : 2 * story.STEP + 1]
    outcome = story.Outcome(
        dial="reg_weight",
        grid=np.array([0.001, 0.01, 0.1]),
        fine=np.geomspace(0.001, 0.1, fine.shape[1]),
        separate={"loss": alone},
        plugged={"loss": fine},
        seconds=(1.0, 2.0),
        exported=(0.01, 0.5, 0.5),
    )
    cells = [[str(cell) for cell in column.cells] for column in story.table(outcome, "loss").columns]
    assert cells[3] == ["+0.075 ± 0.035", "+0.000 ± 0.141", "+6.900 ± 0.141"]
    assert cells[4] == ["yes 1/2", "yes 2/2", "[red]no[/red] 0/2"]
    assert cells[1][1] == "[bold]0.600 (0.500 0.700)[/bold]"
    assert cells[2][1].startswith("[bold]")


def test_few_digits_are_few_and_partly_wrong() -> None:
    data, same, other = FewDigits(seed=3), FewDigits(seed=3), FewDigits(seed=4)
    for each in (data, same, other):
        each.setup("fit")
    (x, y), (x_val, y_val) = data.parts[0].tensors, data.parts[1].tensors
    assert (len(x), len(x_val)) == (200, 1597)
    assert x.min() == 0
    assert x.max() == 1
    assert torch.equal(y, same.parts[0].tensors[1])
    assert not torch.equal(y, other.parts[0].tensors[1])
    clean = FewDigits(seed=3, wrong=0)
    clean.setup("fit")
    assert torch.equal(clean.parts[1].tensors[1], y_val)
    assert 0.1 < (clean.parts[0].tensors[1] != y).float().mean() < 0.25


def test_the_story_s_module_is_an_ordinary_one() -> None:
    source = (CONFIGS / "digits.py").read_text()
    assert "lightning_mip" not in source
    assert "mip." not in source
    model = Classifier(reg_weight=0.5)
    weights = [p for p in model.parameters() if p.ndim == 2]
    torch.testing.assert_close(model.penalty(), sum(w.square().sum() for w in weights))


def test_the_text_is_there_for_the_demo_and_gone_afterwards() -> None:
    data = PythonManual(words=50)
    data.prepare_data()
    data.setup("fit")
    assert data.training.dataset.vocab_size == data.vocab_size == 52
    assert len(data.training) + len(data.held_out[0]) == len(data.training.dataset)
    data.teardown("fit")
    assert not EXPECTED.parent.exists()


def test_somebody_s_own_text_is_left_alone() -> None:
    EXPECTED.parent.mkdir()
    EXPECTED.write_text("mine")
    data = PythonManual()
    with pytest.raises(FileExistsError, match="another text"):
        data.prepare_data()
    data.teardown("fit")
    assert EXPECTED.read_text() == "mine"


def test_half_digits_are_what_the_boring_model_takes() -> None:
    data = HalfDigits(batch_size=8)
    data.setup("fit")
    assert next(iter(data.train_dataloader())).shape == (8, 32)
    assert len(data.training) + len(data.held_out) == 1797


def test_prices_are_complete_and_validation_comes_after_training() -> None:
    prices = monthly()
    assert not prices.isna().any().any()
    for _, months in prices.groupby("share")["month"]:
        assert (months.diff().dropna() == 1).all()
    data = Stocks()
    data.setup("fit")
    (x, (target, _)) = next(iter(data.val_dataloader()))
    assert target.shape[1] == 6
    assert x["decoder_time_idx"].min() >= data.until
    (x, _) = next(iter(data.train_dataloader()))
    assert x["decoder_time_idx"].max() < data.until


def test_tumours_split() -> None:
    data = Tumours(batch_size=100)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["data"].shape == (100, 30)
    assert set(batch["labels"].tolist()) == {0.0, 1.0}


def test_what_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing() -> Any:
        raise ModuleNotFoundError("No module named 'somewhere'")

    monkeypatch.setattr(tour, "CASES", {"missing": missing, "manual": CASES["manual"]})
    seen = tour.main(["--batches", "2"])
    assert [each.module for each in seen] == ["ManualOptimBoringModel, lightning"]
    assert "plugin-examples" in capsys.readouterr().out


def held(module: Any, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), module) if path else None


def fit(name: str) -> Any:
    limits = [f"--trainer.{key}={value}" for key, value in QUICK.items()]
    quiet = ["--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false"]
    options = [*limits, *quiet, "--trainer.accelerator=cpu", "--trainer.check_val_every_n_epoch=1"]
    return lightning_mip(["fit", "--config", str(CONFIGS / f"{name}.yaml"), *options])


def plain(state: Any) -> Any:
    return json.loads(json.dumps(state))  # tuples and lists are the same in a config


def the_plugin(cli: Any) -> mip.Hypernetize:
    (plugin,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, mip.Hypernetize))
    return plugin
