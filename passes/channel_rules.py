"""How an operator ties the indices of its axes together: one rule per operator.

An axis is (value, number); a `Tie` says which of its indices stand and fall with which indices of another axis:

    Conv(x, w, b) -> y       x axis 1 ~ w axis 1,  w axis 0 ~ b axis 0 ~ y axis 1
    Concat(a, b) -> y        a index i ~ y index i,  b index i ~ y index i + size of a
    Reshape [n, c, h, w] -> [n, c h w]      index c ~ indices c h w to (c + 1) h w - 1

A rule speaks of the axes along which an index can be removed and the rest stays what it was: exactly, where what is
removed is zero. All other axes of its operands and results must keep their indices, and so must those of operators that
have no rule here. A mean along an axis, a softmax, a maximum change with the number of indices, so they have no rule
there; a sum does not change.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod

import numpy as np
import numpy.typing as npt

from graphc.ir.graph import Graph, Node

Axis = tuple[str, int]
"""A value and the number of one of its axes, from the front."""
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Tie:
    """Index `left[i]` of axis `a` and index `right[i]` of axis `b` go together, for every i."""

    a: Axis
    b: Axis
    left: Indices
    right: Indices


@dataclass(frozen=True, slots=True)
class Free:
    """Indices of this axis can go without any other having to go at this operator."""

    axis: Axis


@dataclass(frozen=True, slots=True)
class Choice:
    """A Reshape cuts these axes into factors: of one factor indices may go, then all others keep theirs.

    Each option is (axis before, axis after, ties of both to the factor, its size).
    """

    options: tuple[tuple[Axis, Axis, tuple[Tie, Tie], int], ...]


Relation = Tie | Free | Choice
Rule = Callable[[Node, Graph], Iterator[Relation]]


def relations(node: Node, graph: Graph) -> tuple[Relation, ...]:
    """What `node` ties together; nothing where its operator has no rule, or a shape is open."""
    rule = RULES.get(node.op) if not node.domain and not node.subgraphs else None
    names = (*filter(None, node.inputs), *node.results)
    if rule is None or not all(graph.types[name].is_static for name in names):
        return ()
    return tuple(rule(node, graph))


def same(graph: Graph, a: Axis, b: Axis, start: int = 0) -> Iterator[Tie]:
    """Index i of `a` is index `start` + i of `b`, as far as both go; nothing for axes of one index (they broadcast)."""
    sizes = [graph.types[name].dims[axis] for name, axis in (a, b)]
    count = min(sizes[0], sizes[1] - start)
    if min(sizes) > 1 or start:
        yield Tie(a, b, np.arange(count), np.arange(start, start + count))


def _axis(node: Node, graph: Graph, default: int) -> int:
    return node.get_int("axis", default) % max(len(graph.types[node.inputs[0]].dims), 1)


def _integers(graph: Graph, node: Node, operand: int) -> tuple[int, ...] | None:
    """A constant operand as integers; None where it is computed."""
    name = node.inputs[operand] if operand < len(node.inputs) else ""
    array = graph.constant(name)
    return None if array is None else tuple(int(i) for i in array.astype(np.int64).ravel())


def elementwise(node: Node, graph: Graph) -> Iterator[Relation]:
    """Operands broadcast to the result: axes are counted from the back."""
    for result in node.results:
        for name in filter(None, node.inputs):
            yield from aligned(graph, name, result, len(graph.types[result].dims))


def aligned(graph: Graph, name: str, result: str, end: int) -> Iterator[Relation]:
    """All axes of `name` with those of `result` that end before axis `end`, where the sizes agree."""
    dims, wide = graph.types[name].dims, graph.types[result].dims
    for axis, size in enumerate(dims):
        other = axis + end - len(dims)
        if size == wide[other]:
            yield from same(graph, (name, axis), (result, other))


def _along_others(pinned: Callable[[Node, Graph], tuple[int, ...]]) -> Rule:
    """Operators of one operand that work along some axes and treat the others index by index."""

    def rule(node: Node, graph: Graph) -> Iterator[Relation]:
        for result in node.results:
            for axis in range(len(graph.types[node.inputs[0]].dims)):
                if axis not in pinned(node, graph):
                    yield from same(graph, (node.inputs[0], axis), (result, axis))

    return rule


def _window(node: Node, graph: Graph) -> tuple[int, ...]:
    return tuple(range(2, len(graph.types[node.inputs[0]].dims)))


def _last(node: Node, graph: Graph) -> tuple[int, ...]:
    return (_axis(node, graph, -1),)


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


def concat(node: Node, graph: Graph) -> Iterator[Relation]:
    axis, y = _axis(node, graph, 0), node.outputs[0]
    starts = accumulate((graph.types[name].dims[axis] for name in node.inputs), initial=0)
    for name, start in zip(node.inputs, starts, strict=False):
        for other in range(len(graph.types[name].dims)):
            if other == axis:
                count = graph.types[name].dims[axis]
                yield Tie((name, axis), (y, axis), np.arange(count), np.arange(start, start + count))
            else:
                yield from same(graph, (name, other), (y, other))


def split(node: Node, graph: Graph) -> Iterator[Relation]:
    axis, x = _axis(node, graph, 0), node.inputs[0]
    starts = accumulate((graph.types[name].dims[axis] for name in node.outputs), initial=0)
    for name, start in zip(node.outputs, starts, strict=False):
        for other in range(len(graph.types[x].dims)):
            if other == axis:
                count = graph.types[name].dims[axis]
                yield Tie((name, axis), (x, axis), np.arange(count), np.arange(start, start + count))
            else:
                yield from same(graph, (name, other), (x, other))


def spans(node: Node, graph: Graph) -> dict[int, range] | None:
    """What a Slice takes: axis -> indices. None where bounds are computed."""
    shape = graph.types[node.inputs[0]].dims
    starts, ends, axes, steps = (_integers(graph, node, i) for i in (1, 2, 3, 4))
    if starts is None or ends is None or any(i < len(node.inputs) and node.inputs[i] and got is None
                                             for i, got in ((3, axes), (4, steps))):  # fmt: skip
        return None
    axes = axes or tuple(range(len(starts)))
    steps = steps or (1,) * len(starts)
    found = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = shape[axis % len(shape)]
        found[axis % len(shape)] = range(size)[slice(start, end if step > 0 or end >= -size else None, step)]
    return found


def slices(node: Node, graph: Graph) -> Iterator[Relation]:
    """Whole axes, and runs of indices; a Slice with a step keeps its indices."""
    taken = spans(node, graph)
    if taken is None:
        return
    for axis, size in enumerate(graph.types[node.inputs[0]].dims):
        run = taken.get(axis, range(size))
        if run.step == 1:
            yield Tie((node.inputs[0], axis), (node.outputs[0], axis), np.array(run, np.int64), np.arange(len(run)))


def transpose(node: Node, graph: Graph) -> Iterator[Relation]:
    rank = len(graph.types[node.inputs[0]].dims)
    for result, axis in enumerate(node.get_ints("perm", tuple(range(rank))[::-1])):
        yield from same(graph, (node.inputs[0], axis), (node.outputs[0], result))


def reshape(node: Node, graph: Graph) -> Iterator[Relation]:
    """Runs of axes that hold the same elements before and after: one to one, or cut into factors (`Choice`)."""
    x, y = node.inputs[0], node.outputs[0]
    before, after = graph.types[x].dims, graph.types[y].dims
    if 0 in before:
        return
    for left, right in _segments(before, after):
        if len(left) == len(right) == 1:
            yield from same(graph, (x, left[0]), (y, right[0]))
        else:
            yield from _choice(node, [((x, i), before[i]) for i in left], [((y, i), after[i]) for i in right])


def _segments(before: tuple[int, ...], after: tuple[int, ...]) -> Iterator[tuple[list[int], list[int]]]:
    """The shortest runs of axes, of more than one index each, whose products agree, from the back."""
    left = [i for i, size in enumerate(before) if size > 1]
    right = [i for i, size in enumerate(after) if size > 1]
    while left and right:
        runs: tuple[list[int], list[int]] = ([left.pop()], [right.pop()])
        while (one := prod(before[i] for i in runs[0])) != (two := prod(after[i] for i in runs[1])):
            runs[one > two].append((right if one > two else left).pop())
        yield runs[0][::-1], runs[1][::-1]


def _choice(node: Node, before: list[tuple[Axis, int]], after: list[tuple[Axis, int]]) -> Iterator[Choice]:
    """Factors that both sides are products of; none where they do not divide each other."""
    ends = [_strides([size for _, size in side]) for side in (before, after)]
    strides = sorted({stride for side in ends for stride in side})
    if any(high % low for low, high in pairwise(strides)):
        return
    options = []
    for number, (low, high) in enumerate(pairwise(strides)):
        factor = (f"{node.name}#{node.outputs[0]}#{before[0][0][1]}.{number}", 0)
        ties = [_part(side, low, high // low, factor) for side in (before, after)]
        options.append((ties[0].a, ties[1].a, (ties[0], ties[1]), high // low))
    yield Choice(tuple(options))


def _strides(sizes: list[int]) -> list[int]:
    return list(accumulate(reversed(sizes), int.__mul__, initial=1))


def _part(side: list[tuple[Axis, int]], stride: int, size: int, factor: Axis) -> Tie:
    """The axis of a side that holds the factor of this stride and size, tied to it."""
    inner = 1
    for axis, count in reversed(side):
        if stride < inner * count:
            indices = np.arange(count)
            return Tie(axis, factor, indices, indices // (stride // inner) % size)
        inner *= count
    raise ValueError(f"no axis holds stride {stride}")


def expand(node: Node, graph: Graph) -> Iterator[Relation]:
    x, y = node.inputs[0], node.outputs[0]
    yield from aligned(graph, x, y, len(graph.types[y].dims))


def tile(node: Node, graph: Graph) -> Iterator[Relation]:
    """Index i of the result repeats index i modulo the size before."""
    x, y = node.inputs[0], node.outputs[0]
    for axis, (before, after) in enumerate(zip(graph.types[x].dims, graph.types[y].dims, strict=True)):
        if before > 1:
            yield Tie((x, axis), (y, axis), np.arange(after) % before, np.arange(after))


def padding(node: Node, graph: Graph) -> dict[int, tuple[int, int]] | None:
    """What a Pad adds: axis -> (before, behind), negative where it cuts. None where that is computed."""
    rank = len(graph.types[node.inputs[0]].dims)
    pads, axes = _integers(graph, node, 1), _integers(graph, node, 3)
    if pads is None or (len(node.inputs) > 3 and node.inputs[3] and axes is None):
        return None
    axes = axes if axes is not None else tuple(range(rank))
    return {axis % rank: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}


def pad(node: Node, graph: Graph) -> Iterator[Relation]:
    """Padding with a constant can be narrower; other modes keep the indices of the axes that they widen."""
    added = padding(node, graph)
    if added is None:
        return
    constant = node.get_str("mode", "constant") == "constant"
    for axis, size in enumerate(graph.types[node.inputs[0]].dims):
        before, behind = added.get(axis, (0, 0))
        if constant or (before, behind) == (0, 0):
            kept = np.arange(max(-before, 0), size - max(-behind, 0))
            yield Tie((node.inputs[0], axis), (node.outputs[0], axis), kept, kept + before)


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
    return tuple(range(_axis(node, graph, -1), len(graph.types[node.inputs[0]].dims)))


def depth_to_space(node: Node, graph: Graph) -> Iterator[Relation]:
    """DCR: channel (b1, b2, c); CRD: channel (c, b1, b2)."""
    x, y = node.inputs[0], node.outputs[0]
    inputs, outputs = graph.types[x].dims[1], graph.types[y].dims[1]
    channel = np.arange(inputs)
    turned = channel % outputs if node.get_str("mode", "DCR") == "DCR" else channel // (inputs // outputs)
    yield from same(graph, (x, 0), (y, 0))
    yield Tie((x, 1), (y, 1), channel, turned)


def space_to_depth(node: Node, graph: Graph) -> Iterator[Relation]:
    x, y = node.inputs[0], node.outputs[0]
    inputs, outputs = graph.types[x].dims[1], graph.types[y].dims[1]
    yield from same(graph, (x, 0), (y, 0))
    yield Tie((x, 1), (y, 1), np.arange(outputs) % inputs, np.arange(outputs))


def resize(node: Node, graph: Graph) -> Iterator[Relation]:
    """Axes whose size stays are not resampled."""
    x, y = node.inputs[0], node.outputs[0]
    if node.get_str("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return
    for axis, (before, after) in enumerate(zip(graph.types[x].dims, graph.types[y].dims, strict=True)):
        if before == after:
            yield from same(graph, (x, axis), (y, axis))


def _reduced(node: Node, graph: Graph) -> tuple[int, ...] | None:
    """The axes that a reduction takes together; None where they are computed."""
    rank = len(graph.types[node.inputs[0]].dims)
    if node.op in ("ArgMax", "ArgMin"):
        return (node.get_int("axis", 0) % rank,)
    if len(node.inputs) > 1 and node.inputs[1]:
        axes = _integers(graph, node, 1)
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


def gather(node: Node, graph: Graph) -> Iterator[Relation]:
    """Constant indices pick and repeat; computed ones keep the axis that they choose from."""
    (x, chosen), y = node.inputs, node.outputs[0]
    axis, rank = _axis(node, graph, 0), len(graph.types[chosen].dims)
    for other in range(len(graph.types[x].dims)):
        if other != axis:
            yield from same(graph, (x, other), (y, other + (rank - 1 if other > axis else 0)))
    indices = _integers(graph, node, 1)
    if indices is None:
        for other in range(rank):
            yield from same(graph, (chosen, other), (y, axis + other))
    elif rank == 1:
        size = graph.types[x].dims[axis]
        yield Tie((x, axis), (y, axis), np.array(indices) % size, np.arange(len(indices)))
        yield Tie((chosen, 0), (y, axis), np.arange(len(indices)), np.arange(len(indices)))


def quantize_linear(node: Node, graph: Graph) -> Iterator[Relation]:
    """Also DequantizeLinear: scales per tensor, or one for each index of `axis`; blocks keep theirs."""
    x, y = node.inputs[0], node.outputs[0]
    axis = _axis(node, graph, 1)
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
    **dict.fromkeys(POOLS, _along_others(_window)),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _along_others(_last)),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _along_others(_normalized)),
    **dict.fromkeys((*SUMS, *MEANS), reduce),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), reshape),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), batch_normalization),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), quantize_linear),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent),
    "LpNormalization": elementwise,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MatMul": matmul,
    "Gemm": gemm,
    "Einsum": einsum,
    "Concat": concat,
    "Split": split,
    "Slice": slices,
    "Transpose": transpose,
    "Expand": expand,
    "Tile": tile,
    "Pad": pad,
    "GroupNormalization": group_normalization,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Resize": resize,
    "Gather": gather,
    "Attention": attention,
}  # fmt: skip
"""Operator -> its rule."""
