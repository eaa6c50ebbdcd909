"""Bins of h, means per bin, any metric per bin."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, MeanSquaredError, Metric, MinMaxMetric, PearsonCorrCoef
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy, MulticlassConfusionMatrix

import lightning_mip as mip
from lightning_mip.metrics import BinnedMean, MeanOfMetrics, PerH, bin_index, bin_labels, gather
from tests.module_kinds import exactly

LABELS: list[tuple[mip.Prior, int, list[str]]] = [
    (mip.Uniform(0, 1), 4, ["lam=0..0.25", "lam=0.25..0.5", "lam=0.5..0.75", "lam=0.75..1"]),
    (mip.LogUniform(0.01, 1), 2, ["lam=0.01..0.1", "lam=0.1..1"]),
    (mip.Normal(0, 1), 2, ["lam=-inf..0", "lam=0..inf"]),
    (mip.Categorical([0.1, 1, 10]), 7, ["lam=0.1", "lam=1", "lam=10"]),
    (mip.Categorical([1000001, 1000002]), 1, ["lam=1000001", "lam=1000002"]),
    (
        mip.Uniform(1000, 1000.1),
        4,
        ["lam=1000..1000.025", "lam=1000.025..1000.05", "lam=1000.05..1000.075", "lam=1000.075..1000.1"],
    ),
    (mip.Simplex(3), 7, ["lam=max0", "lam=max1", "lam=max2"]),
]


@pytest.mark.parametrize(("prior", "bins", "labels"), LABELS)
def test_bins_are_named_by_their_ranges_classes_or_largest_weights(
    prior: mip.Prior, bins: int, labels: list[str]
) -> None:
    assert bin_labels("lam", prior, bins) == labels


def test_more_bins_than_names_are_refused() -> None:
    message = (
        "bins is 1000000, more than metric names tell apart for Uniform(low=1, high=2, endpoints=0.0); give fewer."
    )
    with pytest.raises(ValueError, match=exactly(message)):
        bin_labels("lam", mip.Uniform(1, 2), 1_000_000)


@pytest.mark.parametrize(
    ("prior", "h", "bins", "index"),
    [
        (mip.Uniform(0, 1), [0.0, 0.24, 0.25, 0.5, 0.99, 1.0], 4, [0, 0, 1, 2, 3, 3]),
        (mip.LogUniform(0.01, 1), [0.01, 0.09, 0.11, 1.0], 2, [0, 0, 1, 1]),
        (mip.Normal(1, 2), [-50.0, 0.9, 1.1, 50.0], 2, [0, 0, 1, 1]),
        (mip.Categorical([0.1, 1, 10]), [10.0, 0.1, 1.0], 4, [2, 0, 1]),
        (mip.Categorical(3), [2, 0, 1], 4, [2, 0, 1]),
        (mip.Simplex(3), [[0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.1, 0.1, 0.8]], 4, [1, 0, 2]),
    ],
)
def test_each_value_falls_in_its_bin(prior: mip.Prior, h: Any, bins: int, index: list[int]) -> None:
    values = torch.tensor(h)
    assert bin_index(prior, values, bins).tolist() == index
    assert [int(bin_index(prior, value, bins)) for value in values] == index


@pytest.mark.parametrize("prior", [mip.Uniform(-3, 5), mip.LogUniform(1e-4, 10), mip.Normal(2, 0.1)])
def test_bins_are_equally_likely(prior: mip.Prior) -> None:
    drawn = prior.icdf((torch.arange(800) + 0.5) / 800)
    assert torch.bincount(bin_index(prior, drawn, 8), minlength=8).tolist() == [100] * 8


def test_a_binned_mean_is_nan_where_nothing_fell() -> None:
    mean = BinnedMean(3)
    for value, index in ((1.0, 0), (2.0, 0), (5.0, 2)):
        mean.update(torch.tensor(value), torch.tensor(index))
    first, second, third = mean.compute().tolist()
    assert (first, third) == (1.5, 5.0)
    assert second != second
    mean.reset()
    mean.update(torch.tensor([7.0]), torch.tensor(1))
    assert mean.compute()[1] == 7


class Counted(Metric):
    """Counts its updates, and nothing else."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("updates", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, name: str) -> None:
        assert name == "anything"
        self.updates += 1

    def compute(self) -> Tensor:
        return self.updates.float()


PREDICTED = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(1))
DIALS = torch.linspace(0, 1, 40)[torch.randperm(40, generator=torch.Generator().manual_seed(2))]
METRICS: dict[str, tuple[Callable[[], Metric], Callable[[], tuple[Tensor, Tensor]]]] = {
    "accuracy": (lambda: MulticlassAccuracy(3), lambda: (PREDICTED, TARGETS)),
    "confusion": (lambda: MulticlassConfusionMatrix(3), lambda: (PREDICTED, TARGETS)),
    "auroc": (BinaryAUROC, lambda: (PREDICTED[:, 0], TARGETS % 2)),
    "mse": (MeanSquaredError, lambda: (PREDICTED[:, 0], PREDICTED[:, 1])),
    "pearson": (PearsonCorrCoef, lambda: (PREDICTED[:, 0], PREDICTED[:, 1])),
    "wrapper": (lambda: MinMaxMetric(MeanSquaredError()), lambda: (PREDICTED[:, 0], PREDICTED[:, 1])),
}


