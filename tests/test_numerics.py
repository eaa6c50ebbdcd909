"""Gradients of every part, against finite differences in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

import lightning_mip as mip
from lightning_mip.head_choice import HeadChoice

SHAPES = {"weight": torch.Size([4, 3]), "bias": torch.Size([4])}
HEADS: dict[str, HeadChoice] = {
    "full": "full",
    "low rank": mip.LowRank(2),
    "chunked": mip.Chunked(4, embedding=2),
    "by tensor": {"weight": mip.LowRank(1), "*": "full"},
}
SPACES = {
    "uniform": {"h": mip.Uniform(-1, 2)},
    "log": {"h": mip.LogUniform(1e-2, 10)},
    "normal": {"h": mip.Normal(1, 2)},
    "two": {"h": mip.Uniform(0, 1), "g": mip.Normal(0, 1)},
}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("encoding", ["mip", "z|1-z", "none"])
def test_the_encoding_has_the_gradient_of_its_values(space: str, encoding: str) -> None:
    hyper = mip.HyperNetwork(SPACES[space], SHAPES, encoding=encoding, scale="paper").double()
    values = [torch.tensor(0.4, dtype=torch.float64, requires_grad=True) for _ in hyper.space]
    assert gradcheck(lambda *given: hyper.encode(dict(zip(hyper.space, given, strict=True))), values)


@pytest.mark.parametrize("scale", ["matched", "paper"])
@pytest.mark.parametrize("head", HEADS)
def test_generated_weights_have_the_gradient_of_h_and_of_every_parameter(head: str, scale: str) -> None:
    torch.manual_seed(0)
    hyper = mip.HyperNetwork({"h": mip.Uniform(0, 1)}, SHAPES, (4, 3), nn.Tanh, head=HEADS[head], scale=scale).double()
    names, parameters = zip(*hyper.named_parameters(), strict=True)

    def generated(h: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        state = dict(zip(names, given, strict=True))
        return tuple(torch.func.functional_call(hyper, state, ({"h": h},)).values())

    h = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(generated, (h, *(p.detach().requires_grad_() for p in parameters)))


@pytest.mark.parametrize("head", HEADS)
def test_the_network_has_the_gradient_of_its_input_and_of_h(head: str) -> None:
    torch.manual_seed(0)
    net = nn.Linear(3, 4).double()
    mip.hypernetize(net, {"h": mip.Uniform(0, 1)}, hidden_sizes=(4, 3), activation=nn.Tanh, head=HEADS[head]).double()

    def output(x: Tensor, h: Tensor) -> Tensor:
        with mip.at(net, h=h):
            return net(x)

    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(output, (x, torch.tensor(0.3, dtype=torch.float64, requires_grad=True)))


@pytest.mark.parametrize("head", HEADS)
def test_the_plain_network_is_the_generated_one_to_the_last_bits(head: str) -> None:
    torch.manual_seed(0)
    net = nn.Linear(3, 4).double()
    mip.hypernetize(net, {"h": mip.Uniform(0, 1)}, head=HEADS[head]).double()
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    plain = mip.materialize(net, h=0.3)
    with mip.at(net, h=0.3):
        torch.testing.assert_close(plain(x), net(x), rtol=1e-14, atol=1e-14)
    assert gradcheck(plain, (x,))
