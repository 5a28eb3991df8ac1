"""Integer and float products of Arm's NEON as TIR expressions (imports TVM): a register of sums, weights, one lane.

    sdot     acc[i] += sum over k < 4 of x[k] * w[4 i + k]      int8 by int8, exact in int32; uint8 is flipped to int8
    usdot    the same of uint8 by int8 (FEAT_I8MM); int8 activations take sdot
    mlal     acc[i] += x * w[i]                                 16-bit operands, exact in int32 (smlal, vmlal)

Each takes x from a lane of a register that one load filled with the inputs of several steps: NEON multiplies by a lane
for nothing, where x86 would broadcast from memory.
Source: Arm Architecture Reference Manual, A-profile, C7.2 (SDOT, USDOT, SMLAL by element).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from graphc.backends.dot import Dot
from graphc.backends.statements import const, spread

_DOT = {"sdot": "llvm.aarch64.neon.sdot.v4i32.v16i8", "usdot": "llvm.aarch64.neon.usdot.v4i32.v16i8"}
_WIDENING = {True: "llvm.aarch64.neon.smull.v4i32", False: "llvm.arm.neon.vmulls.v4i32"}
LANES = 4
"""Sums in a register."""


def lane(values: Any, index: int, lanes: int = LANES) -> Any:
    """One element of a vector in every lane; of a single number, that number."""
    if not _is_vector(values):
        return spread(values, lanes)
    return tirx.Shuffle([values, values], [const(index)] * lanes)  # twice: a shuffle gives no more than it is given


@dataclass(frozen=True)
class ByLane:
    """The products of one kernel of integers; `shift` is what is added to activations before."""

    dot: Dot
    shift: int
    aarch64: bool

    def add(self, acc: Any, x: Any, steps: int, index: int, weights: Any) -> Any:
        """acc (int32 x 4) plus the activations of one step, of the `steps` that `x` holds as loaded, times weights."""
        if self.dot.kind == "mlal":
            values = tirx.Cast(f"int16x{steps}" if steps > 1 else "int16", x)
            return acc + tirx.call_llvm_pure_intrin("int32x4", _WIDENING[self.aarch64], weights, lane(values, index))
        words = tirx.reinterpret(f"int32x{steps}" if steps > 1 else "int32", x)
        if self.shift:
            words = words ^ spread(const(-0x7F7F7F80), steps)  # x ^ 0x80 = x - 128 as a byte
        inputs = tirx.reinterpret("int8x16", lane(words, index))
        if self.dot.kind == "usdot" and _kind(x) == np.uint8:
            return tirx.call_llvm_pure_intrin("int32x4", _DOT["usdot"], acc, inputs, weights)
        return tirx.call_llvm_pure_intrin("int32x4", _DOT["sdot"], acc, weights, inputs)


def halves(weights: Any) -> list[Any]:
    """Eight 16-bit weights as two vectors of four: one load for both, and smlal2 takes the upper one where it lies."""
    return [tirx.Shuffle([weights], [const(first + i) for i in range(LANES)]) for first in (0, LANES)]


def _kind(x: Any) -> np.dtype[Any]:
    return np.dtype(str(x.ty.dtype).partition("x")[0])


def _is_vector(values: Any) -> bool:
    return "x" in str(values.ty.dtype)
