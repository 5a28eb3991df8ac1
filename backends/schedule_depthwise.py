"""8-bit depthwise convolutions on Cortex-M with the DSP extension: four channels are one word.

    for task = four channels:
      w[taps] = weights as two words of 16-bit halves                        on the stack, decoded once
      for row, column of the output:
        acc[4] = 0                                                           in registers
        for taps inside the input:  acc[c] += (x[c] + shift) * w[c]          smlabb, smlatt
        y[row, column, 4] = epilogue(acc)

One load gives four inputs, which `sxtab16` widens with their zero point taken off; padding contributes nothing.
"""

from functools import partial
from math import prod
from typing import Any

from tvm import tirx

from graphc.backends.anchor import Anchor
from graphc.backends.dot_thumb import halves, multiply_half
from graphc.backends.geometry import Pattern, Rows
from graphc.backends.statements import clipped_taps, const, function, loop, row_of_tiles, sequence, tasks, vector
from graphc.backends.targets import Target

GROUP = 4
"""Channels in a word."""
LANES = ((0, False), (0, True), (1, False), (1, True))
"""(word, whether its upper half) of the sums as they are kept: channels 0, 2, 1, 3."""
CHANNELS = (0, 2, 1, 3)


def schedule(anchor: Anchor, target: Target) -> Any:
    """The kernel of a depthwise convolution of bytes whose channels fill words, None for anything else."""
    info = anchor.info
    if info["kind"] != "conv_depthwise" or len(info["kernel"]) != 2 or info["multiplier"] != 1:
        return None
    if not target.has("dsp") or target.has("mve") or info["input"][-1] % GROUP:
        return None
    types = {str(anchor.x.dtype), str(anchor.weights[0].dtype)}
    return _Depthwise(anchor).build() if types <= {"int8", "uint8"} else None


class _Depthwise:
    def __init__(self, anchor: Anchor) -> None:
        info = anchor.info
        self.anchor, self.shift = anchor, int(info["shift"])
        self.batch, self.height, self.width, self.channels = info["input"]
        self.out_height, self.out_width = info["output"]
        self.kernel, self.strides = info["kernel"], info["strides"]
        self.dilations, self.begin = info["dilations"], info["begin"]
        across = (self.kernel[1], self.strides[1], self.dilations[1], self.begin[1], self.width)
        self.rows = Rows(self.batch * self.out_height, self.out_width, *across, 1)
        self.unsigned = str(anchor.x.dtype) == "uint8"

    def build(self) -> Any:
        nest = tasks(self.channels // GROUP, self._group)
        return function(self.anchor.parameters, self.anchor.attributes, [nest])

    def _group(self, group: Any) -> Any:
        taps = prod(self.kernel)
        weights = tirx.decl_buffer((taps * 2,), "int32", "weights", scope="local")

        def decode(tap: Any) -> Any:
            place = tap // self.kernel[1], tap % self.kernel[1], vector(group * GROUP, GROUP)
            pairs = halves(tirx.reinterpret("int32", self.anchor.weights[0][place]))
            return sequence([tirx.BufferStore(weights, pair, [tap * 2 + n]) for n, pair in enumerate(pairs)])

        def row(r: Any) -> Any:
            return row_of_tiles(self.rows, partial(self._position, weights, group, r))

        return sequence([tirx.AllocBuffer(weights), loop("tap", 0, taps, decode), loop("row", 0, self.rows.rows, row)])

    def _position(self, weights: Any, group: Any, row: Any, column: Any, _count: int, pattern: Pattern) -> Any:
        acc = tirx.decl_buffer((GROUP,), "int32", "acc", scope="local")
        axis = (self.kernel[0], self.strides[0], self.dilations[0], self.begin[0], self.height, self.out_height)
        low, number = clipped_taps(row % self.out_height, *axis)
        reached = [kw for kw, columns in enumerate(pattern) if columns]

        def across(kh: Any) -> Any:
            return sequence([s for kw in reached for s in self._tap(acc, weights, group, row, column, kh, kw)])

        zero = [tirx.BufferStore(acc, const(0), [const(i)]) for i in range(GROUP)]
        stores = [self._store(acc, group, row, column, i) for i in range(GROUP)]
        return sequence([tirx.AllocBuffer(acc), *zero, loop("kh", low, number, across), *stores])

    def _tap(self, acc: Any, weights: Any, group: Any, row: Any, column: Any, kh: Any, kw: int) -> list[Any]:
        at = (
            row % self.out_height * self.strides[0] + kh * self.dilations[0] - self.begin[0],
            column * self.strides[1] + kw * self.dilations[1] - self.begin[1],
        )
        four = self.anchor.x[row // self.out_height, *at, vector(group * GROUP, GROUP)]
        x = halves(tirx.reinterpret("int32", four), self.unsigned, self.shift)
        tap = (kh * self.kernel[1] + kw) * 2
        return [
            tirx.BufferStore(acc, multiply_half(acc[i], x[word], weights[tap + word], upper), [const(i)])
            for i, (word, upper) in enumerate(LANES)
        ]

    def _store(self, acc: Any, group: Any, row: Any, column: Any, i: int) -> Any:
        position = [row // self.out_height, row % self.out_height, column, group * GROUP + CHANNELS[i]]
        return self.anchor.epilogue(position, acc[i])
