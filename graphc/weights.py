"""Weights leave the protobuf: big ones become arrays at once, so that onnx's tools work on small models only."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper

from graphc.errors import InputError, UnsupportedError
from graphc.external import Folder
from graphc.ir.check import has_nan
from graphc.ir.graph import Array, TensorType
from graphc.ir.infer import MAX_SHAPE_DATA
from graphc.ir.protobuf import tensor_from_proto, tensor_to_proto, type_to_proto

ONNX = ("", "ai.onnx")
"""Both names of ONNX's own domain."""


class Weights:
    """Arrays taken out of a model. What stays in it are typed inputs, and constants small enough to decide shapes."""

    def __init__(self, folder: Folder, allow_nan: bool) -> None:
        self.arrays: dict[str, Array] = {}
        self._folder = folder
        self._allow_nan = allow_nan

    def take(self, graph: GraphProto) -> None:
        """Move big constants out of `graph`, those of its subgraphs too (under names that are free everywhere)."""
        self._take(graph, graph)

    def _take(self, graph: GraphProto, top: GraphProto) -> None:
        _constants_to_initializers(graph)
        for node in graph.node:
            for body in subgraphs(node):
                self._take(body, top)
        results = {output.name for output in graph.output}
        small: list[TensorProto] = []
        for tensor in graph.initializer:
            array = self.read(tensor)
            may_move = graph is top or tensor.name not in results
            if array.size > MAX_SHAPE_DATA and array.dtype != np.dtype(object) and may_move:
                self._keep(tensor.name if graph is top else _lifted(tensor.name, graph, top), array, top)
            else:
                is_external = tensor.data_location == TensorProto.EXTERNAL
                small.append(tensor_to_proto(tensor.name, array) if is_external else tensor)
        set_field(graph.initializer, small)

    def _keep(self, name: str, array: Array, top: GraphProto) -> None:
        kind = TensorType(array.dtype, tuple(array.shape))
        top.input.append(onnx.ValueInfoProto(name=name, type=type_to_proto(kind)))
        self.arrays[name] = array

    def read(self, tensor: TensorProto) -> Array:
        """The tensor's data, read-only. Raises InputError where it does not fit its shape, or is NaN."""
        where = f"tensor '{tensor.name}'"
        if tensor.HasField("segment") or any(d < 0 for d in tensor.dims):
            raise InputError(
                where, f"it is segmented or has a negative dimension {list(tensor.dims)}.", "Export the model again."
            )
        if tensor.data_location == TensorProto.EXTERNAL:
            return self._folder.tensor(tensor)
        array = tensor_from_proto(tensor, where)
        array.setflags(write=False)
        if not self._allow_nan and has_nan(array):
            raise InputError(
                where,
                "it holds NaN.",
                "Retrain or repair the weights; load(..., allow_nan=True) takes them as they are.",
            )
        return array


def _constants_to_initializers(graph: GraphProto) -> None:
    if not any(node.op_type == "Constant" and node.domain in ONNX for node in graph.node):
        return
    nodes = []
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in ONNX:
            graph.initializer.append(_constant_tensor(node))
        else:
            nodes.append(node)
    set_field(graph.node, nodes)


def _constant_tensor(node: NodeProto) -> TensorProto:
    """What a Constant node holds, as a tensor named like its result."""
    if len(node.attribute) != 1 or len(node.output) != 1:
        raise InputError(
            describe(node),
            f"it has {len(node.attribute)} values and {len(node.output)} results (expected 1 and 1).",
            "Export the model again.",
        )
    attribute = node.attribute[0]
    if attribute.name == "value" and attribute.type == AttributeProto.TENSOR:
        tensor = TensorProto()
        tensor.CopyFrom(attribute.t)
        tensor.name = node.output[0]
        return tensor
    forms: dict[str, tuple[int, Any]] = {
        "value_int": (AttributeProto.INT, np.int64),
        "value_ints": (AttributeProto.INTS, np.int64),
        "value_float": (AttributeProto.FLOAT, np.float32),
        "value_floats": (AttributeProto.FLOATS, np.float32),
        "value_string": (AttributeProto.STRING, object),
        "value_strings": (AttributeProto.STRINGS, object),
    }
    kind, dtype = forms.get(attribute.name, (None, None))
    if attribute.type != kind:
        raise UnsupportedError(
            describe(node),
            f"its value is given as '{attribute.name}', which graphc cannot read.",
            "Store it as a dense tensor.",
        )
    value = helper.get_attribute_value(attribute)
    if dtype is object:
        value = [s.decode() for s in value] if isinstance(value, list) else value.decode()
    return tensor_to_proto(node.output[0], np.array(value, dtype))


def _lifted(name: str, graph: GraphProto, top: GraphProto) -> str:
    """The name that a constant of `graph` gets in `top`; its readers follow."""
    new = free_name(name, set(_names(top)))
    _rename_reads(graph, name, new)
    return new


def _names(graph: GraphProto) -> Iterator[str]:
    yield from (tensor.name for tensor in graph.initializer)
    yield from (value.name for value in graph.input)
    for node in graph.node:
        yield from node.output
        for body in subgraphs(node):
            yield from _names(body)


def _rename_reads(graph: GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new
        for subgraph in subgraphs(node):
            _rename_reads(subgraph, old, new)
    for output in graph.output:
        if output.name == old:
            output.name = new


def subgraphs(node: NodeProto) -> list[GraphProto]:
    return [attribute.g for attribute in node.attribute if attribute.type == AttributeProto.GRAPH]


def describe(node: NodeProto) -> str:
    return f"{node.op_type} '{node.name or next(iter(node.output), '?')}'"


def set_field(field: Any, values: Sequence[Message]) -> None:
    """Set a repeated protobuf field to `values`, which may be elements of it."""
    copies = []
    for value in values:
        copy = type(value)()
        copy.CopyFrom(value)
        copies.append(copy)
    del field[:]
    field.extend(copies)


def free_name(name: str, taken: set[str]) -> str:
    """`name`, or `name_1`, `name_2`, ..."""
    return name if name not in taken else next(n for n in (f"{name}_{i}" for i in count(1)) if n not in taken)
