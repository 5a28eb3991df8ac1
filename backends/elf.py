"""The little of the ELF format that graphc needs: an object's symbols, sections and relocations.

Source: System V Application Binary Interface, chapter 4 (sections, symbol table), little-endian, 32 and 64 bits.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from graphc.errors import InternalError

_SYMBOL_TABLE, _RELOCATIONS, _NO_BITS = 2, (4, 9), 8  # section types: SHT_SYMTAB, SHT_RELA and SHT_REL, SHT_NOBITS
_UNDEFINED, _ABSOLUTE, _RESERVED = 0, 0xFFF1, 0xFF00  # section indices of symbols
_ALLOCATED = 2  # section flag SHF_ALLOC: the section is part of the program

FUNCTION, SECTION = 2, 3
"""Symbol types STT_FUNC and STT_SECTION."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things are in files of one word size: byte offsets in the file's header, and formats of records."""

    sections_at: int
    word: str
    counts_at: int
    section: struct.Struct
    symbol_bytes: int
    symbol_section_at: int
    symbol_info_at: int
    value: struct.Struct
    """A symbol's value and size."""
    value_at: int
    symbol_shift: int
    """Of a relocation's symbol in its second word."""


_LAYOUTS = {
    1: _Layout(32, "<I", 46, struct.Struct("<10I"), 16, 14, 12, struct.Struct("<II"), 4, 8),
    2: _Layout(40, "<Q", 58, struct.Struct("<IIQQQQIIQQ"), 24, 6, 4, struct.Struct("<QQ"), 8, 32),
}

_UNWINDING, _UNWINDER = (".ARM.exidx", ".ARM.extab"), "__aeabi_unwind_cpp_pr"
"""Sections of Arm's exception tables, and the functions that they name (IHI0038)."""
_WEAK = 2 << 4


@dataclass(frozen=True, slots=True)
class Symbol:
    """One symbol: `section` is where it is defined, 0 where it is not, `value` its offset there."""

    name: str
    type: int
    section: int
    value: int
    size: int


@dataclass(frozen=True, slots=True)
class Relocation:
    """Somewhere at `offset` in `section` the address of `symbol` is needed, in the form `type` of the processor."""

    section: int
    offset: int
    type: int
    symbol: Symbol


