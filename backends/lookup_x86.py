"""Table lookups of x86 in registers, as TIR expressions (imports TVM): one vector of entries for a vector of indices.

    vpermps           16 entries on 512 bits, 8 on 256: the lowest bits of each lane are the index, others are ignored
    vpermi2ps         32 entries in two registers of 512 bits
    blend             larger tables, by one more bit of the index
    vgatherdps        where the table takes more registers than that is worth
    a load per lane   below AVX2

Source: Intel SDM volume 2.
"""

from typing import Any

from tvm import tirx

from graphc.backends.statements import const, spread, vector
from graphc.backends.targets import Target

MOST_REGISTERS = 4
"""Registers of a table that is still blended together."""

_PERMUTE = {16: "llvm.x86.avx512.permvar.sf.512", 8: "llvm.x86.avx2.permps"}
_GATHER = {16: "llvm.x86.avx512.mask.gather.dps.512", 8: "llvm.x86.avx2.gather.d.ps.256"}
_PERMUTE_TWO = "llvm.x86.avx512.vpermi2var.ps.512"
_BLEND = "llvm.x86.avx.blendv.ps.256"


def looked_up(table: Any, bits: int, index: Any, lanes: int, target: Target, first: Any = 0) -> Any:
    """float32 x lanes: table[first + index], of which index `bits` bits count; `table` repeats itself up to 16 entries
    at least."""
    if lanes in _PERMUTE and target.has("avx2") and (1 << bits) <= MOST_REGISTERS * lanes:
        return _selected(table, first, bits, index, lanes)
    entry = index & spread(const((1 << bits) - 1), lanes)
    return gathered(table, entry + spread(first, lanes) if not isinstance(first, int) else entry, lanes, target)


def gathered(table: Any, entry: Any, lanes: int, target: Target) -> Any:
    """float32 x lanes: table[entry], by one load instruction for all lanes where there is one, unmasked."""
    if lanes not in _PERMUTE or not target.has("avx2"):
        return table[entry]
    floats, base = f"float32x{lanes}", tirx.address_of(table[0])
    nothing = spread(const(0, "float32"), lanes)
    if lanes == 16:
        all_lanes = tirx.const(1, "bool")
        mask = spread(all_lanes, lanes)
        return tirx.call_llvm_pure_intrin(floats, _GATHER[lanes], nothing, base, entry, mask, const(4))
    mask = tirx.reinterpret(floats, spread(const(-1), lanes))
    return tirx.call_llvm_pure_intrin(floats, _GATHER[lanes], nothing, base, entry, mask, const(4, "int8"))


def _selected(table: Any, first: Any, bits: int, index: Any, lanes: int) -> Any:
    """The entries first .. first + 2 ** bits, by the lowest `bits` bits of the index."""
    size = 1 << bits
    floats = f"float32x{lanes}"
    if size <= lanes:
        return tirx.call_llvm_pure_intrin(floats, _PERMUTE[lanes], table[vector(const(0) + first, lanes)], index)
    if lanes == 16 and size == 32:
        halves = [table[vector(const(half) + first, lanes)] for half in (0, 16)]
        return tirx.call_llvm_pure_intrin(floats, _PERMUTE_TWO, halves[0], index, halves[1])
    low, high = (_selected(table, first + half, bits - 1, index, lanes) for half in (0, size // 2))
    return _blended(low, high, index, bits - 1, lanes)


def _blended(low: Any, high: Any, index: Any, bit: int, lanes: int) -> Any:
    """`high` where the bit of the index is set: blends of 256 bits look at the highest bit of a lane."""
    if lanes == 8:
        sign = tirx.reinterpret("float32x8", index << spread(const(31 - bit), lanes))
        return tirx.call_llvm_pure_intrin("float32x8", _BLEND, low, high, sign)
    chosen = (index & spread(const(1 << bit), lanes)) != spread(const(0), lanes)
    return tirx.Select(chosen, high, low)
