"""Which values are decoder expressions: compressed constants and the operators that make weights of them.

    DequantizeLinear(q, scale, zp)    graphc.Lookup(codebook, packed)    graphc.SparseToDense(mask, values)
    Cast(bf16 or fp16 constant)       and Reshape/Transpose directly over any of these; they nest

Folding never evaluates them: the compression lives in the graph as these operators.
"""

from collections.abc import Container, Mapping

import numpy as np

from graphc.ir.functions import DOMAIN
from graphc.ir.graph import Graph, Node, TensorType

MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
"""Operators that belong to the decoder expression whose result they rearrange."""


def decoded_values(graph: Graph) -> frozenset[str]:
    """Results of every decoder expression of `graph`."""
    found: set[str] = set()
    for node in graph.nodes:
        if is_decoder(node, graph.types, graph.constants, found):
            found.update(node.results)
    return frozenset(found)


def is_decoder(node: Node, types: Mapping[str, TensorType], constants: Container[str], decoded: Container[str]) -> bool:
    """Whether `node` decodes `constants`; `decoded` are the results of the decoders before it."""
    if not node.inputs:
        return False
    if node.domain == DOMAIN:
        return True
    if node.domain:
        return False
    source = node.inputs[0]
    if node.op == "DequantizeLinear":
        return source in constants or source in decoded
    if node.op == "Cast":
        return source in decoded or (source in constants and widens_float(types[source], types[node.outputs[0]]))
    return node.op in MOVES and source in decoded


def widens_float(before: TensorType, after: TensorType) -> bool:
    """Whether a Cast reads a narrow floating-point type and writes a wider one."""
    return is_float(before.dtype) and is_float(after.dtype) and before.bits < after.bits


def is_float(dtype: np.dtype[np.generic]) -> bool:
    """Whether a type is a floating-point one; numpy does not count bfloat16 and the 8- and 4-bit ones among its own."""
    return np.issubdtype(dtype, np.floating) or "float" in dtype.name
