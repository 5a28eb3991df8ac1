"""Padding: Pad goes into the layer behind it, `auto_pad` becomes numbers.

Conv(Pad(x, zeros))                      ->  Conv(x, pads)
AveragePool(Pad(x, zeros))               ->  AveragePool(x, pads, count_include_pad=1)
MaxPool(Pad(x, -inf))                    ->  MaxPool(x, pads)        also zeros, where x is never negative
Conv(x, auto_pad=SAME_UPPER)             ->  Conv(x, pads)           where the size of x is known
Pad(Pad(x))                              ->  Pad(x)
"""

import numpy as np

from graphc.ir.graph import Attribute, Node
from graphc.passes.fold_identities import is_non_negative
from graphc.passes.fold_sweep import Rules, Sweep, by_operator

WINDOWED = ("Conv", "ConvInteger", "MaxPool", "AveragePool", "LpPool")


def explicit_pads(sweep: Sweep, node: Node) -> bool:
    """auto_pad=SAME_UPPER, SAME_LOWER or VALID  ->  pads"""
    mode, shape = node.get_str("auto_pad", "NOTSET"), sweep.shape(node.inputs[0])
    if mode == "NOTSET":
        return False
    kernel = _kernel(sweep, node)
    attributes: dict[str, Attribute] = {key: value for key, value in node.attributes.items() if key != "auto_pad"}
    if mode != "VALID":
        if shape is None or kernel is None or node.get_int("ceil_mode", 0):
            return False
        attributes["pads"] = _same_pads(shape[2:], kernel, node, upper=mode == "SAME_UPPER")
    if not sweep.claim(node):
        return False
    sweep.edit.replace(node, attributes=attributes)
    return True


def _kernel(sweep: Sweep, node: Node) -> tuple[int, ...] | None:
    given = node.get_ints("kernel_shape")
    if given or not node.op.startswith("Conv"):
        return given or None
    weight = sweep.shape(node.inputs[1])
    return None if weight is None else weight[2:]


def _same_pads(size: tuple[int, ...], kernel: tuple[int, ...], node: Node, upper: bool) -> tuple[int, ...]:
    """Pads with which the result has ceil(size / stride) elements; an odd one goes to the end (upper) or the start."""
    strides = node.get_ints("strides") or (1,) * len(kernel)
    dilations = node.get_ints("dilations") or (1,) * len(kernel)
    totals = [
        max((-(-d // s) - 1) * s + (k - 1) * f + 1 - d, 0)
        for d, k, s, f in zip(size, kernel, strides, dilations, strict=True)
    ]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (*small, *large) if upper else (*large, *small)


def merge_pad(sweep: Sweep, node: Node) -> bool:
    """Conv(Pad(x, zeros))  ->  Conv(x, pads); pools alike"""
    pad = sweep.producer(node.inputs[0], "Pad")
    if pad is None or node.get_str("auto_pad", "NOTSET") not in {"NOTSET", "VALID"} or not sweep.sole(node.inputs[0]):
        return False
    amounts, rank = pad_amounts(sweep, pad), sweep.rank(node.inputs[0])
    if amounts is None or rank is None or any(a < 0 for a in amounts):
        return False
    if any(amounts[i] for i in (0, 1, rank, rank + 1)) or not _same_filling(sweep, node, pad):
        return False
    spatial = rank - 2
    own = node.get_ints("pads") or (0,) * (2 * spatial)
    added = (*amounts[2:rank], *amounts[rank + 2 :])
    pads = tuple(a + b for a, b in zip(own, added, strict=True))
    kernel = _kernel(sweep, node)
    if node.op in {"MaxPool", "AveragePool"} and (
        kernel is None or any(p >= k for p, k in zip(pads, kernel * 2, strict=True))
    ):
        return False
    if not sweep.claim(node, pad):
        return False
    attributes: dict[str, Attribute] = {key: value for key, value in node.attributes.items() if key != "auto_pad"}
    if node.op == "AveragePool":
        attributes["count_include_pad"] = 1
    sweep.edit.remove(pad)
    sweep.edit.replace(node, inputs=[pad.inputs[0], *node.inputs[1:]], attributes={**attributes, "pads": pads})
    return True


def _same_filling(sweep: Sweep, node: Node, pad: Node) -> bool:
    """Whether the layer's own padding means what `pad` fills in."""
    value = pad_value(sweep, pad)
    if value is None:
        return False
    if node.op == "MaxPool":
        plain = not any(node.outputs[1:])
        return (
            plain
            and (value == -np.inf or (value == 0 and is_non_negative(sweep, pad.inputs[0])))
            and not node.get_int("ceil_mode", 0)
        )
    if node.op == "AveragePool":
        counted = node.get_int("count_include_pad", 0) or not any(node.get_ints("pads"))
        return value == 0 and bool(counted) and not node.get_int("ceil_mode", 0)
    return value == 0


def pad_value(sweep: Sweep, pad: Node) -> float | None:
    """What a Pad fills in, where that is one constant."""
    if pad.get_str("mode", "constant") != "constant":
        return None
    name = sweep.operand(pad, 2)
    return sweep.scalar(name) if name else 0.0


def pad_amounts(sweep: Sweep, pad: Node) -> tuple[int, ...] | None:
    """Begin of every axis, then end of every axis."""
    rank, given = sweep.rank(pad.inputs[0]), sweep.integers(pad.inputs[1])
    if rank is None or given is None:
        return None
    name = sweep.operand(pad, 3)
    axes = sweep.integers(name) if name else tuple(range(rank))
    if axes is None:
        return None
    amounts = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        amounts[axis % rank], amounts[axis % rank + rank] = given[i], given[i + len(axes)]
    return tuple(amounts)


def merge_pads(sweep: Sweep, node: Node) -> bool:
    """Pad(Pad(x))  ->  Pad(x), where both fill in the same constant and none cuts"""
    inner = sweep.producer(node.inputs[0], "Pad")
    if inner is None or not sweep.sole(node.inputs[0]):
        return False
    first, second = pad_amounts(sweep, inner), pad_amounts(sweep, node)
    value = pad_value(sweep, node)
    if first is None or second is None or value is None or value != pad_value(sweep, inner):
        return False
    if any(a < 0 for a in (*first, *second)) or not sweep.claim(node, inner):
        return False
    amounts = sweep.shape_constant([a + b for a, b in zip(first, second, strict=True)], f"{node.outputs[0]}_pads")
    sweep.edit.remove(inner)
    sweep.edit.replace(node, inputs=[inner.inputs[0], amounts, sweep.operand(node, 2)])
    return True


RULES: Rules = by_operator(
    (
        (explicit_pads, WINDOWED),
        (merge_pad, ("Conv", "MaxPool", "AveragePool")),
        (merge_pads, ("Pad",)),
    )
)
