"""Transposes: pushed towards the outputs, where they meet and cancel.

    Transpose(Transpose(x))                    ->  Transpose(x), or x
    Relu(Transpose(x))                         ->  Transpose(Relu(x))
    Add(Transpose(x), c)                       ->  Transpose(Add(x, c'))       c' is the constant transposed back
    Add(Transpose(a), Transpose(b))            ->  Transpose(Add(a, b))        one permutation
    Transpose(Add(Transpose(x), y))            ->  Add(x, Transpose(y))        where the outer one undoes the inner
    Concat, Softmax, Reduce*, ArgMax, Pad, Slice of a Transpose                the axes are renamed
    Transpose that only moves dimensions of 1  ->  Reshape
    Transpose(Reshape(x)) over dimensions of 1 ->  Reshape(Transpose(x))
    Gemm(Transpose(a), b)                      ->  Gemm(a, b, transA)

Each step removes a Transpose, or moves one towards the outputs; none makes more of them.
"""

from collections.abc import Mapping

import numpy as np

from graphc.ir.graph import Attribute, Node
from graphc.passes.fold_pads import pad_amounts
from graphc.passes.fold_reshapes import BINARY, UNARY
from graphc.passes.fold_sweep import Rules, Sweep, by_operator

Permutation = tuple[int, ...]

REDUCTIONS = (
    *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum"),
    *("ReduceLogSumExp", "ReduceSumSquare"),
)
LARGEST = 1 << 20
"""Bytes of a constant up to which it is transposed along; what is larger is a table, not a bias."""


def permutation(sweep: Sweep, node: Node) -> Permutation | None:
    """Result dimension i of a Transpose is operand dimension `permutation[i]`. None where the rank is unknown."""
    rank = sweep.rank(node.inputs[0])
    return None if rank is None else (node.get_ints("perm") or tuple(reversed(range(rank))))


def inverse(order: Permutation) -> Permutation:
    return tuple(order.index(i) for i in range(len(order)))


def simplify(sweep: Sweep, node: Node) -> bool:
    """Transpose(x) in order  ->  x; one that only moves dimensions of 1  ->  Reshape(x)"""
    order, shape = permutation(sweep, node), sweep.shape(node.inputs[0])
    if order is None or sweep.is_decoded(node.inputs[0]):
        return False
    if order == tuple(range(len(order))):
        return sweep.forward(node, node.inputs[0])
    if shape is None or 0 in shape:
        return False
    kept = [axis for axis in order if shape[axis] != 1]
    if kept != sorted(kept) or not sweep.claim(node):
        return False
    dims = sweep.shape_constant([shape[axis] for axis in order], f"{node.outputs[0]}_shape")
    sweep.edit.replace(node, "Reshape", [node.inputs[0], dims], {})
    return True


def merge(sweep: Sweep, node: Node) -> bool:
    """Transpose(Transpose(x))  ->  Transpose(x), or x"""
    inner = sweep.producer(node.inputs[0], "Transpose")
    if inner is None:
        return False
    outer, first = permutation(sweep, node), permutation(sweep, inner)
    if outer is None or first is None:
        return False
    order = tuple(first[axis] for axis in outer)
    if order == tuple(range(len(order))):
        return sweep.forward(node, inner.inputs[0], through=[inner])
    if not sweep.claim(node, through=[inner]):
        return False
    sweep.edit.replace(node, inputs=[inner.inputs[0]], attributes={"perm": order})
    return True


def past_reshape(sweep: Sweep, node: Node) -> bool:
    """Transpose(Reshape(x))  ->  Reshape(Transpose(x)), where the Reshape only adds or drops dimensions of 1"""
    move, order = sweep.producer(node.inputs[0], "Reshape"), permutation(sweep, node)
    if move is None or order is None or sweep.is_decoded(node.inputs[0]):
        return False
    before, between = sweep.shape(move.inputs[0]), sweep.shape(node.inputs[0])
    if before is None or between is None or 0 in between:
        return False
    inner = [axis for axis, d in enumerate(before) if d != 1]
    outer = [axis for axis, d in enumerate(between) if d != 1]
    if [before[axis] for axis in inner] != [between[axis] for axis in outer]:
        return False
    wanted = [inner[outer.index(axis)] for axis in order if between[axis] != 1]
    slots = iter(wanted)
    turn = tuple(next(slots) if d != 1 else axis for axis, d in enumerate(before))
    if not sweep.claim(node, through=[move]):
        return False
    result = node.outputs[0]
    turned = sweep.edit.fresh(f"{result}_unshaped")
    sweep.edit.replace(node, inputs=[move.inputs[0]], attributes={"perm": turn}, outputs=[turned])
    dims = sweep.shape_constant([between[axis] for axis in order], f"{result}_shape")
    sweep.edit.add("Reshape", [turned, dims], name=f"{node.name}_shape", outputs=[result], near=node)
    return True


