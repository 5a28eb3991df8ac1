"""Integer dot products of Cortex-M as TIR expressions (imports TVM): four or sixteen 8-bit terms of one sum.

    smlad      acc += x[0] * w[0] + x[1] * w[1]           Armv7E-M DSP: 16-bit halves of two words
    smlabb     acc += x[0] * w[0], smlatt x[1] * w[1]
    vmladava   acc += sum over k < 16 of x[k] * w[k]      Armv8.1-M Helium: 8-bit lanes, the sum in one register

Words of four bytes are widened by `sxtb16`, which takes bytes 0 and 2, or 1 and 3 of the word rotated by 8: inputs and
weights alike, so that their halves meet. Everything is exact in int32.
Source: Arm v7-M and v8-M Architecture Reference Manuals.
"""

from typing import Any

from tvm import tirx

from graphc.backends.statements import const


def _intrinsic(name: str, *operands: Any, dtype: str = "int32") -> Any:
    return tirx.call_llvm_pure_intrin(dtype, f"llvm.{name}", *operands)


def halves(word: Any, unsigned: bool = False, offset: int = 0) -> tuple[Any, Any]:
    """Bytes (0, 2) and (1, 3) of a word as pairs of 16 bits, each plus `offset`."""
    turned = _intrinsic("fshr.i32", word, word, const(8))
    kind = "u" if unsigned else "s"
    if not offset:
        return _intrinsic(f"arm.{kind}xtb16", word), _intrinsic(f"arm.{kind}xtb16", turned)
    both = const((offset & 0xFFFF) * 0x10001 - (1 << 32) * (offset < 0))
    return _intrinsic(f"arm.{kind}xtab16", both, word), _intrinsic(f"arm.{kind}xtab16", both, turned)


def multiply_pairs(acc: Any, x: Any, weights: Any) -> Any:
    """acc plus the two products of the 16-bit halves of two words."""
    return _intrinsic("arm.smlad", x, weights, acc)


def multiply_half(acc: Any, x: Any, weights: Any, upper: bool) -> Any:
    """acc plus the product of the lower or upper halves of two words."""
    return _intrinsic("arm.smlatt" if upper else "arm.smlabb", x, weights, acc)


def multiply_bytes(acc: Any, x: Any, weights: Any) -> Any:
    """acc plus the sum of sixteen products of signed bytes."""
    zero = const(0)
    return _intrinsic("arm.mve.vmldava.v16i8", zero, zero, zero, acc, x, weights)
