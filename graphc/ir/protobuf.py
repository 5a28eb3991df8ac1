"""Between graphc's values and ONNX protobuf, both ways; the importer, the exporter and type inference build on it."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from graphc.errors import InputError, UnsupportedError
from graphc.ir.graph import Array, Attribute, Graph, Node, TensorType


def tensor_to_proto(name: str, array: Array) -> TensorProto:
    """An array as ONNX stores it. `name` may be empty (attributes)."""
    if array.dtype == np.dtype(object):
        return helper.make_tensor(name, TensorProto.STRING, array.shape, [str(s).encode() for s in array.ravel()])
    return numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)


def attribute_to_proto(name: str, value: Attribute) -> AttributeProto:
    if isinstance(value, Graph):
        proto = graph_to_proto(value)
        _copy_captured_outputs(proto, value)
        return helper.make_attribute(name, proto)
    if isinstance(value, np.ndarray):
        return helper.make_attribute(name, tensor_to_proto("", value))
    if isinstance(value, str):
        return helper.make_attribute(name, _bytes(value))
    if isinstance(value, tuple):
        items = [_bytes(item) if isinstance(item, str) else item for item in value]
        kind = AttributeProto.FLOATS if any(isinstance(item, float) for item in items) else AttributeProto.INTS
        return helper.make_attribute(name, items, attr_type=None if items and isinstance(items[0], bytes) else kind)
    return helper.make_attribute(name, value)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def attribute_from_proto(
    proto: AttributeProto, graph_from_proto: Callable[[GraphProto], Graph], where: str
) -> Attribute:
    """Read one attribute; `graph_from_proto` reads a subgraph. Raises InputError for kinds that graphs cannot hold."""
    if proto.type in _PLAIN:
        return _PLAIN[proto.type](proto)
    if proto.type == AttributeProto.TENSOR:
        return tensor_from_proto(proto.t, where)
    if proto.type == AttributeProto.GRAPH:
        return graph_from_proto(proto.g)
    known = proto.type in AttributeProto.AttributeType.values()
    kind = AttributeProto.AttributeType.Name(proto.type) if known else f"number {proto.type}"
    raise UnsupportedError(
        where,
        f"attribute '{proto.name}' is of kind {kind}, which graphc cannot hold.",
        "Only numbers, strings, tensors and graphs are supported.",
    )


def _text(data: bytes) -> str:
    """Strings in ONNX are bytes by right and UTF-8 by custom; others survive the way there and back."""
    return data.decode("utf-8", "surrogateescape")


_PLAIN: Mapping[int, Callable[[AttributeProto], Attribute]] = {
    AttributeProto.INT: lambda proto: int(proto.i),
    AttributeProto.FLOAT: lambda proto: float(proto.f),
    AttributeProto.STRING: lambda proto: _text(proto.s),
    AttributeProto.INTS: lambda proto: tuple(int(i) for i in proto.ints),
    AttributeProto.FLOATS: lambda proto: tuple(float(f) for f in proto.floats),
    AttributeProto.STRINGS: lambda proto: tuple(_text(s) for s in proto.strings),
}


def tensor_from_proto(proto: TensorProto, where: str) -> Array:
    """Read a tensor whose data is inside the protobuf. Raises InputError when its bytes do not fit its shape."""
    try:
        if proto.data_location == TensorProto.EXTERNAL:
            raise ValueError("it lies in another file")
        array: Array = numpy_helper.to_array(proto)
    except (ValueError, TypeError, KeyError) as error:
        problem = f"its data does not fit type {proto.data_type} and shape {list(proto.dims)}: {error}."
        raise InputError(where, problem, "The file is damaged; export it again.") from error
    return array


def node_to_proto(node: Node) -> NodeProto:
    proto = helper.make_node(node.op, node.inputs, node.outputs, name=node.name or None, domain=node.domain or None)
    proto.attribute.extend(attribute_to_proto(name, node.attributes[name]) for name in sorted(node.attributes))
    return proto


def type_to_proto(kind: TensorType) -> onnx.TypeProto:
    """The ONNX form of a type; an unnamed open dimension has neither value nor name there."""
    shape = None if kind.shape is None else [None if d == "?" else d for d in kind.shape]
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(kind.dtype), shape)


def graph_to_proto(graph: Graph, constants: Mapping[str, TensorProto] | None = None) -> GraphProto:
    """The whole graph; `constants` replaces its own tensors (with references to external data, say)."""
    tensors = constants if constants is not None else {n: tensor_to_proto(n, a) for n, a in graph.constants.items()}
    proto = GraphProto(name=graph.name or "graph")
    inputs = {name: type_to_proto(graph.types[name]) if name in graph.types else None for name in graph.inputs}
    proto.input.extend(onnx.ValueInfoProto(name=name, type=kind) for name, kind in inputs.items())
    proto.output.extend(_value_info(graph, name) for name in graph.outputs)
    proto.initializer.extend(tensors.values())
    proto.node.extend(node_to_proto(node) for node in graph.nodes)
    return proto


def _copy_captured_outputs(proto: GraphProto, graph: Graph) -> None:
    """ONNX lets no subgraph return a value of the graph around it: it returns a copy."""
    for i, output in enumerate(proto.output):
        if output.name in graph.captures:
            copy = f"{output.name}_from_{proto.name}_{i}"
            proto.node.append(helper.make_node("Identity", [output.name], [copy], name=copy))
            output.name = copy


def forget_output_types(graph: GraphProto) -> None:
    """Drop the types of a graph's outputs; those of constants are set, since inference does not look there."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for output in graph.output:
        output.ClearField("type")
        if output.name in constants:
            tensor = constants[output.name]
            output.type.CopyFrom(helper.make_tensor_type_proto(tensor.data_type, tensor.dims))


def _value_info(graph: Graph, name: str) -> onnx.ValueInfoProto:
    """A graph output; without a type where it is captured or of unknown rank (a type without a shape is invalid)."""
    kind = graph.types.get(name)
    return onnx.ValueInfoProto(name=name, type=None if kind is None or kind.shape is None else type_to_proto(kind))
