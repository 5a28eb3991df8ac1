"""Arm's M profile without an operating system: Cortex-M0+ to M85, as data.

Sources: Armv6-M, Armv7-M and Armv8-M Architecture Reference Manuals; the cores' technical reference manuals.

"Vectors" are what one instruction works on: a 32-bit core register (two 16-bit halves with the DSP extension), or
Helium's 128 bits in one of eight registers.
"""

from dataclasses import dataclass, replace
from functools import partial

from graphc.backends.boards import Board, Fpu
from graphc.backends.targets import Family, Target
from graphc.errors import UnsupportedError

INSTRUCTIONS = {
    "long_multiply": "smull: 32 x 32 into 64 bits (Armv7-M and later)",
    "divide": "sdiv and udiv (Armv7-M and later)",
    "saturate": "ssat and usat (Armv7-M and later)",
    "dsp": "smlad, sxtb16 and their like: two 16-bit products into one 32-bit sum",
    "mve": "Helium: 128-bit vectors of integers; low-overhead loops",
    "mve_float": "Helium's float16 and float32 vectors",
    "fpu": "float32 arithmetic and fma of scalars",
    "fpu_double": "float64 arithmetic",
}
"""What schedules may ask `Target.has` for."""

V6M: frozenset[str] = frozenset()
V7M = frozenset({"long_multiply", "divide", "saturate"})
V7EM = V7M | {"dsp"}
V8_1M = V7EM | {"mve", "mve_float"}

UNITS: dict[Fpu, frozenset[str]] = {
    "none": frozenset(),
    "single": frozenset({"fpu"}),
    "double": frozenset({"fpu", "fpu_double"}),
}


@dataclass(frozen=True, slots=True)
class Core:
    """One processor, with the floating-point unit that it mostly comes with; a board may say that its chip differs."""

    id: str
    architecture: str
    """As LLVM's triples write it: `thumbv7em`."""
    instructions: frozenset[str]
    fpu: Fpu


CORES = (
    Core("cortex-m0plus", "thumbv6m", V6M, "none"),
    Core("cortex-m3", "thumbv7m", V7M, "none"),
    Core("cortex-m4", "thumbv7em", V7EM, "single"),
    Core("cortex-m7", "thumbv7em", V7EM, "double"),
    Core("cortex-m33", "thumbv8m.main", V7EM, "single"),
    Core("cortex-m55", "thumbv8.1m.main", V8_1M, "double"),
    Core("cortex-m85", "thumbv8.1m.main", V8_1M, "double"),
)

SCALAR_REGISTERS, HELIUM_REGISTERS = 12, 8
"""Registers that a loop can hold values in: r0 to r11 less what is left for addresses and the stack; q0 to q7."""


def core_target(core: Core, fpu: Fpu = "") -> Target:
    """Code for `core`, with the floating-point unit `fpu` where it is not the core's usual one."""
    unit = fpu or core.fpu
    helium = "mve" in core.instructions
    return Target(
        id=core.id,
        family="cortex_m",
        triple=f"{core.architecture}-none-{'eabi' if unit == 'none' else 'eabihf'}",
        cpu=core.id,
        features=_features(core, unit),
        vector_bits=128 if helium else 32,
        vector_registers=HELIUM_REGISTERS if helium else SCALAR_REGISTERS,
        l1_bytes=0,
        l2_bytes=0,
        instructions=_with_unit(core, unit),
        float_abi="soft" if unit == "none" else "hard",
        hosted=False,
        library_ending="",
    )


def _with_unit(core: Core, unit: Fpu) -> frozenset[str]:
    return (core.instructions | UNITS[unit]) - (frozenset({"mve_float"}) if unit == "none" else frozenset())


def _features(core: Core, unit: Fpu) -> tuple[str, ...]:
    """What is taken from LLVM's idea of the core, which has all that it can be bought with."""
    if unit == core.fpu:
        return ()
    if unit == "single":
        return ("-fp64",)
    return ("-mve.fp", "-vfp2sp") if "mve" in core.instructions else ("-fpregs",)


def on_board(target: Target, board: Board) -> Target:
    """Code for the chip of `board`. Raises UnsupportedError for a floating-point unit that its core cannot have."""
    core = next(core for core in CORES if core.id == target.id)
    if board.fpu and not UNITS[board.fpu] <= UNITS[core.fpu]:
        problem = f"{core.id} has no floating-point unit for `fpu: {board.fpu}`."
        raise UnsupportedError(f"board '{board.id}'", problem, f"Write `fpu: {core.fpu}`, or leave it out.")
    return replace(core_target(core, board.fpu), id=board.id, board=board)


FAMILY = Family("cortex_m", {core.id: partial(core_target, core) for core in CORES}, on_board)
