"""Reshapes: one spelling, one per chain, as late as possible.

    Squeeze, Unsqueeze, Flatten             ->  Reshape to constant dimensions
    Reshape(Reshape(x))                     ->  Reshape(x)
    Relu(Reshape(x))                        ->  Reshape(Relu(x))
    MatMul(Reshape(x: [1, 98, 64]), w)      ->  Reshape(MatMul(x, w))       the last dimension stays whole

Going down past elementwise operators, reshapes meet and merge, and an operator comes to stand beside the layer it
belongs to. A Reshape over a decoder expression stays where it is.
"""

from collections.abc import Mapping

from graphc.ir.graph import Attribute, Node
from graphc.passes.fold_sweep import Rule, Rules, Sweep, by_operator

UNARY = (
    *(
        "Abs",
        "Acos",
        "Acosh",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "Ceil",
        "Celu",
        "Cos",
        "Cosh",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
    ),
    *(
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Log",
        "Mish",
        "Neg",
        "Not",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
    ),
    *(
        "Shrink",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Swish",
        "Tan",
        "Tanh",
        "ThresholdedRelu",
    ),
    *("Clip", "Cast", "IsNaN", "IsInf"),
)
"""Operators that work element by element on their first operand; others they have are scalars."""

BINARY = (
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Max",
    "Min",
    "Equal",
    "Less",
    "Greater",
    "LessOrEqual",
    "GreaterOrEqual",
    "And",
    "Or",
    "PRelu",
)
"""Operators that work element by element on two operands that broadcast. PRelu broadcasts its second to its first."""

LAST_AXIS = ("Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization")
"""Operators over trailing axes, with operands of those axes' shape."""

SOFTMAX = ("Softmax", "LogSoftmax")

MOVES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


def canonicalize(sweep: Sweep, node: Node) -> bool:
    """Squeeze, Unsqueeze, Flatten, and a Reshape with 0 or -1 or a computed shape  ->  Reshape to plain dimensions"""
    shape = sweep.shape(node.outputs[0])
    if shape is None or 0 in shape:
        return False
    if node.op == "Reshape" and sweep.integers(node.inputs[1]) == shape and not node.get_int("allowzero", 0):
        return False
    if not sweep.claim(node):
        return False
    sweep.edit.replace(node, "Reshape", [node.inputs[0], sweep.shape_constant(shape, f"{node.outputs[0]}_shape")], {})
    return True


def merge_reshapes(sweep: Sweep, node: Node) -> bool:
    """Reshape(Reshape(x))  ->  Reshape(x)"""
    inner = sweep.producer(node.inputs[0], *MOVES)
    dims = sweep.integers(node.inputs[1])
    if inner is None or dims is None or 0 in dims or not sweep.claim(node, through=[inner]):
        return False
    sweep.edit.replace(node, inputs=[inner.inputs[0], node.inputs[1]])
    return True


def _movable(sweep: Sweep, name: str) -> Node | None:
    """The Reshape behind `name`, where it has no other reader and may be moved."""
    move = sweep.producer(name, "Reshape")
    if move is None or not sweep.sole(name) or sweep.is_decoded(name) or move.inputs[0] in sweep.graph.constants:
        return None
    return move if sweep.shape(name) is not None and sweep.shape(move.inputs[0]) is not None else None


def sink(
    sweep: Sweep,
    node: Node,
    moves: tuple[Node, ...],
    inputs: list[str],
    attributes: Mapping[str, Attribute] | None = None,
) -> bool:
    """Let `node` read `inputs`, what `moves` reshaped, and reshape its result to what it was."""
    shape, result = sweep.shape(node.outputs[0]), node.outputs[0]
    if shape is None or not sweep.claim(node, *moves):
        return False
    moved = sweep.edit.fresh(f"{result}_unshaped")
    sweep.edit.replace(node, inputs=inputs, outputs=[moved], attributes=attributes)
    sweep.edit.remove(*moves)
    dims = sweep.shape_constant(shape, f"{result}_shape")
    sweep.edit.replace(moves[0], inputs=[moved, dims], attributes={}, outputs=[result])
    return True


def sink_past_unary(sweep: Sweep, node: Node) -> bool:
    """Relu(Reshape(x))  ->  Reshape(Relu(x))"""
    move = _movable(sweep, node.inputs[0])
    if move is None or any(node.outputs[1:]):
        return False
    return sink(sweep, node, (move,), [move.inputs[0], *node.inputs[1:]])


