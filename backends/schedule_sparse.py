"""Contractions whose weights have blocks of zeros: the register tile of a dense one, for stored blocks only.

    for tile of columns:
      acc[columns] = 0                                               one vector of outputs: stays in registers
      for kh, kw:
        for block in starts[tap] .. starts[tap + 1]:
          c = index[block] * run
          for i in run, p in columns:  acc[p] += x[row, p, kh, kw, c + i] * values[block, i]
      y[row, p] = epilogue(acc[p])

One vector of weights meets as many columns as there are registers, and inputs are broadcast from memory as they are
added up, so a stored block costs what it costs in a dense kernel; what is left over is a load of its index.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc.backends.anchor import Anchor
from graphc.backends.schedule_contraction import Contraction, Convolution, Product
from graphc.backends.sparse import Layout
from graphc.backends.statements import const, loop, sequence, vector
from graphc.backends.targets import Target
from graphc.backends.tiles import columns_in_cache, single_tiles, tile_cycles

NEAR = 0.6
"""Of the second-level cache: weights that take less stay there."""


def schedule(anchor: Anchor, target: Target) -> Any:
    """The kernel of a contraction with sparse weights, None for anything else."""
    if not anchor.info.get("sparse"):
        return None
    kind = SparseProduct if anchor.info["kind"] == "matmul" else SparseConvolution
    return kind(anchor, target).build()


class Skipped(Contraction):
    """Replaces the loop over input channels by one over the stored blocks of a tap."""

    across: int
    """Taps of the kernel across."""

    def prepare(self, target: Target) -> None:
        self.layout = Layout.of(self.anchor.info["sparse"])
        self.starts, self.index, self.values = self.anchor.weights
        self.near = self.layout.bytes(self.block) < target.l2_bytes * NEAR

    def most(self, target: Target) -> int:
        """Columns of a tile at most: as many as stay in the cache, or fewer by choice."""
        source = self.anchor.x
        pitch = int(source.shape[-1]) * np.dtype(str(source.dtype)).itemsize
        fit = columns_in_cache(target, pitch * int(self.anchor.info.get("strides", [1])[-1]))
        return min(fit, int(self.anchor.info["tile"] or fit))

    def tile_of(self, target: Target, columns: int) -> int:
        return tile_cycles(target, columns, int(self.anchor.info["block"]), self.most(target))[1]

    def pieces_of(self, target: Target, columns: int) -> int:
        return single_tiles(target, columns, int(self.anchor.info["block"]), self.most(target))

    def weights_once(self) -> bool:
        """Stored blocks are read in their order, which costs little from the second-level cache; inputs are not."""
        return not self.near

    def _depth(self, acc: Any, row: Any, block: Any, first: Any, kh: Any, kw: Any, columns: Sequence[int]) -> Any:
        tap = kh * self.across + kw
        start = self.starts[block, tap]

        def body(j: Any) -> Any:
            at = start + j
            return sequence([self._stored(acc, row, first, kh, kw, at, i, columns) for i in range(self.inner)])

        return loop("stored", 0, self.starts[block, tap + 1] - start, body)

    @property
    def inner(self) -> int:
        """Steps of the register tile in a block: integers are one dot product."""
        return 1 if self.layout.integer else self.layout.run

    def _stored(self, acc: Any, row: Any, first: Any, kh: Any, kw: Any, at: Any, i: int, columns: Sequence[int]) -> Any:
        def weights(v: int) -> Any:
            if self.layout.integer:
                return self.values[at, const(v * self.lanes), vector(const(0), self.lanes * self.step)]
            return self.values[at, const(i), vector(const(v * self.lanes), self.lanes)]

        return self.tile_step(acc, row, first, kh, kw, self.index[at] * self.inner + i, columns, weights)


class SparseConvolution(Skipped, Convolution):
    """Channels-last input."""

    def __init__(self, anchor: Anchor, target: Target) -> None:
        super().__init__(anchor, target)
        self.across = self.kernel[1]
        self.prepare(target)


class SparseProduct(Skipped, Product):
    """a (*batch, M, K) times one sparse matrix."""

    across = 1

    def __init__(self, anchor: Anchor, target: Target) -> None:
        super().__init__(anchor, target)
        self.prepare(target)
