"""Nodes that change nothing, and nodes that a simpler operator replaces exactly.

    Identity(x), Dropout(x), Cast(x: float to float), x + 0, x * 1, Pad(x, 0), Slice(whole x), Concat(x), ...  ->  x

Not done: `x * 0 -> 0` and the like, which would hide NaN and infinity. Allowed: the sign of a zero may change.
"""

from collections.abc import Mapping

import numpy as np

from graphc.ir.graph import Array, Node
from graphc.passes.fold_reshapes import BINARY
from graphc.passes.fold_sweep import Rule, Rules, Sweep, by_operator

NEUTRAL: Mapping[str, tuple[float, bool]] = {
    "Add": (0, True),
    "Sub": (0, False),
    "Mul": (1, True),
    "Div": (1, False),
    "Pow": (1, False),
    "And": (1, True),
    "Or": (0, True),
    "Max": (-np.inf, True),
    "Min": (np.inf, True),
}
"""Operator -> its neutral element, and whether that may stand on the left as well."""

IDEMPOTENT = ("Relu", "Abs", "Ceil", "Floor", "Round", "Sign")
INVOLUTIONS = ("Neg", "Not", "BitwiseNot")
NON_NEGATIVE = frozenset(
    {"Relu", "Sigmoid", "Softmax", "Exp", "Abs", "HardSigmoid", "Softplus", "ReduceL1", "ReduceL2"}
)
"""Operators whose results are never below zero."""
SINGLE = ("Concat", "Max", "Min", "Sum", "Mean")
"""Operators of many operands that do nothing with one."""
REDUCTIONS = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")
"""Reductions that return the one element that they are given."""
SAME_SHAPE = ("Reshape", "Flatten", "Expand", "Tile", "Squeeze", "Unsqueeze")
"""Operators that do nothing where the shape does not change."""


def drop(sweep: Sweep, node: Node) -> bool:
    """y = Identity(x)  ->  x"""
    return sweep.forward(node, node.inputs[0])


def drop_dropout(sweep: Sweep, node: Node) -> bool:
    """Inference: Dropout passes its input on. A mask that is read stays."""
    mask = node.outputs[1] if len(node.outputs) > 1 else ""
    training = sweep.operand(node, 2)
    if (mask and (mask in sweep.graph.users or mask in sweep.outputs)) or (training and sweep.scalar(training) != 0):
        return False
    return sweep.forward(node, node.inputs[0])


def drop_neutral(sweep: Sweep, node: Node) -> bool:
    """x + 0, x - 0, x * 1, x / 1, x ** 1, x and True, max(x, -inf), ...  ->  x, where the constant does not widen x"""
    element, symmetric = NEUTRAL[node.op]
    if len(node.inputs) != 2:
        return False
    for index in (1, 0) if symmetric else (1,):
        array, other = sweep.constant(node.inputs[index]), node.inputs[1 - index]
        if array is not None and _all_equal(array, element) and _keeps_shape(sweep, other, array, node.outputs[0]):
            return sweep.forward(node, other)
    return False


def _all_equal(array: Array, element: float) -> bool:
    return array.dtype != np.dtype(object) and array.size > 0 and bool(np.all(array == element))


def _keeps_shape(sweep: Sweep, name: str, array: Array, result: str) -> bool:
    """Whether `array` broadcasts into `name` without changing its shape or type."""
    if sweep.type(name).dtype != sweep.type(result).dtype:
        return False
    rank = sweep.rank(name)
    if rank is not None and array.size == 1 and array.ndim <= rank:
        return True
    return sweep.same_type(name, result)


def drop_cast(sweep: Sweep, node: Node) -> bool:
    """Cast(x: T to T)  ->  x"""
    source, result = node.inputs[0], node.outputs[0]
    return sweep.type(source).dtype == sweep.type(result).dtype and sweep.forward(node, source)


def merge_casts(sweep: Sweep, node: Node) -> bool:
    """Cast(Cast(x: A to B): B to C)  ->  Cast(x: A to C), where B holds every value of A"""
    inner = sweep.producer(node.inputs[0], "Cast")
    if inner is None or sweep.is_decoded(node.inputs[0]) or sweep.is_decoded(inner.outputs[0]):
        return False
    before, between = sweep.type(inner.inputs[0]).dtype, sweep.type(inner.outputs[0]).dtype
    if inner.inputs[0] in sweep.graph.constants or not _holds(between, before):
        return False
    if sweep.type(node.outputs[0]).dtype == before:
        return sweep.forward(node, inner.inputs[0], through=[inner])
    if not sweep.claim(node, through=[inner]):
        return False
    sweep.edit.replace(node, inputs=[inner.inputs[0]])
    return True


def _holds(wide: np.dtype[np.generic], narrow: np.dtype[np.generic]) -> bool:
    """Whether each value of `narrow` is one of `wide`. Booleans are 0 and 1 in every number type."""
    numbers = (np.integer, np.floating)
    if narrow == np.dtype(bool):
        return any(np.issubdtype(wide, kind) for kind in numbers)
    known = all(any(np.issubdtype(t, kind) for kind in numbers) and t.isbuiltin == 1 for t in (wide, narrow))
    return known and np.can_cast(narrow, wide, "safe")


