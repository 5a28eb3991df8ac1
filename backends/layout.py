"""Channels last inside: one walk assigns layouts and places the transposes that remain.

    x -> Conv -> Relu -> Conv -> y          (N, C, *spatial)
    x -> Transpose -> graphc.nhwc.Conv -> Relu -> graphc.nhwc.Conv -> Transpose -> y

Convolutions and pools ask for (N, *spatial, C); whatever works element by element, or along an axis that can be
renamed, follows its operands. A value is kept in each layout that somebody asked for, made once, when first asked.
A transpose that moves only dimensions of size 1 is a Reshape, which costs nothing. One-dimensional convolutions and
pools become two-dimensional ones of height 1, so that the kernels know 2-d and 3-d only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from graphc.ir import Array, Attribute, Graph, Node, TensorType

DOMAIN = "graphc.nhwc"
INTEGER = "graphc.integer"


def to_last(rank: int) -> tuple[int, ...]:
    """The permutation (N, C, *spatial) -> (N, *spatial, C)."""
    return (0, *range(2, rank), 1)


def to_first(rank: int) -> tuple[int, ...]:
    """The permutation (N, *spatial, C) -> (N, C, *spatial)."""
    return (0, rank - 1, *range(1, rank - 1))


def _moves_data(shape: Sequence[int], perm: Sequence[int]) -> bool:
    """Whether a transpose changes the order of elements in memory."""
    kept = [axis for axis in perm if shape[axis] != 1]
    return kept != sorted(kept)


@dataclass
class _Layouts:
    """The graph under construction: values in ONNX's own layout under their names, channels-last ones in `last`."""

    graph: Graph
    nodes: list[Node] = field(default_factory=list)
    types: dict[str, TensorType] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)
    last: dict[str, str] = field(default_factory=dict)
    first: set[str] = field(default_factory=set)

    def shape(self, name: str) -> tuple[int, ...]:
        return (self.types.get(name) or self.graph.types[name]).dims

    def emit(
        self,
        op: str,
        inputs: Sequence[str],
        output: str,
        kind: TensorType,
        attributes: dict[str, Attribute] | None = None,
        domain: str = "",
    ) -> str:
        self.nodes.append(Node(op, tuple(inputs), (output,), attributes or {}, output, domain))
        self.types[output] = kind
        return output

    def constant(self, name: str, array: Array) -> str:
        if name not in self.constants:
            self.constants[name] = np.ascontiguousarray(array)
            self.types[name] = TensorType(array.dtype, array.shape)
        return name

    def transposed(self, name: str, perm: tuple[int, ...], output: str) -> str:
        """`name` with its axes permuted; a Reshape where no element moves."""
        kind = self.types[name]
        shape = tuple(kind.dims[axis] for axis in perm)
        if _moves_data(kind.dims, perm):
            return self.emit("Transpose", [name], output, TensorType(kind.dtype, shape), {"perm": perm})
        return self.reshaped(name, shape, output)

    def reshaped(self, name: str, shape: tuple[int, ...], output: str) -> str:
        target = self.constant(f"{output}/shape", np.array(shape, np.int64))
        return self.emit("Reshape", [name, target], output, TensorType(self.types[name].dtype, shape))

    def as_last(self, name: str) -> str:
        """`name` (rank 3 and up) in channels-last layout."""
        if name not in self.last:
            perm = to_last(len(self.types[name].dims))
            if name in self.constants:
                self.last[name] = self.constant(f"{name}@last", np.transpose(self.constants[name], perm))
            else:
                self.last[name] = self.transposed(name, perm, f"{name}@last")
        return self.last[name]

    def as_first(self, name: str) -> str:
        """`name` in ONNX's layout."""
        if name and name not in self.first:
            source = self.last[name]
            self.transposed(source, to_first(len(self.types[source].dims)), name)
            self.first.add(name)
        return name

    def produce_last(
        self,
        node: Node,
        op: str,
        inputs: Sequence[str],
        attributes: dict[str, Attribute],
        domain: str,
        alike: Sequence[str] = (),
    ) -> None:
        """A node whose results are channels last; their own names are made when somebody asks, but for those that are
        `alike` in both layouts.
        """
        outputs = tuple(name if name in alike or not name else f"{name}@last" for name in node.outputs)
        self.nodes.append(Node(op, tuple(inputs), outputs, attributes, node.name, domain))
        self.types.update({name: self.graph.types[name] for name in alike if name})
        self.first.update(alike)
        for name, made in zip(node.outputs, outputs, strict=True):
            if name and name != made:
                kind = self.graph.types[name]
                self.types[made] = TensorType(kind.dtype, tuple(kind.dims[axis] for axis in to_last(len(kind.dims))))
                self.last[name] = made

    def produce_first(self, node: Node) -> None:
        """The node as it is, on operands in ONNX's layout."""
        for name in node.reads:
            self.as_first(name)
        self.nodes.append(node)
        self.types.update({name: self.graph.types[name] for name in node.results})
        self.first.update(node.results)