@dataclass(frozen=True, slots=True)
class _Section:
    """One section's header, its fields in the file's order."""

    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_bytes: int

    def fields(self) -> tuple[int, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def content(self, data: bytes) -> bytes:
        return b"" if self.type == _NO_BITS else data[self.offset : self.offset + self.size]


def undefined_symbols(data: bytes) -> frozenset[str]:
    """Names that an object file uses and does not define. Raises InternalError for anything but a little-endian ELF."""
    layout, sections, _ = _parsed(data)
    found = (symbol for table in sections for symbol in _symbols(data, layout, sections, table))
    return frozenset(symbol.name for symbol in found if symbol.section == _UNDEFINED and symbol.name)


def defined_symbols(data: bytes) -> list[Symbol]:
    """The symbols that an object defines in a section of its own, local ones too."""
    layout, sections, _ = _parsed(data)
    found = (symbol for table in sections for symbol in _symbols(data, layout, sections, table))
    return [symbol for symbol in found if 0 < symbol.section < len(sections)]


def section_content(data: bytes, index: int) -> bytes:
    """The bytes of one section."""
    return _parsed(data)[1][index].content(data)


def relocations(data: bytes) -> Iterator[Relocation]:
    """Every place of an object's sections that waits for an address; those of debug sections are left out."""
    layout, sections, names_index = _parsed(data)
    names = sections[names_index].content(data)
    word = struct.Struct(f"<2{layout.word[1]}")
    for table in sections:
        if table.type not in _RELOCATIONS or _is_debug(_text(names, table.name)):
            continue
        symbols = list(_symbols(data, layout, sections, sections[table.link], first=0))
        content = table.content(data)
        for at in range(0, len(content), table.entry_bytes):
            offset, info = word.unpack_from(content, at)
            kind = info & ((1 << layout.symbol_shift) - 1)
            yield Relocation(table.info, offset, kind, symbols[info >> layout.symbol_shift])


def loaded_bytes(data: bytes) -> int:
    """Bytes of an object that become part of a program's read-only or initialised memory: code, tables, constants."""
    _, sections, _ = _parsed(data)
    kept = (each for each in sections if each.flags & _ALLOCATED and each.type != _NO_BITS)
    return sum(-(-each.size // max(each.alignment, 1)) * max(each.alignment, 1) for each in kept)


def without_debug(data: bytes) -> bytes:
    """The object file less what is for debuggers (as `strip --strip-debug`) and for exceptions: same code and symbols.

    Arm's unwinding tables would have the linker bring the compiler's unwinder, a few KiB that no C code needs.
    """
    layout, sections, names_index = _parsed(data)
    names = sections[names_index].content(data)
    kept = [i for i, section in enumerate(sections) if not _is_debug(_text(names, section.name))]
    index = {old: new for new, old in enumerate(kept)}
    header = bytearray(data[: struct.unpack_from("<H", data, layout.counts_at - 6)[0]])
    body = bytearray(header)
    headers = []
    for section in (sections[i] for i in kept):
        content = section.content(data)
        if section.type == _SYMBOL_TABLE:
            content = _renumbered(content, sections[section.link].content(data), index, layout)
        body += bytes(-len(body) % max(section.alignment, 1))
        info = index.get(section.info, 0) if section.type in _RELOCATIONS else section.info
        headers.append(replace(section, offset=len(body), link=index.get(section.link, 0), info=info))
        body += content
    body += bytes(-len(body) % 8)
    struct.pack_into(layout.word, body, layout.sections_at, len(body))
    struct.pack_into("<HHH", body, layout.counts_at, layout.section.size, len(kept), index[names_index])
    return bytes(body) + b"".join(layout.section.pack(*each.fields()) for each in headers)


def _symbols(
    data: bytes, layout: _Layout, sections: list[_Section], table: _Section, first: int = 1
) -> Iterator[Symbol]:
    """The symbols of a table; the one before the `first` is no symbol. None where it is another kind of section."""
    if table.type != _SYMBOL_TABLE:
        return
    names, content = sections[table.link].content(data), table.content(data)
    for at in range(first * layout.symbol_bytes, len(content), layout.symbol_bytes):
        (name,) = struct.unpack_from("<I", content, at)
        (section,) = struct.unpack_from("<H", content, at + layout.symbol_section_at)
        value, size = layout.value.unpack_from(content, at + layout.value_at)
        yield Symbol(_text(names, name), content[at + layout.symbol_info_at] & 15, section, value, size)


def _renumbered(symbols: bytes, names: bytes, index: dict[int, int], layout: _Layout) -> bytes:
    """The symbol table with new section indices; symbols of removed sections stay, as nameless locals nobody uses.

    The unwinder's become weak: a linker looks for them no more.
    """
    table = bytearray(symbols)
    for at in range(0, len(table), layout.symbol_bytes):
        (section,) = struct.unpack_from("<H", table, at + layout.symbol_section_at)
        (name,) = struct.unpack_from("<I", table, at)
        if _text(names, name).startswith(_UNWINDER):
            table[at + layout.symbol_info_at] = _WEAK
        if section in index:
            struct.pack_into("<H", table, at + layout.symbol_section_at, index[section])
        elif section < _RESERVED:
            struct.pack_into("<I", table, at, 0)
            table[at + layout.symbol_info_at] = 0
            struct.pack_into("<H", table, at + layout.symbol_section_at, _ABSOLUTE)
    return bytes(table)


def _parsed(data: bytes) -> tuple[_Layout, list[_Section], int]:
    """Word size, sections, and which of them holds the sections' names."""
    if len(data) < 52 or data[:4] != b"\x7fELF" or data[4] not in _LAYOUTS or data[5] != 1:
        raise InternalError("object file", "expected a little-endian ELF object.")
    layout = _LAYOUTS[data[4]]
    (start,) = struct.unpack_from(layout.word, data, layout.sections_at)
    size, count, names = struct.unpack_from("<HHH", data, layout.counts_at)
    return layout, [_Section(*layout.section.unpack_from(data, start + i * size)) for i in range(count)], names


def _is_debug(name: str) -> bool:
    return name.removeprefix(".rela").removeprefix(".rel").startswith((".debug", *_UNWINDING))


def _text(names: bytes, at: int) -> str:
    return names[at : names.index(b"\0", at)].decode()
