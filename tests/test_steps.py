"""Steps that are written once, for one h: several draws in a batch, h per sample, h from the batch, prediction."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import lightning_mip as mip
from tests.module_kinds import exactly
from tests.tasks import BATCHES, SAMPLES, Data, Evaluated, Net, Recorder, Task, dataset, drawn, loader, make, sequence

Trainers = Callable[..., L.Trainer]
EPOCHS = 2


def assert_close(model: nn.Module, other: nn.Module, **tolerance: float) -> None:
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def train_by_hand(model: Any, loss: Callable[[Any, Any, int], Tensor], data: Any) -> Any:
    """A plain loop over two epochs on a copy; ``loss(model, batch, step)``."""
    model = copy.deepcopy(model)
    optimizer = model.configure_optimizers()
    for step, batch in enumerate([*data, *data]):
        loss(model, batch, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


class Recomputing(Net):
    """Recomputes a layer in the backward; the function reads the weights or calls the layer."""

    def __init__(self, reads: bool = False, reentrant: bool = False) -> None:
        super().__init__()
        self.reads, self.reentrant = reads, reentrant

    def hidden(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.first.weight, self.first.bias) if self.reads else self.first(x)
        return y.tanh()

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_() if self.reentrant else x
        return self.last(checkpoint(self.hidden, x, use_reentrant=self.reentrant))


class Drawing(Evaluated):
    """Remembers the value and the samples of each call of its step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.__dict__.setdefault("_calls", []).append((float(self.h["lam"]), len(batch[0])))
        return self.loss(batch)


