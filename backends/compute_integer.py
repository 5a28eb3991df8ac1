"""The one integer arithmetic as te definitions: what `arithmetic.py` defines in numpy, bit for bit.

Zero points are folded at compile time: weights w become w - w_zero_point (int16 where that leaves 8 bits), and the
bias takes -x_zero_point * sum(w), so that kernels add plain products; padding is x_zero_point.
"""

import dataclasses
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from tvm import te, tirx

from graphc.backends import compute_conv, compute_conv_transpose, compute_matmul, rounding
from graphc.backends.arithmetic import MAX_SUM, largest_sum
from graphc.backends.compute_decode import limits
from graphc.backends.compute_pool import counts, pool_window, window_sum
from graphc.backends.dot import DOTS, VECTORS, Dot, dot_product, wide_product
from graphc.backends.relax_module import BROADCAST, OPAQUE, OUT_FUSIBLE, Lowering, computes
from graphc.errors import UnsupportedError
from graphc.ir import Array, Node

DOMAIN = "graphc.integer"


def requantized(state: Lowering, node: Node, sums: Any, scale: Any, small: bool = False) -> Any:
    """clamp(rint(float32(sums) * scale), y_min - zp, y_max - zp) + zp as the result's type; float32(sums) * scale
    where that is float32, the sums where it is int32. `small`: the scales are `rounding.bounded`.
    """
    if state.type(node.outputs[0]).dtype.name == "int32":
        return sums
    if state.type(node.outputs[0]).dtype.name == "float32":
        return sums.astype("float32") * scale
    span = node.get_int("y_min", 0), node.get_int("y_max", 0)
    dtype = state.type(node.outputs[0]).dtype.name
    return rounding.stored(state.target, sums, scale, span, node.get_int("y_zero_point", 0), dtype, small)


def _plus(sums: Any, bias: Any) -> Any:
    """int32 sums plus a bias, in the type of the bias."""
    return sums.astype(bias.dtype) + bias


def centered(x: Any, zero_point: int, dtype: str = "int32") -> Any:
    """x - zero_point in `dtype`."""
    wide = x.astype(dtype)
    return wide - tirx.const(zero_point, dtype) if zero_point else wide


def difference(x: Any, zero_point: int) -> Any:
    """int32(x) - zero_point, where TVM must not multiply the two out: x times a multiplier alone may overflow."""
    apart = {"int8": "int16", "uint8": "int16"}.get(str(x.dtype), "int64")
    return centered(x, zero_point, apart if zero_point else "int32").astype("int32")


def _less(bias: Array, weights: Array, each: int, axes: int | tuple[int, ...]) -> Array:
    """The bias where all inputs are `each` too large: less `each` times the weights that are summed over `axes`."""
    return np.asarray((bias - each * weights.astype(np.int64).sum(axis=axes)).astype(bias.dtype))


def _centered_weights(state: Lowering, node: Node, position: int, channel_axis: int) -> Array:
    """Constant weights minus their zero points, in the smallest signed type that holds them."""
    weights = state.constant(node.inputs[1])
    if weights is None:
        raise UnsupportedError(node.label, "integer weights must be constant.", "Run the fold pass first.")
    wide = weights.astype(np.int32) - np.int32(node.get_int("b_zero_point", 0))
    if len(node.inputs) > position and node.inputs[position]:
        offsets = state.constant(node.inputs[position])
        assert offsets is not None
        wide = wide - _by_weight(offsets, weights.shape, channel_axis).astype(np.int32)
    fits = int(wide.min(initial=0)) >= -128 and int(wide.max(initial=0)) <= 127
    return wide.astype(np.int8 if fits else np.int16)


