"""Figures of a sweep: what is drawn where."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import pytest
import torch
from matplotlib import pyplot

import lightning_mip as mip
from lightning_mip.plotting import density, not_dominated, scale_of, triangle
from tests.module_kinds import exactly
from tests.test_page import KINDS, ONE, TWO, table


@pytest.fixture(autouse=True)
def _without_windows() -> Iterator[None]:
    mpl.use("Agg")
    yield
    pyplot.close("all")


def test_a_curve_per_metric_on_the_axis_of_the_prior() -> None:
    figure, axes = ONE.plot()
    assert [one.get_ylabel() for one in axes] == ["val_loss", "val_acc"]
    for one, name in zip(axes, ONE.metrics, strict=True):
        (line,) = one.get_lines()
        torch.testing.assert_close(torch.as_tensor(line.get_xdata()), ONE.values("lam").double())
        torch.testing.assert_close(torch.as_tensor(line.get_ydata()), ONE[name].double())
        (strip,) = one.child_axes
        assert one.get_xscale() == strip.get_xscale() == "log"
        assert (strip.get_xlabel(), one.get_xlabel()) == ("lam", "")
    figure.savefig("/dev/null", format="png")


def test_the_best_point_is_marked_if_one_says_what_is_best() -> None:
    _, ax = ONE.plot("val_loss", mode="max")
    assert ax.get_title("right") == "best: 4 at lam = 1"
    _, axes = ONE.plot(mode={"val_acc": "min"})
    assert [one.get_title("right") for one in axes] == ["", "best: 100 at lam = 0.01"]


def test_a_map_has_its_cells_at_the_values() -> None:
    figure, ax = TWO.plot(mode="min")
    (cells,) = [made for made in ax.collections if hasattr(made, "get_coordinates")]
    assert cells.get_array().shape == (5, 3)
    assert cells.get_array()[4, 0] == 4  # lam=0, phi=1
    corners = torch.as_tensor(cells.get_coordinates())
    assert corners[0, :, 0].tolist() == pytest.approx([-0.25, 0.25, 0.75, 1.25])
    assert corners[1:5, 0, 1].log10().tolist() == pytest.approx([-1.75, -1.25, -0.75, -0.25])
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_xlabel(), ax.get_ylabel()) == ("linear", "log", "lam", "phi")
    figure.savefig("/dev/null", format="png")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_drawn_without_a_warning(kind: str) -> None:
    sweep, _ = KINDS[kind]
    figure, ax = sweep.plot(mode="min")
    figure.savefig("/dev/null", format="png")
    if kind == "front":
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("a", "b")
    if kind == "classes":
        assert [tick.get_text() for tick in ax.child_axes[0].get_xticklabels()] == ["1", "5", "7"]
    if kind == "triangle":
        assert {text.get_text() for text in ax.texts} == {"w[0] = 1", "w[1] = 1", "w[2] = 1"}


def test_names_with_dollars_are_no_formulas() -> None:
    figure, ax = table({"$x$": mip.Uniform(0, 1)}, 3, "a$b$c\\").plot()
    figure.savefig("/dev/null", format="png")
    assert ax.get_ylabel() == "a\\$b\\$c\\"


def test_axes_of_the_caller_are_drawn_in() -> None:
    figure, given = pyplot.subplots()
    assert ONE.plot("val_loss", ax=given) == (figure, given)
    assert len(given.get_lines()) == 1


@pytest.mark.parametrize(
    ("sweep", "arguments", "error", "message"),
    [
        (ONE, {"ax": 1}, ValueError, "ax is one, but there are 2 metrics: val_loss, val_acc; name one as metrics."),
        (
            table({name: mip.Uniform(0, 1) for name in "abc"}, 2, "m"),
            {},
            ValueError,
            "What varies in this sweep of 8 points is a, b, c; a figure shows one or two numbers, or one preference "
            "vector of two or three. Take a part of the sweep: sweep.select(name=value).plot().",
        ),
        (
            KINDS["front"][0],
            {"metrics": ["a", "b", "c"]},
            ValueError,
            "metrics are a, b, c, expected two: a Pareto front has two axes.",
        ),
        (ONE, {"mode": "best"}, ValueError, "mode is 'best', expected 'min' or 'max'."),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    sweep: mip.Sweep, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=exactly(message)):
        sweep.plot(**arguments)


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = "plot needs matplotlib; pip install 'lightning-mip[plot]', or use to_csv(path)."
    with pytest.raises(ImportError, match=exactly(message)):
        ONE.plot()


def test_the_package_is_imported_without_what_is_optional() -> None:
    optional = "('plotly', 'pandas', 'lightning_mip.plotting', 'lightning_mip.page')"
    program = f"import sys, lightning_mip; print([name for name in {optional} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.strip() == "[]"


def test_the_density_is_that_of_the_draws() -> None:
    edges, heights = density(mip.LogUniform(0.01, 1))
    assert (float(edges[0]), float(edges[-1])) == (pytest.approx(0.01), pytest.approx(1))
    assert heights.min() == 1  # level on its logarithmic axis
    _, heights = density(mip.Uniform(0, 1, endpoints=0.5))
    assert heights[[0, -1]].tolist() == [1, 1]
    assert heights[1:-1].max() < 0.1
    edges, heights = density(mip.Normal(2, 1))
    assert float(edges[heights.argmax()]) == pytest.approx(2, abs=0.2)
    assert len(density(mip.Categorical(3))[1]) == 3


def test_classes_that_differ_in_a_late_digit_are_ticks_of_their_own() -> None:
    scale = scale_of(mip.Categorical(values=[0.12345601, 0.12345602, 7]))
    assert list((scale.ticks or {}).values()) == ["0.12345601", "0.12345602", "7"]
    assert scale.positions(mip.Categorical(values=[0.12345601, 0.12345602, 7]).grid(1)).tolist() == [0, 1, 2]


def test_the_front_is_what_no_other_point_beats() -> None:
    first, second = torch.tensor([1.0, 2, 3, 2, 1]), torch.tensor([3.0, 2, 1, 3, 3])
    assert not_dominated(first, second).tolist() == [True, True, True, False, True]


def test_the_corners_of_the_triangle_are_a_side_apart() -> None:
    corners = torch.stack(triangle(torch.eye(3)), dim=1)
    assert torch.pdist(corners).tolist() == pytest.approx([1, 1, 1])
