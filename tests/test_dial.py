"""Values and grids of h as one writes them on a command line."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import lightning_mip as mip
from lightning_mip.dial import parse_grid, parse_h
from tests.module_kinds import exactly

TWO = mip.HSpace({"lam": mip.Uniform(0, 1), "phi": mip.LogUniform(1e-3, 10)})
KINDS = mip.HSpace({"kind": mip.Categorical([1, 2.5]), "w": mip.Simplex(2)})


def test_a_value_is_read_for_each_component() -> None:
    assert parse_h(["phi=1e-2", "lam=0.3"], TWO) == {"lam": torch.tensor(0.3), "phi": torch.tensor(0.01)}


def test_the_label_of_a_metric_is_read_as_it_stands_there() -> None:
    h = {"kind": torch.tensor(2.5), "w": torch.tensor([0.25, 0.75])}
    read = parse_h([KINDS.label(h)], KINDS)
    assert read["kind"] == 2.5
    torch.testing.assert_close(read["w"], h["w"])


VALUE = "expected a value such as lam=0.5; the components of h are lam, phi."


@pytest.mark.parametrize(
    ("strings", "message"),
    [
        ([], "--h lacks lam, phi: nothing was given, expected lam=0.5,phi=0.1 with all components of h."),
        (["lam=1"], "--h lacks phi: given were lam, expected lam=0.5,phi=0.1 with all components of h."),
        (["lam"], f"--h lam: {VALUE}"),
        (["lam=", "phi=1"], f"--h lam=: {VALUE}"),
        (["lam=much", "phi=1"], f"--h lam=much: {VALUE}"),
        (["lam=0.1:0.9", "phi=1"], f"--h lam=0.1:0.9: {VALUE}"),
        (["lma=1"], "--h lma=1: h has no component 'lma'; its components are lam, phi. Did you mean 'lam'?"),
        (["lam=1,lam=0"], "--h lam=0: lam is given twice, expected once."),
        (
            ["lam=2", "phi=1"],
            "--h lam=2: h['lam'] = 2 is outside the support of its prior Uniform(low=0, high=1, endpoints=0.0).",
        ),
        (
            ["lam=nan", "phi=1"],
            "--h lam=nan: h['lam'] = nan is outside the support of its prior Uniform(low=0, high=1, endpoints=0.0).",
        ),
    ],
)
def test_what_is_not_a_value_is_answered_in_one_line(strings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        parse_h(strings, TWO)


@pytest.mark.parametrize(
    ("strings", "expected"),
    [
        (["lam=0:1:3"], {"lam": [0, 0.5, 1], "phi": [0.1]}),
        (["phi=log:1e-3:10:5"], {"lam": [0.5], "phi": [0.001, 0.01, 0.1, 1, 10]}),
        (["lam=3", "phi=2"], {"lam": [0, 0.5, 1], "phi": [0.001, 10]}),
        (["lam=at:0.1,0.7"], {"lam": [0.1, 0.7], "phi": [0.1]}),
        (["lam=0.3:0.3:1"], {"lam": [0.3], "phi": [0.1]}),
    ],
)
def test_a_grid_is_read_by_ends_by_points_or_by_values(strings: list[str], expected: dict[str, list[float]]) -> None:
    grid = parse_grid(strings, TWO)
    assert list(grid) == ["lam", "phi"]
    for name, values in expected.items():
        torch.testing.assert_close(grid[name], torch.tensor(values, dtype=torch.float32))


def test_ends_of_a_logarithmic_grid_are_those_that_were_written() -> None:
    values = parse_grid(["phi=log:0.003:7:6"], TWO)["phi"].tolist()
    assert (values[0], values[-1]) == (pytest.approx(0.003, rel=1e-7), 7)
    assert [math.log(b / a) for a, b in itertools.pairwise(values)] == pytest.approx(
        [math.log(7 / 0.003) / 5] * 5, rel=1e-5
    )


def test_preference_vectors_and_classes_have_points_and_values() -> None:
    grid = parse_grid(["w=3", "kind=1"], KINDS)
    assert grid["w"].tolist() == [[0, 1], [0.5, 0.5], [1, 0]]
    assert grid["kind"].tolist() == [1, 2.5]
    assert parse_grid(["w=at:0.2:0.8,1:0"], KINDS)["w"].tolist() == [[pytest.approx(0.2), pytest.approx(0.8)], [1, 0]]


LAM = (
    "expected lam=0:1:21 (low:high:points), lam=5 (points over its prior) or lam=at:0,0.5,1 (values); the components "
    "of h are lam, phi."
)
PHI = (
    "expected phi=0.001:10:21 (low:high:points), phi=log:0.001:10:9 (equal factors), phi=5 (points over its prior) or "
    "phi=at:0.001,0.1,10 (values); the components of h are lam, phi."
)


@pytest.mark.parametrize(
    ("string", "message"),
    [
        ("lam", f"--grid lam: {LAM}"),
        ("lam=0:1", f"--grid lam=0:1: {LAM}"),
        ("lam=0.3", f"--grid lam=0.3: {LAM}"),
        ("lam=0:1:0", f"--grid lam=0:1:0: {LAM}"),
        ("lam=0:1:1", f"--grid lam=0:1:1: {LAM}"),
        ("lam=0:inf:3", f"--grid lam=0:inf:3: {LAM}"),
        ("lam=lin:0:1:3", f"--grid lam=lin:0:1:3: {LAM}"),
        ("phi=log:0:1:3", f"--grid phi=log:0:1:3: {PHI}"),
        ("psi=3", "--grid psi=3: h has no component 'psi'; its components are lam, phi. Did you mean 'phi'?"),
        (
            "lam=0:2:3",
            "--grid lam=0:2:3: h['lam'] = 2 is outside the support of its prior Uniform(low=0, high=1, endpoints=0.0).",
        ),
    ],
)
def test_what_is_not_a_grid_is_answered_in_one_line(string: str, message: str) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        parse_grid([string], TWO)


def test_a_preference_vector_has_no_ends() -> None:
    with pytest.raises(
        ValueError,
        match=exactly(
            "--grid w=0:1:3: expected w=5 (points over its prior) or w=at:0:1,0.5:0.5,1:0 (values); the components "
            "of h are kind, w."
        ),
    ):
        parse_grid(["w=0:1:3"], KINDS)
