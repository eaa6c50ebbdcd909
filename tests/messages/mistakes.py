"""Mistakes whose texts are tested nowhere else: ``module.function: what is wrong`` -> the mistake, its error, its text.

All others are tested beside what they are about; `tests.messages.test_messages` finds those that are in neither place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Size, nn
from torchmetrics import MeanMetric

import lightning_mip as mip
from lightning_mip.checkpoints import CHILD, GIVEN_AGAIN, saved_hypernetwork
from lightning_mip.diagnosis.step_size import MakeOptimizer, step_size
from lightning_mip.diagnosis.subject import Subject
from lightning_mip.dial import parse_grid, parse_h
from tests.tasks import SMALL, Evaluated, Net, Task, loader, make

LAM = {"lam": mip.Uniform(0, 1)}
SPACE = mip.HSpace(LAM)

Mistake = tuple[Callable[[], object], type[BaseException], str]


class Metered(Evaluated):
    """Logs a torchmetrics object."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.mean = MeanMetric()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.mean.update(self.loss(batch))
        self.log("val_loss", self.mean)


class Unconfigured(Task):
    """Leaves its optimizer to somebody else."""

    def configure_optimizers(self) -> None:
        return None


class Silent(Evaluated):
    """Logs nothing in its test."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.loss(batch)


def one_step(kind: type[Task], optimizer: MakeOptimizer | None) -> object:
    return step_size(Subject(make(kind)), {"lam": torch.tensor(0.5)}, next(iter(loader())), optimizer, seed=0)


def hypernetwork(*names: str, size: int = 2) -> mip.HyperNetwork:
    return mip.HyperNetwork(LAM, {name: Size([size]) for name in names}, **SMALL)


def run_of_one_layer() -> None:
    """Of a network of four."""
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    mip.hypernetize(net, LAM, **SMALL)
    with mip.at(net, lam=0.5):
        net[0](torch.ones(1, 2)).sum().backward()


MISTAKES: dict[str, Mistake] = {
    "as_prior._from_config: an argument that there is not": (
        lambda: mip.HSpace({"lam": {"class_path": "Uniform", "init_args": {"lo": 0}}}),
        TypeError,
        "h['lam'] is {'class_path': 'Uniform', 'init_args': {'lo': 0}}, but Uniform.__init__() got an unexpected "
        "keyword argument 'lo'; Uniform takes low, high, endpoints.",
    ),
    "checkpoints._activation: not of torch": (
        lambda: saved_hypernetwork(
            {
                "state_dict": {f"{CHILD}._extra_state": {}},
                GIVEN_AGAIN: [],
                "hyper_parameters": {"hypernet": {"activation": "my_project.Swish"}},
            }
        ),
        ValueError,
        "The hypernetwork was made with activation my_project.Swish, which is not of torch.nn. Export from the module "
        "itself: export(module, h, ...), or, on the command line, with the run's --config.",
    ),
    "choose.choose: no draws": (
        lambda: mip.choose(make(Evaluated), loader(), "val_loss", "min", resamples=0),
        ValueError,
        "resamples is 0, expected at least 1.",
    ),
    "dial._by_name: no name": (
        lambda: parse_h(["0.3"], SPACE),
        ValueError,
        "--h 0.3: expected a value such as lam=0.5; the one component of h is lam.",
    ),
    "dial._by_name: a name that there is not": (
        lambda: parse_h(["lan=0.3"], SPACE),
        ValueError,
        "--h lan=0.3: h has no component 'lan'; its components are lam. Did you mean 'lam'?",
    ),
    "dial._values: no number of points": (
        lambda: parse_grid(["lam=0:1"], SPACE),
        ValueError,
        "--grid lam=0:1: expected lam=0:1:21 (low:high:points), lam=5 (points over its prior) or lam=at:0,0.5,1 "
        "(values); the one component of h is lam.",
    ),
    "dial._value: no number": (
        lambda: parse_h(["lam=much"], SPACE),
        ValueError,
        "--h lam=much: expected a value such as lam=0.5; the one component of h is lam.",
    ),
    "dial._value: too many numbers": (
        lambda: parse_h(["lam=0.1:0.9"], SPACE),
        ValueError,
        "--h lam=0.1:0.9: expected a value such as lam=0.5; the one component of h is lam.",
    ),
    "dial._told: outside of the prior": (
        lambda: parse_h(["lam=2"], SPACE),
        ValueError,
        "--h lam=2: h['lam'] = 2 is outside the support of its prior Uniform(low=0, high=1, endpoints=0.0).",
    ),
    "head_choice._as_kind: an argument that there is not": (
        lambda: mip.HyperNetwork(
            LAM, {"a": Size([2])}, head={"*": {"class_path": "Chunked", "init_args": {"sise": 8}}}
        ),
        ValueError,
        "head['*'] is {'class_path': 'Chunked', 'init_args': {'sise': 8}}, but Chunked.__init__() got an unexpected "
        "keyword argument 'sise'; Chunked takes size, embedding.",
    ),
    "hypernetize.injector: before a run": (
        lambda: mip.Hypernetize("net", h=LAM).injector,
        MisconfigurationException,
        "Hypernetize(target='net') has attached no hypernetwork yet; begin a run with it first: "
        "Trainer(callbacks=[...]).fit(module), validate or test.",
    ),
    "hypernetize._warn_of_batch_norm: more layers than are shown": (
        lambda: mip.hypernetize(nn.Sequential(*(nn.BatchNorm1d(2) for _ in range(7))), LAM, **SMALL),
        UserWarning,
        "Norm layers keep running statistics that mix over all h: 0, 1, 2, 3, 4 and 2 more. In evaluation they are "
        "right for no single h; use GroupNorm or track_running_stats=False, or estimate them anew at the chosen h by "
        "mip.materialize(..., recalibrate=dataloader).",
    ),
    "hypernetwork.set_extra_state: more tensors than are shown": (
        lambda: hypernetwork(*"abcd").load_state_dict(hypernetwork(*"abcd", size=3).state_dict()),
        ValueError,
        "The checkpoint is of another hypernetwork: generated tensor 'a' is (3,) in the checkpoint and (2,) here; "
        "generated tensor 'b' is (3,) in the checkpoint and (2,) here; generated tensor 'c' is (3,) in the checkpoint "
        "and (2,) here; and 1 more. Build the same one first.",
    ),
    "hypernetwork.set_extra_state: another order": (
        lambda: hypernetwork("a", "b").load_state_dict(hypernetwork("b", "a").state_dict()),
        ValueError,
        "The checkpoint is of another hypernetwork: its generated tensors come in another order, with 'b' where 'a' is "
        "here. Build the same one first.",
    ),
    "injection._check_used: more tensors than are shown": (
        run_of_one_layer,
        UserWarning,
        "No gradient came back to these generated weights in the first step: 1.weight, 1.bias, 2.weight, 2.bias, "
        "3.weight and 1 more. Either the loss does not depend on them (exclude= leaves them out), or the network "
        "copies them: slicing an nn.ParameterList in forward does; take its items one by one.",
    ),
    "step_size.step_size: a learning rate of 0": (
        lambda: one_step(Task, partial(torch.optim.SGD, lr=0.0)),
        ValueError,
        "SGD has learning rate 0, expected more; give another, such as optimizer=torch.optim.Adam.",
    ),
    "step_size._optimizers: none": (
        lambda: one_step(Unconfigured, None),
        ValueError,
        "Unconfigured makes no optimizer in configure_optimizers; give one, such as optimizer=torch.optim.Adam.",
    ),
    "subject.score: a torchmetrics object": (
        lambda: mip.diagnose(make(Metered), loader(), metric="val_loss"),
        ValueError,
        "metric is 'val_loss', which is a torchmetrics object, but diagnose needs a number per batch; log one, or "
        "leave metric out to use the loss.",
    ),
    "subject.check_loss: no training step": (
        lambda: mip.diagnose(mip.HyperLightningModule(Net(), LAM), loader()),
        ValueError,
        "HyperLightningModule has no training_step; give its loss, or a metric that its validation_step logs: "
        "diagnose(model, dataloader, metric='val_loss').",
    ),
    "sweep.grid_points: a name that there is not": (
        lambda: mip.sweep(make(Evaluated), loader(), {"lan": 3}),
        ValueError,
        "grid: h has no component 'lan'; its components are lam. Did you mean 'lam'?",
    ),
    "sweep.check_logs: a plain network in a test": (
        lambda: mip.sweep(Net(), loader(), 2, stage="test"),
        TypeError,
        "model is a Net, expected a LightningModule whose test_step logs metrics; for a plain network use mip.choose "
        "with a function as metric, or `with mip.at(network, h):`.",
    ),
    "sweep.evaluate: a test that logs nothing": (
        lambda: mip.sweep(make(Silent), loader(), 2, stage="test"),
        ValueError,
        "test_step of Silent logs nothing at an h, so there is no table; self.log in it.",
    ),
    "table.__getitem__: a metric that there is not": (
        lambda: mip.Sweep(SPACE, SPACE.grid(2), {"val_loss": torch.zeros(2)})["val_los"],
        KeyError,
        "The sweep has no metric 'val_los'; its metrics are val_loss.",
    ),
}
