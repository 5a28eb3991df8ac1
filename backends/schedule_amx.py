"""Convolutions and products on Intel's matrix tiles (AMX), of 8-bit integers or bfloat16: a register tile is a tile.

    for task = (rows of output positions, block of output channels):
      for pair of tiles of up to 16 columns, pair of 16 output channels:
        c00 c01 c10 c11 = 0                              tiles 0 to 3, 16 x 16 int32 or float32
        for kh, steps of depth:
          a0 a1 = x (columns x bytes)                    tiles 4 and 5
          b0 b1 = w (bytes / 4 x 16 channels x 4)        tiles 6 and 7
          cmn += am . bn                                 tdpbusd, tdpbssd: exact in int32; tdpbf16ps
        y = epilogue(c)                                  through a small buffer

Taps across and input channels lie next to each other, in the input as in the packed weights, so they are one depth.
The input is padded already (integers pad with their zero point). A tile that would be nearly empty overlaps the one
before instead; only its new columns are stored. A process asks Linux for the tiles first.

With a stride of 1 the rows of an image are one long run of columns, as wide as the padded input: the few columns
between two rows of the output are computed and not stored, and every tile is full however narrow the image is.

Source: Intel SDM volume 1, chapter 18.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from tvm import tirx

from graphc.backends.anchor import Anchor
from graphc.backends.schedule_contraction import Contraction, Convolution, Product
from graphc.backends.statements import const, fetch, loop, sequence, spread, vector
from graphc.backends.targets import Target
from graphc.backends.tiles import AMX_CHANNELS, AMX_ROWS, amx_chunks, amx_depth, amx_pieces, amx_rows, channel_block

SUMS, INPUTS, WEIGHTS = (0, 1, 2, 3), (4, 5), (6, 7)
"""Numbers of the tile registers."""
PRODUCTS = {"int8": "tdpbssd", "uint8": "tdpbusd", "uint16": "tdpbf16ps"}
"""By the type of the input, uint16 for codes of bfloat16."""
WIDEST = 4
"""Most groups of 16 output channels that a task takes at once."""


def schedule(anchor: Anchor, target: Target) -> Any:
    """The kernel of a convolution or product that was packed for tiles, None for anything else."""
    if anchor.info.get("dot") not in ("amx", "amx_bf16"):
        return None
    if anchor.info["kind"] == "conv_dense" and len(anchor.info["kernel"]) == 2:
        return TiledConvolution(anchor, target).build()
    if anchor.info["kind"] == "matmul":
        return TiledProduct(anchor, target).build()
    return None


def instruction(name: str, *operands: Any) -> Any:
    """A statement that is one instruction of the unit, by LLVM's name."""
    return tirx.Evaluate(tirx.call_llvm_intrin("void", f"llvm.x86.{name}", *operands))


def tile_number(number: int) -> Any:
    """An operand that names a tile register."""
    return tirx.const(number, "uint8")


