"""One run with the plug-in beside separate trainings at fixed values of the hyperparameter, with the same budget each.

python -m examples.plugin.story
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import lightning_mip as mip
from examples.plugin.digits import Classifier, FewDigits

# hyperparameter -> its prior, as wide as one would search without knowing the task.
DIALS = {"reg_weight": mip.LogUniform(1e-4, 1e-1), "noise": mip.LogUniform(0.03, 3.0)}
# The curve has so many points between two values at which networks are trained separately.
STEP = 8
METRICS = ("loss", "accuracy")


@dataclass(frozen=True)
class Run:
    """What one training gave: validation loss and accuracy by value of the hyperparameter, and how long it took."""

    loss: list[float]
    accuracy: list[float]
    seconds: float
    exported: tuple[float, float] | None = None


@dataclass(frozen=True)
class Outcome:
    """Everything the tables and the figure are made of; arrays are (seeds, values).

    Attributes:
        dial: The hyperparameter.
        grid: Its values at which networks were trained separately.
        fine: The values at which the plug-in was validated, `grid` among them.
        separate, plugged: metric -> array over `grid` and over `fine`.
        seconds: Mean duration of one separate training and of one with the plug-in.
        exported: Best value of the first seed's run with the plug-in, its loss there, and that of the network taken
            out and loaded into the original class.
    """

    dial: str
    grid: np.ndarray
    fine: np.ndarray
    separate: dict[str, np.ndarray]
    plugged: dict[str, np.ndarray]
    seconds: tuple[float, float]
    exported: tuple[float, float, float]

    def on_grid(self, metric: str) -> np.ndarray:
        """The plug-in's values where there are separate trainings to compare them with."""
        return self.plugged[metric][:, ::STEP]


