"""The geometry of window kernels: rows of output columns, tiles of a row, which taps of a tile lie inside (no TVM)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

Pattern: TypeAlias = tuple[tuple[int, ...], ...]
"""For each tap across, which columns of a tile it reaches."""


@dataclass(frozen=True)
class Rows:
    """`rows` of `columns` output positions; a column reads the input at column * stride + tap * dilation - begin.

    That must be in [0, width) for the tap to count. A register tile spans `tile` columns.
    """

    rows: int
    columns: int
    taps: int
    stride: int
    dilation: int
    begin: int
    width: int
    tile: int

    def inside(self, column: int, tap: int) -> bool:
        """Whether a tap of an output column lies inside the input's width."""
        at = column * self.stride + tap * self.dilation - self.begin
        return 0 <= at < self.width

    def pattern(self, first: int, count: int) -> Pattern:
        """For each tap across, which columns of a tile it reaches."""
        return tuple(tuple(p for p in range(count) if self.inside(first + p, tap)) for tap in range(self.taps))

    def groups(self) -> Iterator[tuple[int, int, int, Pattern]]:
        """(first column, tiles, columns in each, what each tap reaches): neighbours that are alike share a loop."""
        tiles = [(first, min(self.tile, self.columns - first)) for first in range(0, self.columns, self.tile)]
        for (count, pattern), group in groupby(tiles, lambda tile: (tile[1], self.pattern(*tile))):
            alike = list(group)
            yield alike[0][0], len(alike), count, pattern


def matrix_number(matrices: Sequence[int], batch: Sequence[Any]) -> Any:
    """Which of the `matrices` belongs to an index of the result's batch."""
    number: Any = 0
    for extent, place in zip(matrices, batch[len(batch) - len(matrices) :], strict=True):
        number = number * extent + place if extent > 1 else number
    return number


def places(number: Any, extents: Sequence[int]) -> list[Any]:
    """The index along each of `extents` of element `number`, row by row."""
    found: list[Any] = []
    for extent in reversed(extents[1:]):
        found.append(number % extent)
        number = number // extent
    return [number, *reversed(found)]
