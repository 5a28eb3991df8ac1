"""Convolutions and matrix products as one loop nest around a register tile.

    for task = (row, block of output channels):                       one row of output positions
      for tile of `width` columns:
        acc[width][vectors] = 0                                       stays in registers
        for kh, kw, c:                                                taps inside the input only
          for p in width, v in vectors:  acc[p][v] += x[row, p, kh, kw, c] * w[block, kh, kw, c, v]
        y[row, p, block, v] = epilogue(acc[p][v])

Padding costs nothing: the loop over kh is clipped to the input, and the first and last tiles of a row are written out
with only the columns that lie inside. A 1x1 convolution of stride 1 is a product over all its positions at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from tvm import tirx

from graphc.backends.anchor import Anchor
from graphc.backends.dot import dot_product
from graphc.backends.dot_x86 import multiply_add
from graphc.backends.statements import VECTORIZED, const, function, loop, sequence, spread, tasks, vector
from graphc.backends.targets import Target
from graphc.backends.tiles import columns_in_tile


@dataclass(frozen=True)
class Geometry:
    """A contraction: `rows` of `columns` output positions, `filters` outputs in `blocks` of `block`, taps and depth.

    A column reads the input at column * stride + tap * dilation - begin, which must be in [0, width).
    """

    rows: int
    columns: int
    filters: int
    block: int
    depth: int
    kernel: tuple[int, int]
    stride: int
    dilation: int
    begin: int
    width: int
    tile: int

    @property
    def blocks(self) -> int:
        return -(-self.filters // self.block)

    def inside(self, column: int, tap: int) -> bool:
        """Whether a tap of an output column lies inside the input's width."""
        at = column * self.stride + tap * self.dilation - self.begin
        return 0 <= at < self.width

    def tiles(self) -> list[tuple[int, int]]:
        """(first column, columns) of each tile of a row."""
        return [(first, min(self.tile, self.columns - first)) for first in range(0, self.columns, self.tile)]

    def pattern(self, first: int, count: int) -> tuple[tuple[bool, ...], ...]:
        """For each tap across, which columns of a tile it reaches."""
        return tuple(tuple(self.inside(first + p, tap) for p in range(count)) for tap in range(self.kernel[1]))


def schedule(anchor: Anchor, target: Target) -> Any:
    """The kernel of a dense convolution or matrix product, None where the form is another."""
    if anchor.info["kind"] == "conv_dense" and len(anchor.info["kernel"]) == 2:
        return _Convolution(anchor, target).build()
    if anchor.info["kind"] == "matmul":
        return _Product(anchor, target).build()
    return None


