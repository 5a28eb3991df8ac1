"""Between stored and computed numbers: quantize, dequantize, and decoders of compressed weights.

Constants of fewer than 8 bits stay packed in memory, lowest bits first, and are unpacked where they are read.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from tvm import te, tirx

from graphc.backends import rounding
from graphc.backends.compute_cast import SMALL, encoded, from_code, small_code, to_code, values
from graphc.backends.relax_module import INJECTIVE, OPAQUE, Lowering, computes, convert
from graphc.backends.statements import const, function, loop, sequence, tasks
from graphc.backends.widen import NARROW
from graphc.errors import UnsupportedError
from graphc.ir import Array, Node
from graphc.ir.graph import bits_of

SPARSE_RUN = 64
"""Elements of a sparse tensor that one stored position speaks for; a task decodes one such run."""

Element: TypeAlias = Callable[[Sequence[Any]], Any]
Reading: TypeAlias = tuple[list[Any], Callable[[Sequence[te.Tensor]], Element]]
"""What a kernel must be given to decode a tensor, and how it computes an element of it from that."""


def packed_bytes(array: Array) -> Array:
    """Elements of 2 or 4 bits as bytes, the first in the lowest bits (ONNX's own packing)."""
    bits = bits_of(array.dtype)
    codes = array.astype(np.int8).astype(np.uint8).reshape(-1) & np.uint8((1 << bits) - 1)
    per_byte = 8 // bits
    padded = np.pad(codes, (0, -len(codes) % per_byte)).reshape(-1, per_byte)
    shifted = padded << (np.arange(per_byte, dtype=np.uint8) * np.uint8(bits))
    return np.asarray(np.bitwise_or.reduce(shifted, axis=1), np.uint8)


FLOATS = ("float32", "float16", "bfloat16")
"""What is quantized."""


def limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    """The smallest and largest value of an integer type."""
    bounds = ml_dtypes.iinfo(dtype)
    return int(bounds.min), int(bounds.max)


def _flat(i: Sequence[Any], shape: Sequence[int]) -> Any:
    """Row-major position of index i."""
    position: Any = const(0)
    for place, extent in zip(i, shape, strict=True):
        position = position * extent + place
    return position


def stored(state: Lowering, name: str) -> tuple[Any, Callable[[te.Tensor], Element]]:
    """(the expression to pass to a kernel, how the kernel reads element i of it as int32)."""
    kind = state.type(name)
    bits = kind.bits
    if bits >= 8:
        return state.value(name), lambda tensor: lambda i: tensor[tuple(i)].astype("int32")
    array = state.constant(name)
    if array is None:
        return state.value(name), lambda tensor: lambda i: from_code(tensor[tuple(i)], kind.dtype)
    signed = not kind.dtype.name.startswith("u")
    per_byte, mask, sign = 8 // bits, (1 << bits) - 1, 1 << (bits - 1)

    def reader(tensor: te.Tensor) -> Element:
        def read(i: Sequence[Any]) -> Any:
            position = _flat(i, kind.dims)
            code = (
                tensor[position // per_byte].astype("int32") >> (position % per_byte * bits).astype("int32")
            ) & const(mask)
            return (code ^ const(sign)) - const(sign) if signed else code

        return read

    return state.parameter(packed_bytes(array), name), reader


def _parameter_index(
    node: Node, x: Sequence[int], parameters: Sequence[int]
) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Where the scale and zero point of element i lie: one for all, one per index of the axis, or per block of it."""
    block = node.get_int("block_size", 0)
    if not parameters or (len(parameters) == 1 and parameters[0] == 1 and not block):
        return lambda i: (0,) * len(parameters)
    axis = node.get_int("axis", 1) % len(x)
    if block:
        return lambda i: tuple(p // block if a == axis else p for a, p in enumerate(i))
    return lambda i: (i[axis],)


@computes("", "DequantizeLinear")
def dequantize(state: Lowering, node: Node) -> Sequence[Any]:
    """y = (x - zero_point) * scale: an integer difference and one multiply."""
    if state.type(node.inputs[0]).dtype.name in SMALL:
        return [_dequantized_float(state, node)]
    operands, element = _decoder(state, node)
    dims = state.type(node.outputs[0]).dims

    def define(*tensors: te.Tensor) -> te.Tensor:
        return te.compute(dims, lambda *i: element(tensors)(i), name="dequantize")

    return [state.emit(define, *operands, name="dequantize", pattern=INJECTIVE)]


@computes("", "Gather")
def gather(state: Lowering, node: Node) -> Sequence[Any]:
    """y[.., i, ..] = table[.., indices[i], ..] of a table that a decoder stands for: only what is read is decoded.

    TVM's converter gathers from any other.
    """
    source = state.graph.producers.get(node.inputs[0])
    if source is None or node.inputs[0] not in state.waiting:
        return convert(state, node)
    rule = _DECODERS.get((source.domain, source.op))
    decoder = rule(state, source) if rule is not None else None
    if decoder is None:
        return convert(state, node)
    operands, element = decoder
    dims, result = state.type(node.inputs[0]).dims, state.type(node.outputs[0]).dims
    axis, rank = node.get_int("axis", 0) % len(dims), len(state.type(node.inputs[1]).dims)

    def define(indices: te.Tensor, *tensors: te.Tensor) -> te.Tensor:
        def row(*i: Any) -> Any:
            number = indices[tuple(i[axis : axis + rank])].astype("int64")
            number = tirx.Select(number < const(0, "int64"), number + const(dims[axis], "int64"), number)
            return element(tensors)((*i[:axis], number, *i[axis + rank :]))

        return te.compute(result, row, name="gather")

    return [state.emit(define, state.value(node.inputs[1]), *operands, name="gather", pattern=INJECTIVE)]


def _dequantizes(state: Lowering, node: Node) -> Reading | None:
    return None if state.type(node.inputs[0]).dtype.name in SMALL else _decoder(state, node)


def _widens(state: Lowering, node: Node) -> Reading | None:
    """float16 or bfloat16 as float32."""
    if state.type(node.inputs[0]).dtype not in NARROW:
        return None
    dtype = state.type(node.outputs[0]).dtype.name
    return [state.value(node.inputs[0])], lambda tensors: lambda i: tensors[0][tuple(i)].astype(dtype)


def _decoder(state: Lowering, node: Node) -> Reading:
    """What a DequantizeLinear reads, and how an element of its result comes from that."""
    x, scale = state.type(node.inputs[0]), state.type(node.inputs[1])
    dtype = state.type(node.outputs[0]).dtype.name
    if x.dtype.kind not in "iu" and not x.dtype.name.startswith(("int", "uint")):
        raise UnsupportedError(node.label, f"{x.dtype.name} has no kernel.", "Use integers of up to 16 bits.")
    operand, reader = stored(state, node.inputs[0])
    operands, zero = [operand, state.value(node.inputs[1])], None
    if len(node.inputs) > 2 and node.inputs[2] and x.dtype.name != "int32":
        zero_operand, zero = stored(state, node.inputs[2])
        operands.append(zero_operand)
    at = _parameter_index(node, x.dims, scale.dims)
    zero_at = _parameter_index(node, x.dims, state.type(node.inputs[2]).dims) if zero is not None else at

    def element(tensors: Sequence[te.Tensor]) -> Element:
        q, scales, *zeros = tensors
        read = reader(q)

        def decoded(i: Sequence[Any]) -> Any:
            value = read(i)
            centered = value - zero(zeros[0])(zero_at(i)) if zero is not None else value
            return (centered.astype("float32") * scales[at(i)].astype("float32")).astype(dtype)

        return decoded

    return operands, element


def _dequantized_float(state: Lowering, node: Node) -> Any:
    """y = x * scale for small floats, whose zero point is 0."""
    x, dtype = state.type(node.inputs[0]), state.type(node.outputs[0]).dtype.name
    at = _parameter_index(node, x.dims, state.type(node.inputs[1]).dims)

    def define(q: te.Tensor, scales: te.Tensor, table: te.Tensor) -> te.Tensor:
        def element(*i: Any) -> Any:
            return (table[small_code(q[i], x.dtype)] * scales[at(i)].astype("float32")).astype(dtype)

        return te.compute(x.dims, element, name="dequantize")

    operands = [*(state.value(name) for name in node.inputs[:2]), state.parameter(values(x.dtype), "codes")]
    return state.emit(define, *operands, name="dequantize", pattern=INJECTIVE)


@computes("", "QuantizeLinear")
def quantize(state: Lowering, node: Node) -> Sequence[Any]:
    """y = saturate(rint(x / scale) + zero_point), the sum in integers."""
    x, y = state.type(node.inputs[0]), state.type(node.outputs[0])
    small = y.dtype.name in SMALL
    if x.dtype.name not in FLOATS or y.bits > 16 or not (small or y.dtype.name.lstrip("u").startswith("int")):
        raise UnsupportedError(
            node.label,
            f"quantizing {x.dtype.name} to {y.dtype.name} has no kernel.",
            "Use floats of up to 32 bits and integers of up to 16.",
        )
    at = _parameter_index(node, x.dims, state.type(node.inputs[1]).dims)
    given = len(node.inputs) > 2 and bool(node.inputs[2])
    zero_at = _parameter_index(node, x.dims, state.type(node.inputs[2]).dims) if given else at
    low, high = (0, 0) if small else limits(y.dtype)
    operands = [state.value(name) for name in node.inputs if name]

    def define(x: te.Tensor, scales: te.Tensor, *zeros: te.Tensor) -> te.Tensor:
        def element(*i: Any) -> Any:
            scaled = x[tuple(i)].astype("float32") / scales[at(i)].astype("float32")
            if small:  # its zero point is 0
                return encoded(scaled, y.dtype, bool(node.get_int("saturate", 1)))
            # Bounds past which no zero point brings the sum back into 16 bits; it is clamped exactly afterwards.
            bounded = tirx.min(tirx.max(scaled, const(-(2.0**17), "float32")), const(2.0**17, "float32"))
            zero = zeros[0][zero_at(i)] if zeros else const(0)
            total = rounding.nearest(state.target, bounded) + (
                from_code(zero, y.dtype) if zeros and y.bits < 8 else zero.astype("int32")
            )
            clamped = tirx.min(tirx.max(total, const(low)), const(high))
            return to_code(clamped, y.dtype) if y.bits < 8 else clamped.astype(y.dtype.name)

        return te.compute(x.shape, element, name="quantize")

    return [state.emit(define, *operands, name="quantize", pattern=INJECTIVE)]


@computes("graphc", "Lookup")
def lookup(state: Lowering, node: Node) -> Sequence[Any]:
    """y[i] = codebook[g, code i / D, i % D] of a codebook [K] or [G, K(, D)]; codes are fields of a byte stream."""
    operands, element = _looks_up(state, node)
    shape = state.type(node.outputs[0]).dims

    def define(*tensors: te.Tensor) -> te.Tensor:
        return te.compute(shape, lambda *i: element(tensors)(i), name="lookup")

    return [state.emit(define, *operands, name="lookup", pattern=OPAQUE)]


def _looks_up(state: Lowering, node: Node) -> Reading:
    kind, bits = state.type(node.outputs[0]), node.get_int("bits", 8)
    book = state.type(node.inputs[0]).dims
    books, length = book[0] if len(book) > 1 else 1, book[2] if len(book) > 2 else 1
    run = max(kind.size // (books * length), 1)
    packed = state.constant(node.inputs[1])
    if packed is None:
        raise UnsupportedError(node.label, "packed indices that are computed at run time.", "They must be constant.")
    crosses = 8 % bits != 0
    stream = state.parameter(
        np.pad(packed, (0, 1)) if crosses else packed, node.inputs[1]
    )  # a field may end in the byte after the last

    def element(tensors: Sequence[te.Tensor]) -> Element:
        codebook, codes = tensors

        def entry(i: Sequence[Any]) -> Any:
            place = _flat(i, kind.dims)
            at = place // length
            bit = at * bits
            word = codes[bit // 8].astype("int32")
            word = word | (codes[bit // 8 + 1].astype("int32") << const(8)) if crosses else word
            code = (word >> (bit % 8).astype("int32")) & const((1 << bits) - 1)
            return codebook[((at // run,) if len(book) > 1 else ()) + (code, place % length)[: max(len(book) - 1, 1)]]

        return entry

    return [state.value(node.inputs[0]), stream], element


_DECODERS: Mapping[tuple[str, str], Callable[[Lowering, Node], Reading | None]] = {
    ("", "DequantizeLinear"): _dequantizes,
    ("", "Cast"): _widens,
    ("graphc", "Lookup"): _looks_up,
}
"""Decoders of which a kernel may read single elements."""


@computes("graphc", "SparseToDense")
def sparse_to_dense(state: Lowering, node: Node) -> Sequence[Any]:
    """y = 0 where the mask is clear, the next value where it is set.

    How many values precede each run of SPARSE_RUN elements is counted at compile time, so runs are independent.
    """
    kind = state.type(node.outputs[0])
    mask = state.constant(node.inputs[0])
    if mask is None:
        raise UnsupportedError(node.label, "a mask that is computed at run time.", "It must be constant.")
    size = kind.size
    bits = np.unpackbits(mask.reshape(-1).astype(np.uint8), bitorder="little")[:size]
    runs = -(-size // SPARSE_RUN)
    counts = np.pad(bits, (0, runs * SPARSE_RUN - size)).reshape(runs, SPARSE_RUN).sum(axis=1)
    before = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int32)
    stream = np.pad(mask.reshape(-1), (0, runs * SPARSE_RUN // 8 - mask.size))
    operands = [
        state.parameter(stream, node.inputs[0]),
        state.value(node.inputs[1]),
        state.parameter(before, f"{node.inputs[0]}.before"),
    ]
    return [
        state.emit_function(
            _sparse_function(size, runs, state.type(node.inputs[1]).dims[0], kind.dtype.name),
            operands,
            kind,
            name="sparse_to_dense",
        )
    ]


def _sparse_function(size: int, runs: int, stored_values: int, dtype: str) -> Any:
    """(mask, values, before) -> dense, one run a task."""
    mask = tirx.decl_buffer((runs * SPARSE_RUN // 8,), "uint8", "mask")
    values = tirx.decl_buffer((stored_values,), dtype, "values")
    before = tirx.decl_buffer((runs,), "int32", "before")
    dense = tirx.decl_buffer((size,), dtype, "dense")
    next_value = tirx.decl_buffer((1,), "int32", "next_value", scope="local")

    def run(task: Any) -> Any:
        def element(e: Any) -> Any:
            at = task * SPARSE_RUN + e
            bit = (mask[at // 8].astype("int32") >> (at % 8)) & const(1)
            taken = sequence(
                [
                    tirx.BufferStore(dense, values[next_value[0]], [at]),
                    tirx.BufferStore(next_value, next_value[0] + 1, [const(0)]),
                ]
            )
            decoded = tirx.IfThenElse(bit == 1, taken, tirx.BufferStore(dense, const(0, dtype), [at]))
            return decoded if size % SPARSE_RUN == 0 else tirx.IfThenElse(at < size, decoded, None)

        return sequence(
            [
                tirx.AllocBuffer(next_value),
                tirx.BufferStore(next_value, before[task], [const(0)]),
                loop("e", 0, SPARSE_RUN, element),
            ]
        )

    return function([mask, values, before, dense], None, [tasks(runs, run)])
