"""How an operator ties the indices of its axes together: one rule per operator (movers: channel_moves.py).

A rule speaks of the axes along which an index can be removed and the rest stays what it was: exactly, where what is
removed is zero. All other axes of its operands and results must keep their indices, and so must those of operators that
have no rule here. A mean along an axis, a softmax, a maximum change with the number of indices, so they have no rule
there; a sum does not change.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from graphc.ir.graph import Graph, Node
from graphc.passes import channel_moves as moves
from graphc.passes.channel_ties import Axis, Free, Relation, Rule, Tie, aligned, along_others, axis_of, integers, same


def relations(node: Node, graph: Graph) -> tuple[Relation, ...]:
    """What `node` ties together; nothing where its operator has no rule, or a shape is open."""
    rule = RULES.get(node.op) if not node.domain and not node.subgraphs else None
    names = (*filter(None, node.inputs), *node.results)
    if rule is None or not all(graph.types[name].is_static for name in names):
        return ()
    return tuple(rule(node, graph))


def elementwise(node: Node, graph: Graph) -> Iterator[Relation]:
    """Operands broadcast to the result: axes are counted from the back."""
    for result in node.results:
        for name in filter(None, node.inputs):
            yield from aligned(graph, name, result, len(graph.types[result].dims))


def _window(node: Node, graph: Graph) -> tuple[int, ...]:
    return tuple(range(2, len(graph.types[node.inputs[0]].dims)))


def _last(node: Node, graph: Graph) -> tuple[int, ...]:
    return (axis_of(node, graph, -1),)


def conv(node: Node, graph: Graph) -> Iterator[Relation]:
    """w [O, I / groups, ...]. Groups stay equal: the same places go in each; depthwise, whole groups."""
    x, w, y = *node.inputs[:2], node.outputs[0]
    yield from same(graph, (x, 0), (y, 0))
    yield from _grouped(node, graph, (w, 0), (w, 1), (y, 1))
    yield from _bias(node, graph, (y, 1))


def conv_transpose(node: Node, graph: Graph) -> Iterator[Relation]:
    """w [I, O / groups, ...]."""
    x, w, y = *node.inputs[:2], node.outputs[0]
    groups = node.get_int("group", 1)
    outputs = graph.types[y].dims[1]
    yield from same(graph, (x, 0), (y, 0))
    yield from same(graph, (x, 1), (w, 0))
    if groups == graph.types[x].dims[1] and groups > 1:
        yield Tie((x, 1), (y, 1), np.arange(outputs) // (outputs // groups), np.arange(outputs))
    else:
        yield from _equal_groups((x, 1), graph.types[x].dims[1], groups)
        yield Tie((y, 1), (w, 1), np.arange(outputs), np.arange(outputs) % (outputs // groups))
    yield from _bias(node, graph, (y, 1))


def _grouped(node: Node, graph: Graph, out: Axis, inner: Axis, result: Axis) -> Iterator[Relation]:
    x = (node.inputs[0], 1)
    groups, inputs, outputs = node.get_int("group", 1), graph.types[x[0]].dims[1], graph.types[result[0]].dims[1]
    yield from same(graph, out, result)
    if groups == inputs and groups > 1:
        yield Tie(x, result, np.arange(outputs) // (outputs // groups), np.arange(outputs))
        return
    yield from _equal_groups(result, outputs, groups)
    if inputs > groups:
        yield Tie(x, inner, np.arange(inputs), np.arange(inputs) % (inputs // groups))


def _equal_groups(axis: Axis, size: int, groups: int) -> Iterator[Relation]:
    """The same places of every group go together."""
    if groups > 1:
        yield Tie(axis, axis, np.arange(size), np.arange(size) % (size // groups))


def _bias(node: Node, graph: Graph, result: Axis) -> Iterator[Relation]:
    if len(node.inputs) > 2 and node.inputs[2]:
        yield from same(graph, (node.inputs[2], 0), result)


def matmul(node: Node, graph: Graph) -> Iterator[Relation]:
    """[..., n, k] x [..., k, m] -> [..., n, m]; one axis alone is k."""
    (a, b), y = node.inputs[:2], node.outputs[0]
    left, right, wide = (graph.types[name].dims for name in (a, b, y))
    inner = len(right) - 2 if len(right) > 1 else 0
    yield from same(graph, (a, len(left) - 1), (b, inner))
    if len(left) > 1:
        yield from same(graph, (a, len(left) - 2), (y, len(wide) - (2 if len(right) > 1 else 1)))
    if len(right) > 1:
        yield from same(graph, (b, len(right) - 1), (y, len(wide) - 1))
    batch = len(wide) - (len(left) > 1) - (len(right) > 1)
    for name, dims in ((a, left), (b, right)):
        for axis in range(len(dims) - 2):
            other = axis + batch - (len(dims) - 2)
            if dims[axis] == wide[other]:
                yield from same(graph, (name, axis), (y, other))


def gemm(node: Node, graph: Graph) -> Iterator[Relation]:
    (a, b), y = node.inputs[:2], node.outputs[0]
    flipped, turned = node.get_int("transA", 0), node.get_int("transB", 0)
    yield from same(graph, (a, 1 - flipped), (b, turned))
    yield from same(graph, (a, flipped), (y, 0))
    yield from same(graph, (b, 1 - turned), (y, 1))
    if len(node.inputs) > 2 and node.inputs[2]:
        yield from aligned(graph, node.inputs[2], y, 2)


def einsum(node: Node, graph: Graph) -> Iterator[Relation]:
    """Axes of one letter are one axis; a letter that the result lacks is a sum."""
    terms, arrow, result = node.get_str("equation", "").replace(" ", "").partition("->")
    if not arrow or "." in terms + result:
        return
    seen: dict[str, Axis] = {}
    for name, term in zip((*node.inputs, node.outputs[0]), (*terms.split(","), result), strict=True):
        for axis, letter in enumerate(term):
            other = seen.setdefault(letter, (name, axis))
            yield Free((name, axis))
            if other != (name, axis):
                yield from same(graph, other, (name, axis))


def batch_normalization(node: Node, graph: Graph) -> Iterator[Relation]:
    """Also InstanceNormalization: each channel for itself, with one constant of each kind."""
    if len(node.results) > 1:
        return
    x, y = node.inputs[0], node.outputs[0]
    axes = range(len(graph.types[x].dims)) if node.op == "BatchNormalization" else (0, 1)
    for axis in axes:
        yield from same(graph, (x, axis), (y, axis))
    for name in node.inputs[1:]:
        yield from same(graph, (name, 0), (y, 1))


def group_normalization(node: Node, graph: Graph) -> Iterator[Relation]:
    """Mean and variance are a group's: whole groups go."""
    x, y = node.inputs[0], node.outputs[0]
    channels = graph.types[x].dims[1]
    size = channels // node.get_int("num_groups", 1)
    yield from same(graph, (x, 0), (y, 0))
    yield from same(graph, (x, 1), (y, 1))
    yield Tie((y, 1), (y, 1), np.arange(channels), np.arange(channels) // size * size)
    for name in node.inputs[1:]:
        yield from same(graph, (name, 0), (y, 1))


def _normalized(node: Node, graph: Graph) -> tuple[int, ...]:
    return tuple(range(axis_of(node, graph, -1), len(graph.types[node.inputs[0]].dims)))


def _reduced(node: Node, graph: Graph) -> tuple[int, ...] | None:
    """The axes that a reduction takes together; None where they are computed."""
    rank = len(graph.types[node.inputs[0]].dims)
    if node.op in ("ArgMax", "ArgMin"):
        return (node.get_int("axis", 0) % rank,)
    if len(node.inputs) > 1 and node.inputs[1]:
        axes = integers(graph, node, 1)
        return None if axes is None else tuple(axis % rank for axis in axes)
    return () if node.get_int("noop_with_empty_axes", 0) else tuple(range(rank))


def reduce(node: Node, graph: Graph) -> Iterator[Relation]:
    """A sum of fewer indices is the same where those gone are zero; a mean or a maximum is not."""
    axes = _reduced(node, graph)
    if axes is None:
        return
    x, y = node.inputs[0], node.outputs[0]
    keep = node.get_int("keepdims", 1)
    place = 0
    for axis in range(len(graph.types[x].dims)):
        if axis not in axes:
            yield from same(graph, (x, axis), (y, place))
        elif node.op in SUMS:
            yield Free((x, axis))
        place += keep or axis not in axes


def quantize_linear(node: Node, graph: Graph) -> Iterator[Relation]:
    """Also DequantizeLinear: scales per tensor, or one for each index of `axis`; blocks keep theirs."""
    x, y = node.inputs[0], node.outputs[0]
    axis = axis_of(node, graph, 1)
    blocked = len(graph.types[node.inputs[1]].dims) > 1
    for other in range(len(graph.types[x].dims)):
        if not blocked or other != axis:
            yield from same(graph, (x, other), (y, other))
    for name in node.inputs[1:]:
        dims = graph.types[name].dims
        if len(dims) == 1 and dims[0] == graph.types[x].dims[axis]:
            yield from same(graph, (name, 0), (y, axis))
        for other in range(len(dims)) if blocked else ():
            if other != axis:
                yield from same(graph, (name, other), (y, other))


def recurrent(node: Node, graph: Graph) -> Iterator[Relation]:
    """LSTM, GRU, RNN: features of the input may go, and steps and batch follow; the hidden size stays."""
    x, w = node.inputs[:2]
    yield from same(graph, (x, 2), (w, 2))


def attention(node: Node, graph: Graph) -> Iterator[Relation]:
    """Whole heads: a head of keys and values goes with all heads of queries that read it."""
    if len(node.results) > 1 or any(node.inputs[3:]):
        return
    query, key, value, y = *node.inputs[:3], node.outputs[0]
    heads, shared = attention_heads(node, graph)
    for name, count in ((query, heads), (key, shared), (value, shared), (y, heads)):
        axis = 1 if len(graph.types[name].dims) == 4 else 2
        indices = np.arange(graph.types[name].dims[axis])
        head = indices // (len(indices) // count)
        yield Tie((name, axis), (f"{node.name}#heads", 0), indices, head // (count // shared))


def attention_heads(node: Node, graph: Graph) -> tuple[int, int]:
    """How many heads the queries have, and the keys."""
    dims = [graph.types[name].dims for name in node.inputs[:2]]
    if len(dims[0]) == 4:
        return dims[0][1], dims[1][1]
    return node.get_int("q_num_heads", 1), node.get_int("kv_num_heads", 1)


SUMS = frozenset(("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"))
ELEMENTWISE = (
    "Abs", "Acos", "Add", "And", "Asin", "Atan", "BitShift", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div", "Dropout",
    "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity",
    "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg",
    "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Softplus",
    "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
)  # fmt: skip
POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
MEANS = ("ArgMax", "ArgMin", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd")

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(POOLS, along_others(_window)),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), along_others(_last)),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), along_others(_normalized)),
    **dict.fromkeys((*SUMS, *MEANS), reduce),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), moves.reshape),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), batch_normalization),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), quantize_linear),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent),
    "LpNormalization": elementwise,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MatMul": matmul,
    "Gemm": gemm,
    "Einsum": einsum,
    "Concat": moves.concat,
    "Split": moves.split,
    "Slice": moves.slices,
    "Transpose": moves.transpose,
    "Expand": moves.expand,
    "Tile": moves.tile,
    "Pad": moves.pad,
    "GroupNormalization": group_normalization,
    "DepthToSpace": moves.depth_to_space,
    "SpaceToDepth": moves.space_to_depth,
    "Resize": moves.resize,
    "Gather": moves.gather,
    "Attention": attention,
}  # fmt: skip
"""Operator -> its rule."""
