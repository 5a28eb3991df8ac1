"""Activations whose range is found at run time, for each input anew: no calibration data, and still int8 products.

    MatMul(x, w)     ->  Cast(MatMulInteger(q, w8, z, wz)) * (s * ws)          q, s, z = DynamicQuantizeLinear(x)
    Gemm(x, w, b)    ->  Cast(MatMulInteger(q, w8, z, wz)) * (s * ws) + b
    Conv(x, w, b)    ->  Cast(ConvInteger(q, w8, z, wz)) * (s * ws) + b

As ONNX defines them: uint8, one scale for all of x, the range always holds zero. What is between products stays float.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from graphc.ir.edit import Edit
from graphc.ir.graph import Array, Attribute, Graph, Node, TensorType
from graphc.ir.protobuf import type_to_proto
from graphc.passes.quantize_schemes import Integers, Parameters
from graphc.passes.quantize_weights import Weights

DYNAMIC = "dynamic"
"""What `calibrate` says for this."""

INTEGER: Mapping[str, str] = {"MatMul": "MatMulInteger", "Gemm": "MatMulInteger", "Conv": "ConvInteger"}
"""Operator -> the one that multiplies its integers."""

FLOAT = type_to_proto(TensorType(np.dtype(np.float32), ())).tensor_type.elem_type


def objection(graph: Graph, node: Node, weights: str, symmetric: bool) -> str:
    """Why a product with constant weights cannot take activations quantized at run time; the empty string if it can."""
    if node.op not in INTEGER:
        return f"{node.op} has no form for activations quantized at run time"
    if weights not in ("int8", "uint8"):
        return f"{weights} weights do not multiply activations quantized at run time (int8 and uint8 do)"
    if node.inputs[1] not in graph.constants:
        return "its weights are computed at run time"
    if node.op == "MatMul" and graph.constants[node.inputs[1]].ndim != 2:
        return "its weights are a batch of matrices"
    return "ConvInteger has one zero point for all weights" if node.op == "Conv" and not symmetric else ""


class Dynamic:
    """Writes products in an edit; products that read one value share its integers."""

    def __init__(self, edit: Edit) -> None:
        self._edit = edit
        self._rounded: dict[str, tuple[str, str, str]] = {}

    def write(
        self, node: Node, x: str, weights: Weights, encoded: tuple[Integers, Parameters], bias: Array | None
    ) -> None:
        """`node` as a product of the integers of `x` and those that its weights are; `bias` is [channels] or []."""
        edit, name = self._edit, node.name
        (integers, parameters), window = encoded, node.op == "Conv"
        q, scale, zero_point = self._integers(x, node)
        stored = weights.laid_out(integers) if window else np.ascontiguousarray(integers.T)
        operands = [q, edit.constant(stored, f"{weights.name}_quantized"), zero_point]
        if parameters.zero_point.any():
            offset = parameters.zero_point.ravel()
            offset = offset[0] if (offset == offset[0]).all() else offset
            operands.append(edit.constant(np.asarray(offset), f"{weights.name}_zero_point"))
        kept = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
        attributes: dict[str, Attribute] = {key: node.attributes[key] for key in kept if key in node.attributes}
        sums = edit.add(INTEGER[node.op], operands, attributes, name=f"{name}_sums", near=node)
        sums = edit.add("Cast", [sums], {"to": FLOAT}, name=f"{name}_float", near=node)
        rank = len(weights.shape) if window else 1
        step = edit.constant(_per_channel(parameters.scale, rank), f"{weights.name}_scale")
        factors = [sums, edit.add("Mul", [scale, step], name=f"{name}_step", near=node)]
        types = [edit.graph.types[node.outputs[0]]]
        if bias is None:
            edit.replace(node, "Mul", factors, {}, types=types)
            return
        product = edit.add("Mul", factors, name=f"{name}_product", near=node)
        added = edit.constant(_per_channel(bias.astype(np.float32), rank), f"{name}_bias")
        edit.replace(node, "Add", [product, added], {}, types=types)

    def _integers(self, x: str, node: Node) -> tuple[str, str, str]:
        """The integers of `x`, their scale and their zero point."""
        if x not in self._rounded:
            names = [self._edit.fresh(f"{x}_{what}") for what in ("quantized", "scale", "zero_point")]
            self._edit.add("DynamicQuantizeLinear", [x], name=f"{x}_quantize", outputs=names, near=node)
            self._rounded[x] = names[0], names[1], names[2]
        return self._rounded[x]


def _per_channel(values: npt.NDArray[np.float32], rank: int) -> npt.NDArray[np.float32]:
    """[channels] -> [channels, 1, ...], to broadcast over what follows the channels of a tensor of `rank` axes."""
    return values.reshape(-1, *(1,) * (rank - 2)) if values.size > 1 and rank > 1 else values.reshape(values.shape[:1])
