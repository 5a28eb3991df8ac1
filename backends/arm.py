"""Arm's A profile under Linux: aarch64, and armv7-a with NEON, as data.

Sources: Arm Architecture Reference Manual (A profile), chapter A2 (extensions), and the cores' technical reference
manuals for the caches; where a core comes in several sizes, the smallest on common boards.

Vectors are NEON's 128 bits everywhere. Neoverse V1 has SVE of 256 bits too; schedules do not use it, and LLVM is kept
from doing so (`-sve`), because a fixed length is what tiles are chosen by.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from graphc.backends.targets import Family, Target

TRIPLES = {"aarch64": "aarch64-unknown-linux-gnu", "armv7": "armv7-unknown-linux-gnueabihf"}

INSTRUCTIONS = {
    "neon": "128-bit vectors of 8 to 32-bit integers and float32",
    "fma": "a * b + c in one step, of vectors",
    "rounding": "vectors rounded to whole numbers, half to even (frintn)",
    "fp16": "float16 arithmetic (FEAT_FP16)",
    "dotprod": "sdot and udot: dot products of four bytes into 32 bits, both signed or both not, exact",
    "i8mm": "usdot: u8 x s8 dot products of four, exact (FEAT_I8MM)",
    "bf16": "bfdot: bfloat16 dot products of two into float32",
}
"""What schedules may ask `Target.has` for."""

V8 = frozenset({"neon", "fma", "rounding"})
V8_2 = V8 | {"fp16", "dotprod"}
V8_4 = V8_2 | {"i8mm", "bf16"}


@dataclass(frozen=True, slots=True)
class Core:
    """One processor. `emulated_as` is the nearest one of QEMU's user mode that has no instruction this one lacks."""

    id: str
    state: str
    """The instruction set: a key of `TRIPLES`."""
    instructions: frozenset[str]
    l1_bytes: int
    l2_bytes: int
    emulated_as: str
    llvm: str = ""
    """LLVM's name where it differs from `id`."""
    features: tuple[str, ...] = ()


KIB = 1 << 10
CORES = (
    Core("aarch64", "aarch64", V8, 32 * KIB, 256 * KIB, "cortex-a53", llvm="generic"),
    Core("cortex-a53", "aarch64", V8, 32 * KIB, 128 * KIB, "cortex-a53"),
    Core("cortex-a55", "aarch64", V8_2, 32 * KIB, 128 * KIB, "cortex-a76"),
    Core("cortex-a57", "aarch64", V8, 32 * KIB, 512 * KIB, "cortex-a57"),
    Core("cortex-a72", "aarch64", V8, 32 * KIB, 256 * KIB, "cortex-a72"),
    Core("cortex-a76", "aarch64", V8_2, 64 * KIB, 512 * KIB, "cortex-a76"),
    Core("cortex-a78", "aarch64", V8_2, 64 * KIB, 256 * KIB, "cortex-a76"),
    Core("neoverse-n1", "aarch64", V8_2, 64 * KIB, 1024 * KIB, "neoverse-n1"),
    Core("neoverse-v1", "aarch64", V8_4, 64 * KIB, 1024 * KIB, "max", features=("-sve",)),
    Core("cortex-a7", "armv7", frozenset({"neon", "fma"}), 32 * KIB, 256 * KIB, "cortex-a7"),
    Core("cortex-a8", "armv7", frozenset({"neon"}), 32 * KIB, 256 * KIB, "cortex-a8"),
    Core("cortex-a9", "armv7", frozenset({"neon"}), 32 * KIB, 512 * KIB, "cortex-a9", features=("+neon",)),
)

REGISTERS: Mapping[str, int] = {"aarch64": 32, "armv7": 16}


def core_target(core: Core) -> Target:
    """Code for `core`, and for every core that has all its instructions."""
    return Target(
        id=core.id,
        family="arm",
        triple=TRIPLES[core.state],
        cpu=core.llvm or core.id,
        features=core.features,
        vector_bits=128,
        vector_registers=REGISTERS[core.state],
        l1_bytes=core.l1_bytes,
        l2_bytes=core.l2_bytes,
        instructions=core.instructions,
    )


def emulated_as(target: Target) -> str:
    """The processor of QEMU's user mode that stands in for a target of this family."""
    return next(core.emulated_as for core in CORES if (core.llvm or core.id) == target.cpu)


FAMILY = Family("arm", {core.id: partial(core_target, core) for core in CORES})