def _movable(sweep: Sweep, name: str) -> tuple[Node, Permutation] | None:
    """The Transpose behind `name` and its order, where it has no other reader and may be moved."""
    move = sweep.producer(name, "Transpose")
    if move is None or sweep.graph.sole_user(name) is None or sweep.is_decoded(name):
        return None
    order = permutation(sweep, move)
    return None if order is None or move.inputs[0] in sweep.graph.constants else (move, order)


def sink(
    sweep: Sweep,
    node: Node,
    moves: tuple[Node, ...],
    inputs: list[str],
    order: Permutation,
    *,
    attributes: Mapping[str, Attribute] | None = None,
) -> bool:
    """Let `node` read `inputs`, what `moves` transposed, and transpose its result by `order`."""
    if any(node.outputs[1:]) or not sweep.claim(node, *moves):
        return False
    _record(sweep, node, moves, inputs, order, attributes=attributes)
    return True


def _record(
    sweep: Sweep,
    node: Node,
    moves: tuple[Node, ...],
    inputs: list[str],
    order: Permutation,
    *,
    attributes: Mapping[str, Attribute] | None = None,
) -> None:
    """Write what `sink` promises, for nodes that are claimed."""
    result = node.outputs[0]
    moved = sweep.edit.fresh(f"{result}_untransposed")
    sweep.edit.replace(node, inputs=inputs, outputs=[moved], attributes=attributes)
    sweep.edit.remove(*moves)
    if order == tuple(range(len(order))):
        sweep.edit.replace(moves[0], "Identity", [moved], {}, outputs=[result])
    else:
        sweep.edit.replace(moves[0], inputs=[moved], attributes={"perm": order}, outputs=[result])


def past_unary(sweep: Sweep, node: Node) -> bool:
    """Relu(Transpose(x))  ->  Transpose(Relu(x))"""
    found = _movable(sweep, node.inputs[0])
    if found is None:
        return False
    move, order = found
    return sink(sweep, node, (move,), [move.inputs[0], *node.inputs[1:]], order)


def past_constant(sweep: Sweep, node: Node) -> bool:
    """Add(Transpose(x), c)  ->  Transpose(Add(x, c')), c' transposed back"""
    for index in (0,) if node.op == "PRelu" else (0, 1):
        found, array = _movable(sweep, node.inputs[index]), sweep.constant(node.inputs[1 - index])
        if found is None or array is None or array.nbytes > LARGEST:
            continue
        move, order = found
        if array.ndim > len(order) or sweep.rank(node.outputs[0]) != len(order):
            continue
        if not sweep.claim(node, move):
            return False
        constant = node.inputs[1 - index]
        if array.size > 1:
            full = array.reshape((1,) * (len(order) - array.ndim) + array.shape)
            constant = sweep.rewritten(constant, np.ascontiguousarray(full.transpose(inverse(order))), node)
        elif array.ndim:
            constant = sweep.rewritten(constant, array.reshape(()), node)
        inputs = [move.inputs[0], constant] if index == 0 else [constant, move.inputs[0]]
        _record(sweep, node, (move,), inputs, order)
        return True
    return False


def past_pair(sweep: Sweep, node: Node) -> bool:
    """Add(Transpose(a), Transpose(b))  ->  Transpose(Add(a, b)); also Mul(t, t), Where, Max, ..."""
    if len(node.inputs) < 2 or node.op == "PRelu" or any(name in sweep.graph.constants for name in node.inputs):
        return False
    found = [_movable(sweep, name) for name in node.inputs]
    moves = [pair[0] for pair in found if pair is not None]
    orders = {pair[1] for pair in found if pair is not None}
    if len(moves) < len(node.inputs) or len(orders) != 1 or len({sweep.rank(name) for name in node.inputs}) != 1:
        return False
    return sink(sweep, node, tuple(dict.fromkeys(moves)), [move.inputs[0] for move in moves], orders.pop())


def across(sweep: Sweep, node: Node) -> bool:
    """Transpose(Add(Transpose(x), y))  ->  Add(x, Transpose(y)), where the outer Transpose undoes the inner"""
    middle = sweep.producer(node.inputs[0], *BINARY)
    order = permutation(sweep, node)
    if (
        middle is None
        or order is None
        or len(middle.inputs) != 2
        or not sweep.sole(node.inputs[0])
        or middle.op == "PRelu"
    ):
        return False
    for index in (0, 1):
        found, other = _movable(sweep, middle.inputs[index]), middle.inputs[1 - index]
        if found is None or found[1] != inverse(order) or not sweep.sole(middle.inputs[index]):
            continue
        if other in sweep.graph.constants or sweep.rank(other) != len(order) or not sweep.claim(node, middle, found[0]):
            continue
        turned = sweep.edit.fresh(f"{other}_transposed")
        sweep.edit.replace(node, inputs=[other], outputs=[turned])
        source = found[0].inputs[0]
        sweep.edit.replace(middle, inputs=[source, turned] if index == 0 else [turned, source], outputs=node.outputs)
        sweep.edit.remove(found[0])
        return True
    return False


