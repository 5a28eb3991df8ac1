"""MatMulInteger and ConvInteger: integer products whose int32 sums are their result, as dynamic quantization has them.

MatMulInteger(a, w, a_zp, w_zp)   ->   MatMul(a, w, w_zp; a_zp)               a_zp may be computed at run time
ConvInteger(x, w, x_zp, w_zp)     ->   Conv(x, w, w_zp; x_zp)                 x_zp constant
ConvInteger(x, w, x_zp, w_zp)     ->   Conv(int16(x) - int16(x_zp), w, w_zp)  x_zp computed: padding must be 0
"""

from collections.abc import Callable, Mapping

import numpy as np

from graphc.backends.integer_linear import window
from graphc.backends.integer_region import Refusal, Region
from graphc.ir.graph import Array, Attribute, Node, TensorType
from graphc.ir.protobuf import type_to_proto

INT16, INT32 = np.dtype(np.int16), np.dtype(np.int32)


def matmul_integer(region: Region, node: Node) -> str:
    """A product with constant weights; Refusal where they, or their zero points, are computed."""
    weights, offsets = _weights(region, node, node_axis=-1)
    if region.rank(node.inputs[0]) < 2 or weights.ndim != 2:
        raise Refusal("an operand is no matrix")
    zero_point, computed = _zero_point(region, node)
    inputs = [node.inputs[0], region.edit.constant(weights, f"{region.name(node)}_weights"), "", "", offsets]
    attributes: dict[str, Attribute] = {"a_zero_point": zero_point}
    return region.emit("MatMul", [*inputs, *computed], attributes, INT32, node)


def conv_integer(region: Region, node: Node) -> str:
    """A convolution with constant weights; Refusal as for `matmul_integer`."""
    weights, offsets = _weights(region, node, node_axis=0)
    x = node.inputs[0]
    zero_point, computed = _zero_point(region, node)
    if computed:
        x = _centered(region, node, x, computed[0])
    inputs = [x, region.edit.constant(weights, f"{region.name(node)}_weights"), "", "", offsets]
    state = {"group": node.get_int("group", 1), "x_zero_point": zero_point}
    return region.emit("Conv", inputs, {**window(region, node, weights.shape[2:]), **state}, INT32, node)


def _weights(region: Region, node: Node, node_axis: int) -> tuple[Array, str]:
    """Weights as int8, and the name of their zero points (int32, one per channel; the empty string for none)."""
    weights = region.graph.constant(node.inputs[1])
    name = node.inputs[3] if len(node.inputs) > 3 else ""
    given = region.graph.constant(name) if name else np.zeros(1, np.int32)
    if weights is None or given is None:
        raise Refusal("its weights are computed at run time")
    channels = weights.shape[node_axis]
    if given.size not in (1, channels):
        raise Refusal(f"'{name}' has {given.size} zero points for {channels} channels")
    offsets = given.astype(np.int32).ravel()
    if weights.dtype == np.uint8:
        weights, offsets = (weights.astype(np.int16) - 128).astype(np.int8), offsets - np.int32(128)
    if not offsets.any():
        return weights, ""
    spread = np.broadcast_to(offsets, channels)
    return weights, region.edit.constant(np.ascontiguousarray(spread), f"{region.name(node)}_zero_point")


def _zero_point(region: Region, node: Node) -> tuple[int, list[str]]:
    """(the zero point of the activations, nothing), or (0, its name) where it is computed at run time."""
    name = node.inputs[2] if len(node.inputs) > 2 else ""
    if not name:
        return 0, []
    kind, constant = region.graph.types[name], region.graph.constant(name)
    if not kind.is_static or kind.size != 1:
        raise Refusal(f"'{name}' has a zero point per row")
    return (0, [name]) if constant is None else (int(constant.reshape(())), [])


def _centered(region: Region, node: Node, x: str, zero_point: str) -> str:
    """int16(x) - int16(zero_point)"""
    name, to = region.name(node), type_to_proto(TensorType(INT16, ())).tensor_type.elem_type
    wide = [region.edit.add("Cast", [each], {"to": to}, name=f"{name}_wide", near=node) for each in (x, zero_point)]
    return region.edit.add("Sub", wide, name=f"{name}_centered", near=node)


SUMS: Mapping[str, Callable[[Region, Node], str]] = {"MatMulInteger": matmul_integer, "ConvInteger": conv_integer}
"""Operator -> its rule: the int32 result of a node, or Refusal."""
