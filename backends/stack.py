"""How much stack compiled code needs, read from its instructions: a bound for Arm's M profile (Thumb code).

A function's frame is the sum of all that its instructions take off the stack pointer, wherever they stand: no path
through it takes more. The deepest chain of calls gives the stack; calls are the objects' relocations. A call through a
pointer may reach any function whose address the same object takes. What objects call and none defines is the compiler's
own runtime library (`LIBRARY` bytes). Interrupts come on top of it.

Source: Arm Architecture Reference Manual ARMv8-M, chapter C2 (encodings); ELF for the Arm Architecture, 5.5 (mapping
symbols: `$t` starts code, `$d` data) and 5.6 (relocations).
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from graphc.backends.elf import FUNCTION, SECTION, Symbol, defined_symbols, relocations, section_content
from graphc.errors import InternalError

LIBRARY = 128
"""Bytes for the deepest function of a compiler's runtime library (memcpy, division, float64 arithmetic): newlib's and
libgcc's take at most 64 on Thumb."""

REALIGNED = 64
"""Bytes that a frame grows by at most where code aligns the stack pointer: no local buffer is aligned further."""

_CALLS = frozenset({10, 30, 51, 102})  # R_ARM_THM_CALL, JUMP24, JUMP19, JUMP11
_ADDRESSES = frozenset({2, 3, 47, 48})  # R_ARM_ABS32, REL32, THM_MOVW_ABS_NC, THM_MOVT_ABS


@dataclass
class _Function:
    """`frame` in bytes; `indirect`: it calls through a pointer."""

    frame: int = 0
    calls: set[str] = field(default_factory=set)
    indirect: bool = False


def stack_bound(objects: Iterable[bytes], roots: Iterable[str]) -> int:
    """Bytes of stack that a call of any of `roots` needs at most, given all objects of a program.

    Raises InternalError for code whose frame depends on data, for recursion, and for a root that no object defines.
    """
    functions: dict[str, _Function] = {}
    for data in objects:
        functions |= _functions(data)
    depths: dict[str, int] = {}
    for root in (roots := list(roots)):
        if root not in functions:
            raise InternalError(f"function {root}", "no object defines it.")
        _depth(root, functions, depths, ())
    return max(depths[root] for root in roots)


def _depth(name: str, functions: Mapping[str, _Function], known: dict[str, int], above: tuple[str, ...]) -> int:
    if name in above:
        raise InternalError(f"function {name}", f"it calls itself ({' -> '.join((*above, name))}).")
    if name not in functions:
        return LIBRARY
    if name not in known:
        function = functions[name]
        below = [_depth(each, functions, known, (*above, name)) for each in sorted(function.calls)]
        known[name] = function.frame + max(below, default=0)
    return known[name]


def _functions(data: bytes) -> dict[str, _Function]:
    """Every function of one object. Local names of different objects must differ where both matter."""
    symbols = defined_symbols(data)
    places = sorted((s for s in symbols if s.type == FUNCTION), key=lambda s: (s.section, s.value))
    found = {symbol.name: _read(data, symbol, symbols) for symbol in places}
    taken = set()
    for relocation in relocations(data):
        caller = _at(places, relocation.section, relocation.offset)
        callee = _target(places, relocation.symbol)
        if callee is None:
            continue
        if relocation.type in _CALLS and caller:
            found[caller].calls.add(callee)
        elif relocation.type in _ADDRESSES and callee in found:
            taken.add(callee)
    for function in found.values():
        if function.indirect:
            function.calls |= taken or {"(a function of the caller's)"}
    return found


def _at(places: list[Symbol], section: int, offset: int) -> str | None:
    inside = (s for s in places if s.section == section and s.value & ~1 <= offset < (s.value & ~1) + s.size)
    return next((symbol.name for symbol in inside), None)


def _target(places: list[Symbol], symbol: Symbol) -> str | None:
    """The function that a relocation means: by name, or the one at the start of a section."""
    if symbol.type == SECTION:
        return _at(places, symbol.section, 0)
    return symbol.name or None


