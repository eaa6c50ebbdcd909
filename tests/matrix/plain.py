"""What is not applicable: the plain network, without this package, is no better off, as each function shows."""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tests.matrix.kinds import Kind, converted
from tests.matrix.subject import COARSE, assert_near, value
from tests.matrix.trainer_columns import LR, batches_of, loader, sgd, trainer
from tests.module_kinds import gradients


def cannot_be_copied(kind: Kind) -> None:
    with pytest.raises(RuntimeError, match="support the deepcopy protocol"):
        copy.deepcopy(kind.build()[0])


def is_not_trained_in_a_copy(kind: Kind) -> None:
    twin = copy.deepcopy(kind.build()[0])
    assert not all(parameter.is_leaf for parameter in twin.parameters())


def cannot_be_pickled(kind: Kind) -> None:
    with pytest.raises((RuntimeError, AttributeError), match=r"parametrized modules|local object|__getstate__"):
        pickle.dumps(kind.build()[0])


def cannot_be_averaged(kind: Kind) -> None:
    net, inputs = kind.build()
    average = AveragedModel(net, use_buffers=True)
    net(*inputs)
    with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
        average.update_parameters(net)


def cannot_run_in(dtype: torch.dtype) -> Callable[[Kind], None]:
    def show(kind: Kind) -> None:
        net, inputs = kind.build()
        with pytest.raises(RuntimeError, match="expected scalar type Float"):
            net.to(dtype)(*converted(inputs, dtype))

    return show


def cannot_run_under_autocast(kind: Kind) -> None:
    net, inputs = kind.build(torch.float32)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="expected scalar type Float"):
        net(*inputs)


def loses_what_is_imaginary(kind: Kind) -> None:
    with pytest.warns(UserWarning, match="discards the imaginary part"):
        kind.build()[0].to(torch.bfloat16)


def cannot_be_exported(kind: Kind) -> None:
    net, inputs = kind.build()
    net.eval()
    with torch.no_grad(), pytest.raises(TypeError, match="positional arguments"):
        torch.export.export(net, inputs).module()(*inputs)


def cannot_run_once_exported(kind: Kind) -> None:
    net, inputs = kind.build()
    net.eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = io.BytesIO()
        torch.export.save(torch.export.export(net, inputs), file)
        file.seek(0)
        program = torch.export.load(file).module()
        with pytest.raises(RuntimeError, match="Trying to resize storage that is not resizable"):
            program(*inputs)


def rounds_as_much(kind: Kind) -> None:
    """On some batch bfloat16 moves a gradient of the plain network by more than the tolerance."""
    found: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for batch in batches_of(kind, dtype=torch.float32):
        net, _ = kind.build(torch.float32)
        for dtype, seen in zip((torch.bfloat16, torch.float64), found, strict=True):
            net.zero_grad()
            value(net.to(dtype)(*converted(batch, dtype))).backward()
            seen += [gradient.double() for gradient in gradients(net.parameters())]
    with pytest.raises(AssertionError, match="gradient"):
        assert_near(*found, COARSE, "gradient")


def is_another_network_when_recomputed(kind: Kind) -> None:
    """Its second run starts from what the first one wrote to its buffers."""
    net, inputs = kind.build()
    found = []
    for _ in range(2):
        found.append([buffer.clone() for buffer in net.buffers()])
        net(*inputs)
    with pytest.raises((AssertionError, RuntimeError)):
        torch.testing.assert_close(*found)


class Plain(L.LightningModule):
    """A LightningModule as others write them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.start: list[Any] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self.parameters())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.start = [parameter.detach().clone() for parameter in self.parameters()]
        return value(self.net(*batch))


def is_trained_on_after_the_mean(kind: Kind) -> None:
    """In the pass that estimates running statistics the weights are the mean, but not after it."""
    module = Plain(kind.build()[0])
    callback = StochasticWeightAveraging(LR, swa_epoch_start=2)
    with tempfile.TemporaryDirectory() as folder:
        runner = trainer(Path(folder), max_epochs=3, precision="64-true", callbacks=[callback])
        runner.fit(module, loader(batches_of(kind)))
    with pytest.raises(AssertionError, match="weight"):
        assert_near([*module.parameters()], module.start, COARSE, "weight")


def has_samples_second(kind: Kind) -> None:
    assert not kind.build()[0].batch_first
