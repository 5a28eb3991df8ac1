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

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

from tvm import tirx

from graphc.backends import dot_arm
from graphc.backends.anchor import Anchor
from graphc.backends.dot import Dot, steps_in_load, weight_registers
from graphc.backends.dot_x86 import multiply_add
from graphc.backends.geometry import Pattern, Rows, places
from graphc.backends.statements import (
    SERIAL,
    UNROLLED,
    clipped_taps,
    const,
    fetch,
    function,
    loop,
    row_of_tiles,
    sequence,
    spread,
    tasks,
    vector,
    vectorized,
)
from graphc.backends.targets import Target
from graphc.backends.tiles import chosen_columns, chunks


def schedule(anchor: Anchor, target: Target) -> Any:
    """The kernel of a dense convolution or matrix product, None where the form is another."""
    if anchor.info["kind"] == "conv_dense":
        return Convolution(anchor, target).build()
    if anchor.info["kind"] == "matmul":
        return Product(anchor, target).build()
    return None


def dot_of(anchor: Anchor) -> Dot:
    """The instruction that a contraction multiplies with, `plain` for floats."""
    return Dot.of(anchor.info["dot"])


def held(anchor: Anchor, target: Target) -> int:
    """Registers of weights beside a register tile."""
    return 0 if anchor.info.get("coded") else weight_registers(target, dot_of(anchor), int(anchor.info["block"]))


