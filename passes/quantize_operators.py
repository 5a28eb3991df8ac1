"""Which operators work on 8-bit integers, as data: what each reads, how its result is quantized, when it refuses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np

from graphc.ir.graph import Array, Graph, Node


class Role(Enum):
    """What quantization means for an operator."""

    PRODUCT = auto()
    """Multiplies by weights, or two activations with each other: integers pay here. Its result has its own grid."""
    ARITHMETIC = auto()
    """Computes on integers with a multiplier or a shift; its result has its own grid."""
    POINTWISE = auto()
    """A function of each element: a table. Chains of them that read one value are one table, and floats inside."""
    MOVE = auto()
    """Moves or selects elements: what it gives is on the grid of what it takes."""


Refuse = Callable[[Graph, Node], str]
"""A reason why this very node stays in floating point, or the empty string."""


@dataclass(frozen=True, slots=True)
class Operator:
    """One row. `data` are the operands that carry activations (None: all); `weight` and `bias` may be constants.

    `clips`: a Relu or Clip that follows becomes limits of its result. `probability`: its result lies in 0..1, on the
    grid of 1/256. `wide`: its result spans more magnitudes than 8 bits hold. `float_constants`: constants among its
    data stay floats, the integer arithmetic takes them in as 32 bits.
    """

    role: Role
    data: tuple[int, ...] | None = (0,)
    weight: int | None = None
    bias: int | None = None
    clips: bool = False
    probability: bool = False
    wide: bool = False
    float_constants: bool = False
    refuse: Refuse = lambda _graph, _node: ""


def constant_of_one(graph: Graph, name: str) -> bool:
    """Whether `name` is a constant with a single element."""
    array = graph.constant(name)
    return array is not None and array.size == 1


def finite(array: Array) -> bool:
    """Whether every element is an ordinary number."""
    return bool(np.isfinite(array.astype(np.float64)).all())


def _conv(graph: Graph, node: Node) -> str:
    return _weights(graph, node, 1) or _bias(graph, node)


def _gemm(graph: Graph, node: Node) -> str:
    if node.get_int("transA", 0):
        return "it transposes its input"
    return _weights(graph, node, 1) or _bias(graph, node)


def _weights(graph: Graph, node: Node, position: int) -> str:
    name = node.inputs[position]
    array = graph.constant(name)
    if array is None:
        source = graph.producers.get(name)
        if source is not None and all(operand in graph.constants for operand in source.inputs if operand):
            return f"its weights are compressed already ({source.label})"
        return "its weights are computed at run time"
    return "" if finite(array) else f"its weights '{name}' hold NaN or infinity"


def _bias(graph: Graph, node: Node) -> str:
    if len(node.inputs) < 3 or not node.inputs[2]:
        return ""
    array = graph.constant(node.inputs[2])
    if array is None:
        return "its bias is computed at run time"
    if array.size not in (1, max(array.shape, default=1)):
        return f"its bias has the shape {list(array.shape)}, not one number per channel"
    return "" if finite(array) else f"its bias '{node.inputs[2]}' holds NaN or infinity"


def _matmul(graph: Graph, node: Node) -> str:
    if any(len(graph.types[name].shape or ()) < 2 for name in node.inputs):
        return "an operand has fewer than two axes"
    return "" if node.inputs[1] not in graph.constants else _weights(graph, node, 1)


def _only_one_result(_graph: Graph, node: Node) -> str:
    return f"it also gives '{node.results[1]}'" if len(node.results) > 1 else ""


def _pad(graph: Graph, node: Node) -> str:
    if node.get_str("mode", "constant") != "constant" or len(node.inputs) < 3 or not node.inputs[2]:
        return ""
    value = graph.constant(node.inputs[2])
    if value is None:
        return "what it pads with is computed at run time"
    return "" if not value.any() else f"it pads with {value.item()}, and only zero is exact on every grid"


def _resize(_graph: Graph, node: Node) -> str:
    if node.get_str("mode", "nearest") != "nearest":
        return f"it interpolates ({node.get_str('mode', 'nearest')})"
    cropped = node.get_str("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    return "it extrapolates beyond its input" if cropped else ""


def _limits(graph: Graph, node: Node) -> str:
    known = all(not name or constant_of_one(graph, name) for name in node.inputs[1:])
    return "" if known else "its limits are computed at run time"


def _axes(graph: Graph, node: Node) -> str:
    known = len(node.inputs) < 2 or not node.inputs[1] or node.inputs[1] in graph.constants
    return "" if known else "its axes are computed at run time"


def _slope(graph: Graph, node: Node) -> str:
    return "" if constant_of_one(graph, node.inputs[1]) else "it has a slope per channel"


def _constants_are_finite(graph: Graph, node: Node) -> str:
    for name in node.inputs:
        array = graph.constant(name)
        if array is not None and not finite(array):
            return f"its constant '{name}' holds NaN or infinity"
    return ""


_MOVES = (
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split", "Gather", "GatherElements",
    "GatherND", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "GlobalMaxPool", "ReduceMax", "ReduceMin",
)  # fmt: skip

_FUNCTIONS = (
    "Relu", "LeakyRelu", "ThresholdedRelu", "Elu", "Celu", "Selu", "Sigmoid", "HardSigmoid", "HardSwish", "Swish",
    "Mish", "Gelu", "Shrink", "Softplus", "Softsign", "Tanh", "Erf", "Sqrt", "Abs", "Neg", "Sign", "Floor", "Ceil",
    "Round", "Sin", "Cos", "Atan",
)  # fmt: skip

OPERATORS: Mapping[str, Operator] = {
    "Conv": Operator(Role.PRODUCT, weight=1, bias=2, clips=True, refuse=_conv),
    "ConvTranspose": Operator(Role.PRODUCT, weight=1, bias=2, clips=True, refuse=_conv),
    "Gemm": Operator(Role.PRODUCT, weight=1, bias=2, clips=True, refuse=_gemm),
    "MatMul": Operator(Role.PRODUCT, (0, 1), weight=1, clips=True, refuse=_matmul),
    "Add": Operator(Role.ARITHMETIC, None, clips=True, float_constants=True, refuse=_constants_are_finite),
    "Sub": Operator(Role.ARITHMETIC, None, clips=True, float_constants=True, refuse=_constants_are_finite),
    "Mul": Operator(Role.ARITHMETIC, None, clips=True, refuse=_constants_are_finite),
    "AveragePool": Operator(Role.ARITHMETIC, clips=True),
    "GlobalAveragePool": Operator(Role.ARITHMETIC, clips=True),
    "ReduceMean": Operator(Role.ARITHMETIC, clips=True, refuse=_axes),
    "Softmax": Operator(Role.ARITHMETIC, probability=True),
    **dict.fromkeys(_FUNCTIONS, Operator(Role.POINTWISE)),
    "Clip": Operator(Role.POINTWISE, refuse=_limits),
    "PRelu": Operator(Role.POINTWISE, refuse=_slope),
    **dict.fromkeys(("Exp", "Reciprocal", "Log"), Operator(Role.POINTWISE, wide=True)),
    **dict.fromkeys(_MOVES, Operator(Role.MOVE)),
    "MaxPool": Operator(Role.MOVE, refuse=_only_one_result),
    "Concat": Operator(Role.MOVE, None),
    "Pad": Operator(Role.MOVE, refuse=_pad),
    "Resize": Operator(Role.MOVE, refuse=_resize),
}
"""Operator of ONNX's own domain -> how it is quantized. What is not here stays in floating point."""

TABLE = "Gather"
"""Looks rows of a table up; where the table is constant, it is an embedding."""

STORED: Mapping[str, tuple[int, ...]] = {
    **{op: (operator.weight,) for op, operator in OPERATORS.items() if operator.weight is not None},
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2)),
    TABLE: (0,),
}
"""Operator -> its operands that weights alone are compressed of, where activations stay in floating point."""

WITH_SCALAR: Mapping[str, Operator] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Min", "Max"), Operator(Role.POINTWISE, None)),
    "Pow": Operator(Role.POINTWISE, None, wide=True),
}
"""Operators of several operands that are functions of one element where the other operands are single constants."""

LIMITERS = frozenset({"Relu", "Clip"})
"""What the results of operators with `clips` take in as limits."""


def weight_position(node: Node) -> int:
    """Which operand of a product may hold its weights."""
    position = OPERATORS[node.op].weight
    if position is None:
        raise ValueError(f"{node.label} has no weights")
    return position
