"""Around QuantizeLinear: what saturation does anyway, and values that are quantized a second time.

    QuantizeLinear(Relu(x), zero_point=0: uint8)              ->  QuantizeLinear(x)
    QuantizeLinear(Clip(x, 0, 6)), 6 or less representable    ->  QuantizeLinear(x)
    QuantizeLinear(DequantizeLinear(q, s, z), s, z)           ->  q

All are exact: quantization is monotone, so a bound that falls on the end of the integer range changes nothing.
"""

import numpy as np

from graphc.ir.graph import Node
from graphc.passes.fold_sweep import Rules, Sweep, by_operator


def drop_saturated(sweep: Sweep, node: Node) -> bool:
    """QuantizeLinear(Relu(x)) or (Clip(x))  ->  QuantizeLinear(x), where both bounds lie at the ends of the range"""
    bound = sweep.producer(node.inputs[0], "Relu", "Clip")
    scale, zero = sweep.constant(node.inputs[1]), _zero_point(sweep, node)
    if bound is None or scale is None or scale.size != 1 or zero is None or not sweep.sole(node.inputs[0]):
        return False
    low, high = _bounds(sweep, bound)
    kind = sweep.type(node.outputs[0]).dtype
    if low is None or high is None or kind.name not in {"int8", "uint8", "int16", "uint16"}:
        return False
    limits, step = np.iinfo(kind.name), float(scale.reshape(()).astype(np.float64))
    if not step > 0 or np.rint(low / step) + zero > limits.min or np.rint(high / step) + zero < limits.max:
        return False
    if not sweep.claim(node, through=[bound]):
        return False
    sweep.edit.replace(node, inputs=[bound.inputs[0], *node.inputs[1:]])
    return True


def _zero_point(sweep: Sweep, node: Node) -> float | None:
    """The zero point, where it is one constant; zero where there is none."""
    name = sweep.operand(node, 2)
    return sweep.scalar(name) if name else 0.0


def _bounds(sweep: Sweep, node: Node) -> tuple[float | None, float | None]:
    """Lower and upper bound that `node` applies; None for one that is no constant."""
    if node.op == "Relu":
        return 0.0, np.inf
    low = sweep.scalar(node.inputs[1]) if sweep.operand(node, 1) else -np.inf
    high = sweep.scalar(node.inputs[2]) if sweep.operand(node, 2) else np.inf
    return low, high


def drop_requantized(sweep: Sweep, node: Node) -> bool:
    """QuantizeLinear(DequantizeLinear(q, s, z), s, z)  ->  q, for 8 bits and one scale"""
    inner = sweep.producer(node.inputs[0], "DequantizeLinear")
    if inner is None or inner.inputs[0] in sweep.graph.constants or sweep.is_decoded(node.inputs[0]):
        return False
    scales = [sweep.constant(n.inputs[1]) for n in (node, inner)]
    before, after = sweep.type(inner.inputs[0]), sweep.type(node.outputs[0])
    if before != after or before.bits > 8 or any(scale is None or scale.size != 1 for scale in scales):
        return False
    if sweep.scalar(node.inputs[1]) != sweep.scalar(inner.inputs[1]):
        return False
    zero = _zero_point(sweep, node)
    if zero is None or zero != _zero_point(sweep, inner):
        return False
    return sweep.forward(node, inner.inputs[0], through=[inner])


RULES: Rules = by_operator(((drop_saturated, ("QuantizeLinear",)), (drop_requantized, ("QuantizeLinear",))))
