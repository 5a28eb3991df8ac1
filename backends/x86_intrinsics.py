"""Integer dot products of x86 as tensor intrinsics (imports TVM): what schedules put in place of an inner loop.

    for i in range(lanes):            ->      acc = vpdpbusd(acc, broadcast(a), b)
        for k in range(depth):
            acc[i] += int32(a[k]) * int32(b[i, k])

All are exact, so every instruction set gives the same integers: vpdpbusd adds four u8 x s8 products to an int32; where
it is missing, operands are widened to 16 bits for vpmaddwd, which adds two products. `vpmaddubsw`, which saturates its
16-bit sums, is never used. Source: Intel SDM volume 2.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm import s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812 - its name everywhere

from graphc.backends.targets import Target

OPERANDS = ("int8", "uint8", "int16")
"""Types of either operand. The sum of two products must fit int32: not both -32768 twice."""

_VPDPBUSD = {4: "llvm.x86.avx512.vpdpbusd.128", 8: "llvm.x86.avx512.vpdpbusd.256", 16: "llvm.x86.avx512.vpdpbusd.512"}
_VPMADDWD = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


@dataclass(frozen=True, slots=True)
class DotProduct:
    """A registered intrinsic: acc[lanes] int32 += a[depth] . b[lanes, depth], to be given to `Schedule.tensorize`."""

    name: str
    lanes: int
    depth: int


def dot_product(target: Target, a: str, b: str) -> DotProduct:
    """The fastest one that `target` has for operands of types `a` (shared by all lanes) and `b`.

    The loops to tensorize run over `lanes`, then `depth`; all three operands are dense, the sums in scope `local`.
    """
    if (a, b) == ("uint8", "int8") and target.has("avx512_vnni"):
        return _vpdpbusd(target.lanes(32))
    if (a, b) == ("uint8", "int8") and target.has("avx_vnni"):
        return _vpdpbusd(8)
    return _vpmaddwd(a, b, target.lanes(32))


@cache
def _vpdpbusd(lanes: int) -> DotProduct:
    def product(acc: Any, a: Any, b: Any) -> Any:
        # LLVM 22 takes bytes; reinterpreting is free.
        broadcast = T.broadcast(T.reinterpret("int32", a.vload([0], "uint8x4")), lanes)
        bytes_a = T.reinterpret(f"int8x{4 * lanes}", broadcast)
        return _call(_VPDPBUSD[lanes], f"int32x{lanes}", acc, bytes_a, b.vload([0, 0], f"int8x{4 * lanes}"))

    return _registered(DotProduct(f"graphc.vpdpbusd.{lanes}", lanes, 4), ("uint8", "int8"), product)


@cache
def _vpmaddwd(a_type: str, b_type: str, lanes: int) -> DotProduct:
    def product(acc: Any, a: Any, b: Any) -> Any:
        pair = T.reinterpret("int32", T.Cast("int16x2", a.vload([0], f"{a_type}x2")))
        pairs_a = T.reinterpret(f"int16x{2 * lanes}", T.broadcast(pair, lanes))
        pairs_b = T.Cast(f"int16x{2 * lanes}", b.vload([0, 0], f"{b_type}x{2 * lanes}"))
        return acc + _call(_VPMADDWD[lanes], f"int32x{lanes}", pairs_a, pairs_b)

    dot = DotProduct(f"graphc.vpmaddwd.{a_type}.{b_type}.{lanes}", lanes, 2)
    return _registered(dot, (a_type, b_type), product)


def _call(intrinsic: str, result: str, *operands: Any) -> Any:
    return tirx.call_llvm_pure_intrin(result, intrinsic, *operands)


def _registered(dot: DotProduct, types: tuple[str, str], product: Callable[[Any, Any, Any], Any]) -> DotProduct:
    """Register the loop that the intrinsic replaces, and its replacement."""

    def loops(a: Any, b: Any, acc: Any) -> None:
        with T.grid(dot.lanes, dot.depth) as (i, k), T.sblock("update"):
            at, over = T.axis.remap("SR", [i, k])
            wide = T.Cast("int32", a[over]) * T.Cast("int32", b[at, over])
            T.buffer_store(acc, acc[at] + wide, [at])

    def instruction(a: Any, b: Any, acc: Any) -> None:
        result = product(acc.vload([0], f"int32x{dot.lanes}"), a, b)
        T.buffer_store(acc, result, [T.ramp(0, 1, dot.lanes)])

    s_tir.TensorIntrin.register(dot.name, _function(dot, types, loops), _function(dot, types, instruction))
    return dot


def _function(dot: DotProduct, types: tuple[str, str], body: Callable[[Any, Any, Any], None]) -> tirx.PrimFunc:
    lanes, depth = dot.lanes, dot.depth
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        a = T.arg("a", T.Buffer((depth,), types[0], offset_factor=1))
        b = T.arg("b", T.Buffer((lanes, depth), types[1], offset_factor=1))
        acc = T.arg("acc", T.Buffer((lanes,), "int32", offset_factor=1, scope="local"))
        with T.sblock("root"):
            T.reads(acc[0:lanes], a[0:depth], b[0:lanes, 0:depth])
            T.writes(acc[0:lanes])
            body(a, b, acc)
    return builder.get()