def split_by_hand(model: Any, batch: Any, step: int, draws: int) -> list[tuple[float, Any]]:
    lams = model.space.sample(seed=0, step=step, n=draws)["lam"].tolist()
    size = len(batch[0])
    bounds = [size * k // draws for k in range(draws + 1)]
    parts = [[t[low:high] for t in batch] for low, high in itertools.pairwise(bounds)]
    return list(zip(lams, parts, strict=True))


@pytest.mark.parametrize("draws", [2, 3, 4])
def test_each_part_of_a_batch_has_its_own_h(trainer: Trainers, draws: int) -> None:
    model, data = make(Drawing, draws_per_batch=draws), loader(14, 5)  # batches of 5, 5 and 4
    trainer(max_epochs=EPOCHS).fit(model, data, loader(seed=1))
    expected = []
    for step, batch in enumerate([*data, *data]):
        expected += [(lam, len(part[0])) for lam, part in split_by_hand(model, batch, step, draws)]
    assert model.__dict__["_calls"] == expected
    assert len({lam for lam, _ in expected}) == len(expected)


NETWORKS = {
    "plain": Net,
    "recomputed layer": Recomputing,
    "recomputed weights": lambda: Recomputing(reads=True),
    "recomputed, reentrant": lambda: Recomputing(reads=True, reentrant=True),
}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("draws", [2, 3])
def test_the_loss_of_a_batch_is_the_mean_over_its_samples(
    trainer: Trainers, draws: int, network: Callable[[], nn.Module]
) -> None:
    def loss(model: Any, batch: Any, step: int) -> Tensor:
        parts = split_by_hand(model, batch, step, draws)
        total = torch.zeros(())
        for lam, (x, y) in parts:
            with mip.at(model, lam=lam):
                error = model(x) - y
            total = total + len(x) * ((1 - lam) * (error**2).mean() + lam * error.abs().mean())
        return total / len(batch[0])

    model, data = make(Drawing, draws_per_batch=draws, primary=network()), loader(14, 5)
    plain = make(Drawing, draws_per_batch=draws)
    plain.load_state_dict(model.state_dict())
    expected = train_by_hand(plain, loss, data)
    trainer(max_epochs=EPOCHS).fit(model, data, loader(seed=1))
    assert_close(model, expected)


class Carrying(Drawing):
    """Adds the loss of the first part to that of the second."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        earlier = self.__dict__.pop("_earlier", None)
        if earlier is None:
            self.__dict__["_earlier"] = loss
        return None if earlier is None else earlier + loss


def test_a_part_that_is_recomputed_in_the_backward_of_another_is_refused(trainer: Trainers) -> None:
    with pytest.raises(RuntimeError, match=r"^The network runs again during the backward \(activation checkpointing\)"):
        trainer(max_epochs=1).fit(
            make(Carrying, draws_per_batch=2, primary=Recomputing()), loader(4, 4), loader(seed=1)
        )


class Penalized(Drawing):
    """Looks at the gradient of theta0 in the step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        torch.autograd.grad(loss, self.primary.last.bias, retain_graph=True)
        return loss


@pytest.mark.parametrize("kind", [Drawing, Penalized])
def test_the_weights_of_all_parts_are_generated_together(trainer: Trainers, kind: type[Drawing]) -> None:
    model, sizes = make(kind, draws_per_batch=3), []
    model.hypernet.trunk.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    trainer(max_epochs=1).fit(model, loader(14, 5), loader(seed=1))
    assert sizes[:3] == [3, 3, 3]


def test_a_trunk_with_batch_norm_sees_all_parts(trainer: Trainers) -> None:
    model = make(Drawing, draws_per_batch=3, hypernet={"hidden_sizes": (4,), "norm": "batch"})
    trainer(max_epochs=EPOCHS).fit(model, loader(14, 5), loader(seed=1))
    (norm,) = (module for module in model.hypernet.modules() if isinstance(module, nn.BatchNorm1d))
    assert int(norm.num_batches_tracked) == EPOCHS * 3


class Bounded(Net):
    """Its embedding bounds the rows that it looks up, by a write to its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Embedding(9, 5, max_norm=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x[:, 0].long() % 9).square())


def test_a_layer_that_writes_to_its_weight_does_so_for_its_own_part(trainer: Trainers) -> None:
    def loss(model: Any, batch: Any, step: int) -> Tensor:
        total = torch.zeros(())
        for lam, (x, y) in split_by_hand(model, batch, step, 2):
            with mip.at(model, lam=lam):
                error = model(x) - y
            total = total + len(x) * ((1 - lam) * (error**2).mean() + lam * error.abs().mean())
        return total / len(batch[0])

    model, data = make(Drawing, draws_per_batch=2, primary=Bounded()), loader(14, 5)
    plain = copy.deepcopy(model)
    expected = train_by_hand(plain, loss, data)
    trainer(max_epochs=EPOCHS).fit(model, data, loader(seed=1))
    assert_close(model, expected)


class Weighed(Drawing):
    """Logs the number of samples of each part, in every way of the epoch and the step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("size", float(len(batch[0])), on_step=True, on_epoch=True)
        self.log_dict({"largest": float(len(batch[0]))}, on_step=False, on_epoch=True, reduce_fx="max")
        self.log("counted", float(len(batch[0])), on_step=False, on_epoch=True, batch_size=1)
        self.log("now", float(len(batch[0])))
        return loss


def test_what_a_part_logs_weighs_by_its_samples(trainer: Trainers) -> None:
    recorder = Recorder()
    runner = trainer(max_epochs=1, logger=recorder, callbacks=[mip.PerHMetrics(1)])
    runner.fit(make(Weighed, draws_per_batch=2), loader(5, 3), loader(seed=1))  # parts of 1, 2, 1 and 1
    metrics = {name: float(value) for name, value in runner.callback_metrics.items()}
    assert metrics["size_epoch"] == pytest.approx((1 * 1 + 2 * 2 + 1 * 1 + 1 * 1) / 5)
    assert metrics["size/lam=0..1"] == pytest.approx(metrics["size_epoch"])
    assert metrics["largest"] == 2
    assert metrics["counted"] == pytest.approx((1 + 2 + 1 + 1) / 4)
    steps = [(row["size_step"], row["now"]) for row in recorder.logged if "now" in row]
    assert steps == [pytest.approx(((1 + 4) / 3,) * 2), (1, 1)]


def test_draws_and_accumulation_go_together(trainer: Trainers) -> None:
    model = make(Drawing, draws_per_batch=2)
    runner = trainer(max_epochs=EPOCHS, accumulate_grad_batches=2)
    runner.fit(model, loader(), loader(seed=1))
    assert runner.global_step == EPOCHS * BATCHES // 2
    assert len(model.__dict__["_calls"]) == 2 * EPOCHS * BATCHES


@pytest.mark.filterwarnings("ignore:No gradient has reached the generated weights of Formed")
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("form", ["dict", "first skipped", "all skipped"])
def test_a_step_may_return_a_dict_or_skip_a_part(trainer: Trainers, form: str) -> None:
    class Formed(Drawing):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            if form == "dict":
                return {"loss": loss, "size": len(batch)}
            first = len(self.__dict__["_calls"]) % 2 == 1
            return None if first or form == "all skipped" else loss

    def by_hand(model: Any, batch: Any, step: int) -> Tensor:
        parts = split_by_hand(model, batch, step, 2)
        total = torch.zeros(())
        for lam, part in parts if form == "dict" else parts[1:]:
            with mip.at(model.primary, lam=lam):
                total = total + model.loss(part) / (2 if form == "dict" else 1)
        return total

    model = make(Formed, draws_per_batch=2)
    expected = model if form == "all skipped" else train_by_hand(model, by_hand, loader())
    before = copy.deepcopy(model)
    trainer(max_epochs=EPOCHS).fit(model, loader(), loader(seed=1))
    assert_close(model, before if form == "all skipped" else expected)


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_a_dict_holds_the_samples_of_all_parts(trainer: Trainers, draws: int) -> None:
    class Returning(Evaluated):
        def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            x, y = batch
            longest = torch.zeros(len(x), len(x))  # of another shape in each part
            return {"loss": self.loss(batch), "y": y, "size": len(x), "pair": torch.ones(2), "longest": longest}

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.__dict__.setdefault("_ends", []).append((outputs, batch))

    model = make(Returning, draws_per_batch=draws)
    trainer(max_epochs=1).fit(model, loader(10, 5), loader(seed=1))
    for outputs, (x, y) in model.__dict__["_ends"]:
        last = len(x) - len(x) * (draws - 1) // draws
        assert outputs.keys() == {"loss", "y", "size", "pair", "longest"}
        assert torch.equal(outputs["y"], y)
        assert outputs["size"] == last
        assert torch.equal(outputs["pair"], torch.ones(2))
        assert outputs["longest"].shape == (last, last)


def test_a_sub_subclass_that_calls_super_runs_once_per_draw(trainer: Trainers) -> None:
    class More(Drawing):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx)

    model = make(More, draws_per_batch=2)
    trainer(max_epochs=1).fit(model, loader(), loader(seed=1))
    assert [size for _, size in model.__dict__["_calls"]] == [2] * 2 * BATCHES


