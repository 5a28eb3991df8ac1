"""Views: a chain of operators that only move data, written as the shortest chain that reads the same elements.

    Gather(x: [4, 8], 2)                                            ->  Reshape(Slice(x))
    Slice(Slice(x))                                                 ->  Slice(x)
    Gather(Reshape(Transpose(Reshape(x))), 0)   channel shuffle     ->  Slice(x, steps=[2])

Such a chain is an offset and one stride per dimension over the elements of x, as in numpy, which keeps the books here.
Only chains that are a Slice and a Reshape of x are rewritten; a Transpose that is needed stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from graphc.ir.graph import Attribute, Node
from graphc.passes.fold_sweep import Rules, Sweep, by_operator

MOVES = ("Reshape", "Transpose", "Slice", "Gather")
LONGEST = 8
"""Nodes that a chain is followed back over."""
LARGEST = 1 << 28
"""Elements of x up to which its views are worked out (nothing is read or written, but the address range is taken)."""

View = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Chain:
    """`nodes`, first to last, make `view` of value `x`; `base` is x itself as a view."""

    x: str
    nodes: tuple[Node, ...]
    base: View
    view: View

    @property
    def offset(self) -> int:
        """Element of x that the view starts at."""
        return int(self.view.ctypes.data - self.base.ctypes.data)


def shorten(sweep: Sweep, node: Node) -> bool:
    """A chain of moves that ends in `node`  ->  Slice, Reshape, or both"""
    for start in _starts(sweep, node):
        chain = _chain(sweep, start)
        if chain is None:
            continue
        slices = _as_slice(chain)
        if slices is None:
            continue
        needed = (_is_partial(chain, slices)) + (_sliced(chain, slices).shape != chain.view.shape)
        if needed < len(chain.nodes) or (len(chain.nodes) == 1 and node.op == "Gather"):
            return _write(sweep, node, chain, slices)
    return False


def _starts(sweep: Sweep, node: Node) -> list[tuple[Node, ...]]:
    """Chains of moves that end in `node`, longest first."""
    nodes = [node]
    while len(nodes) < LONGEST:
        before = sweep.producer(nodes[0].inputs[0], *MOVES)
        if before is None or sweep.is_decoded(nodes[0].inputs[0]):
            break
        nodes.insert(0, before)
    return [tuple(nodes[i:]) for i in range(len(nodes))]


def _chain(sweep: Sweep, nodes: tuple[Node, ...]) -> Chain | None:
    """The view that `nodes` make. None where one of them copies, or is not known in full."""
    x = nodes[0].inputs[0]
    shape = sweep.shape(x)
    if shape is None or x in sweep.graph.constants or sweep.is_decoded(x) or not 0 < int(np.prod(shape)) <= LARGEST:
        return None
    base: View = np.empty(int(np.prod(shape)), np.uint8).reshape(shape)
    view = base
    for node in nodes:
        moved = _apply(sweep, node, view)
        if moved is None or moved.size == 0 or moved.shape != sweep.shape(node.outputs[0]):
            return None
        view = moved
    return Chain(x, nodes, base, view)


def _apply(sweep: Sweep, node: Node, view: View) -> View | None:
    match node.op:
        case "Reshape":
            return _reshaped(view, sweep.shape(node.outputs[0]))
        case "Transpose":
            return view.transpose(node.get_ints("perm") or None)
        case "Slice":
            return _slice(sweep, node, view)
    return _gather(sweep, node, view)


def _reshaped(view: View, shape: tuple[int, ...] | None) -> View | None:
    """A reshape that does not copy; None where it would."""
    if shape is None:
        return None
    try:
        return np.reshape(view, shape, copy=False)
    except ValueError:
        return None


def _slice(sweep: Sweep, node: Node, view: View) -> View | None:
    starts, ends = sweep.integers(node.inputs[1]), sweep.integers(node.inputs[2])
    axes = sweep.integers(node.inputs[3]) if sweep.operand(node, 3) else tuple(range(len(starts or ())))
    steps = sweep.integers(node.inputs[4]) if sweep.operand(node, 4) else (1,) * len(starts or ())
    if starts is None or ends is None or axes is None or steps is None or any(step < 1 for step in steps):
        return None
    index = [slice(None)] * view.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(start, end, step)
    return view[tuple(index)]


def _gather(sweep: Sweep, node: Node, view: View) -> View | None:
    """Elements at even distances along an axis; indices of any shape that list them in order."""
    array = sweep.constant(node.inputs[1])
    axis = node.get_int("axis", 0) % max(view.ndim, 1)
    if array is None or array.size == 0:
        return None
    wanted = [int(i) % view.shape[axis] for i in array.ravel()]
    steps = {b - a for a, b in pairwise(wanted)} or {1}
    if len(steps) > 1 or min(steps) < 1:
        return None
    part = view[(slice(None),) * axis + (slice(wanted[0], wanted[-1] + 1, steps.pop()),)]
    return _reshaped(part, (*view.shape[:axis], *array.shape, *view.shape[axis + 1 :]))


Slices = tuple[slice, ...]


def _as_slice(chain: Chain) -> Slices | None:
    """Slices of x whose elements, in order, are those of the view; None where there are none."""
    axes = [(axis, n) for axis, n in enumerate(chain.base.shape) if n > 1]
    starts = [chain.offset // chain.base.strides[axis] % n for axis, n in enumerate(chain.base.shape)]
    taken = dict.fromkeys(range(chain.base.ndim), (1, 1))
    for size, stride in _merged(chain.view):
        inner = [(axis, n) for axis, n in axes if chain.base.strides[axis] <= stride < n * chain.base.strides[axis]]
        if not inner or not _spread(chain.base.shape, starts, inner[0][0], (size, stride), taken):
            return None
    found = tuple(
        slice(start, start + (taken[a][0] - 1) * taken[a][1] + 1, taken[a][1]) for a, start in enumerate(starts)
    )
    return found if _reads_the_same(chain, found) else None


def _merged(view: View) -> list[tuple[int, int]]:
    """(size, stride) of the view's dimensions, those that run on into each other as one."""
    merged: list[tuple[int, int]] = []
    for size, stride in zip(view.shape, view.strides, strict=True):
        if size > 1 and merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        elif size > 1:
            merged.append((size, stride))
    return merged


