"""x86-64: the psABI levels, and what this machine has.

Source of the levels: x86-64 psABI, table "Micro-Architecture Levels". The machine's features are Linux's flags of
/proc/cpuinfo, which hold what processor, hypervisor and kernel together allow.
"""

import platform
import sys
from collections.abc import Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from graphc.backends.targets import Family, Target
from graphc.errors import UnsupportedError

TRIPLE = "x86_64-unknown-linux-gnu"

INSTRUCTIONS = {
    "avx2": "256-bit integers",
    "fma": "a * b + c in one step",
    "f16c": "float16 to float32 and back, eight at a time",
    "avx512": "512-bit vectors, 32 registers (F, BW, CD, DQ, VL)",
    "avx_vnni": "vpdpbusd on 256 bits, VEX-encoded: u8 x s8 dot products of four into int32, exact",
    "avx512_vnni": "vpdpbusd on 512, 256 and 128 bits",
    "avx512_bf16": "vdpbf16ps: bfloat16 dot products of two into float32",
    "fast_bf16": "vdpbf16ps as often as a multiply-add (AMD): twice the products of float32; a quarter as often else",
    "avx512_fp16": "float16 arithmetic",
    "amx_int8": "tiles: 16 x 64 bytes by 64 x 16 bytes into 16 x 16 int32; a process must ask Linux for them first",
    "amx_bf16": "tiles of bfloat16 into float32",
}
"""What schedules may ask `Target.has` for."""


@dataclass(frozen=True, slots=True)
class Level:
    """One psABI level: the flags a machine must show for it (beyond the level below), and what kernels get from it."""

    name: str
    flags: frozenset[str]
    instructions: frozenset[str]
    vector_bits: int
    vector_registers: int
    l1_bytes: int
    l2_bytes: int
    features: tuple[str, ...] = ()


# The cache sizes are the smallest of the common server and desktop cores of each level.
LEVELS = (
    Level(
        "x86-64-v2",
        frozenset({"cx16", "lahf_lm", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2"}),
        frozenset(),
        vector_bits=128,
        vector_registers=16,
        l1_bytes=32 << 10,
        l2_bytes=256 << 10,
    ),
    Level(
        "x86-64-v3",
        frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}),
        frozenset({"avx2", "fma", "f16c"}),
        vector_bits=256,
        vector_registers=16,
        l1_bytes=32 << 10,
        l2_bytes=256 << 10,
    ),
    Level(
        "x86-64-v4",
        frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
        frozenset({"avx2", "fma", "f16c", "avx512"}),
        vector_bits=512,
        vector_registers=32,
        l1_bytes=32 << 10,
        l2_bytes=1 << 20,
        # LLVM tunes this level for processors that slow down on 512 bits, which are old by now.
        features=("-prefer-256-bit",),
    ),
)

# Linux's flag -> LLVM's feature, beyond the levels; kernels may use all of them on the machine that shows them.
EXTENSIONS = {
    "avx_vnni": "avxvnni",
    "avx512_vnni": "avx512vnni",
    "avx512_bf16": "avx512bf16",
    "avx512_fp16": "avx512fp16",
    "avx512_bitalg": "avx512bitalg",
    "avx512_vbmi2": "avx512vbmi2",
    "avx512_vpopcntdq": "avx512vpopcntdq",
    "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi",
    "amx_bf16": "amx-bf16",
    "amx_int8": "amx-int8",
    "amx_tile": "amx-tile",
    "gfni": "gfni",
}

FAST_BF16 = frozenset({"avx512_bf16", "avx512vl", "sse4a"})
"""Flags of the processors with the instruction "fast_bf16": only AMD's have SSE4A. Sources: uops.info for Zen 4 (one
vdpbf16ps of 512 bits a cycle, as of vfmadd); measured on Sapphire Rapids: 32 G products a second beside 66 of vfmadd.
"""
ALDERLAKE = frozenset().union(*(level.flags for level in LEVELS[:-1]), {"avx_vnni", "gfni"})
ZEN4 = frozenset().union(
    *(level.flags for level in LEVELS),
    {"avx512_vnni", "avx512_bf16", "avx512_bitalg", "avx512_vbmi2", "avx512_vpopcntdq", "avx512ifma", "avx512vbmi"},
    {"gfni", "sse4a"},
)


