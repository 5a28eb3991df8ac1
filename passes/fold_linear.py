"""Affine layers and padding go into the linear layer before or behind them.

    after:   (W x + b) * s + t           ->  (s W) x + (s b + t)          one s, t per output channel
    before:  W (x * s + t) + b           ->  (W s) x + (W t + b)          one s, t per input channel

Convolutions, ConvTranspose, Gemm and MatMul, in float64, then rounded once. A shift before a padded convolution stays:
at the border the padding is not shifted; what scales a model's input goes past it. Weights that another layer shares,
or that a decoder makes, stay as they are. MatMul of matrices with a constant weight becomes Gemm when it gets a bias;
in higher ranks the bias stays an Add.
"""

from dataclasses import dataclass, replace

import numpy as np

from graphc.ir.graph import Array, Attribute, Node
from graphc.passes.fold_affine import OPERATORS, Affine, Floats, affine, per_channel
from graphc.passes.fold_sweep import Rules, Sweep, by_operator

CONVOLUTIONS = ("Conv", "ConvTranspose")
LAYERS = (*CONVOLUTIONS, "Gemm", "MatMul")


@dataclass(frozen=True)
class Linear:
    """A linear layer with constant weights: W is always [out, in, ...] per group; `bias` is a vector over outputs.

    `weight` is None where it is no constant: then only the bias can change.
    """

    node: Node
    weight: Floats | None
    bias: Floats
    groups: int
    rank: int
    outputs: int

    @property
    def output_axis(self) -> int:
        return 1 if self.node.op in CONVOLUTIONS else self.rank - 1


def linear(sweep: Sweep, node: Node | None) -> Linear | None:
    """`node` as a linear layer whose bias is constant (or absent)."""
    if node is None or node.op not in LAYERS or not sweep.is_float(node.outputs[0]):
        return None
    rank, shape = sweep.rank(node.outputs[0]), sweep.shape(node.inputs[1])
    if (
        rank is None
        or shape is None
        or (node.op == "MatMul" and (len(shape) != 2 or sweep.rank(node.inputs[0]) != rank))
    ):
        return None
    if node.op == "Gemm" and (node.get_float("alpha", 1.0) == 0 or node.get_int("transA", 0)):
        return None
    groups = node.get_int("group", 1) if node.op in CONVOLUTIONS else 1
    outputs = _output_count(node, shape, groups)
    bias = _bias(sweep, node, outputs)
    array = sweep.constant(node.inputs[1])
    weight = None if array is None else _unfold(node, array.astype(np.float64), groups)
    return None if bias is None else Linear(node, weight, bias, groups, rank, outputs)


def _output_count(node: Node, shape: tuple[int, ...], groups: int) -> int:
    match node.op:
        case "Conv":
            return shape[0]
        case "ConvTranspose":
            return shape[1] * groups
        case "Gemm" if node.get_int("transB", 0):
            return shape[0]
    return shape[1]


def _bias(sweep: Sweep, node: Node, outputs: int) -> Floats | None:
    """The bias as a vector, Gemm's beta applied; zeros where there is none. None where it is not a constant vector."""
    name = sweep.operand(node, 2) if node.op != "MatMul" else ""
    if not name:
        return np.zeros(outputs)
    array = sweep.constant(name)
    if array is None:
        return None
    factor = node.get_float("beta", 1.0) if node.op == "Gemm" else 1.0
    return per_channel(array.astype(np.float64) * factor, max(array.ndim, 1), max(array.ndim, 1) - 1, outputs)


def _unfold(node: Node, weight: Floats, groups: int) -> Floats:
    """The stored weight as [groups, out, in, ...] (out and in per group)."""
    if node.op == "Conv":
        return weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    if node.op == "ConvTranspose":
        return np.swapaxes(weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:]), 1, 2)
    transposed = node.op == "Gemm" and node.get_int("transB", 0)
    return (weight if transposed else weight.T)[np.newaxis]


def _fold_back(node: Node, weight: Floats, shape: tuple[int, ...]) -> Floats:
    """The inverse of `_unfold`."""
    if node.op == "Conv":
        return weight.reshape(shape)
    if node.op == "ConvTranspose":
        return np.swapaxes(weight, 1, 2).reshape(shape)
    matrix: Floats = weight[0]
    return matrix if node.op == "Gemm" and node.get_int("transB", 0) else matrix.T


