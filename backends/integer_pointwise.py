"""Functions of one 8-bit value become a table of 256, whatever they compute; clamps become the ends of a result.

    Q(f(DQ(x)))         ->  Table(x, [Q(f(DQ(v))) for each of the 256 integers v]), f evaluated in float64
    Q(Relu(y))          ->  Q(y), its smallest integer raised to Q(0): rounding is monotone, so the two commute
    Q(y * c), c > 0     ->  Q(y) on a grid that is c times as fine

f may be a whole chain of elementwise operators (x * sigmoid(x), say) that reads one value and scalar constants.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import erf

import numpy as np

from graphc.backends.arithmetic import Numbers
from graphc.backends.integer_constants import scalar
from graphc.backends.integer_region import Grid, Quantized, Refusal, Region
from graphc.ir.graph import Node

_erf = np.vectorize(erf, otypes=[np.float64])


def _clip(node: Node, x: Numbers, low: Numbers | None = None, high: Numbers | None = None) -> Numbers:
    raised = x if low is None else np.maximum(x, low)
    return raised if high is None else np.minimum(raised, high)


def _gelu(node: Node, x: Numbers) -> Numbers:
    if node.get_str("approximate", "none") == "tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))
    return np.asarray(0.5 * x * (1 + _erf(x / np.sqrt(2))))


def _sigmoid(x: Numbers) -> Numbers:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def _hard_sigmoid(x: Numbers, alpha: float, beta: float) -> Numbers:
    return np.clip(alpha * x + beta, 0.0, 1.0)


def _shrink(node: Node, x: Numbers) -> Numbers:
    bias, ends = node.get_float("bias", 0.0), node.get_float("lambd", 0.5)
    return np.where(x < -ends, x + bias, np.where(x > ends, x - bias, 0.0))


def _elu(x: Numbers, alpha: float, gamma: float = 1.0) -> Numbers:
    return gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0)))


POINTWISE: Mapping[str, Callable[..., Numbers]] = {
    "Identity": lambda node, x: x,
    "Relu": lambda node, x: np.maximum(x, 0.0),
    "Clip": _clip,
    "LeakyRelu": lambda node, x: np.where(x < 0, node.get_float("alpha", 0.01) * x, x),
    "PRelu": lambda node, x, slope: np.where(x < 0, slope * x, x),
    "ThresholdedRelu": lambda node, x: np.where(x > node.get_float("alpha", 1.0), x, 0.0),
    "Elu": lambda node, x: _elu(x, node.get_float("alpha", 1.0)),
    "Celu": lambda node, x: _elu(x / node.get_float("alpha", 1.0), 1.0, node.get_float("alpha", 1.0)),
    "Selu": lambda node, x: _elu(
        x, node.get_float("alpha", 1.67326319217681884765625), node.get_float("gamma", 1.05070102214813232421875)
    ),
    "Sigmoid": lambda node, x: _sigmoid(x),
    "HardSigmoid": lambda node, x: _hard_sigmoid(x, node.get_float("alpha", 0.2), node.get_float("beta", 0.5)),
    "HardSwish": lambda node, x: x * _hard_sigmoid(x, 1 / 6, 0.5),
    "Swish": lambda node, x: x * _sigmoid(node.get_float("alpha", 1.0) * x),
    "Mish": lambda node, x: x * np.tanh(np.logaddexp(0.0, x)),
    "Gelu": _gelu,
    "Shrink": _shrink,
    "Softplus": lambda node, x: np.logaddexp(0.0, x),
    "Softsign": lambda node, x: x / (1 + np.abs(x)),
    "Tanh": lambda node, x: np.tanh(x),
    "Erf": lambda node, x: _erf(x),
    "Exp": lambda node, x: np.exp(x),
    "Log": lambda node, x: np.log(x),
    "Sqrt": lambda node, x: np.sqrt(x),
    "Reciprocal": lambda node, x: 1.0 / x,
    "Abs": lambda node, x: np.abs(x),
    "Neg": lambda node, x: -x,
    "Sign": lambda node, x: np.sign(x),
    "Floor": lambda node, x: np.floor(x),
    "Ceil": lambda node, x: np.ceil(x),
    "Round": lambda node, x: np.rint(x),
    "Sin": lambda node, x: np.sin(x),
    "Cos": lambda node, x: np.cos(x),
    "Atan": lambda node, x: np.arctan(x),
    "Add": lambda node, x, y: x + y,
    "Sub": lambda node, x, y: x - y,
    "Mul": lambda node, x, y: x * y,
    "Div": lambda node, x, y: x / y,
    "Pow": lambda node, x, y: np.power(x, y),
    "Min": lambda node, *xs: np.minimum.reduce(np.broadcast_arrays(*xs)),
    "Max": lambda node, *xs: np.maximum.reduce(np.broadcast_arrays(*xs)),
}
"""Operators that work on each element alone, in float64: the node (for its attributes), then its operands."""


def tabulate(region: Region, node: Node, grid: Grid) -> str:
    """The table of everything between one quantized value and `node`'s result."""
    name = node.outputs[0]
    source = _source(region, name, {})
    if source is None:
        raise Refusal(f"{node.label} is a constant")
    source[1].grid.require_bytes(node.label)
    info = np.iinfo(str(source[1].grid.dtype))
    every = source[1].grid.expand(np.arange(info.min, info.max + 1))
    with np.errstate(all="ignore"):
        values = np.broadcast_to(_evaluate(region, name, every, {}), (256,))
    if np.isnan(values).any():
        raise Refusal(f"{node.label} gives NaN for values that its input can take")
    if region.graph.types[source[0]].shape != region.graph.types[name].shape:
        raise Refusal(f"{node.label} broadcasts its input")
    return region.tabulate(source[1], grid.round(values), node)