def _by_weight(offsets: Array, shape: Sequence[int], channel_axis: int) -> Array:
    """Numbers per output channel, or one for all, to broadcast over weights [..., channels, ...].

    Of more channels than the axis has, weights are (C, O / groups, *K), and the numbers those of group after group.
    """
    if offsets.size in (1, shape[channel_axis]):
        return offsets.reshape([-1 if i == channel_axis else 1 for i in range(len(shape))])
    by_group = offsets.reshape(-1, shape[1])
    return by_group.repeat(shape[0] // len(by_group), axis=0).reshape(*shape[:2], *(1,) * (len(shape) - 2))


def _bias(state: Lowering, node: Node, channels: int) -> Array:
    """The bias per channel; zeros where there is none."""
    given = node.inputs[2]
    return _per_channel(_constant(state, node, 2), channels) if given else np.zeros(channels, np.int32)


def _scale(state: Lowering, node: Node, channels: int) -> Array:
    """The scale per channel, or the one [1] that all share; a product that gives its sums has none, and reads no 1."""
    given = node.inputs[3]
    if not given:
        return np.ones(1, np.float32)
    array = _constant(state, node, 3).reshape(-1)
    return array[:1] if (array == array[0]).all() else _per_channel(array, channels)


def _of(scale: te.Tensor, channel: Any) -> Any:
    """The scale of a channel."""
    return scale[channel if int(scale.shape[0]) > 1 else 0]


def _constant(state: Lowering, node: Node, position: int) -> Array:
    array = state.constant(node.inputs[position])
    if array is None:
        raise UnsupportedError(node.label, f"operand {position} must be constant.", "Run the fold pass first.")
    return array


def _per_channel(array: Array, channels: int) -> Array:
    return np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (channels,)))


@computes(DOMAIN, "Conv")
def conv(state: Lowering, node: Node) -> Sequence[Any]:
    """y = requantize(bias + sum (x - x_zp) * (w - w_zp))."""
    weights = _centered_weights(state, node, 4, 0)
    kind = state.type(node.inputs[0])
    wide = kind.bits > 8  # then the instruction takes 16-bit operands on either side
    shape = compute_conv.convolution(state, node, np.dtype(np.int16) if wide else weights.dtype)
    dot = Dot.of(shape.dot)
    weights = weights.astype(dot.stored(weights.dtype, kind.dtype) if shape.kind == "dense" else weights.dtype)
    sparse = compute_conv.skipping(state, node, shape, weights) if dot.kind in VECTORS else None
    if sparse is not None:
        dot = DOTS[VECTORS[dot.kind]]
        shape = dataclasses.replace(shape, block=state.target.lanes(32), dot=dot.kind)
    zero_point = node.get_int("x_zero_point", 0)
    # Dense kernels add plain products and pad with the zero point; the others skip padding, so they must subtract it.
    shift = dot.shift(kind.dtype, zero_point) if shape.kind == "dense" else -zero_point
    bias, scales = _bias(state, node, shape.filters), _scale(state, node, shape.filters)
    bias = _less(bias, weights, zero_point + shift, tuple(range(1, weights.ndim)))
    operands = [
        *(sparse.operands if sparse else [state.parameter(compute_conv.pack(shape, weights), node.inputs[1])]),
        state.parameter(bias, node.inputs[2] or "bias"),
        state.parameter(scales, node.inputs[3] or "scale"),
    ]
    small = rounding.bounded(scales)
    output, padding = state.type(node.outputs[0]).dims, tirx.const(zero_point, kind.dtype.name)
    source, shape = compute_conv.with_padding(state, node.inputs[0], shape, padding, "int32")

    def define(x: te.Tensor, *rest: te.Tensor) -> te.Tensor:
        *given, bias, scale = rest
        w = sparse.skipping(given) if sparse else given[0]
        acc = compute_conv.accumulate(shape, x, w, "int32", padding, shift)

        def element(*i: Any) -> Any:
            sums = _plus(compute_conv.sum_at(shape, acc, i), bias[i[-1]])
            return requantized(state, node, sums, _of(scale, i[-1]), small)

        return te.compute(output, element, name="out")

    return [state.emit(define, source, *operands, name="conv_int8", pattern=OUT_FUSIBLE)]


