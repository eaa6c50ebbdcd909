"""Columns of the matrix in plain PyTorch: what one does with a hypernetized network."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

import lightning_mip as mip
from lightning_mip.injection import the_injector
from tests.matrix.kinds import Kind
from tests.matrix.subject import (
    ByHand,
    assert_near,
    assert_same_buffers,
    assert_same_run,
    made,
    quietly,
    tolerance,
    value,
)
from tests.module_kinds import attach, gradients, tensors

LAMS = (0.0, 1.0)


def eager(kind: Kind) -> None:
    """Two values of h, one after the other."""
    net, inputs, by_hand = made(kind)
    for lam in LAMS:
        with mip.at(net, lam=lam):
            assert_same_run(net, net, inputs, by_hand, lam, tolerance(kind))
    assert_same_buffers(net, by_hand, tolerance(kind))


def compiled(kind: Kind, backend: str = "aot_eager") -> None:
    """The second h runs the code that was compiled for the first one."""
    net, inputs, by_hand = made(kind)
    fast = torch.compile(net, backend=backend, fullgraph=kind.whole)
    try:
        for lam in LAMS:
            stance = "fail_on_recompile" if kind.whole and lam != LAMS[0] else "default"
            with torch.compiler.set_stance(stance), mip.at(fast, lam=lam):
                assert_same_run(net, fast, inputs, by_hand, lam, tolerance(kind))
    finally:
        torch.compiler.reset()


class Recomputed(nn.Module):
    """Runs a network again in the backward, instead of keeping its activations."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.checkpointing = net, True

    def forward(self, *inputs: Any) -> Any:
        if self.checkpointing:
            return checkpoint(self.net, *inputs, use_reentrant=False)
        return self.net(*inputs)


def recomputed(kind: Kind) -> None:
    """Activation checkpointing around the whole network."""
    net, inputs = kind.build()
    net = Recomputed(net)
    hyper = attach(net, **_inside(kind.arguments))
    by_hand = ByHand(Recomputed(kind.build()[0]), hyper, kind.exact)
    for lam in LAMS:
        with mip.at(net, lam=lam):
            assert_same_run(net, net, inputs, by_hand, lam, tolerance(kind))


def deep_copied(kind: Kind) -> None:
    """The copy is right after the original has changed."""
    _copied(kind, copy.deepcopy)


def pickled(kind: Kind) -> None:
    """What comes back is right after the original has changed."""
    _copied(kind, lambda net: pickle.loads(pickle.dumps(net)))


def _copied(kind: Kind, duplicate: Any) -> None:
    net, inputs, by_hand = made(kind)
    twin = duplicate(net)
    with torch.no_grad():
        for parameter in (*net.parameters(), *the_injector(net).hypernet.parameters()):
            parameter.zero_()
    for lam in LAMS:
        with mip.at(twin, lam=lam):
            assert_same_run(twin, twin, inputs, by_hand, lam, tolerance(kind))


def materialized(kind: Kind) -> None:
    """The plain network's outputs, and the gradients of its parameters."""
    net, inputs, by_hand = made(kind)
    plain = mip.materialize(net, lam=LAMS[0])
    weights = by_hand.weights(lam=LAMS[0])
    found = dict(plain.named_parameters())
    assert_near([found[name] for name in weights], [*weights.values()], tolerance(kind), "weight")
    outputs = plain(*inputs)
    value(outputs).backward()
    expected = by_hand(*inputs, lam=LAMS[0])
    value(expected).backward()
    assert_near(tensors(outputs), tensors(expected), tolerance(kind), "output")
    # The gradient of theta0 is that of theta.
    got = [gradient.to_dense() for gradient in gradients(found[name] for name in by_hand.theta0)]
    assert_near(got, gradients(by_hand.theta0.values()), tolerance(kind), "gradient")


def exported(kind: Kind, folder: Path) -> None:
    """A program of torch.export, in evaluation mode, read back from its file."""
    net, inputs, by_hand = made(kind)
    path = folder / "net.pt2"
    mip.export(net, {"lam": LAMS[0]}, path, example=inputs)
    by_hand.net.eval()
    with torch.no_grad():
        found = torch.export.load(path).module()(*inputs)
        expected = by_hand(*inputs, lam=LAMS[0])
    assert_near(tensors(found), tensors(expected), tolerance(kind), "output")


def per_sample(kind: Kind) -> None:
    """Each sample with an h of its own, as a `HyperLightningModule` runs it, against a loop over the samples."""
    net, inputs = kind.build()
    arguments = {"h": {"lam": mip.Uniform(0, 1)}, "hypernet": {"hidden_sizes": (4, 5)}, **kind.arguments}
    model: Any = quietly(mip.HyperLightningModule, net, per_sample=True, **arguments)
    by_hand = ByHand(kind.build()[0], model.hypernet, kind.exact)
    size = next(len(tensor) for tensor in tensors(inputs))
    lams = torch.linspace(0.1, 0.9, size)
    model.start_batch({"lam": lams})
    outputs = tensors(model(*inputs))
    value(outputs).backward()
    rows = [tensors(by_hand(*_sample(inputs, i), lam=lam)) for i, lam in enumerate(lams.tolist())]
    expected = [torch.cat(parts) for parts in zip(*rows, strict=True)]
    value(expected).backward()
    assert_near(outputs, expected, tolerance(kind), "output")
    found = gradients([*model.primary.parameters(), *model.hypernet.parameters()])
    assert_near(found, by_hand.gradients(), tolerance(kind), "gradient")


def _sample(inputs: Any, i: int) -> Any:
    return tree_map(lambda x: x[i : i + 1] if isinstance(x, Tensor) else x, inputs)


def _inside(arguments: Any) -> dict[str, Any]:
    """Patterns for the same parameters when the network is the child ``net``."""
    return {name: pattern if pattern.startswith("*") else f"net.{pattern}" for name, pattern in arguments.items()}
