"""Entropy-coded constants: a Program whose weights are streams, decoded once by init or before calls that read them.

    coded      constants {w} ; calls k(x, w, y)   ->   constants {w.coded} ; setup decode(w.coded, w, table)
    streamed   calls k(x, w, y)                   ->   decode(w.coded, w.0, table), k(x, w.0, y)

The memory plan sees what is decoded as buffers: alive all the time, or from its decoding to the call behind it. A
constant of wider elements may be coded as one stream for each byte of them, with frequencies of its own; it stays as it
is where no stream is clearly smaller.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from graphc.backends.entropy import Bytes, Stream, counted, encoded, entropy_bytes, smallest
from graphc.backends.program import Buffer, Call, CodedConstant, Kernel, Program
from graphc.backends.targets import Storage
from graphc.ir.graph import Array

TABLE_BYTES = 5120
"""Scratch of a decoder: CODED_TABLE in runtime_coded.c."""
TABLE = "decoder's table"
LEAST = 64
"""Bytes that coding must save, and a twentieth of the constant: decoding takes time and memory."""


@dataclass(frozen=True, slots=True)
class _Coded:
    """Streams of a constant's bytes: stream i is of bytes i, i + n, i + 2 n, ... for n streams."""

    streams: tuple[Stream, ...]
    bound: float

    @property
    def data(self) -> Bytes:
        return np.concatenate([stream.data for stream in self.streams])


def store(program: Program, storage: Storage) -> Program:
    """`program` with its constants stored so; `coded` and `streamed` list what became of every constant."""
    if storage == "plain":
        return program
    readers: dict[str, list[Call]] = {}
    for call in (*program.setup, *program.calls):
        for name in dict.fromkeys(call.arguments):
            if name in program.constants:
                readers.setdefault(name, []).append(call)
    shared = {*program.outputs, *program.aliases.values()}  # they are read beside calls
    found = {name: _code(program.constants[name]) for name in readers}
    smaller = {name: each for name, each in found.items() if name not in shared and _pays(program, name, each)}
    records = tuple(
        _record(program, name, each, name in smaller, _nodes(readers[name])) for name, each in found.items()
    )
    return replace((_once if storage == "coded" else _each_time)(program, smaller), coded=records)


def _nodes(calls: list[Call]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(node for call in calls for node in call.nodes))


def _code(array: Array) -> _Coded:
    """One stream for all bytes or one for each byte of an element, whichever should be smaller."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    rows = [np.ascontiguousarray(flat[i :: array.dtype.itemsize]) for i in range(array.dtype.itemsize)]
    counts = [counted(row) for row in rows]
    together = np.sum(counts, axis=0)
    if smallest(together)[0] <= sum(smallest(each)[0] for each in counts):
        return _Coded((encoded(flat),), entropy_bytes(together))
    return _Coded(tuple(map(encoded, rows)), sum(map(entropy_bytes, counts)))


def _pays(program: Program, name: str, found: _Coded) -> bool:
    return len(found.data) + max(LEAST, program.constants[name].nbytes // 20) <= program.constants[name].nbytes


def _record(program: Program, name: str, found: _Coded, is_coded: bool, nodes: tuple[str, ...]) -> CodedConstant:
    packed = program.constants[name].nbytes
    if not is_coded:
        return CodedConstant(name, nodes, packed, packed, found.bound, None)
    data = found.data
    return CodedConstant(_stored(name), nodes, packed, len(data), found.bound, zlib.crc32(data.tobytes()))


def _stored(name: str) -> str:
    return f"{name}.coded"


def _once(program: Program, coded: Mapping[str, _Coded]) -> Program:
    """Constants become buffers that the setup fills."""
    if not coded:
        return program
    kernels = {**program.kernels, **{f"decode_{i}": _kernel(i, each) for i, each in enumerate(coded.values())}}
    buffers = {**program.buffers, TABLE: Buffer(TABLE, "uint8", (TABLE_BYTES,), "scratch")}
    buffers.update({name: replace(program.buffers[name], role="scratch") for name in coded})
    setup = tuple(_decode(i, name, name, ()) for i, name in enumerate(coded))
    return replace(_with_streams(program, coded, buffers), kernels=kernels, setup=(*setup, *program.setup))


def _each_time(program: Program, coded: Mapping[str, _Coded]) -> Program:
    """Every call of a coded constant gets a buffer of its own for it, filled by a call before."""
    numbers = {name: i for i, name in enumerate(coded)}
    kernels = {**program.kernels, **{f"decode_{i}": _kernel(i, each) for i, each in enumerate(coded.values())}}
    buffers, calls = dict(program.buffers), []
    for position, call in enumerate(program.calls):
        own = {name: f"{name}.{position}" for name in dict.fromkeys(call.arguments) if name in coded}
        for name, buffer in own.items():
            buffers[buffer] = replace(program.buffers[name], name=buffer, role="scratch")
            table = f"{TABLE}.{buffer}"
            buffers[table] = Buffer(table, "uint8", (TABLE_BYTES,), "scratch")
            calls.append(_decode(numbers[name], name, buffer, call.nodes, table))
        calls.append(replace(call, arguments=tuple(own.get(name, name) for name in call.arguments)))
    for name in coded:
        del buffers[name]
    return replace(_with_streams(program, coded, buffers), kernels=kernels, calls=tuple(calls))


def _with_streams(program: Program, coded: Mapping[str, _Coded], buffers: dict[str, Buffer]) -> Program:
    constants: dict[str, Array] = {name: array for name, array in program.constants.items() if name not in coded}
    for name, each in coded.items():
        constants[_stored(name)] = each.data
        buffers[_stored(name)] = Buffer(_stored(name), "uint8", (len(each.data),), "constant")
    return replace(program, buffers=buffers, constants=constants)


def _decode(number: int, name: str, buffer: str, nodes: tuple[str, ...], table: str = TABLE) -> Call:
    return Call(f"decode_{number}", (_stored(name), buffer, table), 1, nodes, (buffer, table))


def _kernel(number: int, found: _Coded) -> Kernel:
    """C that decodes one constant: `int decode_N(in, out, table, begin, end)`, 0 for streams that are not valid."""
    at, calls = 0, []
    for i, stream in enumerate(found.streams):
        count, size = stream.count, len(stream.data)
        method = f"CODED_{stream.method.upper()}"
        calls.append(f"decode_coded({method}, in + {at}, {size}, out + {i}, {count}, {len(found.streams)}, table)")
        at += size
    symbol = f"decode_{number}"
    streams = "\n        && ".join(calls)
    text = (
        f"static int {symbol}(const uint8_t *in, uint8_t *out, uint8_t *table, int32_t begin, int32_t end)\n{{\n"
        f"    (void)begin;\n    (void)end;\n    return {streams};\n}}\n"
    )
    return Kernel(symbol, "", ("uint8", "uint8", "uint8"), (True, False, False), text)
