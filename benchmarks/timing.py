"""Times of several steps, run in turn in one process, so that whatever else the machine does meets all of them."""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def interleaved(
    steps: Mapping[Key, Callable[[], object]], rounds: int, title: str = "", seed: int = 0
) -> dict[Key, list[float]]:
    """Milliseconds of each step in each round.

    In a round every step has one turn, in an order drawn anew. A turn is two runs of which the second is timed: the
    first brings back into the caches what the others have pushed out, as in a training of this one alone.

    Args:
        steps: name -> function to time.
        rounds: how many; one more goes before them, untimed.
        title: what the progress line says.
        seed: of the order.
    """
    times: dict[Key, list[float]] = {key: [] for key in steps}
    order, shuffle = list(steps), random.Random(seed).shuffle
    begin = time.perf_counter()
    for done in range(rounds + 1):
        shuffle(order)
        for key in order:
            steps[key]()
            elapsed = milliseconds(steps[key])
            if done:
                times[key].append(elapsed)
        _progress(title, done, rounds, time.perf_counter() - begin)
    return times


def milliseconds(run: Callable[[], object]) -> float:
    """Wall time of one run."""
    begin = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - begin)


def median(times: list[float]) -> float:
    """The middle one."""
    return statistics.median(times)


def lower_quartile(times: list[float]) -> float:
    """A quarter is faster: less disturbed by others on the machine than the median."""
    return statistics.quantiles(times, n=4, method="inclusive")[0] if len(times) > 1 else times[0]


def ratio_of_rounds(times: list[float], floor: list[float]) -> float:
    """Median over the rounds of time / floor's time in the same round."""
    return statistics.median(time / other for time, other in zip(times, floor, strict=True))


def ratio_of_quartiles(times: list[float], floor: list[float]) -> float:
    """Lower quartile over the floor's."""
    return lower_quartile(times) / lower_quartile(floor)


def _progress(title: str, done: int, rounds: int, seconds: float) -> None:
    if done % max(1, rounds // 10) == 0 or done == rounds:
        print(f"{title}: round {done} of {rounds}, {seconds:.0f} s", file=sys.stderr, flush=True)
