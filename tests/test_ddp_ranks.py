"""Three processes: every way of wrapping in DDP, shares of unequal size, resuming, and a diagnosis.

`test_ddp` starts its two processes through Lightning's launcher; those here are started as a cluster starts them.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric, MeanSquaredError
from torchmetrics.classification import BinaryAUROC

import lightning_mip as mip
from lightning_mip.injection import the_injector
from tests import processes
from tests.habits import InInit, penalised
from tests.tasks import SMALL, Evaluated, Net, SaveAt, dataset, loader, make, sequence

processes.preload("tests.test_ddp_ranks")
pytestmark = pytest.mark.timeout(60)
RANKS = 3
EPOCHS, EACH = 2, 2  # 16 samples, padded to 18, in batches of 4: two batches for each process

WAYS = {
    "default": {},
    "find unused": {"find_unused_parameters": True},
    "static graph": {"static_graph": True},
    "bucket views": {"gradient_as_bucket_view": True},
    "small buckets": {"bucket_cap_mb": 0.0001, "gradient_as_bucket_view": True},
}


def trainer(folder: Path, ranks: int = RANKS, way: dict[str, Any] | None = None, **arguments: Any) -> L.Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    defaults = {"max_epochs": EPOCHS, "accelerator": "cpu", "devices": ranks, "log_every_n_steps": 1}
    strategy = "auto" if ranks == 1 else DDPStrategy(**(way or {}))
    return L.Trainer(default_root_dir=folder, strategy=strategy, **{**defaults, **quiet, **arguments})


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# --- Gradients


class Recomputing(Net):
    """Runs again in the backward."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


class Spare(Net):
    """Has a layer that no forward uses."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


class SpareOnSome(Spare):
    """Has a layer that the first process alone uses."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return self.spare(out) if not torch.distributed.get_rank() else out


class Synced(Evaluated):
    """Logs the mean over the processes."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)


class Watched(Synced):
    """Keeps h, the gradients after each backward, and what they would be if this process were alone."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.__dict__["_batch"] = batch
        return self.loss(batch)

    def on_after_backward(self) -> None:
        (twin,) = self.__dict__["_twin"]
        twin.load_state_dict(self.state_dict())
        twin.zero_grad()
        self.alone(twin, self.__dict__["_batch"])
        found = {"h": self.drawn(), "together": gradients(self), "alone": gradients(twin)}
        self.__dict__.setdefault("_seen", []).append(found)

    def loss(self, batch: Any) -> Tensor:
        error = self(batch[0]) - batch[1]
        lam = self.h["lam"]
        return ((1 - lam) * error.square().mean(1) + lam * error.abs().mean(1)).mean()

    def drawn(self) -> Tensor:
        return self.h["lam"].clone()

    def alone(self, twin: Any, batch: Any) -> None:
        twin.start_batch({"lam": self.drawn()})
        twin.loss(batch).backward()
        twin.release_h()


class Plain(InInit):
    """Knows nothing of h; keeps the same."""

    on_after_backward = Watched.on_after_backward

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.__dict__["_batch"] = batch
        return penalised(self(batch[0]), batch[1], self.hparams.lam)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", penalised(self(batch[0]), batch[1], self.hparams.lam), sync_dist=True)

    def drawn(self) -> Tensor:
        return torch.as_tensor(self.hparams.lam).clone()

    def alone(self, twin: Any, batch: Any) -> None:
        lam = self.drawn()
        with mip.at(twin.net, {"hparams.lam": lam}):
            penalised(twin(batch[0]), batch[1], lam).backward()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


DIAL = {"hparams.lam": mip.Uniform(0, 1)}
KINDS: dict[str, Callable[[], Any]] = {
    "subclass": lambda: make(Watched),
    "h per sample": lambda: make(Watched, per_sample=True),
    "recomputed": lambda: make(Watched, primary=Recomputing()),
    "unused layer": lambda: make(Watched, primary=Spare()),
    "layer that one process uses": lambda: make(Watched, primary=SpareOnSome()),
    "excluded, and unused": lambda: make(Watched, primary=Spare(), exclude="spare"),
    "without theta0": lambda: make(Watched, hypernet={**SMALL, "residual": False}),
    "made anew by each process": lambda: made_anew(),
    "plug-in": Plain,
}


def made_anew() -> Any:
    """As without a seed: other weights in each process, of which DDP takes the first one's."""
    sgd = functools.partial(torch.optim.SGD, lr=0.1)  # the hypernetwork is rescaled for it, after DDP has taken them
    torch.manual_seed(int(os.environ["LOCAL_RANK"]))
    return Watched(primary=Net(), h={"lam": mip.Uniform(0, 1)}, hypernet=SMALL, optimizer=sgd)


