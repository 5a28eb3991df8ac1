"""What a graph costs: bytes as stored, parameters, and multiply-accumulates (MACs) per node.

A compressed weight costs what its constants take: `Lookup(codebook, packed)` counts codebook and packed bytes, int4
half a byte per element. Expressions of constants alone are computed once, so they cost no MACs.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod

from graphc.ir.graph import Graph, Node, TensorType
from graphc.ir.nested import trips

NOT_WEIGHTS = frozenset(("int64", "bool", "object"))
"""Types of shapes, axes, conditions and texts. (int32 holds the biases of 8-bit layers.)"""


DOMAINS = ("", "graphc.bf16", "graphc.fp16", "graphc.integer", "graphc.nhwc")
"""Where operators have ONNX's shapes of weights, and results with the same elements, in some order of axes."""


@dataclass(frozen=True, slots=True)
class NodeCost:
    """One node, and the constants that it is the first to read, through decoders too. Open shapes: `macs` is None."""

    name: str
    op: str
    macs: int | None
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Cost:
    """A whole graph. `parameters` are the numbers of its weights once decoded; shapes, axes and indices are none."""

    nodes: tuple[NodeCost, ...]
    bytes: int
    parameters: int

    @property
    def macs(self) -> int | None:
        """All nodes together, at the graph's input shapes; None while a shape that matters is open."""
        counts = [node.macs for node in self.nodes]
        return None if None in counts else sum(count for count in counts if count is not None)


def cost(graph: Graph) -> Cost:
    """Count everything, subgraphs included: a Loop or Scan times its steps, an If as its dearest branch."""
    return _Counter(graph, {}, ()).count()


def macs(graph: Graph, node: Node) -> int | None:
    """Multiply-accumulates of one node of `graph`, channels first or last; None while a shape that matters is open."""
    counter = _Counter(graph, {}, ())
    return counter.macs(node, counter.bodies(node))


class _Counter:
    """Walks one graph; `types` and `fixed` are what its surroundings know of the values that it captures."""

    def __init__(self, graph: Graph, types: Mapping[str, TensorType], fixed: Iterable[str]) -> None:
        self._graph = graph
        self._types = {**types, **graph.types}
        self._counted = set(fixed)
        self._fixed = {*fixed, *graph.constants}
        """Values that depend on constants alone."""

    def count(self) -> Cost:
        nodes: list[NodeCost] = []
        for node in self._graph.nodes:
            if node.reads and not node.subgraphs and all(name in self._fixed for name in node.reads):
                self._fixed.update(node.results)
            else:
                nodes.append(self._node(node))
        left = sum(self._types[leaf].bytes for name in self._graph.outputs for leaf in self._leaves(name))
        return Cost(tuple(nodes), sum(node.bytes for node in nodes) + left, sum(node.parameters for node in nodes))

    def _node(self, node: Node) -> NodeCost:
        stored = parameters = 0
        for name in node.reads:
            leaves = [self._types[leaf] for leaf in self._leaves(name)]
            stored += sum(leaf.bytes for leaf in leaves)
            if any(leaf.dtype.name not in NOT_WEIGHTS for leaf in leaves) and node.op not in (
                "QuantizeLinear",
                "DequantizeLinear",
            ):
                parameters += _parameters(self._types[name])
        inner = self.bodies(node)
        return NodeCost(
            node.name,
            node.op,
            self.macs(node, inner),
            parameters + sum(body.parameters for body in inner),
            stored + sum(body.bytes for body in inner),
        )

    def _leaves(self, name: str) -> list[str]:
        """The constants behind a value, those that no node before has read."""
        if name not in self._fixed or name in self._counted:
            return []
        self._counted.add(name)
        if name in self._graph.constants:
            return [name]
        return [leaf for operand in self._graph.producers[name].reads for leaf in self._leaves(operand)]

    def bodies(self, node: Node) -> list[Cost]:
        """What the subgraphs of a node cost, each run once."""
        return [_Counter(body, self._types, self._fixed).count() for body in node.subgraphs]

    def macs(self, node: Node, inner: list[Cost]) -> int | None:
        operands = [self._types[name] if name else None for name in node.inputs]
        try:
            if inner:
                return _nested(node, operands, [body.macs for body in inner], self._graph)
            rule = _MACS.get(node.op) if node.domain in DOMAINS else None
            return rule(node, _dims(operands), self._types[node.outputs[0]].dims) if rule else 0
        except ValueError:  # an open shape
            return None


