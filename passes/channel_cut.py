"""Taking channels out of a graph: shorter constants, and the attributes and operands that state sizes.

    cut(graph, {("w1", 0): [3], ("a", 1): [3], ("b", 1): [3], ("w2", 1): [3]})      Conv(x, w1[16, ...]) -> w1[15, ...]

What is removed must be whole groups of channel_groups.py. Everything else keeps its values bit for bit.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from graphc.errors import InternalError
from graphc.ir.edit import Edit
from graphc.ir.graph import Array, Attribute, Graph, Node, TensorType
from graphc.passes.channel_groups import Elements
from graphc.passes.channel_moves import padding, spans
from graphc.passes.channel_rules import attention_heads
from graphc.passes.channel_ties import Axis, Indices


def merged(groups: Iterable[Elements]) -> dict[Axis, Indices]:
    """The indices of several groups together."""
    found: dict[Axis, list[Indices]] = {}
    for group in groups:
        for axis, indices in group.items():
            found.setdefault(axis, []).append(indices)
    return {axis: np.unique(np.concatenate(parts)) for axis, parts in found.items()}


def kept(graph: Graph, removed: Elements, axis: Axis) -> Indices:
    """The indices of an axis that stay."""
    size = graph.types[axis[0]].dims[axis[1]]
    gone = removed.get(axis)
    return np.arange(size) if gone is None else np.setdiff1d(np.arange(size), gone)


def types_after(graph: Graph, removed: Elements) -> dict[str, TensorType]:
    """The type of every value once `removed` is gone."""
    types = dict(graph.types)
    for (name, number), gone in removed.items():
        if name in types:
            dims = list(types[name].dims)
            dims[number] -= len(gone)
            types[name] = TensorType(types[name].dtype, tuple(dims))
    return types


def select(graph: Graph, removed: Elements, name: str, array: Array) -> Array:
    """An array of the shape of value `name`, without what is removed from that value."""
    for number in range(array.ndim):
        if (name, number) in removed:
            array = np.take(array, kept(graph, removed, (name, number)), number)
    return array


def cut(graph: Graph, removed: Elements) -> Graph:
    """The graph without those indices; the same object where there are none."""
    edit, after = Edit(graph), types_after(graph, removed)
    touched = {name for name, _ in removed}
    for name in touched & graph.constants.keys():
        edit.define(name, select(graph, removed, name, graph.constants[name]))
    for node in graph.nodes:
        if node.op in SIZES and not node.domain and not touched.isdisjoint((*node.reads, *node.results)):
            change = SIZES[node.op](Cut(graph, node, removed, after))
            operands = list(node.inputs)
            for place, array in change.operands.items():
                operands[place] = edit.constant(array, f"{node.name}_{PLACES.get(node.op, 'sizes')}")
            edit.replace(node, inputs=operands, attributes={**node.attributes, **change.attributes})
    return edit.apply()


@dataclass(frozen=True)
class Change:
    """New constants for operands, by position, and new attributes."""

    operands: Mapping[int, Array]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True)
class Cut:
    """One node, what is removed around it, and the types afterwards."""

    graph: Graph
    node: Node
    removed: Elements
    after: Mapping[str, TensorType]

    def kept(self, name: str, number: int) -> Indices:
        return kept(self.graph, self.removed, (name, number))


def _groups(at: Cut) -> Change:
    """Depthwise convolutions have a group per channel; the groups of others stay as many as they were."""
    x, groups = at.node.inputs[0], at.node.get_int("group", 1)
    is_depthwise = groups == at.graph.types[x].dims[1]
    return Change({}, {"group": at.after[x].dims[1]} if is_depthwise and groups > 1 else {})


def _shape(at: Cut) -> Change:
    return Change({1: np.array(at.after[at.node.outputs[0]].dims, np.int64)}, {})


def _split(at: Cut) -> Change:
    axis = at.node.get_int("axis", 0) % len(at.graph.types[at.node.inputs[0]].dims)
    sizes = np.array([at.after[name].dims[axis] for name in at.node.outputs], np.int64)
    if len(at.node.inputs) > 1 and at.node.inputs[1]:
        return Change({1: sizes}, {})
    if len(set(sizes.tolist())) > 1:
        raise InternalError(at.node.label, "its parts are no longer equal; it must state their sizes before a cut.")
    return Change({}, {})


def _slice(at: Cut) -> Change:
    """Bounds count the indices that stay before them."""
    taken = spans(at.node, at.graph)
    assert taken is not None
    starts, ends = [], []
    for axis, run in taken.items():
        stay = at.kept(at.node.inputs[0], axis)
        if len(stay) == at.graph.types[at.node.inputs[0]].dims[axis]:
            whole = run if run.step > 0 else range(run.start, run.stop - (run.stop < 0) * (1 << 31), run.step)
            starts.append(whole.start)
            ends.append(whole.stop)
        else:
            starts.append(int((stay < run.start).sum()))
            ends.append(int((stay < run.stop).sum()))
    steps = [run.step for run in taken.values()]
    arrays = (starts, ends, list(taken), steps)
    return Change({i: np.array(array, np.int64) for i, array in enumerate(arrays, 1) if i < len(at.node.inputs)}, {})


def _pad(at: Cut) -> Change:
    """Padding that is removed is no longer added."""
    added = padding(at.node, at.graph)
    assert added is not None
    x, y = at.node.inputs[0], at.node.outputs[0]
    pairs = []
    for axis, (before, behind) in added.items():
        size, inner = at.graph.types[y].dims[axis], at.kept(x, axis)
        stay, width = at.kept(y, axis), at.graph.types[x].dims[axis]
        front = int((stay < before).sum()) if before >= 0 else -int((inner < -before).sum())
        back = int((stay >= size - behind).sum()) if behind >= 0 else -int((inner >= width + behind).sum())
        pairs.append((front, back))
    return Change({1: np.array([*(p[0] for p in pairs), *(p[1] for p in pairs)], np.int64)}, {})


def _gather(at: Cut) -> Change:
    """Constant indices are those of the shorter axis."""
    axis = at.node.get_int("axis", 0) % len(at.graph.types[at.node.inputs[0]].dims)
    indices = at.graph.constant(at.node.inputs[1])
    stay = at.kept(at.node.inputs[0], axis)
    size = at.graph.types[at.node.inputs[0]].dims[axis]
    if indices is None or indices.ndim != 1 or ((at.node.inputs[1], 0) not in at.removed and len(stay) == size):
        return Change({}, {})
    chosen = indices[at.kept(at.node.inputs[1], 0)].astype(np.int64) % size
    return Change({1: np.searchsorted(stay, chosen).astype(indices.dtype)}, {})


def _resize(at: Cut) -> Change:
    """Sizes, where a Resize states these; scales stay."""
    if len(at.node.inputs) < 4 or not at.node.inputs[3]:
        return Change({}, {})
    dims = at.after[at.node.outputs[0]].dims
    axes = at.node.get_ints("axes", tuple(range(len(dims))))
    return Change({3: np.array([dims[axis] for axis in axes], np.int64)}, {})


def _group_normalization(at: Cut) -> Change:
    before, groups = at.graph.types[at.node.inputs[0]].dims[1], at.node.get_int("num_groups", 1)
    return Change({}, {"num_groups": at.after[at.node.inputs[0]].dims[1] * groups // before})


def _attention(at: Cut) -> Change:
    if len(at.graph.types[at.node.inputs[0]].dims) == 4:
        return Change({}, {})
    sizes: dict[str, Attribute] = {}
    heads = attention_heads(at.node, at.graph)
    for attribute, name, count in zip(("q_num_heads", "kv_num_heads"), at.node.inputs, heads, strict=False):
        sizes[attribute] = at.after[name].dims[2] * count // at.graph.types[name].dims[2]
    return Change({}, sizes)


SIZES: Mapping[str, Callable[[Cut], Change]] = {
    "Conv": _groups,
    "ConvTranspose": _groups,
    "Reshape": _shape,
    "Expand": _shape,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Gather": _gather,
    "Resize": _resize,
    "GroupNormalization": _group_normalization,
    "Attention": _attention,
}
"""Operators that state sizes -> what they state after a cut."""

PLACES = {"Slice": "bounds", "Gather": "indices", "Pad": "pads", "Reshape": "shape", "Expand": "shape"}


def apart(graph: Graph) -> Graph:
    """Vectors that several nodes share (biases, scales, zero points) as one for each, and Splits with stated sizes.

    Sharing them ties nothing together. Weight matrices stay shared: a tied weight is one weight.
    """
    edit = Edit(graph)
    for node in graph.nodes:
        operands = [_own(graph, edit, node, name) for name in node.inputs]
        if node.op == "Split" and not node.domain and len([name for name in operands if name]) == 1:
            operands = [operands[0], *_stated(graph, edit, node)]
        if operands != list(node.inputs):
            attributes = {key: value for key, value in node.attributes.items() if key != "num_outputs"}
            edit.replace(node, inputs=operands, attributes=attributes)
    return edit.apply()


def _own(graph: Graph, edit: Edit, node: Node, name: str) -> str:
    array = graph.constant(name)
    if array is None or array.ndim != 1 or array.dtype == np.int64 or len(graph.users[name]) == 1:
        return name
    return name if graph.users[name][0] is node else edit.constant(array, f"{name}_of_{node.name}")


def _stated(graph: Graph, edit: Edit, node: Node) -> Iterator[str]:
    axis = node.get_int("axis", 0)
    types = [graph.types[name] for name in node.outputs]
    if all(kind.is_static for kind in types):
        yield edit.constant(np.array([kind.dims[axis] for kind in types], np.int64), f"{node.name}_sizes")
