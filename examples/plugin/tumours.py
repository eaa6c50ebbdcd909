"""Measurements of breast tumours, which scikit-learn ships, for the models of mlcolvar."""

from __future__ import annotations

import torch
from mlcolvar.data import DictDataset, DictModule
from sklearn.datasets import load_breast_cancer


class Tumours(DictModule):
    """The 569 tumours with 30 measurements each, malignant (0) or benign (1); 70 % of them to train on.

    Args:
        batch_size: Tumours in a batch; it has to hold some of each kind.
        seed: Of the choice.
    """

    def __init__(self, batch_size: int = 0, seed: int = 0) -> None:
        measured, kind = load_breast_cancer(return_X_y=True)
        data = DictDataset({"data": torch.from_numpy(measured).float(), "labels": torch.from_numpy(kind).float()})
        # A batch size of 0 is the whole part.
        sizes = [batch_size, 0]
        super().__init__(data, (0.7, 0.3), sizes, generator=torch.Generator().manual_seed(seed))
