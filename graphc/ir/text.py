"""The text form of a graph: for people, for golden files, and for its fingerprint. Equal graphs read the same.

graph mnist
input x: float32[1, 1, 28, 28]
constant w: float32[8, 1, 5, 5] sha256 0f3a...
y: float32[1, 8, 28, 28] = Conv(x, w) pads=(2, 2, 2, 2)    # conv1
output y
"""

import hashlib
from collections.abc import Iterator
from weakref import WeakKeyDictionary

import numpy as np

from graphc.ir.graph import Array, Attribute, Graph, Node

_FINGERPRINTS: WeakKeyDictionary[Graph, str] = WeakKeyDictionary()
"""Graphs never change, and a build asks for the same fingerprints again and again."""

SHOWN = 8
"""Constants up to this many elements are written out; others stand as a digest of their bytes."""


def text(graph: Graph) -> str:
    """The whole graph: inputs, constants where they are first read, nodes in order, outputs."""
    return "\n".join(_lines(graph, 12)) + "\n"


def fingerprint(graph: Graph) -> str:
    """SHA-256 (hex) over names, types, structure, attributes, metadata and the bytes of every constant."""
    if graph not in _FINGERPRINTS:
        content = "\n".join(_lines(graph, 64)).encode("utf-8", "surrogateescape")
        _FINGERPRINTS[graph] = hashlib.sha256(content).hexdigest()
    return _FINGERPRINTS[graph]


def digest(array: Array) -> str:
    """SHA-256 (hex) of a tensor's dtype, shape and bytes, mapped weights in place."""
    sha = hashlib.sha256(f"{array.dtype.name}{list(array.shape)}".encode())
    if array.dtype == np.dtype(object):
        sha.update(repr(array.tolist()).encode("utf-8", "surrogateescape"))
    else:
        sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def _lines(graph: Graph, digits: int) -> Iterator[str]:
    yield f"graph {graph.name}"
    for key in sorted(graph.metadata):
        yield f"metadata {key}: {graph.metadata[key]!r}"
    for name in graph.inputs:
        yield f"input {name}: {graph.types[name]}" if name in graph.types else f"input {name}"
    waiting = dict(graph.constants)
    for node in graph.nodes:
        for name in node.reads:
            if name in waiting:
                yield f"constant {name}: {graph.types[name]} {_data(waiting.pop(name), digits)}"
        yield from _node(graph, node, digits)
    for name in sorted(waiting):
        yield f"constant {name}: {graph.types[name]} {_data(waiting[name], digits)}"
    yield from (f"output {name}" for name in graph.outputs)


def _node(graph: Graph, node: Node, digits: int) -> Iterator[str]:
    results = ", ".join(f"{name}: {graph.types[name]}" if name else "_" for name in node.outputs)
    plain = {key: value for key, value in node.attributes.items() if not isinstance(value, Graph)}
    attributes = "".join(f" {key}={_value(plain[key], digits)}" for key in sorted(plain))
    op = f"{node.domain}.{node.op}" if node.domain else node.op
    yield f"{results} = {op}({', '.join(name or '_' for name in node.inputs)}){attributes}    # {node.name}"
    for key in sorted(node.attributes.keys() - plain.keys()):
        body = node.attributes[key]
        if isinstance(body, Graph):
            yield f"    {key}:"
            yield from (f"        {line}" for line in _lines(body, digits))


def _value(value: Attribute, digits: int) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype.name}{list(value.shape)} {_data(value, digits)}"
    if isinstance(value, float):
        return str(np.float32(value))  # the shortest that reads back as the same 32 bits
    return f"({', '.join(_value(item, digits) for item in value)})" if isinstance(value, tuple) else repr(value)


def _data(array: Array, digits: int) -> str:
    if array.size <= SHOWN:
        return "{" + ", ".join(str(item) for item in array.reshape(-1).tolist()) + "}"
    return f"sha256 {digest(array)[:digits]}"