def train(folder: Path, kind: str, way: str) -> None:
    if "layer" in kind:
        processes.ignore("No gradient came back to these generated weights.*spare")
    torch.manual_seed(1)
    model, twin = KINDS[kind](), KINDS[kind]()
    callbacks = []
    if kind == "plug-in":
        twin.hypernet = mip.hypernetize(twin.net, DIAL, **SMALL)
        callbacks = [mip.Hypernetize("net", h=DIAL, **SMALL)]
    model.__dict__["_twin"] = (twin.double(),)
    trainer(folder, way=WAYS[way], callbacks=callbacks, precision="64-true").fit(model, loader(), loader(seed=1))
    processes.write(folder, {"steps": model.__dict__["_seen"], "parameters": state(model)})


CASES = [
    *itertools.product(("subclass", "plug-in", "layer that one process uses"), WAYS),
    ("excluded, and unused", "find unused"),
    ("made anew by each process", "default"),
    *itertools.product(("h per sample", "recomputed", "unused layer", "without theta0"), ("default", "static graph")),
]


@pytest.mark.parametrize(("kind", "way"), CASES)
def test_gradients_are_the_mean_and_parameters_stay_equal(tmp_path: Path, kind: str, way: str) -> None:
    seen = processes.results(RANKS, tmp_path, train, kind, way)
    for steps in zip(*(each["steps"] for each in seen), strict=True):
        lams = torch.stack([step["h"] for step in steps])
        assert len(lams.unique()) == lams.numel()  # each process, and each sample, has its own
        for name, gradient in steps[0]["together"].items():
            alone = [step["alone"].get(name, torch.zeros_like(gradient)) for step in steps]
            torch.testing.assert_close(gradient, sum(alone) / RANKS, msg=lambda text, name=name: f"{name}: {text}")
            for step in steps[1:]:
                assert torch.equal(step["together"][name], gradient), name
        assert set(steps[0]["together"]) >= set().union(*(step["alone"] for step in steps))
    assert len(seen[0]["steps"]) == EPOCHS * EACH
    for each in seen[1:]:
        assert each["parameters"].keys() == seen[0]["parameters"].keys()
        for name, value in seen[0]["parameters"].items():
            assert torch.equal(each["parameters"][name], value), name


class Buffered(InInit):
    """Holds its hyperparameter in a buffer, and keeps what it reads there beside the h of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("lam", torch.tensor(0.5))
        self.register_buffer("count", torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.count += 1 + self.global_rank
        h = the_injector(self.net).h["lam"]
        self.__dict__.setdefault("_seen", []).append((float(self.lam), float(h)))
        return penalised(self(batch[0]), batch[1], self.lam)


def train_with_a_buffer(folder: Path) -> None:
    processes.ignore("You defined a `validation_step` but have no `val_dataloader`")
    torch.manual_seed(1)
    model = Buffered()
    trainer(folder, callbacks=[mip.Hypernetize("net", h={"lam": mip.Uniform(0, 1)}, **SMALL)]).fit(model, loader())
    processes.write(folder, {"seen": model.__dict__["_seen"], "lam": model.lam, "count": model.count})


def test_a_dial_that_is_a_buffer_holds_the_h_of_its_own_process(tmp_path: Path) -> None:
    found = processes.results(RANKS, tmp_path, train_with_a_buffer)
    for rank, each in enumerate(found):
        drawn = sequence(make(), EPOCHS * EACH, rank=rank, world_size=RANKS)
        assert each["seen"] == [(pytest.approx(lam), pytest.approx(lam)) for lam in drawn]
        assert each["lam"] == 0.5
        # Other buffers are still those of the first process, but for its last step.
        assert each["count"] == (EPOCHS * EACH - 1) + 1 + rank


def train_in_vain(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="parameters that were not used in producing the loss"):
        train(folder, "excluded, and unused", "default")
    processes.write(folder, {})


def test_for_an_excluded_layer_ddp_s_own_rule_holds(tmp_path: Path) -> None:
    assert processes.results(RANKS, tmp_path, train_in_vain) == [{}] * RANKS


# --- Metrics, with shares of 6, 5 and 5 samples: batches of 4 and 2, 4 and 1, 4 and 1


def share(rank: int, samples: int = 16, seed: int = 0) -> DataLoader[Any]:
    """What one of three processes is given of the samples, each to one of them, with their numbers."""
    x, y = dataset(samples, seed).tensors  # type: ignore[attr-defined]
    mine = torch.arange(samples).split((6, 5, samples - 11))[rank]
    return DataLoader(TensorDataset(x[mine], y[mine], mine), batch_size=4)


BINS = 16
# Samples and h of the validation steps of a process; not an attribute, which would be kept apart by h.
EVALUATED: list[tuple[int, float]] = []


class Measured(Evaluated):
    """Logs its loss, with and without the mean over processes, and metrics; in training metrics by h as well."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        dial = ("lam", mip.Uniform(0, 1))
        self.auroc, self.error = BinaryAUROC(), MeanSquaredError()
        self.auroc_by_h = mip.PerH(BinaryAUROC(), *dial, bins=BINS)
        self.mean_by_h = mip.PerH(MeanMetric(), *dial, bins=BINS)

    def loss(self, batch: Any) -> Tensor:
        error = self(batch[0]) - batch[1]
        lam = self.h["lam"]
        return ((1 - lam) * error.square().mean(1) + lam * error.abs().mean(1)).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        if not self.per_sample:
            self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        output = self(batch[0]).detach()
        scores, targets = output[:, 0].sigmoid(), (batch[1][:, 0] > 0).long()
        self.auroc_by_h.update(scores, targets, h=self.h)
        self.mean_by_h.update(scores, h=self.h)
        lam = self.h["lam"].expand(len(scores))
        seen = {"lam": lam, "loss": loss.detach().expand(len(scores)), "scores": scores, "targets": targets}
        self.__dict__.setdefault("_seen", []).append(seen)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        EVALUATED.extend((int(k), float(self.h["lam"])) for k in batch[2])
        loss, predicted = self.loss(batch), self(batch[0])
        self.log("val_loss", loss, sync_dist=True)
        self.log("own_loss", loss)
        self.auroc.update(predicted[:, 0].sigmoid(), (batch[1][:, 0] > 0).long())
        self.error.update(predicted, batch[1])
        self.log("auroc", self.auroc)
        self.log("error", self.error)


