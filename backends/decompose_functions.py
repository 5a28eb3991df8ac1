"""Operators that ONNX itself defines by a function of simpler ones: their body, in their place."""

from collections.abc import Iterable, Mapping, MutableSequence

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TypeProto, helper

from graphc.backends.decompose_rewrite import Decline, Rewrite
from graphc.errors import InputError
from graphc.importer import load
from graphc.ir.graph import IR_VERSION, OPSET, Graph, Node
from graphc.ir.protobuf import node_to_proto, tensor_to_proto, type_to_proto
from graphc.passes.fold import fold


def expand(rewrite: Rewrite) -> None:
    """The function body that onnx gives for this operator and these types."""
    body = body_of(rewrite.graph, rewrite.node)
    wanted = [i for i in range(len(rewrite.node.outputs)) if rewrite.wants(i)]
    results = [""] * len(rewrite.node.outputs)
    for i, result, inner in zip(wanted, rewrite.splice(body, body.inputs), body.outputs, strict=True):
        stated = rewrite.type(rewrite.node.outputs[i])
        # Some bodies give [1] where the operator gives a scalar.
        same = not stated.is_static or stated.shape == body.types[inner].shape
        results[i] = result if same else rewrite.reshape(result, *stated.dims)
    rewrite.finish(*results)


def double_normalization(rewrite: Rewrite) -> None:
    """A normalization of float64, for which there is no kernel."""
    if rewrite.type(rewrite.input(0)).dtype.itemsize < 8:
        raise Decline
    expand(rewrite)


def body_of(graph: Graph, node: Node) -> Graph:
    """The folded body as a graph; its inputs are those operands of `node` that are no constants, each once.

    Raises Decline where onnx gives no body, or one that does not fit the opset of graphs.
    """
    schema = onnx.defs.get_schema(node.op, OPSET, node.domain)
    proto = node_to_proto(node)
    _fill_defaults(proto, schema)
    function = _function(schema, proto, graph, node)
    model = _model(function, proto, graph, node)
    try:
        return fold(load(model, allow_nan=True))
    except InputError as error:
        raise Decline from error


def _fill_defaults(proto: NodeProto, schema: onnx.defs.OpSchema) -> None:
    given = {attribute.name for attribute in proto.attribute}
    for name, attribute in schema.attributes.items():
        if name not in given and attribute.default_value.type != AttributeProto.UNDEFINED:
            proto.attribute.append(attribute.default_value)


def _function(schema: onnx.defs.OpSchema, proto: NodeProto, graph: Graph, node: Node) -> FunctionProto:
    if schema.has_function:
        return schema.function_body
    if not schema.has_context_dependent_function:
        raise Decline
    types = [type_to_proto(graph.types[name]) if name else TypeProto() for name in node.inputs]
    made = schema.get_context_dependent_function(
        proto.SerializeToString(), [kind.SerializeToString() for kind in types]
    )
    if not made:
        raise Decline
    return FunctionProto.FromString(made)


def _model(function: FunctionProto, proto: NodeProto, graph: Graph, node: Node) -> ModelProto:
    """The function's nodes as a model of their own, attributes filled in, operands under the names they have here."""
    operands = {name: node.inputs[i] if i < len(node.inputs) else "" for i, name in enumerate(function.input)}
    present = list(dict.fromkeys(name for name in operands.values() if name))
    taken = {*present, *function.output}
    inner = {name for body in function.node for name in body.output if name}
    names = {**{name: _apart(name, taken) for name in inner - set(function.output)}, **operands}
    results = [f for f, name in zip(function.output, node.outputs, strict=False) if name and _is_read(graph, name)]
    names.update({name: _apart(f"{name}_result", {*present}) for name in function.output})
    nodes = [_filled(body, {a.name: a for a in proto.attribute}, names) for body in function.node]
    inputs = [
        onnx.ValueInfoProto(name=n, type=type_to_proto(graph.types[n])) for n in present if n not in graph.constants
    ]
    tensors = [tensor_to_proto(name, graph.constants[name]) for name in present if name in graph.constants]
    outputs = [onnx.ValueInfoProto(name=names[name]) for name in results]
    body = GraphProto(name=node.op, node=nodes, input=inputs, output=outputs, initializer=tensors)
    imports = list(function.opset_import) or [helper.make_opsetid("", OPSET)]
    return ModelProto(ir_version=IR_VERSION, graph=body, opset_import=imports)


def _is_read(graph: Graph, name: str) -> bool:
    return name in graph.users or name in graph.outputs


def _apart(name: str, taken: Iterable[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _filled(node: NodeProto, attributes: Mapping[str, AttributeProto], names: Mapping[str, str]) -> NodeProto:
    """A copy with renamed values, and attributes that refer to the function's replaced by the node's own."""
    copy = NodeProto()
    copy.CopyFrom(node)
    _rename(copy.input, names)
    _rename(copy.output, names)
    del copy.attribute[:]
    for attribute in node.attribute:
        found = attributes.get(attribute.ref_attr_name) if attribute.ref_attr_name else attribute
        if found is None:
            continue
        own = AttributeProto()
        own.CopyFrom(found)
        own.name = attribute.name
        if own.HasField("g"):
            bodies = [_filled(body, attributes, names) for body in own.g.node]
            del own.g.node[:]
            own.g.node.extend(bodies)
            for output in own.g.output:
                output.name = names.get(output.name, output.name)
        copy.attribute.append(own)
    return copy


def _rename(values: MutableSequence[str], names: Mapping[str, str]) -> None:
    for i, name in enumerate(values):
        values[i] = names.get(name, name)