def drop_same_shape(sweep: Sweep, node: Node) -> bool:
    """Reshape, Expand, Tile, ... to the shape that is there  ->  x"""
    return sweep.same_type(node.inputs[0], node.outputs[0]) and sweep.forward(node, node.inputs[0])


def drop_expand(sweep: Sweep, node: Node) -> bool:
    """Add(Expand(x), y)  ->  Add(x, y), where the operator broadcasts x as far itself"""
    shapes = [sweep.shape(name) for name in node.inputs]
    result = sweep.shape(node.outputs[0])
    for index, name in enumerate(node.inputs):
        inner = sweep.producer(name, "Expand")
        source = sweep.shape(inner.inputs[0]) if inner is not None else None
        if inner is None or source is None or result is None or sweep.is_decoded(inner.inputs[0]):
            continue
        others = [shape for i, shape in enumerate(shapes) if i != index and shape is not None]
        if len(others) + 1 < len(shapes) or np.broadcast_shapes(source, *others) != result:
            continue
        if not sweep.claim(node, through=[inner]):
            return False
        sweep.edit.replace(node, inputs=[*node.inputs[:index], inner.inputs[0], *node.inputs[index + 1 :]])
        return True
    return False


def drop_tile_or_pad(sweep: Sweep, node: Node) -> bool:
    """Tile by ones, Pad by zeros  ->  x"""
    counts = sweep.integers(sweep.operand(node, 1))
    neutral = 1 if node.op == "Tile" else 0
    return counts is not None and all(c == neutral for c in counts) and sweep.forward(node, node.inputs[0])


def drop_slice(sweep: Sweep, node: Node) -> bool:
    """Slice that takes everything in order  ->  x"""
    steps = sweep.integers(node.inputs[4]) if sweep.operand(node, 4) else (1,)
    if steps is None or any(step < 1 for step in steps) or not sweep.same_type(node.inputs[0], node.outputs[0]):
        return False
    return sweep.forward(node, node.inputs[0])


def drop_single(sweep: Sweep, node: Node) -> bool:
    """Concat(x), Max(x), Sum(x), ...  ->  x"""
    return len(node.inputs) == 1 and sweep.forward(node, node.inputs[0])


def drop_split(sweep: Sweep, node: Node) -> bool:
    """Split into one part  ->  x"""
    return (
        len(node.outputs) == 1
        and sweep.same_type(node.inputs[0], node.outputs[0])
        and sweep.forward(node, node.inputs[0])
    )


def drop_concat_of_nothing(sweep: Sweep, node: Node) -> bool:
    """Concat(x, empty)  ->  Concat(x)"""
    kept = [name for name in node.inputs if not (sweep.type(name).is_static and sweep.type(name).size == 0)]
    if len(kept) == len(node.inputs) or not kept or not sweep.claim(node):
        return False
    sweep.edit.replace(node, inputs=kept)
    return True


