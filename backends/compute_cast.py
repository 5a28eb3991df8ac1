"""Cast between element types that processors lack or convert otherwise: small floats and integers, float64 to float16.

Rounding is to nearest, half to even. The formats and what happens past their range are those of ONNX's Cast.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from tvm import te, tirx

from graphc.backends.compute_arithmetic import broadcast
from graphc.backends.relax_module import Lowering, computes, convert
from graphc.backends.statements import const
from graphc.ir import Array, Node
from graphc.ir.graph import bits_of

SINGLE = 23
"""Bits of float32's mantissa."""


@dataclass(frozen=True)
class Format:
    """A small float: bits of its mantissa, exponent bias, the largest code of a number, the code of NaN, and what a
    number too large becomes where it is not saturated. `one_zero`: no negative zero, its code is NaN's."""

    mantissa: int
    bias: int
    largest: int
    nan: int
    overflow: int
    one_zero: bool = False
    sign: int = 7
    """Which bit of the code is the sign."""


FORMATS = {
    "float8_e4m3fn": Format(3, 7, 0x7E, 0x7F, 0x7F),
    "float8_e4m3fnuz": Format(3, 8, 0x7F, 0x80, 0x80, one_zero=True),
    "float8_e5m2": Format(2, 15, 0x7B, 0x7F, 0x7C),
    "float8_e5m2fnuz": Format(2, 16, 0x7F, 0x80, 0x80, one_zero=True),
    "float4_e2m1fn": Format(1, 1, 0x7, 0x8, 0x7, sign=3),
}
POWERS = "float8_e8m0fnu"
"""Powers of two alone: the exponent of float32."""
SMALL = frozenset((*FORMATS, POWERS))


@computes("", "Cast")
def cast(state: Lowering, node: Node) -> Sequence[Any]:
    """y = x in another type. Of integers of fewer than 8 bits the low bits are kept."""
    source, target = (state.type(name).dtype for name in (node.inputs[0], node.outputs[0]))
    if source == target:
        return [broadcast(state, node, lambda x: x, "cast")]
    if source.name in SMALL:
        return [_from_small_float(state, node, source, target)]
    if bits_of(source) < 8:
        return [broadcast(state, node, lambda x: _to(from_code(x, source), np.dtype(np.int32), target), "cast")]
    if target.name in SMALL or bits_of(target) < 8 or source == np.float64:
        saturate, mode = bool(node.get_int("saturate", 1)), node.get_str("round_mode", "up")
        return [broadcast(state, node, lambda x: _to(x, source, target, saturate, mode), "cast")]
    return convert(state, node)


def _to(x: Any, source: np.dtype[Any], target: np.dtype[Any], saturate: bool = True, mode: str = "up") -> Any:
    """An element of a type of whole bytes as another type."""
    if target.name in SMALL:
        return encoded(to_odd(x) if source == np.float64 else x.astype("float32"), target, saturate, mode)
    if bits_of(target) < 8:
        return to_code(x.astype("int32"), target)
    if source == np.float64 and target in (np.float16, ml_dtypes.bfloat16):
        return to_odd(x).astype(target.name)
    return x.astype(target.name)


def from_code(code: Any, dtype: np.dtype[Any]) -> Any:
    """The integer whose low bits a byte holds, as int32."""
    bits = bits_of(dtype)
    value, sign = code.astype("int32") & const((1 << bits) - 1), 1 << (bits - 1)
    return value if dtype.name.startswith("u") else (value ^ const(sign)) - const(sign)


def to_code(value: Any, dtype: np.dtype[Any]) -> Any:
    """The byte that holds the low bits of an int32."""
    return (value & const((1 << bits_of(dtype)) - 1)).astype("uint8")


def values(dtype: np.dtype[Any]) -> Array:
    """The value of every code of a small float."""
    return np.arange(1 << bits_of(dtype), dtype=np.uint8).view(dtype).astype(np.float32)


def small_code(x: Any, dtype: np.dtype[Any]) -> Any:
    """The code of an element of a small float, as int32."""
    return (
        from_code(x, np.dtype(ml_dtypes.uint4)) if bits_of(dtype) < 8 else tirx.reinterpret("uint8", x).astype("int32")
    )


