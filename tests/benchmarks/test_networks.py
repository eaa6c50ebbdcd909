"""What is measured: sizes of the networks, and that all variants run the network that they say."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lightning_mip as mip
from benchmarks import peers, per_sample
from benchmarks.primaries import PRIMARIES, ConvNet
from benchmarks.training import OPTIMIZERS, make_optimizer, stepper
from benchmarks.variants import VARIANTS
from examples.common.overlap import dice
from examples.common.unet import RescalingUNet

SPACE = mip.HSpace({"h": mip.Uniform(0, 1), "g": mip.Normal(0, 1)})


@pytest.mark.parametrize(
    ("name", "weights", "tensors"), [("conv", 61130, 10), ("resnet", 701466, 62), ("unet", 481745, 36)]
)
def test_sizes_are_those_of_earlier_tables(name: str, weights: int, tensors: int) -> None:
    parameters = list(PRIMARIES[name].make().parameters())
    assert (sum(p.numel() for p in parameters), len(parameters)) == (weights, tensors)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_changes_all_parameters(name: str, optimizer: str) -> None:
    primary = PRIMARIES["conv"]
    variant = VARIANTS[name](primary.make(), SPACE)
    before = [parameter.detach().clone() for parameter in variant.parameters]
    step = stepper(
        variant,
        make_optimizer(optimizer, variant.parameters),
        lambda net, batch, h: primary.loss(net(batch[0]), batch[1]),
    )
    assert step(primary.batch(2)).isfinite()
    assert all(not torch.equal(a, b) for a, b in zip(before, variant.parameters, strict=True))


def test_hyperlight_starts_from_the_same_weights_and_sees_the_position_of_h_in_its_prior() -> None:
    net = ConvNet()
    theta0 = torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
    variant = peers.hyperlight(copy.deepcopy(net), SPACE)
    biases = [parameter for parameter in variant.parameters if parameter.shape == theta0.shape]
    torch.testing.assert_close(biases[0].detach(), theta0)
    drawn = variant.draw(0)
    x = torch.randn(2, 1, 28, 28)
    with variant.at(drawn) as network:
        by_draw = network(x)
    with variant.at({name: drawn[name] for name in SPACE}) as network:
        torch.testing.assert_close(network(x), by_draw)
    assert SPACE.tensors({name: drawn[name] for name in SPACE})


def test_include_generates_a_part() -> None:
    net = ConvNet()
    part = VARIANTS["ours"](copy.deepcopy(net), SPACE, include="linear.*", hidden_sizes=(4, 4))
    paper = VARIANTS["ours_paper"](copy.deepcopy(net), SPACE, include="linear.*")
    sizes = [sum(p.numel() for p in variant.parameters) for variant in (part, paper)]
    assert 61130 + 4 * 650 < sizes[0] < 61130 + 5 * 650
    assert 61130 + 128 * 650 < sizes[1] < 61130 + 170 * 650


@pytest.mark.parametrize("run", [per_sample.grouped, per_sample.loop])
def test_by_hand_gives_what_each_h_gives(run: per_sample.Step) -> None:
    net = ConvNet()
    shell, x = copy.deepcopy(net), torch.randn(3, 1, 28, 28)
    hyper = mip.hypernetize(net, SPACE)
    h = SPACE.sample(seed=0, step=0, n=3)
    theta0 = dict(net.named_parameters())
    found = run(shell, {name: theta0[name] + delta for name, delta in hyper(h).items()}, x)
    for i in range(3):
        with mip.at(net, {name: value[i] for name, value in h.items()}):
            torch.testing.assert_close(found[i : i + 1], net(x[i : i + 1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.37, 0.5])
def test_rescaling_unet_keeps_the_size(factor: float) -> None:
    assert RescalingUNet(3, 2, (4, 4, 4))(torch.randn(1, 3, 12, 12), factor).shape == (1, 2, 12, 12)


def test_dice_leaves_out_classes_that_are_not_there() -> None:
    wanted = torch.tensor([[[1, 1], [0, 2]]])
    assert dice(wanted, wanted, 5) == 1
    assert dice(torch.tensor([[[1, 0], [0, 0]]]), wanted, 5) == pytest.approx((2 / 3 + 0) / 2)


def test_a_script_runs_from_the_root() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-m", "benchmarks.step_time", "--help"], cwd=root, capture_output=True)
    assert done.returncode == 0