def configured(config: Any, height: int, size: int) -> list[Any]:
    """Statements that shape the tiles, by way of a buffer of 64 bytes: `height` rows of inputs of `size` bytes each.

    Palette 1: bytes 16.. are the bytes of each tile's rows (16 bits each), bytes 48.. how many rows.
    """
    shapes = {
        **dict.fromkeys(SUMS, (height, 64)),
        **dict.fromkeys(INPUTS, (height, size)),
        **dict.fromkeys(WEIGHTS, (size // 4, 64)),
    }
    values = {
        0: 1,
        **{16 + 2 * n: width for n, (_, width) in shapes.items()},
        **{48 + n: rows for n, (rows, _) in shapes.items()},
    }
    zero = tirx.BufferStore(config, spread(const(0, "uint8"), 64), [vector(const(0), 64)])
    stores = [tirx.BufferStore(config, const(value, "uint8"), [const(at)]) for at, value in values.items()]
    return [zero, *stores, instruction("ldtilecfg", tirx.address_of(config[0]))]


class Tiled(Contraction):
    """Replaces the vector register tile of a contraction by matrix tiles.

    Weights are packed in blocks of one tile's channels; a task takes as many of those as `block` has.
    """

    across: int
    """Bytes of depth that lie next to each other, in the input and in the weights."""
    width: int
    """Bytes of an element of either."""
    pitch: int
    """Bytes between neighbouring columns of the input."""
    down: int
    """Rows of the kernel."""

    def _widen(self, target: Target) -> None:
        """Let a task take several packed blocks."""
        self.block = channel_block(target, self.filters, int(self.anchor.info["vectors"] or WIDEST))
        self.blocks = -(-self.filters // self.block)
        self.vectors = self.block // self.lanes

    def pieces_of(self, target: Target, columns: int) -> int:
        return amx_chunks(columns)

    def _input(self, row: Any, column: Any, kh: Any, byte: Any) -> Any:
        raise NotImplementedError

    def _weights(self, row: Any, run: Any, kh: Any, byte: Any) -> Any:
        """The first weight of a tile: run of channels, row of the kernel, byte of depth."""
        raise NotImplementedError

    def cover(self) -> tuple[list[tuple[int, int]], int]:
        """Tiles of a row, as (first column, first column that no tile before has), and the rows of each tile."""
        columns = self.rows.columns
        tiles, height = amx_rows(columns)
        return [(min(t * height, columns - height), t * height) for t in range(tiles)], height

    def guarded(self, row: Any, column: Any, statement: Any) -> Any:
        """The statement, for columns that are part of the output and no other task's."""
        return statement

    def _row(self, row: Any, block: Any) -> Any:
        starts, height = self.cover()
        tiles = len(starts)
        config = tirx.decl_buffer((64,), "uint8", "config", scope="local")
        sums = tirx.decl_buffer((len(SUMS) * AMX_ROWS * AMX_CHANNELS,), self.dtype, "sums", scope="local")
        regular = sum(first == wanted for first, wanted in starts) // 2
        parts = [tirx.AllocBuffer(config), tirx.AllocBuffer(sums), *configured(config, height, amx_depth(self.across))]
        # tilestored64 writes all of `sums`; TVM sees its address only, and would cut off what nothing else reads.
        parts.append(tirx.BufferStore(sums, const(0, self.dtype), [const(len(SUMS) * AMX_ROWS * AMX_CHANNELS - 1)]))
        if regular:
            parts.append(
                loop(
                    "pair",
                    0,
                    regular,
                    lambda t: self._block(
                        sums, row, block, [(t * 2 * height, 0), (t * 2 * height + height, 0)], height
                    ),
                )
            )
        for t in range(2 * regular, tiles, 2):
            group = [(const(first), wanted - first) for first, wanted in starts[t : t + 2]]
            parts.append(self._block(sums, row, block, group, height))
        return sequence([*parts, instruction("tilerelease")])

    def _block(self, sums: Any, row: Any, block: Any, group: list[tuple[Any, int]], height: int) -> Any:
        """All channels of a block for one or two tiles of columns: (first column, columns that are stored already)."""
        pairs = -(-self.block // (2 * AMX_CHANNELS))
        channels = range(min(2, self.block // AMX_CHANNELS))

        def pair(p: int) -> Any:
            runs = [block * (self.block // AMX_CHANNELS) + 2 * p + n for n in channels]
            return sequence(
                [
                    *(instruction("tilezero", tile_number(2 * m + n)) for m in range(len(group)) for n in channels),
                    loop("kh", 0, self.down, lambda kh: self._depth_loop(row, runs, group, kh)),
                    *(
                        instruction(
                            "tilestored64",
                            tile_number(2 * m + n),
                            tirx.address_of(sums[(2 * m + n) * AMX_ROWS * AMX_CHANNELS]),
                            tirx.const(4 * AMX_CHANNELS, "int64"),
                        )
                        for m in range(len(group))
                        for n in channels
                    ),
                ]
            )

        parts = []
        for p in range(pairs):
            parts.append(pair(p))
            for m, (first, skip) in enumerate(group):
                finish = partial(self._finish, sums, row, block, first, m, p)
                parts.append(loop("r", skip, height - skip, finish))
        return sequence(parts)

    def _finish(self, sums: Any, row: Any, block: Any, first: Any, m: int, p: int, r: Any) -> Any:
        """The epilogue of one column of tile m for the p-th pair of channel tiles."""
        width = min(2 * AMX_CHANNELS, self.block)
        vectors = range(p * width // self.lanes, (p + 1) * width // self.lanes)

        def at(v: int, lane: Any) -> Any:
            tile, first_channel = divmod(v * self.lanes - p * width, AMX_CHANNELS)
            return sums[((2 * m + tile) * AMX_ROWS + r) * AMX_CHANNELS + first_channel + lane]

        return self.guarded(row, first + r, self.store(row, block, first + r, vectors, at))

    def _depth_loop(self, row: Any, runs: list[Any], group: list[tuple[Any, int]], kh: Any) -> Any:
        """Sums of one row of the kernel, for some runs of channels and tiles of columns.

        A tile is loaded only when no product reads it any more, so loads must be short: the next weights are fetched
        into the nearest cache meanwhile.
        """
        size = amx_depth(self.across)

        def body(k: Any) -> Any:
            byte = k * size
            loads = [
                instruction(
                    "tileloadd64",
                    tile_number(INPUTS[m]),
                    tirx.address_of(self._input(row, first, kh, byte)),
                    tirx.const(self.pitch, "int64"),
                )
                for m, (first, _) in enumerate(group)
            ]
            loads += [
                instruction(
                    "tileloadd64",
                    tile_number(WEIGHTS[n]),
                    tirx.address_of(self._weights(row, run, kh, byte)),
                    tirx.const(4 * AMX_CHANNELS, "int64"),
                )
                for n, run in enumerate(runs)
            ]
            fetches = [
                fetch(tirx.address_of(self._weights(row, run, kh, byte + size + line)))
                for run in runs
                for line in range(0, size, 4)
            ]
            name = PRODUCTS[str(self.source.dtype)]
            dots = [
                instruction(name, tile_number(2 * m + n), tile_number(INPUTS[m]), tile_number(WEIGHTS[n]))
                for m in range(len(group))
                for n in range(len(runs))
            ]
            return sequence([*loads, *fetches, *dots])

        return loop("k", 0, self.across // size, body)


class TiledConvolution(Tiled, Convolution):
    """Channels-last input, already padded; weights (blocks, KH, KW, C / 4, block, 4)."""

    def __init__(self, anchor: Anchor, target: Target) -> None:
        super().__init__(anchor, target)
        self._widen(target)
        together = self.dilations[1] == 1
        self.width = 4 // self.step
        self.across = self.width * self.depth * (self.kernel[1] if together else 1)
        self.down = self.kernel[0] if together else self.kernel[0] * self.kernel[1]
        self.pitch = self.width * self.strides[1] * self.depth
        self.together = together
        self.line = int(self.source.shape[2])
        self.run = (self.out_height - 1) * self.line + self.out_width
        """Columns from the first to the last of an image's output, in lines as wide as the input."""
        self.long = self.strides == [1, 1] and not self.flat
        self.stacked = 1
        """Rows of the output that one row of the nest spans, each with a tile of its own."""
        if self.long:
            pieces, columns = amx_pieces(self.run)
            self.rows = replace(self.rows, rows=self.batch * pieces, columns=columns)
        elif not self.flat and self.out_width <= AMX_ROWS and self.out_height > 1:
            self.stacked, pieces = 2, -(-self.out_height // 2)
            self.rows = replace(self.rows, rows=self.batch * pieces, columns=2 * self.out_width)

    def cover(self) -> tuple[list[tuple[int, int]], int]:
        if self.stacked == 1:
            return super().cover()
        return [(r * self.out_width, r * self.out_width) for r in range(self.stacked)], self.out_width

    def _piece(self, row: Any) -> tuple[Any, Any]:
        """(first column or row that a piece of an image spans, first that no piece before it spans)."""
        length, extent = (self.rows.columns, self.run) if self.long else (self.stacked, self.out_height)
        wanted = row % (self.rows.rows // self.batch) * length
        return tirx.min(wanted, extent - length) if extent % length else wanted, wanted

    def _pixel(self, row: Any, column: Any) -> list[Any]:
        image = row // (self.rows.rows // self.batch)
        if self.long:
            at = self._piece(row)[0] + column
            return [image, at // self.line, at % self.line]
        if self.stacked > 1:
            return [image, self._piece(row)[0] + column // self.out_width, column % self.out_width]
        return super()._pixel(row, column)

    def guarded(self, row: Any, column: Any, statement: Any) -> Any:
        conditions = []
        _, i, j = self._pixel(row, column)
        first, wanted = self._piece(row)
        if self.long and self.line > self.out_width:
            conditions.append(j < self.out_width)
        if (self.long or self.stacked > 1) and not first.same_as(wanted):
            conditions.append((first + column if self.long else i) >= wanted)
        return tirx.IfThenElse(tirx.all(*conditions), statement, None) if conditions else statement

    def _tap(self, kh: Any, byte: Any) -> tuple[Any, Any, Any]:
        """(kernel row, kernel column, channel) of a byte of depth."""
        place = byte // self.width
        if self.together:
            return kh, place // self.depth, place % self.depth
        return kh // self.kernel[1], kh % self.kernel[1], place

    def _input(self, row: Any, column: Any, kh: Any, byte: Any) -> Any:
        down, across, channel = self._tap(kh, byte)
        return self.x(row, column, down, across, channel)

    def _weights(self, row: Any, run: Any, kh: Any, byte: Any) -> Any:
        down, across, first = self._tap(kh, byte)
        return self.w(row, run, down, across, [first // self.step, const(0), const(0)])


class TiledProduct(Tiled, Product):
    """a (*batch, M, K) times packed b (*batch, blocks, K / 4, block, 4)."""

    def __init__(self, anchor: Anchor, target: Target) -> None:
        super().__init__(anchor, target)
        self._widen(target)
        self.width = 4 // self.step
        self.across = self.pitch = self.width * self.depth
        self.down = 1

    def _input(self, row: Any, column: Any, kh: Any, byte: Any) -> Any:
        return self.x(row, column, kh, const(0), byte // self.width)

    def _weights(self, row: Any, run: Any, kh: Any, byte: Any) -> Any:
        return self.w(row, run, kh, const(0), [byte // 4, const(0), const(0)])
