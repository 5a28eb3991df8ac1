"""Tile sizes from a target's description: vectors, registers and caches decide, in one place."""

from graphc.backends.targets import Target

WIDEST = 4
"""Most vectors of output channels that one register tile spans."""


def channel_block(target: Target, channels: int) -> int:
    """How many output channels lie next to each other in packed weights: whole vectors, at most `WIDEST`, little waste."""
    width = max(1, target.lanes(32))
    vectors = -(-channels // width)
    return width * next(n for n in (WIDEST, 2, 1) if n == 1 or vectors % n == 0)


def columns_in_tile(target: Target, columns: int, block: int) -> int:
    """How many output columns a register tile spans: accumulators, one vector row of weights and a broadcast fit the registers.

    Of the widths that fit, the one whose tiles cost least: a multiply-add unit pair retires two vectors a cycle, two
    loads a cycle feed it, and fewer than eight accumulators leave its latency (4 cycles) showing.
    """
    vectors = max(1, block // max(1, target.lanes(32)))
    widest = max(1, (target.vector_registers - vectors - 1) // vectors)

    def cycles(width: int) -> float:
        return max(width * vectors / 2, (width + vectors) / 2, 4.0)

    def total(width: int) -> float:
        whole, rest = divmod(columns, width)
        return whole * cycles(width) + (cycles(rest) if rest else 0.0)

    return min(range(1, min(widest, columns) + 1), key=lambda width: (total(width), -width))