class PerSample(Evaluated):
    """The same loss, with the dial of each sample."""

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        error = self(x) - y
        lam = self.h["lam"].unsqueeze(-1)
        return ((1 - lam) * error**2 + lam * error.abs()).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.__dict__.setdefault("_shapes", []).append(tuple(self.h["lam"].shape))
        return self.loss(batch)


def test_per_sample_equals_a_loop_over_the_samples(trainer: Trainers) -> None:
    def loss(model: Any, batch: Any, step: int) -> Tensor:
        lams = model.space.sample(seed=0, step=step, n=len(batch[0]))["lam"]
        losses = []
        for lam, x, y in zip(lams, *batch, strict=True):
            with mip.at(model, lam=lam):
                error = model(x.unsqueeze(0)) - y
            losses.append(((1 - lam) * error**2 + lam * error.abs()).mean())
        return torch.stack(losses).mean()

    model, data = make(PerSample, per_sample=True).double(), loader(14, 5)
    data.dataset.tensors = tuple(tensor.double() for tensor in data.dataset.tensors)
    expected = train_by_hand(model, loss, data)
    runner = trainer(max_epochs=EPOCHS, precision="64-true")
    runner.fit(model, data, loader(seed=1))
    assert model.__dict__["_shapes"] == [(5,), (5,), (4,)] * EPOCHS
    assert_close(model, expected, rtol=0, atol=1e-10)


def test_per_sample_modules_are_evaluated_at_one_h_per_grid_point(trainer: Trainers) -> None:
    model = make(PerSample, per_sample=True, eval_grid=2)
    (table,) = trainer().validate(model, loader(seed=1), verbose=False)
    x, y = loader(seed=1).dataset.tensors
    with torch.no_grad():
        square = (mip.materialize(model, lam=0)(x) - y).square().mean()
        absolute = (mip.materialize(model, lam=1)(x) - y).abs().mean()
    assert table["val_loss/lam=0"] == pytest.approx(float(square), rel=1e-5)
    assert table["val_loss/lam=1"] == pytest.approx(float(absolute), rel=1e-5)


