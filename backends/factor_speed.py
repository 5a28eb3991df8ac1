"""How fast thin layers should be beside the layer that they stand for: cycles of the model that kernels are chosen by.

A stage is the direct sum (`cycles.direct`), or Winograd's filtering where that would be taken. Stages of one channel
each are bound by their loads: a vector of results takes one of inputs per tap. Every stage starts threads, writes its
result and reads it again: CALL cycles, and the bytes of the intermediate at the rate of the level-2 cache. Results that
this cache does not hold are bound by memory, thin layers or not (measured: 64 -> 256 channels on 56x56, 3.2 MB, at half
the products 1.35 times as fast; 1.96 to 2.08 times where results stay in the cache).

The stages stay kernels of their own. Running both on some rows before the next, as one kernel would, was measured to
gain 0 to 3 % where the intermediate fits in the level-2 cache: it lies there anyhow. Where images are so large that it
does not, results do not fit either, and two kernels are not fast enough to be taken (tests/bench/RESULTS.md).
"""

from collections.abc import Sequence
from functools import partial
from math import prod

from graphc.backends.cycles import CALL, Contraction, direct
from graphc.backends.targets import Target
from graphc.backends.winograd import KERNEL, choose, cycles
from graphc.passes.protocol import Speed, Sums

INTERMEDIATE = 32.0
"""Bytes written and read again per cycle."""
STORES = 2.0
"""Bytes written to memory per cycle."""


def speed_on(targets: Sequence[Target]) -> Speed:
    """For a layer and those in its place: how many times as fast they should be, where they gain least."""
    return partial(_speed, targets)


def _speed(targets: Sequence[Target], dense: Sums, stages: Sequence[Sums]) -> tuple[float, str]:
    found = [(_cycles(dense, target) / _all(stages, target), target.id) for target in targets]
    return min(found, default=(float("inf"), ""))


def _all(stages: Sequence[Sums], target: Target) -> float:
    between = sum(8 * prod(stage.places) * stage.filters for stage in stages[:-1]) / INTERMEDIATE
    return sum(_cycles(stage, target) for stage in stages) + (len(stages) - 1) * CALL + between


def _cycles(sums: Sums, target: Target) -> float:
    result = 4 * prod(sums.places) * sums.filters
    return _products(sums, target) + (result / STORES if result > target.l2_bytes else 0.0)


def _products(sums: Sums, target: Target) -> float:
    rows, columns = prod(sums.places[:-1]), sums.places[-1]
    if sums.alone:
        return rows * columns * sums.taps * -(-sums.filters // max(target.lanes(32), 1))
    plain = direct(Contraction(rows, columns, sums.taps * sums.channels, sums.filters), target)
    if not sums.square or sums.taps != KERNEL**2:
        return plain
    layer = target, 1, (rows, columns), sums.channels, sums.filters
    filtering = choose(*layer)
    return plain if filtering is None else cycles(filtering, *layer)