def train_by_h(folder: Path, arguments: dict[str, Any]) -> None:
    processes.ignore("You defined a `validation_step` but have no `val_dataloader`", "No (positive|negative) samples")
    runner = trainer(folder, max_epochs=1, use_distributed_sampler=False, callbacks=[mip.PerHMetrics(bins=BINS)])
    model = make(Measured, **arguments)
    runner.fit(model, share(runner.global_rank))
    seen = model.__dict__["_seen"]
    logged = {name: float(value) for name, value in runner.callback_metrics.items() if "/lam=" in name}
    processes.write(
        folder, {"logged": logged, "seen": {name: torch.cat([step[name] for step in seen]) for name in seen[0]}}
    )


@pytest.mark.filterwarnings("ignore:No (positive|negative) samples")
@pytest.mark.parametrize("arguments", [{}, {"per_sample": True}], ids=["h per batch", "h per sample"])
def test_metrics_by_h_are_those_of_all_samples_together(tmp_path: Path, arguments: dict[str, Any]) -> None:
    found = processes.results(RANKS, tmp_path, train_by_h, arguments)
    bins = [(each["seen"]["lam"] * BINS).long() for each in found]
    filled = Counter(index for mine in bins for index in set(mine.tolist()))
    assert 1 in filled.values()  # of one process alone
    assert len(filled) < BINS  # of none
    seen = {name: torch.cat([each["seen"][name] for each in found]) for name in found[0]["seen"]}
    expected = {}
    for index in filled:
        here = torch.cat(bins) == index
        label = f"lam={index / BINS:g}..{(index + 1) / BINS:g}"
        if not arguments:
            expected[f"train_loss/{label}"] = float(seen["loss"][here].mean())
        expected[f"mean_by_h/{label}"] = float(seen["scores"][here].mean())
        expected[f"auroc_by_h/{label}"] = float(BinaryAUROC()(seen["scores"][here], seen["targets"][here]))
    for each in found:
        assert each["logged"] == pytest.approx(expected)


GRID = (0, 0.25, 0.5, 0.75, 1)


def on_all_samples(lam: float, samples: int) -> dict[str, float]:
    model = make(Measured)
    x, y = dataset(samples, seed=1).tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        predicted = mip.materialize(model, lam=lam)(x)
    error = predicted - y
    loss = float((1 - lam) * error.square().mean() + lam * error.abs().mean())
    auroc = float(BinaryAUROC()(predicted[:, 0].sigmoid(), (y[:, 0] > 0).long()))
    return {"val_loss": loss, "own_loss": loss, "auroc": auroc, "error": float(error.square().mean())}


