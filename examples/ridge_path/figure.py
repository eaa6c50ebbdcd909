"""The figure: validation error and weights over the penalty, exact and by the hypernetwork."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import lightning_mip as mip
from examples.ridge_path.data import Diabetes

EXACT, HYPER, CHOSEN = "#2b2b2b", "#2166ac", "#b2182b"
WEIGHTS = 8


def draw(
    data: Diabetes, table: mip.Sweep, exact: np.ndarray, choice: mip.Choice, optimum: float, model: Any, path: Path
) -> None:
    """Draw both panels into a file."""
    figure = Figure(figsize=(10.5, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    lam = table.values("lam").numpy()
    fine = np.geomspace(lam[0], lam[-1], 200)
    left.plot(fine, [data.exact(value) for value in fine], color=EXACT, linewidth=1.2, label="closed form")
    left.plot(lam, table["val_mse"], "o", color=HYPER, markersize=5, label="hypernetwork, one run")
    low, high = (float(end) for end in choice.interval["lam"])
    left.axvspan(low, high, color=CHOSEN, alpha=0.1, linewidth=0, label="95 % interval of the choice")
    left.axvline(float(choice.h["lam"]), color=CHOSEN, linewidth=1.2, label=f"chosen, {float(choice.h['lam']):.3g}")
    left.axvline(optimum, color=EXACT, linewidth=1, linestyle=":", label=f"exact optimum, {optimum:.3g}")
    left.set(xscale="log", xlabel="penalty", ylabel="validation mean squared error")
    left.legend(frameon=False, fontsize="small", loc="lower right")
    path_exact = np.stack([data.solution(value).numpy() for value in fine])
    with torch.no_grad():
        path_hyper = np.stack([mip.materialize(model, h).weight.squeeze(0).numpy() for h in table.h])
    largest = np.abs(path_exact).max(0).argsort()[::-1][:WEIGHTS]
    right.plot(fine, path_exact[:, largest], color=EXACT, linewidth=1)
    right.plot(lam, path_hyper[:, largest], "o", color=HYPER, markersize=3.5)
    right.set(xscale="log", xlabel="penalty", ylabel=f"the {WEIGHTS} largest of {path_exact.shape[1]} weights")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    figure.savefig(path, dpi=120)
