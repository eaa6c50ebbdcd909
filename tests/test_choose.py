"""The best h for a metric, and how sure it is."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanSquaredError

import lightning_mip as mip
from lightning_mip.bootstrap import interval, resampled_means, vertices
from lightning_mip.injection import the_injector
from lightning_mip.measure import LoggedMetric
from tests.module_kinds import exactly
from tests.tasks import Evaluated, Net, make
from tests.test_sweep import Plain

BEST = {"lam": 0.37, "phi": 0.03}
SAMPLES = 60
LAM: dict[str, mip.Prior] = {"lam": mip.Uniform(0, 1)}
BOTH: dict[str, mip.Prior] = {**LAM, "phi": mip.LogUniform(0.001, 1)}
Batch = dict[str, Tensor]


def network(priors: dict[str, mip.Prior] = LAM) -> nn.Module:
    torch.manual_seed(2)
    net = nn.Linear(3, 2)
    mip.hypernetize(net, priors, hidden_sizes=(8,))
    return net


def batches(net: nn.Module, noise: float = 0.0, count: int = 3, best: dict[str, float] = BEST) -> list[Any]:
    """Targets that the network gives at the best h, with noise."""
    generator = torch.Generator().manual_seed(0)
    space = the_injector(net).hypernet.space
    made = []
    for _ in range(count):
        x = torch.randn(SAMPLES // count, 3, generator=generator)
        with torch.no_grad(), mip.at(net, {name: best[name] for name in space}):
            y = net(x)
        made.append((x, y + noise * torch.randn(y.shape, generator=generator)))
    return made


def error(output: Tensor, batch: Any) -> Tensor:
    return (output - batch[1]).square().mean(1)


def closeness(output: Tensor, batch: Any) -> Tensor:
    """Better when higher, and without a gradient."""
    return -error(output, batch).detach()


@pytest.mark.parametrize(
    ("metric", "mode", "priors", "how", "tolerance"),
    [
        (error, "min", LAM, "gradient", 1e-3),
        (closeness, "max", LAM, "golden section", 5e-3),
        (error, "min", BOTH, "gradient", 5e-2),
        (closeness, "max", BOTH, "quasi-random", 1e-1),
    ],
)
def test_the_search_goes_on_between_the_points_of_the_grid(
    metric: Any, mode: Any, priors: dict[str, mip.Prior], how: str, tolerance: float
) -> None:
    net = network(priors)
    choice = mip.choose(net, batches(net), metric, mode, grid=7)
    assert choice.refined == how
    assert abs(choice.value) < abs(choice.curve.best(metric.__name__, mode).value)
    space = choice.curve.space
    for name in priors:
        u, best = (space[name].cdf(torch.as_tensor(value)) for value in (choice.h[name], BEST[name]))
        assert float(u) == pytest.approx(float(best), abs=tolerance)


def test_nothing_of_the_network_is_changed() -> None:
    net = network()
    hyper = the_injector(net).hypernet
    before = [(p.clone(), p.requires_grad, p.grad) for p in (*net.parameters(), *hyper.parameters())]
    net.train()
    mip.choose(net, batches(net), error, "min", grid=5)
    after = [(p, p.requires_grad, p.grad) for p in (*net.parameters(), *hyper.parameters())]
    assert all(torch.equal(a, b) and flags == others for (a, *flags), (b, *others) in zip(before, after, strict=True))
    assert net.training


def test_the_curve_holds_the_means_over_the_samples_of_all_batches() -> None:
    net = network()
    data = batches(net, noise=1.0)
    choice = mip.choose(net, data, error, "min", grid=3, refine=False)
    x, y = map(torch.cat, zip(*data, strict=True))
    with torch.no_grad():
        expected = [(mip.materialize(net, h)(x) - y).square().mean() for h in choice.curve.h]
    torch.testing.assert_close(choice.curve["error"].float(), torch.stack(expected))
    assert (choice.count, choice.unit, choice.refined) == (SAMPLES, "samples", "grid")


def test_the_interval_is_narrow_where_samples_agree_and_wide_in_noise() -> None:
    net = network()
    sure, unsure = (mip.choose(net, batches(net, noise), error, "min", grid=11) for noise in (0.01, 20.0))
    widths = [float(choice.interval["lam"][1] - choice.interval["lam"][0]) for choice in (sure, unsure)]
    assert widths[0] < 0.02
    assert widths[1] > 0.5
    for choice in (sure, unsure):
        low, high = choice.interval["lam"]
        assert low <= choice.h["lam"] <= high
        assert choice.value_interval[0] < choice.value < choice.value_interval[1]


def test_in_words() -> None:
    space = mip.HSpace(BOTH)
    curve = mip.Sweep(space, space.grid(2), {"val_mse": torch.zeros(4)})
    h, ends = space.tensors({"lam": 0.3, "phi": 0.1}), (torch.tensor(0.1), torch.tensor(0.5))
    choice = mip.Choice(h, 1.23456, {"lam": ends, "phi": ends}, (1.0, 1.5), curve, 60, "samples", "gradient")
    assert str(choice) == (
        "lam=0.3 (95%: 0.1 to 0.5), phi=0.1 (95%: 0.1 to 0.5); val_mse = 1.235 (95%: 1 to 1.5); 60 samples"
    )


@pytest.mark.parametrize(("best", "at_end"), [(0.6, []), (0.0, ["lam"]), (1.0, ["lam"])])
def test_it_says_that_the_best_is_at_the_end_of_the_grid(best: float, at_end: list[str]) -> None:
    net = network()
    choice = mip.choose(net, batches(net, best={"lam": best}), error, "min", grid=5)
    assert choice.at_end == at_end
    assert str(choice).endswith("samples; lam is at the end of the grid" if at_end else "samples")


def test_classes_have_no_end() -> None:
    space = mip.HSpace({"k": mip.Categorical(2)})
    ends = (torch.tensor(0), torch.tensor(1))
    curve = mip.Sweep(space, space.grid(2), {"loss": torch.zeros(2)})
    assert mip.Choice(space.tensors({"k": 0}), 1.0, {"k": ends}, (1.0, 1.0), curve, 2, "samples", "grid").at_end == []


def grouped(net: nn.Module) -> list[Any]:
    """Samples of two kinds, with a best h of their own, in each batch."""
    kinds = {"oak": {"lam": 0.2}, "elm": {"lam": 0.8}}
    parts = {kind: batches(net, best=best) for kind, best in kinds.items()}
    mixed = []
    for oak, elm in zip(parts["oak"], parts["elm"], strict=True):
        x, y = (torch.cat(pair) for pair in zip(oak, elm, strict=True))
        mixed.append([x, y, ["oak"] * len(oak[0]) + ["elm"] * len(elm[0])])
    return mixed


@pytest.mark.parametrize("metric", [error, lambda output, batch: error(output, batch).detach()])
@pytest.mark.parametrize("by", [2, lambda batch: batch[2]])
def test_each_group_has_a_choice_of_its_own(metric: Any, by: Any) -> None:
    net = network()
    choices = mip.choose(net, grouped(net), metric, "min", by=by, grid=5)
    assert {kind: round(float(choice.h["lam"]), 1) for kind, choice in choices.items()} == {"oak": 0.2, "elm": 0.8}
    assert {choice.count for choice in choices.values()} == {SAMPLES}
    assert float(mip.choose(net, grouped(net), metric, "min", grid=5).h["lam"]) == pytest.approx(0.5, abs=0.1)


def test_one_sample_tells_nothing() -> None:
    net = network()
    choice = mip.choose(net, [(torch.ones(1, 3), torch.zeros(1, 2))], error, "min", grid=5)
    assert [float(end) for end in choice.interval["lam"]] == [0, 1]
    assert choice.value_interval == (-float("inf"), float("inf"))


def test_classes_are_chosen_from_and_preference_vectors_stay_on_the_simplex() -> None:
    priors = {"kind": mip.Categorical([1, 2, 5]), "w": mip.Simplex(2)}
    net = network(priors)
    best: Any = {"kind": 2, "w": [0.3, 0.7]}
    choice = mip.choose(net, batches(net, best=best), error, "min", grid=5)
    assert choice.h["kind"] == 2
    torch.testing.assert_close(choice.h["w"], torch.tensor([0.3, 0.7]), atol=1e-2, rtol=0)
    assert float(choice.h["w"].sum()) == pytest.approx(1)


class Doubling(Evaluated):
    """Predicts twice what its network says."""

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return 2 * self(batch[0]) + self.h["lam"]


def test_the_output_is_that_of_predict_step() -> None:
    model, x = make(Doubling), torch.randn(8, 3)
    seen: list[Tensor] = []

    def keep(output: Tensor, batch: Any) -> Tensor:
        seen.append(output)
        return output.mean(1)

    mip.choose(model, [(x, x)], keep, "min", grid=[{"lam": 0.3}], refine=False)
    with torch.no_grad():
        torch.testing.assert_close(seen[0], 2 * mip.materialize(model, lam=0.3)(x) + 0.3)


def test_a_module_with_the_plug_in_is_run_at_its_h(trainer: Callable[..., Any]) -> None:
    class Predicting(Plain):
        def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.net(batch[0]) + self.hparams.lam

    model, x = Predicting(), torch.randn(8, 3)
    plugin = mip.Hypernetize("net", {"hparams.lam": mip.Uniform(0, 1)}, hidden_sizes=(4,))
    loader = DataLoader([(x, x[:, :2])], batch_size=None)
    trainer(callbacks=[plugin], max_epochs=1).fit(model, loader, loader)
    grid = [{"hparams.lam": 0.2}, {"hparams.lam": 0.9}]
    choice = mip.choose(model, [(x, x[:, :2])], lambda output, batch: output.mean(1), "min", grid=grid, refine=False)
    with torch.no_grad():
        expected = [mip.materialize(model, h)(x).mean() + h["hparams.lam"] for h in grid]
    torch.testing.assert_close(choice.curve["lambda"].float(), torch.stack(expected))


class Warm(nn.Module):
    """Divides by a temperature, a plain number that the plug-in sets."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.temperature = nn.Linear(3, 2), 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.temperature


