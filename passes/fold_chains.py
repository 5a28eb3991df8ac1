"""Affine layers that stand alone: chains become one scale and one shift, BatchNormalization its arithmetic.

    Mul(Mul(x, a), b)        ->  Mul(x, a b)
    Mul(Add(x, a), b)        ->  Add(Mul(x, b), a b)      where x is scaled already: the scales then meet
    BatchNormalization(x)    ->  Add(Mul(x, s), t)        where no layer takes it in

Two shifts merge only where they do not cancel: `(x + 2^23) - 2^23` rounds x, and stays.
"""

import numpy as np

from graphc.ir.graph import Array, Node
from graphc.passes.fold_affine import OPERATORS, Affine, Floats, affine
from graphc.passes.fold_sweep import Rules, Sweep, by_operator

CANCELS = 0.5
"""Two shifts cancel where their sum is smaller than this part of the larger one."""


def merge_chain(sweep: Sweep, node: Node) -> bool:
    """Two affine layers: a scale over a scale, a shift over a shift, or a scale that meets another further up"""
    second = affine(sweep, node)
    if second is None or not sweep.sole(second.x):
        return False
    inner = sweep.producer(second.x, *OPERATORS)
    first = affine(sweep, inner)
    if first is None or inner is None or not _mergeable(sweep, first, second):
        return False
    with np.errstate(all="ignore"):
        merged = Affine(first.x, first.scale * second.scale, first.shift * second.scale + second.shift)
    if max(merged.scale.size, merged.shift.size) > max(
        first.scale.size, first.shift.size, second.scale.size, second.shift.size
    ):
        return False
    return _emit(sweep, node, merged, (inner,))


def _mergeable(sweep: Sweep, first: Affine, second: Affine) -> bool:
    if not first.shifts and not second.shifts:
        return True
    if not first.scales and not second.scales:
        return not _cancel(first.shift, second.shift)
    if first.scales or not first.shifts or second.shifts:
        return False
    return affine(sweep, sweep.producer(first.x, "Mul", "Div", "Neg")) is not None and sweep.sole(first.x)


def _cancel(a: Floats, b: Floats) -> bool:
    return bool(np.any(np.abs(a + b) < CANCELS * np.maximum(np.abs(a), np.abs(b))))


def split_batch_norm(sweep: Sweep, node: Node) -> bool:
    """BatchNormalization(x)  ->  Add(Mul(x, s), t)"""
    step = affine(sweep, node)
    return step is not None and _emit(sweep, node, step, ())


def _emit(sweep: Sweep, node: Node, step: Affine, removed: tuple[Node, ...]) -> bool:
    """Write `step` as Mul and Add in place of `node`."""
    result, dtype = node.outputs[0], sweep.type(node.outputs[0]).dtype
    scale, shift = _rounded(step.scale, dtype), _rounded(step.shift, dtype)
    if scale is None or shift is None or not (step.scales or step.shifts) or not sweep.claim(node, *removed):
        return False
    edit = sweep.edit
    edit.remove(*removed)
    if not step.shifts:
        edit.replace(node, "Mul", [step.x, edit.constant(scale, f"{result}_scale")], {})
        return True
    source = step.x
    if step.scales:
        name = edit.constant(scale, f"{result}_scale")
        source = edit.add(
            "Mul", [source, name], name=f"{node.name}_mul", outputs=[edit.fresh(f"{result}_scaled")], near=node
        )
    edit.replace(node, "Add", [source, edit.constant(shift, f"{result}_shift")], {})
    return True


def _rounded(values: Floats, like: np.dtype[np.generic]) -> Array | None:
    """In the model's type; None where something overflows, or a factor vanishes."""
    with np.errstate(all="ignore"):
        array = values.astype(like)
    kept = np.isfinite(array).all() and np.array_equal(array == 0, values == 0)
    return array if kept else None


RULES: Rules = by_operator(((merge_chain, OPERATORS), (split_batch_norm, ("BatchNormalization",))))