@computes(DOMAIN, "ConvTranspose")
def conv_transpose(state: Lowering, node: Node) -> Sequence[Any]:
    """As Conv, with the transposed window; weights are (C, O / groups, *K)."""
    shape = compute_conv_transpose.transposed_convolution(state, node)
    output = state.type(node.outputs[0]).dims
    weights = _centered_weights(state, node, 4, 1)
    operands = [
        state.parameter(shape.pack(weights), node.inputs[1]),
        state.parameter(_per_channel(_constant(state, node, 2), output[-1]), node.inputs[2]),
        state.parameter(_scale(state, node, output[-1]), node.inputs[3]),
    ]

    def define(x: te.Tensor, w: te.Tensor, bias: te.Tensor, scale: te.Tensor) -> te.Tensor:
        acc = shape.sums(x, w, output[-1], "int32", node.get_int("x_zero_point", 0))
        return te.compute(
            output, lambda *i: requantized(state, node, _plus(acc[i], bias[i[-1]]), _of(scale, i[-1])), name="out"
        )

    return [state.emit(define, state.value(node.inputs[0]), *operands, name="conv_transpose_int8", pattern=OUT_FUSIBLE)]


@computes(DOMAIN, "MatMul")
def matmul(state: Lowering, node: Node) -> Sequence[Any]:
    """y = requantize(bias + sum (a - a_zp) * (b - b_zp)); b is constant, or an activation with one zero point.

    Kernels add up plain products a * (b - b_zp): what a_zp takes off is the same for all rows, and joins the bias.
    """
    a, b = (state.type(name).dims for name in node.inputs[:2])
    if len(a) < 2 or len(b) < 2:
        raise UnsupportedError(node.label, "integer products of vectors.", "Reshape the operands to matrices.")
    output = state.type(node.outputs[0]).dims
    batch = tuple(np.broadcast_shapes(a[:-2], b[:-2]))
    choice = state.choice(node)
    block = choice.block(state.target, b[-1])
    product = compute_matmul.Product(batch, a[-2], a[-1], b[-1], block, tile=choice.tile, vectors=choice.vectors)
    if state.constant(node.inputs[1]) is not None:
        product, right, reader, offsets, shift = _constant_right(state, node, product)
        if len(node.inputs) > 5:
            offsets = [*offsets, *_taken_at_run_time(state, node)]
    else:
        product, packed, offsets = _computed_right(state, node, product)
        right, reader, shift = [packed], compute_matmul.plain, 0
    scales = _scale(state, node, b[-1])
    small = rounding.bounded(scales)
    scale = state.parameter(scales, node.inputs[3] or "scale")

    def define(x: te.Tensor, *rest: te.Tensor) -> te.Tensor:
        given, (scale, *offsets) = rest[: len(right)], rest[len(right) :]
        acc = compute_matmul.accumulate(product, x, reader(given), "int32", shift=shift)

        def element(*i: Any) -> Any:
            sums = compute_matmul.sum_at(product, acc, i)
            for each in offsets:
                sums = _plus(sums, _broadcast(each, (*i[:-2], i[-1]), (*output[:-2], output[-1])))
            return requantized(state, node, sums, _of(scale, i[-1]), small)

        return te.compute(output, element, name="out")

    operands = [state.value(node.inputs[0]), *right, scale, *offsets]
    return [state.emit(define, *operands, name="matmul_int8", pattern=OUT_FUSIBLE)]


def _taken_at_run_time(state: Lowering, node: Node) -> list[Any]:
    """-a_zp * sum (b - b_zp) of each column, for a zero point that is an operand."""
    columns = _centered_weights(state, node, 4, 1).astype(np.int64).sum(axis=0).astype(np.int32)

    def define(zero_point: te.Tensor, columns: te.Tensor) -> te.Tensor:
        at = (0,) * len(zero_point.shape)
        return te.compute(columns.shape, lambda n: columns[n] * (-zero_point[at].astype("int32")), name="offsets")

    operands = [state.value(node.inputs[5]), state.parameter(columns, "columns")]
    return [state.emit(define, *operands, name="offsets", pattern=OPAQUE)]


