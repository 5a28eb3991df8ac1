"""Transposed convolutions, channels last, as te definitions: a gather, so that each output is written once.

    y[n, *p, o] = sum of x[n, *q, c] * w[c, o, *k] over q * stride + k * dilation - begin = p

Coded weights are decoded once, by init (prepared.py), which the report counts: these kernels add one product at a time
and would decode a weight for each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import te, tirx

from graphc.backends.choices import Tiles
from graphc.backends.relax_module import OPAQUE, OUT_FUSIBLE, Lowering, computes
from graphc.backends.searchable import attributes
from graphc.ir import Array, Node


@dataclass(frozen=True)
class TransposedConvolution:
    """A transposed convolution: y[p] = sum of x[q] * w[c, o, k] over q * stride + k * dilation - begin = p."""

    size: tuple[int, ...]
    output: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    inner: int
    """Input channels of one group."""
    outer: int
    """Output channels of one group."""
    tiles: Tiles | None = None

    def pack(self, weights: Array) -> Array:
        """ONNX weights (C, O / groups, *K) as (*K, C, O / groups)."""
        return np.ascontiguousarray(weights.transpose(*range(2, weights.ndim), 0, 1))

    def sums(self, x: te.Tensor, w: te.Tensor, filters: int, dtype: str, x_zero_point: int = 0) -> te.Tensor:
        """The accumulator (N, *output, O): each position visits the taps that meet an input element."""
        taps = [te.reduce_axis((0, k), f"k{axis}") for axis, k in enumerate(self.kernel)]
        c = te.reduce_axis((0, self.inner), "c")

        def term(*i: Any) -> Any:
            scaled = [p + b - t * d for p, b, t, d in zip(i[1:-1], self.begin, taps, self.dilations, strict=True)]
            at = [tirx.floordiv(q, s) for q, s in zip(scaled, self.strides, strict=True)]
            valid = [
                test
                for q, a, s, limit in zip(scaled, at, self.strides, self.size, strict=True)
                for test in (q >= 0, a < limit, *([tirx.floormod(q, s) == 0] if s > 1 else []))
            ]
            channel = i[-1] // self.outer * self.inner + c
            value = x[(i[0], *at, channel)].astype(dtype)
            value = value - tirx.const(x_zero_point, dtype) if x_zero_point else value
            return tirx.if_then_else(
                tirx.all(*valid), value * w[(*taps, channel, i[-1] % self.outer)].astype(dtype), tirx.const(0, dtype)
            )

        return te.compute(
            (x.shape[0], *self.output, filters),
            lambda *i: te.sum(term(*i), axis=[*taps, c]),
            name="conv_transpose",
            attrs=attributes(self.tiles),
        )


def transposed_convolution(state: Lowering, node: Node) -> TransposedConvolution:
    """The geometry of a channels-last ConvTranspose node."""
    _, *size, channels = state.type(node.inputs[0]).dims
    _, *output, filters = state.type(node.outputs[0]).dims
    kernel = state.type(node.inputs[1]).dims[2:]
    rank, groups = len(size), node.get_int("group", 1)
    return TransposedConvolution(
        tuple(size),
        tuple(output),
        kernel,
        node.get_ints("strides", (1,) * rank),
        node.get_ints("dilations", (1,) * rank),
        _begin(node, size, output, kernel),
        channels // groups,
        filters // groups,
        state.choice(node).tiles,
    )


@computes("graphc.nhwc", "ConvTranspose")
def conv_transpose(state: Lowering, node: Node) -> Sequence[Any]:
    """y = transposed convolution + bias, a gather that writes each output once."""
    shape = transposed_convolution(state, node)
    output = state.type(node.outputs[0]).dims
    dtype = state.type(node.inputs[0]).dtype.name
    weights = state.weights(node.inputs[1])
    if weights is not None:
        packed = state.parameter(shape.pack(weights), node.inputs[1])
    else:
        order = (*range(2, len(output)), 0, 1)
        packed = state.emit(
            lambda w: te.compute([w.shape[a] for a in order], lambda *i: w[(i[-2], i[-1], *i[:-2])], name="pack"),
            state.value(node.inputs[1]),
            name="pack",
            pattern=OPAQUE,
        )
    bias = [state.value(node.inputs[2])] if len(node.inputs) > 2 and node.inputs[2] else []

    def define(x: te.Tensor, w: te.Tensor, *bias: te.Tensor) -> te.Tensor:
        acc = shape.sums(x, w, output[-1], dtype)
        return te.compute(output, lambda *i: acc[i] + bias[0][i[-1]] if bias else acc[i], name="out")

    return [state.emit(define, state.value(node.inputs[0]), packed, *bias, name="conv_transpose", pattern=OUT_FUSIBLE)]


def _begin(node: Node, size: Sequence[int], output: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
    """How far before the first input position the output begins, per axis: pads, or what output_shape implies."""
    rank = len(size)
    strides, dilations = node.get_ints("strides", (1,) * rank), node.get_ints("dilations", (1,) * rank)
    extra = node.get_ints("output_padding", (0,) * rank)
    mode = node.get_str("auto_pad", "NOTSET")
    if "output_shape" not in node.attributes and mode in ("NOTSET", "VALID"):
        return node.get_ints("pads", (0,) * (2 * rank))[:rank] if mode == "NOTSET" else (0,) * rank
    full = [
        s * (n - 1) + e + (k - 1) * d + 1 for s, n, e, k, d in zip(strides, size, extra, kernel, dilations, strict=True)
    ]
    total = [f - o for f, o in zip(full, output, strict=True)]
    return tuple(t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in total)
