"""What must hold of every graph. The pipeline asks after each pass, so that a broken pass is named at once."""

from collections import ChainMap
from collections.abc import Mapping

import numpy as np

from graphc.errors import InputError, InternalError
from graphc.ir.graph import Array, Graph, Node, TensorType
from graphc.ir.infer import STANDARD, infer
from graphc.ir.nested import infer_nested

CHUNK = 1 << 22
"""Elements looked at in one go: mapped weights are never read whole."""


def check(graph: Graph) -> None:
    """Raise InternalError naming the node or value that breaks the graph's rules.

    Names are unique, every operand is defined before it is read, every value has one type, constants fit theirs, and
    each node's results have the types that its operands give. Values are `check_values`' matter.
    """
    _check_names(graph, frozenset())
    _check_types(graph, {}, {})


def check_values(graph: Graph) -> None:
    """Raise InputError naming the first constant that holds NaN; reads every weight once, in pieces."""
    for name, array in graph.constants.items():
        if has_nan(array):
            raise InputError(f"tensor '{name}'", "it holds NaN.", "Retrain or repair the weights.")
    for node in graph.nodes:
        for body in node.subgraphs:
            check_values(body)


def has_nan(array: Array) -> bool:
    """Whether a tensor of any float or complex type holds a NaN; reads it in pieces."""
    if not (array.dtype.kind in "fc" or array.dtype.name.startswith(("bfloat", "float"))):
        return False
    flat = array.reshape(-1)
    return any(bool(np.isnan(flat[i : i + CHUNK]).any()) for i in range(0, flat.size, CHUNK))


def _check_names(graph: Graph, outer: frozenset[str]) -> None:
    defined: set[str] = set()

    def define(name: str, where: str) -> None:
        if name in defined or name in outer or not name:
            raise InternalError(where, f"defines '{name}', which is defined already." if name else "has no name.")
        if name not in graph.types:
            raise InternalError(where, f"has no type for '{name}'.")
        defined.add(name)

    for name in (*graph.inputs, *graph.constants):
        define(name, f"graph '{graph.name}'")
    labels: set[str] = set()
    for node in graph.nodes:
        unknown = next((name for name in node.reads if name not in defined and name not in outer), None)
        if unknown is not None:
            raise InternalError(node.label, f"reads '{unknown}', which no node before it produces.")
        if not node.name or node.name in labels:
            raise InternalError(node.label, "has no name, or one that another node has.")
        labels.add(node.name)
        for body in node.subgraphs:
            _check_names(body, outer | defined)
        for name in node.results:
            define(name, node.label)
    lost = next((name for name in graph.outputs if name not in defined and name not in outer), None)
    if lost is not None:
        raise InternalError(f"graph '{graph.name}'", f"its output '{lost}' is produced by nothing.")


def _check_types(graph: Graph, outer: Mapping[str, TensorType], outer_constants: Mapping[str, Array]) -> None:
    for name, array in graph.constants.items():
        kind = TensorType(array.dtype, tuple(array.shape))
        if graph.types[name] != kind:
            raise InternalError(f"tensor '{name}'", f"is {kind} and its type says {graph.types[name]}.")
    types = ChainMap(dict(graph.types), dict(outer))
    constants = ChainMap(dict(graph.constants), dict(outer_constants))
    for node in graph.nodes:
        if node.domain in STANDARD:
            _check_node(node, types, constants)
        for body in node.subgraphs:
            _check_types(body, types, constants)


def _check_node(node: Node, types: Mapping[str, TensorType], constants: Mapping[str, Array]) -> None:
    found = infer_nested(node, types, constants)[1] if node.subgraphs else infer(node, types, constants)
    for name, kind in found.items():
        if not _agree(types[name], kind):
            raise InternalError(node.label, f"'{name}' is {kind} by its operands and {types[name]} by its type.")


def _agree(stated: TensorType, found: TensorType) -> bool:
    """Whether both can be true: equal where both are known."""
    if stated.dtype != found.dtype or stated.shape is None or found.shape is None:
        return stated.dtype == found.dtype
    return len(stated.shape) == len(found.shape) and all(
        a == b or isinstance(a, str) or isinstance(b, str) for a, b in zip(stated.shape, found.shape, strict=True)
    )