def past_concat(sweep: Sweep, node: Node) -> bool:
    """Concat(Transpose(a), Transpose(b), axis)  ->  Transpose(Concat(a, b, axis'))"""
    found = [_movable(sweep, name) for name in node.inputs]
    moves = [pair[0] for pair in found if pair is not None]
    orders = {pair[1] for pair in found if pair is not None}
    if len(set(moves)) < len(node.inputs) or len(orders) != 1:
        return False
    order = orders.pop()
    axis = order[node.get_int("axis", 0) % len(order)]
    return sink(sweep, node, tuple(moves), [move.inputs[0] for move in moves], order, attributes={"axis": axis})


def past_one_axis(sweep: Sweep, node: Node) -> bool:
    """Softmax(Transpose(x), axis)  ->  Transpose(Softmax(x, axis'))"""
    found = _movable(sweep, node.inputs[0])
    if found is None:
        return False
    move, order = found
    attributes = {**node.attributes, "axis": order[node.get_int("axis", -1) % len(order)]}
    return sink(sweep, node, (move,), [move.inputs[0]], order, attributes=attributes)


def past_reduction(sweep: Sweep, node: Node) -> bool:
    """ReduceMean(Transpose(x), axes)  ->  Transpose(ReduceMean(x, axes'))"""
    found, axes = _movable(sweep, node.inputs[0]), sweep.integers(sweep.operand(node, 1))
    if found is None or not axes:
        return False
    move, order = found
    renamed = sorted(order[axis % len(order)] for axis in axes)
    left = order if node.get_int("keepdims", 1) else _without(order, set(renamed))
    inputs = [move.inputs[0], sweep.edit.constant(np.array(renamed, np.int64), f"{node.outputs[0]}_axes")]
    return sink(sweep, node, (move,), inputs, left)


def past_arg(sweep: Sweep, node: Node) -> bool:
    """ArgMax(Transpose(x), axis)  ->  Transpose(ArgMax(x, axis'))"""
    found = _movable(sweep, node.inputs[0])
    if found is None:
        return False
    move, order = found
    axis = order[node.get_int("axis", 0) % len(order)]
    left = order if node.get_int("keepdims", 1) else _without(order, {axis})
    return sink(sweep, node, (move,), [move.inputs[0]], left, attributes={**node.attributes, "axis": axis})


def _without(order: Permutation, removed: set[int]) -> Permutation:
    """The permutation of the dimensions that are left."""
    left = [axis for axis in order if axis not in removed]
    return tuple(sorted(left).index(axis) for axis in left)


def past_pad(sweep: Sweep, node: Node) -> bool:
    """Pad(Transpose(x), pads)  ->  Transpose(Pad(x, pads'))"""
    found, amounts = _movable(sweep, node.inputs[0]), pad_amounts(sweep, node)
    if found is None or amounts is None:
        return False
    move, order = found
    rank, back = len(order), inverse(order)
    turned = [amounts[axis] for axis in back] + [amounts[axis + rank] for axis in back]
    pads = sweep.shape_constant(turned, f"{node.outputs[0]}_pads")
    return sink(sweep, node, (move,), [move.inputs[0], pads, *node.inputs[2:3]], order)


def past_slice(sweep: Sweep, node: Node) -> bool:
    """Slice(Transpose(x), axes)  ->  Transpose(Slice(x, axes'))"""
    found, starts = _movable(sweep, node.inputs[0]), sweep.integers(sweep.operand(node, 1))
    if found is None or starts is None:
        return False
    move, order = found
    given = sweep.operand(node, 3)
    axes = sweep.integers(given) if given else tuple(range(len(starts)))
    if axes is None:
        return False
    renamed = sweep.shape_constant([order[axis % len(order)] for axis in axes], f"{node.outputs[0]}_axes")
    return sink(sweep, node, (move,), [move.inputs[0], *node.inputs[1:3], renamed, *node.inputs[4:]], order)


def into_gemm(sweep: Sweep, node: Node) -> bool:
    """Gemm(Transpose(a), b)  ->  Gemm(a, b, transA=1); for b alike"""
    for index, key in ((0, "transA"), (1, "transB")):
        found = _movable(sweep, node.inputs[index])
        if found is None or found[1] != (1, 0) or not sweep.claim(node, found[0]):
            continue
        inputs = list(node.inputs)
        inputs[index] = found[0].inputs[0]
        sweep.edit.remove(found[0])
        sweep.edit.replace(node, inputs=inputs, attributes={**node.attributes, key: 1 - node.get_int(key, 0)})
        return True
    return False


RULES: Rules = by_operator(
    (
        (simplify, ("Transpose",)),
        (merge, ("Transpose",)),
        (past_reshape, ("Transpose",)),
        (across, ("Transpose",)),
        (past_unary, UNARY),
        (past_constant, BINARY),
        (past_pair, (*BINARY, "Where", "Sum", "Mean")),
        (past_concat, ("Concat",)),
        (past_one_axis, ("Softmax", "LogSoftmax", "Hardmax")),
        (past_reduction, REDUCTIONS),
        (past_arg, ("ArgMax", "ArgMin")),
        (past_pad, ("Pad",)),
        (past_slice, ("Slice",)),
        (into_gemm, ("Gemm",)),
    )
)
