"""Convolutions and matrix products of float16: eight at once, short sums in float16, added up in float32.

for task, tile:                                  as `schedule_contraction`
  sums[width][block] = 0                         float32; only where there is more than one part
  for part of the terms (at most MOST_TERMS):    a run of channels, a row of taps, or all
    part[width][vectors] = 0                     float16, in registers
    for c in part:  part[p][v] += x[p, c] * w[c, v]                                  fmla by lane
    sums += part
  y[row, p, block] = epilogue(sums)
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tvm import tirx

from graphc.backends.anchor import Anchor
from graphc.backends.geometry import Pattern
from graphc.backends.narrow_fp16 import MOST_TERMS
from graphc.backends.schedule_contraction import Contraction, Convolution, Product, held
from graphc.backends.statements import const, loop, sequence, spread, vector
from graphc.backends.targets import Target
from graphc.backends.tiles import chosen_columns, chunks

HALF, FLOAT = "float16", "float32"


def schedule(anchor: Anchor, target: Target) -> Any:
    """The kernel of a contraction of float16, None for anything else."""
    if anchor.info.get("dot") != "half":
        return None
    kind = HalfProduct if anchor.info["kind"] == "matmul" else HalfConvolution
    return kind(anchor, target).prepared(target).build()


class Half(Contraction):
    """Replaces the register tile: parts of a sum in float16, the sum of the parts in float32."""

    across: int
    """Taps of the kernel across."""
    down: int

    def prepared(self, target: Target) -> "Half":
        """Itself with vectors of float16, which `Contraction` takes for those of 32 bits."""
        self.dtype, self.dot = HALF, None
        self.lanes = min(target.lanes(16), self.block)
        self.vectors = self.block // self.lanes
        return self

    def pieces_of(self, target: Target, columns: int) -> int:
        info = self.anchor.info
        return chunks(target, columns, int(info["block"]) // 2, info["tile"], held(self.anchor, target))

    def tile_of(self, target: Target, columns: int) -> int:
        block, tile = int(self.anchor.info["block"]), self.anchor.info["tile"]
        return chosen_columns(target, columns, block // 2, tile, held(self.anchor, target))

    def _tile(self, row: Any, block: Any, first: Any, count: int, pattern: Pattern) -> Any:
        part = tirx.decl_buffer((count * self.block,), HALF, "part", scope="local")
        sums = tirx.decl_buffer((count * self.block,), FLOAT, "sums", scope="local")
        places = [vector(i * self.lanes, self.lanes) for i in range(count * self.vectors)]
        single = self.depth * self.across * self.down <= MOST_TERMS
        by_row = not single and self.depth * self.across <= MOST_TERMS

        def cleared(buffer: Any) -> list[Any]:
            zero = spread(const(0, str(buffer.dtype)), self.lanes)
            return [tirx.BufferStore(buffer, zero, [at]) for at in places]

        def added(statement: Any) -> Any:
            wide = FLOAT if self.lanes == 1 else f"{FLOAT}x{self.lanes}"
            adds = [tirx.BufferStore(sums, sums[at] + tirx.Cast(wide, part[at]), [at]) for at in places]
            return sequence([*cleared(part), statement, *adds])

        def tap(kh: Any, kw: Any, columns: Sequence[int]) -> Any:
            place = partial(self.lanes_step, part, row, block, first, kh, kw, columns)
            return self.in_loads(place, const(0), self.depth) if single or by_row else self._parts(place, added)

        def taps(kh: Any) -> Any:
            if all(len(columns) == count for columns in pattern):
                every = loop("kw", 0, len(pattern), lambda kw: tap(kh, kw, range(count)))
            else:
                every = sequence([tap(kh, const(kw), columns) for kw, columns in enumerate(pattern) if columns])
            return added(every) if by_row else every

        result = part if single else sums
        low, number = self.taps(row)
        stores = [self._result(result, row, block, first, p) for p in range(count)]
        frame = [tirx.AllocBuffer(each) for each in ((part,) if single else (part, sums))]
        return sequence([*frame, *cleared(result), loop("kh", low, number, taps), *stores])

    def _parts(self, place: Callable[[Any, int], Any], added: Callable[[Any], Any]) -> Any:
        """The channels of one tap, `MOST_TERMS` at a time."""
        whole, left = divmod(self.depth, MOST_TERMS)
        parts = []
        if whole:
            parts = [loop("part", 0, whole, lambda i: added(self.in_loads(place, i * MOST_TERMS, MOST_TERMS)))]
        if left:
            parts.append(added(self.in_loads(place, const(whole * MOST_TERMS), left)))
        return sequence(parts)

    def _result(self, sums: Any, row: Any, block: Any, first: Any, p: int) -> Any:
        def total(v: int, lane: Any) -> Any:
            return tirx.Cast(FLOAT, sums[p * self.block + v * self.lanes + lane])

        return self.store(row, block, first + p, range(self.vectors), total)


class HalfConvolution(Half, Convolution):
    """Channels last."""

    @property
    def down(self) -> int:  # type: ignore[override]
        return int(self.kernel[0])

    @property
    def across(self) -> int:  # type: ignore[override]
        return int(self.kernel[1])


class HalfProduct(Half, Product):
    """A matrix product: one tap."""

    across = down = 1