def validate(folder: Path, samples: int, swept: bool) -> None:
    processes.ignore("It is recommended to use `self.log\\('own_loss")
    model, runner = make(Measured), trainer(folder, use_distributed_sampler=False)
    data = share(runner.global_rank, samples, seed=1)
    if not runner.global_rank:  # three batches where the others have two
        data = DataLoader(data.dataset, batch_size=2)
    runner.validate(model, data, verbose=False)
    logged = {name: float(value) for name, value in runner.callback_metrics.items()}
    if swept:
        EVALUATED.clear()
        logged = dict(mip.sweep(model, runner, len(GRID)).metrics)
    processes.write(folder, {"logged": logged, "evaluated": EVALUATED})


@pytest.mark.parametrize(("samples", "swept"), [(15, False), (16, False), (15, True)])
def test_each_sample_is_evaluated_once_at_each_h_and_counts_as_much(tmp_path: Path, samples: int, swept: bool) -> None:
    found = processes.results(RANKS, tmp_path, validate, samples, swept)
    evaluated = Counter(tuple(point) for each in found for point in each["evaluated"])
    assert evaluated == Counter(itertools.product(range(samples), GRID))
    expected = {lam: on_all_samples(lam, samples) for lam in GRID}
    if samples == 16:  # Lightning's own mean over processes rounds 16 / 3 samples for each down to 5
        for values in expected.values():
            values["val_loss"] *= 16 / 15
    for each in found:
        for name in ("val_loss", "auroc", "error", *(["own_loss"] if swept else [])):
            values = [expected[lam][name] for lam in GRID]
            if swept:
                assert each["logged"][name].tolist() == pytest.approx(values, rel=1e-5), name
            else:
                assert [each["logged"][f"{name}/lam={lam:g}"] for lam in GRID] == pytest.approx(values, rel=1e-5), name
                assert each["logged"][name] == pytest.approx(sum(values) / len(values), rel=1e-5), name


# --- Resuming


class Drawing(Synced):
    """Keeps the h of each of its steps, with the step's number."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        seen = self.__dict__.setdefault("_seen", {})
        seen[self.trainer.fit_loop.epoch_loop.total_batch_idx] = float(self.h["lam"])
        return self.loss(batch)


def interrupt(folder: Path, sampler: dict[str, Any], accumulate: int) -> None:
    processes.ignore("You're resuming from a checkpoint that ended before the epoch ended")
    whole, later, path = make(Drawing), make(Drawing), folder / "middle.ckpt"
    sizes = {"max_epochs": 3, "accumulate_grad_batches": accumulate}
    data = loader(24, 2), loader(seed=1)  # 8 samples, so 4 batches for each process
    save = SaveAt(path, batches=6)  # in the middle of the second epoch
    trainer(folder, callbacks=[mip.SampleH(**sampler), save], **sizes).fit(whole, *data)
    trainer(folder, callbacks=[mip.SampleH(**sampler)], **sizes).fit(later, *data, ckpt_path=path)
    processes.write(folder, {"whole": whole.__dict__["_seen"], "later": later.__dict__["_seen"]})


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("sampler", [{}, {"strategy": "sobol"}, {"strategy": "stratified", "seed": 4}], ids=str)
def test_each_process_goes_on_with_its_own_h_from_the_middle_of_an_epoch(
    tmp_path: Path, sampler: dict[str, Any], accumulate: int
) -> None:
    found = processes.results(RANKS, tmp_path, interrupt, sampler, accumulate)
    for rank, each in enumerate(found):
        expected = sequence(make(), 12, rank=rank, world_size=RANKS, **sampler)
        assert each["whole"] == dict(enumerate(expected))
        assert min(each["later"]) == 6
        assert each["later"] == {step: expected[step] for step in each["later"]}


# --- A diagnosis


def diagnose(folder: Path) -> None:
    model, runner = make(Synced), trainer(folder)
    runner.fit(model, loader(), loader(seed=1))
    first = mip.diagnose(model, loader(seed=2), draws=4).to_json() if runner.is_global_zero else ""  # no one waits
    runner.save_checkpoint(folder / "model.ckpt")
    processes.write(folder, {"first": first, "all": mip.diagnose(model, loader(seed=2), draws=4).to_json()})


def test_a_diagnosis_is_the_same_on_all_processes_and_needs_one_alone(tmp_path: Path) -> None:
    found = processes.results(RANKS, tmp_path, diagnose)
    alone = make(Synced)
    alone.load_state_dict(torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"])
    expected = json.loads(mip.diagnose(alone, loader(seed=2), draws=4).to_json())
    assert json.loads(found[0]["first"]) == expected
    for each in found:
        assert json.loads(each["all"]) == expected