def _constant_right(
    state: Lowering, node: Node, product: compute_matmul.Product
) -> tuple[compute_matmul.Product, list[Any], compute_matmul.Reader, list[Any], int]:
    """(product, weights, how to read them, what is added to its sums if anything, the instruction's shift)."""
    weights = _centered_weights(state, node, 4, len(state.type(node.inputs[1]).dims) - 1)
    shift, sparse = 0, None
    wide = state.type(node.inputs[0]).bits > 8
    if weights.ndim == 2:
        kind = np.dtype(np.int16) if wide else weights.dtype
        choice = state.choice(node)
        dot = dot_product(state.target, kind, product.inner, product.rows, choice.dot)
        if dot.columns or product.inner % dot.step == 0:
            block = choice.block(state.target, product.columns, dot, prod(product.batch) * product.rows)
            product = dataclasses.replace(product, step=dot.step, dot=dot.kind, block=block)
            weights = weights.astype(dot.stored(weights.dtype, state.type(node.inputs[0]).dtype))
            sparse = compute_matmul.skipping(state, node, product, weights.T) if dot.kind in VECTORS else None
            if sparse is not None:
                dot = DOTS[VECTORS[dot.kind]]
                product = dataclasses.replace(product, dot=dot.kind, block=state.target.lanes(32))
            shift = dot.shift(state.type(node.inputs[0]).dtype, node.get_int("a_zero_point", 0))
    offsets = _less(_bias(state, node, product.columns), weights, node.get_int("a_zero_point", 0) + shift, -2)
    added = [state.parameter(offsets, node.inputs[2] or "offsets")] if offsets.any() else []
    if sparse is not None:
        return product, list(sparse.operands), sparse.skipping, added, shift
    right = state.parameter(compute_matmul.pack(product, weights), node.inputs[1])
    return product, [right], compute_matmul.plain, added, shift


def _computed_right(
    state: Lowering, node: Node, product: compute_matmul.Product
) -> tuple[compute_matmul.Product, Any, list[Any]]:
    """(product, packed b - b_zp, what is added to its sums if anything); b_zp makes 9 bits of 8, hence int16."""
    dot = wide_product(state.target)
    if product.inner % dot.step == 0:
        product = dataclasses.replace(product, step=dot.step, dot=dot.kind)
    b, zero_point = state.value(node.inputs[1]), node.get_int("b_zero_point", 0)
    packed = lambda t: compute_matmul.packed_on_the_fly(product, t, centered=("int16", zero_point))  # noqa: E731
    right = state.emit(packed, b, name="pack", pattern=OPAQUE)
    a_zero_point, bias = node.get_int("a_zero_point", 0), _bias(state, node, product.columns)
    if not a_zero_point:
        return product, right, [state.parameter(bias, node.inputs[2])] if bias.any() else []

    def taken(b: te.Tensor, bias: te.Tensor) -> te.Tensor:
        *batch, inner, columns = b.shape
        k = te.reduce_axis((0, inner), "k")
        sums = te.compute(
            (*batch, columns),
            lambda *i: te.sum(centered(b[(*i[:-1], k, i[-1])], zero_point), axis=k),
            name="column_sums",
        )
        by = tirx.const(a_zero_point, "int32")
        return te.compute(sums.shape, lambda *i: bias[i[-1]] - (sums[i] * by).astype(bias.dtype), name="offsets")

    offsets = state.emit(taken, b, state.parameter(bias, node.inputs[2] or "bias"), name="offsets", pattern=OPAQUE)
    return product, right, [offsets]


def _broadcast(tensor: te.Tensor, i: Sequence[Any], output: Sequence[int]) -> Any:
    """The element of `tensor` that numpy's broadcasting pairs with position i of an `output` shape.

    An operand of the output's own shape is read at i itself: so TVM sees an elementwise epilogue.
    """
    skipped = len(i) - len(tensor.shape)
    own = zip(tensor.shape, i[skipped:], output[skipped:], strict=True)
    return tensor[tuple(0 if int(d) == 1 < n else p for d, p, n in own)]