class Acquired(Dataset[dict[str, Tensor]]):
    """Samples that bring their own dial: the same value within each batch of 4, or one each."""

    def __init__(self, each: bool) -> None:
        self.x, self.y = dataset().tensors  # type: ignore[attr-defined]
        lams = torch.linspace(0, 1, SAMPLES if each else BATCHES)
        self.lam = lams if each else lams.repeat_interleave(SAMPLES // BATCHES)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "y": self.y[index], "lam": self.lam[index]}


def first_of_batch(batch: Any) -> dict[str, Any]:
    return {"lam": batch["lam"][0]}


def collate_one(items: Any) -> dict[str, Any]:
    batch = torch.utils.data.default_collate(items)
    return {**batch, "dial": {"lam": batch["lam"][0]}, "te": batch["lam"][0]}


class FromBatch(Evaluated):
    """Reads mappings."""

    def loss(self, batch: Any) -> Tensor:
        error = self(batch["x"]) - batch["y"]
        lam = self.h["lam"].unsqueeze(-1)
        self.__dict__.setdefault("_seen", []).append(self.h["lam"].tolist())
        return ((1 - lam) * error**2 + lam * error.abs()).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), batch_size=len(batch["x"]))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch["x"])


SOURCES = {
    "function": (False, first_of_batch),
    "key of a mapping": (False, "dial"),
    "key of the only component": (False, "te"),
    "per sample": (True, "lam"),
}


@pytest.mark.parametrize(("each", "source"), SOURCES.values(), ids=SOURCES)
def test_h_comes_from_the_batch_in_training_evaluation_and_prediction(
    trainer: Trainers, each: bool, source: Any
) -> None:
    data = DataLoader(Acquired(each), 4, collate_fn=collate_one)
    model = make(FromBatch, h_from_batch=source, per_sample=each)
    lams = [batch["lam"].tolist() if each else float(batch["lam"][0]) for batch in data]
    runner = trainer(max_epochs=1)
    runner.fit(model, data, data)
    assert model.__dict__["_seen"] == lams * 2
    losses, outputs = [], []
    with torch.no_grad():
        for batch in data:
            for x, y, lam in zip(batch["x"], batch["y"], batch["lam"], strict=True):
                outputs.append(mip.materialize(model, lam=lam)(x.unsqueeze(0)))
                error = outputs[-1] - y
                losses.append((1 - lam) * error.square().mean() + lam * error.abs().mean())
    values = {k: float(v) for k, v in runner.callback_metrics.items() if k.startswith("val")}
    assert values == pytest.approx({"val_loss": float(torch.stack(losses).mean())}, rel=1e-5)
    predicted = torch.cat(trainer().predict(model, data))
    torch.testing.assert_close(predicted, torch.cat(outputs))


def test_the_hooks_around_a_batch_see_its_own_h(trainer: Trainers) -> None:
    class Around(FromBatch):
        def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            assert torch.equal(self.h["lam"], batch["lam"])
            assert torch.equal(outputs, batch["lam"])

        def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.h["lam"]

    model = make(Around, h_from_batch="lam", per_sample=True)
    trainer().validate(model, DataLoader(Acquired(each=True), 4), verbose=False)


def test_super_keeps_the_h_of_the_batch(trainer: Trainers) -> None:
    class More(FromBatch):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.log("again", self.loss(batch))

    data = DataLoader(Acquired(each=True), 4)
    model = make(More, h_from_batch="lam", per_sample=True)
    (table,) = trainer().validate(model, data, verbose=False)
    assert table["again"] == pytest.approx(table["val_loss"])


def inputs() -> Tensor:
    return loader(seed=3).dataset.tensors[0]


@pytest.mark.parametrize(("predict_h", "lam"), [(None, 0.5), ({"lam": 0.3}, 0.3)])
def test_prediction_is_made_at_the_center_or_at_one_h(trainer: Trainers, predict_h: Any, lam: float) -> None:
    model = make(Task, predict_h=predict_h)
    with torch.no_grad():
        expected = mip.materialize(model, lam=lam)(inputs())
    predicted = trainer().predict(model, datamodule=Data())
    torch.testing.assert_close(torch.cat(predicted), expected)
    model.predict_h = {"lam": 1}
    predicted = trainer().predict(model, datamodule=Data())
    torch.testing.assert_close(torch.cat(predicted), mip.materialize(model, lam=1)(inputs()).detach())


class Softened(Task):
    """Changes what the base class predicts."""

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return super().predict_step(batch, batch_idx).tanh()


