"""How operators that move elements and compute nothing tie the indices of their axes together (channel_ties.py)."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from math import prod

import numpy as np

from graphc.ir.graph import Graph, Node
from graphc.passes.channel_ties import Axis, Choice, Relation, Tie, aligned, axis_of, integers, same


def concat(node: Node, graph: Graph) -> Iterator[Relation]:
    return _pieces(graph, node.inputs, node.outputs[0], axis_of(node, graph, 0))


def split(node: Node, graph: Graph) -> Iterator[Relation]:
    return _pieces(graph, node.outputs, node.inputs[0], axis_of(node, graph, 0))


def _pieces(graph: Graph, pieces: Sequence[str], whole: str, axis: int) -> Iterator[Relation]:
    """`pieces` lie one after another along `axis` of `whole`."""
    start = 0
    for name in pieces:
        for other, count in enumerate(graph.types[name].dims):
            if other == axis:
                yield Tie((name, axis), (whole, axis), np.arange(count), np.arange(start, start + count))
            else:
                yield from same(graph, (name, other), (whole, other))
        start += graph.types[name].dims[axis]


def transpose(node: Node, graph: Graph) -> Iterator[Relation]:
    rank = len(graph.types[node.inputs[0]].dims)
    for result, axis in enumerate(node.get_ints("perm", tuple(range(rank))[::-1])):
        yield from same(graph, (node.inputs[0], axis), (node.outputs[0], result))


def reshape(node: Node, graph: Graph) -> Iterator[Relation]:
    """Runs of axes that hold the same elements before and after: one to one, or cut into factors (`Choice`)."""
    x, y = node.inputs[0], node.outputs[0]
    before, after = graph.types[x].dims, graph.types[y].dims
    if 0 in before:
        return
    for left, right in _segments(before, after):
        if len(left) == len(right) == 1:
            yield from same(graph, (x, left[0]), (y, right[0]))
        else:
            yield from _choice(node, [((x, i), before[i]) for i in left], [((y, i), after[i]) for i in right])


def _segments(before: tuple[int, ...], after: tuple[int, ...]) -> Iterator[tuple[list[int], list[int]]]:
    """The shortest runs of axes, of more than one index each, whose products agree, from the back."""
    left = [i for i, size in enumerate(before) if size > 1]
    right = [i for i, size in enumerate(after) if size > 1]
    while left and right:
        runs: tuple[list[int], list[int]] = ([left.pop()], [right.pop()])
        while (one := prod(before[i] for i in runs[0])) != (two := prod(after[i] for i in runs[1])):
            runs[one > two].append((right if one > two else left).pop())
        yield runs[0][::-1], runs[1][::-1]


def _choice(node: Node, before: list[tuple[Axis, int]], after: list[tuple[Axis, int]]) -> Iterator[Choice]:
    """Factors that both sides are products of; none where they do not divide each other."""
    ends = [_strides([size for _, size in side]) for side in (before, after)]
    strides = sorted({stride for side in ends for stride in side})
    if any(high % low for low, high in pairwise(strides)):
        return
    options = []
    for number, (low, high) in enumerate(pairwise(strides)):
        factor = (f"{node.name}#{node.outputs[0]}#{before[0][0][1]}.{number}", 0)
        ties = [_part(side, low, high // low, factor) for side in (before, after)]
        options.append((ties[0].a, ties[1].a, (ties[0], ties[1]), high // low))
    yield Choice(tuple(options))


def _strides(sizes: list[int]) -> list[int]:
    return list(accumulate(reversed(sizes), int.__mul__, initial=1))


def _part(side: list[tuple[Axis, int]], stride: int, size: int, factor: Axis) -> Tie:
    """The axis of a side that holds the factor of this stride and size, tied to it."""
    inner = 1
    for axis, count in reversed(side):
        if stride < inner * count:
            indices = np.arange(count)
            return Tie(axis, factor, indices, indices // (stride // inner) % size)
        inner *= count
    raise ValueError(f"no axis holds stride {stride}")


def spans(node: Node, graph: Graph) -> dict[int, range] | None:
    """What a Slice takes: axis -> indices. None where bounds are computed."""
    shape = graph.types[node.inputs[0]].dims
    starts, ends, axes, steps = (integers(graph, node, i) for i in (1, 2, 3, 4))
    if starts is None or ends is None or any(i < len(node.inputs) and node.inputs[i] and got is None
                                             for i, got in ((3, axes), (4, steps))):  # fmt: skip
        return None
    axes = axes or tuple(range(len(starts)))
    steps = steps or (1,) * len(starts)
    found = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = shape[axis % len(shape)]
        found[axis % len(shape)] = range(size)[slice(start, end if step > 0 or end >= -size else None, step)]
    return found


def slices(node: Node, graph: Graph) -> Iterator[Relation]:
    """Whole axes, and runs of indices; a Slice with a step keeps its indices."""
    taken = spans(node, graph)
    if taken is None:
        return
    for axis, size in enumerate(graph.types[node.inputs[0]].dims):
        run = taken.get(axis, range(size))
        if run.step == 1:
            yield Tie((node.inputs[0], axis), (node.outputs[0], axis), np.array(run, np.int64), np.arange(len(run)))


def expand(node: Node, graph: Graph) -> Iterator[Relation]:
    x, y = node.inputs[0], node.outputs[0]
    yield from aligned(graph, x, y, len(graph.types[y].dims))


def tile(node: Node, graph: Graph) -> Iterator[Relation]:
    """Index i of the result repeats index i modulo the size before."""
    x, y = node.inputs[0], node.outputs[0]
    for axis, (before, after) in enumerate(zip(graph.types[x].dims, graph.types[y].dims, strict=True)):
        if before > 1:
            yield Tie((x, axis), (y, axis), np.arange(after) % before, np.arange(after))


def padding(node: Node, graph: Graph) -> dict[int, tuple[int, int]] | None:
    """What a Pad adds: axis -> (before, behind), negative where it cuts. None where that is computed."""
    rank = len(graph.types[node.inputs[0]].dims)
    pads, axes = integers(graph, node, 1), integers(graph, node, 3)
    if pads is None or (len(node.inputs) > 3 and node.inputs[3] and axes is None):
        return None
    axes = axes if axes is not None else tuple(range(rank))
    return {axis % rank: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}


def pad(node: Node, graph: Graph) -> Iterator[Relation]:
    """Padding with a constant can be narrower; other modes keep the indices of the axes that they widen."""
    added = padding(node, graph)
    if added is None:
        return
    constant = node.get_str("mode", "constant") == "constant"
    for axis, size in enumerate(graph.types[node.inputs[0]].dims):
        before, behind = added.get(axis, (0, 0))
        if constant or (before, behind) == (0, 0):
            kept = np.arange(max(-before, 0), size - max(-behind, 0))
            yield Tie((node.inputs[0], axis), (node.outputs[0], axis), kept, kept + before)


def depth_to_space(node: Node, graph: Graph) -> Iterator[Relation]:
    """DCR: channel (b1, b2, c); CRD: channel (c, b1, b2)."""
    x, y = node.inputs[0], node.outputs[0]
    inputs, outputs = graph.types[x].dims[1], graph.types[y].dims[1]
    channel = np.arange(inputs)
    turned = channel % outputs if node.get_str("mode", "DCR") == "DCR" else channel // (inputs // outputs)
    yield from same(graph, (x, 0), (y, 0))
    yield Tie((x, 1), (y, 1), channel, turned)


def space_to_depth(node: Node, graph: Graph) -> Iterator[Relation]:
    x, y = node.inputs[0], node.outputs[0]
    inputs, outputs = graph.types[x].dims[1], graph.types[y].dims[1]
    yield from same(graph, (x, 0), (y, 0))
    yield Tie((x, 1), (y, 1), np.arange(outputs) % inputs, np.arange(outputs))


def resize(node: Node, graph: Graph) -> Iterator[Relation]:
    """Axes whose size stays are not resampled."""
    x, y = node.inputs[0], node.outputs[0]
    if node.get_str("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return
    for axis, (before, after) in enumerate(zip(graph.types[x].dims, graph.types[y].dims, strict=True)):
        if before == after:
            yield from same(graph, (x, axis), (y, axis))


def gather(node: Node, graph: Graph) -> Iterator[Relation]:
    """Constant indices pick and repeat; computed ones keep the axis that they choose from."""
    (x, chosen), y = node.inputs, node.outputs[0]
    axis, rank = axis_of(node, graph, 0), len(graph.types[chosen].dims)
    for other in range(len(graph.types[x].dims)):
        if other != axis:
            yield from same(graph, (x, other), (y, other + (rank - 1 if other > axis else 0)))
    indices = integers(graph, node, 1)
    if indices is None:
        for other in range(rank):
            yield from same(graph, (chosen, other), (y, axis + other))
    elif rank == 1:
        size = graph.types[x].dims[axis]
        yield Tie((x, axis), (y, axis), np.array(indices) % size, np.arange(len(indices)))
        yield Tie((chosen, 0), (y, axis), np.arange(len(indices)), np.arange(len(indices)))
