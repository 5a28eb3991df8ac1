"""The graph as a value: typed tensors, nodes in topological order, constants. Nothing here is ever mutated.

The vocabulary is ONNX at one opset (`OPSET`). A node names its operands and results; the type of a value is stored
once, in `Graph.types`; who produces and who reads a value is derived and cached.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias, Union

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 26
IR_VERSION = 13

Array: TypeAlias = npt.NDArray[np.generic]
Dim: TypeAlias = int | str
"""A dimension: a number, or the name of a symbol not yet fixed ('?' where it has none)."""
Attribute: TypeAlias = Union[int, float, str, tuple[int, ...], tuple[float, ...], tuple[str, ...], Array, "Graph"]

EMPTY: Mapping[str, "Attribute"] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type (numpy or ml_dtypes; `object` for strings) and shape; `shape` is None where the rank is unknown."""

    dtype: np.dtype[np.generic]
    shape: tuple[Dim, ...] | None

    @property
    def is_static(self) -> bool:
        return self.shape is not None and all(isinstance(d, int) for d in self.shape)

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape as numbers. Raises ValueError where a dimension is open."""
        if self.shape is None or not self.is_static:
            raise ValueError(f"open shape {self}")
        return tuple(int(d) for d in self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.dims)

    @property
    def bits(self) -> int:
        """Bits of one element as stored: 4 for int4, 2 for int2."""
        return bits_of(self.dtype)

    @property
    def bytes(self) -> int:
        """Bytes of the whole tensor as ONNX stores it (sub-byte types packed)."""
        return (self.size * self.bits + 7) // 8

    def __str__(self) -> str:
        name = "string" if self.dtype == np.dtype(object) else self.dtype.name
        return f"{name}[{', '.join(str(d) for d in self.shape)}]" if self.shape is not None else f"{name}[...]"


def bits_of(dtype: np.dtype[np.generic]) -> int:
    """Bits that one element takes in storage."""
    for prefix in ("int", "uint"):
        digits = dtype.name.removeprefix(prefix)
        if digits.isdecimal():
            return int(digits)
    return 4 if dtype.name.startswith("float4") else dtype.itemsize * 8


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operator: `outputs = op(inputs; attributes)`. An absent optional operand or result is the empty string."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    name: str = ""
    domain: str = ""

    @property
    def subgraphs(self) -> tuple["Graph", ...]:
        return tuple([value for value in self.attributes.values() if isinstance(value, Graph)])

    @property
    def reads(self) -> tuple[str, ...]:
        """Every value this node needs: operands that are present, then what its subgraphs capture."""
        subgraphs = self.subgraphs
        if not subgraphs and len(self.inputs) < 2 and "" not in self.inputs:
            return self.inputs
        captured = (name for graph in subgraphs for name in graph.captures)
        return tuple(dict.fromkeys([*filter(None, self.inputs), *captured]))

    @property
    def results(self) -> tuple[str, ...]:
        """The outputs that are present."""
        return self.outputs if "" not in self.outputs else tuple(filter(None, self.outputs))

    @property
    def label(self) -> str:
        """How messages name this node."""
        kind = f"{self.domain}.{self.op}" if self.domain else self.op
        return f"{kind} '{self.name or (self.results[0] if self.results else '?')}'"

    def get_int(self, name: str, default: int) -> int:
        value = self.attributes.get(name, default)
        if not isinstance(value, int):
            raise TypeError(f"{self.label}: attribute {name} is {value!r}, expected an integer")
        return value

    def get_float(self, name: str, default: float) -> float:
        value = self.attributes.get(name, default)
        if not isinstance(value, int | float):
            raise TypeError(f"{self.label}: attribute {name} is {value!r}, expected a number")
        return float(value)

    def get_str(self, name: str, default: str) -> str:
        value = self.attributes.get(name, default)
        if not isinstance(value, str):
            raise TypeError(f"{self.label}: attribute {name} is {value!r}, expected a string")
        return value

    def get_ints(self, name: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        value = self.attributes.get(name, default)
        if not isinstance(value, tuple) or not all(isinstance(v, int) for v in value):
            raise TypeError(f"{self.label}: attribute {name} is {value!r}, expected integers")
        return tuple(int(v) for v in value)


@dataclass(frozen=True, eq=False)
class Graph:
    """A dataflow graph. `nodes` are in topological order; `types` covers inputs, constants, results and captures.

    A subgraph (the body of If, Loop or Scan) is a Graph as well; what it reads from outside is in `captures`.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    types: Mapping[str, TensorType]
    constants: Mapping[str, Array]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def producers(self) -> Mapping[str, Node]:
        """Value name -> the node that computes it."""
        return {name: node for node in self.nodes for name in node.results}

    @cached_property
    def users(self) -> Mapping[str, tuple[Node, ...]]:
        """Value name -> the nodes that read it, each once, in order (graph outputs are not nodes)."""
        users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.reads:
                users.setdefault(name, []).append(node)
        return {name: tuple(nodes) for name, nodes in users.items()}

    @cached_property
    def captures(self) -> tuple[str, ...]:
        """Names that a subgraph reads from the graph around it."""
        own = {*self.inputs, *self.constants, *self.producers}
        wanted = [*(name for node in self.nodes for name in node.reads), *self.outputs]
        return tuple(name for name in dict.fromkeys(wanted) if name not in own)

    def constant(self, name: str) -> Array | None:
        """The array behind a constant, None for anything else."""
        return self.constants.get(name)

    def to_onnx(self) -> "ModelProto":
        """The model as ONNX protobuf, weights inside (`graphc.exporter.save` writes models of any size)."""
        from graphc.exporter import to_model

        return to_model(self)

    def sole_user(self, name: str) -> Node | None:
        """The node that reads `name`, if it is the only reader and `name` is no graph output."""
        users = self.users.get(name, ())
        return users[0] if len(users) == 1 and name not in self.outputs else None