def _rounded(values: Floats, like: np.dtype[np.generic]) -> Array | None:
    """`values` in the model's type; None where a finite value would not stay finite."""
    with np.errstate(over="ignore"):
        array = values.astype(like)
    return array if np.isfinite(array).all() else None


def fold_after(sweep: Sweep, node: Node) -> bool:
    """BatchNormalization(Conv(x, W, b))  ->  Conv(x, s W, s b + t)"""
    layer_node = sweep.producer(_variable(sweep, node), *LAYERS)
    if layer_node is None or not sweep.sole(layer_node.outputs[0]):
        return False
    step, layer = affine(sweep, node), linear(sweep, layer_node)
    if step is None or layer is None:
        return False
    vectors = _vectors(step, layer.rank, layer.output_axis, layer.outputs)
    if vectors is None:
        return False
    scale, shift = vectors
    if step.scales and not _may_change_weight(sweep, layer, node):
        return False
    if not step.scales and layer_node.op == "MatMul" and layer.rank != 2:
        return False
    weight = None
    if step.scales and layer.weight is not None:
        weight = layer.weight * scale.reshape(layer.groups, -1, *(1,) * (layer.weight.ndim - 2))
    merged = Merged(layer_node.inputs[0], node.outputs[0], weight, layer.bias * scale + shift)
    return _write(sweep, node, layer, merged)


def _variable(sweep: Sweep, node: Node) -> str:
    """The operand that is no constant, of a node with one such."""
    return next((name for name in node.inputs if name not in sweep.graph.constants), node.inputs[0])


def _vectors(step: Affine, rank: int, axis: int, channels: int) -> tuple[Floats, Floats] | None:
    scale, shift = per_channel(step.scale, rank, axis, channels), per_channel(step.shift, rank, axis, channels)
    return None if scale is None or shift is None else (scale, shift)


def _may_change_weight(sweep: Sweep, layer: Linear, other: Node) -> bool:
    """Whether the layer's weights are its own constants; says why not."""
    name = layer.node.inputs[1]
    if layer.weight is None:
        if sweep.is_decoded(name):
            sweep.refuse(other, f"the weights of {layer.node.label} come from a decoder")
        return False
    if sweep.graph.sole_user(name) is not layer.node:
        users = [user.label for user in sweep.graph.users.get(name, ()) if user is not layer.node]
        sweep.refuse(other, f"the weights of {layer.node.label} are shared with {users[0] if users else 'an output'}")
        return False
    return True


@dataclass(frozen=True)
class Merged:
    """What comes in place of a linear layer and its neighbour: it reads `source` and computes `result`.

    `weight` is unfolded as in Linear; None keeps the weight as it is.
    """

    source: str
    result: str
    weight: Floats | None
    bias: Floats
    between: tuple[Node, ...] = ()
    """Nodes between the two that change as well."""


def _write(sweep: Sweep, other: Node, layer: Linear, merged: Merged) -> bool:
    """Put `merged` in place of `layer` and `other`, if its numbers stay finite and nobody else claims the two."""
    node, weight = layer.node, merged.weight
    dtype = sweep.type(node.inputs[1]).dtype
    new_weight = None
    if weight is not None:
        new_weight = _rounded(_fold_back(node, weight, sweep.type(node.inputs[1]).dims), dtype)
        if new_weight is None:
            sweep.refuse(other, f"merging it into {node.label} would overflow {dtype.name}")
            return False
    new_bias = _rounded(merged.bias, dtype)
    if new_bias is None:
        sweep.refuse(other, f"merging it into {node.label} would overflow {dtype.name}")
        return False
    if not sweep.claim(node, other, *merged.between):
        return False
    _record(sweep, layer, merged, (new_weight, new_bias))
    sweep.edit.remove(other)
    return True


def _record(sweep: Sweep, layer: Linear, merged: Merged, arrays: tuple[Array | None, Array]) -> None:
    node, edit, result, (weight, bias) = layer.node, sweep.edit, merged.result, arrays
    name = node.inputs[1] if weight is None else sweep.rewritten(node.inputs[1], weight, node)
    has_bias = bool(sweep.operand(node, 2)) or bool(np.any(bias != 0))
    if node.op == "MatMul" and has_bias and layer.rank != 2:
        product, label = edit.fresh(f"{result}_product"), f"{node.name or node.outputs[0]}_bias"
        edit.replace(node, inputs=[merged.source, name], outputs=[product])
        edit.add("Add", [product, edit.constant(bias, label)], name=label, outputs=[result], near=node)
        return
    operands = [merged.source, name, *([_bias_name(sweep, node, bias)] if has_bias else [])]
    attributes: dict[str, Attribute] = {key: value for key, value in node.attributes.items() if key != "beta"}
    edit.replace(node, "Gemm" if node.op == "MatMul" and has_bias else node.op, operands, attributes, outputs=[result])


