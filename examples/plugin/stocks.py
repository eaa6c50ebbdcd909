"""Monthly prices of shares, 1990 to 2022, which matplotlib ships, for the models of pytorch-forecasting."""

from __future__ import annotations

import lightning as L
import numpy as np
import pandas as pd
from matplotlib import cbook
from pytorch_forecasting import TimeSeriesDataSet
from pytorch_forecasting.data.encoders import EncoderNormalizer
from torch.utils.data import DataLoader

# DELL's series has a gap of four years, in which it was not traded.
GAPS = ["DELL"]


def monthly() -> pd.DataFrame:
    """One row for each share and month: `share`, `month` (counted from January 1990), `price` (its logarithm)."""
    with cbook.get_sample_data("Stocks.csv") as file:
        table = pd.read_csv(file, comment="#", index_col="Date", parse_dates=True).drop(columns=GAPS)
    table = table[table.index.day == 1]  # dividends are in rows of their own, without a price
    table.index = (table.index.year - 1990) * 12 + table.index.month - 1
    long = table.rename_axis("month").reset_index().melt("month", var_name="share", value_name="price").dropna()
    return long.assign(price=np.log(long["price"]).astype(np.float32)).reset_index(drop=True)


class Stocks(L.LightningDataModule):
    """Windows of `context` months to look at and `horizon` months to forecast; the last years are for validation.

    Args:
        context: Months the model sees.
        horizon: Months it forecasts.
        batch_size: Windows in a batch.
        until: First month of validation, counted from January 1990.
    """

    def __init__(self, context: int = 24, horizon: int = 6, batch_size: int = 128, until: int = 276) -> None:
        super().__init__()
        self.context, self.horizon, self.batch_size, self.until = context, horizon, batch_size, until

    def setup(self, stage: str) -> None:
        prices = monthly()
        self.training = TimeSeriesDataSet(
            prices[prices["month"] < self.until],
            time_idx="month",
            target="price",
            group_ids=["share"],
            min_encoder_length=self.context,
            max_encoder_length=self.context,
            min_prediction_length=self.horizon,
            max_prediction_length=self.horizon,
            time_varying_unknown_reals=["price"],
            target_normalizer=EncoderNormalizer(),
        )
        self.validation = TimeSeriesDataSet.from_dataset(self.training, prices, min_prediction_idx=self.until)

    def train_dataloader(self) -> DataLoader:
        return self.training.to_dataloader(train=True, batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return self.validation.to_dataloader(train=False, batch_size=4 * self.batch_size)