def clamp(region: Region, node: Node, grid: Grid) -> str:
    """Relu, Clip, and Min or Max with a constant: the result's ends move in."""
    low, high = -np.inf, np.inf
    operand = node.inputs[0]
    if node.op == "Relu":
        low = 0.0
    elif node.op == "Clip":
        ends = [scalar(region, name) if name else None for name in (*node.inputs[1:], "", "")[:2]]
        if any(name and end is None for name, end in zip(node.inputs[1:], ends, strict=False)):
            raise Refusal(f"the ends of {node.label} are computed at run time")
        low, high = (d if e is None else e for d, e in zip((low, high), ends, strict=True))
    else:
        operand, end = _with_scalar(region, node)
        low, high = (end, high) if node.op == "Max" else (low, end)
    return region.quantize(operand, grid.clamped(low, high))


def rescale(region: Region, node: Node, grid: Grid) -> str:
    """Mul or Div by a positive constant: the operand on a finer or coarser grid."""
    operand, factor = _with_scalar(region, node)
    if node.op == "Div" and operand != node.inputs[0]:
        raise Refusal(f"{node.label} divides a constant by an unquantized value")
    if not (np.isfinite(factor) and factor > 0):
        raise Refusal(f"the factor of {node.label} is {factor}")
    return region.quantize(
        operand, replace(grid, scale=grid.scale * factor if node.op == "Div" else grid.scale / factor)
    )


def _with_scalar(region: Region, node: Node) -> tuple[str, float]:
    """The operand of a binary operator that is no scalar constant, and the constant."""
    for i in (0, 1):
        value = scalar(region, node.inputs[i]) if len(node.inputs) == 2 else None
        if (
            value is not None
            and region.graph.types[node.inputs[1 - i]].shape == region.graph.types[node.outputs[0]].shape
        ):
            return node.inputs[1 - i], value
    raise Refusal(f"no operand of {node.label} is a scalar constant")


def _source(region: Region, name: str, seen: dict[str, tuple[str, Quantized] | None]) -> tuple[str, Quantized] | None:
    """The one quantized value that `name` is a function of (as a float, and its integers); None for a constant."""
    if name in seen:
        return seen[name]
    node = region.graph.producers.get(name)
    found: tuple[str, Quantized] | None = None
    if scalar(region, name) is not None:
        found = None
    elif region.is_read(name):
        found = (name, region.read(name))
    elif node is None or node.domain or node.op not in POINTWISE:
        raise Refusal(_unread(region, name))
    else:
        sources = [s for s in (_source(region, operand, seen) for operand in node.inputs if operand) if s is not None]
        if len({s[1].name for s in sources}) > 1:
            raise Refusal(f"{node.label} reads more than one value")
        found = sources[0] if sources else None
    seen[name] = found
    return found


def _unread(region: Region, name: str) -> str:
    try:
        region.read(name)
    except Refusal as reason:
        return str(reason)
    return f"'{name}' is quantized"


def _evaluate(region: Region, name: str, every: Numbers, seen: dict[str, Numbers]) -> Numbers:
    if name not in seen:
        constant = scalar(region, name)
        if constant is not None:
            seen[name] = np.array(constant)
        elif region.is_read(name):
            seen[name] = every
        else:
            node = region.graph.producers[name]
            operands = (_evaluate(region, x, every, seen) if x else None for x in node.inputs)
            seen[name] = np.asarray(POINTWISE[node.op](node, *operands), np.float64)
    return seen[name]
