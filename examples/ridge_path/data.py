"""scikit-learn's diabetes data, and the exact ridge solution for every penalty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import PolynomialFeatures
from torch import Tensor

TRAINED_ON = 150


@dataclass(frozen=True)
class Diabetes:
    """150 patients to train on, 292 to validate on: 65 features (10 measurements and their products), the progress.

    Features and target are standardized by the training part, and the features rotated to its principal axes. That
    changes neither predictions nor the norm of the weights, so ridge regression is the same; Adam, which scales each
    weight by itself, then reaches also the directions that the data hardly spread along.
    """

    x: Tensor
    y: Tensor
    x_val: Tensor
    y_val: Tensor

    def solution(self, lam: float) -> Tensor:
        """The weights that minimize mean((x w - y)^2) + lam |w|^2, shape (features,)."""
        x, y = self.x.double(), self.y.double()
        gram = x.T @ x / len(x) + lam * torch.eye(x.shape[1], dtype=torch.float64)
        return torch.linalg.solve(gram, x.T @ y / len(x)).squeeze(1)

    def exact(self, lam: float) -> float:
        """The mean squared error on the validation part, with those weights."""
        return float((self.x_val.double() @ self.solution(lam)[:, None] - self.y_val.double()).square().mean())


def diabetes(seed: int = 0) -> Diabetes:
    """Split, standardize and rotate."""
    raw, progress = load_diabetes(return_X_y=True, scaled=False)
    order = np.random.default_rng(seed).permutation(len(raw))
    first, rest = order[:TRAINED_ON], order[TRAINED_ON:]
    measured = (raw - raw[first].mean(0)) / raw[first].std(0)
    features = PolynomialFeatures(2, include_bias=False).fit_transform(measured)
    features = (features - features[first].mean(0)) / features[first].std(0)
    features = features @ np.linalg.svd(features[first], full_matrices=False)[2].T
    target = ((progress - progress[first].mean()) / progress[first].std())[:, None]
    parts = features[first], target[first], features[rest], target[rest]
    return Diabetes(*(torch.tensor(part, dtype=torch.float32) for part in parts))
