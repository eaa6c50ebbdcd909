"""Ways to give each sample of a batch its own h, for the ConvNet: this package's, and those written by hand.

By hand means: generate the weights of all h at once, then run the primary with them, by a grouped convolution or in a
loop. Both give the outputs that ``per_sample=True`` gives.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_mip as mip
from benchmarks.primaries import ConvNet
from benchmarks.training import make_optimizer

Step = Callable[[tuple[Tensor, Tensor]], Tensor]
# Makes a hypernetwork for a space and shapes.
Maker = Callable[[mip.HSpace, dict[str, torch.Size]], mip.HyperNetwork]


class Classifier(mip.HyperLightningModule):
    """This package's own way; its steps are taken by hand, without a Trainer."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)


def package_step(net: ConvNet, space: mip.HSpace, optimizer: str, hypernet: Maker, **draws: Any) -> Step:
    """A step of a HyperLightningModule with ``per_sample`` or ``draws_per_batch``, as `SampleH` leads it."""
    module = Classifier(net, space, hypernet=hypernet, **draws)
    optimize, count = make_optimizer(optimizer, module.parameters()), itertools.count()

    def step(batch: tuple[Tensor, Tensor]) -> Tensor:
        optimize.zero_grad()
        module.start_batch(space.sample(seed=0, step=next(count), n=module.draws_of(batch)))
        loss = module.training_step(batch, 0)
        loss.backward()
        module.end_batch()
        optimize.step()
        return loss.detach()

    return step


def manual_step(
    net: ConvNet,
    space: mip.HSpace,
    optimizer: str,
    hypernet: Maker,
    run: Callable[[nn.Module, Mapping[str, Tensor], Tensor], Tensor],
) -> Step:
    """A step with the weights of every sample's h, generated at once, and ``run`` by hand."""
    shell = copy.deepcopy(net)  # without hooks
    theta0 = dict(net.named_parameters())
    shapes = {name: parameter.shape for name, parameter in theta0.items()}
    hyper = mip.hypernetize(net, space, hypernet=hypernet(space, shapes))
    optimize, count = make_optimizer(optimizer, [*net.parameters(), *hyper.parameters()]), itertools.count()

    def step(batch: tuple[Tensor, Tensor]) -> Tensor:
        optimize.zero_grad()
        x, y = batch
        deltas = hyper(space.sample(seed=0, step=next(count), n=len(x)))
        weights = {name: theta0[name] + delta for name, delta in deltas.items()}
        loss = F.cross_entropy(run(shell, weights, x), y)
        loss.backward()
        optimize.step()
        return loss.detach()

    return step


def grouped(shell: nn.Module, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The ConvNet with the samples as groups of one large convolution."""
    count = len(x)

    def conv(x: Tensor, name: str) -> Tensor:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return F.conv2d(x, weight.flatten(0, 1), bias.flatten(), padding=weight.shape[-1] // 2, groups=count).relu()

    x = x.reshape(1, -1, *x.shape[2:])
    x = F.max_pool2d(conv(x, "conv1"), 2)
    x = F.max_pool2d(conv(x, "conv2"), 2)
    features = conv(conv(x, "conv3"), "conv4").mean((2, 3)).reshape(count, -1, 1)
    return torch.baddbmm(weights["linear.bias"].unsqueeze(-1), weights["linear.weight"], features).squeeze(-1)


def loop(shell: nn.Module, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The ConvNet on one sample after the other."""
    own = ({name: weight[i] for name, weight in weights.items()} for i in range(len(x)))
    return torch.cat([torch.func.functional_call(shell, one, (x[i : i + 1],)) for i, one in enumerate(own)])


def step_makers(batch_size: int, optimizer: str, hypernet: Maker) -> dict[str, Callable[[ConvNet], Step]]:
    """Name -> function that makes the step of a ConvNet; they all begin with the same weights if seeded alike."""
    space = mip.HSpace({"h": mip.Uniform(0, 1)})
    common = (space, optimizer, hypernet)

    def plain(net: ConvNet) -> Step:
        optimize = make_optimizer(optimizer, net.parameters())

        def step(batch: tuple[Tensor, Tensor]) -> Tensor:
            optimize.zero_grad()
            loss = F.cross_entropy(net(batch[0]), batch[1])
            loss.backward()
            optimize.step()
            return loss.detach()

        return step

    draws = [count for count in (2, 4, 8) if count <= batch_size]
    return {
        "plain": plain,
        "one h": lambda net: package_step(net, *common),
        **{f"draws_per_batch={k}": lambda net, k=k: package_step(net, *common, draws_per_batch=k) for k in draws},
        "per_sample=True": lambda net: package_step(net, *common, per_sample=True),
        "grouped convolution by hand": lambda net: manual_step(net, *common, grouped),
        "loop by hand": lambda net: manual_step(net, *common, loop),
    }
