"""Values before a logarithm: a logarithm makes absolute errors of relative ones, and a fixed grid has no relative ones.

    audio -> MatMul (Fourier) -> square -> MatMul (mel) -> Max -> Log -> ...

The grid of such a value is as fine everywhere as it is at the largest; where most elements lie under half a step of it,
the logarithm reads zeros, and 8 bits stay out. A value whose elements fill its range is quantized as any other.
"""

from collections.abc import Mapping

import numpy as np

from graphc.ir.graph import Array, Graph
from graphc.passes.quantize_schemes import Parameters

KEEPING = frozenset((
    "MatMul", "Gemm", "Conv", "Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Abs", "Max", "Min", "Relu", "Clip", "Sum",
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Gather", "Concat", "Pad",
    "ReduceSum", "ReduceMean", "AveragePool", "GlobalAveragePool", "ReduceMax", "ReduceSumSquare",
))  # fmt: skip
"""Operators whose small results come from small operands: what is lost before them is lost after them."""

MOST = 0.5
"""The share of elements that may lie under half a step."""


def before_logarithms(graph: Graph) -> tuple[str, ...]:
    """What Log nodes read, and the values that these are made of by operators of `KEEPING`; no constants."""
    open_ = [name for node in graph.nodes if node.op == "Log" and not node.domain for name in node.inputs]
    found: dict[str, None] = {}
    while open_:
        name = open_.pop()
        if name in found or name in graph.constants:
            continue
        found[name] = None
        node = graph.producers.get(name)
        if node is not None and not node.domain and node.op in KEEPING:
            open_.extend(filter(None, node.inputs))
    return tuple(found)


def lost(arrays: Mapping[str, Array], grid: Parameters) -> float:
    """The share of a histogram's elements under half a step of `grid`."""
    counts = arrays["counts"].astype(np.int64)
    places = (np.arange(len(counts)) - len(counts) // 2 + 0.5) * float(arrays["width"])
    return float(counts[np.abs(places) < float(grid.scale) / 2].sum() / counts.sum())