def _is_wide(state: Lowering, node: Node) -> bool:
    """Whether the sum of an Add may leave int32: only where an operand has 16 bits (`integer_rules.add`)."""
    a, b = (state.type(name).dtype for name in node.inputs)
    zero_points = node.get_int("a_zero_point", 0), node.get_int("b_zero_point", 0)
    multipliers = node.get_int("a_multiplier", 0), node.get_int("b_multiplier", 0)
    largest = largest_sum((a, b), zero_points, multipliers, node.get_int("shift", 0))
    return np.int16 in (a, b) and largest > MAX_SUM


@computes(DOMAIN, "Add")
def add(state: Lowering, node: Node) -> Sequence[Any]:
    """y = clamp((((a - az) * am + (b - bz) * bm + half) >> shift) + zp)."""
    shift, zero_point = node.get_int("shift", 0), node.get_int("y_zero_point", 0)
    low, high = node.get_int("y_min", 0), node.get_int("y_max", 0)
    dtype = state.type(node.outputs[0]).dtype.name
    output = state.type(node.outputs[0]).dims
    kind = "int64" if _is_wide(state, node) else "int32"

    def number(value: int) -> Any:
        return tirx.const(value, kind)

    def define(a: te.Tensor, b: te.Tensor) -> te.Tensor:
        def term(tensor: te.Tensor, i: Sequence[Any], key: str) -> Any:
            less = difference(_broadcast(tensor, i, output), node.get_int(f"{key}_zero_point", 0))
            return less.astype(kind) * number(node.get_int(f"{key}_multiplier", 0))

        def element(*i: Any) -> Any:
            total = (term(a, i, "a") + term(b, i, "b") + number(1 << (shift - 1))) >> number(shift)
            stored = total + number(zero_point)
            return tirx.min(tirx.max(stored, number(low)), number(high)).astype(dtype)

        return te.compute(output, element, name="add_int8")

    operands = state.value(node.inputs[0]), state.value(node.inputs[1])
    # Between tiles of sums a residual takes twice as long as in a pass of its own (measured on AMX).
    pattern = BROADCAST if state.target.has("amx_int8") else None
    return [state.emit(define, *operands, name="add_int8", pattern=pattern)]


@computes(DOMAIN, "Multiply")
def multiply(state: Lowering, node: Node) -> Sequence[Any]:
    """y = requantize((a - az) * (b - bz))."""
    scale = float(_constant(state, node, 2).reshape(()))
    output = state.type(node.outputs[0]).dims

    def define(a: te.Tensor, b: te.Tensor) -> te.Tensor:
        def element(*i: Any) -> Any:
            product = difference(_broadcast(a, i, output), node.get_int("a_zero_point", 0)) * difference(
                _broadcast(b, i, output), node.get_int("b_zero_point", 0)
            )
            return requantized(state, node, product, tirx.const(scale, "float32"), rounding.bounded(scale))

        return te.compute(output, element, name="multiply_int8")

    return [state.emit(define, state.value(node.inputs[0]), state.value(node.inputs[1]), name="multiply_int8")]


@computes(DOMAIN, "Table")
def table(state: Lowering, node: Node) -> Sequence[Any]:
    """y = table[x - smallest value of x's type]."""
    offset = limits(state.type(node.inputs[0]).dtype)[0]
    entries = state.parameter(_constant(state, node, 1), node.inputs[1])

    def define(x: te.Tensor, entries: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *i: entries[centered(x[i], offset)], name="table")

    return [state.emit(define, state.value(node.inputs[0]), entries, name="table")]


