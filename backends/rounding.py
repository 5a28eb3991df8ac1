"""The last step of every integer kernel as TIR: a sum times a scale, rounded half to even, clamped and stored.

    y = clamp(rint(float32(sum) * scale), low - zp, high - zp) + zp           `arithmetic.requantize`

One meaning in several spellings, by what the target has; each gives these bits for every sum and every scale. None has
a multiply that feeds an add, which LLVM may contract to one rounding where there should be two.
"""

from typing import Any

import numpy as np
from tvm import te, tirx

from graphc.backends.targets import Target

BOUND = 0.25
"""The product of an int32 and a scale up to this one stays below 2^30: no conversion to int32 overflows, and a zero
point can be added before clamping."""

PRODUCT = "graphc_rounded_product"
"""The integer code for processors without a floating-point unit, in `runtime_freestanding.c`."""


MAGIC, MAGIC_BITS, REACH = 1.5 * 2**23, 0x4B400000, 2**22
"""A sum of this and a number below `REACH` has the whole number nearest to it, half to even, in its lowest bits: for
vectors without an instruction that rounds (armv7), and for C without a library. Clamping goes before it and is the
same: rounding is monotone."""


def bounded(scale: Any) -> bool:
    """Whether all of these scales are at most `BOUND`."""
    return bool(np.all(np.abs(scale) <= BOUND))


def nearest(target: Target, value: Any) -> Any:
    """The int32 nearest to a float32 of magnitude below `REACH`, half to even."""
    if target.has("mve_float"):
        return tirx.call_llvm_pure_intrin("float32", "llvm.roundeven", value).astype("int32")
    if target.has("fpu") and target.has("saturate"):
        return tirx.reinterpret("int32", tirx.call_llvm_pure_intrin("float32", "llvm.arm.vcvtr", value))
    if _by_magic(target):
        return tirx.reinterpret("int32", value + tirx.const(MAGIC, "float32")) - tirx.const(MAGIC_BITS, "int32")
    return tirx.nearbyint(value).astype("int32")


def _by_magic(target: Target) -> bool:
    """Whether a sum with `MAGIC` rounds, for want of an instruction or a library."""
    return target.emit == "c" or (target.has("neon") and not target.has("rounding"))


def stored(
    target: Target, sums: Any, scale: Any, span: tuple[int, int], zero_point: int, dtype: str, small: bool
) -> Any:
    """The stored integer of type `dtype` for an integer sum and a float32 scale.

    `span` is the least and the largest stored value; `small`: the scales are `bounded`.
    """
    sums = sums.asobject() if isinstance(sums, te.TensorSlice) else sums  # what has a type
    scaled = sums.astype("float32") * scale
    low, high = (each - zero_point for each in span)
    if target.has("mve_float"):
        return _clamped(_even_lanes(scaled, low, high, small), low, high, zero_point, dtype)
    if target.has("fpu") and target.has("saturate"):
        whole = nearest(target, scaled)
        if small:
            return _saturated(whole + tirx.const(zero_point, "int32"), span, dtype)
        return _clamped(whole, low, high, zero_point, dtype)
    if target.float_abi == "soft" and str(sums.ty.dtype) == "int32":
        whole = tirx.call_extern("int32", PRODUCT, sums, tirx.reinterpret("int32", scale))
        return _clamped(whole, low, high, zero_point, dtype)
    limits = tirx.const(low, "float32"), tirx.const(high, "float32")
    if _by_magic(target) and max(abs(low), abs(high)) < REACH:
        inside = tirx.min(tirx.max(scaled, limits[0]), limits[1])
        return (nearest(target, inside) + tirx.const(zero_point, "int32")).astype(dtype)
    clamped = tirx.min(tirx.max(tirx.nearbyint(scaled), limits[0]), limits[1])
    return (clamped.astype("int32") + tirx.const(zero_point, "int32")).astype(dtype)


def _even_lanes(scaled: Any, low: int, high: int, small: bool) -> Any:
    """Vectors rounded by `vrintn`; only what is known to fit may be converted."""
    whole = tirx.call_llvm_pure_intrin("float32", "llvm.roundeven", scaled)
    if not small:
        whole = tirx.min(tirx.max(whole, tirx.const(low, "float32")), tirx.const(high, "float32"))
    return whole.astype("int32")


def _clamped(whole: Any, low: int, high: int, zero_point: int, dtype: str) -> Any:
    inside = tirx.min(tirx.max(whole, tirx.const(low, "int32")), tirx.const(high, "int32"))
    return (inside + tirx.const(zero_point, "int32")).astype(dtype)


def _saturated(whole: Any, span: tuple[int, int], dtype: str) -> Any:
    """By `ssat` or `usat`, which clamp to the range of a type in one instruction."""
    limits = np.iinfo(dtype)
    if span[0] > limits.min:
        whole = tirx.max(whole, tirx.const(span[0], "int32"))
    if span[1] < limits.max:
        whole = tirx.min(whole, tirx.const(span[1], "int32"))
    if span[0] > limits.min and span[1] < limits.max:
        return whole.astype(dtype)
    name = "llvm.arm.ssat" if limits.min < 0 else "llvm.arm.usat"
    return tirx.call_llvm_pure_intrin("int32", name, whole, tirx.const(limits.bits, "int32")).astype(dtype)
