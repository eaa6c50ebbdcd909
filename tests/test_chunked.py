"""The chunked head: how tensors are cut, and the product of features and embedding that generates a chunk."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Size, nn

import lightning_mip as mip
from lightning_mip import Chunked
from tests.module_kinds import exactly
from tests.strategies import law

LAM = {"lam": mip.Uniform(0, 1)}


@torch.no_grad()
def test_a_chunk_is_the_product_of_the_features_with_its_embedding_and_the_shared_map() -> None:
    torch.manual_seed(0)
    head = Chunked(6, embedding=2).make(3, {"w": Size([4, 5]), "b": Size([6])}).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    (embeddings,) = head.embeddings.blocks  # 4 chunks of w, of 5 numbers each, and one of b
    assert embeddings.shape == (3, 5 * 2)
    tensors = head(x)
    for k, row in enumerate(tensors["w"].unbind(1)):
        torch.testing.assert_close(row, x @ embeddings[:, 2 * k : 2 * k + 2] @ head.shared[:, :5])
    torch.testing.assert_close(tensors["b"], x @ embeddings[:, 8:] @ head.shared)


@law
@given(st.lists(st.integers(0, 9), max_size=4).map(Size), st.integers(2, 40), st.integers(1, 9))
def test_it_covers_what_it_generates_with_fewer_coefficients(shape: Size, size: int, embedding: int) -> None:
    spec = Chunked(size, min(embedding, size - 1))
    chunks = -(-shape.numel() // size)
    assert spec.covers(shape) == (chunks * spec.embedding < shape.numel())
    if spec.covers(shape):
        head = spec.make(1, {"w": shape})
        assert sum(block.numel() for block in head.embeddings.parameters()) == chunks * spec.embedding
        assert head.shared.shape[1] <= size
        assert head(torch.ones(2, 1))["w"].shape == (2, *shape)


def test_tensors_smaller_than_their_chunks_are_generated_in_full() -> None:
    net = nn.Sequential(nn.Linear(8, 6), nn.PReLU(), nn.Linear(6, 6))
    hyper = mip.hypernetize(net, LAM, head=Chunked(16, 4))
    chunked = "Chunked(size=16, embedding=4)"
    assert hyper.head.kinds == {
        "0.weight": chunked,
        "0.bias": chunked,
        "1.weight": "full",
        "2.weight": chunked,
        "2.bias": chunked,
    }


@torch.no_grad()
def test_features_and_embedding_interact() -> None:
    torch.manual_seed(0)
    head = Chunked(8, 2).make(4, {"w": Size([4, 8])}).double()
    one, other = head(torch.randn(2, 4, dtype=torch.float64))["w"]
    # Were a chunk a map of the sum of a part for h and a part for the chunk, all chunks would change by the same.
    change = one - other
    assert not torch.isclose(change[0], change[1], rtol=0.1).any()
    assert int(torch.linalg.matrix_rank(change)) == 2


def test_larger_chunks_make_a_smaller_hypernetwork() -> None:
    shapes = {"w": Size([512, 512])}
    sizes = [sum(p.numel() for p in Chunked(size).make(16, shapes).parameters()) for size in (512, 2048, 8192)]
    assert sizes == [512 * 128 + 8 * 512, 128 * 128 + 8 * 2048, 32 * 128 + 8 * 8192]


def test_the_padding_row_of_an_embedding_stays_zero_through_training_and_a_checkpoint() -> None:
    def attached() -> tuple[nn.Module, mip.HyperNetwork]:
        net = nn.Embedding(7, 6, padding_idx=2)
        return net, mip.hypernetize(net, LAM, head=Chunked(8, 2), hidden_sizes=(4,))

    net, hyper = attached()
    optimizer = torch.optim.Adam([*net.parameters(), *hyper.parameters()], 0.1)
    for _ in range(3):
        with mip.at(net, lam=0.3):
            net(torch.arange(7)).square().sum().backward()
        optimizer.step()
    deltas = hyper({"lam": 0.3})["weight"]
    assert not deltas[2].any()
    assert deltas.count_nonzero() == 6 * 6
    other = mip.HyperNetwork(LAM, hyper.shapes, head=Chunked(8, 2), hidden_sizes=(4,))
    other.load_state_dict(hyper.state_dict())
    assert torch.equal(other({"lam": 0.3})["weight"], deltas)


def test_a_spec_is_a_value() -> None:
    assert Chunked(1024) == Chunked(size=1024, embedding=8)
    assert repr(Chunked(1024)) == "Chunked(size=1024, embedding=8)"
    assert len({Chunked(64), Chunked(64, 8), Chunked(64, 4)}) == 2
    config = {"class_path": "lightning_mip.Chunked", "init_args": {"size": 64, "embedding": 4}}
    assert Chunked(64, 4).config() == config


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0,), "size is 0, expected a whole number of at least 1, as in Chunked(1024)."),
        ((2.5,), "size is 2.5, expected a whole number of at least 1, as in Chunked(1024)."),
        ((16, 0), "embedding is 0, expected a whole number of at least 1, as in Chunked(1024, embedding=8)."),
        (
            (8, 8),
            "embedding is 8, expected less than size (8), as the chunks would be no smaller otherwise; use "
            "head='full'.",
        ),
    ],
)
def test_wrong_sizes_are_refused(arguments: Any, text: str) -> None:
    with pytest.raises(ValueError, match=exactly(text)):
        Chunked(*arguments)