class _Contraction:
    """Writes the nest; what differs between convolutions and products is where operands lie."""

    def __init__(self, anchor: Anchor, target: Target, geometry: Geometry) -> None:
        self.anchor, self.target, self.geometry = anchor, target, geometry
        self.dtype = str(anchor.accumulator.dtype)
        self.lanes = min(max(1, target.lanes(32)), geometry.block)
        self.vectors = geometry.block // self.lanes
        self.source = anchor.x
        self.step = int(anchor.info["step"])
        self.dot = dot_product(target, np.dtype(str(anchor.weights.dtype))) if self.step > 1 else None

    def x(self, row: Any, column: Any, kh: Any, kw: int, c: Any) -> Any:
        raise NotImplementedError

    def w(self, row: Any, block: Any, kh: Any, kw: Any, inner: list[Any]) -> Any:
        raise NotImplementedError

    def position(self, row: Any, column: Any, channel: Any) -> list[Any]:
        raise NotImplementedError

    def taps(self, row: Any) -> tuple[Any, Any]:
        """First row of the kernel that lies inside the input, and how many do."""
        return 0, self.geometry.kernel[0]

    def tasks(self) -> tuple[int, Any]:
        """(number of tasks, task -> (row, block)): weights outermost where they are larger than the input."""
        g = self.geometry
        weights = g.blocks * g.block * g.depth * g.kernel[0] * g.kernel[1]
        if weights > g.rows * g.columns * g.depth:
            return g.rows * g.blocks, lambda task: (task % g.rows, task // g.rows)
        return g.rows * g.blocks, lambda task: (task // g.blocks, task % g.blocks)

    def build(self) -> Any:
        count, split = self.tasks()
        nest = tasks(count, lambda task: self._row(*split(task)))
        nests, shared = ([self.anchor.pad, nest], [self.anchor.padded]) if self.source is not self.anchor.x else ([nest], [])
        return function(self.anchor.parameters, self.anchor.attributes, nests, shared)

    def _row(self, row: Any, block: Any) -> Any:
        """All tiles of one row; neighbours that reach the same columns share one loop."""
        g = self.geometry
        statements = []
        for (count, pattern), group in groupby(g.tiles(), lambda tile: (tile[1], g.pattern(*tile))):
            tiles = list(group)
            first, number = tiles[0][0], len(tiles)

            def body(t: Any, first: int = first, count: int = count, pattern: Any = pattern) -> Any:
                return self._tile(row, block, const(first) + t * g.tile, count, pattern)

            statements.append(loop("tile", 0, number, body))
        return sequence(statements)

    def _tile(self, row: Any, block: Any, first: Any, count: int, pattern: Sequence[Sequence[bool]]) -> Any:
        g = self.geometry
        acc = tirx.decl_buffer((count * g.block,), self.dtype, "acc", scope="local")
        zero = spread(const(0, self.dtype), self.lanes)
        statements = [tirx.AllocBuffer(acc)]
        statements += [tirx.BufferStore(acc, zero, [vector(i * self.lanes, self.lanes)]) for i in range(count * self.vectors)]
        low, taps = self.taps(row)
        everywhere = all(all(reached) for reached in pattern)
        if everywhere:
            def across(kh: Any) -> Any:
                return loop("kw", 0, g.kernel[1], lambda kw: self._depth(acc, row, block, first, kh, kw, range(count)))
        else:
            def across(kh: Any) -> Any:
                reached = [(kw, [p for p in range(count) if columns[p]]) for kw, columns in enumerate(pattern)]
                return sequence([self._depth(acc, row, block, first, kh, const(kw), columns) for kw, columns in reached if columns])
        statements.append(loop("kh", low, taps, across))
        statements += [self._store(acc, row, block, first, p) for p in range(count)]
        return sequence(statements)

    def _depth(self, acc: Any, row: Any, block: Any, first: Any, kh: Any, kw: Any, columns: Sequence[int]) -> Any:
        """acc[p][v] += x[p] * w[v] over the input channels of one tap: the register tile."""
        def body(c: Any) -> Any:
            statements = []
            for v in range(self.vectors):
                for p in columns:
                    at = vector((p * self.vectors + v) * self.lanes, self.lanes)
                    statements.append(tirx.BufferStore(acc, self._multiply_add(acc[at], row, block, first + p, kh, kw, c, v), [at]))
            return sequence(statements)

        return loop("c", 0, self.geometry.depth // self.step, body)

    def _multiply_add(self, acc: Any, row: Any, block: Any, column: Any, kh: Any, kw: Any, c: Any, v: int) -> Any:
        """One vector of sums plus one input (or `step` of them) times one vector of weights."""
        if self.dot is None:
            value = spread(tirx.Cast(self.dtype, self.x(row, column, kh, kw, c)), self.lanes)
            weights = self.w(row, block, kh, kw, [c, vector(v * self.lanes, self.lanes)])
            return acc + value * tirx.Cast(f"{self.dtype}x{self.lanes}" if self.lanes > 1 else self.dtype, weights)
        inputs = self.x(row, column, kh, kw, vector(c * self.step, self.step))
        weights = self.w(row, block, kh, kw, [c, const(v * self.lanes), vector(const(0), self.lanes * self.step)])
        return multiply_add(self.dot, acc, inputs, weights, self.lanes, self.dot.shift(np.dtype(str(self.source.dtype))))

    def _store(self, acc: Any, row: Any, block: Any, first: Any, p: int) -> Any:
        """The epilogue of one output position: whole vectors, then what is left in the last block."""
        g = self.geometry
        left = g.filters - (g.blocks - 1) * g.block

        def store(v: int, lanes: int) -> Any:
            def lane(l: Any) -> Any:
                channel = block * g.block + (v * self.lanes + l)
                return self.anchor.epilogue(self.position(row, first + p, channel), acc[(p * self.vectors + v) * self.lanes + l])

            return loop("lane", 0, lanes, lane, VECTORIZED) if lanes > 1 else lane(const(0))

        whole = sequence([store(v, self.lanes) for v in range(self.vectors)])
        if left == g.block:
            return whole
        rest = [store(v, min(self.lanes, left - v * self.lanes)) for v in range(self.vectors) if left > v * self.lanes]
        return sequence(rest) if g.blocks == 1 else tirx.IfThenElse(block < g.blocks - 1, whole, sequence(rest))


class _Convolution(_Contraction):
    """Channels-last input (N, H, W, C), weights (blocks, KH, KW, C, block)."""

    def __init__(self, anchor: Anchor, target: Target) -> None:
        info = anchor.info
        integer = not str(anchor.accumulator.dtype).startswith("float")
        through_pad = integer and anchor.pad is not None  # padding is the zero point there, not nothing
        self.batch, self.height, width, _ = (int(d) for d in anchor.padded.shape) if through_pad else info["input"]
        self.out_height, self.out_width = info["output"]
        self.strides, self.dilations, self.begin = info["strides"], info["dilations"], [0, 0] if through_pad else info["begin"]
        kernel = tuple(info["kernel"])
        self.flat = kernel == (1, 1) and self.strides == [1, 1] and not any(self.begin) and info["output"] == [self.height, width]
        rows, columns = (1, self.batch * self.height * width) if self.flat else (self.batch * self.out_height, self.out_width)
        tile = columns_in_tile(target, columns, info["block"])
        super().__init__(anchor, target, Geometry(rows, columns, info["filters"], info["block"], info["depth"], kernel, self.strides[1], self.dilations[1],
                                                  self.begin[1], columns if self.flat else width, tile))
        self.source = anchor.padded if through_pad else anchor.x

    def _pixel(self, row: Any, column: Any) -> tuple[Any, Any, Any]:
        """(image, row, column) of an output position."""
        if self.flat:
            return column // (self.out_height * self.out_width), column // self.out_width % self.out_height, column % self.out_width
        return row // self.out_height, row % self.out_height, column

    def x(self, row: Any, column: Any, kh: Any, kw: Any, c: Any) -> Any:
        image, i, j = self._pixel(row, column)
        g = self.geometry
        return self.source[image, i * self.strides[0] + kh * self.dilations[0] - self.begin[0], j * g.stride + kw * g.dilation - g.begin, c]

    def w(self, row: Any, block: Any, kh: Any, kw: Any, inner: list[Any]) -> Any:
        return self.anchor.weights[(block, kh, kw, *inner)]

    def position(self, row: Any, column: Any, channel: Any) -> list[Any]:
        return [*self._pixel(row, column), channel]

    def taps(self, row: Any) -> tuple[Any, Any]:
        """Taps t with 0 <= i * stride + t * dilation - begin < height."""
        k, d = self.geometry.kernel[0], self.dilations[0]
        start = row % self.out_height * self.strides[0] - self.begin[0]
        last = (self.out_height - 1) * self.strides[0] - self.begin[0] + (k - 1) * d
        if self.begin[0] <= 0 and last < self.height:
            return 0, k
        low = tirx.max(const(0), (d - 1 - start) // d) if self.begin[0] > 0 else const(0)
        high = tirx.min(const(k), (self.height - start + d - 1) // d) if last >= self.height else const(k)
        return low, high - low


class _Product(_Contraction):
    """a (*batch, M, K) times packed b (*batch, blocks, K, block); each row of the nest is one matrix of the batch."""

    def __init__(self, anchor: Anchor, target: Target) -> None:
        info = anchor.info
        self.batch = info["batch"]
        rows = 1
        for extent in self.batch:
            rows *= extent
        m, k, n = info["rows"], info["inner"], info["columns"]
        super().__init__(anchor, target, Geometry(rows, m, n, info["block"], k, (1, 1), 1, 1, 0, m, columns_in_tile(target, m, info["block"])))

    def _batch(self, row: Any) -> list[Any]:
        places = []
        for extent in reversed(self.batch):
            places.append(row % extent)
            row = row // extent
        return places[::-1]

    def _own(self, row: Any, shape: Sequence[Any], kept: int) -> list[Any]:
        """The batch indices of an operand that broadcasts."""
        own = list(shape)[: len(shape) - kept]
        places = self._batch(row)[len(self.batch) - len(own) :]
        return [const(0) if int(extent) == 1 else place for extent, place in zip(own, places, strict=True)]

    def x(self, row: Any, column: Any, kh: Any, kw: Any, c: Any) -> Any:
        inner = (c, column) if self.anchor.info["transposed"] else (column, c)
        return self.source[(*self._own(row, self.source.shape, 2), *inner)]

    def w(self, row: Any, block: Any, kh: Any, kw: Any, inner: list[Any]) -> Any:
        return self.anchor.weights[(*self._own(row, self.anchor.weights.shape, 3 if self.step == 1 else 4), block, *inner)]

    def position(self, row: Any, column: Any, channel: Any) -> list[Any]:
        return [*self._batch(row), column, channel]