Rule = Callable[[_Layouts, Node], bool]


def channels_last(graph: Graph) -> Graph:
    """The same computation with convolutions, pools and what lies between them channels last; shapes are static."""
    state = _Layouts(graph)
    state.constants.update(graph.constants)
    for name in (*graph.inputs, *graph.constants):
        state.types[name] = graph.types[name]
        state.first.add(name)
    for node in graph.nodes:
        rule = RULES.get(node.op) if node.domain in ("", INTEGER) else None
        if rule is None or node.subgraphs or not rule(state, node):
            state.produce_first(node)
    for name in graph.outputs:
        state.as_first(name)
    used = {name for node in state.nodes for name in node.reads} | set(graph.outputs)
    constants = {name: array for name, array in state.constants.items() if name in used}
    return Graph(graph.name, graph.inputs, graph.outputs, tuple(state.nodes), state.types, constants, graph.metadata)


def _rank(state: _Layouts, name: str) -> int:
    return len(state.graph.types[name].dims)


def _spatial(state: _Layouts, node: Node) -> bool:
    """Convolutions and pools: they want channels last."""
    rank = _rank(state, node.inputs[0])
    if node.get_int("channels_last", 0):
        return False  # laid out already
    if node.op.startswith("Global") and not node.domain and not _follows(state, node.inputs[:1]):
        return False  # its result is the same in both layouts, and it reads rows as well as columns
    if rank not in (3, 4, 5) or len(node.results) > 1 or not _full_window(node):
        return False
    attributes = dict(node.attributes)
    x = state.as_last(node.inputs[0])
    others = [state.as_first(name) for name in node.inputs[1:]]
    domain = node.domain or DOMAIN
    if domain == INTEGER:
        attributes["channels_last"] = 1
    if rank > 3:
        state.produce_last(node, node.op, [x, *others], attributes, domain)
        return True
    return _as_two_dimensional(state, node, x, others, attributes, domain)


def _full_window(node: Node) -> bool:
    """MaxPool with column-major indices or dilated ceil windows stays with ONNX's layout."""
    return node.get_int("storage_order", 0) == 0


def _as_two_dimensional(
    state: _Layouts, node: Node, x: str, others: list[str], attributes: dict[str, Attribute], domain: str
) -> bool:
    """(N, L, C) -> (N, 1, L, C), a window of height 1, and back."""
    n, length, channels = state.types[x].dims
    flat = state.reshaped(x, (n, 1, length, channels), f"{node.outputs[0]}@in2d")
    if others and "Conv" in node.op:
        others[0] = _unsqueezed_weight(state, others[0])
    for name, first in (
        ("kernel_shape", 1),
        ("strides", 1),
        ("dilations", 1),
        ("output_padding", 0),
        ("output_shape", 1),
    ):
        if name in attributes:
            attributes[name] = (first, *node.get_ints(name))
    if "pads" in attributes:
        begin, end = node.get_ints("pads")
        attributes["pads"] = (0, begin, 0, end)
    result = state.graph.types[node.outputs[0]]
    n, channels, length = result.dims
    wide = f"{node.outputs[0]}@out2d"
    state.nodes.append(Node(node.op, (flat, *others), (wide,), attributes, node.name, domain))
    state.types[wide] = TensorType(result.dtype, (n, 1, length, channels))
    state.last[node.outputs[0]] = state.reshaped(wide, (n, length, channels), f"{node.outputs[0]}@last")
    return True


def _unsqueezed_weight(state: _Layouts, name: str) -> str:
    """Weights (O, I, K) as (O, I, 1, K): at once for a constant, as a free Reshape of a decoder expression."""
    state.as_first(name)
    o, i, k = state.types[name].dims
    if name in state.constants:
        return state.constant(f"{name}@2d", state.constants[name].reshape(o, i, 1, k))
    return state.reshaped(name, (o, i, 1, k), f"{name}@2d") if f"{name}@2d" not in state.types else f"{name}@2d"


