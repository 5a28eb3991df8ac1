"""Constant weights with blocks of zeros, as kernels that skip them read them (no TVM).

Weights W [outputs, inputs, taps] are cut into blocks: one vector of outputs, `run` inputs, one tap. Those that hold
anything but zeros lie one after another, for each vector of outputs tap by tap:

    values  [blocks, run, lanes]      in floats
            [blocks, lanes, run]      for integer dot products, which add up `run` inputs
    index   [blocks]                  which run of inputs a block multiplies
    starts   [vectors, taps + 1]       where the blocks of each tap begin, and the last ends

`index` is longer than that by the most blocks of a tap, so that a loop of that length may read past its end.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from graphc.backends.cycles import STREAM, Contraction, direct
from graphc.backends.targets import Target
from graphc.backends.tiles import tile_cycles
from graphc.ir import Array

RUN = 4
"""Inputs of a block of floats where zeros come in such runs; else 1."""


MOST_KEPT = 0.75
"""Share of weights that are not zero: with more, nobody pruned them."""


def is_pruned(weights: Array) -> bool:
    """Whether enough weights are zero that skipping them may pay."""
    return int(np.count_nonzero(weights)) <= MOST_KEPT * weights.size


@dataclass(frozen=True)
class Layout:
    """What a kernel must know beside the arrays: `longest` is the most blocks of one tap, `count` that of all."""

    run: int
    longest: int
    count: int
    integer: bool

    def description(self) -> dict[str, Any]:
        return asdict(self)

    def bytes(self, lanes: int) -> int:
        """Of all values."""
        return self.count * self.run * lanes * (1 if self.integer else 4)

    @staticmethod
    def of(description: Mapping[str, Any]) -> "Layout":
        return Layout(**description)


@dataclass(frozen=True)
class Sparse:
    """The arrays of `layout`."""

    layout: Layout
    values: Array
    index: Array
    starts: Array


def sparse(weights: Array, lanes: int, run: int, integer: bool) -> Sparse:
    """W [outputs, inputs, taps] in blocks of `lanes` outputs x `run` inputs."""
    outputs, inputs, taps = weights.shape
    padded = np.pad(weights, ((0, -outputs % lanes), (0, -inputs % run), (0, 0)))
    vectors, runs = padded.shape[0] // lanes, padded.shape[1] // run
    blocks = padded.reshape(vectors, lanes, runs, run, taps).transpose(0, 4, 2, 3, 1)  # vector, tap, run, input, lane
    stored = blocks.any(axis=(3, 4))
    ends = np.concatenate([[0], np.cumsum(stored.sum(axis=2).ravel())])
    starts = np.stack([ends[v * taps : (v + 1) * taps + 1] for v in range(vectors)]).astype(np.int32)
    longest = max(int(stored.sum(axis=2).max(initial=0)), 1)
    values = blocks[stored]
    if integer:
        values = values.transpose(0, 2, 1)
    values = np.concatenate([values, np.zeros((1, *values.shape[1:]), values.dtype)])
    index = np.nonzero(stored)[2].astype(np.int32)
    layout = Layout(run, longest, len(index), integer)
    return Sparse(layout, np.ascontiguousarray(values), np.pad(index, (0, longest)), starts)


def best_run(weights: Array, lanes: int) -> int:
    """Inputs of a block of floats: a run where almost as few weights are stored as without."""
    if weights.shape[1] % RUN:
        return 1
    single, together = (sparse(weights, lanes, run, integer=False).layout.count * run for run in (1, RUN))
    return RUN if together <= 1.05 * single else 1


LOSS = 1.4
"""How much longer skipping takes beside the direct sum than `cycles` says: inputs are read out of order. ResNet-50
with 75 % zeros: said 3.6 times as fast, measured 2.6 (2.0 to 3.2). Beside Winograd's filtering the models agree with
what was measured (said 1.03 to 1.64, measured 1.2 to 2.1)."""
PER_BLOCK, PER_TAP = 1.5, 12.0
"""Cycles of a tile beside its arithmetic: for the index of each stored block, for the loop of each tap."""


def speed(weights: Sparse, work: Contraction, target: Target, filtering: float | None = None) -> float:
    """How many times as fast as the dense kernel skipping should be: as the direct sum, or as `filtering` cycles."""
    dense = direct(work, target) / LOSS if filtering is None else filtering
    return dense / cycles(weights, work, target)


def cycles(weights: Sparse, work: Contraction, target: Target) -> float:
    """Cycles of skipping: what is stored costs what it costs in a dense kernel of one vector, and its index."""
    arithmetic, tile = tile_cycles(target, work.columns, target.lanes(32))
    tiles, taps = -(-work.columns // tile), weights.starts.shape[0] * (weights.starts.shape[1] - 1)
    inner = -(-weights.layout.run // work.step)
    each = weights.layout.count * (inner * arithmetic + tiles * PER_BLOCK) + taps * tiles * PER_TAP
    return max(float(work.rows * each), weights.values.nbytes / STREAM)
