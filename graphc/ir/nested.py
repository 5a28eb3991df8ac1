"""Types through If, Loop and Scan: the results of such a node, and of every value inside its subgraphs.

onnx gives up the shape of what a Loop carries. Here a carried value keeps the shape it starts with where the body,
given that shape, returns it: a fixed point, so it holds for every iteration.
"""

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, helper

from graphc.errors import InputError
from graphc.ir.functions import DOMAIN, VERSION, functions_in
from graphc.ir.graph import IR_VERSION, OPSET, Array, Attribute, Graph, Node, TensorType
from graphc.ir.infer import MAX_SHAPE_DATA, ML_OPSET, ONNX_ERRORS, conform, infer, type_from_proto
from graphc.ir.protobuf import forget_output_types, graph_to_proto, node_to_proto, tensor_to_proto, type_to_proto

Types = Mapping[str, TensorType]
Arrays = Mapping[str, Array]


def infer_nested(node: Node, types: Types, constants: Arrays) -> tuple[Node, dict[str, TensorType]]:
    """`node` with the types inside its subgraphs brought up to date, and the types of its results.

    `types` and `constants` cover its operands and all that its subgraphs capture. Raises InputError naming the node
    at fault, which may lie inside.
    """
    if node.op == "Loop" and not node.domain:
        return _infer_loop(node, types, constants)
    outer = GraphProto(name="around")
    outer.node.append(node_to_proto(node))
    for name in node.results:
        outer.output.append(onnx.ValueInfoProto(name=name))
    inferred = _inferred(outer, node, node.reads, types, constants)
    attributes: dict[str, Attribute] = dict(node.attributes)
    for proto in inferred.node[0].attribute:
        body = node.attributes[proto.name]
        if isinstance(body, Graph):
            attributes[proto.name] = retype(body, proto.g, types, constants)
    found = {value.name: value.type for value in inferred.output}
    changed = replace(node, attributes=attributes)
    return changed, {name: type_from_proto(found[name], f"{node.label} result '{name}'") for name in node.results}


def _infer_loop(node: Node, types: Types, constants: Arrays) -> tuple[Node, dict[str, TensorType]]:
    """Loop(trips?, go?, state...) -> (state..., scans...); its body: (i, go, state...) -> (go, state..., scans...)."""
    body = node.attributes.get("body")
    count = len(node.inputs) - 2
    if not isinstance(body, Graph) or len(body.inputs) != count + 2 or len(body.outputs) != len(node.outputs) + 1:
        raise InputError(node.label, "its body does not fit its operands and results.", "Export the model again.")
    starts = [types[name] for name in node.inputs[2:]]
    carried = starts
    while True:  # each round opens at least one more dimension, so this ends
        typed = _typed_body(node, body, carried, types, constants)
        ends = [typed.types[name] for name in typed.outputs[1 : count + 1]]
        settled = [start if start == end else _open(start, end) for start, end in zip(carried, ends, strict=True)]
        if settled == carried:
            break
        carried = settled
    times = trips(node, typed, constants)
    results = list(carried)
    for name in typed.outputs[count + 1 :]:
        one = typed.types[name]
        results.append(replace(one, shape=None if one.shape is None else (times, *one.shape)))
    found = {name: kind for name, kind in zip(node.outputs, results, strict=True) if name}
    return replace(node, attributes={**node.attributes, "body": typed}), found


def _typed_body(node: Node, body: Graph, carried: list[TensorType], types: Types, constants: Arrays) -> Graph:
    proto = graph_to_proto(body)
    for value, kind in zip(proto.input[2:], carried, strict=True):
        value.type.CopyFrom(type_to_proto(kind))
    for value, default in zip(proto.input[:2], (np.int64, np.bool_), strict=True):
        if not value.type.tensor_type.HasField("shape"):
            value.type.CopyFrom(type_to_proto(TensorType(np.dtype(default), ())))
    forget_output_types(proto)
    return retype(body, _inferred(proto, node, body.captures, types, constants), types, constants)


def _open(start: TensorType, end: TensorType) -> TensorType:
    """What both shapes have in common."""
    if start.shape is None or end.shape is None or len(start.shape) != len(end.shape):
        return replace(start, shape=None)
    return replace(start, shape=tuple(a if a == b else "?" for a, b in zip(start.shape, end.shape, strict=True)))


