"""Multi-MNIST: two digits in one image, one at the left top and one at the right bottom."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from examples.bayesian_digits.data import MNIST, Images, resize


class MultiMNIST(MNIST):
    """Pairs of MNIST digits laid over each other; labels (N, 2) are left-top, right-bottom.

    Each digit of a part of MNIST is once the left-top one and once the right-bottom one.

    Args:
        root: Of MNIST, as for `MNIST`.
        batch_size: Images per batch.
        image_size: Side to which the images are averaged down, after the digits were laid over each other; None keeps
            36 x 36.
        seed: Fixes the pairs, and the validation split as in `MNIST`.
        val_size: As in `MNIST`.
        download: As in `MNIST`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        batch_size: int = 128,
        image_size: int | None = None,
        seed: int = 0,
        val_size: int = 5000,
        download: bool = True,
    ) -> None:
        super().__init__(root, batch_size, image_size, seed, val_size, download)
        # The digits keep their size; `side` is that of the pair.
        self.side, self.image_size = image_size, None

    def setup(self, stage: str | None = None) -> None:
        if self.parts:
            return
        super().setup(stage)
        generator = torch.Generator().manual_seed(self.seed)
        for name, part in self.parts.items():
            other = torch.randperm(len(part), generator=generator)
            images = resize(overlaid(part.images, part.images[other]), self.side)
            self.parts[name] = Images(images, torch.stack([part.labels, part.labels[other]], 1), highest=255)


def overlaid(first: Tensor, second: Tensor) -> Tensor:
    """Images (N, S, S) at the left top and the right bottom of larger ones: 36 x 36 for MNIST's 28 x 28.

    Where both have ink the darker counts.
    """
    count, side = first.shape[:2]
    offset = 2 * side // 7
    canvas = first.new_zeros(count, side + offset, side + offset)
    canvas[:, :side, :side] = first
    canvas[:, offset:, offset:] = torch.maximum(canvas[:, offset:, offset:], second)
    return canvas
