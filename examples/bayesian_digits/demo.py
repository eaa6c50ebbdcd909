"""Train the Bayesian hypernetwork and the plain network, print a table and draw a figure.

python -m examples.bayesian_digits.demo
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch.cli import LightningCLI
from rich.console import Console
from rich.table import Table
from torch import Tensor

from examples.bayesian_digits import figure
from examples.bayesian_digits.figure import Case
from examples.bayesian_digits.metrics import Quality, entropy, quality
from examples.bayesian_digits.task import BayesianDigits
from examples.common.running import fit, settle
from lightning_mip.ensemble import Ensemble

HERE = Path(__file__).parent
BEST = {"accuracy": max, "nll": min, "ece": min}
WORST = {"accuracy": min, "nll": max, "ece": max}
BLENDS = ((3, 8), (4, 9), (1, 7), (5, 6))


@dataclass(frozen=True)
class Outcome:
    """What both networks say of the test images, and what was measured of it."""

    images: Tensor
    labels: Tensor
    predicted: Ensemble
    single: list[Quality]
    ensemble: Quality
    plain: Quality


def evaluate(hyper: LightningCLI, plain: LightningCLI, draws: int, seed: int) -> Outcome:
    """Ask both networks for the test images, the hypernetwork at `draws` draws of h."""
    hyper.datamodule.setup("test")
    images, labels = hyper.datamodule.parts["test"].all()
    model, network = hyper.model.cpu(), plain.model.cpu().eval()
    predicted = model.predict_ensemble(images, draws, class_dim=-1, seed=seed)
    with torch.no_grad():
        plain_probabilities = network(images).softmax(-1)
    return Outcome(
        images=images,
        labels=labels,
        predicted=predicted,
        single=[quality(one, labels) for one in predicted.draws],
        ensemble=quality(predicted.mean, labels),
        plain=quality(plain_probabilities, labels),
    )


def quality_table(title: str, single: Sequence[Quality], ensemble: Quality, plain: Quality) -> Table:
    """Accuracy, NLL and calibration of single draws, of the ensemble and of the plain network."""
    result = Table(title=title)
    result.add_column("prediction")
    for column in ("accuracy", "NLL", "ECE"):
        result.add_column(column, justify="right")
    of_draws = {name: [getattr(one, name) for one in single] for name in BEST}
    rows = {
        "one draw of h, worst": [WORST[name](values) for name, values in of_draws.items()],
        "one draw of h, mean": [sum(values) / len(values) for values in of_draws.values()],
        "one draw of h, best": [BEST[name](values) for name, values in of_draws.items()],
        "mean over draws of h": [getattr(ensemble, name) for name in of_draws],
        "plain network": [getattr(plain, name) for name in of_draws],
    }
    for name, values in rows.items():
        result.add_row(name, *(f"{value:.4f}" for value in values), style="bold" if name.startswith("mean") else None)
    return result


def case(image: Tensor, labels: Sequence[int], probabilities: Tensor) -> Case:
    """An image with its true classes, how uncertain the mean prediction is, and what the draws say."""
    uncertainty = entropy(probabilities.mean(0)).item()
    return Case(image[0], f"{' and '.join(map(str, labels))},  H = {uncertainty:.2f}", labels, probabilities)


def cases(outcome: Outcome, index: Tensor) -> list[Case]:
    """The test images at `index`."""
    return [case(outcome.images[k], [int(outcome.labels[k])], outcome.predicted.draws[:, k]) for k in index.tolist()]


def blends(model: BayesianDigits, outcome: Outcome, draws: int, seed: int) -> list[Case]:
    """Averages of two clear digits of different classes, which no class fits."""
    uncertainty = outcome.predicted.entropy

    def clearest(label: int) -> Tensor:
        candidates = (outcome.labels == label).nonzero().squeeze(1)
        return outcome.images[candidates[uncertainty[candidates].argmin()]]

    images = torch.stack([(clearest(a) + clearest(b)) / 2 for a, b in BLENDS])
    predicted = model.predict_ensemble(images, draws, class_dim=-1, seed=seed)
    return [case(images[k], labels, predicted.draws[:, k]) for k, labels in enumerate(BLENDS)]


def clear_ones(outcome: Outcome, count: int) -> Tensor:
    """Indices of the images of lowest entropy, each of another class."""
    order = outcome.predicted.entropy.argsort().tolist()
    first: dict[int, int] = {}
    for k in order:
        first.setdefault(int(outcome.labels[k]), k)
    return torch.tensor(list(first.values())[:count])


def draw(hyper: LightningCLI, plain: LightningCLI, outcome: Outcome, seed: int, out: Path) -> None:
    """Write the figure."""
    logs = {"hypernetwork": hyper.trainer, "plain network": plain.trainer}
    paths = {name: Path(trainer.logger.log_dir) / "metrics.csv" for name, trainer in logs.items()}
    ambiguous = outcome.predicted.entropy.argsort(descending=True)[:4]
    picture = figure.draw(
        loss={name: figure.read_curve(path, "val_loss") for name, path in paths.items()},
        accuracy={name: figure.read_curve(path, "val_acc") for name, path in paths.items()},
        spread=([one.accuracy for one in outcome.single], outcome.ensemble.accuracy, outcome.plain.accuracy),
        rows={
            "Clear test digits: all draws of h agree": cases(outcome, clear_ones(outcome, 4)),
            "The most ambiguous test digits: the draws differ": cases(outcome, ambiguous),
            "Two digits averaged": blends(hyper.model, outcome, len(outcome.predicted.draws), seed),
        },
    )
    figure.save(picture, out)


def main(args: Sequence[str] | None = None) -> Outcome:
    """Run the demo; arguments it does not know go on to both `lightning-mip fit`."""
    parser = argparse.ArgumentParser(prog="python -m examples.bayesian_digits.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bayesian_digits/demo.png"), help="the figure")
    parser.add_argument("--runs", type=Path, default=Path("runs/bayesian_digits"), help="folder of logs")
    parser.add_argument("--draws", type=int, default=32, help="draws of h that are averaged")
    parser.add_argument("--seed", type=int, default=0, help="seed of these draws")
    options, extra = parser.parse_known_args(args)
    settle()
    plain = fit(HERE / "plain.yaml", options.runs, extra)
    hyper = fit(HERE / "demo.yaml", options.runs, extra)
    outcome = evaluate(hyper, plain, options.draws, options.seed)
    draw(hyper, plain, outcome, options.seed, options.out)

    console = Console()
    title = f"{len(outcome.labels)} test digits, {options.draws} draws of h"
    console.print(quality_table(title, outcome.single, outcome.ensemble, outcome.plain))
    total, from_h = outcome.predicted.entropy.mean(), outcome.predicted.mutual_information.mean()
    console.print(
        f"Predictive entropy: {total:.3f} nats per digit; {from_h:.3f} of it because draws of h disagree.\n"
        f"Figure: {options.out}",
        soft_wrap=True,
    )
    return outcome


if __name__ == "__main__":
    main()