def _from_small_float(state: Lowering, node: Node, source: np.dtype[Any], target: np.dtype[Any]) -> Any:
    def define(x: te.Tensor, table: te.Tensor) -> te.Tensor:
        def element(*i: Any) -> Any:
            return _to(table[small_code(x[i], source)], np.dtype(np.float32), target)

        return te.compute(x.shape, element, name="cast")

    return state.emit(define, state.value(node.inputs[0]), state.parameter(values(source), "codes"), name="cast")


def encoded(single: Any, target: np.dtype[Any], saturate: bool = True, mode: str = "up") -> Any:
    """A float32 as a small float, as it is stored."""
    if target.name == POWERS:
        code = power_code(tirx.reinterpret("int32", single), mode, saturate)
    else:
        code = small_float_code(single, FORMATS[target.name], saturate)
    return code.astype("uint8") if bits_of(target) < 8 else tirx.reinterpret(target.name, code.astype("uint8"))


def to_odd(x: Any) -> Any:
    """float64 -> float32 with inexact results made odd, so that rounding them once more gives what one rounding does.

    (S. Boldo, G. Melquiond: Emulation of FMA and correctly rounded sums, IEEE Trans. Computers 57, 2008.)
    """
    near = x.astype("float32")
    back = near.astype("float64")
    bits = tirx.reinterpret("int32", near)
    step = tirx.Select(tirx.abs(back) > tirx.abs(x), tirx.const(-1, "int32"), tirx.const(1, "int32"))
    inexact = tirx.all(back != x, tirx.abs(x) < tirx.const(2.0**127, "float64"))  # no NaN, no infinity
    odd = tirx.Select(tirx.all(inexact, (bits & 1) == 0), bits + step, bits)
    return tirx.reinterpret("float32", odd)


def small_float_code(single: Any, form: Format, saturate: bool) -> Any:
    """The code of a float32, as int32."""
    bits, shift = tirx.reinterpret("int32", single), SINGLE - form.mantissa
    sign = (bits >> (31 - form.sign)) & (1 << form.sign)
    magnitude = bits & tirx.const(0x7FFFFFFF, "int32")
    rounded = magnitude + ((1 << (shift - 1)) - 1) + ((magnitude >> shift) & 1)
    normal = (rounded >> shift) - ((127 - form.bias) << form.mantissa)
    # Below the smallest normal number all codes are one quantum apart: adding 2^23 quanta rounds to them.
    quanta = tirx.const(float(2.0 ** (SINGLE + 1 - form.bias - form.mantissa)), "float32")
    subnormal = tirx.reinterpret("int32", tirx.abs(single) + quanta) - tirx.reinterpret("int32", quanta)
    smallest = (128 - form.bias) << SINGLE
    code = tirx.Select(magnitude < smallest, subnormal, normal)
    infinite = tirx.const(0x7F800000, "int32")
    past = form.largest if saturate else form.overflow
    is_past = tirx.all(code > form.largest, magnitude < infinite)
    code = tirx.Select(is_past, tirx.const(past, "int32"), code)
    code = tirx.Select(magnitude == infinite, tirx.const(past, "int32"), code)
    code = tirx.Select(magnitude > infinite, tirx.const(form.nan, "int32"), code)
    if form.one_zero:
        return tirx.Select(tirx.any(code == 0, code == form.nan), code, code | sign)
    return code | sign


def power_code(bits: Any, mode: str, saturate: bool) -> Any:
    """The exponent of a float32, rounded `up`, `down` or to the `nearest` power of two."""
    magnitude = bits & tirx.const(0x7FFFFFFF, "int32")
    exponent, mantissa = magnitude >> SINGLE, magnitude & 0x7FFFFF
    half = 1 << (SINGLE - 1)
    limit = {"up": 0, "nearest": half - 1, "down": 1 << SINGLE}[mode]
    above = tirx.Select(mantissa > limit, tirx.const(1, "int32"), tirx.const(0, "int32"))
    code = exponent + above
    largest = tirx.const(0xFE if saturate else 0xFF, "int32")
    code = tirx.Select(code > 0xFE, largest, code)
    return tirx.Select(magnitude > tirx.const(0x7F800000, "int32"), tirx.const(0xFF, "int32"), code)