@pytest.mark.parametrize("form", ["one h", "batch of h", "mapping", "keywords"])
@pytest.mark.parametrize(("metric", "arguments"), METRICS.values(), ids=METRICS)
def test_any_metric_per_bin_equals_one_metric_for_each_bin(
    metric: Callable[[], Metric], arguments: Callable[[], tuple[Tensor, Tensor]], form: str
) -> None:
    prior = mip.Uniform(0, 1)
    per_h = PerH(metric(), "lam", prior, bins=4)
    predicted, target = arguments()
    by_hand = {label: metric() for label in per_h.labels}
    filled = set()
    for start in range(0, 40, 10):
        part = slice(start, start + 10)
        if form == "one h":
            per_h.update(predicted[part], target[part], h=DIALS[start])
            label = per_h.labels[int(DIALS[start] * 4)]
            by_hand[label].update(predicted[part], target[part])
            filled.add(label)
            continue
        if form == "keywords":
            per_h.update(preds=predicted[part], target=target[part], h=DIALS[part])
        else:
            per_h.update(predicted[part], target[part], h={"lam": DIALS[part]} if form == "mapping" else DIALS[part])
        index = (DIALS[part] * 4).long().clamp(max=3)
        for label, bin_ in zip(per_h.labels, range(4), strict=True):
            if (index == bin_).any():
                by_hand[label].update(predicted[part][index == bin_], target[part][index == bin_])
                filled.add(label)
    expected = {label: each.compute() for label, each in by_hand.items() if label in filled}
    computed = per_h.compute()
    assert list(computed) == list(expected)
    assert len(computed) > 1
    torch.testing.assert_close(computed, expected)


def test_empty_bins_are_left_out_and_a_reset_empties_all() -> None:
    per_h = PerH(MeanMetric(), "lam", mip.Categorical([1, 2, 3]))
    per_h.update(4.0, h={"lam": torch.tensor(2)})
    assert per_h.compute() == {"lam=2": 4}
    per_h.reset()
    assert per_h.compute() == {}
    per_h.update(6.0, h=3)
    assert per_h.compute() == {"lam=3": 6}


def test_arguments_that_are_no_samples_go_to_every_bin() -> None:
    per_h = PerH(Counted(), "lam", mip.Uniform(0, 1), bins=2)
    per_h.update("anything", h=torch.tensor([0.1, 0.2, 0.9]))
    assert per_h.compute() == {"lam=0..0.5": 1, "lam=0.5..1": 1}


def test_preference_vectors_one_or_a_batch() -> None:
    per_h = PerH(MeanMetric(), "w", mip.Simplex(2))
    per_h.update(torch.tensor(1.0), h={"w": torch.tensor([0.7, 0.3])})
    per_h.update(torch.tensor([3.0, 5.0]), h={"w": torch.tensor([[0.6, 0.4], [0.1, 0.9]])})
    assert per_h.compute() == {"w=max0": 2, "w=max1": 5}


def test_forward_returns_the_values_of_the_batch_and_accumulates() -> None:
    per_h = PerH(MeanMetric(), "lam", mip.Uniform(0, 1), bins=2)
    assert per_h(torch.tensor([1.0, 3.0, 9.0]), h=torch.tensor([0.1, 0.2, 0.9])) == {"lam=0..0.5": 2, "lam=0.5..1": 9}
    assert per_h(torch.tensor(5.0), h=0.3) == {"lam=0..0.5": 5}
    assert per_h.compute() == {"lam=0..0.5": 3, "lam=0.5..1": 9}


def test_it_is_a_module_that_copies_and_moves() -> None:
    per_h = PerH(BinaryAUROC(), "lam", mip.LogUniform(0.1, 10), bins=3)
    holder = nn.Sequential(per_h)
    assert list(holder.state_dict()) == []
    for twin in (copy.deepcopy(per_h), pickle.loads(pickle.dumps(per_h)), per_h.clone()):
        twin.update(torch.tensor([0.1, 0.9]), torch.tensor([0, 1]), h=1.0)
        assert list(twin.compute().values()) == [1]
    assert per_h.compute() == {}


def test_the_mean_of_metrics_keeps_double_precision() -> None:
    metrics = [MeanMetric().set_dtype(torch.float64) for _ in range(3)]
    for metric, value in zip(metrics, (0.1, 0.2, 0.4), strict=True):
        metric.update(torch.tensor(value, dtype=torch.float64))
    mean = MeanOfMetrics(metrics)
    mean.update()
    assert float(mean.compute()) == pytest.approx(0.7 / 3, rel=1e-14)
    mean.reset()
    mean.update()
    assert float(mean.compute()) == pytest.approx(0.7 / 3, rel=1e-14)


def test_what_ranks_send_keeps_its_shape_and_an_empty_tensor_gets_the_dtype_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def send(parts: list[Any], mine: Tensor, group: Any) -> None:
        parts[:] = [mine, torch.tensor([[3, 4]])]

    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", send)
    empty, sent = gather(torch.empty(0))
    assert (empty.dtype, empty.tolist()) == (torch.int64, [])
    assert (sent.dtype, sent.tolist()) == (torch.int64, [[3, 4]])


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (
            lambda: PerH("auroc", "lam", mip.Uniform(0, 1)),  # type: ignore[arg-type]
            TypeError,
            "Expected argument `metric` to be a torchmetrics Metric, but got 'auroc'.",
        ),
        (lambda: PerH(MeanMetric(), "lam", mip.Uniform(0, 1), bins=0), ValueError, "bins is 0, expected at least 1."),
        (
            lambda: PerH(MeanMetric(), "lam", mip.Uniform(0, 1)).update(1.0, h={"phi": 0.5}),
            ValueError,
            "h has no component 'lam'; given were phi.",
        ),
    ],
)
def test_messages(act: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        act()
    assert str(caught.value) == message
