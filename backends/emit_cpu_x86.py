"""The check, in C, that an x86 processor has what the kernels were compiled for: a clear error instead of SIGILL.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2A, CPUID; volume 1, chapter 13 (XCR0).
"""

from dataclasses import dataclass

from graphc.backends.targets import Target
from graphc.errors import InternalError

REGISTERS = ("eax", "ebx", "ecx", "edx")
EXTENDED = 0x8000_0001

# LLVM's processor level or feature -> (leaf, subleaf, register, bits) in CPUID.
LEVELS: dict[str, tuple[tuple[int, int, str, tuple[int, ...]], ...]] = {
    "x86-64-v2": ((1, 0, "ecx", (0, 9, 13, 19, 20, 23)), (EXTENDED, 0, "ecx", (0,))),
    "x86-64-v3": ((1, 0, "ecx", (12, 22, 27, 28, 29)), (7, 0, "ebx", (3, 5, 8)), (EXTENDED, 0, "ecx", (5,))),
    "x86-64-v4": ((7, 0, "ebx", (16, 17, 28, 30, 31)),),
}
FEATURES: dict[str, tuple[int, int, str, int]] = {
    "avx512ifma": (7, 0, "ebx", 21),
    "avx512vbmi": (7, 0, "ecx", 1),
    "avx512vbmi2": (7, 0, "ecx", 6),
    "gfni": (7, 0, "ecx", 8),
    "avx512vnni": (7, 0, "ecx", 11),
    "avx512bitalg": (7, 0, "ecx", 12),
    "avx512vpopcntdq": (7, 0, "ecx", 14),
    "amx-bf16": (7, 0, "edx", 22),
    "avx512fp16": (7, 0, "edx", 23),
    "amx-tile": (7, 0, "edx", 24),
    "amx-int8": (7, 0, "edx", 25),
    "avxvnni": (7, 1, "eax", 4),
    "avx512bf16": (7, 1, "eax", 5),
}
TUNING = frozenset({"prefer-256-bit"})
"""Features of LLVM that choose code and need no instruction."""

YMM, ZMM, AMX = 0x6, 0xE6, 0x60000
"""Bits of XCR0: what the system saves for 256-bit vectors, for 512-bit vectors, for tiles."""


@dataclass(frozen=True, slots=True)
class CpuCheck:
    """What must be set: rows of (leaf, subleaf, eax, ebx, ecx, edx), and bits of XCR0."""

    cpuid: tuple[tuple[int, ...], ...]
    xcr0: int


def cpu_check(target: Target) -> CpuCheck:
    """The check for an x86 target. Raises InternalError for a processor or feature that the tables lack."""
    levels = list(LEVELS)
    if target.cpu not in levels:
        raise InternalError(f"target {target.id}", f"expected a processor of {levels}, got '{target.cpu}'.")
    added = [feature.removeprefix("+") for feature in target.features if feature.startswith("+")]
    if unknown := [feature for feature in added if feature not in FEATURES and feature not in TUNING]:
        raise InternalError(f"target {target.id}", f"no CPUID bit is known for {', '.join(unknown)}.")
    wanted = [row for level in levels[: levels.index(target.cpu) + 1] for row in LEVELS[level]]
    wanted += [(*FEATURES[name][:3], (FEATURES[name][3],)) for name in added if name in FEATURES]
    masks: dict[tuple[int, int], dict[str, int]] = {}
    for leaf, subleaf, register, bits in wanted:
        row = masks.setdefault((leaf, subleaf), dict.fromkeys(REGISTERS, 0))
        row[register] |= sum(1 << bit for bit in set(bits))
    rows = tuple((*key, *row.values()) for key, row in sorted(masks.items()))
    xcr0 = {"x86-64-v2": 0, "x86-64-v3": YMM, "x86-64-v4": ZMM}[target.cpu]
    return CpuCheck(rows, xcr0 | (AMX if any(name.startswith("amx") for name in added) else 0))