class WarmByNumber(Warm):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * float(self.temperature)


class WarmByNumberOnly(Warm):
    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.temperature, float)
        return self.layer(x) * self.temperature


class WarmByBuffer(Warm):
    def __init__(self) -> None:
        super().__init__()
        del self.temperature
        self.register_buffer("temperature", torch.ones(1))


class Warming(L.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return error(self.net(batch[0]), batch).mean()

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-4)


TEMPERATURE = "net.temperature"


def warmed(trainer: Callable[..., Any], net: type[nn.Module] = Warm) -> tuple[Warming, list[Any]]:
    """A module after a run with its temperature as dial, and a batch."""
    torch.manual_seed(0)
    model, x = Warming(net()), torch.randn(8, 3)
    batch = [x, x[:, :2]]
    loader = DataLoader([batch], batch_size=None)
    plugin = mip.Hypernetize("net", {TEMPERATURE: mip.Uniform(0.1, 10)}, hidden_sizes=(4,))
    trainer(callbacks=[plugin], max_epochs=1).fit(model, loader)
    return model, [batch]


def through_a_file(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


# pytest.warns records what Lightning uses of torch's deprecated names, and raises it again.
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec")
@pytest.mark.parametrize("how", ["as it is", "copied", "loaded", "the network alone", "after another Trainer"])
def test_attributes_hold_h_wherever_the_module_has_been_since(trainer: Callable[..., Any], how: str) -> None:
    model, data = warmed(trainer)
    if how == "after another Trainer":
        with pytest.warns(UserWarning, match="it runs at the center of the priors"):
            trainer().predict(model, DataLoader(data, batch_size=None))
    change: dict[str, Callable[[Any], Any]] = {
        "copied": copy.deepcopy,
        "loaded": through_a_file,
        "the network alone": lambda module: module.net,
    }
    given = change.get(how, lambda module: module)(model)
    choice = mip.choose(given, data, error, "min", grid=3, refine=False)
    with torch.no_grad():
        expected = [error(mip.materialize(model, h)(data[0][0]), data[0]).mean() for h in choice.curve.h]
    torch.testing.assert_close(choice.curve["error"].float(), torch.stack(expected))
    assert model.net.temperature == 1.0


@pytest.mark.parametrize(
    ("net", "how"),
    [
        (Warm, "gradient"),
        (WarmByBuffer, "gradient"),
        (WarmByNumber, "golden section"),
        (WarmByNumberOnly, "golden section"),
    ],
)
def test_the_gradient_goes_through_attributes_or_the_search_does_without(
    trainer: Callable[..., Any], net: type[nn.Module], how: str
) -> None:
    model, ((x, _),) = warmed(trainer, net)
    with torch.no_grad():
        target = mip.materialize(model, {TEMPERATURE: 3.7})(x)
    choice = mip.choose(model, [(x, target)], error, "min", grid=5)
    assert choice.refined == how
    assert float(choice.h[TEMPERATURE]) == pytest.approx(3.7, abs=0.03)
    assert float(model.net.temperature) == 1.0


def test_an_attribute_that_prediction_does_not_read_leaves_the_gradient_right(trainer: Callable[..., Any]) -> None:
    model, x = Plain(), torch.randn(8, 3)
    loader = DataLoader([(x, x[:, :2])], batch_size=None)
    plugin = mip.Hypernetize("net", {"hparams.lam": mip.Uniform(0, 1)}, hidden_sizes=(4,))
    trainer(callbacks=[plugin], max_epochs=1).fit(model, loader, loader)
    with torch.no_grad():
        target = mip.materialize(model, {"hparams.lam": 0.37})(x)
    choice = mip.choose(model, [(x, target)], error, "min", grid=5)
    assert choice.refined == "gradient"
    assert float(choice.h["hparams.lam"]) == pytest.approx(0.37, abs=1e-2)


class Logging(Evaluated):
    """Logs a value, a torchmetrics object by calling it, one by updating it, and one at the end."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.called, self.updated = MeanSquaredError(), MeanSquaredError()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch["x"], batch["y"]
        error = (self(x) - y).square().mean()
        self.log("val_mse", error, batch_size=len(x))
        self.called(self(x), y)
        self.log("called", self.called)
        self.updated.update(self(x), y)
        self.log("updated", self.updated)

    def on_validation_epoch_end(self) -> None:
        self.log("last", self.h["lam"])


def logged(model: Any) -> list[Batch]:
    """Batches of unequal size, each of one kind of sample."""
    made = []
    for size, lam in ((5, 0.2), (9, 0.8), (6, 0.2), (9, 0.8)):
        x = torch.randn(size, 3, generator=torch.Generator().manual_seed(size))
        with torch.no_grad():
            made.append({"x": x, "y": mip.materialize(model, lam=lam)(x), "kind": torch.full((size,), lam)})
    return made


@pytest.mark.parametrize("name", ["val_mse", "called"])
def test_a_logged_metric_is_taken_batch_by_batch(name: str) -> None:
    model = make(Logging, primary=Net())
    data = logged(model)
    choice = mip.choose(model, data, name, "min", grid=5)
    assert (choice.count, choice.unit, choice.refined) == (4, "batches", "golden section")
    table = mip.sweep(model, DataLoader(data, batch_size=None), 5)
    torch.testing.assert_close(choice.curve[name].float(), table[name])
    groups = mip.choose(model, data, name, "min", grid=5, by=lambda batch: float(batch["kind"][0]))
    for lam, group in groups.items():
        assert float(group.h["lam"]) == pytest.approx(lam, abs=0.02)
    assert [group.count for group in groups.values()] == [2, 2]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "val_mes",
            "metric is 'val_mes', but validation_step logs no such; it logs val_mse, called, updated, last. Name one "
            "of them, or give a function of (output, batch).",
        ),
        (
            "last",
            "metric is 'last', which is not logged once per batch, so nothing tells how sure it is; log it in "
            "validation_step, or give a function of (output, batch).",
        ),
        (
            "updated",
            "metric is 'updated', a torchmetrics object that validation_step only updates, so it has no value per "
            "batch; call it instead (self.metric(...)), or give a function of (output, batch).",
        ),
    ],
)
def test_a_logged_metric_without_a_value_per_batch_is_refused(name: str, message: str) -> None:
    model = make(Logging)
    with pytest.raises(ValueError, match=exactly(message)):
        mip.choose(model, logged(model), name, "min", grid=2)


def test_groups_that_do_not_fit_are_refused() -> None:
    net, model = network(), make(Logging)
    mixed = [{"x": torch.ones(2, 3), "y": torch.ones(2, 2), "kind": torch.tensor([1, 2])}]
    message = (
        "by gives a batch several groups (1, 2), but metric is one number per batch; give a function that returns one "
        "value per sample, or batches of one group each."
    )
    with pytest.raises(ValueError, match=exactly(message)):
        mip.choose(model, mixed, "val_mse", "min", grid=2, by="kind")
    message = (
        "by is 'kind', but the batch has no such key: it is tuple. Give a function of the batch, such as lambda batch: "
        "batch[2]."
    )
    with pytest.raises(ValueError, match=exactly(message)):
        mip.choose(net, batches(net), error, "min", grid=2, by="kind")
    message = "by gives 1 groups for a batch of 20 samples, expected one per sample."
    with pytest.raises(ValueError, match=exactly(message)):
        mip.choose(net, batches(net), error, "min", grid=2, by=lambda batch: ["a"])


@pytest.mark.parametrize("metric", [error, closeness])
def test_a_loader_that_shuffles_and_drops_gives_all_passes_the_same_samples(metric: Any) -> None:
    net = network()
    data = TensorDataset(torch.randn(35, 3), torch.randn(35, 2), torch.arange(35) % 3, torch.arange(35))
    shuffled = DataLoader(data, 8, shuffle=True, drop_last=True)
    seen: set[int] = set()

    def noting(output: Tensor, batch: Any) -> Tensor:
        seen.update(batch[3].tolist())
        return metric(output, batch)

    choices = mip.choose(net, shuffled, noting, "min", by=2, grid=5)
    assert sum(choice.count for choice in choices.values()) == len(seen) == 32


def test_batches_that_differ_from_pass_to_pass_are_refused() -> None:
    net = network()
    data = TensorDataset(torch.randn(7, 3), torch.zeros(7, 2))

    class Growing:
        """One batch more in each pass."""

        passes = 0

        def __iter__(self) -> Any:
            self.passes += 1
            return iter([tuple(data.tensors)] * self.passes)

    message = (
        "dataloader gives 14 values of the metric in one pass and {} in the next, but h are compared on the same ones; "
        "give a DataLoader with shuffle=False, or a list of batches."
    )
    with pytest.raises(ValueError, match=exactly(message.format(28))):
        mip.choose(net, Growing(), closeness, "min", grid=5)
    with pytest.raises(ValueError, match=exactly(message.format(21))):
        mip.choose(net, Growing(), error, "min", grid=5, by=lambda batch: ["a"] * len(batch[0]))


class Record:
    """A batch whose size nothing tells."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


class OfRecords(Evaluated):
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch.x)