def trips(node: Node, body: Graph, constants: Arrays) -> int | str:
    """How often a Loop runs, where it can be told: a constant count, and a condition that stays true."""
    limit = constants.get(node.inputs[0]) if node.inputs[0] else None
    start = constants.get(node.inputs[1]) if node.inputs[1] else None
    if limit is None or (node.inputs[1] and (start is None or not start.all())):
        return "?"
    last = body.outputs[0]
    while last in body.producers and body.producers[last].op == "Identity":
        last = body.producers[last].inputs[0]
    stays = last == body.inputs[1] or (last in body.constants and bool(body.constants[last].all()))
    return max(int(limit.item()), 0) if stays else "?"


def _inferred(graph: GraphProto, node: Node, reads: tuple[str, ...], types: Types, constants: Arrays) -> GraphProto:
    """`graph`, whose free names are `reads`, as onnx's inference fills it in."""
    for name in reads:
        graph.input.append(onnx.ValueInfoProto(name=name, type=type_to_proto(types[name])))
        if name in constants and constants[name].size <= MAX_SHAPE_DATA:
            graph.initializer.append(tensor_to_proto(name, constants[name]))
    for inner in graph.node:
        _forget_types(inner)
    model = helper.make_model(
        graph,
        ir_version=IR_VERSION,
        opset_imports=[
            helper.make_opsetid("", OPSET),
            helper.make_opsetid("ai.onnx.ml", ML_OPSET),
            helper.make_opsetid(DOMAIN, VERSION),
        ],
        functions=functions_in(graph),
    )
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except ONNX_ERRORS as error:
        raise InputError(
            node.label, f"its subgraphs do not fit: {str(error).strip().rstrip('.')}.", "Export the model again."
        ) from error


def _forget_types(node: NodeProto) -> None:
    """Drop the types at the borders of subgraphs: inference finds them anew, and takes old ones for true."""
    for attribute in node.attribute:
        for value in attribute.g.input:
            value.ClearField("type")
        forget_output_types(attribute.g)
        for inner in attribute.g.node:
            _forget_types(inner)


def retype(graph: Graph, proto: GraphProto, outer: Types, outer_constants: Arrays) -> Graph:
    """`graph` with a type for every value: what `proto`, the same graph after onnx's inference, says, or finer.

    `outer` and `outer_constants` cover what it captures. Raises InputError naming the node whose operands do not fit.
    """
    entries = [*proto.input, *proto.value_info, *proto.output]
    found = {value.name: value.type for value in entries if value.type.WhichOneof("value")}
    types = {name: outer[name] for name in graph.captures}
    types.update((name, TensorType(array.dtype, tuple(array.shape))) for name, array in graph.constants.items())
    for name in graph.inputs:
        if name not in found and name not in graph.types:
            raise InputError(f"graph '{graph.name}'", f"its input '{name}' has no type.", "Export the model again.")
        types[name] = type_from_proto(found[name], f"input '{name}'") if name in found else graph.types[name]
    constants = ChainMap(dict(graph.constants), dict(outer_constants))
    nodes: list[Node] = []
    for node in graph.nodes:
        changed, known = _typed(node, found, types, constants)
        types.update(known)
        nodes.append(changed)
    return replace(graph, nodes=tuple(nodes), types=types)


def _typed(node: Node, found: Mapping[str, onnx.TypeProto], types: Types, constants: Arrays) -> tuple[Node, Types]:
    if node.subgraphs:
        return infer_nested(node, types, constants)
    known = {
        name: type_from_proto(found[name], f"{node.label} result '{name}'") for name in node.results if name in found
    }
    if len(known) == len(node.results) and all(kind.is_static for kind in known.values()):
        conform(node, types)
        return node, known
    return node, refined(known, infer(node, types, constants))


def refined(first: Types, second: Types) -> dict[str, TensorType]:
    """For each name of either the more telling type: numbers before symbols, symbols before '?'."""
    merged = {**second}
    for name, kind in first.items():
        other = second.get(name, kind)
        if kind.shape is None or other.shape is None or len(kind.shape) != len(other.shape):
            merged[name] = other if kind.shape is None else kind
        else:
            dims = tuple(
                b if isinstance(b, int) or a == "?" else a for a, b in zip(kind.shape, other.shape, strict=True)
            )
            merged[name] = replace(kind, shape=dims)
    return merged
