"""What to quantize: nodes grouped into units of integer work, and values grouped by the grid they share.

A unit is an operator with what it absorbs (a bias, a Relu), or a chain of elementwise functions of one value. A grid is
shared by all values that data movement connects, so that moving stays moving.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

import ml_dtypes
import networkx as nx
import numpy as np

from graphc.ir.graph import Graph, Node
from graphc.passes.quantize_casts import integers_of
from graphc.passes.quantize_dynamic import DYNAMIC, objection
from graphc.passes.quantize_operators import (
    LIMITERS,
    OPERATORS,
    STORED,
    TABLE,
    WITH_SCALAR,
    Operator,
    Role,
    constant_of_one,
    finite,
)
from graphc.passes.quantize_schemes import FLOATS

KEEP_FLOAT = "none"
FLOAT32 = np.dtype(np.float32)
NOTHING: Mapping[Node, str] = MappingProxyType({})


class Formats(Protocol):
    """Names of number formats, or 'none'."""

    @property
    def weights(self) -> str: ...
    @property
    def embeddings(self) -> str: ...


class Options(Formats, Protocol):
    """What the plan asks of a node's options."""

    @property
    def group(self) -> int | None: ...
    @property
    def calibrate(self) -> str | None: ...
    @property
    def symmetric_weights(self) -> bool: ...
    @property
    def activations(self) -> str: ...
    @property
    def round_terms(self) -> bool: ...


@dataclass(frozen=True, eq=False, slots=True)
class Unit:
    """Nodes that become one integer operation (`nodes[0]` is the one that gives it its character).

    `data` are the values it reads as integers, `results` those it gives as integers, `bias` the constant that is added
    to its sums, by itself or by the Add it absorbed.
    """

    nodes: tuple[Node, ...]
    operator: Operator
    data: tuple[str, ...]
    results: tuple[str, ...]
    bias: str = ""

    @property
    def anchor(self) -> Node:
        return self.nodes[0]


@dataclass(frozen=True, eq=False, slots=True)
class Share:
    """Values on one grid. `roots` decide its range; `owner` is the node whose options decide its format."""

    members: tuple[str, ...]
    roots: tuple[str, ...]
    owner: Node | None
    probability: bool


@dataclass(frozen=True)
class Plan:
    """Units in graph order, the share of every quantized value, nodes with weights alone, products of activations that
    are quantized at run time, and why the rest stays.
    """

    units: tuple[Unit, ...]
    shares: Mapping[str, Share]
    weight_only: tuple[Node, ...]
    dynamic: tuple[Node, ...]
    skipped: Mapping[Node, str]


def plan(
    graph: Graph, options: Mapping[Node, Options], borders: Sequence[str] = (), refused: Mapping[Node, str] = NOTHING
) -> Plan:
    """Decide for `graph`. `borders` are graph inputs and outputs that must be integers whatever lies beside them;
    `refused` are nodes that shall stay in floating point, and why.
    """
    skipped: dict[Node, str] = dict(refused)
    candidates: dict[Node, Operator] = {}
    dynamic: list[Node] = []
    captured = {name for node in graph.nodes for inner in node.subgraphs for name in inner.captures}
    for node in graph.nodes:
        if node in refused or not _computes_floats(graph, node):
            continue
        found = _candidate(graph, node, options[node], captured, candidates)
        if isinstance(found, str):
            skipped[node] = found
        elif options[node].calibrate == DYNAMIC:
            reason = objection(graph, node, options[node].weights, options[node].symmetric_weights)
            skipped.update({node: reason} if reason else {})
            dynamic += [] if reason else [node]
        else:
            candidates[node] = found
    units = _Grouping(graph, candidates, skipped).units()
    units = _regions(_without_islands(graph, units, skipped), skipped)
    units = _with_wide_terms(graph, units, options, {*borders})
    alone = [node for node in skipped if node not in refused and _weight_alone(graph, node, options[node])]
    beyond = {node: reason for node in alone if (reason := _beyond(graph, node, stored_as(node, options[node])))}
    skipped.update(beyond)
    weight_only = tuple(node for node in alone if node not in beyond)
    shares = _shares(graph, units, borders)
    for name in shares.keys() & integers_of(graph).keys():
        skipped.pop(graph.producers[name], None)
    return Plan(tuple(units), shares, weight_only, tuple(dynamic), skipped)