def drop_resize(sweep: Sweep, node: Node) -> bool:
    """Resize to the size that is there, with scales of exactly 1  ->  x"""
    if node.get_str("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return False
    scales = sweep.constant(sweep.operand(node, 2))
    given = scales is not None and scales.size > 0
    if (given and not _all_equal(scales, 1)) or (not given and not sweep.operand(node, 3)):  # type: ignore[arg-type]
        return False
    return sweep.same_type(node.inputs[0], node.outputs[0]) and sweep.forward(node, node.inputs[0])


def drop_reduction(sweep: Sweep, node: Node) -> bool:
    """A sum, mean, maximum, ... over axes of length 1  ->  x, reshaped where the axes go"""
    source, result = node.inputs[0], node.outputs[0]
    shape, reduced = sweep.shape(source), sweep.shape(result)
    if shape is None or reduced is None or np.prod(shape) != np.prod(reduced) or 0 in shape:
        return False
    if shape == reduced:
        return sweep.forward(node, source)
    if not sweep.claim(node):
        return False
    sweep.edit.replace(node, "Reshape", [source, sweep.shape_constant(reduced, f"{result}_shape")], {})
    return True


def drop_pool(sweep: Sweep, node: Node) -> bool:
    """A pool over windows of one element  ->  x"""
    if len(node.outputs) > 1 and node.outputs[1]:
        return False
    kernel = node.get_ints("kernel_shape")
    plain = all(s == 1 for s in (*node.get_ints("strides"), *kernel)) and not any(node.get_ints("pads"))
    if node.op.startswith("Global"):
        shape = sweep.shape(node.inputs[0])
        plain = shape is not None and all(d == 1 for d in shape[2:])
    return plain and sweep.forward(node, node.inputs[0])


def drop_repeated(sweep: Sweep, node: Node) -> bool:
    """Relu(Relu(x))  ->  Relu(x)"""
    return sweep.producer(node.inputs[0], node.op) is not None and sweep.forward(node, node.inputs[0])


def drop_twice(sweep: Sweep, node: Node) -> bool:
    """Neg(Neg(x)), Not(Not(x))  ->  x"""
    inner = sweep.producer(node.inputs[0], node.op)
    return inner is not None and sweep.forward(node, inner.inputs[0], through=[inner])


def drop_relu(sweep: Sweep, node: Node) -> bool:
    """Relu of what is never negative  ->  x"""
    return is_non_negative(sweep, node.inputs[0]) and sweep.forward(node, node.inputs[0])


def is_non_negative(sweep: Sweep, name: str) -> bool:
    """Whether `name` surely holds no negative number."""
    inner = sweep.producer(name)
    if inner is None:
        return False
    if inner.op == "Clip":
        low = sweep.scalar(sweep.operand(inner, 1))
        return low is not None and low >= 0
    return inner.op in NON_NEGATIVE or (inner.op == "Mul" and inner.inputs[0] == inner.inputs[1])


def drop_where(sweep: Sweep, node: Node) -> bool:
    """Where(all true, x, y)  ->  x; Where(all false, x, y)  ->  y"""
    condition = sweep.constant(node.inputs[0])
    if condition is None or condition.size == 0 or not (condition.all() or not condition.any()):
        return False
    chosen = node.inputs[1] if condition.all() else node.inputs[2]
    return sweep.same_type(chosen, node.outputs[0]) and sweep.forward(node, chosen)


def simplify_clip(sweep: Sweep, node: Node) -> bool:
    """Clip without bounds  ->  x; Clip(x, 0)  ->  Relu(x); Clip(Relu(x), low, high)  ->  Clip(x, max(low, 0), high)"""
    if not sweep.is_float(node.inputs[0]):
        return False
    low = sweep.scalar(node.inputs[1]) if sweep.operand(node, 1) else -np.inf
    high = sweep.scalar(node.inputs[2]) if sweep.operand(node, 2) else np.inf
    if low is None or high is None:
        return False
    if low == -np.inf and high == np.inf:
        return sweep.forward(node, node.inputs[0])
    if low == 0 and high == np.inf:
        if not sweep.claim(node):
            return False
        sweep.edit.replace(node, "Relu", node.inputs[:1], {})
        return True
    return high >= 0 and _clip_over_relu(sweep, node, low)


def _clip_over_relu(sweep: Sweep, node: Node, low: float) -> bool:
    inner = sweep.producer(node.inputs[0], "Relu")
    if inner is None or not sweep.sole(inner.outputs[0]) or not sweep.claim(node, inner):
        return False
    bound = np.array(max(low, 0.0), sweep.type(node.inputs[0]).dtype)
    sweep.edit.remove(inner)
    sweep.edit.replace(
        node, inputs=[inner.inputs[0], sweep.edit.constant(bound, f"{node.outputs[0]}_low"), *node.inputs[2:]]
    )
    return True


def square(sweep: Sweep, node: Node) -> bool:
    """x ** 2  ->  x * x"""
    x, result = node.inputs[0], node.outputs[0]
    exponent = sweep.constant(node.inputs[1])
    if (
        exponent is None
        or not _all_equal(exponent, 2)
        or not _keeps_shape(sweep, x, exponent, result)
        or not sweep.claim(node)
    ):
        return False
    sweep.edit.replace(node, "Mul", [x, x], {})
    return True


def flatten_concat(sweep: Sweep, node: Node) -> bool:
    """Concat(Concat(a, b), c)  ->  Concat(a, b, c), along one axis"""
    rank = sweep.rank(node.outputs[0])
    if rank is None:
        return False
    axis = node.get_int("axis", 0) % rank
    parts: list[str] = []
    inner: list[Node] = []
    for name in node.inputs:
        source = sweep.producer(name, "Concat")
        if source is not None and sweep.sole(name) and source.get_int("axis", 0) % rank == axis:
            inner.append(source)
            parts.extend(source.inputs)
        else:
            parts.append(name)
    if not inner or not sweep.claim(node, *inner):
        return False
    sweep.edit.remove(*inner)
    sweep.edit.replace(node, inputs=parts)
    return True


_BY_OPERATOR: tuple[tuple[Rule, tuple[str, ...]], ...] = (
    (drop, ("Identity",)),
    (drop_dropout, ("Dropout",)),
    (drop_neutral, tuple(NEUTRAL)),
    (square, ("Pow",)),
    (drop_cast, ("Cast",)),
    (merge_casts, ("Cast",)),
    (drop_same_shape, SAME_SHAPE),
    (drop_expand, (*BINARY, "Where")),
    (drop_tile_or_pad, ("Tile", "Pad")),
    (drop_slice, ("Slice",)),
    (drop_single, SINGLE),
    (drop_concat_of_nothing, ("Concat",)),
    (flatten_concat, ("Concat",)),
    (drop_split, ("Split",)),
    (drop_resize, ("Resize",)),
    (drop_reduction, REDUCTIONS),
    (drop_pool, ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")),
    (drop_repeated, IDEMPOTENT),
    (drop_twice, INVOLUTIONS),
    (drop_relu, ("Relu",)),
    (drop_where, ("Where",)),
    (simplify_clip, ("Clip",)),
)

RULES: Rules = by_operator(_BY_OPERATOR)
