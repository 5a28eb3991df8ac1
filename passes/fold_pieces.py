"""Values put together and taken apart again.

ScatterND(x, all positions, u)              ->  u
ScatterND(x, positions 2 to 5, u)           ->  Concat(Slice(x, to 2), u, Slice(x, from 5))      x[2:5] = u
Slice(Concat(a, b)) of one part's elements  ->  Slice(a)
Slice(Concat(a, b, c)) of whole parts       ->  Concat(a, b)
"""

from itertools import accumulate

import numpy as np

from graphc.ir.graph import Array, Node
from graphc.passes.fold_sweep import Rules, Sweep, by_operator

Span = tuple[int, int]
"""From the first index to the one behind the last."""


def scatter_to_concat(sweep: Sweep, node: Node) -> bool:
    """ScatterND that writes a block of x along one axis  ->  Concat of what is before, the updates, what is behind"""
    shape, updates, indices = sweep.shape(node.inputs[0]), sweep.shape(node.inputs[2]), sweep.constant(node.inputs[1])
    if shape is None or updates is None or indices is None or node.get_str("reduction", "none") != "none":
        return False
    box = _box(indices, shape)
    if box is None:
        return False
    cut = [axis for axis, (start, end) in enumerate(box) if end - start != shape[axis]]
    block = tuple(end - start for start, end in box)
    if len(cut) > 1 or not sweep.claim(node):
        return False
    result, source = node.outputs[0], node.inputs[2]
    if updates != block:
        source = sweep.edit.add(
            "Reshape", [source, sweep.shape_constant(block, f"{result}_block")], name=f"{node.name}_block", near=node
        )
    if not cut:
        sweep.edit.replace(node, "Identity", [source], {})
        return True
    axis = cut[0]
    ends = [(0, box[axis][0]), (box[axis][1], shape[axis])]
    before, behind = (_piece(sweep, node, node.inputs[0], axis, span) for span in ends)
    sweep.edit.replace(node, "Concat", [*before, source, *behind], {"axis": axis})
    return True


def _box(indices: Array, shape: tuple[int, ...]) -> list[Span] | None:
    """The block of x that the updates fill in row-major order: a span for each axis. None where they are no block."""
    depth = indices.shape[-1] if indices.ndim else 0
    if depth == 0 or indices.size == 0 or depth > len(shape):
        return None
    rows = indices.reshape(-1, depth).astype(np.int64)
    rows = np.where(rows < 0, rows + np.array(shape[:depth]), rows)
    low, high = rows.min(axis=0), rows.max(axis=0) + 1
    if int(np.prod(high - low)) != len(rows):
        return None
    grid = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), axis=-1)
    if not np.array_equal(grid.reshape(-1, depth), rows):
        return None
    return [*((int(a), int(b)) for a, b in zip(low, high, strict=True)), *((0, n) for n in shape[depth:])]


def _piece(sweep: Sweep, node: Node, source: str, axis: int, span: Span) -> list[str]:
    """`source` cut to `span`, as a list of one; nothing where the span is empty."""
    start, end = span
    if start == end:
        return []
    operands = [sweep.shape_constant([value], f"{node.outputs[0]}_cut") for value in (start, end, axis)]
    return [sweep.edit.add("Slice", [source, *operands], name=f"{node.name}_keep", near=node)]


def slice_of_concat(sweep: Sweep, node: Node) -> bool:
    """Slice(Concat(a, b, ...))  ->  what it takes, if that lies in one part or is whole parts"""
    concat = sweep.producer(node.inputs[0], "Concat")
    shape = sweep.shape(node.inputs[0])
    starts, ends, axes = (sweep.integers(sweep.operand(node, i)) for i in (1, 2, 3))
    steps = sweep.integers(sweep.operand(node, 4)) if sweep.operand(node, 4) else None
    if concat is None or shape is None or starts is None or ends is None or axes is None:
        return False
    axis = concat.get_int("axis", 0) % len(shape)
    where = [i for i, a in enumerate(axes) if a % len(shape) == axis]
    sizes = [(sweep.shape(name) or (0,) * len(shape))[axis] for name in concat.inputs]
    if len(where) != 1 or sum(sizes) != shape[axis] or (steps and steps[where[0]] != 1):
        return False
    start, end, _ = slice(starts[where[0]], ends[where[0]]).indices(shape[axis])
    edges = [0, *accumulate(sizes)]
    for i, name in enumerate(concat.inputs):
        if edges[i] <= start < end <= edges[i + 1]:
            return _slice_part(sweep, node, concat, name, (where[0], start - edges[i], end - edges[i]))
    whole = len(axes) == 1 and start in edges and end in edges and start < end
    if not whole or not sweep.claim(node, through=[concat]):
        return False
    parts = concat.inputs[edges.index(start) : edges.index(end)]
    sweep.edit.replace(node, "Concat", parts, {"axis": axis})
    return True


def _slice_part(sweep: Sweep, node: Node, concat: Node, part: str, cut: tuple[int, int, int]) -> bool:
    """The same Slice of one part of the Concat: entry `cut[0]` of starts and ends moves along."""
    if not sweep.claim(node, through=[concat]):
        return False
    entry, *moved = cut
    operands = []
    for index, value in zip((1, 2), moved, strict=True):
        values = list(sweep.integers(node.inputs[index]) or ())
        values[entry] = value
        operands.append(sweep.shape_constant(values, f"{node.outputs[0]}_cut"))
    sweep.edit.replace(node, inputs=[part, *operands, *node.inputs[3:]])
    return True


RULES: Rules = by_operator(((scatter_to_concat, ("ScatterND",)), (slice_of_concat, ("Slice",))))
