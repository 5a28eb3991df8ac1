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
    # Codes of `bits` bits, 1 to 8, of a uint8 bit stream, each the place of an entry of its codebook. codebook[K]: one
    # for all; codebook[G, K]: G equal runs of codes have one each; codebook[G, K, D]: entries are D elements in a row.
    "Lookup": """
<opset_import: ["" : 26], domain: "graphc">
Lookup <bits, shape> (codebook, packed) => (values)
{
  zero1 = Constant <value = int64[1] {0}> ()
  one1 = Constant <value = int64[1] {1}> ()
  two1 = Constant <value = int64[1] {2}> ()
  three1 = Constant <value = int64[1] {3}> ()
  flat = Constant <value = int64[1] {-1}> ()
  given = Shape (codebook)
  rank = Shape (given)
  first = Min (rank, two1)
  last = Add (first, three1)
  padded = Concat <axis = 0> (one1, one1, given, one1)
  form = Slice (padded, first, last)
  books = Slice (form, zero1, one1)
  entries = Slice (form, one1, two1)
  length = Slice (form, two1, three1)
  dims = Constant <value_ints: ints = @shape> ()
  elements = ReduceProd <keepdims = 1> (dims)
  count = Div (elements, length)
  width = Constant <value_int: int = @bits> ()
  width1 = Reshape (width, flat)
  places = Constant <value = uint8[8] {0, 1, 2, 3, 4, 5, 6, 7}> ()
  lowest = Constant <value = uint8 {1}> ()
  column = Unsqueeze (packed, one1)
  shifted = BitShift <direction = "RIGHT"> (column, places)
  bit_rows = BitwiseAnd (shifted, lowest)
  stream = Reshape (bit_rows, flat)
  needed = Mul (count, width1)
  used = Slice (stream, zero1, needed)
  grid = Concat <axis = 0> (flat, width1)
  fields = Reshape (used, grid)
  powers = Constant <value = int32[8] {1, 2, 4, 8, 16, 32, 64, 128}> ()
  weights = Slice (powers, zero1, width1)
  wide = Cast <to = 6> (fields)
  parts = Mul (wide, weights)
  codes = ReduceSum <keepdims = 0> (parts, one1)
  runs = Concat <axis = 0> (books, flat)
  by_book = Reshape (codes, runs)
  zero = Constant <value = int64 {0}> ()
  one = Constant <value = int64 {1}> ()
  book_count = Squeeze (books)
  numbers = Range (zero, book_count, one)
  starts = Mul (numbers, entries)
  narrow = Cast <to = 6> (starts)
  offsets = Unsqueeze (narrow, one1)
  chosen = Add (by_book, offsets)
  indices = Reshape (chosen, flat)
  table_form = Concat <axis = 0> (flat, length)
  table = Reshape (codebook, table_form)
  picked = Gather (table, indices)
  values = Reshape (picked, dims)
}
""",
    # mask: uint8 bit stream of prod(shape) bits, values[popcount(mask)] -> dense tensor, zero where the mask is clear.
    "SparseToDense": """
<opset_import: ["" : 26], domain: "graphc">
SparseToDense <shape> (mask, values) => (dense)
{
  one = Constant <value = int64[1] {1}> ()
  places = Constant <value = uint8[8] {0, 1, 2, 3, 4, 5, 6, 7}> ()
  lowest = Constant <value = uint8 {1}> ()
  column = Unsqueeze (mask, one)
  shifted = BitShift <direction = "RIGHT"> (column, places)
  bit_rows = BitwiseAnd (shifted, lowest)
  flat = Constant <value = int64[1] {-1}> ()
  stream = Reshape (bit_rows, flat)
  dims = Constant <value_ints: ints = @shape> ()
  count = ReduceProd <keepdims = 0> (dims)
  count1 = Reshape (count, flat)
  zero1 = Constant <value = int64[1] {0}> ()
  bits_used = Slice (stream, zero1, count1)
  used = Cast <to = 6> (bits_used)
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
