"""Shape arithmetic with open dimensions: what is known of small integer vectors, element by element.

    Gather(Shape(x: [N, 3, 8, 8]), 1)                          ->  3
    Reshape(y, Concat(Gather(Shape(x), 0), [192]))             ->  Reshape(y, [-1, 192])

Each element of such a vector is a number, a symbol of the model (the same symbol is the same number), or unknown. A
value whose elements are all numbers becomes a constant; a Reshape with one element that is no number gets -1 there.
"""

from collections.abc import Callable, Mapping
from math import prod

import numpy as np

from graphc.ir.edit import Edit
from graphc.ir.graph import Array, Dim, Graph, Node

LONGEST = 64
"""Elements up to which a vector is followed; shapes are shorter."""

Element = int | str | None
Vector = tuple[Element, ...]
"""The elements of a vector, or of a scalar as one."""


def fold_shapes(graph: Graph) -> Graph:
    """Replace integer vectors that are known by constants, and shapes with one open element by a constant with -1."""
    values = shape_values(graph)
    edit = Edit(graph)
    for node in graph.nodes:
        name = node.outputs[0] if len(node.outputs) == 1 else ""
        if name in values and name not in graph.outputs and _is_known(values[name]):
            edit.remove(node)
            edit.define(name, _as_array(values[name], graph, name))
        elif node.op == "Reshape" and not node.domain:
            _fix_reshape(graph, edit, node, values)
    return edit.apply()


def _is_known(vector: Vector) -> bool:
    return all(isinstance(element, int) for element in vector)


def _as_array(vector: Vector, graph: Graph, name: str) -> Array:
    kind = graph.types[name]
    assert kind.shape is not None
    array = np.array(vector, kind.dtype)
    return array if kind.shape else array.reshape(())


def _fix_reshape(graph: Graph, edit: Edit, node: Node, values: Mapping[str, Vector]) -> None:
    """Write -1 for the one element of a Reshape's shape that is no number; two remain as they are."""
    vector = values.get(node.inputs[1])
    if node.inputs[1] in graph.constants or vector is None or 0 in vector:
        return
    if -1 in vector:
        vector = _without_minus_one(vector, graph.types[node.inputs[0]].shape)
    if -1 in vector or sum(not isinstance(e, int) for e in vector) != 1:
        return
    dims = np.array([e if isinstance(e, int) else -1 for e in vector], np.int64)
    edit.replace(node, inputs=[node.inputs[0], edit.constant(dims, f"{node.outputs[0]}_shape")])


