"""Chemical analyses of wines from three growers, which scikit-learn ships, for the models of mlcolvar."""

from __future__ import annotations

import torch
from mlcolvar.data import DictDataset, DictModule
from sklearn.datasets import load_wine


class Wines(DictModule):
    """The 178 wines with 13 measurements each, 80 % to train on.

    Args:
        batch_size: Wines in a batch; it has to hold some of each grower.
        seed: Of the choice.
    """

    def __init__(self, batch_size: int = 0, seed: int = 0) -> None:
        measured, grower = load_wine(return_X_y=True)
        data = {"data": torch.from_numpy(measured).float(), "labels": torch.from_numpy(grower).float()}
        generator = torch.Generator().manual_seed(seed)
        super().__init__(DictDataset(data), lengths=(0.8, 0.2), batch_size=batch_size, generator=generator)
