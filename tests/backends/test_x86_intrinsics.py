"""Integer dot products: exact on every instruction set, the intended instruction used."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import s_tir, te, tirx
from tvm.ir import IRModule

from graphc.backends import objects, x86
from graphc.backends.targets import Target, resolve
from graphc.backends.x86_intrinsics import OPERANDS, DotProduct, dot_product
from tests.backends.kernel_calls import LEVELS, Compiled, host_runs, integers, runnable

ROWS, BLOCKS, STEPS = 3, 2, 5  # of a product x[ROWS, STEPS * depth] . w[BLOCKS * lanes, STEPS * depth]


def machine(*flags: str) -> Target:
    """A machine of the level v3 with more flags, or of v4 where AVX-512 is among them."""
    levels = x86.LEVELS if any("512" in flag for flag in flags) else x86.LEVELS[:2]
    return x86.machine_target({*flags, *(flag for level in levels for flag in level.flags)}, None, None)


def product(dot: DotProduct, a: str, b: str) -> tirx.PrimFunc:
    """x[ROWS, K] times w[BLOCKS, STEPS, lanes, depth] in int32, tensorized, the sums of a block in registers."""
    x = te.placeholder((ROWS, STEPS * dot.depth), a, name="x")
    w = te.placeholder((BLOCKS, STEPS, dot.lanes, dot.depth), b, name="w")
    step, k = te.reduce_axis((0, STEPS), "step"), te.reduce_axis((0, dot.depth), "k")

    def term(row: tirx.Var, block: tirx.Var, lane: tirx.Var) -> Any:
        return x[row, step * dot.depth + k].astype("int32") * w[block, step, lane, k].astype("int32")

    acc = te.compute((ROWS, BLOCKS, dot.lanes), lambda *i: te.sum(term(*i), axis=[step, k]), name="acc")
    y = te.compute((ROWS, BLOCKS, dot.lanes), lambda r, block, lane: acc[r, block, lane] + 0, name="y")
    schedule = s_tir.Schedule(IRModule({"main": te.create_prim_func([x, w, y])}))
    _, block, lane = schedule.get_loops(schedule.get_sblock("y"))
    schedule.vectorize(lane)
    sums = schedule.get_sblock("acc")
    schedule.compute_at(sums, block)
    schedule.set_scope(sums, 0, "local")
    lane, outer, inner = schedule.get_loops(sums)[2:]
    schedule.reorder(outer, lane, inner)
    schedule.vectorize(schedule.get_loops(schedule.decompose_reduction(sums, outer))[-1])
    schedule.tensorize(lane, dot.name)
    return schedule.mod["main"]


def assert_exact(target: Target, a: str, b: str, folder: Path) -> None:
    dot = dot_product(target, a, b)
    rng = np.random.default_rng(0)
    x = integers(rng, a, ROWS, STEPS * dot.depth)
    w = integers(rng, b, BLOCKS, STEPS, dot.lanes, dot.depth)
    w[0], x[0] = np.iinfo(b).max, np.iinfo(a).max  # the largest sums there are
    if a == b == "int16":
        x = np.maximum(x, -32767)
    got = np.zeros((ROWS, BLOCKS, dot.lanes), "int32")
    Compiled(product(dot, a, b), target, folder)(x, w, got)
    want = np.einsum("rsk,bslk->rbl", x.reshape(ROWS, STEPS, dot.depth).astype("int64"), w.astype("int64"))
    assert np.array_equal(got, want.astype("int32"))  # int32 sums wrap around, in both


@pytest.mark.parametrize("cpu", LEVELS)
@pytest.mark.parametrize("a", OPERANDS)
@pytest.mark.parametrize("b", OPERANDS)
def test_every_level_is_exact_on_all_types(cpu: str, a: str, b: str, tmp_path: Path) -> None:
    assert_exact(runnable(cpu), a, b, tmp_path)


@pytest.mark.parametrize("flag", ["avx_vnni", "avx512_vnni"])
def test_vnni_is_exact(flag: str, tmp_path: Path) -> None:
    target = machine(flag)
    if not host_runs(target):
        pytest.skip(f"this machine has no {flag}")
    assert_exact(target, "uint8", "int8", tmp_path)


@pytest.mark.parametrize(
    ("target", "instruction", "lanes", "depth"),
    [
        (resolve({"cpu": "x86-64-v2"}), "pmaddwd", 4, 2),
        (resolve({"cpu": "x86-64-v3"}), "vpmaddwd", 8, 2),
        (resolve({"cpu": "x86-64-v4"}), "vpmaddwd", 16, 2),
        (machine("avx_vnni"), "{vex}\tvpdpbusd", 8, 4),
        (machine("avx512_vnni"), "vpdpbusd", 16, 4),
    ],
    ids=["v2", "v3", "v4", "avx_vnni", "avx512_vnni"],
)
def test_the_instruction_is_the_intended_one(target: Target, instruction: str, lanes: int, depth: int) -> None:
    dot = dot_product(target, "uint8", "int8")
    assert (dot.lanes, dot.depth) == (lanes, depth)
    text = objects.assembly(objects.tir_json(product(dot, "uint8", "int8")), "kernel", target)
    assert f"\t{instruction}\t" in text or (instruction.startswith("{vex}") and instruction in text)
    assert "pmaddubsw" not in text


def test_signed_activations_do_not_use_the_unsigned_instruction() -> None:
    assert dot_product(machine("avx512_vnni"), "int8", "int8").depth == 2