def _without_minus_one(vector: Vector, shape: tuple[Dim, ...] | None) -> Vector:
    """[N, -1] for an operand [N, 64, 2]  ->  [N, 128]; the vector as it is where that cannot be told."""
    symbols = [e for e in vector if not isinstance(e, int)]
    if shape is None or len(symbols) != 1 or [d for d in shape if not isinstance(d, int)] != symbols:
        return vector
    total = prod(d for d in shape if isinstance(d, int))
    known = prod(e for e in vector if isinstance(e, int) and e != -1)
    return tuple(total // known if e == -1 else e for e in vector) if total and total % known == 0 else vector


def shape_values(graph: Graph) -> dict[str, Vector]:
    """What is known of each integer scalar or vector of at most LONGEST elements that some node computes."""
    known = _Vectors(graph)
    for node in graph.nodes:
        rule = _RULES.get(node.op) if not node.domain else None
        vector = rule(known, node) if rule is not None else None
        if vector is not None and len(vector) <= LONGEST and any(element is not None for element in vector):
            known.found[node.outputs[0]] = vector
    return known.found


class _Vectors:
    """Lookup of vectors: found by a rule, or constants of the graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.found: dict[str, Vector] = {}

    def get(self, name: str) -> Vector | None:
        array = self.graph.constants.get(name)
        if array is None:
            return self.found.get(name)
        if array.ndim > 1 or array.size > LONGEST or not np.issubdtype(array.dtype, np.integer):
            return None
        return tuple(int(v) for v in array.ravel())

    def fixed(self, node: Node, index: int) -> tuple[int, ...] | None:
        """A constant operand's elements."""
        name = node.inputs[index] if index < len(node.inputs) else ""
        vector = self.get(name) if name in self.graph.constants else None
        return tuple(e for e in vector if isinstance(e, int)) if vector is not None else None

    def is_scalar(self, name: str) -> bool:
        return self.graph.types[name].shape == ()


def _shape(known: _Vectors, node: Node) -> Vector | None:
    dims = known.graph.types[node.inputs[0]].shape
    if dims is None:
        return None
    start, end = node.get_int("start", 0), node.get_int("end", len(dims))
    return tuple(None if d == "?" else d for d in dims[slice(start, end)])


def _same(known: _Vectors, node: Node) -> Vector | None:
    return known.get(node.inputs[0])


def _cast(known: _Vectors, node: Node) -> Vector | None:
    """Only between integers, and only numbers that fit."""
    vector, kind = known.get(node.inputs[0]), known.graph.types[node.outputs[0]].dtype
    if vector is None or not np.issubdtype(kind, np.integer):
        return None
    limits = np.iinfo(kind.name)
    fits = all(not isinstance(e, int) or limits.min <= e <= limits.max for e in vector)
    return vector if fits and limits.bits >= 32 else None


def _reshape(known: _Vectors, node: Node) -> Vector | None:
    rank = known.graph.types[node.outputs[0]].shape
    return known.get(node.inputs[0]) if rank is not None and len(rank) <= 1 else None


def _gather(known: _Vectors, node: Node) -> Vector | None:
    vector, indices = known.get(node.inputs[0]), known.fixed(node, 1)
    if vector is None or indices is None or known.is_scalar(node.inputs[0]):
        return None
    return tuple(vector[i] for i in indices) if all(-len(vector) <= i < len(vector) for i in indices) else None


def _slice(known: _Vectors, node: Node) -> Vector | None:
    vector, start, end = known.get(node.inputs[0]), known.fixed(node, 1), known.fixed(node, 2)
    step = known.fixed(node, 4) if len(node.inputs) > 4 and node.inputs[4] else (1,)
    if vector is None or start is None or end is None or step is None or len(start) != 1:
        return None
    if step[0] < 1:
        return None
    return vector[start[0] : end[0] : step[0]]


def _concat(known: _Vectors, node: Node) -> Vector | None:
    parts: list[Element] = []
    for name in node.inputs:
        vector, dims = known.get(name), known.graph.types[name].shape
        if vector is None:
            if dims is None or len(dims) != 1 or not isinstance(dims[0], int):
                return None
            vector = (None,) * dims[0]
        parts.extend(vector)
    return tuple(parts)


def _size(known: _Vectors, node: Node) -> Vector | None:
    kind = known.graph.types[node.inputs[0]]
    return (kind.size,) if kind.is_static else None


def _arithmetic(
    function: Callable[[int, int], int | None], neutral: int, symmetric: bool
) -> Callable[[_Vectors, Node], Vector | None]:
    """A rule for an operator on two vectors; a symbol survives where the other side is neutral."""

    def combine(a: Element, b: Element) -> Element:
        if isinstance(a, int) and isinstance(b, int):
            return function(a, b)
        if b == neutral:
            return a
        return b if symmetric and a == neutral else None

    def rule(known: _Vectors, node: Node) -> Vector | None:
        a, b = known.get(node.inputs[0]), known.get(node.inputs[1])
        if a is None or b is None or (len(a) != len(b) and 1 not in {len(a), len(b)}):
            return None
        length = 0 if 0 in {len(a), len(b)} else max(len(a), len(b))
        return tuple(combine(a[i % len(a)], b[i % len(b)]) for i in range(length))

    return rule


def _divide(a: int, b: int) -> int | None:
    """ONNX divides integers towards zero."""
    return int(abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1) if b else None


_RULES: Mapping[str, Callable[[_Vectors, Node], Vector | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Identity": _same,
    "Cast": _cast,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Flatten": _reshape,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Add": _arithmetic(lambda a, b: a + b, 0, symmetric=True),
    "Sub": _arithmetic(lambda a, b: a - b, 0, symmetric=False),
    "Mul": _arithmetic(lambda a, b: a * b, 1, symmetric=True),
    "Div": _arithmetic(_divide, 1, symmetric=False),
}
