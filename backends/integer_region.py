"""What the integer rules work with: grids of integers, and a region in which float values find their integers.

Two questions carry everything. `read(f)`: which integers stand for the float value f, exactly? (A DequantizeLinear, or
data movement over one.) `quantize(f, grid)`: which integers is f, rounded to this grid? (What a QuantizeLinear asks.)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import numpy as np

from graphc.backends.arithmetic import Numbers, Result, lookup, reach
from graphc.ir.edit import Edit
from graphc.ir.graph import Array, Attribute, Graph, Node, TensorType

DOMAIN = "graphc.integer"

T = TypeVar("T")


class Refusal(Exception):  # noqa: N818 (an answer, not an error)
    """Why a float value has no integers; the message reads as a reason."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Integers q (8 bits, or int16) that stand for (q - zero_point) * scale; values written to it stay in low..high.

    The grid of float32 (see `floats`) has the scale 1 and no ends.
    """

    dtype: np.dtype[np.generic]
    scale: float
    zero_point: int
    low: int
    high: int

    @classmethod
    def full(cls, dtype: np.dtype[np.generic], scale: float, zero_point: int) -> "Grid":
        """The grid over all of `dtype`. Raises Refusal for other types and where the scale is no positive number."""
        if dtype not in (np.int8, np.uint8, np.int16):
            raise Refusal(f"{dtype} activations have no integer kernels (int8, uint8 and int16 have)")
        if not (np.isfinite(scale) and scale > 0):
            raise Refusal(f"its scale is {scale}")
        info = np.iinfo(str(dtype))
        return cls(dtype, scale, zero_point, int(info.min), int(info.max))

    @classmethod
    def floats(cls) -> "Grid":
        """The grid of a product that is computed on integers and not rounded to any."""
        return cls(np.dtype(np.float32), 1.0, 0, 0, 0)

    @property
    def reach(self) -> int:
        """The largest |q - zero_point| of any q."""
        return reach(self.dtype, self.zero_point)

    def require_bytes(self, subject: str) -> None:
        """Refuse what only a table of 256 entries can compute, for integers of 16 bits."""
        if self.dtype.itemsize > 1:
            raise Refusal(f"{subject} would need a table of 65536 entries")

    @property
    def result(self) -> Result:
        return Result(self.dtype, self.zero_point, self.low, self.high)

    @property
    def attributes(self) -> dict[str, int]:
        """How integer nodes state the grid of their result; a float one has none."""
        if self.dtype == np.float32:
            return {}
        return {"y_zero_point": self.zero_point, "y_min": self.low, "y_max": self.high}

    def round(self, values: Numbers) -> Numbers:
        """Floats to integers of this grid: rint(value / scale) + zero_point, saturated to low..high (NaN to zero)."""
        steps = np.nan_to_num(np.rint(values.astype(np.float64) / self.scale), nan=0.0)
        return np.asarray(np.clip(steps + self.zero_point, self.low, self.high)).astype(self.dtype)

    def expand(self, values: Numbers) -> Numbers:
        """Integers of this grid to float64."""
        return np.asarray((values.astype(np.float64) - self.zero_point) * self.scale)

    def clamped(self, low: float, high: float) -> "Grid":
        """The same grid, results limited to floats in low..high."""
        ends = self.round(np.array([low, high]))
        return replace(self, low=int(ends[0]), high=int(max(ends)))


@dataclass(frozen=True, slots=True)
class Quantized:
    """A value of integers and the grid they are on."""

    name: str
    grid: Grid


Quantize: TypeAlias = Callable[["Region", Node, Grid], str]
"""A rule: the integers of a node's first result on a grid. Raises Refusal, with the reason, where it does not apply."""

Read: TypeAlias = Callable[["Region", Node], Quantized]
"""A rule: the integers that stand for a node's first result exactly."""


