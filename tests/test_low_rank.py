"""The low-rank head: which tensors count as matrices, and the product that generates them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Size, nn

import lightning_mip as mip
from lightning_mip import LowRank
from lightning_mip.heads import BLOCK
from tests.module_kinds import exactly
from tests.strategies import law

LAM = {"lam": mip.Uniform(0, 1)}


@pytest.mark.parametrize(
    ("layer", "name", "rows", "columns"),
    [
        (nn.Linear(8, 6), "weight", 6, 8),
        (nn.Conv1d(4, 6, 3), "weight", 6, 4 * 3),
        (nn.Conv2d(4, 6, 3), "weight", 6, 4 * 3 * 3),
        (nn.Conv2d(4, 6, 3, groups=2), "weight", 6, 2 * 3 * 3),
        (nn.ConvTranspose2d(4, 6, 3), "weight", 4, 6 * 3 * 3),
        (nn.Conv3d(2, 6, 3), "weight", 6, 2 * 27),
        (nn.Embedding(10, 6), "weight", 10, 6),
        (nn.MultiheadAttention(6, 2), "in_proj_weight", 3 * 6, 6),
        (nn.LSTM(6, 5), "weight_ih_l0", 4 * 5, 6),
        (nn.Bilinear(3, 4, 5), "weight", 5, 3 * 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
@torch.no_grad()
def test_a_tensor_of_any_layer_counts_as_the_matrix_of_its_first_dimension_and_the_rest(
    layer: nn.Module, name: str, rows: int, columns: int
) -> None:
    hyper = mip.hypernetize(layer.double(), LAM, include=name, head=LowRank(2), hidden_sizes=(8,))
    assert hyper.head.kinds == {name: "LowRank(rank=2)"}
    delta = hyper({"lam": 0.3})[name]
    assert delta.shape == layer.get_parameter(name).shape
    assert int(torch.linalg.matrix_rank(delta.reshape(rows, columns))) == 2
    # Generated are U and D, each from the 8 features of the trunk.
    assert sum(p.numel() for p in hyper.head.parameters()) == 8 * 2 * (rows + columns)


@law
@given(st.lists(st.integers(0, 9), max_size=4).map(Size), st.integers(1, 9))
def test_it_covers_what_it_generates_with_fewer_numbers(shape: Size, rank: int) -> None:
    covered = LowRank(rank).covers(shape)
    if covered:
        head = LowRank(rank).make(1, {"w": shape})
        assert sum(parameter.numel() for parameter in head.parameters()) < shape.numel()
        assert head(torch.ones(2, 1))["w"].shape == (2, *shape)
    assert covered == (len(shape) > 1 and rank * (shape[0] + shape[1:].numel()) < shape.numel())


def test_vectors_numbers_and_small_matrices_are_generated_in_full() -> None:
    net = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 1), nn.PReLU())
    hyper = mip.hypernetize(net, LAM, head=LowRank(3))
    kinds = dict.fromkeys(hyper.shapes, "full") | {"0.weight": "LowRank(rank=3)"}
    assert hyper.head.kinds == kinds


def test_all_factors_of_a_side_come_from_blocks_of_one_flat_map() -> None:
    shapes = {f"w{k}": Size([100, 200]) for k in range(100)}
    head = LowRank(4).make(2, shapes)
    assert [tuple(block.shape) for block in head.left.blocks] == [(2, BLOCK), (2, 100 * 400 - BLOCK)]
    assert len(head.right.blocks) == 3


@torch.no_grad()
def test_both_factors_follow_the_features() -> None:
    torch.manual_seed(0)
    head = LowRank(1).make(4, {"w": Size([5, 7])}).double()
    one, other = head(torch.randn(2, 4, dtype=torch.float64))["w"]
    # Of two matrices of rank one, a common factor would leave the sum at rank one.
    assert int(torch.linalg.matrix_rank(torch.cat([one, other], 0))) == 2
    assert int(torch.linalg.matrix_rank(torch.cat([one, other], 1))) == 2


def test_a_spec_is_a_value() -> None:
    assert LowRank(4) == LowRank(rank=4)
    assert repr(LowRank(4)) == "LowRank(rank=4)"
    assert len({LowRank(4), LowRank(4), LowRank(2)}) == 2
    assert LowRank(4).config() == {"class_path": "lightning_mip.LowRank", "init_args": {"rank": 4}}


@pytest.mark.parametrize("rank", [0, -1, 2.0, "4", True, None])
def test_a_rank_that_is_no_positive_number_is_refused(rank: Any) -> None:
    text = f"rank is {rank!r}, expected a whole number of at least 1, as in LowRank(4)."
    with pytest.raises(ValueError, match=exactly(text)):
        LowRank(rank)
