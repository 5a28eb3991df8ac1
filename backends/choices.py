"""What may be chosen for a convolution or matrix product, where the cost model of `tiles` need not decide (no TVM).

A choice changes how a kernel computes, never what: integers stay equal, floats are added in another order.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from graphc.backends.dot import Dot, Kind
from graphc.backends.targets import Target
from graphc.backends.tiles import channel_block, widest_tile
from graphc.backends.winograd import KERNEL, MOST_CHANNELS, POINTS
from graphc.ir.graph import Graph, Node

RULES = 1
"""Raise it when a choice, or none, comes to mean other code: what was measured before says nothing of that."""

LAYERS = {
    ("graphc.nhwc", "Conv"),
    ("graphc.integer", "Conv"),
    ("graphc.integer", "MatMul"),
    ("", "MatMul"),
    ("", "Gemm"),
}
GEOMETRY = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides", "transA", "transB")
"""Attributes that say which kernel a node is; those of its integer arithmetic are numbers in its epilogue."""


@dataclass(frozen=True, slots=True)
class Choice:
    """None: what the cost model says. What a target or a layer does not have is ignored."""

    winograd: int | None = None
    """Outputs of a tile along one axis in Winograd's filtering; 0: the direct sum."""
    dot: Kind | None = None
    """The dot-product instruction for 8-bit integers."""
    vectors: int | None = None
    """Vectors of output channels that one register tile spans, and that lie together in packed weights."""
    tile: int | None = None
    """Output columns that one register tile spans."""

    def block(self, target: Target, channels: int, dot: Dot | None = None, positions: int = 0) -> int:
        """Output channels that lie next to each other in packed weights; `positions` are those of the output."""
        own = dot is not None and (dot.columns or dot.kind == "amx")
        if self.vectors is None or own:
            return dot.block(target, channels, positions) if dot else channel_block(target, channels)
        return max(1, target.lanes(32)) * self.vectors

    def data(self) -> dict[str, Any]:
        """As JSON: only what is chosen."""
        return {name: value for name, value in asdict(self).items() if value is not None}


Choices: TypeAlias = Mapping[str, Choice]
"""By the first result of a node, in the graph that is lowered."""
NO_CHOICES: Choices = MappingProxyType({})
BY_MODEL = Choice()


def kernel_id(graph: Graph, node: Node) -> str:
    """A node's operator, types and geometry: nodes that share it are the same kernel but for weights and epilogue."""
    operands = ", ".join(_operand(graph, name) for name in node.inputs)
    results = ", ".join(str(graph.types[name]) for name in node.outputs if name)
    geometry = [f"{name}={_plain(node.attributes[name])}" for name in GEOMETRY if name in node.attributes]
    operator = f"{node.domain}.{node.op}" if node.domain else node.op
    return " ".join([f"{operator}({operands}) -> {results}", *geometry])


def _operand(graph: Graph, name: str) -> str:
    if not name:
        return "-"
    return f"constant {graph.types[name]}" if name in graph.constants else str(graph.types[name])


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def candidates(graph: Graph, node: Node, target: Target, thorough: bool) -> list[Choice]:
    """What may be worth measuring for a node of a laid-out graph, the cost model's own first; none without a choice."""
    if not target.hosted or (node.domain, node.op) not in LAYERS or not _is_dense(graph, node):
        return []
    found = [BY_MODEL, *_unique(graph, node, target, thorough)]
    return found if len(found) > 1 else []


def _is_dense(graph: Graph, node: Node) -> bool:
    weights = node.inputs[1]
    if node.op == "Conv":
        return node.get_int("group", 1) == 1 and len(graph.types[weights].dims) == 4 and weights in graph.constants
    return graph.types[weights].size > 0 and (not node.domain or weights in graph.constants)


def _unique(graph: Graph, node: Node, target: Target, thorough: bool) -> Iterator[Choice]:
    kind = graph.types[node.inputs[0]].dtype
    if node.domain == "graphc.integer" and kind.itemsize == 1 and target.has("avx512_vnni"):
        yield from [Choice(dot="amx")] if target.has("amx_int8") else []
        yield from _vectors(graph, node, target, Choice(dot="vnni"), thorough)
        return
    plain = Choice()
    if _filters(graph, node, target) and kind == np.float32:
        yield from (Choice(winograd=m) for m in POINTS)
        plain = Choice(winograd=0)
    yield from _vectors(graph, node, target, plain, thorough)


def _filters(graph: Graph, node: Node, target: Target) -> bool:
    """Whether Winograd's filtering can compute the node."""
    if node.op != "Conv" or node.domain != "graphc.nhwc" or not target.winograd:
        return False
    dims = graph.types[node.inputs[1]].dims
    steps = all(step == 1 for name in ("strides", "dilations") for step in node.get_ints(name))
    return dims[2:] == (KERNEL, KERNEL) and steps and dims[1] <= MOST_CHANNELS


def _vectors(graph: Graph, node: Node, target: Target, base: Choice, thorough: bool) -> Iterator[Choice]:
    """The direct sum with register tiles of several shapes; thoroughly, of smaller ones as well."""
    lanes = max(1, target.lanes(32))
    channels = graph.types[node.outputs[0]].dims[-1]
    for vectors in (1, 2, 4):
        if vectors > 1 and lanes * vectors > -(-channels // lanes) * lanes:
            continue
        yield Choice(base.winograd, base.dot, vectors)
        if thorough:
            widest = widest_tile(target, vectors)
            tiles = dict.fromkeys(max(1, part) for part in (widest, widest - 1, widest * 3 // 4, widest // 2))
            yield from (Choice(base.winograd, base.dot, vectors, tile) for tile in tiles)
