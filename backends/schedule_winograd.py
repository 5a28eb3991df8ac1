"""Winograd's filtering as two loop nests around the register tile of `schedule_contraction`.

    for task = row of tiles:                                          stage 1
      for tile, run of channels:
        for r: half[r][p_x] = B' x[r]                                 rows outside the input are zero
        for p_x: v[p_y, p_x][tile, run] = B' half[p_x]
    for task = (block of output channels, group of tiles):            stage 2
      for point: u[point] = v[point] * w[block, point]                acc[tiles][vectors] in registers
      for tile: y = epilogue(A' u A)                                  u, of one group and block, stays in the cache

B' and A' are numbers in the code. Points +-p share their products: for B' one row is e + p o, the other e - p o.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from tvm import tirx

from graphc.backends.anchor import Anchor
from graphc.backends.geometry import Rows
from graphc.backends.schedule_contraction import Contraction, held
from graphc.backends.statements import const, function, loop, row_of_tiles, sequence, spread, tasks, vector
from graphc.backends.targets import Target
from graphc.backends.tiles import columns_in_tile, winograd_group
from graphc.backends.winograd import Filtering
from graphc.ir import Array

DTYPE = "float32"
Values: TypeAlias = Sequence[Any]
"""One vector expression per element; None stands for zero."""


def schedule(anchor: Anchor, target: Target) -> Any:
    """The kernel of a convolution by Winograd's filtering, None for anything else."""
    return Winograd(anchor, target).build() if anchor.info["kind"] == "conv_winograd" else None


@dataclass(frozen=True)
class _Tiles:
    """Where the tiles of an anchor lie: `down` x `across` of them in each image."""

    filtering: Filtering
    batch: int
    down: int
    across: int
    begin: Sequence[int]

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> "_Tiles":
        filtering = Filtering(info["m"])
        return cls(filtering, info["input"][0], *filtering.tiles(info["output"]), info["begin"])

    @property
    def count(self) -> int:
        return self.batch * self.down * self.across

    def place(self, tile: Any) -> tuple[Any, Any, Any]:
        """(image, first output row, first output column) of a tile."""
        m = self.filtering.m
        return tile // (self.down * self.across), tile // self.across % self.down * m, tile % self.across * m


class _Transform:
    """Stage 1: x (N, H, W, C) into v (points, tiles, C)."""

    def __init__(self, x: Any, v: Any, tiles: _Tiles, lanes: int) -> None:
        self.x, self.v, self.tiles, self.lanes = x, v, tiles, lanes
        self.height, self.width, self.channels = (int(extent) for extent in x.shape[1:])

    def build(self) -> Any:
        return tasks(self.tiles.batch * self.tiles.down, self._row)

    def _row(self, row: Any) -> Any:
        """One row of tiles; those that reach the same of their columns share a loop."""
        size, m = self.tiles.filtering.size, self.tiles.filtering.m
        return row_of_tiles(
            Rows(1, self.tiles.across, size, m, 1, self.tiles.begin[1], self.width, 1),
            lambda column, _, reached: self._tile(row, column, [bool(tap) for tap in reached]),
        )

    def _tile(self, row: Any, column: Any, there: Sequence[bool]) -> Any:
        """Runs of whole vectors in a loop, then the channels that are left."""
        runs, left = divmod(self.channels, self.lanes)

        def run(channel: Any, lanes: int) -> Any:
            return self._run(row, column, there, channel, lanes)

        parts = [loop("run", 0, runs, lambda i: run(i * self.lanes, self.lanes))] if runs else []
        return sequence([*parts, *([run(const(runs * self.lanes), left)] if left else [])])

    def _run(self, row: Any, column: Any, there: Sequence[bool], channel: Any, lanes: int) -> Any:
        """B' d B of one run of channels: the rows of d first, then the columns of what that gives."""
        size, matrix = self.tiles.filtering.size, self.tiles.filtering.inputs
        half = tirx.decl_buffer((size * size * lanes,), DTYPE, "half", scope="local")
        places = [[vector((r * size + q) * lanes, lanes) for q in range(size)] for r in range(size)]
        channels = vector(channel, lanes)
        image, y, x = self.tiles.place(row * self.tiles.across + column)
        statements = [tirx.AllocBuffer(half)]
        for r, stored in enumerate(places):
            at = y + r - self.tiles.begin[0]
            given = [
                self.x[image, at, x + s - self.tiles.begin[1], channels] if here else None
                for s, here in enumerate(there)
            ]
            found = sequence(_stores(half, stored, _combined(matrix, given, lanes)))
            beyond = sequence(_stores(half, stored, [spread(const(0.0, DTYPE), lanes)] * size))
            statements.append(self._inside(r, at, found, beyond))
        tile = row * self.tiles.across + column
        for q in range(size):
            combined = _combined(matrix, [half[stored[q]] for stored in places], lanes)
            statements += [
                tirx.BufferStore(self.v, value, [const(p * size + q), tile, channels])
                for p, value in enumerate(combined)
            ]
        return sequence(statements)

    def _inside(self, r: int, at: Any, found: Any, beyond: Any) -> Any:
        """`found` where row `at` of the input, the r-th of a tile, is there."""
        first = r - self.tiles.begin[0]
        last = first + (self.tiles.down - 1) * self.tiles.filtering.m
        tests = ([at >= 0] if first < 0 else []) + ([at < self.height] if last >= self.height else [])
        return tirx.IfThenElse(tirx.all(*tests), found, beyond) if tests else found