def test_a_batch_of_unknown_size_has_one_value_or_is_refused() -> None:
    model, data = make(OfRecords), [Record(torch.randn(4, 3))]
    message = (
        "metric returned shape (4,), but how many samples a batch of type Record has is not known; give batches that "
        "are tensors, or tuples, lists or mappings with tensors, for one value per sample, or return one number for "
        "the batch."
    )
    with pytest.raises(ValueError, match=exactly(message)):
        mip.choose(model, data, lambda output, batch: output.mean(1), "min", grid=2)
    assert mip.choose(model, data, lambda output, batch: output.mean(), "min", grid=2).unit == "batches"


class Narrow(mip.HyperLightningModule):
    def training_step(self, batch: Any, batch_idx: int) -> None: ...

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("distance", (self.h["lam"] - 1000.055).abs())


def test_a_narrow_range_is_searched_by_a_logged_metric() -> None:
    model = Narrow(primary=Net(), h={"lam": mip.Uniform(1000, 1000.1)})
    choice = mip.choose(model, [torch.ones(2, 3)], "distance", "min")
    assert float(choice.h["lam"]) == pytest.approx(1000.055, abs=1e-3)
    assert len(choice.curve) == 21
    assert str(choice).startswith("lam=1000.05")


def test_points_of_a_search_may_share_a_name() -> None:
    model = Narrow(primary=Net(), h={"lam": mip.Uniform(1000, 1000.1)})
    source = LoggedMetric(model, [torch.ones(2, 3)], "distance", None)
    points = [model.space.tensors({"lam": lam}) for lam in (1000.02, 1000.02, 1000.09)]
    torch.testing.assert_close(
        source.measure(points).values[:, 0], torch.tensor([0.035, 0.035, 0.035]).double(), atol=1e-3, rtol=0
    )