def data_operands(node: Node, operator: Operator) -> tuple[str, ...]:
    """The operands of `node` that carry activations, present ones only."""
    names = node.inputs if operator.data is None else [node.inputs[i] for i in operator.data if i < len(node.inputs)]
    return tuple(name for name in names if name)


def _computes_floats(graph: Graph, node: Node) -> bool:
    """Whether `node` works on floats at run time; what decodes constants does not, and quantizers are no work."""
    kinds = [graph.types[name].dtype.kind for name in (*node.inputs, *node.outputs) if name in graph.types]
    given = all(name in graph.constants for name in node.reads) and bool(node.reads)
    return node.op not in ("QuantizeLinear", "DequantizeLinear") and not given and not {"f", "V"}.isdisjoint(kinds)


def _candidate(
    graph: Graph, node: Node, options: Options, captured: set[str], before: Container[Node]
) -> Operator | str:
    """The row of the table for `node`, or why it stays in floating point; `before` are nodes that do not."""
    operator = None if node.domain else OPERATORS.get(node.op) or WITH_SCALAR.get(node.op)
    if operator is None:
        return f"{node.op} has no 8-bit form"
    if options.activations == KEEP_FLOAT:
        return "the options ask for floating-point activations"
    return next(_objections(graph, node, operator, options, captured, before), operator)


def _objections(
    graph: Graph, node: Node, operator: Operator, options: Options, captured: set[str], before: Container[Node]
) -> Iterator[str]:
    """Why an operator of the table cannot be quantized here."""
    kinds = {graph.types[name].dtype for name in (*data_operands(node, operator), node.outputs[0])}
    if kinds != {FLOAT32}:
        yield f"its values are {', '.join(sorted(kind.name for kind in kinds))}, not float32"
    weighted = operator.weight is not None and node.inputs[operator.weight] in graph.constants
    if weighted and (options.weights == KEEP_FLOAT or options.weights in FLOATS):
        yield "the options ask for floating-point weights"
    if weighted and options.group is not None:
        yield f"its weights have a scale for every {options.group}, so their sums are floating point"
    if any(name in captured for name in node.results):
        yield "its result is read inside a subgraph"
    sources = [graph.producers[name] for name in node.inputs if name in graph.producers]
    readers = [user for name in node.results for user in graph.users.get(name, ())]
    if any(s.op == "DequantizeLinear" for s in sources) or any(r.op == "QuantizeLinear" for r in readers):
        yield "it is quantized already"
    if options.activations == "int16" and _is_table(graph, node, operator) and not _is_bias(graph, node, before):
        yield f"{node.op} of 16 bits would need a table of 65536 entries"
    if reason := operator.refuse(graph, node):
        yield reason


def _is_table(graph: Graph, node: Node, operator: Operator) -> bool:
    """Whether integers of 8 bits would go through a table here: functions, limits aside, and sums with constants."""
    if operator.role is Role.POINTWISE or operator.probability:
        return node.op not in LIMITERS
    return node.op in WITH_SCALAR and any(name in graph.constants for name in node.inputs)


def _is_bias(graph: Graph, node: Node, products: Container[Node]) -> bool:
    """Whether `node` adds the bias of one of these products."""
    makers = [graph.producers[name] for name in node.inputs if name in graph.producers]
    return any(
        product in products and (added := _added_bias(graph, product)) is not None and added[0] is node
        for product in makers
        if product.op == "MatMul"
    )


