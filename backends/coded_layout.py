"""How coded weights lie in memory for a kernel: codes of one output channel in words, channels side by side (no TVM).

    plane of b bits    words[blocks, ceil(depth / per), block] int32, per = 32 / b codes of successive depth in a word
    8 and 16 bits      words[blocks, depth, block] in the codes' own type
    scale, zero        [blocks, groups, block]
    table              [codebooks, entries], flat: what codes stand for

A vector of words thus holds the codes of one vector of channels, `per` times: a shift brings each to the lowest bits.
Codes of 3, 5, 6 and 7 bits are split into planes of 1, 2 and 4 bits, which costs no bytes beyond whole words of depth.
Depth runs over the taps of a kernel, then over input channels; groups count it as the model does, channels first.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from graphc.backends.coded import Coded
from graphc.backends.targets import Target
from graphc.ir import Array

WORD = 32
SMALLEST_TABLE = 16
"""Entries of a table in memory at least: smaller ones are repeated, so that bits above a code do no harm."""


@dataclass(frozen=True)
class Layout:
    """What a kernel must know to read weights of `channels` inputs and `taps` positions."""

    channels: int
    taps: int
    planes: tuple[int, ...]
    """Bits of each plane, the lowest bits of a code first."""
    signed: bool
    entries: int
    """Of the table; 0 where codes are the numbers themselves."""
    group: int
    """Steps of depth per scale, counted as the model does; 0: no scale."""
    zeros: bool
    sharing: int = 0
    """Outputs that share a codebook; 0: all of them."""

    @property
    def operands(self) -> tuple[str, ...]:
        """Names of the arrays that a kernel reads, in the order in which evaluating its expression loads them."""
        table = ("table",) if self.entries else ()
        planes = tuple(f"plane{n}" for n in range(len(self.planes)))
        return (*planes, *table, *(("zero",) if self.zeros else ()), *(("scale",) if self.group else ()))

    def per_word(self, bits: int) -> int:
        """Codes of a plane that lie in one element of it."""
        return WORD // bits if bits < 8 else 1

    @property
    def run(self) -> int:
        """Steps of depth after which every plane is at the start of a word."""
        return max(self.per_word(bits) for bits in self.planes)

    def description(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def of(description: Mapping[str, Any]) -> "Layout":
        return Layout(**{**description, "planes": tuple(description["planes"])})


def layout(weights: Coded, taps: int, target: Target) -> Layout:
    """How `weights` are stored for `target`: short integers become a table where it looks tables up in registers."""
    planes = (weights.bits,) if weights.bits >= 8 else tuple(b for b in (4, 2, 1) if weights.bits & b)
    tabled = weights.table is not None or (weights.bits < 8 and target.has("avx512"))
    return Layout(
        weights.codes.shape[1] // taps,
        taps,
        planes,
        weights.signed and not tabled,
        max(SMALLEST_TABLE, 1 << weights.bits) if tabled else 0,
        weights.group if weights.scale is not None else 0,
        weights.zero is not None,
        weights.sharing if weights.table is not None and len(weights.table) > 1 else 0,
    )


def arrays(weights: Coded, plan: Layout, block: int) -> dict[str, Array]:
    """The operands of `plan` by name."""
    found: dict[str, Array] = {}
    outputs, depth = weights.codes.shape
    ordered = weights.codes.reshape(outputs, plan.channels, plan.taps).swapaxes(1, 2).reshape(outputs, depth)
    low = 0
    for n, bits in enumerate(plan.planes):
        found[f"plane{n}"] = _plane(ordered, low, bits, block)
        low += bits
    if plan.entries:
        found["table"] = _table(weights, plan.entries, -(-outputs // block) * block)
    if weights.zero is not None:
        found["zero"] = _blocked(_whole(weights.zero), block)
    if weights.scale is not None:
        found["scale"] = _blocked(weights.scale, block)
    return found


def _table(weights: Coded, entries: int, outputs: int) -> Array:
    """Codebooks one after the other, for so many outputs: those that are not there have the last one."""
    numbers = np.arange(1 << weights.bits)
    if weights.signed:
        numbers = np.where(numbers >= numbers.size // 2, numbers - numbers.size, numbers)
    books = numbers[None] if weights.table is None else weights.table
    missing = -(-outputs // weights.sharing) - len(books) if len(books) > 1 else 0
    padded = np.pad(books, ((0, max(missing, 0)), (0, 0)), mode="edge")
    return np.tile(padded, (1, -(-entries // padded.shape[1]))).reshape(-1).astype(np.float32)


def _whole(array: Array) -> Array:
    """Numbers of fewer than 8 bits as bytes."""
    return array.astype(np.uint8 if array.dtype.name.startswith("u") else np.int8) if array.dtype.kind == "V" else array


def _blocked(matrix: Array, block: int) -> Array:
    """(outputs, n) -> (blocks, n, block), zero where there are no outputs."""
    outputs, columns = matrix.shape
    padded = np.pad(matrix, ((0, -outputs % block), (0, 0)))
    return np.ascontiguousarray(padded.reshape(-1, block, columns).swapaxes(1, 2))


def _plane(codes: Array, low: int, bits: int, block: int) -> Array:
    if bits >= 8:
        return _blocked(codes, block)
    per = WORD // bits
    fields = codes.astype(np.int8).view(np.uint8) >> np.uint8(low) & np.uint8((1 << bits) - 1)
    padded = np.pad(fields, ((0, 0), (0, -fields.shape[1] % per))).reshape(len(fields), -1, per)
    words = np.zeros(padded.shape[:2], np.uint32)
    for n in range(per):
        words |= padded[:, :, n].astype(np.uint32) << np.uint32(n * bits)
    return _blocked(words.view(np.int32), block)


def encoded(plan: Layout) -> str:
    """The layout as text, for an anchor's annotation."""
    return json.dumps(plan.description())
