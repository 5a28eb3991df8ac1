"""What `emit: c` puts in place of kernel objects and the weights' section: definitions in C99, nothing but text.

Kernels come as `graphc.backends.c_kernel` prints them; constants are arrays of their own types; what kernels call of a
mathematics library is the text that graphc brings (`graphc.backends.freestanding`).
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod

import numpy as np

from graphc.backends import freestanding
from graphc.backends.emit_weights import Weights
from graphc.backends.program import Call
from graphc.errors import InternalError, UnsupportedError
from graphc.ir.graph import Array

LINE = 110
"""Characters of a line of numbers."""


def kernel_definitions(calls: Sequence[Call], code: Mapping[str, bytes]) -> str:
    """The kernels that `calls` name, after the functions that they use.

    Raises UnsupportedError naming nodes and function where a kernel needs a library's mathematics.
    """
    kernels = {call.kernel: json.loads(code[call.kernel]) for call in calls}
    own = freestanding.own_functions()
    for call in calls:
        freestanding.refuse(call, sorted(set(kernels[call.kernel]["calls"]) - own))
    called = sorted({name for kernel in kernels.values() for name in kernel["calls"]})
    helpers = sorted({name for kernel in kernels.values() for name in kernel["helpers"]})
    parts = [_library(called), "\n".join(map(helper, helpers)), *(kernel["code"] for kernel in kernels.values())]
    return "\n".join(part for part in parts if part)


def _library(names: Sequence[str]) -> str:
    if not names:
        return ""
    needs = "".join(f"#define NEED_{name}\n" for name in names)
    return f"#define OWN static\n{needs}{freestanding.text()}"


def helper(name: str) -> str:
    """The definition of a function that kernels in C use, by its name: `larger_float`, `bits_int32_t_to_float`."""
    what, _, kind = name.partition("_")
    if what in ("smaller", "larger"):
        sign = "<" if what == "smaller" else ">"
        return f"static {kind} {name}({kind} a, {kind} b)\n{{\n    return a {sign} b ? a : b;\n}}\n"
    if found := re.fullmatch(r"bits_(\w+)_to_(\w+)", name):
        source, result = found.groups()
        body = f"    {result} y;\n    memcpy(&y, &x, sizeof y);\n    return y;\n"
        return f"static {result} {name}({source} x)\n{{\n{body}}}\n"
    if found := re.fullmatch(r"not_a_number_(\w+)", name):
        return f"static int {name}({found[1]} x)\n{{\n    return x != x;\n}}\n"
    if found := re.fullmatch(r"magnitude_(\w+)", name):
        kind = found[1]
        return f"static {kind} {name}({kind} x)\n{{\n    return x < 0 ? -x : x + 0; /* -0 + 0 is 0 */\n}}\n"
    raise InternalError(f"helper {name}", "there is no such function.")


def weight_arrays(weights: Weights) -> str:
    """One array per constant: `w<offset>`."""
    return "\n".join(_array(f"w{offset}", array) for offset, array in weights.pieces)


def checksum(weights: Weights) -> str:
    """The checksum over all arrays, as an expression."""
    found = "0xffffffffu"
    for offset, _ in weights.pieces:
        found = f"crc32({found}, (const uint8_t *)w{offset}, sizeof w{offset})"
    return f"~{found}"


def _array(name: str, array: Array) -> str:
    from graphc.backends.emit_c import C_TYPES  # which takes this file's text in

    dtype = array.dtype.name
    if dtype not in C_TYPES or dtype in ("float16", "bfloat16"):
        raise UnsupportedError(f"weights of type {dtype}", "`emit: c` has no such arrays.", "Build objects instead.")
    numbers = [_number(value, dtype) for value in np.ascontiguousarray(array).reshape(-1)]
    return f"static const {C_TYPES[dtype]} {name}[{max(1, prod(array.shape))}] = {{\n{_lines(numbers or ['0'])}}};\n"


def _number(value: np.generic, dtype: str) -> str:
    if dtype in ("float32", "float64"):
        if not np.isfinite(value):
            raise UnsupportedError("a weight that is no finite number", "`emit: c` cannot write it.")
        return f"{value!s}{'f' if dtype == 'float32' else ''}"
    number = int(value)
    if dtype in ("int32", "int64") and number == np.iinfo(dtype).min:
        return f"-{-(number + 1)} - 1"
    return f"{number}u" if dtype == "uint32" else f"UINT64_C({number})" if dtype == "uint64" else str(number)


def _lines(numbers: Iterable[str]) -> str:
    lines, line = [], "   "
    for number in numbers:
        if len(line) + len(number) + 2 > LINE:
            lines.append(line)
            line = "   "
        line += f" {number},"
    return "".join(f"{each}\n" for each in (*lines, line))
