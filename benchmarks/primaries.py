"""The primary networks that are measured, with the batch and the loss of each.

Their sizes are fixed (and tested), so that tables of different versions speak of the same networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNet(nn.Module):
    """Four convolutions and a linear layer, no normalisation: 61,130 weights in 10 tensors."""

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 5, padding=2)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv4 = nn.Conv2d(64, 64, 3, padding=1)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv1(x).relu(), 2)
        x = F.max_pool2d(self.conv2(x).relu(), 2)
        x = self.conv4(self.conv3(x).relu()).relu()
        return self.linear(x.mean((2, 3)))


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


def resnet18(width: int = 16, classes: int = 10, small_images: bool = True) -> nn.Sequential:
    """The layers of a ResNet-18, of any width; at width 16 and for small images 701,466 weights in 62 tensors.

    Args:
        width: channels of the first stage.
        classes: outputs.
        small_images: begin with a 3 x 3 convolution and no pooling, instead of 7 x 7 with stride and pooling.
    """
    widths = [width, 2 * width, 4 * width, 8 * width]
    blocks, inputs = [], width
    for stage, outputs in enumerate(widths):
        blocks += [Block(inputs, outputs, 2 if stage else 1), Block(outputs, outputs, 1)]
        inputs = outputs
    if small_images:
        stem = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    else:
        stem = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class UNet(nn.Module):
    """A 2-D U-Net of four levels without normalisation: 481,745 weights in 36 tensors at base 16."""

    def __init__(self, base: int = 16, levels: int = 4) -> None:
        super().__init__()
        widths = [base * 2**level for level in range(levels)]
        self.down = nn.ModuleList(_two_convs(i, o) for i, o in zip([1, *widths], widths, strict=False))
        pairs = [*zip(widths[1:], widths, strict=False)][::-1]
        self.widen = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in pairs)
        self.up = nn.ModuleList(_two_convs(2 * o, o) for _, o in pairs)
        self.last = nn.Conv2d(base, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, convs in enumerate(self.down):
            x = convs(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for widen, convs in zip(self.widen, self.up, strict=True):
            x = convs(torch.cat([widen(x), skips.pop()], 1))
        return self.last(x)


def _two_convs(inputs: int, outputs: int) -> nn.Sequential:
    convs = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
    return nn.Sequential(convs[0], nn.LeakyReLU(), convs[1], nn.LeakyReLU())


@dataclass(frozen=True)
class Primary:
    """A network with the batch it is measured on.

    Attributes:
        make: builds the network.
        shape: of one input.
        batch_size: samples per step.
        classes: classes of a classifier; None if the target is an image like the input.
        rounds: rounds that give steady medians within a few minutes.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    batch_size: int
    classes: int | None
    rounds: int

    def batch(self, size: int | None = None) -> tuple[Tensor, Tensor]:
        """Random inputs and targets: the time of a step does not depend on the values."""
        size = size or self.batch_size
        x = torch.randn(size, *self.shape)
        return x, torch.randn_like(x) if self.classes is None else torch.randint(self.classes, (size,))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of a classifier, else mean squared error."""
        return F.mse_loss(output, target) if self.classes is None else F.cross_entropy(output, target)


PRIMARIES = {
    "conv": Primary(ConvNet, (1, 28, 28), 64, 10, rounds=150),
    "resnet": Primary(resnet18, (3, 32, 32), 32, 10, rounds=30),
    "unet": Primary(UNet, (1, 128, 128), 8, None, rounds=25),
}