def _added_bias(graph: Graph, product: Node) -> tuple[Node, str] | None:
    """The Add of one constant per column that alone reads a product, and that constant."""
    user = graph.sole_user(product.outputs[0])
    if user is None or user.op != "Add":
        return None
    constant = next((name for name in user.inputs if name in graph.constants), "")
    kind = graph.types[product.outputs[0]]
    if not constant or kind.shape is None or kind.shape != graph.types[user.outputs[0]].shape:
        return None
    array = graph.constants[constant]
    per_column = array.size == 1 or (array.shape[-1:] == (array.size,) == kind.shape[-1:])
    return (user, constant) if per_column else None


def _weight_alone(graph: Graph, node: Node, options: Options) -> bool:
    """Whether the options leave `node` with compressed weights, or a table, and floating-point activations."""
    form, positions = stored_as(node, options), STORED.get(node.op, ())
    if node.domain or not positions or form == KEEP_FLOAT:
        return False
    alone = options.activations == KEEP_FLOAT or form in FLOATS or options.group is not None or node.op == TABLE
    arrays = [graph.constant(node.inputs[position]) for position in positions]
    if not alone or not all(array is not None and array.dtype == FLOAT32 and finite(array) for array in arrays):
        return False
    operator = OPERATORS.get(node.op)
    return operator is None or not operator.refuse(graph, node)


def stored_as(node: Node, options: Formats) -> str:
    """The number format of weights alone."""
    return options.embeddings if node.op == TABLE else options.weights


def _beyond(graph: Graph, node: Node, weights: str) -> str:
    """Why the weights of `node` cannot be stored in the format `weights`, or the empty string."""
    if weights not in FLOATS:
        return ""
    arrays = [graph.constants[node.inputs[position]] for position in STORED[node.op]]
    largest = max(float(np.abs(array).max(initial=0.0)) for array in arrays)
    limit = float(ml_dtypes.finfo(FLOATS[weights]).max)
    return f"its weights reach {largest:.3g}, more than {weights} holds" if largest > limit else ""