def _follows(state: _Layouts, names: Sequence[str]) -> bool:
    """Whether one of these already is channels last and not (yet) wanted in ONNX's layout."""
    return any(name in state.last and name not in state.first for name in names)


def _elementwise(state: _Layouts, node: Node) -> bool:
    """Unary and broadcasting operators: all operands as channels last, or none."""
    rank = _rank(state, node.outputs[0])
    full = [name for name in node.inputs if name and name not in state.constants and _rank(state, name) == rank]
    if len(node.results) > 1 or not _follows(state, full):
        return False
    operands = [_broadcast_operand(state, name, rank) if name else "" for name in node.inputs]
    state.produce_last(node, node.op, operands, dict(node.attributes), node.domain)
    return True


def _broadcast_operand(state: _Layouts, name: str, rank: int) -> str:
    """An operand of a broadcasting operator, aligned for channels last."""
    shape = state.graph.types[name].dims
    if len(shape) == rank:
        return state.as_last(name)
    state.as_first(name)
    if int(np.prod(shape)) == 1:
        return name
    padded = (1,) * (rank - len(shape)) + shape
    wide, output = f"{name}@rank{rank}", f"{name}@rank{rank}last"
    if name in state.constants:
        return state.constant(output, np.transpose(state.constants[name].reshape(padded), to_last(rank)))
    if output not in state.types:
        state.transposed(state.reshaped(name, padded, wide), to_last(rank), output)
    return output


def _first_operand(state: _Layouts, node: Node) -> bool:
    """Operators whose further operands are parameters (scalars, tables, per-tensor scales)."""
    x = node.inputs[0]
    if len(node.results) > 1 or not _follows(state, [x]):
        return False
    attributes = dict(node.attributes)
    if "Quantize" in node.op or "Dequantize" in node.op:
        if node.get_int("block_size", 0):
            return False
        attributes["axis"] = _axis(node.get_int("axis", 1), _rank(state, x))
    state.produce_last(
        node, node.op, [state.as_last(x), *(state.as_first(n) for n in node.inputs[1:])], attributes, node.domain
    )
    return True


def _axis(axis: int, rank: int) -> int:
    """Where an axis of ONNX's layout lies in channels last."""
    return to_last(rank).index(axis % rank)


def _along_axis(state: _Layouts, node: Node) -> bool:
    """Operators with one `axis`: it is renamed."""
    names = list(node.inputs) if node.op == "Concat" else [node.inputs[0]]
    if not _follows(state, names):
        return False
    rank = _rank(state, names[0])
    default = {"Split": 0, "Concat": 0}.get(node.op, -1)
    attributes: dict[str, Attribute] = {**node.attributes, "axis": _axis(node.get_int("axis", default), rank)}
    rest = [state.as_first(name) for name in node.inputs[len(names) :]]
    state.produce_last(node, node.op, [*(state.as_last(name) for name in names), *rest], attributes, node.domain)
    return True


def _slice(state: _Layouts, node: Node) -> bool:
    """Slice with constant axes."""
    rank = _rank(state, node.inputs[0])
    axes = (
        state.constants.get(node.inputs[3])
        if len(node.inputs) > 3 and node.inputs[3]
        else np.arange(state.graph.types[node.inputs[1]].size)
    )
    if axes is None or not _follows(state, node.inputs[:1]):
        return False
    renamed = state.constant(f"{node.outputs[0]}@axes", np.array([_axis(int(axis), rank) for axis in axes], np.int64))
    ends = [state.as_first(name) for name in node.inputs[1:3]]
    steps = [state.as_first(name) for name in node.inputs[4:]]
    state.produce_last(node, "Slice", [state.as_last(node.inputs[0]), *ends, renamed, *steps], {}, "")
    return True


def _pad(state: _Layouts, node: Node) -> bool:
    """Pad with constant amounts."""
    rank = _rank(state, node.inputs[0])
    amounts = state.constants.get(node.inputs[1])
    if amounts is None or len(node.inputs) > 3 or not _follows(state, node.inputs[:1]):
        return False
    pads = np.concatenate([amounts[:rank][list(to_last(rank))], amounts[rank:][list(to_last(rank))]])
    renamed = state.constant(f"{node.outputs[0]}@pads", pads)
    value = [state.as_first(name) for name in node.inputs[2:]]
    state.produce_last(node, "Pad", [state.as_last(node.inputs[0]), renamed, *value], dict(node.attributes), "")
    return True


