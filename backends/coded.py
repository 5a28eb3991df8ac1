"""Constant weights that a graph holds as a decoder expression, as one matrix of codes (no TVM).

    DequantizeLinear(q, scale, zero_point)            value = (q - zero_point) * scale
    Lookup(codebook, packed)                          value = codebook[q], one codebook or one for each run of outputs
    SparseToDense(mask, Lookup(codebook, packed))     value = codebook[q], one more code for what the mask leaves out
    DequantizeLinear(Lookup(codebook, packed), ...)   value = (codebook[q] - zero_point) * scale

with Reshape, Transpose, Squeeze, Unsqueeze, Flatten or Slice on top. A codebook may itself be dequantized: it is
small. Entries of several weights are no codes of single ones: they are decoded to memory (prepared.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from graphc.ir import Array, Graph, Node
from graphc.ir.functions import DOMAIN
from graphc.ir.graph import bits_of
from graphc.ir.sparse import OPERATOR, mask_of

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Coded:
    """value[o, d] = (decode(codes[o, d]) - zero[o, d // group]) * scale[o, d // group]; o: outputs, d: depth.

    `decode` is a lookup in row o // sharing of `table` where there is one, and the identity where there is none. Parts
    that are None are left out of the formula.
    """

    codes: Array
    """(outputs, depth): integers of `bits` bits, two's complement where `signed`."""
    bits: int
    signed: bool
    table: Floats | None
    """(codebooks, 2 ** bits)"""
    scale: Floats | None
    """(outputs, groups)"""
    zero: Array | None
    """(outputs, groups), in the codes' type"""
    group: int
    """Steps of depth that share a scale."""
    sharing: int
    """Outputs that share a row of `table`."""


@dataclass(frozen=True)
class _Expression:
    """A decoder before its scales are spread: `place` is the position of each element's scale, in the codes' shape, and
    `book` that of its codebook (None: there is one)."""

    codes: Array
    bits: int
    signed: bool
    table: Floats | None = None
    scale: Floats | None = None
    zero: Array | None = None
    place: npt.NDArray[np.int32] | None = None
    book: npt.NDArray[np.int32] | None = None

    def moved(self, move: Callable[[Array], Array]) -> "_Expression":
        place, book = (None if each is None else move(each).astype(np.int32) for each in (self.place, self.book))
        return replace(self, codes=move(self.codes), place=place, book=book)


def coded(graph: Graph, name: str, matrix: Callable[[Array], Array]) -> Coded | None:
    """The weights `name` as codes, None where they are no decoder expression of float32 that kernels take.

    `matrix` rearranges an array of the weights' shape to (outputs, depth).
    """
    if graph.types[name].dtype != np.float32:
        return None
    found = _expression(graph, name)
    return None if found is None else _grouped(found.moved(matrix))


def _expression(graph: Graph, name: str) -> _Expression | None:
    node = graph.producers.get(name)
    rule = None if node is None else _RULES.get((node.domain, node.op))
    return None if node is None or rule is None else rule(graph, node)


def _moved(graph: Graph, node: Node) -> _Expression | None:
    source = _expression(graph, node.inputs[0])
    if source is None:
        return None
    shape, perm = graph.types[node.outputs[0]].dims, node.get_ints("perm")
    if node.op == "Transpose":
        return source.moved(lambda array: array.transpose(perm or None))
    return source.moved(lambda array: array.reshape(shape))


def _sliced(graph: Graph, node: Node) -> _Expression | None:
    source, places = _expression(graph, node.inputs[0]), slices(graph, node)
    return None if source is None or places is None else source.moved(lambda array: array[places])


def slices(graph: Graph, node: Node) -> tuple[slice, ...] | None:
    """What a Slice takes of each axis; None where that is not known, or counted from an end."""
    given = [graph.constant(name) for name in node.inputs[1:]]
    if any(array is None for array in given):
        return None
    starts, ends, *rest = ([int(number) for number in array.ravel()] for array in given if array is not None)
    axes = rest[0] if rest else list(range(len(starts)))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    if min(starts, default=0) < 0 or min(ends, default=0) < 0 or min(steps, default=1) < 1:
        return None
    places = [slice(None)] * len(graph.types[node.inputs[0]].dims)
    for axis, *ends_of in zip(axes, starts, ends, steps, strict=True):
        places[axis] = slice(*ends_of)
    return tuple(places)


def _lookup(graph: Graph, node: Node) -> _Expression | None:
    codebook, packed = _table(graph, node.inputs[0]), graph.constant(node.inputs[1])
    bits, shape = node.get_int("bits", 8), node.get_ints("shape")
    if codebook is None or packed is None or codebook.shape[2:] not in ((), (1,)):
        return None
    books, size = codebook.reshape(-1, codebook.shape[1] if codebook.ndim > 1 else codebook.size), int(np.prod(shape))
    table = np.pad(books, ((0, 0), (0, (1 << bits) - books.shape[1])))
    book = np.repeat(np.arange(len(books), dtype=np.int32), size // len(books)).reshape(shape)
    codes = unpacked(packed, bits, size).reshape(shape)
    return _Expression(codes, bits, signed=False, table=table, book=book if len(books) > 1 else None)


def _masked(graph: Graph, node: Node) -> _Expression | None:
    """Codes of single values spread over where the mask has them; the others get the code of a zero."""
    source, mask = _expression(graph, node.inputs[1]), graph.constant(node.inputs[0])
    if source is None or mask is None or source.table is None or source.scale is not None or source.book is not None:
        return None
    table, bits = source.table, source.bits
    if table.all() and bits == 8:
        return None
    if table.all():
        table, bits = np.pad(table, ((0, 0), (0, table.size))), bits + 1
    codes = np.full(mask_of(graph, node).shape, np.flatnonzero(table[0] == 0)[0], np.uint8)
    codes[mask_of(graph, node)] = source.codes.reshape(-1)
    return _Expression(codes, bits, signed=False, table=table)


def unpacked(packed: Array, bits: int, size: int) -> npt.NDArray[np.uint8]:
    """The codes [size] of an LSB-first stream, chunk by chunk: apart, bits take eight times their room."""
    stream, step = packed.reshape(-1).astype(np.uint8, copy=False), 1 << 20
    codes = np.empty(size, np.uint8)
    for at in range(0, size, step):
        count = min(step, size - at)
        fields = np.unpackbits(stream[at * bits // 8 :][: -(-count * bits // 8)], bitorder="little", count=count * bits)
        codes[at : at + count] = np.packbits(fields.reshape(count, bits), axis=1, bitorder="little")[:, 0]
    return codes


def _table(graph: Graph, name: str) -> Floats | None:
    """A codebook, or several, as floats: a constant, or a decoder of one."""
    array = graph.constant(name)
    if array is not None:
        return array.astype(np.float32)
    found = coded(graph, name, lambda codes: codes.reshape(1, -1))
    return None if found is None else values(found).reshape(graph.types[name].dims)


def _dequantized(graph: Graph, node: Node) -> _Expression | None:
    stored, scale = graph.constant(node.inputs[0]), graph.constant(node.inputs[1])
    zero = graph.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    if scale is None or (zero is None and len(node.inputs) > 2 and node.inputs[2]):
        return None
    kind = graph.types[node.inputs[0]].dtype
    if stored is not None and kind.name.lstrip("u").startswith("int") and bits_of(kind) <= 16:
        source = _Expression(stored, bits_of(kind), signed=not kind.name.startswith("u"))
    else:
        producer = graph.producers.get(node.inputs[0])
        inner = _lookup(graph, producer) if producer is not None and producer.op == "Lookup" else None
        if inner is None:
            return None
        source = inner
    place = _places(node, source.codes.shape, scale)
    flat = None if zero is None or not np.any(zero.astype(np.int32)) else zero.reshape(-1)
    return replace(source, scale=scale.astype(np.float32).reshape(-1), zero=flat, place=place)


_RULES: Mapping[tuple[str, str], Callable[[Graph, Node], _Expression | None]] = {
    (DOMAIN, "Lookup"): _lookup,
    (DOMAIN, OPERATOR): _masked,
    ("", "DequantizeLinear"): _dequantized,
    ("", "Slice"): _sliced,
    **{("", move): _moved for move in ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")},
}


def _places(node: Node, shape: tuple[int, ...], scale: Array) -> npt.NDArray[np.int32]:
    """Where in `scale` each element's lies: one for all, one per index of an axis, or per block of it."""
    places = np.arange(scale.size, dtype=np.int32).reshape(scale.shape)
    if scale.size == 1:
        return np.broadcast_to(places.reshape(-1)[0], shape)
    axis, block = node.get_int("axis", 1) % len(shape), node.get_int("block_size", 0)
    if block:
        return np.repeat(places, block, axis)[tuple(slice(extent) for extent in shape)]
    return np.broadcast_to(places.reshape([-1 if a == axis else 1 for a in range(len(shape))]), shape)


def _grouped(found: _Expression) -> Coded | None:
    """Scales as a matrix (outputs, groups), codebooks by runs of outputs; None where scales would be much larger than
    what the graph holds, or codebooks lie otherwise."""
    outputs, depth = found.codes.shape
    sharing = outputs
    if found.book is not None:
        sharing = outputs // (int(found.book.max()) + 1)
        if (found.book != (np.arange(outputs) // max(sharing, 1))[:, None]).any():
            return None
    if found.place is None or found.scale is None:
        return Coded(found.codes, found.bits, found.signed, found.table, None, None, depth, sharing)
    changes = np.flatnonzero((found.place[:, 1:] != found.place[:, :-1]).any(axis=0)) + 1
    group = int(np.gcd.reduce(np.append(changes, 0))) or depth
    first = found.place[:, ::group]
    if first.size > 2 * max(found.scale.size, outputs):
        return None
    zero = None if found.zero is None else found.zero[first if found.zero.size > 1 else np.zeros_like(first)]
    return Coded(found.codes, found.bits, found.signed, found.table, found.scale[first], zero, group, sharing)


def values(weights: Coded) -> Floats:
    """The matrix that is stored, as floats, by the formula of `Coded`."""
    outputs = np.arange(len(weights.codes))[:, None]
    own = weights.table[outputs // weights.sharing, weights.codes] if weights.table is not None else weights.codes
    decoded = own.astype(np.float32)
    at = np.arange(weights.codes.shape[1]) // weights.group
    if weights.zero is not None:
        decoded = decoded - weights.zero.astype(np.float32)[:, at]
    return decoded if weights.scale is None else decoded * weights.scale[:, at]