def only_once(net: nn.Module) -> Any:
    return iter(batches(net))


def test_an_error_of_the_metric_says_what_its_output_is() -> None:
    def failing(output: Tensor, batch: Any) -> Tensor:
        raise RuntimeError("of the author")

    net = network()
    with pytest.raises(RuntimeError, match=r"^of the author") as caught:
        mip.choose(net, batches(net), failing, "min")
    (note,) = caught.value.__notes__
    assert note.startswith("The metric's output is what predict_step, or the network, returns: a Tensor of shape (")


@pytest.mark.parametrize(
    ("data", "metric", "mode", "raised", "message"),
    [
        (
            batches,
            3,
            "min",
            TypeError,
            "metric is 3, expected a function of (output, batch) or the name of a logged metric.",
        ),
        (batches, error, "best", ValueError, "mode is 'best', expected 'min' or 'max'."),
        (
            only_once,
            error,
            "min",
            TypeError,
            "dataloader is a list_iterator, which runs once, but several passes are taken; give a DataLoader or a list "
            "of batches.",
        ),
        (lambda net: [], error, "min", ValueError, "dataloader has no batches, expected at least one to evaluate on."),
        (
            batches,
            lambda output, batch: output,
            "min",
            ValueError,
            "metric returned shape (20, 2) for a batch of 20, expected (20,), one value per sample; take the mean over "
            "the other dimensions in it.",
        ),
        (
            batches,
            lambda output, batch: error(output, batch) / 0,
            "min",
            ValueError,
            "metric is NaN or infinite at 60 of 60 samples at lam=0; let it return a number for each.",
        ),
    ],
)
def test_what_nothing_can_be_chosen_by_is_refused(
    data: Any, metric: Any, mode: Any, raised: type[Exception], message: str
) -> None:
    net = network()
    with pytest.raises(raised, match=exactly(message)):
        mip.choose(net, data(net), metric, mode, grid=3)


def test_resampled_means_spread_as_the_mean_of_the_samples_does() -> None:
    values = torch.randn(2, 400, generator=torch.Generator().manual_seed(0))
    means = resampled_means(values, torch.ones(400), 2000, seed=0)
    torch.testing.assert_close(means.mean(0), values.mean(1).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(means.std(0), values.std(1).double() / 20, atol=0.003, rtol=0)
    assert torch.equal(means, resampled_means(values, torch.ones(400), 2000, seed=0))
    low, high = interval(means[:, 0])
    assert float(high - low) == pytest.approx(4 * 0.05, rel=0.15)


def test_the_lowest_point_of_a_curve_lies_between_its_points_but_never_outside() -> None:
    positions = torch.linspace(0, 1, 5)
    curves = torch.stack([(positions - 0.3) ** 2, -positions, (positions - 0.5).neg().square().neg()])
    torch.testing.assert_close(vertices(positions, curves), torch.tensor([0.3, 1, 0]))
