"""Quantizing pruned weights: zeros stay exactly zero, and are still not stored.

    SparseToDense(mask, values)   ->   DequantizeLinear(SparseToDense(mask, q), scale, zero_point)         q of `values`
                                       Cast(SparseToDense(mask, fp16))

The quantizer sees the weights with their zeros (`densified`); nothing it does moves one (quantize_rounding.py), and a
grid around zero has the integer 0 for it. Afterwards the masks come back (`masked`). Where 0.0 has another integer, or
the integers are too short for the decoder, the weights are stored with their zeros, and the report says so.
"""

from collections.abc import Iterator

from graphc.ir.edit import Edit
from graphc.ir.graph import Graph, Node, bits_of
from graphc.ir.sparse import mask_of, pruned_values, sparse
from graphc.passes.protocol import Context

STORED = frozenset({"float32", "float16", "int8", "uint8"})
"""Types of values that onnxruntime decodes."""


def masked(before: Graph, after: Graph, context: Context) -> Graph:
    """`after` with the masks of the pruned weights of `before`, whose zeros it holds as constants."""
    edit = Edit(after)
    replaced: dict[Node, list[str]] = {}
    for name, pruned in pruned_values(before).items():
        mask = mask_of(before, pruned)
        for constant, reader in _stored(after, name):
            array = after.constants[constant]
            flat = mask.reshape(array.shape)
            if array.dtype.name not in STORED:
                context.skip(reader, f"its zeros are stored: no decoder of {bits_of(array.dtype)}-bit values runs")
            elif array[~flat].astype(bool).any():
                context.skip(reader, "its zeros are stored: 0.0 is not the integer 0 on their grid; use symmetric int8")
            else:
                made = sparse(edit, array, flat, constant, reader)
                operands = replaced.setdefault(reader, list(reader.inputs))
                operands[:] = [made if operand == constant else operand for operand in operands]
    for reader, operands in replaced.items():
        edit.replace(reader, inputs=operands)
    return edit.apply()


def _stored(after: Graph, name: str) -> Iterator[tuple[str, Node]]:
    """The constants that hold the weights `name` now, as floats or as integers, each with the node that reads it."""
    derived = (name, f"{name}_quantized", f"{name}_float16", f"{name}_bfloat16")
    for constant in derived:
        if constant in after.constants:
            yield from ((constant, reader) for reader in after.users.get(constant, ()))
