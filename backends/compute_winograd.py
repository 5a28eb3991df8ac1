"""A 3x3 convolution of stride 1 by Winograd's filtering, in te (`graphc.backends.winograd` has the algebra).

v[p, t, c] = sum over r, s of x[n, m ty + r - begin, m tx + s - begin, c] * B'[p_y, r] * B'[p_x, s]
u[p, t, o] = sum over c of v[p, t, c] * w[o / block, p, c, o]        tile t = (n, ty, tx), point p = (p_y, p_x)
y[n, i, j, o] = sum over p of u[p, (n, i / m, j / m), o] * A'[i % m, p_y] * A'[j % m, p_x]
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import te, tirx

from graphc.backends.relax_module import Lowering
from graphc.backends.window import Window
from graphc.backends.winograd import Filtering
from graphc.ir import Array


@dataclass(frozen=True)
class WinogradConvolution:
    """Which filtering, over what: x (batch, *size, channels), `filters` in runs of `block`."""

    filtering: Filtering
    window: Window
    batch: int
    size: tuple[int, ...]
    channels: int
    filters: int
    block: int

    @property
    def blocks(self) -> int:
        return -(-self.filters // self.block)

    def description(self) -> str:
        """What the schedule rules read from the anchor's annotation."""
        return json.dumps(
            {
                "kind": "conv_winograd",
                "m": self.filtering.m,
                "input": [self.batch, *self.size, self.channels],
                "output": self.window.output,
                "begin": self.window.begin,
                "filters": self.filters,
                "depth": self.channels,
                "block": self.block,
                "step": 1,
                "dot": "plain",
            }
        )

    def pack(self, weights: Array) -> Array:
        """ONNX weights (O, I, 3, 3), transformed, in the order the kernel reads them: [O / block, points, I, block]."""
        transformed = self.filtering.transformed(weights)
        padded = np.pad(transformed, [(0, 0), (0, 0), (0, self.blocks * self.block - self.filters)])
        runs = padded.reshape(self.filtering.points, self.channels, self.blocks, self.block)
        return np.ascontiguousarray(runs.transpose(2, 0, 1, 3))

    def operands(self, state: Lowering, weights: Array, name: str) -> list[Any]:
        """Packed weights, B' and A' as parameters of the program. (Scheduled kernels have B' and A' in their code.)"""
        return [
            state.parameter(self.pack(weights), name),
            state.parameter(self.filtering.inputs.astype(np.float32), "winograd_b"),
            state.parameter(self.filtering.outputs.astype(np.float32), "winograd_a"),
        ]

    def accumulate(self, x: te.Tensor, weights: te.Tensor, b: te.Tensor, a: te.Tensor) -> te.Tensor:
        """The sums (N, *output, blocks, block)."""
        m, size, points = self.filtering.m, self.filtering.size, self.filtering.points
        down, across = self.filtering.tiles(self.window.output)
        tiles = self.batch * down * across
        r, s = te.reduce_axis((0, size), "r"), te.reduce_axis((0, size), "s")

        def transform(p: Any, t: Any, c: Any) -> Any:
            at = [
                tile * m + tap - begin
                for tile, tap, begin in zip((t // across % down, t % across), (r, s), self.window.begin, strict=True)
            ]
            inside = [test for q, limit in zip(at, self.size, strict=True) for test in (q >= 0, q < limit)]
            value = tirx.if_then_else(tirx.all(*inside), x[(t // (down * across), *at, c)], tirx.const(0, x.dtype))
            return te.sum(value * b[p // size, r] * b[p % size, s], axis=[r, s])

        v = te.compute(
            (points, tiles, self.channels), transform, name="transform", attrs={"graphc.role": "winograd_input"}
        )
        c = te.reduce_axis((0, self.channels), "c")
        u = te.compute(
            (points, tiles, self.blocks, self.block),
            lambda p, t, run, o: te.sum(v[p, t, c] * weights[run, p, c, o], axis=c),
            name="conv",
            attrs={"graphc.anchor": self.description()},
        )
        k = te.reduce_axis((0, points), "p")

        def result(n: Any, i: Any, j: Any, run: Any, o: Any) -> Any:
            tile = (n * down + i // m) * across + j // m
            return te.sum(u[k, tile, run, o] * a[i % m, k // size] * a[j % m, k % size], axis=k)

        shape: Sequence[int] = (self.batch, *self.window.output, self.blocks, self.block)
        return te.compute(shape, result, name="inverse", attrs={"graphc.role": "winograd_output"})