def _bias_name(sweep: Sweep, node: Node, bias: Array) -> str:
    name = sweep.operand(node, 2)
    if name:
        return sweep.rewritten(name, bias, node)
    return sweep.edit.constant(bias, f"{node.name or node.outputs[0]}_bias")


def fold_before(sweep: Sweep, node: Node) -> bool:
    """Conv(x * s + t, W, b), no padding  ->  Conv(x, W s, W t + b); a Transpose may stand between

    A Reshape may, where s and t are single numbers.
    """
    name = node.inputs[0]
    move = sweep.producer(name, "Transpose", "Reshape")
    other = sweep.producer(name if move is None else move.inputs[0], *OPERATORS)
    if other is None or not sweep.sole(name) or not sweep.sole(other.outputs[0]):
        return False
    step, layer = affine(sweep, other), linear(sweep, node)
    if step is None or layer is None or layer.weight is None or not _may_change_weight(sweep, layer, other):
        return False
    vectors = _input_vectors(sweep, layer, step, move)
    if vectors is None:
        return False
    if step.shifts and not _sees_no_border(node):
        sweep.refuse(other, f"its shift would not reach the padding of {node.label}")
        return False
    scale, shift = (_along_inputs(layer, vector) for vector in vectors)
    alpha = node.get_float("alpha", 1.0) if node.op == "Gemm" else 1.0
    moved = (layer.weight * shift).sum(axis=tuple(range(2, layer.weight.ndim))).reshape(-1) * alpha
    source = step.x if move is None else name
    between = () if move is None else (move,)
    merged = Merged(source, node.outputs[0], layer.weight * scale, layer.bias + moved, between)
    done = _write(sweep, other, layer, merged)
    if done and move is not None:
        sweep.edit.replace(move, inputs=[step.x, *move.inputs[1:]])
    return done


def fold_scale_of_input(sweep: Sweep, node: Node) -> bool:
    """Conv(x * s + t, W, b), padded, x an input of the model  ->  Conv(x + t / s, W s, b)

    As preprocessing has it. The border stays where it was: at zero of what is shifted. Inside a model a scale per
    channel keeps values alike for one grid of integers, and stays.
    """
    name = node.inputs[0]
    move = sweep.producer(name, "Transpose", "Reshape")
    other = sweep.producer(name if move is None else move.inputs[0], "Add", "Sub")
    shift = affine(sweep, other)
    if other is None or shift is None or shift.scales or not (sweep.sole(name) and sweep.sole(other.outputs[0])):
        return False
    inner = sweep.producer(shift.x, "Mul", "Div")
    scale, layer = affine(sweep, inner), linear(sweep, node)
    if inner is None or scale is None or layer is None or layer.weight is None or not scale.scale.all():
        return False
    if _sees_no_border(node) or not sweep.sole(shift.x) or not _is_input(sweep, scale.x):
        return False
    vectors, dtype = _input_vectors(sweep, layer, scale, move), sweep.type(scale.x).dtype
    moved = _rounded(shift.shift / scale.scale, dtype)
    if vectors is None or moved is None or not _may_change_weight(sweep, layer, inner):
        return False
    between = (other,) if move is None else (other, move)
    weight = layer.weight * _along_inputs(layer, vectors[0])
    done = _write(sweep, inner, layer, Merged(name, node.outputs[0], weight, layer.bias, between))
    if done:
        sweep.edit.replace(other, "Add", [scale.x, sweep.edit.constant(moved, f"{other.outputs[0]}_shift")], {})
    return done


def _is_input(sweep: Sweep, name: str) -> bool:
    """Whether a value is an input of the model, but for its type and layout."""
    while (maker := sweep.producer(name, "Cast", "Transpose", "Reshape")) is not None:
        name = maker.inputs[0]
    return name in sweep.graph.inputs and name not in sweep.graph.constants


def _along_inputs(layer: Linear, vector: Floats) -> Floats:
    """A number per input channel, to broadcast against the layer's unfolded weight."""
    assert layer.weight is not None
    return vector.reshape(layer.groups, 1, -1, *(1,) * (layer.weight.ndim - 3))