def _spread(
    shape: tuple[int, ...], starts: list[int], axis: int, run: tuple[int, int], taken: dict[int, tuple[int, int]]
) -> bool:
    """Lay a run of (size, stride) over `axis` and, where it covers that axis in full, over the ones before it.

    `taken` gets (length, step) of the axes. False where it does not fit.
    """
    left, stride = run
    unit = int(np.prod(shape[axis + 1 :]))
    if stride % unit:
        return False
    step = stride // unit
    while left > 1:
        if axis < 0:
            return False
        room = -(-(shape[axis] - starts[axis]) // step)
        if left <= room:
            taken[axis] = (left, step)
            return True
        covers = shape[axis] % step == 0 and starts[axis] < step and left % room == 0
        if not covers:
            return False
        taken[axis] = (room, step)
        left, axis, step = left // room, axis - 1, 1
    return True


def _reads_the_same(chain: Chain, slices: Slices) -> bool:
    part = _reshaped(_sliced(chain, slices), chain.view.shape)
    if part is None or part.ctypes.data != chain.view.ctypes.data:
        return False
    pairs = zip(part.shape, part.strides, chain.view.strides, strict=True)
    return all(n == 1 or mine == theirs for n, mine, theirs in pairs)


def _sliced(chain: Chain, slices: Slices) -> View:
    return chain.base[slices]


def _is_partial(chain: Chain, slices: Slices) -> bool:
    return _sliced(chain, slices).shape != chain.base.shape


def _write(sweep: Sweep, node: Node, chain: Chain, slices: Slices) -> bool:
    """Put Slice and Reshape, as far as they are needed, in place of the chain's last node."""
    if not sweep.claim(node, through=chain.nodes[:-1]):
        return False
    edit, result, source = sweep.edit, node.outputs[0], chain.x
    part = _sliced(chain, slices)
    reshaped = part.shape != chain.view.shape
    if _is_partial(chain, slices):
        operands = _slice_operands(sweep, chain, slices, result)
        if not reshaped:
            edit.replace(node, "Slice", [source, *operands], {})
            return True
        outputs = [edit.fresh(f"{result}_slice")]
        source = edit.add("Slice", [source, *operands], name=f"{node.name}_slice", outputs=outputs, near=node)
    none: Mapping[str, Attribute] = {}
    if reshaped:
        edit.replace(node, "Reshape", [source, sweep.shape_constant(chain.view.shape, f"{result}_shape")], none)
    else:
        edit.replace(node, "Identity", [source], none)
    return True


def _slice_operands(sweep: Sweep, chain: Chain, slices: Slices, hint: str) -> list[str]:
    """starts, ends, axes, and steps where they are not 1, for the axes that are cut."""
    cut = [axis for axis, s in enumerate(slices) if _length(s) != chain.base.shape[axis]]
    columns = {
        "starts": [slices[axis].start for axis in cut],
        "ends": [slices[axis].stop for axis in cut],
        "axes": cut,
        "steps": [slices[axis].step for axis in cut],
    }
    if all(step == 1 for step in columns["steps"]):
        del columns["steps"]
    return [sweep.shape_constant(values, f"{hint}_{name}") for name, values in columns.items()]


def _length(part: slice) -> int:
    return len(range(part.start, part.stop, part.step))


RULES: Rules = by_operator(((shorten, MOVES),))
