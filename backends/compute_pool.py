"""Pooling, channels last."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import te, tirx

from graphc.backends.compute_conv import padded
from graphc.backends.relax_module import OUT_FUSIBLE, Lowering, computes
from graphc.backends.window import Window, window
from graphc.ir import Array, Node


def pool_window(state: Lowering, node: Node) -> Window:
    """The window of a channels-last pooling node."""
    _, *size, _ = state.type(node.inputs[0]).dims
    _, *output, _ = state.type(node.outputs[0]).dims
    return window(node, size, output, node.get_ints("kernel_shape"))


def counts(node: Node, span: Window, size: Sequence[int]) -> Array:
    """Elements averaged at each output position: inside the input, or its explicit padding where that counts."""
    rank = len(size)
    include = bool(node.get_int("count_include_pad", 0))
    explicit = (
        node.get_ints("pads", (0,) * (2 * rank))
        if node.get_str("auto_pad", "NOTSET") == "NOTSET"
        else (*span.begin, *(max(e, 0) for e in span.end))
    )
    total: Array = np.ones((), np.int64)
    for axis in range(rank):
        at = (
            np.arange(span.output[axis])[:, None] * span.strides[axis]
            + np.arange(span.kernel[axis]) * span.dilations[axis]
            - span.begin[axis]
        )
        low = -span.begin[axis] if include else 0
        high = size[axis] + (explicit[rank + axis] if include else 0)
        total = np.multiply.outer(total, ((at >= low) & (at < high)).sum(axis=1))
    return total


def described(kind: str, x: te.Tensor, span: Window, shift: int = 0) -> dict[str, str]:
    """What the schedule rules read from a pool's annotation."""
    info = {
        "kind": kind,
        "input": [int(d) for d in x.shape],
        "output": span.output,
        "kernel": span.kernel,
        "strides": span.strides,
        "dilations": span.dilations,
        "begin": span.begin,
        "shift": shift,
    }
    return {"graphc.anchor": json.dumps(info)}


def window_sum(x: te.Tensor, span: Window, output: Sequence[int], dtype: str, zero_point: int = 0) -> te.Tensor:
    """Sums of x - zero_point over each window (N, *output, C), in `dtype`; padding contributes nothing."""
    source = padded(x, span, tirx.const(zero_point, x.dtype))
    taps = [te.reduce_axis((0, k), f"k{axis}") for axis, k in enumerate(span.kernel)]

    def term(*i: Any) -> Any:
        value = source[(i[0], *_at(span, taps, i), i[-1])].astype(dtype)
        return te.sum(value - tirx.const(zero_point, dtype) if zero_point else value, axis=taps)

    return te.compute(tuple(output), term, name="pool_sum", attrs=described("pool_sum", x, span, -zero_point))


def _at(span: Window, taps: Sequence[Any], i: Sequence[Any]) -> list[Any]:
    return [p * s + t * d for p, s, t, d in zip(i[1:-1], span.strides, taps, span.dilations, strict=True)]


@computes("graphc.nhwc", "MaxPool")
def max_pool(state: Lowering, node: Node) -> Sequence[Any]:
    """The largest element of each window, floats or integers."""
    span, output = pool_window(state, node), state.type(node.outputs[0]).dims
    dtype = state.type(node.inputs[0]).dtype.name

    def define(x: te.Tensor) -> te.Tensor:
        source = padded(x, span, tirx.min_value(dtype))
        taps = [te.reduce_axis((0, k), f"k{axis}") for axis, k in enumerate(span.kernel)]
        largest = te.compute(
            output,
            lambda *i: te.max(source[(i[0], *_at(span, taps, i), i[-1])], axis=taps),
            name="pool_max",
            attrs=described("pool_max", x, span),
        )
        return te.compute(output, lambda *i: largest[i], name="out")

    return [state.emit(define, state.value(node.inputs[0]), name="max_pool", pattern=OUT_FUSIBLE)]


@computes("graphc.nhwc", "AveragePool")
def average_pool(state: Lowering, node: Node) -> Sequence[Any]:
    """Window sums times one over the number of elements at each position."""
    span, output = pool_window(state, node), state.type(node.outputs[0]).dims
    dtype = state.type(node.inputs[0]).dtype
    reciprocal = np.reciprocal(counts(node, span, state.type(node.inputs[0]).dims[1:-1]).astype(np.float64)).astype(
        dtype
    )
    uniform = bool((reciprocal == reciprocal.flat[0]).all())
    factors = [] if uniform else [state.parameter(reciprocal, "reciprocal_counts")]

    def define(x: te.Tensor, *factor: te.Tensor) -> te.Tensor:
        total = window_sum(x, span, output, dtype.name)
        one = tirx.const(float(reciprocal.flat[0]), dtype.name)
        return te.compute(output, lambda *i: total[i] * (factor[0][i[1:-1]] if factor else one), name="out")

    return [state.emit(define, state.value(node.inputs[0]), *factors, name="average_pool", pattern=OUT_FUSIBLE)]


@computes("graphc.nhwc", "GlobalAveragePool", "GlobalMaxPool")
def global_pool_last(state: Lowering, node: Node) -> Sequence[Any]:
    """Of channels last: a vector of channels at a time."""
    return _global_pool(state, node, range(1, len(state.type(node.inputs[0]).dims) - 1))


@computes("", "GlobalAveragePool", "GlobalMaxPool")
def global_pool_first(state: Lowering, node: Node) -> Sequence[Any]:
    """In ONNX's own layout: a channel's positions are a row."""
    return _global_pool(state, node, range(2, len(state.type(node.inputs[0]).dims)))


def _global_pool(state: Lowering, node: Node, spatial: range) -> Sequence[Any]:
    """Mean or maximum over all spatial positions, kept as size 1."""
    size, output = state.type(node.inputs[0]).dims, state.type(node.outputs[0]).dims
    dtype = state.type(node.inputs[0]).dtype
    share = 1.0 / float(np.prod([size[axis] for axis in spatial]))

    def define(x: te.Tensor) -> te.Tensor:
        steps = {axis: te.reduce_axis((0, size[axis]), f"p{axis}") for axis in spatial}
        combine, name = (te.sum, "pool_sum") if node.op == "GlobalAveragePool" else (te.max, "pool_max")

        def element(*i: Any) -> Any:
            return combine(x[tuple(steps.get(axis, place) for axis, place in enumerate(i))], axis=[*steps.values()])

        found = te.compute(output, element, name=name)
        if node.op == "GlobalMaxPool":
            return found
        return te.compute(output, lambda *i: found[i] * tirx.const(share, dtype.name), name="out")

    return [state.emit(define, state.value(node.inputs[0]), name="global_pool", pattern=OUT_FUSIBLE)]