def _read(data: bytes, symbol: Symbol, symbols: Iterable[Symbol]) -> _Function:
    """The frame of one function, and whether it calls through pointers."""
    function, realigned = _Function(), False
    literals: dict[int, int] = {}
    code = section_content(data, symbol.section)
    for at, first, second in _instructions(code, symbol, symbols):
        if first & 0xF800 == 0x4800:  # ldr rt, [pc, #imm]
            place = ((at + 4) & ~3) + 4 * (first & 0xFF)
            literals[first >> 8 & 7] = struct.unpack_from("<i", code, place)[0] if place + 4 <= len(code) else 0
        elif first & 0xFF87 == 0x4485:  # add sp, rm
            function.frame += max(0, -literals.get(first >> 3 & 15, 0))
        elif first & 0xFF87 == 0x4685:  # mov sp, rm
            realigned = True
        elif first & 0xFFEF == 0xEBAD and second & 0x0F00 == 0x0D00:  # sub sp, sp, rm
            raise InternalError(f"function {symbol.name}", "the size of its frame depends on data.")
        function.indirect |= first & 0xFF87 == 0x4780 or (first & 0xFF87 == 0x4700 and first != 0x4770)  # blx rm, bx rm
        function.frame += _taken(first, second)
    function.frame += REALIGNED if realigned else 0
    return function


def _taken(first: int, second: int) -> int:
    """Bytes that one instruction takes off the stack pointer."""
    for mask, value, second_mask, second_value, amount in _ENCODINGS:
        if first & mask == value and second & second_mask == second_value:
            return amount(first, second)
    return 0


def _expanded(value: int) -> int:
    """ThumbExpandImm of 12 bits."""
    byte = value & 0xFF
    if value >> 10 == 0:
        return (byte, byte << 16 | byte, byte << 24 | byte << 8, byte * 0x01010101)[value >> 8]
    rotation = value >> 7
    number = 0x80 | value & 0x7F
    return (number >> rotation | number << (32 - rotation)) & 0xFFFFFFFF


def _instructions(code: bytes, symbol: Symbol, symbols: Iterable[Symbol]) -> Iterator[tuple[int, int, int]]:
    """Offset and the two halves (the second 0 for a short one) of each instruction of a function; data is skipped."""
    marks = {s.value & ~1: s.name[1] for s in symbols if s.section == symbol.section and s.name[:2] in ("$t", "$d")}
    at, end = symbol.value & ~1, (symbol.value & ~1) + symbol.size
    kind = marks[max((mark for mark in marks if mark <= at), default=at)] if marks else "t"
    while at + 2 <= end:
        kind = marks.get(at, kind)
        if kind == "d":
            at += 2
            continue
        (first,) = struct.unpack_from("<H", code, at)
        long = first >= 0xE800 and at + 4 <= end
        yield at, first, struct.unpack_from("<H", code, at + 2)[0] if long else 0
        at += 4 if long else 2


def _immediate(first: int, second: int) -> int:
    return (first >> 10 & 1) << 11 | (second >> 12 & 7) << 8 | second & 0xFF


_ENCODINGS: tuple[tuple[int, int, int, int, Callable[[int, int], int]], ...] = (
    (0xFE00, 0xB400, 0, 0, lambda first, _: 4 * (first & 0x1FF).bit_count()),  # push {r0-r7, lr}
    (0xFF80, 0xB080, 0, 0, lambda first, _: 4 * (first & 0x7F)),  # sub sp, #imm
    (0xFFFF, 0xE92D, 0, 0, lambda _, second: 4 * second.bit_count()),  # push.w
    (0xFFBF, 0xED2D, 0x0E00, 0x0A00, lambda _, second: 4 * (second & 0xFF)),  # vpush
    (0xFFFF, 0xF84D, 0x0F00, 0x0D00, lambda _, second: second & 0xFF),  # str rt, [sp, #-imm]!
    (0xFFFF, 0xE96D, 0, 0, lambda _, second: 4 * (second & 0xFF)),  # strd rt, rt2, [sp, #-imm]!
    (0xFBEF, 0xF1AD, 0x8F00, 0x0D00, lambda first, second: _expanded(_immediate(first, second))),  # sub sp, sp, #const
    (0xFBFF, 0xF2AD, 0x8F00, 0x0D00, _immediate),  # subw sp, sp, #imm
)
"""Instructions that take from the stack pointer: mask and value of each half, and how many bytes."""
