"""``choose``, ``sweep``, ``diagnose`` and ``export`` with any arguments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lightning_mip as mip
from lightning_mip import HSpace, Simplex, Uniform
from tests.fuzz.oracle import Refused, fuzz, outcome
from tests.fuzz.values import anything, no_word, texts
from tests.tasks import SMALL, Evaluated, Net, loader, make

SPACE = HSpace({"lam": Uniform(0, 1), "w": Simplex(2)})
BATCHES = list(loader(8))
H = ("h[", "h has", "h lacks", "h is", "grid")


def error(output: Tensor, batch: Any) -> Tensor:
    return (output - batch[1]).square().mean(1)


def of_the_batch(output: Tensor, batch: Any) -> Tensor:
    return error(output, batch).mean()


grids: st.SearchStrategy[Any] = (
    st.integers(1, 3)
    | st.integers(-1, 0)
    | st.dictionaries(st.sampled_from(["lam", "w", "x"]), st.integers(0, 3) | st.lists(st.floats(0, 1.1), max_size=3))
    | st.lists(st.fixed_dictionaries({"lam": st.floats(0, 1), "w": st.just([0.5, 0.5])}), max_size=3)
    | anything
)
metrics: st.SearchStrategy[Any] = st.sampled_from([error, of_the_batch]) | st.sampled_from(["val_loss", "x"])
CHOOSE: dict[str, tuple[st.SearchStrategy[Any], st.SearchStrategy[Any]]] = {
    "dataloader": (st.just(BATCHES), st.sampled_from([[], iter(BATCHES), "batches", 3, None])),
    "metric": (st.just(error), metrics | anything.filter(lambda value: not callable(value))),
    "mode": (st.sampled_from(["min", "max"]), texts | no_word),
    "by": (st.none(), st.sampled_from(["group", lambda batch: batch[0][:, 0] > 0, lambda batch: [0]]) | texts),
    "grid": (st.integers(1, 3), grids),
    "refine": (st.booleans(), st.booleans()),
    "resamples": (st.integers(1, 20), st.integers(-1, 1) | st.floats() | texts | st.none()),
    "seed": (st.integers(0, 3), st.integers() | anything),
}


@st.composite
def arguments(draw: st.DrawFn, known: dict[str, tuple[Any, Any]]) -> dict[str, Any]:
    """All arguments, of which one or two may be wrong."""
    wrong = draw(st.sets(st.sampled_from(sorted(known)), max_size=2))
    return {name: draw(good_and_bad[name in wrong]) for name, good_and_bad in known.items()}


@fuzz(60)
@given(given=arguments(CHOOSE))
def test_a_choice_of_any_arguments(given: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = Net()
    mip.hypernetize(net, SPACE, **SMALL)
    choice = outcome(lambda: mip.choose(net, **given), *CHOOSE, *H, "model")
    if not isinstance(choice, Refused):
        for each in choice.values() if isinstance(choice, dict) else [choice]:
            assert SPACE.encode(each.h).isfinite().all()
            assert each.count > 0
            assert str(each)


returned = (
    st.floats()
    | st.sampled_from([torch.ones(4), torch.ones(4, 1), torch.ones(3), torch.ones(()), torch.tensor(float("nan"))])
    | anything
)


@fuzz(40)
@given(value=returned)
def test_a_metric_that_returns_anything(value: Any) -> None:
    net = Net()
    mip.hypernetize(net, SPACE, **SMALL)
    choice = outcome(
        lambda: mip.choose(net, BATCHES, lambda output, batch: value, "min", grid=2, resamples=2), "metric"
    )
    assert isinstance(choice, Refused) or choice.value == pytest.approx(float(torch.as_tensor(value).double().mean()))


SWEEP: dict[str, tuple[st.SearchStrategy[Any], st.SearchStrategy[Any]]] = {
    "trainer_or_dataloaders": (st.just(loader(8)), st.just(loader(8))),
    "grid": (st.integers(1, 3), grids),
    "stage": (st.sampled_from(["validate", "test"]), st.just("fit") | texts | no_word),
}


@fuzz(15)
@given(given=arguments(SWEEP))
@pytest.mark.filterwarnings("ignore:The dataloader.*does not have many workers")
def test_a_sweep_of_any_arguments(given: dict[str, Any]) -> None:
    model = make(Evaluated)
    table = outcome(lambda: mip.sweep(model, **given), *SWEEP, *H)
    if not isinstance(table, Refused):
        assert len(table) > 0
        assert all(values.isfinite().all() for values in table.metrics.values())
        assert len(table.metrics["test_loss" if given["stage"] == "test" else "val_loss"]) == len(table)


DIAGNOSE: dict[str, tuple[st.SearchStrategy[Any], st.SearchStrategy[Any]]] = {
    "dataloader": (st.just(BATCHES), st.sampled_from([[], "batches", 3, None])),
    "metric": (st.none(), st.just("val_loss") | texts),
    "mode": (st.sampled_from(["min", "max"]), texts | no_word),
    "draws": (st.integers(1, 2), st.integers(-1, 0) | st.floats() | texts | st.none()),
    "batches": (st.integers(1, 2), st.integers(-1, 0) | st.floats() | texts | st.none()),
    "seed": (st.integers(0, 3), st.integers() | anything),
}


@fuzz(10)
@given(given=arguments(DIAGNOSE))
def test_a_diagnosis_of_any_arguments(given: dict[str, Any]) -> None:
    report = outcome(lambda: mip.diagnose(make(Evaluated), **given), *DIAGNOSE)
    assert isinstance(report, Refused) or report.verdicts


EXPORT: dict[str, tuple[st.SearchStrategy[Any], st.SearchStrategy[Any]]] = {
    "h": (
        st.just({"lam": 0.5}),
        st.dictionaries(texts | st.just("lam"), st.floats() | anything, max_size=2) | anything,
    ),
    "path": (st.sampled_from(["net.pt", Path("net.ckpt")]), st.sampled_from(["net", "net.x"])),
    "format": (st.none(), st.sampled_from(["state_dict", "checkpoint"]) | texts | no_word),
    "example": (st.none() | st.just(BATCHES[0]), st.sampled_from([[], torch.ones(1, 7), None])),
}


@fuzz(30)
@given(given=arguments(EXPORT))
def test_an_export_of_any_arguments(given: dict[str, Any], tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("export")
    given["path"] = folder / given["path"]
    exported: Any = outcome(lambda: mip.export(make(Evaluated), **given), *EXPORT, *H, "suffix")
    if not isinstance(exported, Refused):
        assert exported.path.exists()
        torch.load(exported.path, weights_only=True)


calls: list[Callable[[Any], Any]] = [
    lambda model: mip.sweep(model, BATCHES),
    lambda model: mip.choose(model, BATCHES, error, "min"),
    lambda model: mip.diagnose(model, BATCHES),
    lambda model: mip.export(model, {"lam": 0.5}, "never.pt"),
]


@fuzz(40)
@given(model=anything, call=st.sampled_from(calls))
def test_anything_in_place_of_a_trained_module(model: Any, call: Callable[[Any], Any]) -> None:
    names = ("model", "module", "is not hypernetized", "checkpoint")
    assert isinstance(outcome(lambda: call(model), *names), Refused)
