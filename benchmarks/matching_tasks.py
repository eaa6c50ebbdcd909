"""Networks and data of the study of update matching: digits, with labels that depend on h or do not."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import lightning_mip as mip
from examples.bayesian_digits.data import resize
from examples.common.arrays import read

SIDE, CLASSES = 14, 10
SHIFTS = 4


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, 14, 14) of mean 0 and variance 1, and labels."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def load(data: Path, train: int = 4000, test: int = 2000) -> Digits:
    """Take the first images of MNIST's training and validation part."""
    file = read(data, "mnist.npz")
    images, labels = torch.as_tensor(file["x_train"]), torch.as_tensor(file["y_train"]).long()
    parts = [torch.as_tensor(file[name]).long()[:size] for name, size in (("train_idx", train), ("val_idx", test))]
    x = [resize(images[index], SIDE).unsqueeze(1).float() for index in parts]
    mean, std = x[0].mean(), x[0].std()
    return Digits((x[0] - mean) / std, labels[parts[0]], (x[1] - mean) / std, labels[parts[1]])


class Residual(nn.Module):
    """A convolution with a way around it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).relu()


def _norm(kind: str, width: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(width, track_running_stats=False)  # statistics of the batch: of the h in force
    return nn.GroupNorm(4, width) if kind == "group" else nn.Identity()


def cnn(depth: int = 12, kind: str = "plain", width: int = 16) -> nn.Module:
    """``depth`` convolutions and a linear layer.

    Args:
        depth: number of convolutions; the second one and the middle one halve the image.
        kind: ``plain`` (no norm layers), ``residual``, ``batch`` or ``group``.
        width: channels.
    """
    layers: list[nn.Module] = []
    channels = 1
    for index in range(depth):
        stride = 2 if index in (1, depth // 2) else 1
        if kind == "residual" and stride == 1 and index:
            layers.append(Residual(width))
        else:
            layers += [nn.Conv2d(channels, width, 3, stride, 1), _norm(kind, width), nn.ReLU()]
        channels = width
    return _initialized(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)))


def vgg16(width: int = 8) -> nn.Module:
    """The layers of VGG-16, 13 convolutions and 3 linear ones, with ``width`` channels where it has 64."""
    layers: list[nn.Module] = []
    channels = 1
    for index, (count, factor) in enumerate([(2, 1), (2, 2), (3, 4), (3, 8), (3, 8)]):
        for _ in range(count):
            layers += [nn.Conv2d(channels, factor * width, 3, 1, 1), nn.ReLU()]
            channels = factor * width
        if index < 3:  # 14 -> 7 -> 3 -> 1: the last two would halve a single pixel
            layers.append(nn.MaxPool2d(2))
    hidden = 8 * width
    layers += [nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
    return _initialized(nn.Sequential(*layers, nn.Linear(hidden, CLASSES)))


def _initialized(net: nn.Module) -> nn.Module:
    """Kaiming's initialisation, without which the deep ones do not train as plain networks either."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return net


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{f"cnn{depth}": lambda depth=depth: cnn(depth) for depth in (3, 4, 8, 12, 16, 19)},
    **{f"cnn12 {kind}": lambda kind=kind: cnn(12, kind) for kind in ("residual", "batch", "group")},
    "vgg16": vgg16,
}


def shifted(labels: Tensor, h: Sequence[Tensor]) -> Tensor:
    """Add to each digit what ``h`` says, a task in which h is everything.

    One component in [0, 1] adds 0 to 3; of several, each that is above its middle adds an odd number of its own.
    """
    values = [float(value) for value in h]
    if len(values) == 1:
        return (labels + min(int(values[0] * SHIFTS), SHIFTS - 1)) % CLASSES
    return (labels + sum((2 * i + 1) * (value > 0.5) for i, value in enumerate(values))) % CLASSES


def midpoints(space: mip.HSpace) -> list[dict[str, Tensor]]:
    """The middle of each region of h with a shift of its own; few of them for many components."""
    if len(space) == 1:
        return [dict.fromkeys(space, torch.tensor((k + 0.5) / SHIFTS)) for k in range(SHIFTS)]
    corners = itertools.islice(itertools.product((0.25, 0.75), repeat=len(space)), 8)
    return [dict(zip(space, map(torch.tensor, corner), strict=True)) for corner in corners]
