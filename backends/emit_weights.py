"""The constants of a program as one block of bytes: aligned, equal ones stored once."""

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graphc.backends.plan import MemoryPlan
from graphc.backends.program import Program
from graphc.ir.graph import Array


@dataclass(frozen=True, slots=True)
class Weights:
    """`offsets` of the constants in use; `pieces` are the different ones among them, (offset, array), in order."""

    offsets: Mapping[str, int]
    pieces: tuple[tuple[int, Array], ...]
    bytes: int
    alignment: int
    sha256: str
    crc32: int


def lay_out(program: Program, plan: MemoryPlan) -> Weights:
    """An offset for every constant that a call or copy reads, in the order of their first use."""
    places = [plan.places[name] for call in (*program.setup, *plan.calls) for name in call.arguments]
    places += [copy.source for copy in plan.copies]
    offsets: dict[str, int] = {}
    known: dict[bytes, int] = {}
    pieces = []
    end = 0
    for name in dict.fromkeys(place.name for place in places if place.space == "constant"):
        array = program.constants[name]
        key = hashlib.sha256(_bytes(array)).digest()
        if key not in known:
            known[key] = end
            pieces.append((end, array))
            end += -(-array.nbytes // plan.alignment) * plan.alignment
        offsets[name] = known[key]
    digest, crc = _checksums(_blocks(pieces, end))
    return Weights(offsets, tuple(pieces), end, plan.alignment, digest, crc)


def write(weights: Weights, path: Path) -> None:
    """The block as a file: little-endian, row-major, zeros between."""
    with path.open("wb") as file:
        for block in _blocks(weights.pieces, weights.bytes):
            file.write(block)


def _checksums(blocks: Iterable[memoryview]) -> tuple[str, int]:
    digest, crc = hashlib.sha256(), 0
    for block in blocks:
        digest.update(block)
        crc = zlib.crc32(block, crc)
    return digest.hexdigest(), crc


def _blocks(pieces: Iterable[tuple[int, Array]], end: int) -> Iterator[memoryview]:
    """One array after the other, never all of them in memory at once: they may be mapped from a file."""
    at = 0
    for offset, array in pieces:
        yield memoryview(bytes(offset - at))
        yield _bytes(array)
        at = offset + array.nbytes
    yield memoryview(bytes(end - at))


def _bytes(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
