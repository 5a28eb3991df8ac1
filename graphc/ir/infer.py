"""Types of a node's results, asked of onnx itself (operator schemas, or the body of a graphc function)."""

from collections.abc import Mapping
from functools import cache

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


LIKE_OPERAND = frozenset(("GroupNormalization",))
"""Operators whose result has the type of their first operand, which onnx does not tell."""


def infer(node: Node, types: Mapping[str, TensorType], constants: Mapping[str, Array]) -> dict[str, TensorType]:
    """Types of `node`'s results from those of its operands; small constant operands decide shapes.

    Nodes with subgraphs are `graphc.ir.nested`'s. Raises InputError naming the node where onnx finds a mismatch or
    knows no such operator.
    """
    conform(node, types)
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
        problem = f"its operands or attributes do not fit ({shown}): {str(error).strip().rstrip('.')}."
        raise InputError(node.label, problem, "Check the shapes given to the model's inputs, and the node.") from error
    if node.op in LIKE_OPERAND and not found[node.outputs[0]].tensor_type.HasField("shape"):
        found[node.outputs[0]] = operands[node.inputs[0]]
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
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    return dict(
        onnx.shape_inference.infer_node_outputs(
            schema_of(node), proto, operands, data, opset_imports=imports, ir_version=IR_VERSION
        )
    )


def conform(node: Node, types: Mapping[str, TensorType]) -> None:
    """Check what onnx's inference lets pass: counts of operands and results, required attributes, element types.

    Raises InputError naming the node.
    """
    if node.domain == DOMAIN:
        return
    schema = schema_of(node)
    missing = next((a for a in _required(node.op, node.domain) if a not in node.attributes), None)
    problem = f"attribute '{missing}' is missing" if missing is not None else ""
    if not schema.min_input <= len(node.inputs) <= schema.max_input:
        problem = f"{len(node.inputs)} operands (expected {schema.min_input} to {schema.max_input})"
    elif not schema.min_output <= len(node.outputs) <= schema.max_output:
        problem = f"{len(node.outputs)} results (expected {schema.min_output} to {schema.max_output})"
    problem = problem or _misfit(node, schema, types)
    if problem:
        raise InputError(node.label, f"{problem}.", "Export the model again, or mend the node.")


def _misfit(node: Node, schema: onnx.defs.OpSchema, types: Mapping[str, TensorType]) -> str:
    """What is wrong with the operands' element types: one that the operator does not take, or two that differ."""
    formals, allowed = _formals(node.op, node.domain)
    bound: dict[str, str] = {}
    for i, name in enumerate(node.inputs):
        label, kind, homogeneous = formals[min(i, len(formals) - 1)]
        if not name or kind not in allowed:
            continue
        got = _type_string(types[name].dtype)
        if got not in allowed[kind]:
            return f"operand {label} is {got}, which {node.op} does not take at opset {schema.since_version}"
        first = bound.setdefault(kind, got)
        if homogeneous and first != got:
            return f"operand {label} is {got} where another one is {first}"
    if node.op == "Mod" and not node.get_int("fmod", 0) and "float" in bound["T"]:
        return "fmod=0 on floats"  # in no schema, and taken by no runtime
    return ""


@cache
def _type_string(dtype: np.dtype[np.generic]) -> str:
    return f"tensor({TensorProto.DataType.Name(helper.np_dtype_to_tensor_dtype(dtype)).lower()})"


@cache
def _required(op: str, domain: str) -> tuple[str, ...]:
    schema = _schema(op, domain)
    return tuple(a.name for a in schema.attributes.values() if a.required) if schema is not None else ()


@cache
def _formals(op: str, domain: str) -> tuple[list[tuple[str, str, bool]], dict[str, frozenset[str]]]:
    """(name, type, whether all of a variadic one agree) of each operand; the element types behind each type's name."""
    schema = _schema(op, domain)
    if schema is None:
        return [], {}
    formals = [(f.name, f.type_str, f.is_homogeneous) for f in schema.inputs]
    allowed = {kind: frozenset((kind,)) for _, kind, _ in formals if kind.startswith("tensor(")}
    return formals, allowed | {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints}


def schema_of(node: Node) -> onnx.defs.OpSchema:
    """The operator's schema. Raises UnsupportedError for operators that onnx does not have (any more)."""
    schema = _schema(node.op, node.domain)
    if schema is None:
        problem = f"onnx has no operator {node.op!r} in domain {node.domain or 'ai.onnx'!r} at opset {OPSET}."
        raise UnsupportedError(node.label, problem, "Give its function body in the model, or replace the operator.")
    return schema


@cache
def _schema(op: str, domain: str) -> onnx.defs.OpSchema | None:
    version = {"": OPSET, "ai.onnx.ml": ML_OPSET}.get(domain)
    if version is None or not onnx.defs.has(op, version, domain):
        return None
    schema = onnx.defs.get_schema(op, version, domain)
    return None if schema.deprecated else schema
