"""8-bit convolutions and products on Cortex-M: what an output sums is gathered into one run of bytes, then added up.

    for tile of output positions:
      for p in positions:  columns[p] = x at every tap, channels next to each other       smlad: widened to 16 bits
      for block of output channels:
        acc[p][v] = 0                                                                     in registers
        for steps of depth:  acc[p][v] += columns[p] . w[v]
        y[p, v] = epilogue(acc[p][v])

Padding, taps, odd numbers of channels and zero points are dealt with once per input, not once per product, and the
innermost loop is the same for every kernel. The last tile overlaps the one before where positions do not divide.
The columns are a workspace of the memory plan. A 1x1 convolution whose input lies as the instruction wants it has none.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from tvm import tirx

from graphc.backends.anchor import Anchor
from graphc.backends.dot import Dot
from graphc.backends.dot_thumb import halves, multiply_bytes, multiply_pairs
from graphc.backends.statements import (
    VECTORIZED,
    const,
    function,
    loop,
    sequence,
    spread,
    tasks,
    vector,
)
from graphc.backends.targets import Target
from graphc.backends.tiles import columns_tile, columns_unroll

PIECES = 8
"""Most pieces of a copy that are written out."""


def schedule(anchor: Anchor, target: Target) -> Any:
    """The kernel of a convolution or product that was packed for columns, None for anything else."""
    dot = anchor.info.get("dot")
    if dot is None or not Dot.of(dot).columns:
        return None
    return {"smlad": Pairs, "vmladava": Bytes, "mla": Bytes}[dot](anchor, target).build()


class Columns:
    """Writes the nest; what differs between instructions is how columns are stored and multiplied."""

    def __init__(self, anchor: Anchor, target: Target) -> None:
        info = anchor.info
        self.anchor, self.source = anchor, anchor.x
        self.dot, self.block, self.depth = Dot.of(info["dot"]), int(info["block"]), int(info["depth"])
        self.shift, self.padding = int(info["shift"]), int(info.get("padding", 0))
        self.lanes = max(1, target.lanes(32))
        self.widest = 1 if target.emit == "c" else target.vector_bits // 8
        self.place = _Product(anchor) if info["kind"] == "matmul" else _Window(anchor)
        self.filters = info["columns"] if info["kind"] == "matmul" else info["filters"]
        self.blocks = -(-self.filters // self.block)
        self.tile = columns_tile(info["dot"], self.place.positions, self.filters)[0]
        self.steps = self.depth // self.dot.step
        self.columns = self.workspace()

    def workspace(self) -> Any:
        """The buffer of one tile's columns, None where they are read from the input itself."""
        raise NotImplementedError

    @property
    def buffers(self) -> list[Any]:
        """All that is part of the workspace."""
        raise NotImplementedError

    def fill(self, p: Any, position: Any) -> Any:
        """Write the columns of one position of the tile."""
        raise NotImplementedError

    def multiply(self, acc: Sequence[Any], first: Any, block: Any, k: Any) -> list[Any]:
        """One step of depth: every sum of the tile."""
        raise NotImplementedError

    def build(self) -> Any:
        positions, tile = self.place.positions, self.tile

        def one(task: Any) -> Any:
            first = task * tile if positions % tile == 0 else tirx.min(task * tile, const(positions - tile))
            parts = [] if not self.buffers else [loop("p", 0, tile, lambda p: self.fill(p, first + p))]
            return sequence([*parts, loop("block", 0, self.blocks, lambda block: self._block(first, block))])

        nest = tasks(-(-positions // tile), one)
        return function(self.anchor.parameters, self.anchor.attributes, [nest], workspace=self.buffers)

    def bytes_of(self, to: Any, base: Any, position: Any) -> Any:
        """Gather the inputs of a position as bytes, in the largest pieces that runs of channels have."""
        size = next(n for n in (self.widest, 4, 1) if n <= self.widest and self.place.run % n == 0)
        dtype, flip = str(to.dtype), str(to.dtype) != str(self.source.dtype)
        padding = spread(const(self.padding + self.shift * flip, dtype), size)

        def flipped(value: Any) -> Any:
            return tirx.reinterpret(f"int8x{size}" if size > 1 else "int8", value ^ spread(const(128, "uint8"), size))

        def copy(read: Callable[[Any], Any], start: Any, length: int) -> Any:
            def piece(w: Any) -> Any:
                value = read(vector(w * size, size))
                return tirx.BufferStore(to, flipped(value) if flip else value, [vector(base + start + w * size, size)])

            return self._pieces(length // size, piece)

        def pad(start: Any, length: int) -> Any:
            def piece(w: Any) -> Any:
                return tirx.BufferStore(to, padding, [vector(base + start + w * size, size)])

            return self._pieces(length // size, piece)

        return self.place.gather(position, copy, pad)

    def _pieces(self, count: int, piece: Callable[[Any], Any]) -> Any:
        """All pieces of a run, a few written out at once: LLVM would call memcpy and memset."""
        written = max(n for n in range(1, PIECES + 1) if count % n == 0)
        return loop("w", 0, count // written, lambda w: sequence([piece(w * written + n) for n in range(written)]))

    def _block(self, first: Any, block: Any) -> Any:
        """All sums of a tile, each a variable of its own: LLVM would keep several as one vector."""
        acc = [tirx.decl_buffer((1,), "int32", f"acc{i}", scope="local") for i in range(self.tile * self.block)]
        unroll = columns_unroll(self.dot.kind, self.steps)

        def several(k: Any) -> Any:
            return sequence([s for u in range(unroll) for s in self.multiply(acc, first, block, k * unroll + u)])

        parts: list[Any] = [tirx.AllocBuffer(each) for each in acc]
        parts += [tirx.BufferStore(each, const(0), [const(0)]) for each in acc]
        parts.append(loop("k", 0, self.steps // unroll, several))
        of = self.block
        parts += [self._store(acc[p * of : p * of + of], first + p, block) for p in range(self.tile)]
        return sequence(parts)

    def _store(self, acc: Sequence[Any], position: Any, block: Any) -> Any:
        """The epilogue of a position for the channels of a block, as far as there are any."""
        at = self.place.output(position)

        def put(v: Any, value: Any) -> Any:
            return self.anchor.epilogue([*at, block * self.block + v], value)

        def part(channels: int) -> Any:
            if self.lanes != channels or channels == 1:
                return sequence([put(const(v), acc[v][0]) for v in range(channels)])
            sums = tirx.decl_buffer((channels,), "int32", "sums", scope="local")
            moved = [tirx.BufferStore(sums, acc[v][0], [const(v)]) for v in range(channels)]
            lanes = loop("lane", 0, channels, lambda v: put(v, sums[v]), VECTORIZED)
            return sequence([tirx.AllocBuffer(sums), *moved, lanes])

        left = self.filters - (self.blocks - 1) * self.block
        if left == self.block or self.blocks == 1:
            return part(left)
        return tirx.IfThenElse(block < self.blocks - 1, part(self.block), part(left))


class Pairs(Columns):
    """`smlad`: words of two 16-bit inputs; those of a step and tile lie together: [steps][positions][2].

    Runs of channels that are no whole words are gathered as bytes first.
    """

    def workspace(self) -> Any:
        self.narrow = None
        if self.place.run % 4:
            self.narrow = tirx.decl_buffer((self.depth,), str(self.source.dtype), "narrow")
        return tirx.decl_buffer((self.steps * self.tile * 2,), "int32", "columns")

    @property
    def buffers(self) -> list[Any]:
        return [self.columns] if self.narrow is None else [self.columns, self.narrow]

    def fill(self, p: Any, position: Any) -> Any:
        if self.narrow is not None:
            narrow = self.narrow
            words = loop("w", 0, self.steps, lambda w: self._widen(p, w, narrow[vector(w * 4, 4)]))
            return sequence([self.bytes_of(narrow, const(0), position), words])

        def copy(read: Callable[[Any], Any], start: Any, length: int) -> Any:
            return loop("w", 0, length // 4, lambda w: self._widen(p, start // 4 + w, read(vector(w * 4, 4))))

        def pad(start: Any, length: int) -> Any:
            return loop("w", 0, length // 4, lambda w: self._put(p, start // 4 + w, (const(0), const(0))))

        return self.place.gather(position, copy, pad)

    def _widen(self, p: Any, k: Any, four: Any) -> Any:
        unsigned = str(self.source.dtype) == "uint8"
        return self._put(p, k, halves(tirx.reinterpret("int32", four), unsigned, self.shift))

    def _put(self, p: Any, k: Any, pairs: tuple[Any, Any]) -> Any:
        return sequence([tirx.BufferStore(self.columns, x, [self._at(k, n, p)]) for n, x in enumerate(pairs)])

    def _at(self, k: Any, n: int, p: Any) -> Any:
        return (k * 2 + n) * self.tile + p

    def multiply(self, acc: Sequence[Any], first: Any, block: Any, k: Any) -> list[Any]:
        statements = []
        x = [[self.columns[self._at(k, n, p)] for n in range(2)] for p in range(self.tile)]
        for v in range(self.block):
            word = tirx.reinterpret("int32", self.anchor.weights[0][block, k, v, vector(const(0), 4)])
            for n, pair in enumerate(halves(word)):
                for p in range(self.tile):
                    at = p * self.block + v
                    statements.append(tirx.BufferStore(acc[at], multiply_pairs(acc[at][0], x[p][n], pair), [const(0)]))
        return statements


class Bytes(Columns):
    """`vmladava` and `mla`: bytes as they lie in memory, [positions][depth]."""

    def workspace(self) -> Any:
        self.direct = self.place.contiguous and self.place.run == self.depth and not self.shift
        if self.direct:
            return None
        return tirx.decl_buffer((self.tile * self.depth,), self.stored, "columns")

    @property
    def stored(self) -> str:
        return "int8" if self.dot.kind == "vmladava" else str(self.source.dtype)

    @property
    def buffers(self) -> list[Any]:
        return [] if self.direct else [self.columns]

    def fill(self, p: Any, position: Any) -> Any:
        return self.bytes_of(self.columns, p * self.depth, position)

    def _x(self, first: Any, p: int, k: Any) -> Any:
        at = vector(k * self.dot.step, self.dot.step)
        if self.direct:
            return self.source[(*self.place.input(first + p), at)]
        return self.columns[vector(p * self.depth + k * self.dot.step, self.dot.step)]

    def multiply(self, acc: Sequence[Any], first: Any, block: Any, k: Any) -> list[Any]:
        statements = []
        for v in range(self.block):
            for p in range(self.tile):
                at = p * self.block + v
                x = self._x(first, p, k)
                if self.dot.step > 1:
                    w = self.anchor.weights[0][block, k, v, vector(const(0), self.dot.step)]
                    total = multiply_bytes(acc[at][0], x, w)
                else:
                    total = acc[at][0] + x.astype("int32") * self.anchor.weights[0][block, k, v].astype("int32")
                statements.append(tirx.BufferStore(acc[at], total, [const(0)]))
        return statements


class _Window:
    """Where the columns of a convolution's output position come from."""

    def __init__(self, anchor: Anchor) -> None:
        info = anchor.info
        self.source = anchor.x
        self.batch, self.height, self.width, self.channels = info["input"]
        self.out_height, self.out_width = info["output"]
        self.kernel, self.strides, self.dilations = info["kernel"], info["strides"], info["dilations"]
        self.begin = info["begin"]
        self.positions = self.batch * self.out_height * self.out_width
        self.run = self.channels
        plain = (self.kernel, self.strides, self.begin) == ([1, 1], [1, 1], [0, 0])
        self.contiguous = plain and [self.height, self.width] == info["output"]

    def input(self, position: Any) -> list[Any]:
        """Where the channels of an output position lie, if they are `contiguous`."""
        return self.output(position)

    def output(self, position: Any) -> list[Any]:
        """(image, row, column) of an output position."""
        rows = position // self.out_width
        return [rows // self.out_height, rows % self.out_height, position % self.out_width]

    def gather(self, position: Any, copy: Any, pad: Any) -> Any:
        """copy(read, start, length) for every run of inputs, pad(start, length) for those outside."""
        n, i, j = self.output(position)

        def tap(kh: Any, kw: Any) -> Any:
            row = i * self.strides[0] + kh * self.dilations[0] - self.begin[0]
            column = j * self.strides[1] + kw * self.dilations[1] - self.begin[1]
            start = (kh * self.kernel[1] + kw) * self.channels
            body = copy(lambda c: self.source[n, row, column, c], start, self.channels)
            inside = [*self._inside(0, row), *self._inside(1, column)]
            return tirx.IfThenElse(tirx.all(*inside), body, pad(start, self.channels)) if inside else body

        return loop("kh", 0, self.kernel[0], lambda kh: loop("kw", 0, self.kernel[1], lambda kw: tap(kh, kw)))

    def _inside(self, axis: int, at: Any) -> list[Any]:
        size = (self.height, self.width)[axis]
        last = ((self.out_height, self.out_width)[axis] - 1) * self.strides[axis] - self.begin[axis]
        last += (self.kernel[axis] - 1) * self.dilations[axis]
        return [*([at >= 0] if self.begin[axis] > 0 else []), *([at < size] if last >= size else [])]


class _Product:
    """Rows of the left operand of a matrix product."""

    def __init__(self, anchor: Anchor) -> None:
        info = anchor.info
        self.source, self.batch, self.rows = anchor.x, info["batch"], info["rows"]
        self.positions = prod(self.batch) * self.rows
        self.run = info["inner"]
        self.contiguous = True

    def output(self, position: Any) -> list[Any]:
        places = []
        for extent in reversed([*self.batch, self.rows]):
            places.append(position % extent)
            position = position // extent
        return places[::-1]

    def input(self, position: Any) -> list[Any]:
        """The row of an output position."""
        at = self.output(position)
        own = at[len(at) - len(self.source.shape) + 1 :]
        return [const(0) if int(d) == 1 else i for d, i in zip(self.source.shape[:-1], own, strict=True)]

    def gather(self, position: Any, copy: Any, pad: Any) -> Any:
        places = self.input(position)
        return copy(lambda c: self.source[(*places, c)], const(0), self.run)
