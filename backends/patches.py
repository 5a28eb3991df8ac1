"""The first layers of high resolution, patch by patch: less memory at the peak, every bit the same (no TVM).

    x -> Conv -> Conv -> v            Rows(x) -> Conv -> Conv ->
                                      Rows(x) -> Conv -> Conv -> Assemble -> v

Of each value between x and v only a patch is alive at once; what lies at the seams is computed for both sides. A patch
is a run of whole rows: those lie one behind another in memory (channels last, batch 1), so that a patch of x is read
where it is and one of v is written where it belongs (`Program.parts`), and nothing is copied.

Source: Lin et al., "MCUNetV2: Memory-Efficient Patch-based Inference for Tiny Deep Learning", NeurIPS 2021, section 3
(with squares, which are copied; the work that is done twice is of the same order).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import gcd

import numpy as np

from graphc.backends.layout import DOMAIN as CHANNELS_LAST
from graphc.backends.layout import INTEGER, POINTWISE, channels_last
from graphc.backends.widen import widened
from graphc.ir.cost import macs
from graphc.ir.graph import Graph, Node, TensorType

DOMAIN = "graphc.patches"
COUNTS = (2, 3, 4, 6, 8, 12, 16)
"""How many patches are tried where a model does not fit."""
WINDOWS = frozenset({"Conv", "MaxPool"})
VIEWS = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True, slots=True)
class Patched:
    """What became of a graph. `bytes`: the estimated peak, before and after; `macs`: likewise, of the whole graph."""

    graph: Graph
    nodes: tuple[str, ...]
    count: int
    bytes: tuple[int, int]
    macs: tuple[int, int]


def laid_out(graph: Graph) -> Graph:
    """`graph` as `graphc.backends.lower` cuts it into patches."""
    return channels_last(widened(graph))


def patched(graph: Graph, count: int, alignment: int) -> Patched | None:
    """`graph` (laid out channels last) with the stage computed in `count` patches that lowers its peak most.

    Parts of buffers start at multiples of `alignment` bytes. None where no stage lowers the peak.
    """
    before = peak_bytes(graph)
    found = []
    for stage in _stages(graph):
        bounds = _bounds(graph.types[stage.result], count, alignment)
        if len(bounds) < 3:
            continue
        changed = _rewritten(graph, stage, bounds, alignment)
        peak = peak_bytes(changed)
        if peak < before:
            names = tuple(node.name or node.outputs[0] for node in stage.nodes)
            work = _all_macs(graph), _all_macs(changed)
            found.append(Patched(changed, names, len(bounds) - 1, (before, peak), work))
    return min(found, key=lambda each: (each.bytes[1], each.macs[1]), default=None)


def suggested(graph: Graph, limit: int, alignment: int) -> Patched | None:
    """The fewest patches of `COUNTS` whose peak is at most `limit` bytes, else those with the lowest; None: no help."""
    found = [each for count in COUNTS if (each := patched(graph, count, alignment)) is not None]
    fits = [each for each in found if each.bytes[1] <= limit]
    return fits[0] if fits else min(found, key=lambda each: each.bytes[1], default=None)


def peak_bytes(graph: Graph) -> int:
    """The most bytes of values alive at once, in the order of the nodes: what decides between stages.

    A pointwise operator takes over the memory of the operand that it is the last to read.
    """
    owner, end = _owners(graph), len(graph.nodes)
    spans = {name: [0, 0] for name in graph.inputs}
    for position, node in enumerate(graph.nodes):
        for name in (*node.reads, *node.results):
            if name in owner:
                spans.setdefault(owner[name], [position, position])[1] = position
    for name in graph.outputs:
        if name in owner:
            spans[owner[name]][1] = end
    change = [0] * (end + 2)
    for name, (first, last) in spans.items():
        change[first] += _bytes(graph, name)
        change[last + 1] -= _bytes(graph, name)
    return int(np.cumsum(change).max())


def _owners(graph: Graph) -> dict[str, str]:
    """Value that is computed or given -> the one whose memory it lies in."""
    owner = {name: name for name in graph.inputs}
    last = {name: node for node in graph.nodes for name in node.reads}
    fixed = _constant_values(graph)
    whole = {
        name: node for node in graph.nodes if (node.domain, node.op) == (DOMAIN, "Assemble") for name in node.inputs
    }
    for node in graph.nodes:
        for name in node.results:
            if name in fixed:
                continue
            x = node.inputs[0] if node.inputs else ""
            view = node.op in VIEWS or (node.domain, node.op) == (DOMAIN, "Rows")
            reused = node.op in POINTWISE and last.get(x) is node
            same = _bytes(graph, owner.get(x, "")) == _bytes(graph, name)
            owner[name] = owner[x] if x in owner and (view or (reused and same)) else name
            if name in whole:
                owner[name] = whole[name].outputs[0]
    return owner


def _bytes(graph: Graph, name: str) -> int:
    """Of a value in memory; 0 of none."""
    kind = graph.types.get(name)
    return kind.size * max(8, kind.bits) // 8 if kind else 0


def _constant_values(graph: Graph) -> set[str]:
    """Constants, and what is computed of nothing else."""
    fixed = set(graph.constants)
    for node in graph.nodes:
        if node.reads and fixed.issuperset(node.reads):
            fixed.update(node.results)
    return fixed


def _all_macs(graph: Graph) -> int:
    return sum(macs(graph, node) or 0 for node in graph.nodes)


@dataclass(frozen=True, slots=True)
class _Window:
    """Row r of the result needs `size` rows of each operand, `dilation` apart, from r * stride - pad on."""

    size: int = 1
    stride: int = 1
    pad: int = 0
    dilation: int = 1

    def needs(self, rows: tuple[int, int]) -> tuple[int, int]:
        """Rows of the operand for these rows of the result; beyond its ends where it is padded."""
        first = rows[0] * self.stride - self.pad
        return first, (rows[1] - 1) * self.stride - self.pad + (self.size - 1) * self.dilation + 1


@dataclass(frozen=True, slots=True)
class _Stage:
    """Nodes between `source` and `result`, of which nothing else reads what lies between."""

    source: str
    nodes: tuple[Node, ...]
    result: str
    operands: Mapping[str, tuple[str, ...]]
    """First result of each node -> those of its operands that are no constants."""
    windows: Mapping[str, _Window]


def _stages(graph: Graph) -> Iterator[_Stage]:
    """Every stage that begins at the first operator that works row by row, or at the first window."""
    fixed = _constant_values(graph)
    reads = {node.outputs[0]: tuple(name for name in node.reads if name not in fixed) for node in graph.nodes}
    windows = {node.outputs[0]: _window(graph, node, reads[node.outputs[0]]) for node in graph.nodes}
    local = [node for node in graph.nodes if windows[node.outputs[0]] is not None]
    first = [*local[:1], *[node for node in local if node.op in WINDOWS][:1]]
    for source in dict.fromkeys(reads[node.outputs[0]][0] for node in first):
        yield from _stages_from(graph, source, local, reads, {name: w for name, w in windows.items() if w is not None})


def _stages_from(
    graph: Graph,
    source: str,
    local: Sequence[Node],
    reads: Mapping[str, tuple[str, ...]],
    windows: Mapping[str, _Window],
) -> Iterator[_Stage]:
    members: list[Node] = []
    inside = {source}
    for node in local:
        if inside.issuperset(reads[node.outputs[0]]):
            inside.add(node.outputs[0])
            members.append(node)
            if (stage := _closed(graph, source, members, reads, windows)) is not None:
                yield stage


def _closed(
    graph: Graph,
    source: str,
    members: Sequence[Node],
    operands: Mapping[str, tuple[str, ...]],
    windows: Mapping[str, _Window],
) -> _Stage | None:
    """The stage that ends with the last of `members`; None where something of it is needed beside its result."""
    result = members[-1].outputs[0]
    wanted, nodes = {result}, []
    for node in reversed(members):
        if node.outputs[0] in wanted:
            nodes.append(node)
            wanted.update(operands[node.outputs[0]])
    inside = {node.outputs[0] for node in nodes}
    for name in inside - {result}:
        if name in graph.outputs or any(user.outputs[0] not in inside for user in graph.users[name]):
            return None
    if len(nodes) < 2 or result in graph.outputs:
        return None
    return _Stage(source, tuple(reversed(nodes)), result, operands, windows)


def _window(graph: Graph, node: Node, reads: Sequence[str]) -> _Window | None:
    """How a node's rows depend on its operands'; None for what does not work row by row, one image at a time."""
    kinds = [graph.types[name] for name in (*reads, node.outputs[0])]
    if not reads or len(node.results) != 1 or node.subgraphs or any(len(k.dims) != 4 or k.dims[0] != 1 for k in kinds):
        return None
    if node.op in WINDOWS and node.domain in (CHANNELS_LAST, INTEGER):
        return _sliding(graph, node, reads)
    if node.op in POINTWISE and node.domain in ("", INTEGER) and all(k.dims == kinds[-1].dims for k in kinds):
        others = [graph.types[name].dims for name in node.reads if name not in reads]
        return _Window() if all(len(dims) < 3 or dims[len(dims) - 3] == 1 for dims in others) else None
    return None


def _sliding(graph: Graph, node: Node, reads: Sequence[str]) -> _Window | None:
    """The window of a convolution or pool whose attributes say all of it."""
    if reads != (node.inputs[0],) or node.get_str("auto_pad", "NOTSET") != "NOTSET" or node.get_int("ceil_mode", 0):
        return None
    size = node.get_ints("kernel_shape", graph.types[node.inputs[1]].dims[2:] if node.op == "Conv" else ())
    if len(size) != 2:
        return None
    pads = node.get_ints("pads", (0, 0, 0, 0))
    window = _Window(size[0], node.get_ints("strides", (1, 1))[0], pads[0], node.get_ints("dilations", (1, 1))[0])
    rows, height = graph.types[node.outputs[0]].dims[1], graph.types[node.inputs[0]].dims[1]
    return window if window.needs((0, rows))[1] <= height + pads[2] else None


def _row_bytes(kind: TensorType) -> int:
    return kind.size // kind.dims[1] * max(8, kind.bits) // 8


def _bounds(kind: TensorType, count: int, alignment: int) -> list[int]:
    """Where patches of `kind` begin and end: about equal, each beginning at a multiple of `alignment` bytes."""
    step, rows = alignment // gcd(alignment, _row_bytes(kind)), kind.dims[1]
    return sorted({0, rows, *(min(rows, round(rows * i / count / step) * step) for i in range(1, count))})


def _rewritten(graph: Graph, stage: _Stage, bounds: Sequence[int], alignment: int) -> Graph:
    """The graph with the stage computed once for each pair of neighbouring bounds."""
    types = dict(graph.types)
    constants = dict(graph.constants)
    made: list[Node] = []
    for index, rows in enumerate(pairwise(bounds)):
        patch = _Patch(stage, index, types, constants, alignment)
        made += patch.nodes(rows)
    parts = tuple(_named(stage.result, index) for index in range(len(bounds) - 1))
    made.append(Node("Assemble", parts, (stage.result,), {}, stage.nodes[-1].name, DOMAIN))
    gone = {node.outputs[0] for node in stage.nodes}
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.outputs[0] == stage.result:
            nodes += made
        elif node.outputs[0] not in gone:
            nodes.append(node)
    return replace(graph, nodes=tuple(nodes), types=types, constants=constants)


def _named(name: str, index: int) -> str:
    return f"{name}@patch{index}"


@dataclass
class _Patch:
    """One patch of a stage; `types` and `constants` of the graph under construction get its values."""

    stage: _Stage
    index: int
    types: dict[str, TensorType]
    constants: dict[str, np.ndarray]
    alignment: int

    def nodes(self, rows: tuple[int, int]) -> list[Node]:
        """The nodes that compute these rows of the stage's result."""
        have = self._wanted(rows)
        have[self.stage.source] = (0, self.types[self.stage.source].dims[1])
        made: list[Node] = []
        for node in self.stage.nodes:
            result = node.outputs[0]
            window = self.stage.windows[result]
            needs = window.needs(have[result])
            names = {}
            for name in self.stage.operands[result]:
                inside = max(0, needs[0]), min(self.types[name].dims[1], needs[1])
                names[name] = self._rows(made, name, have[name], inside, node)
            height = self.types[node.inputs[0]].dims[1]
            made.append(self._node(node, names, (max(0, -needs[0]), max(0, needs[1] - height))))
            self._type(result, _named(result, self.index), have[result])
        return made

    def _wanted(self, rows: tuple[int, int]) -> dict[str, tuple[int, int]]:
        """Value -> rows of it that this patch computes: all that anything in it needs."""
        found = {self.stage.result: rows}
        for node in reversed(self.stage.nodes):
            needs = self.stage.windows[node.outputs[0]].needs(found[node.outputs[0]])
            for name in self.stage.operands[node.outputs[0]]:
                first, last = found.get(name, needs)
                found[name] = max(0, min(first, needs[0])), min(self.types[name].dims[1], max(last, needs[1]))
        return found

    def _rows(self, made: list[Node], name: str, have: tuple[int, int], wanted: tuple[int, int], node: Node) -> str:
        """Rows of a value: as it is, a view of it, or where that would not be aligned a copy."""
        source = name if name == self.stage.source else _named(name, self.index)
        if have == wanted:
            return source
        first, last = wanted[0] - have[0], wanted[1] - have[0]
        result = f"{node.outputs[0]}@rows{self.index}/{name}"
        self._type(name, result, wanted)
        if first * _row_bytes(self.types[name]) % self.alignment == 0:
            made.append(Node("Rows", (source,), (result,), {"first": first}, node.name, DOMAIN))
            return result
        given = {"first": first, "last": last, "axis": 1}
        for key, value in given.items():
            array = np.array([value], np.int64)
            self.constants[f"{result}/{key}"] = array
            self.types[f"{result}/{key}"] = TensorType(array.dtype, array.shape)
        made.append(Node("Slice", (source, *(f"{result}/{key}" for key in given)), (result,), {}, node.name))
        return result

    def _node(self, node: Node, names: Mapping[str, str], padded: tuple[int, int]) -> Node:
        attributes = dict(node.attributes)
        if node.op in WINDOWS:
            _, left, _, right = node.get_ints("pads", (0, 0, 0, 0))
            attributes["pads"] = (padded[0], left, padded[1], right)
        inputs = tuple(names.get(name, name) for name in node.inputs)
        return replace(node, inputs=inputs, outputs=(_named(node.outputs[0], self.index),), attributes=attributes)

    def _type(self, name: str, part: str, rows: tuple[int, int]) -> None:
        kind = self.types[name]
        dims = (kind.dims[0], rows[1] - rows[0], *kind.dims[2:])
        self.types[part] = TensorType(kind.dtype, dims)