@pytest.mark.parametrize("kind", [Task, Softened])
def test_prediction_on_the_grid_is_a_dict_by_label(trainer: Trainers, kind: type[Task]) -> None:
    model = make(kind, predict_h="grid", eval_grid=3)
    batches = trainer().predict(model, datamodule=Data())
    assert [list(batch) for batch in batches] == [["lam=0", "lam=0.5", "lam=1"]] * BATCHES
    for lam in (0, 0.5, 1):
        expected = mip.materialize(model, lam=lam)(inputs()).detach()
        expected = expected.tanh() if kind is Softened else expected
        torch.testing.assert_close(torch.cat([batch[f"lam={lam:g}"] for batch in batches]), expected)


def test_inside_at_prediction_by_hand_uses_that_h() -> None:
    model = make(Softened, predict_h="grid")
    x = inputs()
    with torch.no_grad(), model.at(lam=0.2):
        predicted = model.predict_step((x, None), 0)
    torch.testing.assert_close(predicted, mip.materialize(model, lam=0.2)(x).tanh().detach())


def test_a_forward_of_ones_own_runs_at_one_h_after_training_with_several(trainer: Trainers) -> None:
    class Doubled(PerSample):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * (super().forward(x) if self.h["lam"].ndim else self.primary(x))

    model = make(Doubled, per_sample=True)
    trainer(max_epochs=1).fit(model, loader(), loader(seed=1))
    torch.testing.assert_close(model(inputs()), 2 * mip.materialize(model, lam=0.5)(inputs()))


def test_a_tensor_batch_is_predicted_as_it_is(trainer: Trainers) -> None:
    model = make(Task)
    predicted = trainer().predict(model, DataLoader(inputs(), 4))
    torch.testing.assert_close(torch.cat(predicted), mip.materialize(model, lam=0.5)(inputs()).detach())


class Normed(Net):
    """With a BatchNorm layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


def fit(model: Any, data: Any) -> None:
    arguments: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, **arguments).fit(model, data)


class Lone(Task):
    """Without dial in the loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).mean()


class Forwarding(Lone):
    """Runs its network past the module's own forward."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch["x"] if isinstance(batch, dict) else batch[0]).mean()

    def forward(self, x: Tensor) -> Tensor:
        return self.primary(x)


class Scalars(Dataset[Any]):
    """Batches without a batch dimension."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return {"name": "x"}