class Winograd(Contraction):
    """Stage 2: v (points, tiles, C) times w (blocks, points, C, block), and back."""

    def __init__(self, anchor: Anchor, target: Target) -> None:
        info = anchor.info
        self.places = _Tiles.of(info)
        self.filtering, tiles = self.places.filtering, self.places.count
        self.group = winograd_group(target, tiles, info["block"], self.filtering.points)
        tile = columns_in_tile(target, self.group, info["block"], held(anchor, target))
        rows = Rows(-(-tiles // self.group), self.group, 1, 1, 1, 0, self.group, tile)
        super().__init__(anchor, target, rows, info["depth"], info["filters"])
        self.target = target
        self.v = tirx.decl_buffer((self.filtering.points, tiles, self.depth), DTYPE, "v")

    def build(self) -> Any:
        transform = _Transform(self.anchor.x, self.v, self.places, max(1, self.target.lanes(32))).build()
        count, split = self.tasks()
        nest = tasks(count, lambda task: self._row(*split(task)))
        return function(self.anchor.parameters, self.anchor.attributes, [transform, nest], [self.v])

    def weights_once(self) -> bool:
        """Whether the transformed weights are larger than v."""
        return self.filters > self.places.count

    def _row(self, row: Any, block: Any) -> Any:
        """One group of tiles times one block of weights; the last group may be smaller."""
        left = self.places.count - (self.rows.rows - 1) * self.group
        whole = self._products(row, block, self.group)
        if left == self.group:
            return whole
        return tirx.IfThenElse(row < self.rows.rows - 1, whole, self._products(row, block, left))

    def _products(self, row: Any, block: Any, tiles: int) -> Any:
        points = self.filtering.points
        u = tirx.decl_buffer((points * tiles * self.block,), DTYPE, "u", scope="local")
        rows = Rows(
            1, tiles, 1, 1, 1, 0, tiles, columns_in_tile(self.target, tiles, self.block, held(self.anchor, self.target))
        )

        def product(point: Any) -> Any:
            return row_of_tiles(rows, lambda first, count, _: self._tile_of(u, tiles, row, point, block, first, count))

        return sequence(
            [
                tirx.AllocBuffer(u),
                loop("point", 0, points, product),
                loop("tile", 0, tiles, lambda t: self._inverse(u, tiles, row, block, t)),
            ]
        )

    def _tile_of(self, u: Any, tiles: int, row: Any, point: Any, block: Any, first: Any, count: int) -> Any:
        """u[point] of `count` tiles: the register tile of `Contraction`."""
        acc = tirx.decl_buffer((count * self.block,), DTYPE, "acc", scope="local")
        places = [vector(i * self.lanes, self.lanes) for i in range(count * self.vectors)]
        begin = (point * tiles + first) * self.block
        kept = [vector(begin + i * self.lanes, self.lanes) for i in range(len(places))]
        return sequence(
            [
                tirx.AllocBuffer(acc),
                *_stores(acc, places, [spread(const(0.0, DTYPE), self.lanes)] * len(places)),
                self._depth(acc, row, block, first, point, 0, range(count)),
                *_stores(u, kept, [acc[place] for place in places]),
            ]
        )

    def x(self, row: Any, column: Any, kh: Any, kw: Any, c: Any) -> Any:
        return self.v[kh, row * self.group + column, c]

    def w(self, row: Any, block: Any, kh: Any, kw: Any, inner: list[Any]) -> Any:
        return self.anchor.weights[0][(block, kh, *inner)]

    def _inverse(self, u: Any, tiles: int, row: Any, block: Any, t: Any) -> Any:
        """A' u A of one tile and its epilogue, a vector of channels after the other."""
        return sequence([self._inverse_run(u, tiles, row, block, t, v) for v in range(self.vectors)])

    def _inverse_run(self, u: Any, tiles: int, row: Any, block: Any, t: Any, v: int) -> Any:
        size, m, matrix, lanes = self.filtering.size, self.filtering.m, self.filtering.outputs, self.lanes
        half = tirx.decl_buffer((m * size * lanes,), DTYPE, "half", scope="local")
        y = tirx.decl_buffer((m * m * lanes,), DTYPE, "y", scope="local")

        def product(point: int) -> Any:
            return u[vector(((point * tiles + t) * self.vectors + v) * lanes, lanes)]

        statements = [tirx.AllocBuffer(half), tirx.AllocBuffer(y)]
        for q in range(size):
            found = _powers(matrix, [product(p * size + q) for p in range(size)], lanes)
            statements += _stores(half, [vector((i * size + q) * lanes, lanes) for i in range(m)], found)
        for i in range(m):
            found = _powers(matrix, [half[vector((i * size + q) * lanes, lanes)] for q in range(size)], lanes)
            statements += _stores(y, [vector((i * m + j) * lanes, lanes) for j in range(m)], found)
        tile = row * self.group + t
        return sequence([*statements, *(self._finish(y, tile, block, i, j, v) for i in range(m) for j in range(m))])

    def _finish(self, y: Any, tile: Any, block: Any, i: int, j: int, v: int) -> Any:
        """The epilogue of output (i, j) of a tile, where the output is that large."""
        m, output = self.filtering.m, self.anchor.info["output"]
        image, *first = self.places.place(tile)
        at = [begin + offset for begin, offset in zip(first, (i, j), strict=True)]
        inside = [
            place < limit
            for place, limit, tiles, offset in zip(
                at, output, (self.places.down, self.places.across), (i, j), strict=True
            )
            if (tiles - 1) * m + offset >= limit
        ]

        def sums(_: int, lane: Any) -> Any:
            return y[(i * m + j) * self.lanes + lane]

        store = self.store([image, *at], block, 0, range(v, v + 1), sums)
        return tirx.IfThenElse(tirx.all(*inside), store, None) if inside else store

    def position(self, row: Any, column: Any, channel: Any) -> list[Any]:
        return [*row, channel]


def _stores(buffer: Any, places: Sequence[Any], values: Values) -> list[Any]:
    return [tirx.BufferStore(buffer, value, [place]) for place, value in zip(places, values, strict=True)]


def _combined(matrix: Array, values: Values, lanes: int) -> list[Any]:
    """matrix @ values. Neighbouring rows that differ in the signs of some terms are e + f o and e - f o."""
    results: list[Any] = []
    while len(results) < len(matrix):
        row, *others = matrix[len(results) :]
        if others and np.array_equal(abs(row), abs(others[0])):
            even, odd = (row + others[0]) / 2, (row - others[0]) / 2
            factor = odd[np.flatnonzero(odd)[-1]]
            e, o = _sum(even, values, lanes), _times(factor, _sum(odd / factor, values, lanes), lanes)
            results += [e + o, e - o]
        else:
            results.append(_sum(row, values, lanes))
    return results


def _powers(matrix: Array, values: Values, lanes: int) -> list[Any]:
    """matrix @ values, column j the powers of point j. Points +-p are added for even ones, subtracted for odd ones."""
    even: list[tuple[Array, Any]] = []
    odd: list[tuple[Array, Any]] = []
    columns = list(zip(matrix.T, values, strict=True))
    while columns:
        column, value = columns.pop(0)
        if columns and np.array_equal(abs(column), abs(columns[0][0])):
            other = columns.pop(0)[1]
            even.append((column, value + other))
            odd.append((column, value - other))
        else:
            even.append((column, value))
            odd.append((column, value))
    return [
        _sum([column[i] for column, _ in terms], [value for _, value in terms], lanes)
        for i, terms in enumerate((even, odd)[i % 2] for i in range(len(matrix)))
    ]


def _sum(factors: Sequence[float] | Array, values: Values, lanes: int) -> Any:
    """The sum of factor * value over the terms that are not zero, unit factors first."""
    terms = [(float(f), value) for f, value in zip(factors, values, strict=True) if f and value is not None]
    products = [_times(factor, value, lanes) for factor, value in sorted(terms, key=lambda term: term[0] != 1)]
    return sum(products[1:], products[0]) if products else spread(const(0.0, DTYPE), lanes)


def _times(factor: float, value: Any, lanes: int) -> Any:
    return value if factor == 1 else spread(const(float(factor), DTYPE), lanes) * value
