"""The little of the ELF format (System V ABI) that checks need: which symbols an object file lacks."""

import struct
from collections.abc import Iterator

from graphc.errors import InternalError

_SYMBOL_TABLE = 2  # SHT_SYMTAB
_UNDEFINED = 0  # SHN_UNDEF


def undefined_symbols(data: bytes) -> frozenset[str]:
    """Names that a little-endian ELF object, of 32 or 64 bits, uses and does not define.

    Raises InternalError for anything else.
    """
    if data[:4] != b"\x7fELF" or data[4] not in (1, 2) or data[5] != 1:
        raise InternalError("object file", "expected a little-endian ELF object.")
    sections = list(_sections(data))
    found = set()
    for kind, offset, size, link in sections:
        if kind != _SYMBOL_TABLE:
            continue
        names = sections[link][1]
        step = 24 if data[4] == 2 else 16
        for at in range(offset + step, offset + size, step):  # the first entry is reserved
            name, section = _symbol(data, at)
            if section == _UNDEFINED and name:
                found.add(data[names + name : data.index(b"\0", names + name)].decode())
    return frozenset(found)


def _sections(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(type, offset, size, link) of each section."""
    wide = data[4] == 2
    (table,) = struct.unpack_from("<Q" if wide else "<I", data, 40 if wide else 32)
    entry, count = struct.unpack_from("<HH", data, 58 if wide else 46)
    for index in range(count):
        at = table + index * entry
        if wide:
            _, kind, _, _, offset, size, link = struct.unpack_from("<IIQQQQI", data, at)
        else:
            _, kind, _, _, offset, size, link = struct.unpack_from("<IIIIIII", data, at)
        yield kind, offset, size, link


def _symbol(data: bytes, at: int) -> tuple[int, int]:
    """(offset of the name, index of the section) of one symbol."""
    if data[4] == 2:
        name, _, _, section = struct.unpack_from("<IBBH", data, at)
    else:
        name, _, _, _, _, section = struct.unpack_from("<IIIBBH", data, at)
    return name, section
