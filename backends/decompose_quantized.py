"""Operators on integers spelled as one node: dequantize, compute, quantize. Integer regions are found in that later.

QLinearConv(x, w, b)    ->  Q(Conv(DQ(x), DQ(w), DQ(b)))        b is int32 in steps of x_scale * w_scale
QLinearMatMul(a, b)     ->  Q(MatMul(DQ(a), DQ(b)))
ConvInteger(x, w)       ->  Cast(Conv(float(x - x_zero_point), float(w - w_zero_point))), exact in the float chosen;
                            constant weights go to the integer kernels instead
"""

import numpy as np

from graphc.backends.decompose_rewrite import Decline, Rewrite
from graphc.ir.graph import Attribute

FLOAT = np.dtype(np.float32)
DOUBLE = np.dtype(np.float64)
ONNX_TYPES = {FLOAT: 1, np.dtype(np.int32): 6, DOUBLE: 11}
"""Numbers that onnx gives to element types, as Cast takes them."""


def qlinear_conv(rewrite: Rewrite) -> None:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = rewrite.node.inputs[:8]
    axis: dict[str, Attribute] = {"axis": 0} if rewrite.dims(w_scale) not in ((), (1,)) else {}
    inputs = [_dequantized(rewrite, x, x_scale, x_zero, {}), _dequantized(rewrite, w, w_scale, w_zero, axis)]
    if rewrite.input(8):
        scale = rewrite.op("Mul", _scalar(rewrite, x_scale), w_scale if axis else _scalar(rewrite, w_scale))
        inputs.append(rewrite.op("DequantizeLinear", rewrite.input(8), scale, **axis))
    y = rewrite.op("Conv", *inputs, **rewrite.node.attributes)
    rewrite.finish(rewrite.op("QuantizeLinear", y, _scalar(rewrite, y_scale), _scalar(rewrite, y_zero)))


def qlinear_matmul(rewrite: Rewrite) -> None:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = rewrite.node.inputs
    operands = []
    for name, scale, zero, axis in ((a, a_scale, a_zero, -2), (b, b_scale, b_zero, -1)):
        kind: dict[str, Attribute] = (
            {} if rewrite.dims(scale) in ((), (1,)) else {"axis": axis + len(rewrite.dims(name))}
        )
        if len(rewrite.dims(scale)) > 1:
            raise Decline
        operands.append(_dequantized(rewrite, name, _single(rewrite, scale), zero, kind))
    y = rewrite.op("MatMul", *operands)
    scale = _scalar(rewrite, _single(rewrite, y_scale))
    rewrite.finish(rewrite.op("QuantizeLinear", y, scale, _scalar(rewrite, y_zero)))


def conv_integer(rewrite: Rewrite) -> None:
    x, w = rewrite.node.inputs[:2]
    if all(not name or name in rewrite.graph.constants for name in (w, rewrite.input(3))):
        raise Decline  # becomes integers
    largest = int(np.prod(rewrite.dims(w)[1:])) * 255 * 255
    kind = FLOAT if largest < 2**24 else DOUBLE
    operands = []
    for i, name in enumerate((x, w)):
        value, zero = rewrite.op("Cast", name, to=ONNX_TYPES[kind]), rewrite.input(i + 2)
        if zero:
            count = rewrite.type(zero).size
            shape = (count, *(1,) * (len(rewrite.dims(name)) - 1)) if count > 1 else ()
            value = rewrite.op("Sub", value, rewrite.reshape(rewrite.op("Cast", zero, to=ONNX_TYPES[kind]), *shape))
        operands.append(value)
    y = rewrite.op("Conv", *operands, **rewrite.node.attributes)
    rewrite.finish(rewrite.op("Cast", y, to=ONNX_TYPES[np.dtype(np.int32)]))


def _single(rewrite: Rewrite, scale: str) -> str:
    """A scale in float32: sums of 8-bit products do not fit float16."""
    return scale if rewrite.type(scale).dtype == FLOAT else rewrite.op("Cast", scale, to=ONNX_TYPES[FLOAT])


def _scalar(rewrite: Rewrite, name: str) -> str:
    """A tensor of one element as a scalar, which is how a scale for a whole tensor is told from a list of one."""
    return name if name in rewrite.graph.types and rewrite.dims(name) == () else rewrite.reshape(name)


def _dequantized(rewrite: Rewrite, name: str, scale: str, zero: str, axis: dict[str, Attribute]) -> str:
    operands = (scale, zero) if axis else (_scalar(rewrite, scale), _scalar(rewrite, zero))
    return rewrite.op("DequantizeLinear", name, *operands, **axis)
