"""Train once, compare with the closed form at every penalty, choose a penalty, and draw it all.

python -m examples.ridge_path.demo
"""

from __future__ import annotations

import argparse
import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import lightning_mip as mip
from examples.ridge_path.data import Diabetes, diabetes
from examples.ridge_path.figure import draw
from examples.ridge_path.task import HIGH, LOW, Ridge, loader, squared_error, train

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Outcome:
    """What the run gave, beside the closed form.

    Attributes:
        model: The trained module.
        table: Validation error at 21 penalties.
        exact: The closed form's, at the same.
        choice: What `mip.choose` says.
        optimum: The penalty with the least exact validation error.
    """

    model: Ridge
    table: mip.Sweep
    exact: np.ndarray
    choice: mip.Choice
    optimum: float

    @property
    def deviation(self) -> float:
        """The largest relative deviation from the exact validation curve."""
        return float((np.abs(self.table["val_mse"].numpy() - self.exact) / self.exact).max())

    @property
    def log_error(self) -> float:
        """How far the chosen penalty is from the optimum, in natural logarithms."""
        return abs(math.log(float(self.choice.h["lam"]) / self.optimum))


def run(data: Diabetes, seed: int = 0) -> Outcome:
    """Train, sweep and choose."""
    model = train(data, seed)
    validation = loader(data.x_val, data.y_val)
    table = mip.sweep(model, validation, grid=21)
    choice = mip.choose(model, validation, squared_error, "min")
    exact = np.array([data.exact(float(h["lam"])) for h in table.h])
    fine = np.geomspace(LOW, HIGH, 4001)
    return Outcome(model, table, exact, choice, float(fine[np.argmin([data.exact(lam) for lam in fine])]))


def main(arguments: Sequence[str] | None = None) -> Outcome:
    """Run the example from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the network and of the draws of h")
    parser.add_argument("--out", type=Path, default=HERE / "ridge_path.png", help="where to draw the figure")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*(LeafSpec|does not have many workers).*")
    data = diabetes()
    outcome = run(data, options.seed)
    print(f"{'lam':>10} {'exact':>8} {'hypernetwork':>13} {'deviation':>10}")
    for h, exact, found in zip(outcome.table.h, outcome.exact, outcome.table["val_mse"].tolist(), strict=True):
        print(f"{float(h['lam']):10.4g} {exact:8.4f} {found:13.4f} {found / exact - 1:+10.2%}")
    print(f"largest deviation {outcome.deviation:.2%}")
    print(f"best penalty {outcome.optimum:.4g} by the closed form; chosen: {outcome.choice}")
    print(f"distance in log penalty {outcome.log_error:.4f}")
    draw(data, outcome.table, outcome.exact, outcome.choice, outcome.optimum, outcome.model, options.out)
    return outcome


if __name__ == "__main__":
    main()
