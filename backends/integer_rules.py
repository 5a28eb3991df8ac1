"""Sums, products, averages and softmax of quantized values."""

from dataclasses import dataclass
from math import ceil, log2

import numpy as np

from graphc.backends.arithmetic import MAX_SUM, MAX_WIDE_SUM, Numbers, add_multipliers, softmax_table
from graphc.backends.integer_constants import floats
from graphc.backends.integer_linear import LINEAR, window
from graphc.backends.integer_region import Grid, Refusal, Region
from graphc.ir.graph import Attribute, Node

INNER = np.dtype(np.int16)
"""The type of a product that is rounded nowhere but in the sum that it enters."""


def add(region: Region, node: Node, grid: Grid) -> str:
    """Add and Sub in fixed point. A float constant enters as int32, already multiplied: exact to 2^-shift steps.

    So does, as int16, a product that nothing but this sum reads or rounds: see `_inner`.
    """
    a, b = _terms(region, node, grid)
    wide = any(term.steps is None and not term.inner and term.reach > 255 for term in (a, b))
    if wide and not (a.steps is None and b.steps is None):
        raise Refusal("a constant is added to int16")
    try:
        am, bm, shift = add_multipliers((a.ratio, b.ratio), (a.reach, b.reach), MAX_WIDE_SUM if wide else MAX_SUM)
    except OverflowError as error:
        raise Refusal(str(error)) from error
    sign = -1 if node.op == "Sub" else 1
    attributes: dict[str, Attribute] = {
        "a_zero_point": a.zero_point, "b_zero_point": b.zero_point, "shift": shift,
        "a_multiplier": am if a.steps is None else 1, "b_multiplier": sign * (bm if b.steps is None else 1),
        **grid.attributes,
    }  # fmt: skip
    inputs = [
        name if t.steps is None else region.edit.constant(np.rint(t.steps * 2**shift).astype(np.int32), f"{name}_q")
        for t, name in ((a, a.name), (b, b.name))
    ]
    return region.emit("Add", inputs, attributes, grid.dtype, node)


@dataclass(frozen=True, slots=True)
class _Term:
    """An operand of a sum: integers, or a constant in steps of the result. `ratio`: its unit in such steps."""

    name: str
    ratio: float
    reach: int
    zero_point: int
    steps: Numbers | None = None
    inner: bool = False


def _terms(region: Region, node: Node, grid: Grid) -> tuple[_Term, _Term]:
    """The operands of a sum, of which one may be a product that nothing has rounded."""
    a, b = node.inputs
    if _is_inner(region, node, a):
        other = _term(region, b, grid)
        return _inner(region, a, grid, other), other
    if _is_inner(region, node, b):
        other = _term(region, a, grid)
        return other, _inner(region, b, grid, other)
    return _term(region, a, grid), _term(region, b, grid)


def _is_inner(region: Region, node: Node, name: str) -> bool:
    """Whether an operand of `node` is the unrounded result of a product, its bias included, that only `node` reads."""
    maker = region.graph.producers.get(name)
    linear = maker is not None and not maker.domain and maker.op in (*LINEAR, "Add", "Sub")
    return linear and not region.is_read(name) and region.graph.sole_user(name) is node


def _inner(region: Region, name: str, grid: Grid, other: _Term) -> _Term:
    """A product in 2^-n steps of the sum's grid, as fine as int16 can while it saturates only where the sum does.

    The sum is clamped to 255 steps, so with `other` it is the same for all larger products.
    """
    if grid.dtype.itemsize > 1 or other.steps is not None or other.reach > 255:
        raise Refusal(f"'{name}' is a sum that nothing rounds to 8 bits")
    bits = 15 - ceil(log2(256 + other.reach * other.ratio))
    if bits < 1:
        raise Refusal(f"'{name}' is added to steps {other.ratio:.3g} times as large as the result's")
    limits = np.iinfo(INNER)
    fine = Grid(INNER, grid.scale / 2**bits, 0, int(limits.min), int(limits.max))
    return _Term(region.quantize(name, fine), 2.0**-bits, fine.reach, 0, inner=True)


def _term(region: Region, name: str, grid: Grid) -> _Term:
    constant = None if region.is_read(name) else floats(region, name)
    if constant is not None:
        steps = constant / grid.scale
        # The largest element is the unit, so that one multiple of it is the most that this operand adds.
        return _Term(name, float(np.abs(steps).max(initial=0.0)), 1, 0, steps)
    source = region.read(name)
    return _Term(source.name, source.grid.scale / grid.scale, source.grid.reach, source.grid.zero_point)


