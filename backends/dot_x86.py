"""Dot products of x86 as TIR expressions (imports TVM): one register of sums, a run of weights, a few inputs.

    vnni     acc[i] += sum over k < 4 of x[k] * w[4 i + k]      vpdpbusd: u8 x s8, exact in int32
    madd     acc[i] += sum over k < 2 of x[k] * w[2 i + k]      vpmaddwd: 16-bit operands, exact in int32
    dpbf16   acc[i] += sum over k < 2 of x[k] * w[2 i + k]      vdpbf16ps: codes of bfloat16, rounded in float32

`vpmaddubsw`, which saturates its 16-bit sums, is never used: every level computes the same integers. vdpbf16ps adds
the odd product, then the even one, each sum rounded to nearest even; numbers below 2^-126 count as 0.
Source: Intel SDM volume 2. LLVM 22 takes the operands of vpdpbusd as bytes, of vdpbf16ps see `llvm_bf16`.
"""

from typing import Any

from tvm import tirx

from graphc.backends import llvm_bf16
from graphc.backends.dot import Dot
from graphc.backends.statements import spread

_VPDPBUSD = {4: "llvm.x86.avx512.vpdpbusd.128", 8: "llvm.x86.avx512.vpdpbusd.256", 16: "llvm.x86.avx512.vpdpbusd.512"}
_VPMADDWD = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


def multiply_add(dot: Dot, acc: Any, x: Any, weights: Any, lanes: int, shift: int) -> Any:
    """acc (32 bits x lanes) plus `dot.step` inputs x times `lanes` runs of weights; x + shift is unsigned."""
    if dot.kind == "dpbf16":
        pair = spread(tirx.reinterpret("int32", x), lanes)
        return llvm_bf16.dot(acc, pair, tirx.reinterpret(f"int32x{lanes}", weights), lanes)
    if dot.kind in ("vnni", "amx"):
        word = tirx.reinterpret("int32", x)
        flipped = word ^ tirx.const(-0x7F7F7F80, "int32") if shift else word  # x ^ 0x80 = x + 128 as a byte
        inputs = tirx.reinterpret(f"int8x{4 * lanes}", spread(flipped, lanes))
        return tirx.call_llvm_pure_intrin(f"int32x{lanes}", _VPDPBUSD[lanes], acc, inputs, weights)
    pair = tirx.reinterpret("int32", tirx.Cast("int16x2", x))
    inputs = tirx.reinterpret(f"int16x{2 * lanes}", spread(pair, lanes))
    weights = tirx.Cast(f"int16x{2 * lanes}", weights)
    return acc + tirx.call_llvm_pure_intrin(f"int32x{lanes}", _VPMADDWD[lanes], inputs, weights)
