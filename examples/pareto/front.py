"""How good a set of trade-offs is."""

from __future__ import annotations

from collections.abc import Sequence


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """The area that points, of which less is better on both axes, dominate up to a reference point.

    Points that are no better than the reference on both axes add nothing.
    """
    area, lowest = 0.0, reference[1]
    for x, y in sorted(points):
        if x < reference[0] and y < lowest:
            area += (reference[0] - x) * (lowest - y)
            lowest = y
    return area