class Contraction:
    """Writes the nest; what differs between convolutions and products is where operands lie."""

    def __init__(self, anchor: Anchor, target: Target, rows: Rows, depth: int, filters: int) -> None:
        self.anchor, self.rows, self.depth, self.filters = anchor, rows, depth, filters
        self.block = int(anchor.info["block"])
        self.blocks = -(-filters // self.block)
        self.dtype = str(anchor.accumulator.dtype)
        self.lanes = min(max(1, target.lanes(32)), self.block)
        self.vectors = self.block // self.lanes
        self.source = anchor.x
        self.step = int(anchor.info["step"])
        dot = dot_of(anchor)
        self.dot = None if dot.kind == "plain" else dot
        self.aarch64 = target.triple.startswith("aarch64")
        self.steps_loaded = 1 if anchor.info.get("coded") else steps_in_load(target, dot)

    tiles: Any = SERIAL
    """How the tiles of a row are looped over: unrolled, the columns of each lie at places known here."""

    def x(self, row: Any, column: Any, kh: Any, kw: int, c: Any) -> Any:
        raise NotImplementedError

    def w(self, row: Any, block: Any, kh: Any, kw: Any, inner: list[Any]) -> Any:
        raise NotImplementedError

    def weights(self, row: Any, block: Any, kh: Any, kw: Any, c: Any, v: int) -> Any:
        """The v-th vector of a block's weights for one input channel of one tap (or `step` of them)."""
        if self.dot is not None:
            return self.w(row, block, kh, kw, [c, const(v * self.lanes), vector(const(0), self.lanes * self.step)])
        stored = self.w(row, block, kh, kw, [c, vector(v * self.lanes, self.lanes)])
        return tirx.Cast(f"{self.dtype}x{self.lanes}" if self.lanes > 1 else self.dtype, stored)

    def over_depth(self, body: Callable[[Any], Any]) -> Any:
        """body(c) for every input channel, or every `step` of them."""
        return loop("c", 0, self.depth // self.step, body)

    def position(self, row: Any, column: Any, channel: Any) -> list[Any]:
        raise NotImplementedError

    def taps(self, row: Any) -> tuple[Any, Any]:
        """First row of the kernel that lies inside the input, and how many do."""
        return 0, 1

    @property
    def row_tasks(self) -> int:
        """Tasks that share a block of output channels."""
        return self.rows.rows

    def pieces_of(self, target: Target, columns: int) -> int:
        """Into how many rows a long run of columns is cut."""
        info = self.anchor.info
        return chunks(target, columns, int(info["block"]), info["tile"], held(self.anchor, target))

    def tile_of(self, target: Target, columns: int) -> int:
        """How many output columns a register tile spans."""
        info = self.anchor.info
        return chosen_columns(target, columns, int(info["block"]), info["tile"], held(self.anchor, target))

    def weights_once(self) -> bool:
        """Whether all rows take one block's weights before the next: the weights are larger than the input."""
        elements = sum(prod(int(d) for d in each.shape) for each in self.anchor.weights)
        return elements > self.rows.rows * self.rows.columns * self.depth

    def ahead(self, row: Any, block: Any, first: Any, kh: Any, kw: Any, c: Any) -> list[Any]:
        """Fetch the next block's weights into the second-level cache, each tile of this block its share.

        Blocks of weights that are read once come from memory, too slowly for one tile alone.
        """
        plain = [str(each.dtype) for each in self.anchor.weights] == [self.dtype]
        if not plain or self.vectors == 1 or not self.weights_once():
            return []
        tiles = -(-self.rows.columns // self.rows.tile)
        part = row * tiles + first // self.rows.tile
        place = (part * self.depth + c) // (self.rows.rows * tiles)
        lines = [self.w(row, block + 1, kh, kw, [place, const(v * self.lanes)]) for v in range(self.vectors)]
        return [fetch(tirx.address_of(line), 2) for line in lines]

    def tasks(self) -> tuple[int, Any]:
        """(tasks, task -> (row, block)): the larger of weights and input is read once, the smaller again and again."""
        rows, blocks = self.row_tasks, self.blocks
        if self.weights_once():
            return rows * blocks, lambda task: (task % rows, task // rows)
        return rows * blocks, lambda task: (task // blocks, task % blocks)

    def build(self) -> Any:
        count, split = self.tasks()
        nest = tasks(count, lambda task: self._row(*split(task)))
        return function(self.anchor.parameters, self.anchor.attributes, [nest])

    def _row(self, row: Any, block: Any) -> Any:
        return row_of_tiles(self.rows, partial(self._tile, row, block), self.tiles)

    def _tile(self, row: Any, block: Any, first: Any, count: int, pattern: Pattern) -> Any:
        acc = tirx.decl_buffer((count * self.block,), self.dtype, "acc", scope="local")
        zero = spread(const(0, self.dtype), self.lanes)
        statements = [tirx.AllocBuffer(acc)]
        statements += [
            tirx.BufferStore(acc, zero, [vector(i * self.lanes, self.lanes)]) for i in range(count * self.vectors)
        ]

        def across(kh: Any) -> Any:
            if all(len(columns) == count for columns in pattern):
                return loop("kw", 0, len(pattern), lambda kw: self._depth(acc, row, block, first, kh, kw, range(count)))
            reached = [(kw, columns) for kw, columns in enumerate(pattern) if columns]
            return sequence([self._depth(acc, row, block, first, kh, const(kw), columns) for kw, columns in reached])

        low, number = self.taps(row)
        statements.append(loop("kh", low, number, across))
        statements += [self._store(acc, row, block, first, p) for p in range(count)]
        return sequence(statements)

    def _depth(self, acc: Any, row: Any, block: Any, first: Any, kh: Any, kw: Any, columns: Sequence[int]) -> Any:
        """acc[p][v] += x[p] * w[v] over the input channels of one tap."""
        if self.steps_loaded > 1:
            return self._depth_by_lanes(acc, row, block, first, kh, kw, columns)

        def body(c: Any) -> Any:
            step = self.tile_step(acc, row, first, kh, kw, c, columns, lambda v: self.weights(row, block, kh, kw, c, v))
            return sequence([*self.ahead(row, block, first, kh, kw, c), step])

        return self.over_depth(body)

    def _depth_by_lanes(
        self, acc: Any, row: Any, block: Any, first: Any, kh: Any, kw: Any, columns: Sequence[int]
    ) -> Any:
        """The same, the inputs of `steps_loaded` steps in one load."""
        place = partial(self.lanes_step, acc, row, block, first, kh, kw, columns)
        return self.in_loads(place, const(0), self.depth // self.step)

    def in_loads(self, place: Callable[[Any, int], Any], begin: Any, steps: int) -> Any:
        """place(first step, how many) for `steps` steps from `begin` on; what is left over in loads of 4, 2 and 1."""
        whole, left = divmod(steps, self.steps_loaded)
        parts = (
            [loop("c", 0, whole, lambda c: place(begin + c * self.steps_loaded, self.steps_loaded))] if whole else []
        )
        done = whole * self.steps_loaded
        for size in (4, 2, 1):
            if left & size:
                parts.append(place(begin + const(done), size))
                done += size
        return sequence(parts)

    def lanes_step(
        self, acc: Any, row: Any, block: Any, first: Any, kh: Any, kw: Any, columns: Sequence[int], c: Any, steps: int
    ) -> Any:
        """The register tile for `steps` steps from c on: acc[p][v] += lane s of x[p] * w[c + s][v]."""
        weights = [self._weights_row(row, block, kh, kw, c + s) for s in range(steps)]
        statements = self.ahead(row, block, first, kh, kw, c)
        for p in columns:
            x = self.x(row, first + p, kh, kw, vector(c * self.step, steps * self.step))
            for v, at in enumerate(self.accumulators(p)):
                total = acc[at]
                for s in range(steps):
                    total = self._lane_added(total, x, s, steps, weights[s][v])
                statements.append(tirx.BufferStore(acc, total, [at]))
        return sequence(statements)

    def accumulators(self, p: int) -> list[Any]:
        """Where the vectors of sums of one column lie."""
        return [vector((p * self.vectors + v) * self.lanes, self.lanes) for v in range(self.vectors)]

    def _lane_added(self, total: Any, x: Any, s: int, steps: int, weights: Any) -> Any:
        """A vector of sums plus the inputs of the s-th of the steps loaded in `x` times a vector of weights."""
        if self.dot is not None:
            return dot_arm.ByLane(self.dot, int(self.anchor.info["shift"]), self.aarch64).add(
                total, x, steps, s, weights
            )
        values = tirx.Cast(f"{self.dtype}x{steps}" if steps > 1 else self.dtype, x)
        return total + dot_arm.lane(values, s, self.lanes) * weights

    def _weights_row(self, row: Any, block: Any, kh: Any, kw: Any, c: Any) -> list[Any]:
        """The vectors of a block's weights at one step."""
        if self.dot is None or self.dot.kind != "mlal":
            return [self.weights(row, block, kh, kw, c, v) for v in range(self.vectors)]
        stored = [
            self.w(row, block, kh, kw, [c, vector(const(first), min(2 * self.lanes, self.block - first))])
            for first in range(0, self.block, 2 * self.lanes)
        ]
        return [half for each in stored for half in (dot_arm.halves(each) if self.vectors > 1 else [each])]

    def tile_step(
        self,
        acc: Any,
        row: Any,
        first: Any,
        kh: Any,
        kw: Any,
        c: Any,
        columns: Sequence[int],
        weights: Callable[[int], Any],
    ) -> Any:
        """The register tile: acc[p][v] += x[p] * weights(v) for one input channel, or `step` of them."""
        statements = []
        row_of_weights = [weights(v) for v in range(self.vectors)]
        for p in columns:  # outside: one input is live at a time, beside a row of weights
            for v in range(self.vectors):
                at = vector((p * self.vectors + v) * self.lanes, self.lanes)
                total = self._multiply_add(acc[at], row, first + p, kh, kw, c, row_of_weights[v])
                statements.append(tirx.BufferStore(acc, total, [at]))
        return sequence(statements)

    def _multiply_add(self, acc: Any, row: Any, column: Any, kh: Any, kw: Any, c: Any, weights: Any) -> Any:
        """One vector of sums plus one input (or `step` of them) times one vector of weights."""
        if self.dot is None:
            return acc + spread(tirx.Cast(self.dtype, self.x(row, column, kh, kw, c)), self.lanes) * weights
        inputs = self.x(row, column, kh, kw, vector(c * self.step, self.step))
        return multiply_add(self.dot, acc, inputs, weights, self.lanes, int(self.anchor.info["shift"]))

    def _store(self, acc: Any, row: Any, block: Any, first: Any, p: int) -> Any:
        def sums(v: int, lane: Any) -> Any:
            return acc[p * self.block + v * self.lanes + lane]

        return self.store(row, block, first + p, range(self.vectors), sums)

    def store(self, row: Any, block: Any, column: Any, vectors: range, sums: Callable[[int, Any], Any]) -> Any:
        """The epilogue of one output position for some `vectors` of its block, as far as there are channels.

        `sums` gives the accumulator of a lane of a vector.
        """
        left = self.filters - (self.blocks - 1) * self.block

        def part(v: int, lanes: int) -> Any:
            def lane(i: Any) -> Any:
                channel = v * self.lanes + i
                return self.anchor.epilogue(self.position(row, column, block * self.block + channel), sums(v, i))

            return vectorized(lanes, lane)

        whole = sequence([part(v, self.lanes) for v in vectors])
        if left >= vectors.stop * self.lanes:
            return whole
        parts = [part(v, min(self.lanes, left - v * self.lanes)) for v in vectors if left > v * self.lanes]
        rest = sequence(parts) if parts else tirx.Evaluate(const(0))
        return rest if self.blocks == 1 else tirx.IfThenElse(block < self.blocks - 1, whole, rest)


class Convolution(Contraction):
    """Channels-last input (N, *size, C) of two or three axes, weights (blocks, *K, C / groups, block).

    All but the last axis are rows, and their taps one count: those of three axes read a padded copy, where all are
    inside. Rows of one group come after those of the one before.
    """

    def __init__(self, anchor: Anchor, target: Target) -> None:
        self.anchor, info = anchor, anchor.info
        self.batch: int
        self.batch, *size, _ = info["input"]
        self.height, width = size[-2:]
        self.output, self.kernel = info["output"], info["kernel"]
        self.out_height, self.out_width = prod(self.output[:-1]), self.output[-1]
        self.strides, self.dilations = info["strides"], info["dilations"]
        self.begin, self.small = info["begin"], info["small"]
        ones = [1] * len(size)
        self.flat = self.kernel == self.strides == ones and not any(self.begin) and self.output == size
        pieces, columns = self.batch * self.out_height, self.out_width
        if self.flat:
            positions = self.batch * prod(size)
            pieces = self.pieces_of(target, positions)
            columns = positions // pieces
        if self.small:
            pieces, columns = self.batch, prod(self.output)
        self.groups: int = info["groups"]
        self.pieces, pieces = pieces, pieces * self.groups
        tile = self.tile_of(target, columns)
        if self.flat or self.small:  # every tap is inside
            rows = Rows(pieces, columns, self.kernel[-1], 0, 0, 0, 1, tile)
        else:
            across = (self.kernel[-1], self.strides[-1], self.dilations[-1], self.begin[-1])
            rows = Rows(pieces, columns, *across, width, tile)
        super().__init__(anchor, target, rows, info["depth"], info["filters"] // self.groups)
        self.tiles = UNROLLED if self.small else SERIAL

    def group(self, row: Any) -> Any:
        """Which group of channels a row belongs to."""
        return row // self.pieces if self.groups > 1 else 0

    def _pixel(self, row: Any, column: Any) -> list[Any]:
        """[image, *place] of an output position."""
        row = row % self.pieces if self.groups > 1 else row
        if self.flat:
            return places(row * self.rows.columns + column, [self.batch, *self.output])
        if self.small:
            return [row, *places(column, self.output)]
        return [*places(row, [self.batch, *self.output[:-1]]), column]

    def x(self, row: Any, column: Any, kh: Any, kw: Any, c: Any) -> Any:
        image, *at = self._pixel(row, column)
        axes = zip(at, self.strides, [*places(kh, self.kernel[:-1]), kw], self.dilations, self.begin, strict=True)
        channel = self.group(row) * self.depth + c if self.groups > 1 else c
        return self.source[
            (image, *(i * stride + tap * apart - begin for i, stride, tap, apart, begin in axes), channel)
        ]

    def w(self, row: Any, block: Any, kh: Any, kw: Any, inner: list[Any]) -> Any:
        own = self.group(row) * self.blocks + block
        return self.anchor.weights[0][(own, *places(kh, self.kernel[:-1]), kw, *inner)]

    def position(self, row: Any, column: Any, channel: Any) -> list[Any]:
        return [*self._pixel(row, column), self.group(row) * self.filters + channel]

    def taps(self, row: Any) -> tuple[Any, Any]:
        if self.small or len(self.kernel) > 2:
            return 0, prod(self.kernel[:-1])
        return clipped_taps(
            row % self.out_height,
            self.kernel[0],
            self.strides[0],
            self.dilations[0],
            self.begin[0],
            self.height,
            self.out_height,
        )


class Product(Contraction):
    """a (*batch, M, K) times packed b (*batch, blocks, K, block); each row of the nest is one matrix of the batch."""

    def __init__(self, anchor: Anchor, target: Target) -> None:
        info = anchor.info
        self.batch: list[int] = info["batch"]
        self.anchor = anchor
        self.pieces = self.pieces_of(target, info["rows"])
        rows, columns = prod(self.batch) * self.pieces, info["rows"] // self.pieces
        tile = self.tile_of(target, columns)
        super().__init__(anchor, target, Rows(rows, columns, 1, 1, 1, 0, columns, tile), info["inner"], info["columns"])

    def _matrix_row(self, row: Any, column: Any) -> Any:
        return row % self.pieces * self.rows.columns + column

    def _batch(self, row: Any) -> list[Any]:
        places = []
        row = row // self.pieces
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
        m = self._matrix_row(row, column)
        inner = (c, m) if self.anchor.info["transposed"] else (m, c)
        return self.source[(*self._own(row, self.source.shape, 2), *inner)]

    def w(self, row: Any, block: Any, kh: Any, kw: Any, inner: list[Any]) -> Any:
        weights = self.anchor.weights[0]
        return weights[(*self._own(row, weights.shape, 3 if self.step == 1 else 4), block, *inner)]

    def position(self, row: Any, column: Any, channel: Any) -> list[Any]:
        return [*self._batch(row), self._matrix_row(row, column), channel]
