"""Cycles that a contraction should take on a target: what decides between ways to compute one thing (no TVM).

A model of one core: register tiles (`tiles.tile_cycles`) for the arithmetic, and the stream of weights beside them.
Ways that replace this one (Winograd's filtering, skipping zeros) state their own cycles in its terms, and the fewest
win; the build's report names the decision.
"""

from dataclasses import dataclass

from graphc.backends.targets import Target
from graphc.backends.tiles import channel_block, tile_cycles

STREAM = 4.0
"""Bytes of weights that arrive per cycle: a network's weights do not stay in a cache between its runs."""
AMX_PRODUCTS = 350.0
"""Products of 8 bits that matrix tiles add up per cycle in kernels as they are (the unit itself: 1024). ResNet-50 in 8
bits takes as long with dense weights on tiles as with 75 % zeros skipped by vectors."""
CALL = 1000.0
"""Cycles of one more kernel: its call, its first misses."""


@dataclass(frozen=True, slots=True)
class Contraction:
    """Sums over `depth` inputs for each of `rows` x `columns` output positions and `filters` outputs.

    A vector instruction adds up `step` inputs of `bytes` bytes each; `amx`: matrix tiles do.
    """

    rows: int
    columns: int
    depth: int
    filters: int
    step: int = 1
    bytes: int = 4
    amx: bool = False


def direct(work: Contraction, target: Target, pace: float = 1.0) -> float:
    """Cycles of the direct sum: one register tile after the other along the rows.

    `pace`: cycles of the instruction that multiplies, in those of a multiply-add.
    """
    if work.amx:
        return work.rows * work.columns * work.depth * work.filters * work.bytes / AMX_PRODUCTS
    block = channel_block(target, work.filters)
    steps = -(-work.depth // work.step) * -(-work.filters // block)
    arithmetic = pace * work.rows * tile_cycles(target, work.columns, block)[0] * steps
    return max(arithmetic, work.bytes * work.step * steps * block / STREAM)
