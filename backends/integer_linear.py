"""Convolutions and matrix products on integers: sums in int32, a bias on the same grid, one requantization.

    Q(Conv(DQ(x), DQ(w), b))  ->  Conv(x, w, rint(b / (sx * sw)), sx * sw / sy, w_zero_point)

Weights are int8: uint8 ones are stored less 128, and so is their zero point. An Add of a constant that follows is the
bias.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from graphc.backends.arithmetic import MAX_SUM, MAX_WIDE_SUM, Numbers
from graphc.backends.integer_constants import Decoded, decoded, floats
from graphc.backends.integer_region import Grid, Quantized, Refusal, Region
from graphc.ir.graph import Attribute, Node

Added: TypeAlias = Sequence[tuple[str, float]]
"""Constants that are added to a product before it is rounded: value names and their factors."""

Linear: TypeAlias = Callable[[Region, Node, Grid, Added], str]


@dataclass(frozen=True, slots=True)
class _Product:
    """A product with constant weights; `bias` and `worst` (the largest sum) have one entry per channel."""

    node: Node
    op: str
    x: Quantized
    w: Decoded
    bias: Numbers | None
    worst: Numbers


def conv(region: Region, node: Node, grid: Grid, added: Added = ()) -> str:
    """Conv of a quantized input with constant weights, one scale for all or one per output channel."""
    x, w = region.read(node.inputs[0]), _weights(region, node.inputs[1], 0)
    kernel = w.q.shape[2:]
    bias = _bias(region, [*_own_bias(node), *added], w.q.shape[0], len(kernel))
    product = _Product(node, "Conv", x, w, bias, _largest(x.grid, w, tuple(range(1, w.q.ndim))))
    return _emit(region, product, grid, {**window(region, node, kernel), "group": node.get_int("group", 1)})


def conv_transpose(region: Region, node: Node, grid: Grid, added: Added = ()) -> str:
    """ConvTranspose; its weights are [C, O / group, *kernel], with a scale per index of the second axis at most."""
    x, w = region.read(node.inputs[0]), _weights(region, node.inputs[1], 1)
    group, kernel = node.get_int("group", 1), w.q.shape[2:]
    by_group = np.abs(w.q.astype(np.int64) - w.zero_point).reshape(group, -1, *w.q.shape[1:])
    worst = by_group.sum(axis=(1, *range(3, by_group.ndim))).ravel() * x.grid.reach
    if group > 1:
        w = replace(w, scale=_tiled(w.scale, group), zero_point=_tiled(w.zero_point, group))
    bias = _bias(region, [*_own_bias(node), *added], worst.size, len(kernel))
    attributes = _transposed_geometry(region, node, kernel, group)
    return _emit(region, _Product(node, "ConvTranspose", x, w, bias, worst), grid, attributes)


def _tiled(values: Numbers, group: int) -> Numbers:
    return values.ravel() if values.size == 1 else np.tile(values.ravel(), group)


def matmul(region: Region, node: Node, grid: Grid, added: Added = ()) -> str:
    """MatMul of a quantized input with constant weights, or of two quantized inputs."""
    a, b = node.inputs
    if min(region.rank(a), region.rank(b)) < 2:
        raise Refusal("an operand of MatMul has one axis")
    return _multiplied(region, node, grid, added)


def gemm(region: Region, node: Node, grid: Grid, added: Added = ()) -> str:
    """Gemm becomes MatMul: constant weights are transposed now, an activation by a Transpose of its integers."""
    alpha, beta = node.get_float("alpha", 1.0), node.get_float("beta", 1.0)
    if alpha <= 0:
        raise Refusal(f"alpha is {alpha}")
    own = [(name, beta / alpha) for name in node.inputs[2:3] if name]
    scaled = [(name, factor / alpha) for name, factor in added]
    return _multiplied(region, node, replace(grid, scale=grid.scale / alpha), [*own, *scaled])


def biased(region: Region, node: Node, grid: Grid, added: Added = ()) -> str:
    """Add of a constant to a convolution or matrix product: its bias. Sub of one likewise."""
    for i in (0, 1):
        source = region.graph.producers.get(node.inputs[i])
        if source is None or source.domain or source.op not in LINEAR or (node.op == "Sub" and i == 1):
            continue
        same = region.graph.types[node.inputs[i]].shape == region.graph.types[node.outputs[0]].shape
        if same and floats(region, node.inputs[1 - i]) is not None:
            own = (node.inputs[1 - i], -1.0 if node.op == "Sub" else 1.0)
            return LINEAR[source.op](region, source, grid, [own, *added])
    raise Refusal("no operand is a product without a bias")


LINEAR: Mapping[str, Linear] = {"Conv": conv, "ConvTranspose": conv_transpose, "MatMul": matmul, "Gemm": gemm}


def window(region: Region, node: Node, kernel: Sequence[int]) -> dict[str, Attribute]:
    """kernel_shape, strides, pads and dilations, all explicit. Raises Refusal where auto_pad meets an open shape."""
    rank = len(kernel)
    strides, dilations = node.get_ints("strides", (1,) * rank), node.get_ints("dilations", (1,) * rank)
    pads = node.get_ints("pads", (0,) * 2 * rank)
    auto = node.get_str("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        size = region.lengths(node.inputs[0], range(2, rank + 2))
        axes = zip(size, kernel, strides, dilations, strict=True)
        totals = [max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0) for n, k, s, d in axes]
        small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
        pads = (*small, *large) if auto == "SAME_UPPER" else (*large, *small)
    elif auto == "VALID":
        pads = (0,) * 2 * rank
    return {"kernel_shape": tuple(kernel), "strides": strides, "pads": pads, "dilations": dilations}


def _transposed_geometry(region: Region, node: Node, kernel: Sequence[int], group: int) -> dict[str, Attribute]:
    """Explicit pads and output padding of a transposed convolution, whatever way the node states its size."""
    rank = len(kernel)
    strides, dilations = node.get_ints("strides", (1,) * rank), node.get_ints("dilations", (1,) * rank)
    extra = node.get_ints("output_padding", (0,) * rank)
    pads = node.get_ints("pads", (0,) * 2 * rank)
    if node.get_ints("output_shape") or node.get_str("auto_pad", "NOTSET") != "NOTSET":
        size, wanted = (region.lengths(name, range(2, rank + 2)) for name in (node.inputs[0], node.outputs[0]))
        axes = zip(size, wanted, kernel, strides, dilations, extra, strict=True)
        totals = [(n - 1) * s + (k - 1) * d + 1 + o - w for n, w, k, s, d, o in axes]
        if min(totals) < 0:
            raise Refusal("its output is larger than its kernel reaches")
        small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
        upper = node.get_str("auto_pad", "NOTSET") == "SAME_UPPER"
        pads = (*small, *large) if upper else (*large, *small)
    return {
        "kernel_shape": tuple(kernel), "strides": strides, "pads": pads, "dilations": dilations, "group": group,
        "output_padding": extra,
    }  # fmt: skip


def _multiplied(region: Region, node: Node, grid: Grid, added: Added) -> str:
    """MatMul, or Gemm without its factors."""
    flipped = node.get_int("transB", 0)
    a = _transposed(region, node, region.read(node.inputs[0]), node.get_int("transA", 0))
    try:
        w = _weights(region, node.inputs[1], region.rank(node.inputs[1]) - 1 - flipped)
    except Refusal:
        if not region.is_read(node.inputs[1]):
            raise
        return _activations(region, node, grid, a, added)
    if w.q.ndim != 2:
        return _activations(region, node, grid, a, added)
    if flipped:
        w = Decoded(np.ascontiguousarray(w.q.T), w.scale.T, w.zero_point.T)
    bias = _bias(region, added, w.q.shape[1], 0)
    return _emit(region, _Product(node, "MatMul", a, w, bias, _largest(a.grid, w, (0,))), grid, {})


def _activations(region: Region, node: Node, grid: Grid, a: Quantized, added: Added) -> str:
    """A product of two quantized values, each on one grid."""
    flipped = node.get_int("transB", 0)
    b = _transposed(region, node, region.read(node.inputs[1]), flipped)
    depth, width = region.lengths(node.inputs[1], (-1, -2) if flipped else (-2, -1))
    bias = _bias(region, added, width, 0)
    unit, worst = a.grid.scale * b.grid.scale, np.array([depth * a.grid.reach * b.grid.reach])
    steps = _rounded_bias(np.zeros(1) if bias is None else bias, np.array([unit]), worst)
    hint = region.name(node)
    scale = region.edit.constant(np.array([unit / grid.scale], np.float32), f"{hint}_scale")
    inputs = [a.name, b.name, "" if bias is None else region.edit.constant(steps, f"{hint}_bias"), scale]
    attributes = {"a_zero_point": a.grid.zero_point, "b_zero_point": b.grid.zero_point, **grid.attributes}
    return region.emit("MatMul", inputs, attributes, grid.dtype, node)


def _transposed(region: Region, node: Node, x: Quantized, wanted: int) -> Quantized:
    if not wanted:
        return x
    return Quantized(
        region.edit.add("Transpose", [x.name], {"perm": (1, 0)}, name=f"{region.name(node)}_t", near=node), x.grid
    )


def _weights(region: Region, name: str, axis: int) -> Decoded:
    """Constant weights as int8 (those of 2 and 4 bits become wider), with scales along `axis` at most.

    Raises Refusal for any other kind.
    """
    found = decoded(region.graph, name)
    if found.scale.size > 1 and found.scale.shape[axis] != found.scale.size:
        raise Refusal(f"the scales of '{name}' do not run along its output channels")
    if found.q.dtype.name not in ("int8", "uint8", "int4", "uint4", "int2", "uint2"):
        raise Refusal(f"{found.q.dtype} weights have no integer kernels (those of up to 8 bits have)")
    if found.q.dtype != np.uint8:
        return replace(found, q=found.q.astype(np.int8))
    return Decoded((found.q.astype(np.int16) - 128).astype(np.int8), found.scale, found.zero_point - np.int32(128))


def _largest(grid: Grid, w: Decoded, axes: tuple[int, ...]) -> Numbers:
    """The largest magnitude that a sum over `axes` can reach, per output channel."""
    centered = np.abs(w.q.astype(np.int64) - w.zero_point)
    return np.asarray(centered.sum(axis=axes) * grid.reach)


def _own_bias(node: Node) -> list[tuple[str, float]]:
    return [(name, 1.0) for name in node.inputs[2:3] if name]


def _bias(region: Region, added: Added, count: int, trailing: int) -> Numbers | None:
    """What is added to each of `count` output channels, in float64; channels are followed by `trailing` axes."""
    total: Numbers | None = None
    for name, factor in added:
        values = floats(region, name)
        if values is None:
            raise Refusal(f"the bias '{name}' is computed at run time")
        if values.size > 1:
            values = _channels(values, name, count, trailing if values.ndim > 1 else 0)
        total = np.broadcast_to(values.ravel() * factor, count) + (0.0 if total is None else total)
    return total


def _channels(values: Numbers, name: str, count: int, trailing: int) -> Numbers:
    axis = values.ndim - 1 - trailing
    if axis < 0 or values.shape[axis] != count or values.size != count:
        raise Refusal(f"'{name}' {list(values.shape)} does not add one number to each output channel")
    return values.ravel()


def _rounded_bias(bias: Numbers, unit: Numbers, worst: Numbers) -> Numbers:
    """The bias in steps of `unit`: int32, or int64 where a sum with it may need more.

    Raises Refusal where int64 does not do either, or the sum of products alone, which is int32, could overflow.
    """
    if np.max(worst, initial=0) > MAX_SUM:
        raise Refusal("the int32 accumulator could overflow")
    steps = np.rint(bias / unit)
    largest = float(np.max(np.abs(steps) + worst, initial=0))
    if not largest < MAX_WIDE_SUM:
        raise Refusal("a sum with its bias may overflow int64")
    return np.asarray(steps.astype(np.int32 if largest <= MAX_SUM else np.int64))


def _emit(region: Region, product: _Product, grid: Grid, attributes: Mapping[str, Attribute]) -> str:
    """The integer node. A channel whose weights are all zero takes a scale in which its bias fits."""
    node, x, w, worst = product.node, product.x, product.w, product.worst
    channels = (worst.size,)
    bias = np.zeros(channels) if product.bias is None else product.bias
    unit = np.broadcast_to(x.grid.scale * w.scale.ravel(), channels)
    unit = np.where(worst == 0, np.maximum(unit, np.abs(bias) / 2**23), unit)
    hint = region.name(node)
    inputs = [
        x.name,
        region.edit.constant(w.q, f"{hint}_weights"),
        region.edit.constant(_rounded_bias(bias, unit, worst), f"{hint}_bias"),
        region.edit.constant((unit / grid.scale).astype(np.float32), f"{hint}_scale"),
    ]
    offsets = np.broadcast_to(w.zero_point.ravel(), channels)
    if offsets.any():
        inputs.append(region.edit.constant(offsets.astype(np.int32), f"{hint}_zero_point"))
    key = "a_zero_point" if product.op == "MatMul" else "x_zero_point"
    state = {**attributes, key: x.grid.zero_point, **grid.attributes}
    return region.emit(product.op, inputs, state, grid.dtype, node)
