"""Ridge regression: one run beside the closed form."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from examples.ridge_path.data import diabetes
from examples.ridge_path.demo import Outcome, main
from examples.ridge_path.task import HIGH, LOW


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    path = tmp_path_factory.mktemp("ridge") / "ridge_path.png"
    return main(["--out", str(path)]), path


def test_the_closed_form_is_where_the_gradient_vanishes() -> None:
    data = diabetes()
    weight = data.solution(0.5).requires_grad_()
    loss = (data.x.double() @ weight - data.y.double().squeeze(1)).square().mean() + 0.5 * weight.square().sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    assert float(gradient.abs().max()) < 1e-10


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_hypernetwork_follows_the_exact_curve_over_four_decades(outcome: tuple[Outcome, Path]) -> None:
    found, _ = outcome
    assert math.log10(HIGH / LOW) == pytest.approx(4)
    assert len(found.table) == 21
    assert found.deviation < 0.02


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_choose_finds_the_exact_optimum(outcome: tuple[Outcome, Path]) -> None:
    found, path = outcome
    assert found.log_error < 0.05
    low, high = found.choice.interval["lam"]
    assert low < found.optimum < high
    assert found.choice.refined == "gradient"
    assert path.read_bytes().startswith(b"\x89PNG")
