"""diagnose: what it says of hypernetworks that are known to work, to idle, to be dead, or to be proportional to h."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

import lightning_mip as mip
from lightning_mip.diagnosis.report import Diagnosis
from lightning_mip.magnitude import exponent
from tests.habits import InInit, Manual
from tests.tasks import Net, Task, loader, make

Trainers = Callable[..., L.Trainer]
TRUNK: dict[str, Any] = {"hidden_sizes": (16, 16)}
DATA = [*loader(64, 8)]


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-2)


class Blend(Task):
    """lam goes from one target to another: each lam wants another network."""

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        out, lam = self(x), self.h["lam"]
        return (1 - lam) * ((out - y) ** 2).mean() + lam * ((out - y.flip(1)) ** 2).mean()


class NoDial(Task):
    """A loss without h."""

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return ((self(x) - y) ** 2).mean()


class Factor(NoDial):
    """lam scales the loss: the same network is best at every lam."""

    def loss(self, batch: Any) -> Tensor:
        return (1 + 0.1 * self.h["lam"]) * super().loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))
        self.log("val_score", -self.loss(batch))


def fitted(trainer: Trainers, model: Any, epochs: int) -> Any:
    torch.manual_seed(0)
    trainer(max_epochs=epochs).fit(model, loader(), loader() if isinstance(model, Factor) else None)
    return model


@pytest.fixture
def blend(trainer: Trainers) -> Any:
    return fitted(trainer, make(Blend, optimizer=adam, hypernet=TRUNK), 60)


def test_a_trained_mip_network_matters_and_is_flat(blend: Any) -> None:
    report = mip.diagnose(blend, DATA)
    matter = report.matter
    assert report.kind == "matters"
    assert matter.shuffled is not None
    assert matter.theta0 is not None
    assert matter.right < min(matter.best_single, matter.shuffled, matter.theta0)
    assert report.verdicts["matter"] == (
        f"lam matters: right h {matter.right:.4g}, shuffled h {matter.shuffled:.4g}; lam explains "
        f"{matter.output_share:.1%} of the output's variation."
    )
    assert report.verdicts["magnitude"].startswith("flat: ||delta(h)|| goes as ||h|| to the power ")
    assert report.verdicts["trunk"] == "0 of 32 trunk units have the same value at all h."


@pytest.mark.parametrize(
    ("theta0", "single", "words"),
    [
        (0.5, 0.999, "; but theta0 alone is better for all h: 0.5."),
        (1.5, 0.999, "; but the one network of lam=0 is as good for all h: 0.999."),
        (None, 0.5, "; but the one network of lam=0 is better for all h: 0.5."),
        (1.5, 1.5, "."),
    ],
)
def test_one_network_that_does_as_well_at_all_h(blend: Any, theta0: float | None, single: float, words: str) -> None:
    report = mip.diagnose(blend, DATA)
    scores = {"right": 1.0, "shuffled": 2.0, "theta0": theta0, "best_single": single, "best_single_h": "lam=0"}
    found = dataclasses.replace(report, matter=dataclasses.replace(report.matter, **scores, output_share=None))
    assert found.verdicts["matter"] == f"lam matters: right h 1, shuffled h 2{words}"


def test_a_loss_that_does_not_depend_on_h(trainer: Trainers) -> None:
    report = mip.diagnose(fitted(trainer, make(NoDial, optimizer=adam, hypernet=TRUNK), 30), DATA)
    assert report.kind == "unread"
    assert report.matter.right == pytest.approx(report.matter.shuffled)
    assert report.verdicts["matter"] == (
        f"the loss does not depend on lam: right h {report.matter.right:.4g}, shuffled h {report.matter.right:.4g}; "
        f"lam explains {report.matter.output_share:.1%} of the output's variation. So it should be for a noise draw; a "
        "dial must enter the loss, and not by what evaluation mode, in which this is, switches off, as dropout."
    )


def test_a_network_that_ignores_h(trainer: Trainers) -> None:
    report = mip.diagnose(fitted(trainer, make(Factor, optimizer=adam, hypernet=TRUNK), 30), DATA)
    assert report.kind == "ignored"
    assert report.matter.reads_h is True
    assert report.verdicts["matter"].startswith("the network ignores lam: right h ")


def test_a_dead_hypernetwork(trainer: Trainers) -> None:
    model = make(Blend, optimizer=adam, hypernet={**TRUNK, "init": "zero"})
    model.hypernet.scaling.scale.zero_()
    report = mip.diagnose(fitted(trainer, model, 2), DATA)
    assert report.kind == "dead"
    assert report.verdicts["matter"] == (
        "the hypernetwork is dead: delta(h) is 0 for every h, and no gradient reaches it (a zero head and a zero "
        "scale?)."
    )
    assert report.verdicts["gradients"] == "no gradient reaches the hypernetwork."
    assert report.matter.right == pytest.approx(report.matter.shuffled, rel=1e-6)
    assert report.matter.right == pytest.approx(report.matter.theta0, rel=1e-6)


def test_a_hypernetwork_that_has_not_started_is_not_dead() -> None:
    report = mip.diagnose(make(Blend, hypernet={**TRUNK, "init": "zero"}), DATA)
    assert report.kind == "constant"
    assert report.verdicts["matter"] == "the hypernetwork does nothing so far: delta(h) is 0 for every h."


@pytest.mark.parametrize("residual", [True, False])
def test_a_proportional_hypernetwork(trainer: Trainers, residual: bool) -> None:
    model = make(Blend, optimizer=adam, hypernet={**TRUNK, "encoding": "none", "residual": residual})
    report = mip.diagnose(fitted(trainer, model, 3), DATA)
    assert report.at_init is not None
    assert report.at_init.exponent == pytest.approx(1, abs=1e-4)
    assert report.verdicts["magnitude"].startswith("proportional: ||delta(h)|| goes as ||h|| to the power 1.00 at init")
    assert report.verdicts["magnitude"].endswith("Small h hardly train: encoding='mip' makes all h alike.")
    assert (report.matter.theta0 is None) is not residual


def test_scores_are_those_of_plain_networks_of_each_h(blend: Any) -> None:
    report = mip.diagnose(blend, DATA, draws=3, batches=2)
    drawn = blend.space.sample(seed=0, step=0, n=3, strategy="sobol")["lam"]
    table = torch.tensor([[_blended(mip.materialize(blend, lam=w), lam) for w in drawn] for lam in drawn])
    assert report.matter.right == pytest.approx(float(table.diagonal().mean()), rel=1e-4)
    assert report.matter.shuffled == pytest.approx(float((table.sum() - table.trace()) / 6), rel=1e-4)
    assert report.matter.best_single == pytest.approx(float(table.mean(0).min()), rel=1e-4)
    alone = copy.deepcopy(blend)
    network = mip.dehypernetize(alone)
    assert report.matter.theta0 == pytest.approx(sum(_blended(network, lam) for lam in drawn) / 3, rel=1e-4)


@torch.no_grad()
def _blended(network: nn.Module, lam: Tensor) -> float:
    losses = []
    for x, y in DATA[:2]:
        out = network(x)
        losses.append((1 - lam) * ((out - y) ** 2).mean() + lam * ((out - y.flip(1)) ** 2).mean())
    return float(sum(losses) / 2)


def test_the_share_of_the_output_is_that_of_variances(blend: Any) -> None:
    report = mip.diagnose(blend, DATA, draws=4, batches=8)
    drawn = blend.space.sample(seed=0, step=0, n=4, strategy="sobol")["lam"]
    x = torch.cat([batch[0] for batch in DATA])
    with torch.no_grad():
        outputs = torch.stack([mip.materialize(blend, lam=lam)(x) for lam in drawn])
    of_h = outputs.var(0, correction=0).mean(0).sum()
    of_samples = outputs.mean(0).var(0, correction=0).sum()
    assert report.matter.output_share == pytest.approx(float(of_h / (of_h + of_samples)), rel=1e-4)


def test_each_of_several_components_is_shuffled_alone(trainer: Trainers) -> None:
    h = {"lam": mip.Uniform(0, 1), "phi": mip.Normal(0, 1)}
    report = mip.diagnose(fitted(trainer, make(Blend, h=h, optimizer=adam, hypernet=TRUNK), 60), DATA)
    assert report.kind == "matters"
    lam, phi = (report.matter.components[name] for name in ("lam", "phi"))
    assert lam is not None
    assert phi is not None
    assert report.matter.relative(lam) > 5 * abs(report.matter.relative(phi))
    lines = report.verdicts["matter"].split(" Worse with one component shuffled: ")
    worse = [(score - report.matter.right) / report.matter.right for score in (lam, phi)]
    assert lines[1] == f"lam {worse[0]:+.1%}, phi {worse[1]:+.1%}."
    shown = str(report).splitlines()
    assert any(line.split() == ["right", "but", "for", "lam", f"{lam:.5g}", f"{worse[0]:+.2%}"] for line in shown)


class FromBatch(Task):
    """h comes with the data."""

    def loss(self, batch: Any) -> Tensor:
        return ((self(batch["x"]) - batch["lam"]) ** 2).mean()


def test_batches_that_bring_their_h_are_compared_with_those_of_others() -> None:
    values = torch.linspace(0, 1, 6)
    data = [{"x": torch.randn(4, 3), "lam": lam} for lam in values]
    report = mip.diagnose(make(FromBatch, h_from_batch="lam", hypernet=TRUNK), data)
    assert report.draws == report.batches == 6
    assert report.matter.reads_h is None
    assert len(report.gradients.across_h["hypernet"].norms) == 6  # type: ignore[union-attr]


def test_gradients_are_those_of_the_loss(blend: Any) -> None:
    report = mip.diagnose(blend, DATA, draws=2, batches=3)
    assert report.gradients is not None
    drawn = blend.space.sample(seed=0, step=0, n=2, strategy="sobol")["lam"]

    def flat(lam: Any, batch: Any) -> Tensor:
        parameters = list(blend.hypernet.parameters())
        with blend.at(lam=lam):
            return torch.cat([g.flatten() for g in torch.autograd.grad(blend.loss(batch), parameters)])

    across_h = torch.stack([flat(lam, DATA[0]) for lam in drawn])
    across_data = torch.stack([flat(0.5, batch) for batch in DATA[:3]])
    for found, expected in ((report.gradients.across_h, across_h), (report.gradients.across_data, across_data)):
        scatter = found["hypernet"]
        assert scatter.norms == pytest.approx(expected.norm(dim=1).tolist(), rel=1e-4)
        assert scatter.mean_norm == pytest.approx(float(expected.mean(0).norm()), rel=1e-4)
        assert scatter.std == pytest.approx(float(expected.var(0, correction=0).sum().sqrt()), rel=1e-3)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_the_step_is_that_of_the_modules_optimizer(blend: Any, kind: Any) -> None:
    blend.optimizer = lambda parameters: kind(parameters, lr=1e-3)
    report = mip.diagnose(blend, DATA, draws=2, batches=1)
    lam = blend.space.sample(seed=0, step=0, n=2, strategy="sobol")["lam"][0]
    hyper, plain = copy.deepcopy(blend), mip.materialize(blend, lam=lam)
    start = torch.cat([p.detach().flatten() for p in plain.parameters()])
    optimizer = kind(hyper.parameters(), lr=1e-3)
    hyper.hypernet.match(optimizer)
    with hyper.at(lam=lam):
        hyper.loss(DATA[0]).backward()
    optimizer.step()
    moved = torch.cat([p.detach().flatten() for p in mip.materialize(hyper, lam=lam).parameters()]) - start
    x, y = DATA[0]
    own = kind(plain.parameters(), lr=1e-3)
    out = plain(x)
    ((1 - lam) * ((out - y) ** 2).mean() + lam * ((out - y.flip(1)) ** 2).mean()).backward()
    own.step()
    alone = torch.cat([p.detach().flatten() for p in plain.parameters()]) - start
    assert report.step is not None
    assert (report.step.optimizer, report.step.lr) == (kind.__name__, 1e-3)
    assert report.step.factor == pytest.approx(float(moved.norm() / alone.norm()), rel=1e-2)
    assert report.step.plain == pytest.approx(float(alone.square().mean().sqrt()) / 1e-3, rel=1e-2)


def test_a_warm_up_does_not_hide_the_step() -> None:
    model = make(
        Blend, optimizer=adam, lr_scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: step / 9)
    )
    report = mip.diagnose(model, DATA, draws=2, batches=1)
    assert report.step is not None
    assert report.step.lr == 1e-2


class InGroups(InInit):
    """A temperature with a large learning rate of its own stands first, then the network."""

    def __init__(self, lam: float = 1.0, lr: float = 1e-3) -> None:
        super().__init__(lam, lr)
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) / self.temperature

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([{"params": [self.temperature], "lr": 1.0}, {"params": [*self.net.parameters()]}], 1e-3)


def test_the_hypernetworks_step_is_that_of_the_group_with_the_network(trainer: Trainers) -> None:
    module = InGroups()
    plugin = mip.Hypernetize("net", h={"hparams.lam": mip.Uniform(0, 3)}, eval_grid=2, **TRUNK)
    trainer(callbacks=[plugin], max_epochs=1).fit(module, loader(), loader())
    report = mip.diagnose(module, DATA, metric="val_loss")
    assert report.step is not None
    assert 1 < report.step.factor < 3
    assert report.step.lr == 1e-3


def test_dead_trunk_units_are_counted() -> None:
    model = make(Blend, hypernet={"hidden_sizes": (5, 4), "activation": nn.ReLU})
    with torch.no_grad():
        model.hypernet.trunk[2].bias[:3] = -100
        model.hypernet.trunk[2].weight[3:] = 1
        model.hypernet.trunk[0].weight.abs_()
    report = mip.diagnose(model, DATA, draws=2, batches=1)
    assert [(layer.layer, layer.units, layer.dead) for layer in report.trunk] == [("1", 5, 0), ("3", 4, 3)]
    assert report.verdicts["trunk"] == "3 of 9 trunk units have the same value at all h (3 in 3)."


def test_tensors_whose_scale_is_off_are_named() -> None:
    model = make(Blend, hypernet=TRUNK)
    with torch.no_grad():
        model.primary.first.bias *= 1e-3  # as biases are
        model.primary.first.weight *= 1e-3
        model.primary.last.weight *= 30
    found = mip.diagnose(model, DATA, draws=2, batches=1)
    assert list(found.off_scale) == ["first.weight", "last.weight"]
    assert found.off_scale["first.weight"].startswith("delta is ")
    assert found.off_scale["last.weight"].endswith(" times as large as at a usual initialisation")
    assert found.verdicts["scale"].startswith("2 of 4 generated tensors are off: first.weight: delta is ")


def test_the_plug_ins_dial_is_set_for_the_loss(trainer: Trainers) -> None:
    module = InInit(lr=0.01)
    plugin = mip.Hypernetize("net", h={"hparams.lam": mip.Uniform(0, 3)}, eval_grid=2, **TRUNK)
    trainer(callbacks=[plugin], max_epochs=40).fit(module, loader(), loader())
    report = mip.diagnose(module, DATA, metric="val_loss")
    assert report.matter.reads_h is True
    assert report.at_init is not None
    assert report.step is not None
    assert report.step.lr == 0.01
    assert module.hparams.lam == 0.25


def test_a_module_that_takes_its_steps_itself_is_scored_by_a_metric(trainer: Trainers) -> None:
    module = Manual()
    plugin = mip.Hypernetize("net", h={"lam": mip.Uniform(0, 1)}, eval_grid=2, **TRUNK)
    trainer(callbacks=[plugin], max_epochs=1).fit(module, loader(), loader())
    report = mip.diagnose(module, DATA, metric="val_loss")
    assert report.gradients is None
    assert report.verdicts["step"] == "left out: the module takes its optimizer steps itself."
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        mip.diagnose(module, DATA)
    assert str(caught.value) == (
        "Manual takes its optimizer steps itself, so its training_step is not run here; name a metric that its "
        "validation_step logs: diagnose(model, dataloader, metric='val_loss')."
    )


def test_a_metric_may_be_better_where_it_is_larger(trainer: Trainers) -> None:
    model = fitted(trainer, make(Factor, optimizer=adam, hypernet=TRUNK), 1)
    low, high = (mip.diagnose(model, DATA, metric=m, mode=k) for m, k in (("val_loss", "min"), ("val_score", "max")))
    assert low.matter.best_single == -high.matter.best_single
    assert low.matter.gap == pytest.approx(high.matter.gap)


def plain() -> tuple[nn.Module, mip.HyperNetwork]:
    torch.manual_seed(1)
    net = Net()
    return net, mip.hypernetize(net, {"lam": mip.Uniform(0, 1)}, **TRUNK)


def square(net: nn.Module, batch: Any, h: Any) -> Tensor:
    return ((net(batch[0]) - h["lam"]) ** 2).mean()


def test_a_network_without_lightning_takes_its_loss() -> None:
    net, _ = plain()
    report = mip.diagnose(net, DATA, loss=square, optimizer=adam)
    assert report.module == "Net"
    assert report.matter.reads_h is True
    assert report.step is not None
    assert report.step.optimizer == "Adam"


def test_a_hypernetwork_that_was_given_has_no_known_start() -> None:
    shapes = {name: parameter.shape for name, parameter in Net().named_parameters()}
    model = make(Blend, hypernet=mip.HyperNetwork({"lam": mip.Uniform(0, 1)}, shapes))
    report = mip.diagnose(model, DATA, draws=2, batches=1)
    assert report.at_init is None
    assert report.left_out["at_init"] == (
        "the hypernetwork was given as a module, or is a copy, so how it was made is not known."
    )


def test_the_start_of_a_function_is_known() -> None:
    model = make(Blend, hypernet=lambda space, shapes: mip.HyperNetwork(space, shapes, encoding="none"))
    report = mip.diagnose(model, DATA, draws=2, batches=1)
    assert report.at_init is not None
    assert report.at_init.exponent == pytest.approx(1, abs=1e-4)


def test_a_network_without_an_optimizer_is_told_how_to_give_one() -> None:
    report = mip.diagnose(plain()[0], DATA, loss=square, draws=2, batches=1)
    assert report.verdicts["step"] == (
        "left out: ValueError: Net makes no optimizer in configure_optimizers; give one, such as "
        "optimizer=torch.optim.Adam."
    )


class Traces(Blend):
    """Draws random numbers, keeps the loss with its graph, and writes to that of the step before."""

    last: Tensor | None = None

    def loss(self, batch: Any) -> Tensor:
        if self.last is not None:
            self.last.detach().zero_()
        self.last = super().loss(batch) + 0.1 * torch.rand(())
        return self.last


def test_the_module_stays_as_it_is(trainer: Trainers) -> None:
    model = fitted(trainer, make(Traces, hypernet=TRUNK), 1)
    model.primary.first.eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    last, number, h, seed = model.last, model.last.item(), model.h["lam"], torch.get_rng_state()
    one, two = mip.diagnose(model, DATA), mip.diagnose(model, DATA)
    assert one.to_json() == two.to_json()
    assert all(torch.equal(now, before[name]) for name, now in model.state_dict().items() if isinstance(now, Tensor))
    assert [m.training for m in model.modules()] == modes
    assert model.last is last
    assert last.item() == number
    assert torch.equal(model.h["lam"], h)
    assert torch.equal(torch.get_rng_state(), seed)


@pytest.fixture
def report() -> Diagnosis:
    return mip.diagnose(make(Blend, optimizer=adam, hypernet=TRUNK), DATA, draws=2, batches=2)


def test_the_text_has_a_line_per_verdict_and_a_row_per_tensor(report: Diagnosis) -> None:
    lines = str(report).splitlines()
    assert lines[0] == "Blend: lam ~ Uniform(low=0, high=1, endpoints=0.0); 2 draws of h, 2 batches"
    firsts = [line.split()[0] for line in lines if line.split()]
    assert [first for first in firsts if first in report.verdicts] == list(report.verdicts)
    assert [first for first in firsts if first in report.now.names] == report.now.names
    assert max(map(len, lines)) <= 110


def test_the_json_holds_all_numbers_and_the_verdicts(report: Diagnosis) -> None:
    held = json.loads(report.to_json())
    assert held["kind"] == report.kind
    assert held["verdicts"] == report.verdicts
    assert held["now"]["delta"] == report.now.delta.tolist()
    assert held["now"]["exponent"] == report.now.exponent
    assert held["step"]["tensors"].keys() == set(report.now.names)


def test_the_report_is_saved_as_text_json_and_figure(report: Diagnosis, tmp_path: Path) -> None:
    files = report.save(tmp_path / "new")
    assert [file.name for file in files] == ["diagnosis.txt", "diagnosis.json", "diagnosis.png"]
    assert files[0].read_text() == f"{report}\n"
    assert files[2].read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_no_figure(
    report: Diagnosis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("lightning_mip.diagnosis.figure", "lightning_mip.magnitude_figure"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert [file.suffix for file in report.save(tmp_path)] == [".txt", ".json"]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, -1.0])
def test_an_exponent_is_that_of_a_power_law(power: float) -> None:
    size = torch.linspace(0.1, 1, 7)
    assert exponent(size, 3 * size**power) == pytest.approx(power, abs=1e-5)


def test_there_is_no_exponent_where_nothing_varies() -> None:
    assert exponent(torch.ones(5), torch.rand(5)) is None
    assert exponent(torch.linspace(0, 1, 5), torch.zeros(5)) is None


def _diagnose(**arguments: Any) -> Callable[[], Any]:
    return lambda: mip.diagnose(**{"module": make(Factor), "dataloader": DATA, **arguments})


class NoLoss(Task):
    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        return None


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda: mip.diagnose(Net(), DATA),
            "Net is not hypernetized; call mip.hypernetize on it first.",
        ),
        (
            lambda: mip.diagnose(plain()[0], DATA),
            "Net has no training step of one h, so give its loss: diagnose(module, dataloader, loss=lambda module, "
            "batch, h: ...).",
        ),
        (
            lambda: mip.diagnose(plain()[0], DATA, loss=square, metric="val_loss"),
            "metric is 'val_loss', but Net has no validation_step of one h; leave metric out.",
        ),
        (_diagnose(dataloader=[]), "dataloader has no batches, expected at least one."),
        (_diagnose(draws=0), "draws is 0, expected at least 1."),
        (_diagnose(batches=0), "batches is 0, expected at least 1."),
        (_diagnose(mode="low"), "mode is 'low', expected 'min' or 'max'."),
        (
            _diagnose(metric="val_acc"),
            "metric is 'val_acc', but validation_step logs no such value; it logs val_loss, val_score.",
        ),
        (_diagnose(module=make(NoLoss)), "The loss is None, expected a tensor with one number."),
        (
            _diagnose(
                module=make(FromBatch, h_from_batch="lam", per_sample=True),
                dataloader=[{"x": torch.ones(2, 3), "lam": torch.tensor([0.1, 0.2])}],
            ),
            "h_from_batch gives one h per sample, but diagnose runs whole batches at one h; give a dataloader with "
            "batch_size=1, or one whose batches share an h.",
        ),
    ],
)
def test_messages(act: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        act()
    assert str(caught.value) == message