def multiply(region: Region, node: Node, grid: Grid) -> str:
    """Mul of two quantized values (a squeeze-and-excite gate, say)."""
    a, b = (region.read(name) for name in node.inputs)
    if a.grid.reach * b.grid.reach > MAX_SUM:
        raise Refusal("a product may overflow int32")
    scale = np.array([a.grid.scale * b.grid.scale / grid.scale], np.float32)
    inputs = [a.name, b.name, region.edit.constant(scale, f"{region.name(node)}_scale")]
    attributes = {"a_zero_point": a.grid.zero_point, "b_zero_point": b.grid.zero_point, **grid.attributes}
    return region.emit("Multiply", inputs, attributes, grid.dtype, node)


def average_pool(region: Region, node: Node, grid: Grid) -> str:
    """AveragePool; the scale has one entry per number of elements averaged, 1 to the whole kernel."""
    x = region.read(node.inputs[0])
    kernel = node.get_ints("kernel_shape")
    attributes = window(region, node, kernel)
    padded = bool(node.get_int("count_include_pad", 0))
    if node.get_int("ceil_mode", 0):
        attributes["pads"] = _ceiled(region, node, attributes, padded)
    count = int(np.prod(kernel))
    if count * x.grid.reach > MAX_SUM:
        raise Refusal(f"a sum of {count} elements may overflow int32")
    scale = (x.grid.scale / grid.scale / np.arange(1, count + 1)).astype(np.float32)
    inputs = [x.name, region.edit.constant(scale, f"{region.name(node)}_scale")]
    state = {"x_zero_point": x.grid.zero_point, "count_include_pad": int(padded), **grid.attributes}
    return region.emit("AveragePool", inputs, {**attributes, **state}, grid.dtype, node)


def mean(region: Region, node: Node, grid: Grid) -> str:
    """GlobalAveragePool, ReduceMean and ReduceSum."""
    x = region.read(node.inputs[0])
    axes = _axes(region, node, region.rank(node.inputs[0]))
    count = int(np.prod(region.lengths(node.inputs[0], axes)))
    if not axes:
        raise Refusal(f"{node.label} reduces no axis")
    if count * x.grid.reach > MAX_SUM:
        raise Refusal(f"a sum of {count} elements may overflow int32")
    divisor = 1 if node.op == "ReduceSum" else count
    scale = np.array([x.grid.scale / grid.scale / divisor], np.float32)
    inputs = [x.name, region.edit.constant(scale, f"{region.name(node)}_scale")]
    attributes: dict[str, Attribute] = {"axes": axes, "keepdims": node.get_int("keepdims", 1)}
    return region.emit(
        "Mean", inputs, {**attributes, "x_zero_point": x.grid.zero_point, **grid.attributes}, grid.dtype, node
    )


def softmax(region: Region, node: Node, grid: Grid) -> str:
    """Softmax along one axis of known length."""
    x, axis = region.read(node.inputs[0]), node.get_int("axis", -1) % region.rank(node.inputs[0])
    x.grid.require_bytes(node.label)
    (length,) = region.lengths(node.inputs[0], (axis,))
    hint = region.name(node)
    inputs = [
        x.name,
        region.edit.constant(softmax_table(x.grid.scale, length), f"{hint}_table"),
        region.edit.constant(np.array([1 / grid.scale], np.float32), f"{hint}_scale"),
    ]
    return region.emit("Softmax", inputs, {"axis": axis, **grid.attributes}, grid.dtype, node)


def _axes(region: Region, node: Node, rank: int) -> tuple[int, ...]:
    if node.op == "GlobalAveragePool":
        return tuple(range(2, rank))
    if len(node.inputs) < 2 or not node.inputs[1]:
        return () if node.get_int("noop_with_empty_axes", 0) else tuple(range(rank))
    axes = region.graph.constant(node.inputs[1])
    if axes is None:
        raise Refusal(f"the axes of {node.label} are computed at run time")
    if not axes.size:
        return () if node.get_int("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(int(axis) % rank for axis in axes.astype(np.int64).ravel()))


def _ceiled(region: Region, node: Node, attributes: dict[str, Attribute], padded: bool) -> tuple[int, ...]:
    """Pads that give the number of windows of ceil_mode, whose last one may reach past the padding."""
    spatial = range(2, region.rank(node.inputs[0]))
    size, wanted = (region.lengths(name, spatial) for name in (node.inputs[0], node.outputs[0]))
    found = Node("", (), (), attributes)
    kernel, strides, pads, dilations = (found.get_ints(k) for k in ("kernel_shape", "strides", "pads", "dilations"))
    rank = len(kernel)
    ends = []
    for i, (n, count) in enumerate(zip(size, wanted, strict=True)):
        needed = (count - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 - n - pads[i]
        if needed > pads[rank + i] and padded:
            raise Refusal(f"{node.label} counts padding in windows that reach past it")
        ends.append(max(needed, pads[rank + i]))
    return (*pads[:rank], *ends)
