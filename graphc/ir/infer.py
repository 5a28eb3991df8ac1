"""Types of a node's results, asked of onnx itself (operator schemas, or the body of a graphc function)."""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TypeProto, helper

from graphc.errors import InputError
from graphc.ir.functions import DOMAIN, function_for
from graphc.ir.graph import IR_VERSION, OPSET, Array, Dim, Node, TensorType
from graphc.ir.protobuf import node_to_proto, tensor_to_proto, type_to_proto

MAX_SHAPE_DATA = 1024
"""Constants up to this many elements are shown to shape inference: shapes, axes, pads and repeats are small."""


def type_from_proto(proto: TypeProto, where: str) -> TensorType:
    """Read a tensor type. Raises InputError for sequences, maps, optionals and sparse tensors."""
    if not proto.HasField("tensor_type") or not proto.tensor_type.elem_type:
        raise InputError(
            where,
            f"expected a tensor, got {proto.WhichOneof('value') or 'no type'}.",
            "graphc's graphs hold tensors only; rewrite the model without this value.",
        )
    tensor = proto.tensor_type
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    if not tensor.HasField("shape"):
        return TensorType(dtype, None)
    dims: list[Dim] = [d.dim_value if d.HasField("dim_value") else (d.dim_param or "?") for d in tensor.shape.dim]
    return TensorType(dtype, tuple(dims))


def infer(node: Node, types: Mapping[str, TensorType], constants: Mapping[str, Array]) -> dict[str, TensorType]:
    """Types of `node`'s results from those of its operands; small constant operands decide shapes.

    Raises InputError naming the node where onnx finds a mismatch or knows no such operator.
    """
    proto = node_to_proto(node)
    operands = {name: type_to_proto(types[name]) for name in node.inputs if name}
    if node.domain == DOMAIN:
        function = function_for(node.op)
        found = onnx.shape_inference.infer_function_output_types(
            function, [operands[name] for name in node.inputs if name], list(proto.attribute)
        )
        return {
            name: type_from_proto(kind, node.label) for name, kind in zip(node.outputs, found, strict=False) if name
        }
    if node.domain not in ("", "ai.onnx.ml") or not onnx.defs.has(node.op, OPSET, node.domain):
        raise InputError(
            node.label,
            f"onnx has no operator {node.op!r} in domain {node.domain!r} at opset {OPSET}.",
            "Give its function body in the model, or replace the operator.",
        )
    data = {
        name: tensor_to_proto(name, constants[name])
        for name in node.inputs
        if name in constants and constants[name].size <= MAX_SHAPE_DATA
    }
    try:
        schema = onnx.defs.get_schema(node.op, OPSET, node.domain)
        found_by_name = onnx.shape_inference.infer_node_outputs(
            schema,
            proto,
            operands,
            data,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", 5)],
            ir_version=IR_VERSION,
        )
    except (onnx.shape_inference.InferenceError, onnx.defs.SchemaError, RuntimeError, ValueError) as error:
        shown = ", ".join(f"{name}: {types[name]}" for name in node.inputs if name)
        raise InputError(node.label, f"its operands do not fit ({shown}): {str(error).strip()}") from error
    return {name: type_from_proto(kind, f"{node.label} result '{name}'") for name, kind in found_by_name.items()}
