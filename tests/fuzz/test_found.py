"""Mistakes that random inputs have found and that ended inside torch, or in many lines: what is said of each now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

import lightning_mip as mip
from lightning_mip import HyperNetwork
from lightning_mip.evaluation import grid_of
from tests.module_kinds import exactly
from tests.tasks import SMALL, Evaluated, Net, loader, make

LAM = {"lam": mip.Uniform(0, 1)}
ONE = {"weight": torch.Size([2, 3])}
ARGUMENTS = "hidden_sizes, activation, norm, dropout, head, encoding, encoding_norm, residual, init, scale, trunk"


def small(**arguments: Any) -> HyperNetwork:
    return HyperNetwork(LAM, ONE, **arguments)


def chosen(metric: Any, batches: Any = None, **arguments: Any) -> Any:
    net = Net()
    mip.hypernetize(net, LAM, **SMALL)
    return mip.choose(net, list(loader()) if batches is None else batches, metric, "min", grid=2, **arguments)


def fitted(**arguments: Any) -> None:
    make(Evaluated, **arguments).configure_optimizers()


FOUND: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "shapes": (
        lambda: HyperNetwork(LAM, 0.5),  # type: ignore[arg-type]
        TypeError,
        "shapes is 0.5, expected name -> shape such as {'weight': (3, 2)}.",
    ),
    "negative_shape": (
        lambda: HyperNetwork(LAM, {"weight": [2, -1]}),  # type: ignore[dict-item]
        ValueError,
        "shapes['weight'] is [2, -1], expected a shape such as (3, 2).",
    ),
    "fractional_shape": (
        lambda: HyperNetwork(LAM, {"weight": [2, 0.5]}),  # type: ignore[dict-item]
        ValueError,
        "shapes['weight'] is [2, 0.5], expected a shape such as (3, 2).",
    ),
    "fractional_width": (
        lambda: small(hidden_sizes=[16, 2.5]),
        TypeError,
        "hidden_sizes is [16, 2.5], expected a list of whole numbers such as [16, 8].",
    ),
    "width_of_words": (
        lambda: small(hidden_sizes="16"),
        TypeError,
        "hidden_sizes is '16', expected a list of whole numbers such as [16, 8].",
    ),
    "width_of_an_array_without_dimensions": (
        lambda: small(hidden_sizes=np.array(16)),
        TypeError,
        "hidden_sizes is array(16), expected a list of whole numbers such as [16, 8].",
    ),
    "dropout": (
        lambda: small(dropout=1.5),
        ValueError,
        "dropout is 1.5, expected a probability, 0 <= dropout <= 1.",
    ),
    "activation": (
        lambda: small(activation=nn.ReLU()),
        TypeError,
        "activation is ReLU(), expected a class of modules such as torch.nn.LeakyReLU.",
    ),
    "residual": (lambda: small(residual="no"), TypeError, "residual is 'no', expected True or False."),
    "infinite_ratio": (
        lambda: small(init=10**400),
        ValueError,
        f"init is {str(10**400)[:300]}..., expected 'fan_out', 'zero', or (with residual=True) a ratio > 0.",
    ),
    "list_of_encodings": (
        lambda: small(encoding=["mip"]),
        ValueError,
        "encoding is ['mip'], expected one of 'mip', 'z|1-z', 'none'.",
    ),
    "trunk": (
        lambda: mip.hypernetize(nn.Linear(3, 2), LAM, trunk="mlp"),
        TypeError,
        "trunk is 'mlp', expected a module that maps (batch, encoding) to (batch, features).",
    ),
    "trunk_of_two_inputs": (
        lambda: small(trunk=nn.Bilinear(2, 2, 1)),
        ValueError,
        "trunk does not take an encoded h of shape (1, 2): Bilinear.forward() missing 1 required positional argument: "
        "'input2'",
    ),
    "pattern_of_a_head": (
        lambda: small(head={3: "full"}),
        TypeError,
        "head has the pattern 3, expected a glob such as '*.weight'.",
    ),
    "tensor_as_pattern": (
        lambda: mip.hypernetize(nn.Linear(3, 2), LAM, include=torch.zeros(2, 1)),  # type: ignore[arg-type]
        TypeError,
        "pattern tensor([[0.], [0.]]): expected a glob such as 'encoder.*', a module type or a parameter.",
    ),
    "unknown_argument": (
        lambda: mip.hypernetize(nn.Linear(3, 2), LAM, hidden_size=[4]),
        TypeError,
        f"HyperNetwork has no argument 'hidden_size'; its arguments are {ARGUMENTS}. Did you mean 'hidden_sizes'?",
    ),
    "unknown_argument_of_a_maker": (
        lambda: mip.hypernetize(nn.Linear(3, 2), LAM, hypernet=lambda space, shapes: small(lam=3)),
        TypeError,
        "hypernet cannot be made: HyperNetwork.__init__() got an unexpected keyword argument 'lam'",
    ),
    "unknown_argument_of_a_plan": (
        lambda: mip.summary(nn.Linear(3, 2), LAM, lam=3),
        TypeError,
        f"HyperNetwork has no argument 'lam'; its arguments are {ARGUMENTS}.",
    ),
    "no_network": (lambda: mip.hypernetize("net", LAM), TypeError, "module is 'net', expected a torch.nn.Module."),  # type: ignore[arg-type]
    "nothing_to_take_out": (
        lambda: mip.materialize(None, lam=0),
        TypeError,
        "module is None, expected a torch.nn.Module.",
    ),  # type: ignore[arg-type]
    "bins": (lambda: mip.PerHMetrics(bins=None), TypeError, "bins is None, expected a whole number."),  # type: ignore[arg-type]
    "draws": (lambda: make(draws_per_batch=1.5), TypeError, "draws_per_batch is 1.5, expected a whole number."),
    "every_n_steps": (
        lambda: mip.MagnitudeMonitor(every_n_steps=2.5),  # type: ignore[arg-type]
        TypeError,
        "every_n_steps is 2.5, expected a whole number.",
    ),
    "ensemble": (
        lambda: make(Evaluated).predict_ensemble(torch.ones(1, 3), n="all"),
        TypeError,
        "n is 'all', expected a whole number.",
    ),
    "seed": (lambda: mip.SampleH(seed="1"), TypeError, "seed is '1', expected a whole number."),  # type: ignore[arg-type]
    "eval_grid": (
        lambda: make(eval_grid=None),
        TypeError,
        "eval_grid is None, expected points per component or a list of mappings.",
    ),
    "batch_of_preference_vectors": (
        lambda: grid_of(mip.HSpace({"w": mip.Simplex(2)}), [{"w": [[0.25, 0.75]]}]),
        ValueError,
        "eval_grid holds a batch of h, (w=0.25:0.75); list its values one by one.",
    ),
    "bind": (
        lambda: mip.Hypernetize("net", LAM, bind="lam"),  # type: ignore[arg-type]
        TypeError,
        "bind is 'lam', expected True, False or a list of components of h.",
    ),
    "optimizer": (
        lambda: fitted(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=-1)),
        ValueError,
        "optimizer cannot be made: SGD(lr=-1): Invalid learning rate: -1",
    ),
    "lr_scheduler": (
        lambda: fitted(lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer)),
        ValueError,
        "lr_scheduler cannot be made: StepLR.__init__() missing 1 required positional argument: 'step_size'",
    ),
    "no_batches": (
        lambda: chosen(lambda output, batch: 1.0, 3),
        TypeError,
        "dataloader is 3, expected a DataLoader or a list of batches.",
    ),
    "no_batches_to_diagnose": (
        lambda: mip.diagnose(make(Evaluated), "val"),
        TypeError,
        "dataloader is 'val', expected a DataLoader or a list of batches.",
    ),
    "a_data_module_to_diagnose": (
        lambda: mip.diagnose(make(Evaluated), L.LightningDataModule()),
        TypeError,
        "dataloader is a LightningDataModule, expected a DataLoader or a list of batches; give one of its own: "
        "datamodule.setup('fit'), then datamodule.val_dataloader().",
    ),
    "metric": (
        lambda: chosen(lambda output, batch: None),
        TypeError,
        "metric returned None, expected one number per sample, or one for the batch.",
    ),
    "name_of_a_metric_of_a_network": (
        lambda: chosen("val_loss"),
        TypeError,
        "model is a Net, expected a LightningModule whose validation_step logs metrics; for a plain network use "
        "mip.choose with a function as metric, or `with mip.at(network, h):`.",
    ),
    "resamples": (
        lambda: chosen(lambda output, batch: 1.0, resamples=None),
        TypeError,
        "resamples is None, expected a whole number.",
    ),
    "checkpoint": (
        lambda: mip.export("none.ckpt", {"lam": 0.5}, "net.pt"),
        FileNotFoundError,
        "'none.ckpt' is no file, expected a checkpoint that a Trainer has written.",
    ),
    "example": (
        lambda: mip.export(make(Evaluated), {"lam": 0.5}, "net.pt", example=torch.ones(1, 7)),
        ValueError,
        "example does not fit Net, which raises: mat1 and mat2 shapes cannot be multiplied (1x7 and 3x5)",
    ),
}


@pytest.mark.parametrize(("call", "kind", "text"), FOUND.values(), ids=FOUND)
def test_a_mistake_is_told_in_these_words(
    call: Callable[[], object], kind: type[Exception], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=exactly(text)):
        call()


@pytest.mark.parametrize("seed", [-1, 2**80])
def test_any_whole_number_is_a_seed(seed: int) -> None:
    assert chosen(lambda output, batch: output.square().mean(1), seed=seed, resamples=3).count == 16
    report = mip.diagnose(make(Evaluated), list(loader()), draws=1, batches=1, seed=seed)
    assert report.verdicts


def test_a_chunk_larger_than_all_numbers_is_one_chunk() -> None:
    assert small(head=mip.Chunked(10**400, embedding=2))({"lam": 0.5})["weight"].shape == (2, 3)
