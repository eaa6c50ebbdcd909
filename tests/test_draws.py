"""Uniform numbers without hidden state: a function of (seed, rank, step)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.quasirandom import SobolEngine

from lightning_mip.draws import STRATA, STRATEGIES, uniforms
from tests.strategies import law

each_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
spread = pytest.mark.parametrize("strategy", ["sobol", "stratified"])


def run(strategy: str, steps: int, world_size: int = 1, n: int = 1, dimensions: int = 2, seed: int = 0) -> Tensor:
    """All points of a run, in the order of steps, and of ranks within a step."""
    calls = itertools.product(range(steps), range(world_size))
    return torch.cat(
        [
            uniforms(strategy, dimensions, n, seed=seed, rank=rank, step=step, world_size=world_size)
            for step, rank in calls
        ]
    )


@each_strategy
def test_points_are_the_same_in_any_order_of_calls(strategy: str) -> None:
    keys = [(seed, rank, step) for seed in (0, 5) for rank in (0, 1) for step in (0, 1, 2, 17, 40)]

    def points(order: list[tuple[int, int, int]]) -> dict[tuple[int, int, int], list[list[float]]]:
        return {
            key: uniforms(strategy, 2, 3, seed=key[0], rank=key[1], step=key[2], world_size=2).tolist() for key in order
        }

    shuffled = random.Random(0).sample(keys, len(keys))
    assert points(keys) == points(shuffled) == points(shuffled[::-1])


@each_strategy
def test_points_neither_depend_on_the_global_generator_nor_move_it(strategy: str) -> None:
    torch.manual_seed(1)
    first = uniforms(strategy, 2, 5, seed=3, rank=0, step=21)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(uniforms(strategy, 2, 5, seed=3, rank=0, step=21), first)
    uniforms(strategy, 2, 5, seed=33, rank=0, step=2)
    assert torch.equal(torch.get_rng_state(), before)


@each_strategy
@pytest.mark.parametrize("other", [{"seed": 1}, {"rank": 1}, {"step": 1}])
def test_seeds_ranks_and_steps_draw_different_points(strategy: str, other: dict[str, int]) -> None:
    key = {"seed": 0, "rank": 0, "step": 0}
    one = uniforms(strategy, 2, 4, world_size=2, **key)
    two = uniforms(strategy, 2, 4, world_size=2, **{**key, **other})
    assert not torch.isclose(one, two, rtol=0, atol=1e-9).any()


@each_strategy
def test_no_point_comes_twice_in_a_run(strategy: str) -> None:
    values = run(strategy, steps=64, world_size=4, n=2)
    assert len(torch.unique(values[:, 0])) == len(torch.unique(values[:, 1])) == 512


@each_strategy
@law
@given(seed=st.integers(0, 2**32 - 1), rank=st.integers(0, 7), step=st.integers(0, 3000), n=st.integers(1, 5))
def test_points_lie_inside_the_unit_cube_where_every_inverse_cdf_is_finite(
    strategy: str, seed: int, rank: int, step: int, n: int
) -> None:
    points = uniforms(strategy, 3, n, seed=seed, rank=rank, step=step, world_size=8)
    assert points.shape == (n, 3)
    assert points.dtype == torch.float64
    assert points.min() > 0
    assert points.max() < 1
    assert torch.special.ndtri(points).isfinite().all()


@each_strategy
def test_coordinates_are_uniform_and_independent(strategy: str) -> None:
    points = run(strategy, steps=1024)
    for coordinate in points.T:
        assert scipy.stats.kstest(coordinate.numpy(), "uniform").pvalue > 0.01
    assert abs(scipy.stats.pearsonr(*points.numpy().T).statistic) < 0.08


@pytest.mark.parametrize(("strategy", "block"), [("stratified", STRATA), ("sobol", 4), ("sobol", 16), ("sobol", 64)])
@pytest.mark.parametrize(("world_size", "n"), [(1, 1), (4, 1), (2, 4)])
def test_each_block_of_draws_over_steps_and_ranks_visits_every_stratum_once(
    strategy: str, block: int, world_size: int, n: int
) -> None:
    points = run(strategy, steps=128 // (world_size * n), world_size=world_size, n=n, seed=4)
    for coordinate in points.T:
        for part in coordinate.split(block):
            assert sorted((part * block).long().tolist()) == list(range(block))


def test_sobol_spreads_two_components_together() -> None:
    for part in run("sobol", steps=64, seed=9).split(16):
        assert len({(int(4 * x), int(4 * y)) for x, y in part.tolist()}) == 16


@pytest.mark.parametrize("seed", range(4))
def test_spread_draws_leave_smaller_gaps_than_random_ones(seed: int) -> None:
    def discrepancy(strategy: str) -> float:
        values = run(strategy, steps=64, dimensions=1, seed=seed).squeeze(1)
        return float(scipy.stats.kstest(values.numpy(), "uniform").statistic)

    assert discrepancy("sobol") < discrepancy("stratified") < discrepancy("random")


@law
@given(steps=st.lists(st.integers(0, 150), min_size=1, max_size=12), seed=st.integers(0, 3))
def test_sobol_continues_the_sequence_at_any_step_whichever_came_before(steps: list[int], seed: int) -> None:
    sequence = SobolEngine(2, scramble=True, seed=seed).draw(302, dtype=torch.float64)
    for step in steps:
        points = uniforms("sobol", 2, 2, seed=seed, rank=0, step=step)
        torch.testing.assert_close(points, sequence[2 * step : 2 * step + 2], rtol=0, atol=1e-9)


def test_a_strategy_that_uses_no_shared_sequence_needs_no_number_of_ranks() -> None:
    one = uniforms("random", 1, 1, seed=0, rank=3, step=5)
    assert torch.equal(one, uniforms("random", 1, 1, seed=0, rank=3, step=5, world_size=4))


@each_strategy
def test_a_whole_number_of_numpy_or_torch_draws_what_pythons_does(strategy: str) -> None:
    expected = uniforms(strategy, 2, 3, seed=1, rank=0, step=4)
    for whole in (np.int64, torch.tensor):
        found = uniforms(strategy, 2, 3, seed=whole(1), rank=whole(0), step=whole(4))  # type: ignore[arg-type]
        assert torch.equal(found, expected)


@each_strategy
def test_any_seed_will_do_and_an_empty_batch_takes_no_draws(strategy: str) -> None:
    assert uniforms(strategy, 2, 1, seed=2**80, rank=0, step=0).shape == (1, 2)
    assert uniforms(strategy, 2, 0, seed=0, rank=0, step=5).shape == (0, 2)


ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "strategy": (
        lambda: uniforms("halton", 1, 1, seed=0, rank=0, step=0),
        "strategy is 'halton', expected one of 'random', 'sobol', 'stratified'.",
    ),
    "rank_beyond_the_world": (
        lambda: uniforms("sobol", 1, 1, seed=0, rank=1, step=0),
        "rank is 1 and world_size is 1, expected 0 <= rank < world_size: the ranks share one sobol sequence.",
    ),
    "fraction_of_a_step": (
        lambda: uniforms("random", 1, 1, seed=0, rank=0, step=1.5),  # type: ignore[arg-type]
        "step is 1.5, expected a whole number of at least 0.",
    ),
    "words_for_a_rank": (
        lambda: uniforms("random", 1, 1, seed=0, rank="0", step=0),  # type: ignore[arg-type]
        "rank is '0', expected a whole number.",
    ),
    "negative_number_of_draws": (
        lambda: uniforms("random", 1, -1, seed=0, rank=0, step=0),
        "n is -1, expected a whole number of at least 0.",
    ),
    "no_ranks": (
        lambda: uniforms("random", 1, 1, seed=0, rank=0, step=0, world_size=0),
        "world_size is 0, expected a whole number of at least 1.",
    ),
    "seed_of_no_number": (
        lambda: uniforms("random", 1, 1, seed=None, rank=0, step=0),  # type: ignore[arg-type]
        "seed is None, expected a whole number.",
    ),
    "negative_rank": (
        lambda: uniforms("stratified", 1, 1, seed=0, rank=-1, step=3, world_size=2),
        "rank is -1 and world_size is 2, expected 0 <= rank < world_size: the ranks share one stratified sequence.",
    ),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_wrong_arguments_are_refused_with(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    assert str(caught.value) == message
