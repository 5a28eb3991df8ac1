"""Contractions whose weights are codes: decoded in registers, once per tile, or once per panel for many tiles.

One tile of output positions (a vector times a matrix, a few rows):
    for word of depth, k in word:  w[vectors] = decode(word, k);  acc[p][v] += x[p, k] * w[v]

More of them: a panel of weights stays in the level-1 cache while all tiles of a run of positions use it:
    sums[positions][block] = 0
    for tap, part of depth:
      panel[k][block] = decode(block, tap, k)
      for tile: acc = sums[tile];  for k: acc[p][v] += x[p, tap, k] * panel[k][v];  sums[tile] = acc
    y[position, block] = epilogue(sums[position])

So weights are read from memory as codes, and nothing writes dense ones to it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

from tvm import tirx

from graphc.backends.anchor import Anchor
from graphc.backends.coded_layout import Layout
from graphc.backends.decode import Decoder
from graphc.backends.geometry import Pattern, matrix_number
from graphc.backends.schedule_contraction import Contraction, Convolution, Product
from graphc.backends.statements import const, loop, sequence, spread, vector
from graphc.backends.targets import Target
from graphc.backends.tiles import panel_depth, panel_pieces, panel_positions, panel_rows

Body = Callable[[Any], Any]
Group = tuple[int, int, int, Pattern]
"""Tiles that are alike: (first column, tiles, columns in each, what each tap across reaches)."""


def schedule(anchor: Anchor, target: Target) -> Any:
    """The kernel of a contraction with coded weights, None for anything else."""
    if not anchor.info.get("coded"):
        return None
    if anchor.info["kind"] == "matmul":
        return (DecodedProduct if _is_one_matrix(anchor) else DecodedMatrices)(anchor, target).build()
    return DecodedConvolution(anchor, target).build() if anchor.info["kind"] == "conv_dense" else None


def _is_one_matrix(anchor: Anchor) -> bool:
    """Whether the rows of all matrices of the input are multiplied by the same weights."""
    own = [int(extent) for extent in anchor.x.shape[:-2]]
    return bool(prod(anchor.info["matrices"]) == 1 and own == anchor.info["batch"])


@dataclass(frozen=True)
class _Run:
    """Output positions that share panels: columns first .. first + width of some rows, for one block of channels."""

    row: Any
    block: Any
    first: int
    width: int
    groups: list[Group]
    sums: Any
    """[rows][width][channels of the block], flat"""
    panel: Any
    """[depth of a panel][channels of the block], flat"""


@dataclass(frozen=True)
class _Part:
    """Some of the channels of one tap, as many as a panel holds."""

    kh: Any
    kw: Any
    begin: Any
    channels: int


class Decoded(Contraction):
    """Replaces the loads of weights by decoding, and the nest around the register tile where panels pay."""

    across: int
    """Taps of the kernel across."""
    down: int

    def prepare(self, target: Target) -> None:
        """What there is to know beyond a contraction with plain weights."""
        self.layout = Layout.of(self.anchor.info["coded"])
        self.decoder = Decoder(self.layout, self.anchor.weights, target)
        self.panel = panel_depth(self.block, self.depth, self.layout.run)
        alike = self.rows.rows // self.sets
        self.single = alike * self.rows.columns <= self.rows.tile
        """Whether one tile holds all positions, so that a panel would be used once."""
        self.together = 1 if self.single else panel_rows(self.block, alike, self.rows.columns)

    sets = 1
    """Rows are in so many runs, each with weights of its own."""

    def weights_of(self, row: Any) -> Any:
        """Which set of weights a row is multiplied by."""
        return 0

    @property
    def row_tasks(self) -> int:
        return self.rows.rows // self.together

    def pieces_of(self, target: Target, columns: int) -> int:
        return panel_pieces(target, columns, int(self.anchor.info["block"]))

    def weights(self, row: Any, block: Any, kh: Any, kw: Any, c: Any, v: int) -> Any:
        own = self.weights_of(row) * self.blocks + block
        return self.decoder(own, kh * self.across + kw, c, const(v * self.lanes), self.lanes)

    def over_depth(self, body: Body) -> Any:
        return self.decoder.over_depth(self.depth, body)

    def _inside(self, row: Any, kh: Any) -> Any:
        """Whether a row of the kernel lies inside the input; None where all of them do."""
        low, number = self.taps(row)
        return None if isinstance(number, int) else tirx.all(kh >= low, kh < low + number)

    def _row(self, row: Any, block: Any) -> Any:
        if self.single:
            return super()._row(row, block)
        return sequence([self._run(row * self.together, block, groups) for groups in self._segments()])

    def _segments(self) -> list[list[Group]]:
        """The tiles of a row, in runs of as many columns as sums have room for."""
        most = panel_positions(self.block)
        segments: list[list[Group]] = []
        room = 0
        for first, number, columns, pattern in self.rows.groups():
            done = 0
            while done < number:
                if room < columns:
                    segments.append([])
                    room = most
                taken = min(number - done, room // columns)
                segments[-1].append((first + done * columns, taken, columns, pattern))
                done, room = done + taken, room - taken * columns
        return segments

    def _run(self, row: Any, block: Any, groups: list[Group]) -> Any:
        first, width = groups[0][0], sum(number * columns for _, number, columns, _ in groups)
        sums = tirx.decl_buffer((self.together * width * self.block,), self.dtype, "sums", scope="local")
        panel = tirx.decl_buffer((self.panel * self.block,), self.dtype, "panel", scope="local")
        run = _Run(row, block, first, width, groups, sums, panel)

        def zero(i: Any) -> Any:
            return self._set(sums, i, spread(const(0, self.dtype), self.lanes))

        def finish(r: Any, p: Any) -> Any:
            def at(v: int, lane: Any) -> Any:
                return sums[(r * width + p) * self.block + v * self.lanes + lane]

            return self.store(row + r, block, first + p, range(self.vectors), at)

        parts = [tirx.AllocBuffer(sums), tirx.AllocBuffer(panel)]
        parts.append(loop("i", 0, self.together * width * self.vectors, zero))
        parts.append(loop("kh", 0, self.down, lambda kh: self._taps_across(run, kh)))
        parts.append(loop("r", 0, self.together, lambda r: loop("p", 0, width, partial(finish, r))))
        return sequence(parts)

    def _set(self, buffer: Any, index: Any, value: Any) -> Any:
        """Store the vector number `index` of a flat buffer."""
        return tirx.BufferStore(buffer, value, [vector(index * self.lanes, self.lanes)])

    def _taps_across(self, run: _Run, kh: Any) -> Any:
        """Every tap of one row of the kernel: in a loop where each reaches all columns, else written out."""
        if all(len(reached) == columns for _, _, columns, pattern in run.groups for reached in pattern):
            return loop("kw", 0, self.across, lambda kw: self._tap(run, kh, kw, 0))
        taps = [kw for kw in range(self.across) if any(pattern[kw] for *_, pattern in run.groups)]
        return sequence([self._tap(run, kh, const(kw), kw) for kw in taps])

    def _tap(self, run: _Run, kh: Any, kw: Any, alike: int) -> Any:
        """One tap, panel by panel; `alike` is a tap that reaches the same columns."""
        whole, rest = divmod(self.depth, self.panel)

        def part(begin: Any, channels: int) -> Any:
            return self._part(run, _Part(kh, kw, begin, channels), alike)

        parts = [loop("part", 0, whole, lambda n: part(n * self.panel, self.panel))] if whole else []
        return sequence([*parts, *([part(const(whole * self.panel), rest)] if rest else [])])

    def _part(self, run: _Run, part: _Part, alike: int) -> Any:
        """Decode one panel, and add what it contributes to every tile."""

        def decode(i: Any) -> Any:
            place = (run.row, run.block, part.kh, part.kw, part.begin + i)
            vectors = [self.weights(*place, v) for v in range(self.vectors)]
            return sequence([self._set(run.panel, i * self.vectors + v, w) for v, w in enumerate(vectors)])

        def tiles(r: Any) -> Any:
            adding = sequence([self._tiles(run, part, r, group, alike) for group in run.groups if group[3][alike]])
            inside = self._inside(run.row + r, part.kh)
            return adding if inside is None else tirx.IfThenElse(inside, adding, None)

        return sequence([self.decoder.over_depth(part.channels, decode), loop("r", 0, self.together, tiles)])

    def _tiles(self, run: _Run, part: _Part, r: Any, group: Group, alike: int) -> Any:
        """sums[tile] += x times the panel, for tiles that are alike."""
        first, number, count, pattern = group

        def tile(t: Any) -> Any:
            begin = first + t * count
            acc = tirx.decl_buffer((count * self.block,), self.dtype, "acc", scope="local")
            places = [
                (p * self.vectors + v, (r * run.width + begin - run.first + p) * self.vectors + v)
                for p in pattern[alike]
                for v in range(self.vectors)
            ]

            def step(c: Any) -> Any:
                def weights(v: int) -> Any:
                    return run.panel[vector((c * self.vectors + v) * self.lanes, self.lanes)]

                x = (run.row + r, begin, part.kh, part.kw, part.begin + c)
                return self.tile_step(acc, *x, pattern[alike], weights)

            load = [self._set(acc, i, run.sums[vector(j * self.lanes, self.lanes)]) for i, j in places]
            keep = [self._set(run.sums, j, acc[vector(i * self.lanes, self.lanes)]) for i, j in places]
            return sequence([tirx.AllocBuffer(acc), *load, loop("c", 0, part.channels, step), *keep])

        return loop("tile", 0, number, tile)


class DecodedConvolution(Decoded, Convolution):
    """Channels-last input; codes of (blocks, KH * KW * C, block)."""

    def __init__(self, anchor: Anchor, target: Target) -> None:
        super().__init__(anchor, target)
        self.down, self.across, self.sets = prod(self.kernel[:-1]), self.kernel[-1], self.groups
        self.prepare(target)

    def weights_of(self, row: Any) -> Any:
        return self.group(row)


class DecodedProduct(Decoded, Product):
    """a (*batch, M, K) times codes of (blocks, K, block); the matrices of the batch are the rows of one."""

    down = across = 1

    def __init__(self, anchor: Anchor, target: Target) -> None:
        info = anchor.info
        rows = prod(info["batch"]) * info["rows"]
        super().__init__(replace(anchor, info={**info, "batch": [], "rows": rows}), target)
        self.extents = [*info["batch"], info["rows"]]
        self.prepare(target)

    def _place(self, row: Any, column: Any) -> list[Any]:
        """(*batch, m) of a row of all matrices together."""
        at = self._matrix_row(row, column)
        places = []
        for extent in reversed(self.extents[1:]):
            places.append(at % extent)
            at = at // extent
        return [at, *reversed(places)]

    def x(self, row: Any, column: Any, kh: Any, kw: Any, c: Any) -> Any:
        *batch, m = self._place(row, column)
        return self.source[(*batch, *((c, m) if self.anchor.info["transposed"] else (m, c)))]

    def position(self, row: Any, column: Any, channel: Any) -> list[Any]:
        return [*self._place(row, column), channel]


class DecodedMatrices(Decoded, Product):
    """a (*batch, M, K) times codes of (matrices * blocks, K, block): a panel serves rows of one matrix."""

    down = across = 1

    def __init__(self, anchor: Anchor, target: Target) -> None:
        super().__init__(anchor, target)
        self.sets = prod(self.batch)
        self.prepare(target)

    def weights_of(self, row: Any) -> Any:
        return matrix_number(self.anchor.info["matrices"], self._batch(row))
