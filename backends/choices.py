"""What may be chosen for a convolution or matrix product, where the cost model of `tiles` need not decide (no TVM).

A choice changes how a kernel computes, never what: integers stay equal, floats are added in another order.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, TypeAlias, get_args

import numpy as np

from graphc.backends.dot import Dot, Kind
from graphc.backends.sparse import is_pruned
from graphc.backends.targets import Target
from graphc.backends.tiles import channel_block
from graphc.ir.functions import DOMAIN as FUNCTIONS
from graphc.ir.graph import Graph, Node

RULES = 2
"""Raise it when a choice, or none, comes to mean other code: what was measured before says nothing of that."""

GEOMETRY = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides", "transA", "transB")
"""Attributes that say which kernel a node is; those of its integer arithmetic are numbers in its epilogue."""
CODES = ("axis", "bits", "block_size", "perm")
"""Attributes that say how weights are decoded."""
DECODERS = {
    *((FUNCTIONS, op) for op in ("Lookup", "SparseToDense")),
    *(("", op) for op in ("Cast", "DequantizeLinear", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")),
}
"""Operators that expressions of weights are made of."""


MOST = 64
"""More than any number of a choice can say."""

Tiles: TypeAlias = tuple[tuple[int, ...], ...]
"""Each loop of a sum, cut into parts that multiply to it, the outermost first."""


@dataclass(frozen=True, slots=True)
class Choice:
    """None: what the cost model says. What a target or a layer does not have is ignored."""

    winograd: int | None = None
    """Outputs of a tile along one axis in Winograd's filtering; 0: the direct sum."""
    dot: Kind | None = None
    """The dot-product instruction for 8-bit integers."""
    vectors: int | None = None
    """Vectors of output channels that one register tile spans, and that lie together in packed weights; for matrix
    tiles, groups of 16 that a task takes."""
    tile: int | None = None
    """Output columns that one register tile spans."""
    tiles: Tiles | None = None
    """How the loops of a sum that no schedule rule takes are cut (see `graphc.backends.searchable`)."""

    def block(self, target: Target, channels: int, dot: Dot | None = None, positions: int = 0) -> int:
        """Output channels that lie next to each other in packed weights; `positions` are those of the output."""
        own = dot is not None and (dot.columns or dot.tiled)
        if self.vectors is None or own:
            return dot.block(target, channels, positions) if dot else channel_block(target, channels)
        return max(1, target.lanes(32)) * self.vectors

    def data(self) -> dict[str, Any]:
        """As JSON: only what is chosen."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> "Choice":
        """From `data`. Raises TypeError or ValueError where that is of another form."""
        choice = cls(**data)
        choice = replace(choice, tiles=_tuples(choice.tiles))
        numbers = (each for each in (choice.winograd, choice.vectors, choice.tile) if each is not None)
        if not all(_is_whole(each) and each <= MOST for each in numbers):
            raise ValueError(f"a number is none from 0 to {MOST}")
        if choice.dot is not None and choice.dot not in get_args(Kind):
            raise ValueError(f"no instruction {choice.dot!r}")
        tiles = () if choice.tiles is None else choice.tiles
        if not isinstance(tiles, tuple) or not all(isinstance(t, tuple) and all(map(_is_whole, t)) for t in tiles):
            raise ValueError("tiles are no lists of numbers")
        return choice


Choices: TypeAlias = Mapping[str, Choice]
"""By the first result of a node, in the graph that is lowered."""
NO_CHOICES: Choices = MappingProxyType({})
BY_MODEL = Choice()


def kernel_id(graph: Graph, node: Node) -> str:
    """A node's operator, types and geometry: nodes that share it are the same kernel but for weights and epilogue."""
    operands = ", ".join(_operand(graph, name) for name in node.inputs)
    results = ", ".join(str(graph.types[name]) for name in node.outputs if name)
    operator = f"{node.domain}.{node.op}" if node.domain else node.op
    return " ".join([f"{operator}({operands}) -> {results}", *_attributes(node, GEOMETRY)])


def decoder(graph: Graph, name: str) -> tuple[Node, ...]:
    """The nodes that compute weights from constants alone, in order; none for a constant or an activation."""
    node = graph.producers.get(name)
    if node is None or (node.domain, node.op) not in DECODERS:
        return ()
    before = [decoder(graph, each) for each in node.reads if each not in graph.constants]
    return (*dict.fromkeys(inner for nodes in before for inner in nodes), node) if all(before) else ()


def _operand(graph: Graph, name: str) -> str:
    """The type of a value, and of weights how they are stored."""
    if not name:
        return "-"
    kind, array = str(graph.types[name]), graph.constants.get(name)
    if array is not None:
        kept = f", {np.count_nonzero(array)} of them not zero" if array.ndim > 1 and is_pruned(array) else ""
        return f"constant {kind}{kept}"
    if not decoder(graph, name):
        return kind
    node = graph.producers[name]
    operands = [_operand(graph, each) for each in node.inputs]
    return f"{node.op}({', '.join([*operands, *_attributes(node, CODES)])}) {kind}"


def _attributes(node: Node, names: tuple[str, ...]) -> list[str]:
    return [f"{name}={_plain(node.attributes[name])}" for name in names if name in node.attributes]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