@computes(DOMAIN, "AveragePool")
def average_pool(state: Lowering, node: Node) -> Sequence[Any]:
    """y = requantize(sum (x - x_zp)) with the scale of each position's count."""
    span, output = pool_window(state, node), state.type(node.outputs[0]).dims
    scales = _constant(state, node, 1)[counts(node, span, state.type(node.inputs[0]).dims[1:-1]) - 1]
    by_position = state.parameter(scales, node.inputs[1])
    zero_point = node.get_int("x_zero_point", 0)

    def define(x: te.Tensor, scale: te.Tensor) -> te.Tensor:
        total = window_sum(x, span, output, "int32", zero_point)
        small = rounding.bounded(scales)
        return te.compute(output, lambda *i: requantized(state, node, total[i], scale[i[1:-1]], small), name="out")

    return [state.emit(define, state.value(node.inputs[0]), by_position, name="average_pool_int8", pattern=OUT_FUSIBLE)]


@computes(DOMAIN, "Mean")
def mean(state: Lowering, node: Node) -> Sequence[Any]:
    """y = requantize(sum over axes of (x - x_zp))."""
    dims, output = state.type(node.inputs[0]).dims, state.type(node.outputs[0]).dims
    axes = tuple(axis % len(dims) for axis in node.get_ints("axes"))
    scale = float(_constant(state, node, 1).reshape(()))
    correction = int(np.prod([dims[axis] for axis in axes])) * node.get_int("x_zero_point", 0)

    def define(x: te.Tensor) -> te.Tensor:
        reduced = {axis: te.reduce_axis((0, dims[axis]), f"r{axis}") for axis in axes}

        def at(i: Sequence[Any]) -> list[Any]:
            kept = iter(i if len(i) < len(dims) else [p for axis, p in enumerate(i) if axis not in reduced])
            return [reduced[axis] if axis in reduced else next(kept) for axis in range(len(dims))]

        total = te.compute(
            output, lambda *i: te.sum(x[tuple(at(i))].astype("int32"), axis=list(reduced.values())), name="mean_sum"
        )
        return te.compute(
            output,
            lambda *i: requantized(
                state,
                node,
                total[i] - tirx.const(correction, "int32"),
                tirx.const(scale, "float32"),
                rounding.bounded(scale),
            ),
            name="out",
        )

    return [state.emit(define, state.value(node.inputs[0]), name="mean_int8", pattern=OUT_FUSIBLE)]


@computes(DOMAIN, "Softmax")
def softmax(state: Lowering, node: Node) -> Sequence[Any]:
    """e = table[max - x]; y = requantize(e, scale / float32(sum e))."""
    dims = state.type(node.inputs[0]).dims
    axis = node.get_int("axis", -1) % len(dims)
    entries = state.parameter(_constant(state, node, 1).astype(np.int32), node.inputs[1])
    scale = float(_constant(state, node, 2).reshape(()))
    outer = tuple(d for a, d in enumerate(dims) if a != axis)

    def define(x: te.Tensor, entries: te.Tensor) -> te.Tensor:
        def at(i: Sequence[Any], k: Any) -> tuple[Any, ...]:
            return (*i[:axis], k, *i[axis:])

        k, r = te.reduce_axis((0, dims[axis]), "k"), te.reduce_axis((0, dims[axis]), "r")
        top = te.compute(outer, lambda *i: te.max(x[at(i, k)], axis=k), name="softmax_max")
        weight = te.compute(
            dims,
            lambda *i: entries[centered(top[(*i[:axis], *i[axis + 1 :])], 0) - centered(x[i], 0)],
            name="softmax_weight",
        )
        total = te.compute(outer, lambda *i: te.sum(weight[at(i, r)], axis=r), name="softmax_sum")
        factor = te.compute(
            outer, lambda *i: tirx.const(scale, "float32") / total[i].astype("float32"), name="softmax_factor"
        )
        return te.compute(
            dims, lambda *i: requantized(state, node, weight[i], factor[(*i[:axis], *i[axis + 1 :])]), name="out"
        )

    return [state.emit(define, state.value(node.inputs[0]), entries, name="softmax_int8", pattern=OPAQUE)]
