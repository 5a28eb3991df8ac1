"""Timing an artifact beside its peers, fairly: interleaved runs on one machine, compared round by round.

Machines drift (clocks, neighbours), so contestants take turns: in every round each runs once untimed, which refills its
caches, then a few times timed. A round's figure is the mean of its timed runs; ratios are taken within a round.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

MIN_ROUNDS = 11
BLOCK = 0.005
"""Seconds of timed runs that a contestant gets per round, at least one run."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds per run, over the rounds. `low` and `high` are the 10th and the 90th percentile."""

    median: float
    minimum: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Timing":
        return cls(median(samples), min(samples), percentile(samples, 10), percentile(samples, 90))


def percentile(samples: Sequence[float], percent: float) -> float:
    """Linear interpolation between the two nearest order statistics."""
    ordered = sorted(samples)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def interleave(
    contestants: Mapping[str, Callable[[], object]], seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds per run of every contestant, one figure per round; entry i of each list belongs to round i.

    Runs for about `seconds` in all, and at least `MIN_ROUNDS` rounds. The order rotates from round to round.
    """
    blocks = {name: _block(run, clock) for name, run in contestants.items()}
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    end = clock() + seconds
    rounds = 0
    while rounds < MIN_ROUNDS or clock() < end:
        turn = rounds % len(names)
        for name in names[turn:] + names[:turn]:
            figures[name].append(_timed(contestants[name], blocks[name], clock))
        rounds += 1
    return figures


def _block(run: Callable[[], object], clock: Callable[[], float]) -> int:
    """How many runs fit a block. The first run, which may allocate, is not counted."""
    run()
    begin = clock()
    run()
    return max(1, int(BLOCK / max(clock() - begin, 1e-7)))


def _timed(run: Callable[[], object], times: int, clock: Callable[[], float]) -> float:
    run()
    begin = clock()
    for _ in range(times):
        run()
    return (clock() - begin) / times
