"""Operators that only move or select elements: the same on integers as on the floats they stand for.

    Move(DQ(x))     reads as  DQ(Move(x))
    Q(Move(y))      ->        Move(Q(y))

Choosing a maximum is among them: rounding to a grid is monotone. Operands that the node reads beside its data (shapes,
indices, pads) stay; a constant among the data is rounded to the grid (reading one asks that the grid holds it exactly).
"""

from collections.abc import Callable, Mapping

import numpy as np

from graphc.backends.integer_region import Grid, Quantized, Refusal, Region
from graphc.ir.graph import Node


def _first(node: Node) -> tuple[int, ...]:
    return (0,)


def _all(node: Node) -> tuple[int, ...]:
    return tuple(range(len(node.inputs)))


def _pad(node: Node) -> tuple[int, ...]:
    return (0, 2) if node.get_str("mode", "constant") == "constant" else (0,)


def _resize(node: Node) -> tuple[int, ...]:
    mode = node.get_str("mode", "nearest")
    if mode != "nearest" or node.get_str("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise Refusal(f"{node.label} interpolates")
    return (0,)


def _scatter(node: Node) -> tuple[int, ...]:
    if node.get_str("reduction", "none") != "none":
        raise Refusal(f"{node.label} combines elements")
    return (0, 2)


def _single(node: Node) -> tuple[int, ...]:
    if len(node.results) > 1:
        raise Refusal(f"{node.label} also gives '{node.results[1]}'")
    return (0,)


MOVES: Mapping[str, Callable[[Node], tuple[int, ...]]] = {
    **dict.fromkeys(("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Gather"), _first),
    **dict.fromkeys(("GatherElements", "GatherND", "Split", "Expand", "Tile", "DepthToSpace", "SpaceToDepth"), _first),
    **dict.fromkeys(("ReduceMax", "ReduceMin", "GlobalMaxPool", "ReverseSequence", "Compress"), _first),
    **dict.fromkeys(("MaxPool", "Dropout"), _single),
    **dict.fromkeys(("ScatterElements", "ScatterND"), _scatter),
    "Concat": _all,
    "Where": lambda node: (1, 2),
    "Pad": _pad,
    "Resize": _resize,
}
"""Operator -> which operands carry data. Raises Refusal where the node does more than move."""


def read(region: Region, node: Node) -> Quantized:
    """The integers of a move's first result, if all its data is on one grid."""
    names = _data(node)
    constants = {x: region.graph.constants[x] for x in names.values() if x in region.graph.constants}
    grids = {region.read(x).grid for x in names.values() if x not in constants}
    if len(grids) != 1:
        raise Refusal(f"the operands of {node.label} are on {len(grids)} grids, and nothing quantizes its result")
    grid = grids.pop()
    for constant, values in constants.items():
        if not np.array_equal(grid.expand(grid.round(values)), values.astype(np.float64)):
            raise Refusal(f"the grid of {node.label} does not hold its constant '{constant}'")
    operands = {i: region.quantize(x, grid) if x in constants else region.read(x).name for i, x in names.items()}
    return Quantized(_move(region, node, operands, grid), grid)


def quantize(region: Region, node: Node, grid: Grid) -> str:
    """The integers of a move's first result, whatever grids its data comes on."""
    return _move(region, node, {i: region.quantize(x, grid) for i, x in _data(node).items()}, grid)


def _data(node: Node) -> dict[int, str]:
    """Operands that carry data and are there."""
    return {i: node.inputs[i] for i in MOVES[node.op](node) if i < len(node.inputs) and node.inputs[i]}


def _move(region: Region, node: Node, operands: Mapping[int, str], grid: Grid) -> str:
    """`node` with integer operands in place of its data; returns its first result."""
    if node.op in ("Identity", "Dropout"):
        return operands[0]
    op, attributes = node.op, dict(node.attributes)
    inputs = [operands.get(i, x) for i, x in enumerate(node.inputs)]
    if node.op == "GlobalMaxPool":
        axes = np.arange(2, region.rank(node.inputs[0]), dtype=np.int64)
        op, attributes["keepdims"] = "ReduceMax", 1
        inputs.append(region.edit.constant(axes, f"{region.name(node)}_axes"))
    if node.op == "Pad" and 2 not in operands and 2 in MOVES["Pad"](node):
        zero = region.edit.constant(np.array(grid.zero_point, grid.dtype), f"{region.name(node)}_zero")
        inputs = [*inputs[:2], zero, *inputs[3:]]
    outputs = [region.edit.fresh(f"{x}_q") if x else "" for x in node.outputs]
    first = region.edit.add(op, inputs, attributes, name=f"{region.name(node)}_q", outputs=outputs, near=node)
    region.siblings[first] = tuple(outputs)
    return first
