"""The operators that ONNX lacks, each as one generic ONNX function body in the domain `graphc`.

An exported model carries the bodies it uses as model-local functions, so that plain onnxruntime runs it.
"""

from collections.abc import Iterable, Iterator
from functools import cache

from onnx import FunctionProto, GraphProto, NodeProto, parser

from graphc.errors import InputError

DOMAIN = "graphc"
VERSION = 1

# Bit streams are LSB first: element i of `bits` bits starts at bit i * bits; bit b is bit b % 8 of byte b // 8.
_BODIES = {
    # codebook[K], packed: uint8 -> codebook[codes].reshape(shape); codes have `bits` bits, 1 to 8.
    "Lookup": """
<opset_import: ["" : 26], domain: "graphc">
Lookup <bits, shape> (codebook, packed) => (values)
{
  one = Constant <value = int64[1] {1}> ()
  byte_bits = Constant <value = int64[8] {1, 2, 4, 8, 16, 32, 64, 128}> ()
  wide = Cast <to = 7> (packed)
  column = Unsqueeze (wide, one)
  shifted = Div (column, byte_bits)
  two = Constant <value = int64 {2}> ()
  bit_rows = Mod (shifted, two)
  flat = Constant <value = int64[1] {-1}> ()
  stream = Reshape (bit_rows, flat)
  dims = Constant <value_ints: ints = @shape> ()
  count = ReduceProd <keepdims = 0> (dims)
  width = Constant <value_int: int = @bits> ()
  needed = Mul (count, width)
  zero1 = Constant <value = int64[1] {0}> ()
  needed1 = Reshape (needed, flat)
  used = Slice (stream, zero1, needed1)
  width1 = Reshape (width, flat)
  grid = Concat <axis = 0> (flat, width1)
  fields = Reshape (used, grid)
  weights = Slice (byte_bits, zero1, width1)
  parts = Mul (fields, weights)
  codes = ReduceSum <keepdims = 0> (parts, one)
  picked = Gather (codebook, codes)
  values = Reshape (picked, dims)
}
""",
    # mask: uint8 bit stream of prod(shape) bits, values[popcount(mask)] -> dense tensor, zero where the mask is clear.
    "SparseToDense": """
<opset_import: ["" : 26], domain: "graphc">
SparseToDense <shape> (mask, values) => (dense)
{
  one = Constant <value = int64[1] {1}> ()
  byte_bits = Constant <value = int64[8] {1, 2, 4, 8, 16, 32, 64, 128}> ()
  wide = Cast <to = 7> (mask)
  column = Unsqueeze (wide, one)
  shifted = Div (column, byte_bits)
  two = Constant <value = int64 {2}> ()
  bit_rows = Mod (shifted, two)
  flat = Constant <value = int64[1] {-1}> ()
  stream = Reshape (bit_rows, flat)
  dims = Constant <value_ints: ints = @shape> ()
  count = ReduceProd <keepdims = 0> (dims)
  count1 = Reshape (count, flat)
  zero1 = Constant <value = int64[1] {0}> ()
  used = Slice (stream, zero1, count1)
  axis = Constant <value = int64 {0}> ()
  rank = CumSum (used, axis)
  position = Mul (rank, used)
  zero = CastLike (zero1, values)
  padded = Concat <axis = 0> (zero, values)
  spread = Gather (padded, position)
  dense = Reshape (spread, dims)
}
""",
}

NAMES = frozenset(_BODIES)


def functions_in(graph: GraphProto) -> list[FunctionProto]:
    """The bodies of the graphc operators that a graph uses, its subgraphs included, by name."""
    return [function_for(name) for name in sorted(set(_operators(graph.node)))]


def _operators(nodes: Iterable[NodeProto]) -> Iterator[str]:
    for node in nodes:
        if node.domain == DOMAIN:
            yield node.op_type
        for attribute in node.attribute:
            yield from _operators(attribute.g.node)


@cache
def function_for(name: str) -> FunctionProto:
    """The body of a graphc operator. Raises InputError for a name this version does not have."""
    if name not in _BODIES:
        raise InputError(
            f"{DOMAIN}.{name}",
            f"unknown operator of the graphc domain; this version has {', '.join(sorted(NAMES))}.",
            "Read the model with the graphc version that wrote it.",
        )
    return parser.parse_function(_BODIES[name])
