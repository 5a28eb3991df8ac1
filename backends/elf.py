"""The little of the ELF format that graphc needs: which symbols an object lacks, and objects without debug sections.

Source: System V Application Binary Interface, chapter 4 (sections, symbol table), little-endian, 32 and 64 bits.
"""

import struct
from dataclasses import dataclass, replace

from graphc.errors import InternalError

_SYMBOL_TABLE, _RELOCATIONS, _NO_BITS = 2, (4, 9), 8  # section types: SHT_SYMTAB, SHT_RELA and SHT_REL, SHT_NOBITS
_UNDEFINED, _ABSOLUTE, _RESERVED = 0, 0xFFF1, 0xFF00  # section indices of symbols


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


_LAYOUTS = {
    1: _Layout(32, "<I", 46, struct.Struct("<10I"), 16, 14, 12),
    2: _Layout(40, "<Q", 58, struct.Struct("<IIQQQQIIQQ"), 24, 6, 4),
}


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
    found = set()
    for table in sections:
        if table.type == _SYMBOL_TABLE:
            names = sections[table.link].content(data)
            symbols = table.content(data)
            for at in range(layout.symbol_bytes, len(symbols), layout.symbol_bytes):  # the first is no symbol
                (name,) = struct.unpack_from("<I", symbols, at)
                (section,) = struct.unpack_from("<H", symbols, at + layout.symbol_section_at)
                if section == _UNDEFINED and name:
                    found.add(_text(names, name))
    return frozenset(found)


def without_debug(data: bytes) -> bytes:
    """The object file less its debug sections (what `strip --strip-debug` removes): same code, same symbols."""
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
            content = _renumbered(content, index, layout)
        body += bytes(-len(body) % max(section.alignment, 1))
        info = index.get(section.info, 0) if section.type in _RELOCATIONS else section.info
        headers.append(replace(section, offset=len(body), link=index.get(section.link, 0), info=info))
        body += content
    body += bytes(-len(body) % 8)
    struct.pack_into(layout.word, body, layout.sections_at, len(body))
    struct.pack_into("<HHH", body, layout.counts_at, layout.section.size, len(kept), index[names_index])
    return bytes(body) + b"".join(layout.section.pack(*each.fields()) for each in headers)


def _renumbered(symbols: bytes, index: dict[int, int], layout: _Layout) -> bytes:
    """The symbol table with new section indices; symbols of removed sections stay, as nameless locals nobody uses."""
    table = bytearray(symbols)
    for at in range(0, len(table), layout.symbol_bytes):
        (section,) = struct.unpack_from("<H", table, at + layout.symbol_section_at)
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
    return name.removeprefix(".rela").removeprefix(".rel").startswith(".debug")


def _text(names: bytes, at: int) -> str:
    return names[at : names.index(b"\0", at)].decode()
