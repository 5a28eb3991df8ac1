"""Depthwise convolutions and pools: windows that keep channels apart, in register tiles.

    for task = row of output positions:
      for run of channels, tile of `width` columns:
        acc[width] = identity                                    a vector of channels each, in registers
        for kh, kw: for p in width:
          acc[p] = acc[p] + x[row, p, kh, kw, run] * w[kh, kw, run]       depthwise
          acc[p] = acc[p] + x[row, p, kh, kw, run]                        average pool
          acc[p] = max(acc[p], x[row, p, kh, kw, run])                    max pool
        y[row, p, run] = epilogue(acc[p])

Coded weights of a run of channels are decoded to the stack, once for all tiles of the row:
        for tap:  w[tap] = decode(run, tap)

Padding contributes nothing to any of them, so taps outside the input are left out, as in `schedule_contraction`.
"""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

from tvm import tirx

from graphc.backends.anchor import Anchor
from graphc.backends.coded_layout import Layout
from graphc.backends.decode import Decoder
from graphc.backends.geometry import Pattern, Rows
from graphc.backends.statements import (
    clipped_taps,
    const,
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
from graphc.backends.tiles import window_tile

Weights = Callable[[Any, Any, Any, int], Any]
"""(row and column of the kernel, first channel, lanes) -> a vector of weights."""

KINDS = ("conv_depthwise", "pool_max", "pool_sum")


def schedule(anchor: Anchor, target: Target) -> Any:
    """The kernel of a per-channel window over two spatial axes, None where the form is another."""
    if anchor.info["kind"] not in KINDS or len(anchor.info["kernel"]) != 2 or anchor.info.get("multiplier", 1) != 1:
        return None
    return _Window(anchor, target).build()


class _Window:
    def __init__(self, anchor: Anchor, target: Target) -> None:
        info = anchor.info
        self.anchor, self.kind = anchor, info["kind"]
        self.batch, self.height, self.width, self.channels = info["input"]
        self.out_height, self.out_width = info["output"]
        self.kernel, self.strides, self.dilations, self.begin = (
            info["kernel"],
            info["strides"],
            info["dilations"],
            info["begin"],
        )
        self.dtype = str(anchor.accumulator.dtype)
        self.lanes = max(1, target.lanes(32))
        self.shift = int(info.get("shift", 0))
        self.decoder = Decoder(Layout.of(info["coded"]), anchor.weights, target) if info.get("coded") else None
        self.rows = Rows(
            self.batch * self.out_height,
            self.out_width,
            self.kernel[1],
            self.strides[1],
            self.dilations[1],
            self.begin[1],
            self.width,
            min(info.get("tile") or window_tile(self.out_width), self.out_width),
        )

    def build(self) -> Any:
        return function(self.anchor.parameters, self.anchor.attributes, [tasks(self.rows.rows, self._row)])

    def _row(self, row: Any) -> Any:
        """Runs of whole vectors in a loop, then the channels that are left."""
        runs, left = divmod(self.channels, self.lanes)
        parts = [loop("run", 0, runs, lambda run: self._run(row, run * self.lanes, self.lanes))] if runs else []
        parts += [self._run(row, const(runs * self.lanes), left)] if left else []
        return sequence(parts)

    def _run(self, row: Any, channel: Any, lanes: int) -> Any:
        decode, weights = self._decoded(channel) if self.decoder is not None else ([], self._weights)
        return sequence([*decode, row_of_tiles(self.rows, partial(self._tile, weights, row, channel, lanes))])

    def _weights(self, kh: Any, kw: Any, channel: Any, lanes: int) -> Any:
        return self.anchor.weights[0][kh, kw, vector(channel, lanes)]

    def _decoded(self, channel: Any) -> tuple[list[Any], Weights]:
        """(statements that decode the weights of a run of channels to the stack, how they are read from there)."""
        decoder, taps = self.decoder, prod(self.kernel)
        assert decoder is not None
        panel = tirx.decl_buffer((taps * self.lanes,), self.dtype, "panel", scope="local")

        def decode(tap: Any) -> Any:
            value = decoder(channel // self.lanes, tap, const(0), const(0), self.lanes)
            return tirx.BufferStore(panel, value, [vector(tap * self.lanes, self.lanes)])

        def weights(kh: Any, kw: Any, _channel: Any, lanes: int) -> Any:
            return panel[vector((kh * self.kernel[1] + kw) * self.lanes, lanes)]

        return [tirx.AllocBuffer(panel), loop("tap", 0, taps, decode)], weights

    def _tile(
        self, weights: Weights, row: Any, channel: Any, lanes: int, first: Any, count: int, pattern: Pattern
    ) -> Any:
        acc = tirx.decl_buffer((count * lanes,), self.dtype, "acc", scope="local")
        identity = tirx.min_value(self.dtype) if self.kind == "pool_max" else const(0, self.dtype)
        places = [vector(p * lanes, lanes) for p in range(count)]
        low, number = clipped_taps(
            row % self.out_height,
            self.kernel[0],
            self.strides[0],
            self.dilations[0],
            self.begin[0],
            self.height,
            self.out_height,
        )

        def tap(kh: Any, kw: int, p: int) -> Any:
            x = self._input(row, channel, lanes, first + p, kh, kw)
            return tirx.BufferStore(acc, self._combine(acc[places[p]], x, weights, kh, kw, channel, lanes), [places[p]])

        def across(kh: Any) -> Any:
            return sequence([tap(kh, kw, p) for kw, columns in enumerate(pattern) for p in columns])

        return sequence(
            [
                tirx.AllocBuffer(acc),
                *(tirx.BufferStore(acc, spread(identity, lanes), [place]) for place in places),
                loop("kh", low, number, across),
                *(self._store(acc, row, channel, lanes, first, p) for p in range(count)),
            ]
        )

    def _input(self, row: Any, channel: Any, lanes: int, column: Any, kh: Any, kw: int) -> Any:
        at = (
            row % self.out_height * self.strides[0] + kh * self.dilations[0] - self.begin[0],
            column * self.strides[1] + kw * self.dilations[1] - self.begin[1],
        )
        x = self._wide(self.anchor.x[row // self.out_height, *at, vector(channel, lanes)], lanes)
        return x + spread(const(self.shift, self.dtype), lanes) if self.shift else x

    def _combine(self, acc: Any, x: Any, weights: Weights, kh: Any, kw: int, channel: Any, lanes: int) -> Any:
        if self.kind == "pool_max":
            return tirx.max(acc, x)
        if self.kind == "pool_sum":
            return acc + x
        return acc + x * self._wide(weights(kh, kw, channel, lanes), lanes)

    def _wide(self, value: Any, lanes: int) -> Any:
        return tirx.Cast(f"{self.dtype}x{lanes}" if lanes > 1 else self.dtype, value)

    def _store(self, acc: Any, row: Any, channel: Any, lanes: int, first: Any, p: int) -> Any:
        def lane(i: Any) -> Any:
            position = [row // self.out_height, row % self.out_height, first + p, channel + i]
            return self.anchor.epilogue(position, acc[p * lanes + i])

        return vectorized(lanes, lane)