def sink_past_binary(sweep: Sweep, node: Node) -> bool:
    """Add(Reshape(x), c)  ->  Reshape(Add(x, c)), where the constant spans trailing dimensions that x has as well"""
    if len(node.inputs) != 2:
        return False
    for index in (0,) if node.op == "PRelu" else (0, 1):
        move, other = _movable(sweep, node.inputs[index]), node.inputs[1 - index]
        if move is None or other not in sweep.graph.constants:
            continue
        dims = _stripped(sweep.graph.constants[other].shape)
        before, after = sweep.shape(move.inputs[0]), sweep.shape(move.outputs[0])
        if (
            before is None
            or after is None
            or len(dims) > common_tail(before, after)
            or sweep.shape(node.outputs[0]) != after
        ):
            continue
        constant = other
        if sweep.graph.constants[other].ndim != len(dims):
            constant = sweep.edit.constant(sweep.graph.constants[other].reshape(dims), other)
        return sink(sweep, node, (move,), [move.inputs[0], constant] if index == 0 else [constant, move.inputs[0]])
    return False


def _stripped(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without leading ones."""
    while shape and shape[0] == 1:
        shape = shape[1:]
    return shape


def common_tail(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """How many trailing dimensions two shapes share."""
    count = 0
    while count < min(len(a), len(b)) and a[-1 - count] == b[-1 - count]:
        count += 1
    return count


def sink_past_pair(sweep: Sweep, node: Node) -> bool:
    """Add(Reshape(a), Reshape(b))  ->  Reshape(Add(a, b)), where a and b have one shape"""
    if len(node.inputs) != 2 or node.inputs[0] == node.inputs[1]:
        return False
    first, second = _movable(sweep, node.inputs[0]), _movable(sweep, node.inputs[1])
    if first is None or second is None or first is second or node.op == "PRelu":
        return False
    a, b = first.inputs[0], second.inputs[0]
    if sweep.shape(a) != sweep.shape(b) or sweep.shape(node.inputs[0]) != sweep.shape(node.inputs[1]):
        return False
    return sink(sweep, node, (first, second), [a, b])


def sink_past_square(sweep: Sweep, node: Node) -> bool:
    """Mul(r, r) with r = Reshape(x)  ->  Reshape(Mul(x, x))"""
    name = node.inputs[0]
    if len(node.inputs) != 2 or node.inputs[1] != name or sweep.graph.sole_user(name) is not node:
        return False
    move = sweep.producer(name, "Reshape")
    if move is None or sweep.is_decoded(name) or name in sweep.outputs or sweep.shape(move.inputs[0]) is None:
        return False
    return sink(sweep, node, (move,), [move.inputs[0], move.inputs[0]])


def sink_past_last_axis(sweep: Sweep, node: Node) -> bool:
    """Softmax(Reshape(x), axis=-1)  ->  Reshape(Softmax(x, axis=-1)), where both shapes end in the same dimensions"""
    move = _movable(sweep, node.inputs[0])
    if move is None or any(node.outputs[1:]):
        return False
    before, after = sweep.shape(move.inputs[0]), sweep.shape(move.outputs[0])
    if before is None or after is None:
        return False
    axis = node.get_int("axis", -1)
    spanned = -axis if axis < 0 else len(after) - axis
    if spanned > common_tail(before, after) or (node.op in SOFTMAX and spanned != 1):
        return False
    return sink(sweep, node, (move,), [move.inputs[0], *node.inputs[1:]], {**node.attributes, "axis": -spanned})


def sink_past_matmul(sweep: Sweep, node: Node) -> bool:
    """MatMul(Reshape(x), w)  ->  Reshape(MatMul(x, w)), for a matrix w and an unchanged last dimension

    Only where the Reshape then meets another one; a matrix times a matrix is worth keeping otherwise.
    """
    move, weight = _movable(sweep, node.inputs[0]), node.inputs[1]
    if move is None or sweep.rank(weight) != 2 or not (weight in sweep.graph.constants or sweep.is_decoded(weight)):
        return False
    before, after = sweep.shape(move.inputs[0]), sweep.shape(move.outputs[0])
    if before is None or after is None or min(len(before), len(after)) < 2 or before[-1] != after[-1]:
        return False
    return _meets_reshape(sweep, node) and sink(sweep, node, (move,), [move.inputs[0], weight])


def _meets_reshape(sweep: Sweep, node: Node) -> bool:
    """Whether only elementwise operators and products lie between `node`'s result and a Reshape."""
    name = node.outputs[0]
    while sweep.sole(name):
        user = sweep.graph.users[name][0]
        if user.domain:
            return False
        if user.op in MOVES:
            return True
        if user.op == "MatMul":
            passes = user.inputs[0] == name and user.inputs[1] in sweep.graph.constants
        else:
            passes = user.op in UNARY or (user.op in BINARY and any(n in sweep.graph.constants for n in user.inputs))
        if not passes:
            return False
        name = user.outputs[0]
    return False


_BY_OPERATOR: tuple[tuple[Rule, tuple[str, ...]], ...] = (
    (canonicalize, MOVES),
    (merge_reshapes, ("Reshape",)),
    (sink_past_unary, UNARY),
    (sink_past_square, BINARY),
    (sink_past_binary, BINARY),
    (sink_past_pair, BINARY),
    (sink_past_last_axis, LAST_AXIS),
    (sink_past_matmul, ("MatMul",)),
)

RULES: Rules = by_operator(_BY_OPERATOR)
