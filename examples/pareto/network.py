"""The primary network: shared convolutions, and a head for each of two digits."""

from __future__ import annotations

from torch import Tensor, nn


class TwoHeads(nn.Module):
    """Two convolutions, a 4 x 4 adaptive pool, a shared linear layer, and two linear heads.

    So narrow that the two tasks have to share it, with LeakyReLU because a few dead units would be most of them.
    """

    def __init__(self, width: int = 4, hidden: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.shared = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.LeakyReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.LeakyReLU(),
            nn.AdaptiveMaxPool2d(4),
            nn.Flatten(),
            nn.Linear(2 * width * 16, hidden),
            nn.LeakyReLU(),
        )
        self.left, self.right = nn.Linear(hidden, classes), nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.shared(x)
        return self.left(features), self.right(features)