class _Grouping:
    """Walks the candidates in order and joins them into units."""

    def __init__(self, graph: Graph, candidates: Mapping[Node, Operator], skipped: dict[Node, str]) -> None:
        self._graph, self._candidates, self._skipped = graph, candidates, skipped
        self._taken: set[Node] = set()
        self._leaf: dict[str, str] = {}
        self._chains: dict[str, list[Node]] = {}
        self._wide: set[str] = set()

    def units(self) -> list[Unit]:
        """All units, in the order of their first nodes."""
        units: list[Unit] = []
        for node, operator in self._candidates.items():
            if node in self._taken:
                continue
            leaf = self._leaf_of(node)
            if leaf is not None:
                self._chains.setdefault(leaf, []).append(node)
                self._leaf[node.outputs[0]] = leaf
            elif operator.role is Role.POINTWISE:
                self._skipped[node] = f"{node.op} of several values has no 8-bit form"
            else:
                units.append(self._unit(node, operator))
        units += [unit for leaf, nodes in self._chains.items() if (unit := self._chain(leaf, nodes)) is not None]
        order = {node: i for i, node in enumerate(self._candidates)}
        return self._without_wide(sorted(units, key=lambda unit: order[unit.anchor]))

    def _leaf_of(self, node: Node) -> str | None:
        """The one value that an elementwise node is a function of; None where it is no such node."""
        if self._candidates[node].role is not Role.POINTWISE and node.op not in WITH_SCALAR:
            return None
        operands = [name for name in node.inputs if name and not constant_of_one(self._graph, name)]
        if len(operands) > 1 and node.op in ("Div", "Pow"):
            return None  # zero by zero is in the table of x / f(x), and has no value
        leaves = {self._leaf.get(name, name) for name in operands}
        if len(leaves) != 1 or any(name in self._graph.constants for name in leaves):
            return None
        leaf = leaves.pop()
        same = self._graph.types[leaf].shape == self._graph.types[node.outputs[0]].shape
        return leaf if same else None

    def _chain(self, leaf: str, nodes: Sequence[Node]) -> Unit | None:
        """The unit of all functions of `leaf`; its results are what others read. None where 8 bits hold none."""
        inside = set(nodes)
        exits = [node for node in nodes if self._is_exit(node, inside)]
        for node in exits:
            if self._candidates[node].wide or (node.op == "Div" and constant_of_one(self._graph, node.inputs[0])):
                self._wide.add(node.outputs[0])
                self._skipped[node] = "its result spans more magnitudes than 8 bits hold"
        results = tuple(node.outputs[0] for node in exits if node.outputs[0] not in self._wide)
        if results:
            return Unit(tuple(nodes), self._candidates[nodes[0]], (leaf,), results)
        self._skipped.update(dict.fromkeys(inside.difference(exits), "it leads to a value that 8 bits do not hold"))
        return None

    def _is_exit(self, node: Node, inside: set[Node]) -> bool:
        result = node.outputs[0]
        return result in self._graph.outputs or not inside.issuperset(self._graph.users.get(result, ()))

    def _unit(self, node: Node, operator: Operator) -> Unit:
        graph, nodes = self._graph, [node]
        data = data_operands(node, operator)
        bias = ""
        if operator.weight is not None and node.inputs[operator.weight] in graph.constants:
            data = tuple(name for i, name in enumerate(node.inputs) if name in data and i != operator.weight)
        if operator.bias is not None and operator.bias < len(node.inputs):
            bias = node.inputs[operator.bias]
        if operator.float_constants:
            data = tuple(name for name in data if name not in graph.constants)
        if node.op == "MatMul" and (added := _added_bias(graph, node)) and added[0] in self._candidates:
            nodes.append(added[0])
            bias = added[1]
        if operator.clips and (limiter := self._limiter(nodes[-1])):
            nodes.append(limiter)
        self._taken.update(nodes)
        results = nodes[-1].results if operator.role is Role.MOVE else nodes[-1].results[:1]
        return Unit(tuple(nodes), operator, data, results, bias)

    def _limiter(self, node: Node) -> Node | None:
        user = self._graph.sole_user(node.outputs[0])
        return user if user is not None and user.op in LIMITERS and user in self._candidates else None

    def _without_wide(self, units: Iterable[Unit]) -> list[Unit]:
        """Drop units that would round a wide value to 8 bits before they compute with it; products may."""
        kept: list[Unit] = []
        for unit in units:
            bad = next((name for name in unit.data if name in self._wide), None)
            if bad is None or unit.operator.role is Role.PRODUCT:
                kept.append(unit)
                continue
            self._skipped.update(dict.fromkeys(unit.nodes, f"it reads '{bad}', which 8 bits do not hold"))
            self._wide.update(unit.results)
        return kept


def _without_islands(graph: Graph, units: Sequence[Unit], skipped: dict[Node, str]) -> Sequence[Unit]:
    """Drop units, products aside, that integers neither reach nor leave: rounding there costs and saves nothing.

    What leads to floating-point nodes alone goes (the statistics of a normalization, say), and what computes with
    nothing but floats. The model's own inputs and outputs count as integers, and so does what is cast from 8 bits.
    """
    while True:
        kept: list[Unit] = []
        read = {*graph.outputs}
        for unit in reversed(units):
            if unit.operator.role is Role.PRODUCT or not read.isdisjoint(unit.results):
                kept.append(unit)
                read.update(unit.data)
            else:
                skipped.update(dict.fromkeys(unit.nodes, "only floating-point nodes read its result"))
        reached: list[Unit] = []
        made = {*graph.inputs, *graph.constants, *integers_of(graph)}
        for unit in reversed(kept):
            if unit.operator.role is Role.PRODUCT or not made.isdisjoint(unit.data):
                reached.append(unit)
                made.update(unit.results)
            else:
                skipped.update(dict.fromkeys(unit.nodes, "everything that it reads is floating point"))
        if len(reached) == len(units):
            return units
        units = reached


