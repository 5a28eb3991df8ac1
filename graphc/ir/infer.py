"""Types of a node's results, asked of onnx itself (operator schemas, or the body of a graphc function)."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.version_converter
from onnx import NodeProto, TensorProto, TensorShapeProto, TypeProto, helper

from graphc.errors import InputError, UnsupportedError
from graphc.ir.functions import DOMAIN, function_for
from graphc.ir.graph import IR_VERSION, OPSET, Array, Dim, Node, TensorType
from graphc.ir.protobuf import node_to_proto, tensor_to_proto, type_to_proto

ML_OPSET = 5
STANDARD = frozenset(("", "ai.onnx.ml", DOMAIN))
"""Domains whose operators' types are inferred; nodes of others state theirs."""

MAX_SHAPE_DATA = 1024
"""Constants up to this many elements are shown to shape inference: shapes, axes, pads and repeats are small."""


ONNX_ERRORS = (
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    onnx.version_converter.ConvertError,
    RuntimeError,
    ValueError,
    IndexError,
)
"""What onnx's C++ raises for models that are wrong."""


def type_from_proto(proto: TypeProto, where: str) -> TensorType:
    """Read a tensor type. Raises InputError for sequences, maps, optionals and sparse tensors."""
    if not proto.HasField("tensor_type") or not proto.tensor_type.elem_type:
        raise UnsupportedError(
            where,
            f"expected a tensor, got {proto.WhichOneof('value') or 'no type'}.",
            "graphc's graphs hold tensors only; rewrite the model without this value.",
        )
    tensor = proto.tensor_type
    try:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except KeyError as error:
        raise InputError(
            where, f"its element type {tensor.elem_type} is unknown.", "Export the model again."
        ) from error
    if not tensor.HasField("shape"):
        return TensorType(dtype, None)
    return TensorType(dtype, tuple(_dim(d) for d in tensor.shape.dim))


def _dim(proto: TensorShapeProto.Dimension) -> Dim:
    """Files write an open dimension as a symbol, as nothing, or as a negative number."""
    if proto.HasField("dim_value"):
        return int(proto.dim_value) if proto.dim_value >= 0 else "?"
    return proto.dim_param or "?"


def infer(node: Node, types: Mapping[str, TensorType], constants: Mapping[str, Array]) -> dict[str, TensorType]:
    """Types of `node`'s results from those of its operands; small constant operands decide shapes.

    Nodes with subgraphs are `graphc.ir.nested`'s. Raises InputError naming the node where onnx finds a mismatch or
    knows no such operator.
    """
    proto = node_to_proto(node)
    operands = {name: type_to_proto(types[name]) for name in node.inputs if name}
    data = {
        name: tensor_to_proto(name, constants[name])
        for name in operands
        if name in constants and constants[name].size <= MAX_SHAPE_DATA
    }
    ask = _ask_function if node.domain == DOMAIN else _ask_schema
    try:
        found = ask(node, proto, operands, data)
    except ONNX_ERRORS as error:
        shown = ", ".join(f"{name}: {types[name]}" for name in operands)
        problem = f"its operands or attributes do not fit ({shown}): {str(error).strip()}"
        raise InputError(node.label, problem, "Check the shapes given to the model's inputs, and the node.") from error
    unknown = next((name for name in node.results if name not in found), None)
    if unknown is not None:
        raise InputError(node.label, f"onnx cannot tell the type of its result '{unknown}'.", "Replace the node.")
    return {name: type_from_proto(found[name], f"{node.label} result '{name}'") for name in node.results}


def _ask_function(
    node: Node, proto: NodeProto, operands: Mapping[str, TypeProto], _: Mapping[str, TensorProto]
) -> dict[str, TypeProto]:
    found = onnx.shape_inference.infer_function_output_types(
        function_for(node.op), [operands[name] for name in node.inputs if name], list(proto.attribute)
    )
    return dict(zip(node.outputs, found, strict=False))


def _ask_schema(
    node: Node, proto: NodeProto, operands: Mapping[str, TypeProto], data: Mapping[str, TensorProto]
) -> dict[str, TypeProto]:
    schema = schema_of(node)
    wanted = f"{schema.min_input} to {schema.max_input} operands and {schema.min_output} to {schema.max_output} results"
    if not (
        schema.min_input <= len(node.inputs) <= schema.max_input
        and schema.min_output <= len(node.outputs) <= schema.max_output
    ):
        raise ValueError(f"{len(node.inputs)} operands and {len(node.outputs)} results (expected {wanted})")
    missing = next((a.name for a in schema.attributes.values() if a.required and a.name not in node.attributes), None)
    if missing is not None:
        raise ValueError(f"attribute '{missing}' is missing")
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    return dict(
        onnx.shape_inference.infer_node_outputs(
            schema, proto, operands, data, opset_imports=imports, ir_version=IR_VERSION
        )
    )


def schema_of(node: Node) -> onnx.defs.OpSchema:
    """The operator's schema. Raises InputError for operators that onnx does not have (any more)."""
    version = OPSET if not node.domain else ML_OPSET
    known = node.domain in ("", "ai.onnx.ml") and onnx.defs.has(node.op, version, node.domain)
    if not known or onnx.defs.get_schema(node.op, version, node.domain).deprecated:
        problem = f"onnx has no operator {node.op!r} in domain {node.domain!r} at opset {version}."
        raise UnsupportedError(node.label, problem, "Give its function body in the model, or replace the operator.")
    return onnx.defs.get_schema(node.op, version, node.domain)