def _dims(operands: list[TensorType | None]) -> list[tuple[int, ...]]:
    return [kind.dims if kind is not None else () for kind in operands]


def _parameters(kind: TensorType) -> int:
    """Elements, of the types that weights have: floats, and integers of at most a byte."""
    is_weight = kind.dtype.kind in "fc" or "float" in kind.dtype.name or (kind.bits <= 8 and kind.dtype.kind != "b")
    return kind.size if is_weight else 0


Shape = tuple[int, ...]
Rule = Callable[[Node, list[Shape], Shape], int]
"""(node, shapes of its operands, shape of its first result) -> MACs."""


def _window(weight: int) -> Rule:
    """Every result of a convolution sums over one filter of operand `weight`: in-channels of a group times kernel."""
    return lambda node, operands, result: prod(result) * prod(operands[weight][1:])


def _matmul(node: Node, operands: list[Shape], result: Shape) -> int:
    return prod(result) * operands[0][-1]


def _gemm(node: Node, operands: list[Shape], result: Shape) -> int:
    return prod(result) * operands[0][0 if node.get_int("transA", 0) else 1]


def _recurrent(node: Node, operands: list[Shape], result: Shape) -> int:
    """X[time, batch, in] in either layout, W[directions, gates * hidden, in], R[directions, gates * hidden, hidden]."""
    steps = prod(operands[0][:2])
    return steps * (prod(operands[1]) + prod(operands[2]))


def _einsum(node: Node, operands: list[Shape], result: Shape) -> int:
    """Operands multiplied from left to right: each product visits every index that either side has."""
    if len(operands) < 2:
        return 0
    terms = node.get_str("equation", "").replace(" ", "").split("->")[0].split(",")
    if any("." in term for term in terms) or len(terms) != len(operands):
        return prod(result) * operands[0][-1]
    pairs = (zip(term, shape, strict=True) for term, shape in zip(terms, operands, strict=True))
    sizes = {index: size for pair in pairs for index, size in pair}
    seen = set(terms[0])
    total = 0
    for term in terms[1:]:
        seen |= set(term)
        total += prod(sizes[index] for index in seen)
    return total


def _attention(node: Node, operands: list[Shape], result: Shape) -> int:
    """Q K^T and its product with V. Operands are [batch, heads, length, size], or [batch, length, heads * size]."""
    query, key, value = operands[0], operands[1], operands[2]
    past = operands[4][2] if len(operands) > 4 and operands[4] else 0
    length = key[-2] + past
    if len(query) == 4:
        return query[0] * query[1] * query[2] * length * (query[3] + value[3])
    heads, of_value = node.get_int("q_num_heads", 1), node.get_int("kv_num_heads", 1)
    return query[0] * query[1] * length * (query[2] + heads * (value[2] // of_value))


_MACS: Mapping[str, Rule] = {
    "Conv": _window(1),
    "ConvInteger": _window(1),
    "DeformConv": _window(1),
    "QLinearConv": _window(3),
    "ConvTranspose": lambda node, operands, result: prod(operands[0]) * prod(operands[1][1:]),
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "Gemm": _gemm,
    "RNN": _recurrent,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "Einsum": _einsum,
    "Attention": _attention,
}


def _nested(node: Node, operands: list[TensorType | None], bodies: list[int | None], graph: Graph) -> int | None:
    """MACs of If (its dearest branch), Scan and Loop (the body times its steps)."""
    known = [macs for macs in bodies if macs is not None]
    if len(known) < len(bodies):
        return None
    if node.op == "If" or not any(known):
        return max(known)
    body = next(value for value in node.attributes.values() if isinstance(value, Graph))
    if node.op == "Loop":
        times = trips(node, body, graph.constants)
        return known[0] * times if isinstance(times, int) else None
    scanned = node.get_int("num_scan_inputs", 1)
    first = operands[len(operands) - scanned]
    axis = node.get_ints("scan_input_axes", (0,) * scanned)[0]
    return known[0] * first.dims[axis] if first is not None else None
