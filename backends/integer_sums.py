"""MatMulInteger and ConvInteger: integer products whose int32 sums are their result, as dynamic quantization has them.

MatMulInteger(a, w, a_zp, w_zp)   ->   MatMul(a, w, w_zp; a_zp)               a_zp may be computed at run time
ConvInteger(x, w, x_zp, w_zp)     ->   Conv(x, w, w_zp; x_zp)                 x_zp constant
ConvInteger(x, w, x_zp, w_zp)     ->   Conv(Pad(x, x_zp), w, w_zp) - x_zp * sum(w - w_zp)     x_zp computed: so
                                       kernels multiply the bytes as they are, and padding adds nothing
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from graphc.backends.integer_linear import window
from graphc.backends.integer_region import Refusal, Region
from graphc.ir.graph import Attribute, Node, TensorType
from graphc.ir.protobuf import type_to_proto

INT32 = np.dtype(np.int32)

Integers = npt.NDArray[np.signedinteger]


def matmul_integer(region: Region, node: Node) -> str:
    """A product with constant weights; Refusal where they, or their zero points, are computed."""
    weights, offsets = _weights(region, node, node_axis=-1)
    if region.rank(node.inputs[0]) < 2 or weights.ndim != 2:
        raise Refusal("an operand is no matrix")
    zero_point, computed = _zero_point(region, node)
    inputs = [*_operands(region, node, node.inputs[0], weights, offsets), *computed]
    return region.emit("MatMul", inputs, {"a_zero_point": zero_point}, INT32, node)


def conv_integer(region: Region, node: Node) -> str:
    """A convolution with constant weights; Refusal as for `matmul_integer`."""
    weights, offsets = _weights(region, node, node_axis=0)
    x = node.inputs[0]
    zero_point, computed = _zero_point(region, node)
    place = window(region, node, weights.shape[2:])
    if computed:
        x, place = _padded(region, node, place, computed[0])
    inputs = _operands(region, node, x, weights, offsets)
    state = {"group": node.get_int("group", 1), "x_zero_point": zero_point}
    sums = region.emit("Conv", inputs, {**place, **state}, INT32, node)
    return _less(region, node, sums, weights, offsets, computed[0]) if computed else sums


def _weights(region: Region, node: Node, node_axis: int) -> tuple[Integers, Integers]:
    """Weights as int8, and their zero points: int32, one per channel."""
    stored = region.graph.constant(node.inputs[1])
    name = node.inputs[3] if len(node.inputs) > 3 else ""
    given = region.graph.constant(name) if name else np.zeros(1, np.int32)
    if stored is None or given is None:
        raise Refusal("its weights are computed at run time")
    channels = stored.shape[node_axis]
    if given.size not in (1, channels):
        raise Refusal(f"'{name}' has {given.size} zero points for {channels} channels")
    offsets = given.astype(np.int32).ravel()
    weights = stored.astype(np.int16)
    if stored.dtype == np.uint8:
        weights, offsets = weights - np.int16(128), offsets - np.int32(128)
    return weights.astype(np.int8), np.ascontiguousarray(np.broadcast_to(offsets, channels))


def _operands(region: Region, node: Node, x: str, weights: Integers, offsets: Integers) -> list[str]:
    """Operands of an integer product without bias and scale; zero points that are all 0 are left out."""
    name = region.name(node)
    zero_points = region.edit.constant(offsets, f"{name}_zero_point") if offsets.any() else ""
    return [x, region.edit.constant(weights, f"{name}_weights"), "", "", zero_points]


def _zero_point(region: Region, node: Node) -> tuple[int, list[str]]:
    """(the zero point of the activations, nothing), or (0, its name) where it is computed at run time."""
    name = node.inputs[2] if len(node.inputs) > 2 else ""
    if not name:
        return 0, []
    kind, constant = region.graph.types[name], region.graph.constant(name)
    if not kind.is_static or kind.size != 1:
        raise Refusal(f"'{name}' has a zero point per row")
    return (0, [name]) if constant is None else (int(constant.reshape(())), [])


def _padded(
    region: Region, node: Node, place: Mapping[str, Attribute], zero_point: str
) -> tuple[str, dict[str, Attribute]]:
    """The input with the padding of `place` as integers that stand for 0, and the place without it."""
    name, x = region.name(node), node.inputs[0]
    pads = Node("", (), (), place).get_ints("pads")
    if not any(pads):
        return x, {**place}
    rank = len(pads) // 2
    amounts = region.edit.constant(np.array([0, 0, *pads[:rank], 0, 0, *pads[rank:]], np.int64), f"{name}_pads")
    padded = region.edit.add("Pad", [x, amounts, zero_point], name=f"{name}_padded", near=node)
    return padded, {**place, "pads": (0,) * len(pads)}


def _less(region: Region, node: Node, sums: str, weights: Integers, offsets: Integers, zero_point: str) -> str:
    """Sums of x * w as those of (x - zero_point) * w: less zero_point * sum of w, for each output channel."""
    name, kind = region.name(node), type_to_proto(TensorType(INT32, ())).tensor_type.elem_type
    centered = weights.astype(np.int32) - offsets.reshape(-1, *(1,) * (weights.ndim - 1))
    totals = centered.reshape(len(weights), -1).sum(axis=1, dtype=np.int32).reshape(-1, *(1,) * (weights.ndim - 2))
    wide = region.edit.add("Cast", [zero_point], {"to": kind}, name=f"{name}_wide", near=node)
    taken = [wide, region.edit.constant(totals, f"{name}_totals")]
    shift = region.edit.add("Mul", taken, name=f"{name}_shift", near=node)
    return region.edit.add("Sub", [sums, shift], name=f"{name}_centered", near=node)


SUMS: Mapping[str, Callable[[Region, Node], str]] = {"MatMulInteger": matmul_integer, "ConvInteger": conv_integer}
"""Operator -> its rule: the int32 result of a node, or Refusal."""
