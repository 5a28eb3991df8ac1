"""QDQ regions become integer nodes: every QuantizeLinear asks for the integers of the float value it reads.

    x:int8 -> DequantizeLinear -> Conv -> Relu -> QuantizeLinear -> y:int8     becomes     x -> graphc.integer.Conv -> y

A product that nothing rounds (the last layer of a classifier, say) adds up integers all the same, and gives float32:

    x:int8 -> DequantizeLinear -> MatMul -> y     becomes     x -> graphc.integer.MatMul -> y

A product that only a sum reads, and nothing rounds first, is int16 on a finer grid. Kernels keep it in registers:

    Q(Add(Conv(DQ(x), DQ(w)), DQ(z)))  ->  graphc.integer.Add(graphc.integer.Conv(x, w): int16, z)

MatMulInteger and ConvInteger give the sum itself, as int32 (integer_sums.py).

The domain `graphc.integer` exists inside the backends only. Its nodes, with the arithmetic of `arithmetic.py`:

    Conv, ConvTranspose (x, w: int8, bias: int32[O], scale: float32[O], w_zero_point: int32[O] if any is not 0)
        kernel_shape, strides, pads, dilations, group, x_zero_point; ConvTranspose: output_padding
    MatMul, constant b (a, b: int8[K, N], bias: int32[N], scale: float32[N], b_zero_point: int32[N] if any is not 0)
        a_zero_point, or a sixth operand that gives it at run time
    MatMul, computed b (a, b, bias: int32[N] or absent, scale: float32[1]) a_zero_point, b_zero_point
    Add (a, b) a_zero_point, b_zero_point, a_multiplier, b_multiplier, shift; an operand may be an int32 constant
    Multiply (a, b, scale: float32[1]) a_zero_point, b_zero_point
    AveragePool (x, scale: float32[K]) kernel_shape, strides, pads, dilations, count_include_pad, x_zero_point
    Mean (x, scale: float32[1]) axes, keepdims, x_zero_point
    Softmax (x, table: uint32[256], scale: float32[1]) axis
    Table (x, table[256])

A bias with which a sum may leave int32 is int64, and so is that sum.

Products with an int32 result have neither bias nor scale. All but these, products with a float32 result and Table state
y_zero_point, y_min and y_max (a Relu or Clip that follows is in them). Zero points and ends are integers of the stored
type. Data movement and MaxPool are ONNX nodes on integers. Products, sums and pools take int16 as well as 8 bits.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from graphc.backends import integer_linear as linear
from graphc.backends import integer_moves as moves
from graphc.backends import integer_pointwise as pointwise
from graphc.backends import integer_rules as rules
from graphc.backends.dead_nodes import drop_dead_nodes
from graphc.backends.integer_constants import grid_of, read_cast, read_dequantize
from graphc.backends.integer_region import DOMAIN, Grid, Quantize, Read, Refusal, Region
from graphc.backends.integer_sums import SUMS
from graphc.ir.graph import Graph

__all__ = ["DOMAIN", "Integerized", "Skip", "explain", "integerize"]

READERS: Mapping[str, Read] = {
    "DequantizeLinear": read_dequantize,
    "Cast": read_cast,
    **dict.fromkeys(moves.MOVES, moves.read),
}

RULES: Mapping[str, Sequence[Quantize]] = {
    **dict.fromkeys(pointwise.POINTWISE, (pointwise.tabulate,)),
    **dict.fromkeys(moves.MOVES, (moves.quantize,)),
    **dict.fromkeys(("Relu", "Clip", "Min", "Max"), (pointwise.tabulate, pointwise.clamp)),
    "Add": (pointwise.tabulate, linear.biased, rules.add),
    "Sub": (pointwise.tabulate, linear.biased, rules.add),
    "Mul": (pointwise.tabulate, pointwise.rescale, rules.multiply),
    "Div": (pointwise.tabulate, pointwise.rescale),
    "Conv": (linear.conv,),
    "ConvTranspose": (linear.conv_transpose,),
    "MatMul": (linear.matmul,),
    "Gemm": (linear.gemm,),
    "AveragePool": (rules.average_pool,),
    **dict.fromkeys(("GlobalAveragePool", "ReduceMean", "ReduceSum"), (rules.mean,)),
    "Softmax": (rules.softmax,),
}
"""Operator -> rules in the order in which they are tried; the last one's reason is reported."""


@dataclass(frozen=True, slots=True)
class Skip:
    """A QuantizeLinear or DequantizeLinear that stays, and why."""

    node: str
    reason: str


@dataclass(frozen=True)
class Integerized:
    """The rewritten graph and what stayed in floating point at its borders."""

    graph: Graph
    skipped: tuple[Skip, ...]


def integerize(graph: Graph) -> Graph:
    """`graph` with its quantized regions as integer nodes; the same object where there are none."""
    return explain(graph).graph


def explain(graph: Graph) -> Integerized:
    """As `integerize`, with every QuantizeLinear and DequantizeLinear that stays."""
    region = Region(graph, READERS, RULES)
    refused: dict[str, str] = {}
    for node in graph.nodes:
        if node.op != "QuantizeLinear" or node.domain:
            continue
        try:
            region.edit.redirect(node.outputs[0], region.quantize(node.inputs[0], grid_of(graph, node)))
        except Refusal as reason:
            refused[node.outputs[0]] = str(reason)
        else:
            region.edit.remove(node)
    _keep_products(region)
    rewritten = drop_dead_nodes(region.edit.apply())
    return Integerized(rewritten, tuple(_skips(rewritten, refused)))


def _keep_products(region: Region) -> None:
    """Products of integers whose results are read as sums or floats: what no node reads in the end is dropped."""
    rules = {**linear.LINEAR, "Add": linear.biased, "Sub": linear.biased}
    for node in region.graph.nodes:
        if node.op in SUMS and not node.domain:
            with suppress(Refusal):  # stays an operator of ONNX
                region.edit.redirect(node.outputs[0], SUMS[node.op](region, node))
        rule = rules.get(node.op) if not node.domain else None
        if rule is None or region.graph.types[node.outputs[0]].dtype != np.float32:
            continue
        with suppress(Refusal):  # the DequantizeLinear that stays says who reads it
            region.edit.redirect(node.outputs[0], rule(region, node, Grid.floats(), ()))


def _skips(graph: Graph, refused: Mapping[str, str]) -> list[Skip]:
    skips = []
    for node in graph.nodes:
        if node.op == "QuantizeLinear" and not node.domain:
            skips.append(Skip(node.label, refused.get(node.outputs[0], "its result is an output of the graph")))
        elif node.op == "DequantizeLinear" and not node.domain:
            readers = ", ".join(user.label for user in graph.users.get(node.outputs[0], ()))
            skips.append(Skip(node.label, f"read in floating point by {readers or 'an output of the graph'}"))
    return skips