def level_target(level: Level) -> Target:
    """Code for every processor of `level`."""
    return Target(
        id=level.name,
        family="x86",
        triple=TRIPLE,
        cpu=level.name,
        features=level.features,
        vector_bits=level.vector_bits,
        vector_registers=level.vector_registers,
        l1_bytes=level.l1_bytes,
        l2_bytes=level.l2_bytes,
        instructions=level.instructions,
    )


def machine_target(flags: Set[str], l1_bytes: int | None, l2_bytes: int | None) -> Target:
    """Code for the machine with these flags of /proc/cpuinfo: its highest level and the extensions it has beyond.

    Extensions of AVX-512 count only where the whole of level v4 is there. Caches of unknown size are the level's.
    Raises UnsupportedError below x86-64-v2.
    """
    reached = [level for i, level in enumerate(LEVELS) if all(below.flags <= flags for below in LEVELS[: i + 1])]
    if not reached:
        missing = ", ".join(sorted(LEVELS[0].flags - flags))
        raise UnsupportedError("target {cpu: native}", f"this processor is older than {LEVELS[0].name} (no {missing}).")
    level = reached[-1]
    fast = {"fast_bf16"} if flags >= FAST_BF16 else set()
    extensions = {flag for flag in EXTENSIONS if flag in flags and (level is LEVELS[-1] or "512" not in flag)}
    return Target(
        id="native",
        family="x86",
        triple=TRIPLE,
        cpu=level.name,
        features=tuple(sorted({*level.features, *(f"+{EXTENSIONS[flag]}" for flag in extensions)})),
        vector_bits=level.vector_bits,
        vector_registers=level.vector_registers,
        l1_bytes=l1_bytes or level.l1_bytes,
        l2_bytes=l2_bytes or level.l2_bytes,
        instructions=level.instructions | (extensions & INSTRUCTIONS.keys()) | fast,
    )


def zen4() -> Target:
    """AMD's cores of 2022: AVX-512 with VNNI and bfloat16, no matrix tiles."""
    return replace(machine_target(ZEN4, 32 << 10, 1 << 20), id="zen4")


def alderlake() -> Target:
    """Intel's cores for desktops since 2021: no AVX-512, but VNNI on 256 bits. Caches are the smaller core's share."""
    return replace(machine_target(ALDERLAKE, 32 << 10, 512 << 10), id="alderlake")


def native(cpuinfo: Path = Path("/proc/cpuinfo"), caches: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> Target:
    """This machine. Raises UnsupportedError where it is no x86-64 Linux."""
    machine = platform.machine().lower()
    if machine not in ("x86_64", "amd64") or sys.platform != "linux":
        raise UnsupportedError(
            "target {cpu: native}",
            f"this machine is {machine} {platform.system()}; graphc describes x86-64 Linux machines only.",
            f"Name what the code is for: {', '.join(level.name for level in LEVELS)}.",
        )
    try:
        text = cpuinfo.read_text()
    except OSError as error:
        raise UnsupportedError(
            "target {cpu: native}",
            f"cannot read this processor's features: {error}.",
            f"Name a level instead: {', '.join(level.name for level in LEVELS)}.",
        ) from error
    sizes = _cache_sizes(caches)
    return machine_target(_flags(text), sizes.get(1), sizes.get(2))


def _flags(cpuinfo: str) -> frozenset[str]:
    """Flags that all processors of the machine share."""
    lines = [line.split(":", 1)[1].split() for line in cpuinfo.splitlines() if line.startswith("flags")]
    return frozenset.intersection(*map(frozenset, lines)) if lines else frozenset()


def _cache_sizes(folder: Path) -> dict[int, int]:
    """Level -> bytes of the first core's data or unified caches; empty where the system does not tell."""
    sizes: dict[int, int] = {}
    units = {"K": 1 << 10, "M": 1 << 20}
    for entry in sorted(folder.glob("index*")):
        try:
            level, kind, size = ((entry / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction" and size[-1:] in units:
            sizes[int(level)] = int(size[:-1]) * units[size[-1]]
    return sizes


FAMILY = Family(
    "x86",
    {
        "native": native,
        **{level.name: partial(level_target, level) for level in LEVELS},
        "zen4": zen4,
        "alderlake": alderlake,
    },
)