def _input_vectors(sweep: Sweep, layer: Linear, step: Affine, move: Node | None) -> tuple[Floats, Floats] | None:
    """Scale and shift per input channel of `layer`, behind the Transpose or Reshape `move` if there is one."""
    rank = sweep.rank(layer.node.inputs[0])
    if rank is None or layer.weight is None:
        return None
    if move is not None and move.op == "Reshape":
        if max(step.scale.size, step.shift.size) > 1:
            return None
        step = replace(step, scale=step.scale.reshape(()), shift=step.shift.reshape(()))
    elif move is not None:
        step = _transposed(step, rank, move)
    axis = 1 if layer.node.op in CONVOLUTIONS else rank - 1
    return _vectors(step, rank, axis, layer.groups * layer.weight.shape[2])


def _transposed(step: Affine, rank: int, move: Node) -> Affine:
    """The layer as it is behind a Transpose."""
    order = move.get_ints("perm") or tuple(reversed(range(rank)))
    scale, shift = (a.reshape((1,) * (rank - a.ndim) + a.shape).transpose(order) for a in (step.scale, step.shift))
    return replace(step, scale=scale, shift=shift)


def _sees_no_border(node: Node) -> bool:
    """Whether every output element sees a whole window of inputs."""
    if node.op not in CONVOLUTIONS:
        return True
    if node.op == "ConvTranspose":
        return False
    return not any(node.get_ints("pads")) and node.get_str("auto_pad", "NOTSET") in {"NOTSET", "VALID"}


def fold_past_bias(sweep: Sweep, node: Node) -> bool:
    """Mul(Add(MatMul(x, W), b), s)  ->  Add(MatMul(x, s W), s b), in ranks where MatMul keeps its bias outside"""
    add = sweep.producer(_variable(sweep, node), "Add")
    if add is None or not sweep.sole(add.outputs[0]):
        return False
    product = sweep.producer(_variable(sweep, add), "MatMul")
    if product is None or not sweep.sole(product.outputs[0]):
        return False
    first, second, layer = affine(sweep, add), affine(sweep, node), linear(sweep, product)
    if first is None or second is None or layer is None or layer.rank == 2 or first.x != product.outputs[0]:
        return False
    both = replace(second, shift=first.shift * second.scale + second.shift)
    vectors = _vectors(both, layer.rank, layer.rank - 1, layer.outputs)
    if vectors is None or (second.scales and not _may_change_weight(sweep, layer, node)) or layer.weight is None:
        return False
    scale, shift = vectors
    weight = layer.weight * scale.reshape(1, -1, 1) if second.scales else None
    done = _write(sweep, node, layer, Merged(product.inputs[0], node.outputs[0], weight, shift, (add,)))
    if done:
        sweep.edit.remove(add)
    return done


def matmul_to_gemm(sweep: Sweep, node: Node) -> bool:
    """Add(MatMul(x, W), b)  ->  Gemm(x, W, b), for a matrix x and a bias vector b; b, W may be decoder expressions"""
    for index in (0, 1):
        product, bias = sweep.producer(node.inputs[index], "MatMul"), node.inputs[1 - index]
        if product is None or not sweep.sole(product.outputs[0]) or not _is_weight(sweep, product.inputs[1]):
            continue
        shape, result = sweep.shape(product.inputs[1]), sweep.type(node.outputs[0])
        if not _is_weight(sweep, bias) or shape is None or sweep.rank(product.inputs[0]) != 2 or len(shape) != 2:
            continue
        if (
            sweep.shape(bias) != (shape[1],)
            or not sweep.is_float(node.outputs[0])
            or result != sweep.type(node.inputs[index])
        ):
            continue
        if not sweep.claim(node, product):
            return False
        sweep.edit.replace(product, "Gemm", [*product.inputs, bias], {}, outputs=node.outputs)
        sweep.edit.remove(node)
        return True
    return False


def _is_weight(sweep: Sweep, name: str) -> bool:
    return name in sweep.graph.constants or sweep.is_decoded(name)


RULES: Rules = by_operator(
    (
        (fold_after, OPERATORS),
        (fold_past_bias, OPERATORS),
        (matmul_to_gemm, ("Add",)),
        (fold_scale_of_input, ("Conv",)),
        (fold_before, LAYERS),
    )
)
