"""Grows random graphs for property tests, node by node."""

from collections.abc import Callable, Sequence

import numpy as np

from graphc.ir.graph import Array, Attribute, Graph, Node, TensorType
from graphc.ir.infer import infer

FLOAT = np.dtype(np.float32)
SHAPE = (1, 4, 6, 6)


class Builder:
    """Grows a graph node by node, mostly from its latest values."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.types = {name: TensorType(FLOAT, SHAPE) for name in ("x", "z")}
        self.constants: dict[str, Array] = {}
        self.nodes: list[Node] = []
        self.values = ["x", "z"]

    def constant(self, array: Array) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = array
        self.types[name] = TensorType(array.dtype, array.shape)
        return name

    def normal(self, *shape: int) -> str:
        return self.constant(self.rng.normal(size=shape).astype(np.float32))

    def pick(self, fits: Callable[[tuple[int, ...]], bool]) -> str:
        found = [name for name in self.values if fits(self.types[name].dims)]
        return found[max(0, len(found) - 1 - int(self.rng.exponential(2)))]

    def like(self, value: str) -> str:
        return self.pick(lambda shape: shape == self.types[value].dims)

    def one_of(self, *ops: str) -> str:
        return ops[int(self.rng.integers(len(ops)))]

    def add(self, op: str, inputs: Sequence[str], results: int = 1, **attributes: Attribute) -> str:
        outputs = tuple(f"v{len(self.nodes)}_{i}" for i in range(results))
        node = Node(op, tuple(inputs), outputs, attributes, f"{op.lower()}_{len(self.nodes)}")
        self.types |= infer(node, self.types, self.constants)
        self.nodes.append(node)
        self.values += outputs
        return outputs[0]

    def graph(self) -> Graph:
        read = {name for node in self.nodes for name in node.inputs}
        ends = [name for name in self.values[2:] if name not in read or self.rng.random() < 0.1]
        return Graph("g", ("x", "z"), tuple(ends), tuple(self.nodes), self.types, self.constants)
