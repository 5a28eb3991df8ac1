"""Tile sizes from a target's description: vectors, registers and caches decide, in one place."""

from graphc.backends.targets import Target

WIDEST = 4
"""Most vectors of output channels that one register tile spans."""


def channel_block(target: Target, channels: int) -> int:
    """How many output channels lie next to each other in packed weights: whole vectors, at most `WIDEST`, little waste."""
    width = max(1, target.lanes(32))
    vectors = -(-channels // width)
    return width * next(n for n in (WIDEST, 2, 1) if n == 1 or vectors % n == 0)