class Region:
    """The graph being rewritten, with what is known of its float values. Rules add integer nodes to `edit`."""

    def __init__(self, graph: Graph, readers: Mapping[str, Read], rules: Mapping[str, Sequence[Quantize]]) -> None:
        self.graph, self.edit = graph, Edit(graph)
        self._readers, self._rules = readers, rules
        self.siblings: dict[str, tuple[str, ...]] = {}
        """First result of a node that was added -> all its results."""
        self._read: dict[str, Quantized | Refusal] = {}
        self._quantized: dict[tuple[str, Grid], str | Refusal] = {}

    def read(self, name: str) -> Quantized:
        """The integers behind the float value `name`. Raises Refusal where there are none."""
        if name not in self._read:
            self._read[name] = _answer(lambda: self._find(name))
        return _given(self._read[name])

    def quantize(self, name: str, grid: Grid) -> str:
        """Integers of the float value `name` on `grid`. Raises Refusal where no rule gives them."""
        key = (name, grid)
        if key not in self._quantized:
            self._quantized[key] = _answer(lambda: self._compute(name, grid))
        return _given(self._quantized[key])

    def is_read(self, name: str) -> bool:
        """Whether `read(name)` has an answer."""
        if name not in self._read:
            self._read[name] = _answer(lambda: self._find(name))
        return not isinstance(self._read[name], Refusal)

    def lengths(self, name: str, axes: Iterable[int]) -> tuple[int, ...]:
        """The lengths of some axes of a value. Raises Refusal where one is open."""
        kind = self.graph.types[name]
        found = [kind.shape[axis] if kind.shape is not None else "?" for axis in axes]
        if not all(isinstance(n, int) for n in found):
            raise Refusal(f"the shape of '{name}' is open ({kind})")
        return tuple(int(n) for n in found)

    def rank(self, name: str) -> int:
        """The number of axes of a value. Raises Refusal where it is unknown."""
        shape = self.graph.types[name].shape
        if shape is None:
            raise Refusal(f"the rank of '{name}' is unknown")
        return len(shape)

    def emit(
        self,
        op: str,
        inputs: Sequence[str],
        attributes: Mapping[str, Attribute],
        dtype: np.dtype[np.generic],
        node: Node,
        value: str = "",
    ) -> str:
        """A node of the integer domain in the place of `node`, for its first result or `value`; returns its result."""
        value = value or node.outputs[0]
        return self.edit.add(
            op,
            inputs,
            attributes,
            name=f"{self.name(node)}_q",
            domain=DOMAIN,
            outputs=[self.edit.fresh(f"{value}_q")],
            types=[TensorType(dtype, self.graph.types[value].shape)],
            near=node,
        )

    def name(self, node: Node) -> str:
        return node.name or node.results[0]

    def tabulate(self, source: Quantized, table: Array, node: Node, value: str = "") -> str:
        """`table` looked up by the integers of `source`, in the place of `node` (for `value`, as in `emit`)."""
        constant = self.graph.constant(source.name)
        if constant is not None:
            return self.edit.constant(lookup(constant, table), f"{source.name}_q")
        names = [source.name, self.edit.constant(table, f"{self.name(node)}_table")]
        return self.emit("Table", names, {}, table.dtype, node, value)

    def _find(self, name: str) -> Quantized:
        node = self.graph.producers.get(name)
        if node is None:
            origin = "a constant" if name in self.graph.constants else "an input of the graph"
            raise Refusal(f"'{name}' is {origin}, given in {self.graph.types[name].dtype}")
        if node.op not in self._readers or node.domain:
            raise Refusal(f"nothing quantizes the result of {node.label}")
        index = node.outputs.index(name)
        if index:
            first = self.read(node.outputs[0])
            return Quantized(self.siblings[first.name][index], first.grid)
        return self._readers[node.op](self, node)

    def _compute(self, name: str, grid: Grid) -> str:
        constant = self.graph.constant(name)
        if constant is not None:
            return self.edit.constant(grid.round(constant), f"{name}_q")
        if self.is_read(name):
            return self._regrid(self.read(name), grid, name)
        node = self.graph.producers.get(name)
        rules = self._rules.get(node.op, ()) if node is not None and not node.domain else ()
        if node is None or not rules:
            raise Refusal(
                f"{node.label} has no integer form" if node is not None else f"'{name}' is an input of the graph"
            )
        index = node.outputs.index(name)
        if index:
            return self.siblings[self.quantize(node.outputs[0], grid)][index]
        for rule in rules[:-1]:
            try:
                return rule(self, node, grid)
            except Refusal:
                continue
        return rules[-1](self, node, grid)

    def _regrid(self, source: Quantized, grid: Grid, value: str) -> str:
        same = (source.grid.dtype, source.grid.scale, source.grid.zero_point) == (
            grid.dtype,
            grid.scale,
            grid.zero_point,
        )
        if same and grid.low <= source.grid.low and grid.high >= source.grid.high:
            return source.name
        source.grid.require_bytes("another grid")
        info = np.iinfo(str(source.grid.dtype))
        every = np.arange(info.min, info.max + 1)
        return self.tabulate(source, grid.round(source.grid.expand(every)), self.graph.producers[value], value)


def _answer(ask: Callable[[], T]) -> T | Refusal:
    try:
        return ask()
    except Refusal as reason:
        return reason


def _given(answer: T | Refusal) -> T:
    if isinstance(answer, Refusal):
        raise Refusal(str(answer))
    return answer
