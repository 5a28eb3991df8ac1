"""Where a model's inputs and outputs are integers that stand for numbers (`io: int8`): the grids, and crossing them.

real = (integer - zero_point) * scale;   integer = saturate(rint(real / scale) + zero_point)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from graphc.ir import Array, Graph, Node

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class Grid:
    """One scale and zero point for a whole tensor; `real` is the type of the numbers it stands for."""

    scale: float
    zero_point: int
    stored: np.dtype[np.generic]
    real: np.dtype[np.generic]

    def to_integers(self, numbers: Array) -> Array:
        """As QuantizeLinear: divide in the real type, round half to even, saturate."""
        info = np.iinfo(self.stored.name)
        steps = np.rint(numbers.astype(self.real) / self.real.type(self.scale)).astype(np.float64) + self.zero_point
        stored: Array = np.clip(steps, info.min, info.max).astype(self.stored)
        return stored

    def to_numbers(self, integers: Array) -> Array:
        """As DequantizeLinear, in the real type."""
        steps = (integers.astype(np.int64) - self.zero_point).astype(self.real)
        return np.asarray(steps * self.real.type(self.scale), self.real)


def input_grids(graph: Graph) -> dict[str, Grid]:
    """Inputs that are read by DequantizeLinear alone, all with the same constant scale and zero point -> their grid."""
    found = {}
    for name in graph.inputs:
        if not _reads_only(graph, name, "DequantizeLinear"):
            continue
        grids = {_grid(graph, node, name, node.outputs[0]) for node in graph.users.get(name, ())}
        if len(grids) == 1 and (grid := grids.pop()) is not None:
            found[name] = grid
    return found


def output_grids(graph: Graph) -> dict[str, Grid]:
    """Outputs that QuantizeLinear computes with a constant scale and zero point -> their grid."""
    made = {name: graph.producers[name] for name in graph.outputs if name in graph.producers}
    grids = {
        name: _grid(graph, node, name, node.inputs[0]) for name, node in made.items() if node.op == "QuantizeLinear"
    }
    return {name: grid for name, grid in grids.items() if grid is not None}


@dataclass(frozen=True, slots=True)
class Border:
    """Between a graph whose inputs and outputs may be integers and an outside that holds numbers there."""

    taken: Mapping[str, Grid]
    given: Mapping[str, Grid]

    @classmethod
    def of(cls, graph: Graph, outside: Mapping[str, np.dtype[np.generic]]) -> "Border":
        """`outside` are the types that inputs and outputs had, such as the original model's."""
        taken = {name: grid for name, grid in input_grids(graph).items() if grid.real == outside[name]}
        given = {name: grid for name, grid in output_grids(graph).items() if grid.real == outside[name]}
        return cls(taken, given)

    def enter(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs as the graph takes them."""
        return {name: self.taken[name].to_integers(x) if name in self.taken else x for name, x in feeds.items()}

    def leave(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs as the outside knows them."""
        return {name: self.given[name].to_numbers(y) if name in self.given else y for name, y in outputs.items()}

    def around(self, run: Run) -> Run:
        """`run`, which takes and gives what the graph does, for callers outside."""
        return lambda feeds: self.leave(run(self.enter(feeds)))


def border_types(graph: Graph) -> dict[str, np.dtype[np.generic]]:
    """Element types of the inputs and outputs."""
    return {name: graph.types[name].dtype for name in (*graph.inputs, *graph.outputs)}


def _reads_only(graph: Graph, name: str, op: str) -> bool:
    return name not in graph.outputs and all(node.op == op and not node.domain for node in graph.users.get(name, ()))


def _grid(graph: Graph, node: Node, stored: str, real: str) -> Grid | None:
    """The grid of a (De)QuantizeLinear between two values; None where it is no constant, or one per channel."""
    scale = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if scale is None or scale.size != 1:
        return None
    zero = graph.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else np.zeros((), np.int64)
    if zero is None or zero.size != 1:
        return None
    return Grid(float(scale.item()), int(zero.item()), graph.types[stored].dtype, graph.types[real].dtype)
