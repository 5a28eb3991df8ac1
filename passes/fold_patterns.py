"""Operators that exporters took apart, put together again; one node is one kernel, and one table in integers.

    x * rsqrt(mean(x^2) + e) * g                             RMSNormalization      Zhang, Sennrich, arXiv:1910.07467
    (x - mean(x)) * rsqrt(var(x) + e) * g + b                LayerNormalization    Ba et al., arXiv:1607.06450
    0.5 x (1 + erf(x / sqrt 2)), and its form with tanh      Gelu                  Hendrycks, Gimpel, arXiv:1606.08415
    x * clip(x + 3, 0, 6) / 6                                HardSwish             Howard et al., arXiv:1905.02244
    exp(x - max(x)) / sum(exp(x - max(x)))                   Softmax
    x * tanh(softplus(x))                                    Mish

Equal but for rounding. Swish stays Sigmoid and Mul: onnxruntime 1.31 has no kernel for the operator of opset 24.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from graphc.ir.graph import Array, Attribute, Node
from graphc.passes.fold_match import Bindings, Inverse, Matcher, Named, Op, Pattern, Product, Sum, Var
from graphc.passes.fold_sweep import Rule, Rules, Sweep, by_operator

X = Var("x")
_SQRT_HALF = 0.5**0.5
_GELU_SLOPE = (2 / np.pi) ** 0.5
_CUBE = Product(0.044715, X, X, X)
_TANH = (
    Product(_GELU_SLOPE, Sum(0, X, _CUBE)),
    Product(_GELU_SLOPE, X, Sum(1, Product(0.044715, X, X))),
)
_MEAN = Named("mean", Op("ReduceMean", X))
_CENTRED = Named("centred", Sum(0, X, Inverse(_MEAN)))
_VARIANCE = Op("ReduceMean", Product(1, _CENTRED, _CENTRED))
_DEVIATION = Op("Sqrt", Sum("epsilon", _VARIANCE))
_SCALED = Named("scaled", Product(1, Inverse(_DEVIATION), Var("gamma")))
_EXP = Named("exp", Op("Exp", Sum(0, X, Inverse(Op("ReduceMax", X)))))

Check = Callable[[Sweep, Bindings, str], dict[str, Attribute] | None]
"""Looks at a match and gives the attributes of the new node, or None to refuse."""


@dataclass(frozen=True)
class Known:
    """A spelling of an operator: the pattern, the operator, a check that also gives its attributes."""

    before: Pattern
    after: str
    check: Check


def _plain(**attributes: Attribute) -> Check:
    def check(sweep: Sweep, bound: Bindings, result: str) -> dict[str, Attribute] | None:
        same = sweep.same_type(bound["x"], result) and sweep.is_float(result)
        return dict(attributes) if same else None

    return check


def _last_axis(sweep: Sweep, bound: Bindings, result: str) -> dict[str, Attribute] | None:
    """For reductions over the last axis that keep it."""
    x, rank = bound["x"], sweep.rank(bound["x"])
    if rank is None or not sweep.is_float(x) or not sweep.same_type(x, result):
        return None
    for user in _reductions(sweep, bound, result):
        axes = sweep.integers(sweep.operand(user, 1))
        if axes is None or [axis % rank for axis in axes] != [rank - 1] or not user.get_int("keepdims", 1):
            return None
    return {"axis": -1}


def _reductions(sweep: Sweep, bound: Bindings, result: str) -> list[Node]:
    """The Reduce* nodes between x and the result."""
    found: list[Node] = []
    stack, seen = [result], {bound["x"]}
    while stack:
        name = stack.pop()
        node = sweep.producer(name)
        if name in seen or node is None:
            continue
        seen.add(name)
        if node.op.startswith("Reduce"):
            found.append(node)
        stack.extend(n for n in node.inputs if n)
    return found


def _norm(sweep: Sweep, bound: Bindings, result: str) -> dict[str, Attribute] | None:
    attributes = _last_axis(sweep, bound, result)
    epsilon = float(bound["epsilon"])
    return None if attributes is None or epsilon < 0 else {**attributes, "epsilon": epsilon}


KNOWN: tuple[Known, ...] = (
    Known(Product(0.5, X, Sum(1, Op("Erf", Product(_SQRT_HALF, X)))), "Gelu", _plain()),
    *(Known(Product(0.5, X, Sum(1, Op("Tanh", t))), "Gelu", _plain(approximate="tanh")) for t in _TANH),
    Known(Product(1 / 6, X, Op("Clip", Sum(3, X), 0, 6)), "HardSwish", _plain()),
    Known(Product(1, X, Op("Tanh", Op("Softplus", X))), "Mish", _plain()),
    Known(Product(1, _EXP, Inverse(Op("ReduceSum", _EXP))), "Softmax", _last_axis),
    Known(Product(1, _CENTRED, Inverse(_DEVIATION)), "LayerNormalization", _norm),
    Known(
        Product(1, X, Inverse(Op("Sqrt", Sum("epsilon", Op("ReduceMean", Product(1, X, X)))))),
        "RMSNormalization",
        _norm,
    ),
)
NORMS = ("LayerNormalization", "RMSNormalization")


def recognise(sweep: Sweep, node: Node) -> bool:
    """Any spelling of KNOWN  ->  its operator"""
    result = node.outputs[0]
    if not sweep.is_float(result):
        return False
    matcher = Matcher(sweep)
    for known in KNOWN:
        bound = matcher.match(known.before, result)
        attributes = None if bound is None else known.check(sweep, bound, result)
        if bound is None or attributes is None or not sweep.claim(node):
            continue
        inputs = [bound["x"]]
        if known.after in NORMS:
            shape = sweep.type(bound["x"]).shape
            assert shape is not None
            ones = np.ones(int(shape[-1]), sweep.type(result).dtype)
            inputs.append(sweep.edit.constant(ones, f"{result}_gamma"))
        sweep.edit.replace(node, known.after, inputs, attributes)
        return True
    return False


def scaled_norm(sweep: Sweep, node: Node) -> bool:
    """x * r * g with r = rsqrt(...), in the order that leaves r * g a value of its own

    d = x - mean(x); s = g / sqrt(mean(d^2) + e); x * s + (b - mean(x) * s)  ->  LayerNormalization(x, g, b)
    """
    bound = Matcher(sweep).match(_TWO_STEP, node.outputs[0])
    if bound is None:
        return False
    attributes = _norm(sweep, bound, node.outputs[0])
    gamma, beta = (_vector(sweep, bound["x"], bound[key]) for key in ("gamma", "beta"))
    if attributes is None or gamma is None or beta is None or not sweep.claim(node):
        return False
    names = [sweep.edit.constant(array, bound[key]) for key, array in (("gamma", gamma), ("beta", beta))]
    sweep.edit.replace(node, "LayerNormalization", [bound["x"], *names], attributes)
    return True


_TWO_STEP = Sum(0, Product(1, X, _SCALED), Var("beta"), Inverse(Product(1, _MEAN, _SCALED)))


def _vector(sweep: Sweep, x: str, name: str) -> Array | None:
    """A constant as a vector over the last dimension of x."""
    array, shape = sweep.constant(name), sweep.shape(x)
    if (
        array is None
        or shape is None
        or array.size not in {1, shape[-1]}
        or (array.ndim and array.shape[-1] != array.size)
    ):
        return None
    return np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (shape[-1],)))


def scale_norm(sweep: Sweep, node: Node) -> bool:
    """LayerNormalization(x, g) * s  ->  LayerNormalization(x, g s); RMSNormalization alike"""
    found = _norm_and_vector(sweep, node, NORMS)
    if found is None:
        return False
    norm, vector = found
    gamma = sweep.constant(norm.inputs[1])
    if gamma is None or gamma.shape != vector.shape or len(norm.inputs) > 2 or not sweep.claim(node, norm):
        return False
    scaled = (gamma.astype(np.float64) * vector.astype(np.float64)).astype(gamma.dtype)
    sweep.edit.replace(
        norm, inputs=[norm.inputs[0], sweep.rewritten(norm.inputs[1], scaled, norm)], outputs=node.outputs
    )
    sweep.edit.remove(node)
    return True


def shift_norm(sweep: Sweep, node: Node) -> bool:
    """LayerNormalization(x, g) + b  ->  LayerNormalization(x, g, b)"""
    found = _norm_and_vector(sweep, node, ("LayerNormalization",))
    if found is None:
        return False
    norm, vector = found
    bias = sweep.constant(norm.inputs[2]) if sweep.operand(norm, 2) else np.zeros_like(vector)
    if bias is None or bias.shape != vector.shape or not sweep.claim(node, norm):
        return False
    shifted = (bias.astype(np.float64) + vector.astype(np.float64)).astype(vector.dtype)
    name = sweep.edit.constant(shifted, f"{node.outputs[0]}_beta")
    sweep.edit.replace(norm, inputs=[*norm.inputs[:2], name], outputs=node.outputs)
    sweep.edit.remove(node)
    return True


def _norm_and_vector(sweep: Sweep, node: Node, ops: tuple[str, ...]) -> tuple[Node, Array] | None:
    """The normalization over the last axis that one operand is, and the constant vector that the other is."""
    for index in (0, 1):
        name, other = node.inputs[index], node.inputs[1 - index]
        norm = sweep.producer(name, *ops)
        if norm is None or not sweep.sole(name) or any(norm.outputs[1:]) or not sweep.same_type(name, node.outputs[0]):
            continue
        vector, rank = _vector(sweep, name, other), sweep.rank(name)
        if vector is not None and rank is not None and norm.get_int("axis", -1) in {-1, rank - 1}:
            return norm, vector
    return None


def keep_dimensions(sweep: Sweep, node: Node) -> bool:
    """Reshape(ReduceMean(x, keepdims=0))  ->  ReduceMean(x, keepdims=1), where that is the shape"""
    inner = sweep.producer(node.inputs[0])
    if (
        inner is None
        or not inner.op.startswith("Reduce")
        or inner.get_int("keepdims", 1)
        or not sweep.sole(node.inputs[0])
    ):
        return False
    shape, wanted = sweep.shape(inner.inputs[0]), sweep.shape(node.outputs[0])
    axes = sweep.integers(sweep.operand(inner, 1))
    if shape is None or wanted is None or not axes:
        return False
    reduced = {axis % len(shape) for axis in axes}
    if wanted != tuple(1 if i in reduced else d for i, d in enumerate(shape)) or not sweep.claim(node, inner):
        return False
    sweep.edit.replace(inner, attributes={**inner.attributes, "keepdims": 1}, outputs=node.outputs)
    sweep.edit.remove(node)
    return True


_BY_OPERATOR: tuple[tuple[Rule, tuple[str, ...]], ...] = (
    (keep_dimensions, ("Reshape",)),
    (scaled_norm, ("Add", "Sub")),
    (recognise, ("Mul", "Div")),
    (scale_norm, ("Mul",)),
    (shift_norm, ("Add",)),
)

RULES: Rules = by_operator(_BY_OPERATOR)