def _regions(units: Sequence[Unit], skipped: dict[Node, str]) -> list[Unit]:
    """Keep units that are connected to a product; elsewhere integers would cost conversions and save nothing."""
    joined: nx.Graph = nx.Graph()
    joined.add_nodes_from(units)
    producer = {name: unit for unit in units for name in unit.results}
    joined.add_edges_from((producer[name], unit) for unit in units for name in unit.data if name in producer)
    kept: set[Unit] = set()
    for region in nx.connected_components(joined):
        if any(unit.operator.role is Role.PRODUCT for unit in region):
            kept |= region
    for unit in units:
        if unit not in kept:
            reason = "no quantized convolution or matrix product is connected to it"
            skipped.update(dict.fromkeys(unit.nodes, reason))
    return [unit for unit in units if unit in kept]


def _with_wide_terms(
    graph: Graph, units: Sequence[Unit], options: Mapping[Node, Options], borders: Container[str]
) -> list[Unit]:
    """Sums of two values take a product among them as it is, and round once: where both are, the one made last.

    Kernels add to it what they have in registers; the other has long been stored.
    """
    place = {unit: i for i, unit in enumerate(units)}
    producer = {name: unit for unit in units for name in unit.results}
    replaced: dict[Unit, Unit] = {}
    for unit in units:
        if unit.anchor.op not in ("Add", "Sub") or len(unit.data) != 2 or options[unit.anchor].round_terms:
            continue
        products = [
            producer[name]
            for name in unit.data
            if name in producer
            and producer[name].operator.role is Role.PRODUCT
            and producer[name].nodes[-1].op not in LIMITERS
            and graph.sole_user(name) is unit.anchor
            and name not in borders
        ]
        bytes_alone = all(options[each.anchor].activations != "int16" for each in (unit, *products))
        if products and bytes_alone:
            last = max(products, key=place.__getitem__)
            replaced[last] = replace(last, results=())
            data = tuple(name for name in unit.data if name not in last.results)
            replaced[unit] = replace(unit, data=data)
    return [replaced.get(unit, unit) for unit in units]


def _shares(graph: Graph, units: Sequence[Unit], borders: Sequence[str]) -> dict[str, Share]:
    """Value -> its share, for every value that is quantized."""
    joined: nx.Graph = nx.Graph()
    joined.add_nodes_from(borders)
    inner: set[str] = set()
    for unit in units:
        joined.add_nodes_from((*unit.data, *unit.results))
        if unit.operator.role is Role.MOVE:
            partners = [name for name in unit.data if _moves_with(graph, unit, name)]
            joined.add_edges_from((unit.results[0], name) for name in (*partners, *unit.results[1:]))
            if len(partners) == len(unit.data):
                inner.update(unit.results)
    order = {name: i for i, name in enumerate(joined)}
    producer = {name: unit for unit in units for name in unit.results}
    shares: dict[str, Share] = {}
    for component in nx.connected_components(joined):
        members = tuple(sorted(component, key=order.__getitem__))
        roots = tuple(name for name in members if name not in inner)
        share = Share(members, roots, _owner(members, roots, producer, units), _all_probabilities(roots, producer))
        shares.update(dict.fromkeys(members, share))
    return shares


def _moves_with(graph: Graph, unit: Unit, name: str) -> bool:
    """Whether an operand shares the grid of a move's results: always, but for a Concat's that others read as well."""
    return unit.anchor.op != "Concat" or name in graph.constants or graph.sole_user(name) is not None


def _owner(
    members: Sequence[str], roots: Sequence[str], producer: Mapping[str, Unit], units: Sequence[Unit]
) -> Node | None:
    """The node that computes the first root, or else the first that reads a member."""
    made = next((producer[name].anchor for name in roots if name in producer), None)
    wanted = set(members)
    return made or next((unit.anchor for unit in units if wanted.intersection(unit.data)), None)


def _all_probabilities(roots: Sequence[str], producer: Mapping[str, Unit]) -> bool:
    return all(name in producer and producer[name].operator.probability for name in roots) and bool(roots)
