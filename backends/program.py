"""A lowered model as plain data: buffers, kernels and the calls that run them in order. No TVM is needed to read it.

Graph --lower--> Program --plan--> Program with offsets --emit--> C, objects, library
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import numpy as np

from graphc.artifact import Decision, Multiplied, Patches, Prepared, Work
from graphc.ir.graph import Array, bits_of

ALIGNMENT = 64
"""Bytes that every buffer in the arena and every constant is aligned to (a cache line, an AVX-512 register)."""

Role = Literal["input", "output", "constant", "scratch"]


def stored_dtype(dtype: np.dtype[np.generic]) -> str:
    """The type that kernels see for elements of `dtype`: uint8 for those of fewer than 8 bits."""
    return "uint8" if bits_of(dtype) < 8 else dtype.name


@dataclass(frozen=True, slots=True)
class Buffer:
    """A dense row-major tensor in memory. An element of fewer than 8 bits is a byte that holds its code (low bits)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: Role

    @property
    def bytes(self) -> int:
        return prod(self.shape) * max(8, bits_of(np.dtype(self.dtype))) // 8


@dataclass(frozen=True, slots=True)
class Kernel:
    """One loop nest, compiled apart: `void symbol(T0 *p0, T1 *p1, ..., int32_t task_begin, int32_t task_end)`.

    `tir` is the PrimFunc as TVM's JSON: its parameters are the buffers in order, its outermost loop the tasks.
    Equal sources share one kernel, whatever node they came from. `dtypes` are the parameters' element types.
    """

    symbol: str
    tir: str
    dtypes: tuple[str, ...]
    constant: tuple[bool, ...]
    """Which parameters the kernel only reads."""
    c: str = ""
    """C of a function that is part of the artifact's own source, returning int; then there is no `tir`, no object."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """One thread may run a call with its result `target` on the bytes of `source`, which nothing reads later.

    The result must begin a multiple of `step` bytes before the operand, at least `least`. See
    `graphc.backends.overlap`. `kernel` is the call's, compiled for pointers that overlap.
    """

    target: str
    source: str
    least: int
    step: int
    kernel: Kernel


@dataclass(frozen=True, slots=True)
class Call:
    """A kernel on its buffers. Its tasks may run in any order on any thread; calls run one after another."""

    kernel: str
    arguments: tuple[str, ...]
    tasks: int
    nodes: tuple[str, ...]
    """Names of the graph nodes it computes, for messages and per-layer figures."""
    writes: tuple[str, ...]
    """The arguments that it writes (each fully, unless it is also read)."""
    in_place: Mapping[str, str] = field(default_factory=dict)
    """Written buffer -> read buffer that it may share memory with: each element is read, then written, by one task."""
    work: Work = field(default_factory=Work)
    overlap: Overlap | None = None


@dataclass(frozen=True, slots=True)
class CodedConstant:
    """What became of a constant that `nodes` read: bytes as kernels read it (`packed`), as stored, and at least.

    `bound` is the entropy of its bytes. `name` is the constant that is stored; `crc32` is its checksum where it is a
    stream, None where it stayed as it was.
    """

    name: str
    nodes: tuple[str, ...]
    packed: int
    stored: int
    bound: float
    crc32: int | None


@dataclass(frozen=True, slots=True)
class Program:
    """Everything that emission needs. `aliases` are views: name -> the buffer whose bytes it shares (a reshape).
    `parts` are runs of bytes in larger buffers: name -> that one, and at which byte (see `graphc.backends.patches`).

    `setup` are calls that init makes once; what they write and a call reads stays for all runs.
    """

    name: str
    buffers: Mapping[str, Buffer]
    kernels: Mapping[str, Kernel]
    calls: tuple[Call, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Array]
    aliases: Mapping[str, str] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()
    multiplied: tuple[Multiplied, ...] = ()
    setup: tuple[Call, ...] = ()
    prepared: tuple[Prepared, ...] = ()
    coded: tuple[CodedConstant, ...] = ()
    parts: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    patches: Patches | None = None
