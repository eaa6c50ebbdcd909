"""Train the Bayesian hypernetwork and the plain network on MNIST; how right are they, and do they know a strange digit?

python -m examples.bayesian_digits.mnist
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch.cli import LightningCLI
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from examples.bayesian_digits import figure
from examples.bayesian_digits.data import CLASSES
from examples.bayesian_digits.demo import quality_table
from examples.bayesian_digits.metrics import Quality, entropy, quality
from examples.common.running import fit, fit_plain, settle
from lightning_mip.ensemble import Ensemble

HERE = Path(__file__).parent
PLAIN = "examples.bayesian_digits.task.PlainDigits"
NOISE = 0.5
BATCH = 1000


def rotated(images: Tensor) -> Tensor:
    """Turned by a quarter: most digits become no digit, 0, 1 and 8 hardly change."""
    return images.rot90(1, (-2, -1))


def noised(images: Tensor) -> Tensor:
    """With Gaussian noise on every pixel, the same at every call."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + NOISE * noise).clamp(0, 1)


STRANGE: dict[str, Callable[[Tensor], Tensor]] = {"rotated": rotated, "noised": noised}


@dataclass(frozen=True)
class Doubt:
    """Measures of doubt on each image (N,): of the ensemble, and of the plain network."""

    ensemble_entropy: Tensor
    mutual_information: Tensor
    plain_entropy: Tensor


SCORES = {
    "ensemble, entropy": "ensemble_entropy",
    "ensemble, mutual information": "mutual_information",
    "plain network, entropy": "plain_entropy",
}


@dataclass(frozen=True)
class Outcome:
    """What was measured; `doubt` is of the test digits as they are and of the strange ones."""

    single: list[Quality]
    ensemble: Quality
    plain: Quality
    doubt: dict[str, Doubt]

    def auroc(self, kind: str, score: str) -> float:
        """How well a score tells the strange digits of a kind from the others."""
        return auroc(getattr(self.doubt["as they are"], score), getattr(self.doubt[kind], score))


def auroc(familiar: Tensor, strange: Tensor) -> float:
    """The probability that a strange image has the higher score; scores are in nats, log(classes) at most."""
    # torchmetrics takes scores outside [0, 1] for logits.
    scores = torch.cat([familiar, strange]) / math.log(CLASSES)
    target = torch.cat([torch.zeros(len(familiar)), torch.ones(len(strange))]).long()
    return float(binary_auroc(scores.clamp(0, 1), target))


def predictions(hyper: LightningCLI, plain: LightningCLI, images: Tensor, draws: int) -> tuple[Ensemble, Tensor]:
    """Probabilities of the ensemble and of the plain network, on the CPU."""
    device = hyper.model.device
    network = plain.model.to(device).eval()
    of_draws, of_plain = [], []
    for piece in images.split(BATCH):
        piece = piece.to(device)
        of_draws.append(hyper.model.predict_ensemble(piece, draws, class_dim=-1).draws.cpu())
        with torch.no_grad():
            of_plain.append(network(piece).softmax(-1).cpu())
    # Double: the mutual information is a small difference.
    return Ensemble(torch.cat(of_draws, 1).double(), -1), torch.cat(of_plain).double()


def evaluate(hyper: LightningCLI, plain: LightningCLI, draws: int) -> Outcome:
    """Ask both for the test digits, as they are and made strange."""
    hyper.datamodule.setup("test")
    images, labels = hyper.datamodule.parts["test"].all()
    doubt: dict[str, Doubt] = {}
    ensemble, probabilities = predictions(hyper, plain, images, draws)
    doubt["as they are"] = Doubt(ensemble.entropy, ensemble.mutual_information, entropy(probabilities))
    for kind, change in STRANGE.items():
        other, of_plain = predictions(hyper, plain, change(images), draws)
        doubt[kind] = Doubt(other.entropy, other.mutual_information, entropy(of_plain))
    return Outcome(
        single=[quality(one, labels) for one in ensemble.draws],
        ensemble=quality(ensemble.mean, labels),
        plain=quality(probabilities, labels),
        doubt=doubt,
    )


def auroc_table(outcome: Outcome) -> Table:
    """The AUROC of each score on each kind of strange digits."""
    result = Table(title="AUROC: the test digits made strange against the test digits")
    result.add_column("score")
    for kind in STRANGE:
        result.add_column(kind, justify="right")
    for name, score in SCORES.items():
        result.add_row(name, *(f"{outcome.auroc(kind, score):.4f}" for kind in STRANGE))
    return result


def full_budget() -> list[str]:
    """Options for the digits' own size and a long training."""
    epochs = "40"
    return [
        *("--data.init_args.image_size", "null"),
        *("--trainer.max_epochs", epochs),
        *("--model.init_args.lr_scheduler.init_args.T_max", epochs),
    ]


def main(args: Sequence[str] | None = None) -> Outcome:
    """Run it; arguments it does not know go on to both `lightning-mip fit`."""
    parser = argparse.ArgumentParser(prog="python -m examples.bayesian_digits.mnist", description=__doc__)
    parser.add_argument("--full", action="store_true", help="28 x 28 pixels, 40 epochs: for a GPU")
    parser.add_argument("--out", type=Path, default=Path("runs/bayesian_digits/mnist.png"), help="the figure")
    parser.add_argument("--runs", type=Path, default=Path("runs/bayesian_digits"), help="folder of logs")
    parser.add_argument("--draws", type=int, default=32, help="draws of h that are averaged")
    options, extra = parser.parse_known_args(args)
    settle()
    extra = [*(full_budget() if options.full else []), *extra]
    config = HERE / "mnist.yaml"
    hyper = fit(config, options.runs, extra)
    plain = fit_plain(config, options.runs, extra, PLAIN, "mnist_plain")
    outcome = evaluate(hyper, plain, options.draws)
    figure.save(figure.draw_doubt(outcome.doubt, SCORES), options.out)

    console = Console()
    title = f"{len(outcome.doubt['as they are'].plain_entropy)} test digits, {options.draws} draws of h"
    console.print(quality_table(title, outcome.single, outcome.ensemble, outcome.plain))
    console.print(auroc_table(outcome))
    console.print(f"Figure: {options.out}", soft_wrap=True)
    return outcome


if __name__ == "__main__":
    main()
