"""LightningModules as others ship them, and what to tell the plug-in: where the network is, and what is to be a dial.

No line of these modules is changed, and none of them knows of hypernetworks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.demos.boring_classes import BoringModel, ManualOptimBoringModel
from lightning.pytorch.demos.transformer import LightningTransformer

import lightning_mip as mip
from examples.plugin.demo_data import HalfDigits, PythonManual

# The head grows with the trunk's last width; for these modules a narrow trunk does as well as the default one.
SMALL = {"hidden_sizes": (16, 16)}


# Of the language model, the decoder alone: a third of its 1.7 million weights.
GENERATED = ["transformer.decoder.*", "decoder.*"]


@dataclass(frozen=True)
class Case:
    """One module.

    Attributes:
        module: Makes it.
        data: Makes its data.
        plugin: Makes the callback.
        metric: What to look at: the name under which the module logs it, or of what `look` gives.
        path: The bound hyperparameter; empty if nothing is bound.
        look: Measures a trained module that logs nothing.
        load: Loads a checkpoint in the module's class.
        trainer: Arguments of the Trainer.
    """

    module: Callable[[], L.LightningModule]
    data: Callable[[], L.LightningDataModule]
    plugin: Callable[[], mip.Hypernetize]
    metric: str
    load: Callable[[Path], L.LightningModule]
    path: str = ""
    look: Callable[[Any, Any], float] | None = None
    trainer: dict[str, Any] = field(default_factory=dict)


def boring() -> Case:
    """The first module everybody sees. It has no hyperparameter, so h is a noise draw that nothing reads."""
    return Case(
        module=BoringModel,
        data=HalfDigits,
        plugin=lambda: mip.Hypernetize("layer", h={"z": mip.Normal(0, 1)}, bind=False, eval_grid=3, **SMALL),
        metric="loss on held-out halves",
        load=BoringModel.load_from_checkpoint,
        look=lambda module, data: float(module.step(data.held_out)),
        trainer={"max_epochs": 2},
    )


def manual() -> Case:
    """The same with manual optimization."""
    return Case(
        module=ManualOptimBoringModel,
        data=HalfDigits,
        plugin=lambda: mip.Hypernetize("layer", h={"z": mip.Normal(0, 1)}, bind=False, eval_grid=3, **SMALL),
        metric="loss on held-out halves",
        load=ManualOptimBoringModel.load_from_checkpoint,
        look=lambda module, data: float(module.step(data.held_out)),
        trainer={"max_epochs": 2},
    )


def transformer() -> Case:
    """Lightning's language model; the dial is the dropout after its positional encoding."""
    path, vocab_size = "model.pos_encoder.dropout.p", PythonManual().vocab_size

    def look(module: LightningTransformer, data: PythonManual) -> float:
        words, target = data.held_out
        return float(torch.nn.functional.nll_loss(module(words, target), target.flatten()))

    return Case(
        module=lambda: LightningTransformer(vocab_size),
        data=PythonManual,
        plugin=lambda: mip.Hypernetize("model", h={path: mip.Uniform(0, 0.8)}, include=GENERATED, eval_grid=3, **SMALL),
        metric="NLL of held-out text",
        load=lambda file: LightningTransformer.load_from_checkpoint(file, vocab_size=vocab_size),
        path=path,
        look=look,
        trainer={"max_epochs": 1},
    )


def nbeats() -> Case:
    """N-BEATS of pytorch-forecasting; the dial is the weight of the backcast in its loss."""
    from pytorch_forecasting import NBeats
    from pytorch_forecasting.data.encoders import EncoderNormalizer
    from pytorch_forecasting.metrics import MAE

    from examples.plugin.stocks import Stocks

    path = "hparams.backcast_loss_ratio"
    return Case(
        module=lambda: NBeats(
            context_length=24,
            prediction_length=6,
            widths=[32, 64],
            learning_rate=3e-3,
            loss=MAE(),
            output_transformer=EncoderNormalizer(),
        ),
        data=Stocks,
        plugin=lambda: mip.Hypernetize("net_blocks", h={path: mip.Uniform(0, 4)}, eval_grid=3, **SMALL),
        metric="val_MAE",
        # Its checkpoints hold the normalizer, an object, with the plug-in or without.
        load=lambda file: NBeats.load_from_checkpoint(file, weights_only=False),
        path=path,
        trainer={"max_epochs": 3},
    )


def deeptda() -> Case:
    """DeepTDA of mlcolvar; the dial is the weight of the classes' centers against their spreads, in its loss object."""
    from mlcolvar.cvs import DeepTDA

    from examples.plugin.tumours import Tumours

    path = "loss_fn.alpha"
    return Case(
        module=lambda: DeepTDA(
            n_states=2,
            n_cvs=1,
            target_centers=[-7.0, 7.0],
            target_sigmas=[0.5, 0.5],
            layers=[30, 24, 12, 1],
            options={"optimizer": {"lr": 3e-3}},
        ),
        data=Tumours,
        plugin=lambda: mip.Hypernetize("nn", h={path: mip.LogUniform(0.03, 1)}, eval_grid=3, **SMALL),
        metric="valid_loss_sigmas",
        load=DeepTDA.load_from_checkpoint,
        path=path,
        trainer={"max_epochs": 1000},
    )


CASES = {function.__name__: function for function in (boring, manual, transformer, nbeats, deeptda)}