def trainer(epochs: int, *callbacks: L.Callback) -> L.Trainer:
    """A quiet Trainer on one core, which validates once, at the end."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*(LeafSpec|does not have many workers|smaller than the logging).*")
    return L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        check_val_every_n_epoch=epochs,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def separate(dial: str, value: float, seed: int, epochs: int) -> Run:
    """Train the classifier at one value of the hyperparameter."""
    started = time.perf_counter()
    L.seed_everything(seed, verbose=False)
    run = trainer(epochs)
    run.fit(Classifier(**{dial: value}), datamodule=FewDigits(seed=seed))
    found = run.callback_metrics
    return Run([float(found["val_loss"])], [float(found["val_acc"])], time.perf_counter() - started)


def plugged(dial: str, points: int, seed: int, epochs: int, export: Path | None) -> Run:
    """Train it once for all values, and write the best network to `export`."""
    started = time.perf_counter()
    L.seed_everything(seed, verbose=False)
    path = f"hparams.{dial}"
    plugin = mip.Hypernetize("net", h={path: DIALS[dial]}, eval_grid=points, hidden_sizes=(16, 16))
    run = trainer(epochs, plugin)
    run.fit(Classifier(), datamodule=FewDigits(seed=seed))
    seconds = time.perf_counter() - started

    labels = [plugin.space.label(h) for h in plugin.grid]
    loss = [float(run.callback_metrics[f"val_loss/{label}"]) for label in labels]
    accuracy = [float(run.callback_metrics[f"val_acc/{label}"]) for label in labels]
    if export is None:
        return Run(loss, accuracy, seconds)
    best = plugin.grid[int(np.argmin(loss))]
    plugin.export(run, best, export)
    return Run(loss, accuracy, seconds, (float(best[path]), validated(export, seed)))


def validated(checkpoint: Path, seed: int) -> float:
    """The validation loss of a checkpoint in the original class, without the plug-in."""
    classifier = Classifier.load_from_checkpoint(checkpoint)
    (metrics,) = trainer(1).validate(classifier, datamodule=FewDigits(seed=seed), verbose=False)
    return metrics["val_loss"]


def run_all(dial: str, seeds: int, epochs: int, points: int, export: Path, pool: Executor) -> Outcome:
    """Train everything, several at a time."""
    space = mip.HSpace({dial: DIALS[dial]})
    grid, fine = (np.array([float(h[dial]) for h in space.grid(n)]) for n in (points, (points - 1) * STEP + 1))
    alone = [[pool.submit(separate, dial, value, seed, epochs) for value in grid] for seed in range(seeds)]
    with_plugin = [
        pool.submit(plugged, dial, len(fine), seed, epochs, export if seed == 0 else None) for seed in range(seeds)
    ]
    wait_for([*(future for row in alone for future in row), *with_plugin])
    rows, curves = [[future.result() for future in row] for row in alone], [future.result() for future in with_plugin]
    best, exported_loss = curves[0].exported or (float("nan"),) * 2
    return Outcome(
        dial=dial,
        grid=grid,
        fine=fine,
        separate={name: np.array([[getattr(run, name)[0] for run in row] for row in rows]) for name in METRICS},
        plugged={name: np.array([getattr(run, name) for run in curves]) for name in METRICS},
        seconds=(float(np.mean([run.seconds for row in rows for run in row])), mean_seconds(curves)),
        exported=(best, min(curves[0].loss), exported_loss),
    )


def mean_seconds(runs: Sequence[Run]) -> float:
    """Mean duration."""
    return float(np.mean([run.seconds for run in runs]))


def wait_for(futures: Sequence[Future[Any]]) -> None:
    """Show how many trainings are done; raise what one of them raised."""
    with Progress(transient=True) as progress:
        task = progress.add_task("training", total=len(futures))
        for future in futures:
            future.result()
            progress.advance(task)


def table(outcome: Outcome, metric: str) -> Table:
    """Both at each value, the difference seed by seed, and what of it is within the spread of separate trainings."""
    alone, one = outcome.separate[metric], outcome.on_grid(metric)
    result = Table(
        title=f"Validation {metric}: mean over {len(alone)} seeds (lowest highest)",
        caption="within: is the mean, how many runs are, in the spread of separate trainings",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for column in (outcome.dial, "separate trainings", "one run", "difference", "within"):
        result.add_column(column, justify="right", no_wrap=True)
    best = best_of(alone.mean(0), metric), best_of(one.mean(0), metric)
    for k, value in enumerate(outcome.grid):
        cells = [emphasised(spread(values[:, k]), k == at) for values, at in zip((alone, one), best, strict=True)]
        whole = "yes" if within(alone[:, k], one[:, k].mean()) else "[red]no[/red]"
        inside = int(within(alone[:, k], one[:, k]).sum())
        result.add_row(f"{value:.2g}", *cells, deviation(one[:, k] - alone[:, k]), f"{whole} {inside}/{len(one)}")
    return result


def spread(values: np.ndarray) -> str:
    """Mean, lowest and highest."""
    return f"{values.mean():.3f} ({values.min():.3f} {values.max():.3f})"


def deviation(differences: np.ndarray) -> str:
    """Mean and, where there are several, standard deviation."""
    mean = f"{differences.mean():+.3f}"
    return f"{mean} ± {differences.std(ddof=1):.3f}" if len(differences) > 1 else mean


def emphasised(text: str, best: bool) -> str:
    """Bold if it is the best of its column."""
    return f"[bold]{text}[/bold]" if best else text


def best_of(values: np.ndarray, metric: str) -> int:
    """Index of the lowest loss or the highest accuracy."""
    return int(values.argmin() if metric == "loss" else values.argmax())


def within(reference: np.ndarray, values: Any) -> Any:
    """Whether values lie between the lowest and the highest of the reference."""
    return (reference.min() <= values) & (values <= reference.max())


def say(outcome: Outcome, console: Console) -> None:
    """Print the tables and what they come to."""
    for metric in METRICS:
        console.print(table(outcome, metric))
    alone, one = outcome.separate["loss"], outcome.on_grid("loss")
    same = int((alone.argmin(1) == one.argmin(1)).sum())
    values = [f"{outcome.grid[found.mean(0).argmin()]:.2g}" for found in (alone, one)]
    console.print(
        f"Lowest mean loss on the grid: at {outcome.dial} = {values[0]} by separate trainings, {values[1]} by the "
        f"plug-in; the same in {same} of {len(one)} seeds."
    )
    seconds, with_plugin = outcome.seconds
    console.print(
        f"Time: {seconds:.0f} s each, {seconds * len(outcome.grid):.0f} s for the {len(outcome.grid)} separate "
        f"trainings; {with_plugin:.0f} s for the run with the plug-in, which gives {len(outcome.fine)} values."
    )
    best, loss, exported = outcome.exported
    console.print(
        f"Seed 0, taken out at {outcome.dial} = {best:.2g}: validation loss {loss:.4f} with the plug-in, "
        f"{exported:.4f} in the original class."
    )


def main(args: Sequence[str] | None = None) -> Outcome:
    """Train, print, draw."""
    from examples.plugin import figure  # not in the processes that train: it takes its time to import

    parser = argparse.ArgumentParser(prog="python -m examples.plugin.story", description=__doc__)
    parser.add_argument("--dial", choices=[*DIALS], default="reg_weight", help="the hyperparameter")
    parser.add_argument("--seeds", type=int, default=5, help="of digits, wrong labels, first weights and batches")
    parser.add_argument("--epochs", type=int, default=500, help="of each training")
    parser.add_argument("--points", type=int, default=5, help="values of the hyperparameter to train separately")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/plugin"), help="folder of the figure and the network")
    options = parser.parse_args(args)

    options.out.mkdir(parents=True, exist_ok=True)
    # Not forked: a process that has run torch's threads may hang after a fork.
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        export = options.out / f"{options.dial}.ckpt"
        outcome = run_all(options.dial, options.seeds, options.epochs, options.points, export, pool)
    console = Console()
    say(outcome, console)
    path = options.out / ("story.png" if options.dial == "reg_weight" else f"{options.dial}.png")
    figure.draw(outcome, path)
    console.print(f"Figure: {path}", soft_wrap=True)
    return outcome


if __name__ == "__main__":
    main()