def take(items: Any) -> Any:
    return items[0]


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (
            lambda: fit(make(Lone, draws_per_batch=3), loader(8, 2)),
            ValueError,
            "draws_per_batch=3 needs at least 3 samples in a batch, but one has 2; raise the batch size, set "
            "drop_last=True, or lower draws_per_batch.",
        ),
        (
            lambda: fit(make(Lone, draws_per_batch=2), DataLoader(Scalars(), collate_fn=take)),
            ValueError,
            "draws_per_batch=2 needs at least 2 samples in a batch, but one has 0; raise the batch size, set "
            "drop_last=True, or lower draws_per_batch.",
        ),
        (
            lambda: fit(make(Lone, per_sample=True), DataLoader(Scalars(), collate_fn=take)),
            ValueError,
            "per_sample=True needs a batch with samples, but no tensor of this batch (dict) has a batch dimension.",
        ),
        (
            lambda: fit(make(Lone, per_sample=True, primary=Normed()), loader()),
            ValueError,
            "per_sample=True runs each sample alone, but the BatchNorm layer norm takes statistics over the batch; use "
            "GroupNorm or LayerNorm, or draws_per_batch instead of per_sample.",
        ),
        (
            lambda: fit(make(Lone, per_sample=True, primary=Recomputing()), loader()),
            RuntimeError,
            "per_sample=True cannot run a network with activation checkpointing (or other hooks on saved tensors); "
            "switch it off in the network, or use draws_per_batch instead of per_sample.",
        ),
        (
            lambda: fit(make(Forwarding, per_sample=True), loader()),
            RuntimeError,
            "per_sample=True gives each sample its own h, and the primary alone runs at one; call self(x) in the step "
            "and, in a forward of your own, super().forward(x) instead of self.primary(x).",
        ),
        (
            lambda: fit(make(Forwarding, per_sample=True, h_from_batch="lam"), DataLoader(Acquired(each=True), 4)),
            RuntimeError,
            "per_sample=True gives each sample its own h, and the primary alone runs at one; call self(x) in the step "
            "and, in a forward of your own, super().forward(x) instead of self.primary(x).",
        ),
        (
            lambda: fit(make(Lone, h_from_batch="te"), DataLoader(Acquired(each=False), 4)),
            ValueError,
            "h_from_batch is 'te', but the batch has no such key: it is x, y, lam.",
        ),
        (
            lambda: fit(make(Lone, h_from_batch="te"), loader()),
            ValueError,
            "h_from_batch is 'te', but the batch has no such key: it is list.",
        ),
        (
            lambda: fit(make(Lone, h_from_batch="lam"), DataLoader(Acquired(each=True), 4)),
            ValueError,
            "h has one value per sample (lam: (4,)); set per_sample=True, or give one value per batch.",
        ),
        (
            lambda: fit(make(Lone, h_from_batch=lambda batch: {"lam": 2.0}), loader()),
            ValueError,
            "h['lam'] = 2 is outside the support of its prior Uniform(low=0, high=1, endpoints=0.0).",
        ),
        (
            lambda: fit(
                make(Lone, h={"a": mip.Uniform(0, 1), "b": mip.Uniform(0, 1)}, h_from_batch=lambda batch: 0.5), loader()
            ),
            TypeError,
            "h_from_batch gave float, expected a mapping with a, b.",
        ),
        (
            lambda: make(Task, predict_h="gird"),
            ValueError,
            "predict_h is 'gird', expected 'grid', None, or a mapping with lam.",
        ),
        (
            lambda: make(Task, predict_h={"lam": 3}),
            ValueError,
            "h['lam'] = 3 is outside the support of its prior Uniform(low=0, high=1, endpoints=0.0).",
        ),
        (
            lambda: setattr(make(Task), "predict_h", {"lamb": 0.3}),
            ValueError,
            "h has no component 'lamb'; its components are lam. Did you mean 'lam'?",
        ),
        (
            lambda: make(Task, draws_per_batch=0),
            ValueError,
            "draws_per_batch is 0, expected at least 1, and 1 with per_sample or h_from_batch.",
        ),
        (
            lambda: make(Task, draws_per_batch=2, per_sample=True),
            ValueError,
            "draws_per_batch is 2, expected at least 1, and 1 with per_sample or h_from_batch.",
        ),
        (
            lambda: make(Task, draws_per_batch=2, h_from_batch="te"),
            ValueError,
            "draws_per_batch is 2, expected at least 1, and 1 with per_sample or h_from_batch.",
        ),
    ],
)
def test_messages(act: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        act()
    assert str(caught.value) == message


# --- Steps that are set later


class Stepless(Task):
    """Gets its steps after it is written."""


class Refined(Evaluated):
    """Calls the steps of its base class."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return 1 * super().training_step(batch, batch_idx)


@pytest.mark.parametrize("kind", [Stepless, Refined])
def test_steps_set_on_the_class_run_at_the_same_h_as_those_written_in_it(
    trainer: Trainers, kind: type[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Tensor:
        self.__dict__.setdefault("_sizes", []).append((len(batch[0]), float(self.h["lam"])))
        return self.loss(batch)

    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    model, written = (make(each, draws_per_batch=2, eval_grid=2) for each in (kind, Evaluated))
    monkeypatch.setattr(kind, "training_step", training_step)
    monkeypatch.setattr(kind, "validation_step", validation_step)
    for each in (model, written):
        runner = trainer(max_epochs=1)
        runner.fit(each, loader(), loader(seed=1))
        assert {"val_loss/lam=0", "val_loss/lam=1"} <= set(runner.callback_metrics)
    assert_close(model, written)
    assert [size for size, _ in model.__dict__["_sizes"]] == [2] * 2 * BATCHES
    assert len({lam for _, lam in model.__dict__["_sizes"]}) == 2 * BATCHES


def test_a_step_set_on_an_instance_is_refused(trainer: Trainers) -> None:
    model = make(Evaluated)
    model.validation_step = lambda batch, batch_idx: None
    text = (
        "validation_step is set on this instance of Evaluated, where it would run at no h of its own; set it on the "
        "class, Evaluated.validation_step = ..., or write it in a subclass."
    )
    with pytest.raises(AttributeError, match=exactly(text)):
        trainer().fit(model, loader(), loader(seed=1))


def test_a_step_of_the_class_in_a_wrapper_on_the_instance_is_not(trainer: Trainers) -> None:
    model = make(Evaluated)
    step = model.training_step
    model.training_step = functools.wraps(step)(lambda *args: step(*args))
    model.predict_step = torch.compile(model.predict_step, backend="eager")
    trainer().fit(model, loader(), loader(seed=1))
    assert drawn(model) == sequence(model, EPOCHS * BATCHES)