def _reduce(state: _Layouts, node: Node) -> bool:
    """Reductions over constant axes that keep their dimensions, or whose others stand in one order in both layouts
    (ONNX's own Mean is no reduction).
    """
    if node.op == "Mean" and not node.domain:
        return _elementwise(state, node)
    x, rank = node.inputs[0], _rank(state, node.inputs[0])
    axes = _reduced_axes(state, node)
    if axes is None or not _follows(state, [x]):
        return False
    alike = () if node.get_int("keepdims", 1) else node.outputs
    if alike and [a for a in to_last(rank) if a not in axes] != [a for a in range(rank) if a not in axes]:
        return False
    renamed, attributes = tuple(_axis(axis, rank) for axis in axes), dict(node.attributes)
    operands = [state.as_last(x)]
    if node.domain == INTEGER:
        attributes["axes"] = renamed
        operands += node.inputs[1:]
    else:
        operands.append(state.constant(f"{node.outputs[0]}@axes", np.array(renamed, np.int64)))
    state.produce_last(node, node.op, operands, attributes, node.domain, alike=alike)
    return True


def _reduced_axes(state: _Layouts, node: Node) -> tuple[int, ...] | None:
    """The axes of a reduction, none of them negative; None where it names none, or they are no constant."""
    rank = _rank(state, node.inputs[0])
    if node.domain == INTEGER:
        return tuple(axis % rank for axis in node.get_ints("axes"))
    given = state.constants.get(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
    return tuple(int(axis) % rank for axis in given.ravel()) if given is not None and given.size else None


def _channel_norm(state: _Layouts, node: Node) -> bool:
    """Normalizations of float32 channels over their positions."""
    x, *parameters = node.inputs
    if not _follows(state, [x]) or state.graph.types[x].dtype != np.float32 or not state.graph.types[x].size:
        return False
    operands = [state.as_last(x), *(state.as_first(name) for name in parameters)]
    state.produce_last(node, node.op, operands, dict(node.attributes), DOMAIN)
    return True


def _dynamic_quantize(state: _Layouts, node: Node) -> bool:
    """DynamicQuantizeLinear: one grid, whatever the order of the elements."""
    if not _follows(state, node.inputs[:1]):
        return False
    state.produce_last(node, node.op, [state.as_last(node.inputs[0])], {}, "", alike=node.outputs[1:])
    return True


def _transpose(state: _Layouts, node: Node) -> bool:
    """A transpose to or from channels last is a change of name; one that moves no element is a Reshape."""
    x, y = node.inputs[0], node.outputs[0]
    rank = _rank(state, x)
    perm = node.get_ints("perm", tuple(reversed(range(rank))))
    kind = state.graph.types[y]
    if rank >= 3 and perm == to_last(rank) and x in state.last:
        state.first.add(y)
        state.emit("Identity", [state.last[x]], y, kind)
        return True
    if rank >= 3 and perm == to_first(rank) and x in state.first:
        state.last[y] = x
        state.types[y] = kind
        return True
    state.as_first(x)
    if _moves_data(state.types[x].dims, perm):
        return False
    state.reshaped(x, kind.dims, y)
    state.first.add(y)
    return True


def _table(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_table(_spatial, "Conv ConvTranspose MaxPool AveragePool GlobalAveragePool GlobalMaxPool"),
    **_table(
        _elementwise,
        "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil "
        "Celu Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity "
        "IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Min Mish Mod Mul Multiply Neg Not Or PRelu Pow "
        "Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan "
        "Tanh ThresholdedRelu Where Xor",
    ),
    **_table(_first_operand, "Clip QuantizeLinear DequantizeLinear Table"),
    **_table(_along_axis, "Concat Split Softmax LogSoftmax Hardmax"),
    **_table(_reduce, "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceProd ReduceSumSquare Mean"),
    **_table(_channel_norm, "InstanceNormalization GroupNormalization"),
    "DynamicQuantizeLinear": _dynamic_quantize,
    "Slice": _slice,
    "Pad": _pad,
    "Transpose": _transpose,
}

POINTWISE = frozenset(op for op, rule in RULES.items() if rule in (_elementwise, _first_operand))
"""Operators whose every element depends on those at its place alone, and on parameters."""
