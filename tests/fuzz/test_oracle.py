"""The oracle of the random inputs tells a refusal from a failure."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import lightning_mip as mip
from tests.fuzz.oracle import Refused, check_text, outcome


def test_a_result_is_given_back_and_a_refusal_its_text() -> None:
    assert outcome(lambda: 3) == 3
    refused = outcome(lambda: mip.SampleH(strategy="halton"), "strategy")  # type: ignore[arg-type]
    assert refused == Refused("strategy is 'halton', expected one of 'random', 'sobol', 'stratified'.")


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.zeros(2) @ torch.zeros(3),  # torch refuses it
        lambda: mip.HSpace({"lam": mip.Uniform(0, 1)}).label(None),  # type: ignore[arg-type]  # an operation fails
        lambda: mip.Sweep(mip.HSpace({"lam": mip.Uniform(0, 1)}), [], {})["x"],  # refused, but what is named is "x"
    ],
)
def test_any_other_error_is_a_failure(call: Callable[[], object]) -> None:
    with pytest.raises(AssertionError, match=r"not refused|is named"):
        outcome(call, "lam")


@pytest.mark.parametrize(("text", "names"), [("lam is 1\n\n\n.", ("lam",)), ("it is 1.", ("lam", "h["))])
def test_a_text_of_many_lines_or_without_the_argument_is_a_failure(text: str, names: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError, match=r"lines|is named"):
        check_text(text, names)
