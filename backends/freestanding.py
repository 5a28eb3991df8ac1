"""What code without an operating system may call: memcpy, memset, the compiler's own library, what graphc brings.

A kernel's other calls would need a C library's mathematics; they are refused by name, with the nodes that need them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files

from graphc.backends.elf import undefined_symbols
from graphc.backends.program import Call
from graphc.errors import UnsupportedError

SOURCE = "runtime_freestanding.c"
"""The functions that graphc brings, each compiled only where `NEED_<name>` is defined."""

_MEMORY = frozenset({"memcpy", "memset"})
_HALVES = frozenset({"__gnu_h2f_ieee", "__gnu_f2h_ieee"})
"""float16 from and to float32, in libgcc and compiler-rt."""
DIVISIONS = frozenset({"__divsi3", "__modsi3", "__udivsi3", "__umodsi3"})
"""Of 32-bit integers, in both as well."""


def own_functions() -> frozenset[str]:
    """Names of the functions in `SOURCE`."""
    return frozenset(re.findall(r"^#ifdef NEED_(\w+)$", text(), re.MULTILINE))


def text() -> str:
    """The content of `SOURCE`."""
    return files("graphc.backends").joinpath(SOURCE).read_text(encoding="utf-8")


def needed(calls: Iterable[Call], objects: Mapping[str, bytes]) -> list[str]:
    """Those of `own_functions` that the kernels call, sorted.

    Raises UnsupportedError naming kernel, nodes and function for a call of anything else that no compiler brings.
    """
    own = own_functions()
    found: set[str] = set()
    for call in calls:
        names = undefined_symbols(objects[call.kernel])
        refuse(call, sorted(name for name in names if name not in own and not _is_builtin(name)))
        found |= names & own
    return sorted(found)


def refuse(call: Call, foreign: Sequence[str]) -> None:
    """Raise UnsupportedError where the kernel of `call` needs functions that are not there."""
    if foreign:
        raise UnsupportedError(
            ", ".join(call.nodes) or f"kernel {call.kernel}",
            f"its code needs {', '.join(foreign)} of a C library's mathematics (kernel {call.kernel}).",
            "Quantize the node to 8 bits, where such functions become tables, or remove it from the model.",
        )


def _is_builtin(name: str) -> bool:
    """Whether every compiler for Arm brings it (Run-time ABI for the Arm Architecture: `__aeabi_...`)."""
    return name in _MEMORY or name in _HALVES or name in DIVISIONS or name.startswith("__aeabi_")
