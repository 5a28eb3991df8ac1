"""Scattering: a copy of the data with some elements replaced, or combined with updates, where indices say.

Updates of one element are applied in their order, so that results do not depend on the number of threads.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from tvm import tirx

from graphc.backends.relax_module import Lowering, computes
from graphc.backends.statements import const, function, loop, sequence, tasks
from graphc.errors import UnsupportedError
from graphc.ir import Node

COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    "none": lambda _, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "min": tirx.min,
    "max": tirx.max,
}
"""Attribute `reduction` -> what becomes of an element and its update."""


def _reduction(node: Node) -> Callable[[Any, Any], Any]:
    name = node.get_str("reduction", "none")
    if name not in COMBINE:
        raise UnsupportedError(node.label, f"unknown reduction {name!r}.", f"Use one of {', '.join(COMBINE)}.")
    return COMBINE[name]


def _operands(state: Lowering, node: Node) -> list[Any]:
    """Buffers: data, indices, updates."""
    kinds = [state.type(name) for name in node.inputs]
    return [
        tirx.decl_buffer(k.dims, k.dtype.name, n) for k, n in zip(kinds, ("data", "indices", "updates"), strict=True)
    ]


def _at(shape: Sequence[int], flat: Any) -> list[Any]:
    """Coordinates of element number `flat`."""
    return [flat // prod(shape[i + 1 :]) % size for i, size in enumerate(shape)]


def _wrapped(index: Any, size: int) -> Any:
    """A position along an axis; negative ones count from its end."""
    place = index.astype("int32")
    return tirx.if_then_else(place < 0, place + size, place)


@computes("", "ScatterElements", "Scatter")
def scatter_elements(state: Lowering, node: Node) -> Sequence[Any]:
    """y = data; y[.., indices[.., k, ..], ..] (+)= updates[.., k, ..] along `axis`: each line of the data is a task."""
    shape, picked = state.type(node.inputs[0]).dims, state.type(node.inputs[1]).dims
    kind = state.type(node.outputs[0])
    if not shape or not kind.size:
        raise UnsupportedError(node.label, f"data of shape {list(shape)}.", "Drop the node.")
    axis, combine = node.get_int("axis", 0) % len(shape), _reduction(node)
    data, indices, updates = _operands(state, node)
    result = tirx.decl_buffer((kind.size,), kind.dtype.name, "result")
    lines = [1 if i == axis else size for i, size in enumerate(shape)]
    stride = prod(shape[axis + 1 :])

    def line(task: Any) -> Any:
        place = _at(lines, task)
        start = sum((p * prod(shape[i + 1 :]) for i, p in enumerate(place)), const(0))

        def along(k: Any) -> list[Any]:
            return [k if i == axis else p for i, p in enumerate(place)]

        def update(k: Any) -> Any:
            at = start + _wrapped(indices[tuple(along(k))], shape[axis]) * stride
            return tirx.BufferStore(result, combine(result[at], updates[tuple(along(k))]), [at])

        copied = loop(
            "k", 0, shape[axis], lambda k: tirx.BufferStore(result, data[tuple(along(k))], [start + k * stride])
        )
        if not prod(picked):
            return copied
        updated = loop("k", 0, picked[axis], update)
        inside = [p < size for p, size, full in zip(place, picked, lines, strict=True) if size < full]
        return sequence([copied, tirx.IfThenElse(tirx.all(*inside), updated, None) if inside else updated])

    nest = function([data, indices, updates, result], None, [tasks(prod(lines), line)])
    return [state.emit_function(nest, [state.value(name) for name in node.inputs], kind, name="scatter_elements")]


@computes("", "ScatterND")
def scatter_nd(state: Lowering, node: Node) -> Sequence[Any]:
    """y = data; y[indices[j]] (+)= updates[j], whole slices of the data; each element of a slice is a task."""
    shape, places = state.type(node.inputs[0]).dims, state.type(node.inputs[1]).dims
    kind = state.type(node.outputs[0])
    if not kind.size:
        raise UnsupportedError(node.label, f"data of shape {list(shape)}.", "Drop the node.")
    depth, combine = places[-1], _reduction(node)
    outer, inner = shape[:depth], shape[depth:]
    data, indices, updates = _operands(state, node)
    result = tirx.decl_buffer((kind.size,), kind.dtype.name, "result")

    def element(task: Any) -> Any:
        def update(j: Any) -> Any:
            row = _at(places[:-1], j)
            index = [_wrapped(indices[(*row, const(d))], outer[d]) for d in range(depth)]
            at = sum((p * prod(shape[d + 1 :]) for d, p in enumerate(index)), task)
            return tirx.BufferStore(result, combine(result[at], updates[(*row, *_at(inner, task))]), [at])

        def copy(j: Any) -> Any:
            return tirx.BufferStore(result, data[(*_at(outer, j), *_at(inner, task))], [j * prod(inner) + task])

        copied = loop("j", 0, prod(outer), copy)
        return sequence([copied, loop("j", 0, prod(places[:-1]), update)]) if prod(places) else copied

    nest = function([data, indices, updates, result], None, [tasks(prod(inner), element)])
    return [state.emit_function(nest, [state.value(name) for name in node.inputs], kind, name="scatter_nd")]
