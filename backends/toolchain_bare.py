"""The C compiler for targets without an operating system: the spec's, the environment's, Arm's GNU compiler, or zig.

What they are told is data: the architecture and floating-point unit, as each of them writes it.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from graphc.backends.cortex_m import CORES
from graphc.backends.targets import Target
from graphc.backends.toolchain import Toolchain, find_zig, system_toolchain, zig_toolchain
from graphc.errors import ToolchainError

PREFIX = "arm-none-eabi-"
VARIABLE = "CC_arm_none_eabi"

GCC = {
    "thumbv6m": {"none": "armv6s-m"},
    "thumbv7m": {"none": "armv7-m"},
    "thumbv7em": {"none": "armv7e-m", "single": "armv7e-m+fp", "double": "armv7e-m+fp.dp"},
    "thumbv8m.main": {"none": "armv8-m.main+dsp", "single": "armv8-m.main+dsp+fp"},
    "thumbv8.1m.main": {"none": "armv8.1-m.main+mve", "double": "armv8.1-m.main+mve.fp+fp.dp"},
}
"""Architecture of the triple -> floating-point unit -> GCC's `-march`."""

ZIG = {
    "thumbv6m": {"none": "cortex_m0plus"},
    "thumbv7m": {"none": "cortex_m3"},
    "thumbv7em": {
        "none": "cortex_m4-vfp2sp",
        "single": "cortex_m4+vfp4d16sp",
        "double": "cortex_m7+fp_armv8d16",
    },
    "thumbv8m.main": {"none": "cortex_m33-vfp2sp", "single": "cortex_m33+fp_armv8d16sp"},
    "thumbv8.1m.main": {"none": "cortex_m55-vfp2sp-mve_fp", "double": "cortex_m55+fp_armv8d16"},
}
"""The same for zig's `-mcpu`."""


def find_bare(target: Target, cache: Path, *, environment: Mapping[str, str] | None = None) -> Toolchain:
    """The toolchain for a Cortex-M: the spec's `compiler`, $CC_arm_none_eabi, arm-none-eabi-gcc, then zig from pip.

    A compiler that the user names is taken to understand GCC's options. Raises ToolchainError that says what to
    install.
    """
    environment = os.environ if environment is None else environment
    path = environment.get("PATH", os.defpath)
    chosen = [("the spec's `compiler`", target.compiler), (f"${VARIABLE}", environment.get(VARIABLE, ""))]
    for who, command in chosen:
        if command:
            return _gcc(shlex.split(command), target, path, who)
    if shutil.which(f"{PREFIX}gcc", path=path):
        return _gcc([f"{PREFIX}gcc"], target, path, "")
    if zig := find_zig():
        found = zig_toolchain(zig, f"thumb-freestanding-{_abi(target)}", cache)
        flags = (f"-mcpu={ZIG[_architecture(target)][_unit(target)]}", "-mthumb")
        return replace(found, compiler=(*found.compiler, *flags))
    raise ToolchainError(
        f"target {target.id}",
        f"no C compiler was found (${VARIABLE}, {PREFIX}gcc, or zig from pip).",
        f"Run `{sys.executable} -m pip install 'graphc[cross]'`, or `apt install gcc-arm-none-eabi`.",
    )


def _gcc(command: list[str], target: Target, path: str, chosen: str) -> Toolchain:
    found = system_toolchain(command, [[f"{PREFIX}ar"], ["llvm-ar"]], path, chosen)
    flags = (f"-march={GCC[_architecture(target)][_unit(target)]}", "-mthumb", f"-mfloat-abi={target.float_abi}")
    return replace(found, compiler=(*found.compiler, *flags))


def _architecture(target: Target) -> str:
    return target.triple.partition("-")[0]


def _abi(target: Target) -> str:
    return target.triple.rpartition("-")[2]


def _unit(target: Target) -> str:
    """The floating-point unit: the board's, where it says one, else what the core comes with."""
    core = next(core for core in CORES if core.id == target.cpu)
    return (target.board.fpu if target.board else "") or core.fpu
