"""Activations that are 8-bit integers already, such as the pixels of an image: their grid is given, nothing is rounded.

Q(Cast(q))  with scale 1 and zero point 0, in the type of q   ->   q
"""

from collections.abc import Mapping, Sequence

import numpy as np

from graphc.ir.graph import Graph
from graphc.passes.quantize_schemes import FORMATS, Parameters

INTEGERS = ("int8", "uint8")


def integers_of(graph: Graph) -> Mapping[str, str]:
    """Values that a Cast to float32 makes of 8-bit integers -> the name of these integers."""
    return {
        node.outputs[0]: node.inputs[0]
        for node in graph.nodes
        if node.op == "Cast" and not node.domain and node.inputs[0] not in graph.constants
        if graph.types[node.inputs[0]].dtype.name in INTEGERS and graph.types[node.outputs[0]].dtype == np.float32
    }


def given_grid(graph: Graph, casts: Mapping[str, str], names: Sequence[str]) -> Parameters | None:
    """The grid that all of these values are on as they come; None where one is no such value, or types differ."""
    kinds = {graph.types[casts[name]].dtype.name if name in casts else "" for name in names}
    form = FORMATS.get(kinds.pop()) if len(kinds) == 1 else None
    return None if form is None else Parameters(form, np.ones((), np.float32), np.zeros((), form.dtype))


def is_given(graph: Graph, integers: str, grid: Parameters) -> bool:
    """Whether quantizing the floats of these integers to `grid` gives them back."""
    kind = graph.types[integers].dtype
    return grid.format.dtype == kind and bool(grid.scale == 1) and not grid.zero_point.astype(np.int64).any()
