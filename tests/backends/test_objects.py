"""Kernels compiled to objects with a plain C ABI: the numbers they give, the symbols they need, what is refused."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tvm import s_tir, te, tirx
from tvm.ir import IRModule, load_json
from tvm.script import from_source

from graphc.backends import objects
from graphc.backends.elf import undefined_symbols
from graphc.backends.targets import Target, resolve
from graphc.errors import InternalError
from tests.backends.kernel_calls import LEVELS, Compiled, host_runs, runnable


@pytest.fixture(params=LEVELS)
def target(request: pytest.FixtureRequest) -> Target:
    return runnable(request.param)


def elementwise(shape: Sequence[int], dtype: str, body: Callable[..., Any]) -> tirx.PrimFunc:
    x = te.placeholder(shape, dtype, name="x")
    return te.create_prim_func([x, te.compute(shape, lambda *i: body(x(*i)), name="y")])


def scheduled(func: tirx.PrimFunc, block: str, vector: int) -> tirx.PrimFunc:
    """One parallel outer loop, an inner one of `vector` lanes."""
    schedule = s_tir.Schedule(IRModule({"main": func}))
    outer, inner = schedule.split(schedule.fuse(*schedule.get_loops(schedule.get_sblock(block))), [None, vector])
    schedule.vectorize(inner)
    schedule.parallel(outer)
    return schedule.mod["main"]


def convolution(tile: int, lanes: int) -> tirx.PrimFunc:
    """NHWC 3x3 over x[10, 10, 8] with weights[3, 3, 8, 16], bias and Relu; the sums of a tile stay in registers."""
    x, w = te.placeholder((10, 10, 8), name="x"), te.placeholder((3, 3, 8, 16), name="w")
    bias = te.placeholder((16,), name="bias")
    kh, kw, c = te.reduce_axis((0, 3), "kh"), te.reduce_axis((0, 3), "kw"), te.reduce_axis((0, 8), "c")
    acc = te.compute(
        (8, 8, 16), lambda i, j, o: te.sum(x[i + kh, j + kw, c] * w[kh, kw, c, o], axis=[kh, kw, c]), name="acc"
    )
    y = te.compute((8, 8, 16), lambda i, j, o: tirx.max(acc[i, j, o] + bias[o], 0.0), name="y")
    schedule = s_tir.Schedule(IRModule({"main": te.create_prim_func([x, w, bias, y])}))
    _, j, o = schedule.get_loops(schedule.get_sblock("y"))
    outer, inner = schedule.split(j, [None, tile])
    schedule.unroll(inner)
    schedule.vectorize(schedule.split(o, [None, lanes])[1])
    block = schedule.get_sblock("acc")
    schedule.compute_at(block, outer)
    schedule.set_scope(block, 0, "local")
    columns, channels, *reduction = schedule.get_loops(block)[2:]
    blocks, vector = schedule.split(channels, [None, lanes])
    schedule.reorder(*reduction, columns, blocks, vector)
    schedule.vectorize(vector)
    schedule.unroll(columns)
    schedule.decompose_reduction(block, reduction[0])
    return schedule.mod["main"]


def test_convolution_equals_numpy(target: Target, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, w, bias = (rng.standard_normal(s, "f") for s in ((10, 10, 8), (3, 3, 8, 16), (16,)))
    y = np.full((8, 8, 16), np.nan, "f")
    kernel = Compiled(convolution(4, target.lanes(32)), target, tmp_path)
    assert kernel.tasks == 8
    kernel(x, w, bias, y)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (0, 1))
    want = np.maximum(np.einsum("hwcij,ijco->hwo", windows.astype("d"), w.astype("d")) + bias, 0)
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-6 * np.abs(want).max())


def test_a_call_runs_its_tasks_and_no_others(target: Target, tmp_path: Path) -> None:
    kernel = Compiled(scheduled(elementwise((64,), "float32", lambda v: v + 1.0), "y", 8), target, tmp_path)
    x, y = np.arange(64, dtype="f"), np.zeros(64, "f")
    assert kernel.tasks == 8
    kernel(x, y, tasks=(2, 5))
    assert np.array_equal(y, np.where((x >= 16) & (x < 40), x + 1, 0))
    kernel(x, y, tasks=(3, 3))
    kernel(x, y, tasks=(0, 2))
    kernel(x, y, tasks=(5, 8))
    assert np.array_equal(y, x + 1)


def test_a_tail_that_does_not_fill_a_vector(target: Target, tmp_path: Path) -> None:
    kernel = Compiled(scheduled(elementwise((37,), "float32", lambda v: v * 2.0), "y", 8), target, tmp_path)
    x, y = np.arange(37, dtype="f"), np.zeros(40, "f")
    kernel(x, y)
    assert np.array_equal(y, np.append(x * 2, [0, 0, 0]))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_element_is_one_task(target: Target, tmp_path: Path, shape: tuple[int, ...]) -> None:
    kernel = Compiled(elementwise(shape, "float32", lambda v: v + 1.0), target, tmp_path)
    x, y = np.full(shape, 2.0, "f"), np.zeros(shape, "f")
    kernel(x, y, tasks=(0, 0))
    assert kernel.tasks == 1
    assert y == 0
    kernel(x, y)
    assert y == 3


@pytest.mark.parametrize("vector", [1, 4, 32])
def test_booleans_are_bytes(target: Target, tmp_path: Path, vector: int) -> None:
    flags = te.placeholder((64,), "bool", name="flags")
    x = te.placeholder((64,), "int8", name="x")
    y = te.compute((64,), lambda i: tirx.all(flags[i], x[i] > 0), name="y")
    kernel = Compiled(scheduled(te.create_prim_func([flags, x, y]), "y", vector), target, tmp_path)
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, 64).astype(bool), rng.integers(-2, 3, 64).astype("int8")
    got = np.full(64, 77, "uint8")
    kernel(a, b, got)
    assert np.array_equal(got, (a & (b > 0)).astype("uint8"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("vector", [1, 16])
def test_half_precision_parameters(target: Target, tmp_path: Path, dtype: str, vector: int) -> None:
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else "float16")
    x = te.placeholder((64,), dtype, name="x")
    y = te.compute((64,), lambda i: (x[i].astype("float32") * 3.0).astype(dtype), name="y")
    kernel = Compiled(scheduled(te.create_prim_func([x, y]), "y", vector), target, tmp_path)
    a = np.random.default_rng(0).standard_normal(64).astype(kind)
    got = np.zeros(64, kind)
    kernel(a, got)
    assert np.array_equal(got, (a.astype("f") * np.float32(3)).astype(kind))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "float64"])
def test_the_other_types(target: Target, tmp_path: Path, dtype: str) -> None:
    kernel = Compiled(
        scheduled(elementwise((64,), dtype, lambda v: v + tirx.const(3, dtype)), "y", 8), target, tmp_path
    )
    x, y = np.arange(64).astype(dtype), np.zeros(64, dtype)
    kernel(x, y)
    assert np.array_equal(y, x + np.array(3, dtype))


def test_int64_indices(target: Target, tmp_path: Path) -> None:
    rows = te.placeholder((5,), "int64", name="rows")
    x = te.placeholder((7, 4), name="x")
    y = te.compute((5, 4), lambda i, j: x[rows[i], j], name="y")
    kernel = Compiled(te.create_prim_func([rows, x, y]), target, tmp_path)
    chosen, table, got = np.array([6, 0, 3, 3, 1]), np.arange(28, dtype="f").reshape(7, 4), np.zeros((5, 4), "f")
    kernel(chosen, table, got)
    assert np.array_equal(got, table[chosen])


def test_requantization_gives_the_same_bits_on_every_level(tmp_path: Path) -> None:
    """rint(float(acc) * scale) + zero point, next to a residual that a contraction could reach."""
    acc, scale = te.placeholder((4096,), "int32", name="acc"), te.placeholder((1,), "float32", name="scale")
    rounded = te.compute(
        (4096,), lambda i: tirx.round(acc[i].astype("float32") * scale[0]).astype("int32") + 3, name="y"
    )
    func = scheduled(te.create_prim_func([acc, scale, rounded]), "y", 16)
    rng = np.random.default_rng(0)
    sums, factor = rng.integers(-(2**30), 2**30, 4096).astype("int32"), np.array([3.1e-6], "f")
    want = np.rint(sums.astype("f") * factor[0]).astype("int32") + 3
    for target in filter(host_runs, (resolve({"cpu": cpu}) for cpu in LEVELS)):
        (tmp_path / target.id).mkdir()
        got = np.zeros(4096, "int32")
        Compiled(func, target, tmp_path / target.id)(sums, factor, got)
        assert np.array_equal(got, want), target.id


def test_nan_and_infinity_pass(target: Target, tmp_path: Path) -> None:
    x = te.placeholder((32,), name="x")
    nan = te.compute((32,), lambda i: tirx.isnan(x[i]), name="nan")
    both = te.compute((32,), lambda i: tirx.Select(nan[i], tirx.const(7.0, "float32"), x[i] * 2.0), name="y")
    func = te.create_prim_func([x, both])
    schedule = s_tir.Schedule(IRModule({"main": func}))
    schedule.compute_inline(schedule.get_sblock("nan"))
    kernel = Compiled(scheduled(schedule.mod["main"], "y", 8), target, tmp_path)
    a = np.arange(32, dtype="f")
    a[3], a[4], a[5] = np.nan, np.inf, -np.inf
    got = np.zeros(32, "f")
    kernel(a, got)
    assert np.array_equal(got, np.where(np.isnan(a), np.float32(7), a * 2))


def test_in_place_with_pointers_that_may_overlap(target: Target, tmp_path: Path) -> None:
    func = scheduled(elementwise((64,), "float32", lambda v: v * v + v), "y", 8).with_attr("tirx.noalias", False)
    kernel = Compiled(func, target, tmp_path)
    x = np.arange(64, dtype="f")
    want = x * x + x
    kernel(x, x)
    assert np.array_equal(x, want)


def test_full_width_vectors_are_used() -> None:
    func = scheduled(elementwise((1024,), "float32", lambda v: v * 2.0), "y", 16)
    text = objects.assembly(objects.tir_json(func), "kernel", resolve({"cpu": "x86-64-v4"}))
    assert "zmm" in text
    assert "ymm" not in text


def test_rounding_and_reciprocal_roots_are_vectorized() -> None:
    func = scheduled(elementwise((64,), "float32", lambda x: tirx.nearbyint(tirx.rsqrt(x))), "y", 16)
    text = objects.assembly(objects.tir_json(func), "kernel", resolve({"cpu": "x86-64-v4"}))
    assert "vrndscaleps" in text
    assert "vsqrtps" in text or "vrsqrt14ps" in text
    assert "vrndscaless" not in text


def test_no_symbol_of_tvm_is_needed() -> None:
    func = elementwise((8,), "float32", lambda v: tirx.exp(v) + tirx.erf(v))
    code = objects.object_code(objects.tir_json(func), "kernel", resolve({"cpu": "x86-64-v3"}))
    assert undefined_symbols(code) <= {"expf", "erff"}


def test_a_symbol_that_is_not_the_c_librarys_is_refused() -> None:
    func = elementwise((8,), "float32", lambda v: tirx.call_pure_extern("float32", "their_function", v))
    with pytest.raises(InternalError, match="their_function, which no C library has"):
        objects.object_code(objects.tir_json(func), "kernel", resolve({"cpu": "x86-64-v3"}))


def test_a_large_local_buffer_is_refused() -> None:
    x = te.placeholder((32, 32, 32), name="x")
    middle = te.compute((32, 32, 32), lambda i, j, k: x[i, j, k] + 1.0, name="middle")
    y = te.compute((32, 32, 32), lambda i, j, k: middle[31 - i, j, k] * 2.0, name="y")
    schedule = s_tir.Schedule(IRModule({"main": te.create_prim_func([x, y])}))
    block = schedule.get_sblock("middle")
    unit = schedule.add_unit_loop(schedule.get_loops(block)[0])
    assert unit is not None
    with pytest.raises(InternalError, match="one loop nest"):
        objects.object_code(objects.tir_json(schedule.mod["main"]), "kernel", resolve({"cpu": "x86-64-v3"}))
    outer = schedule.get_loops(schedule.get_sblock("y"))[0]
    schedule.compute_at(block, schedule.add_unit_loop(outer))
    with pytest.raises(InternalError, match=r"131072 bytes of stack \(at most 81920\); the largest is middle"):
        objects.object_code(objects.tir_json(schedule.mod["main"]), "kernel", resolve({"cpu": "x86-64-v3"}))


def test_an_inner_parallel_loop_is_refused() -> None:
    schedule = s_tir.Schedule(IRModule({"main": elementwise((8, 8), "float32", lambda v: v + 1.0)}))
    schedule.parallel(schedule.get_loops(schedule.get_sblock("y"))[1])
    with pytest.raises(InternalError, match="only the outermost loop may be parallel"):
        objects.object_code(objects.tir_json(schedule.mod["main"]), "kernel", resolve({"cpu": "x86-64-v3"}))


def test_the_text_form_is_stable_and_names_no_file() -> None:
    source = "@T.prim_func(s_tir=True)\ndef main(x: T.Buffer((4,), 'float32')):\n"
    source += "    for i in T.serial(4):\n        x[i] = x[i] + T.float32(1)\n"
    here, there = (from_source(lines + source) for lines in ("", "\n\n"))
    assert objects.tir_json(here) == objects.tir_json(there)
    assert objects.tir_json(load_json(objects.tir_json(here))) == objects.tir_json(here)


def test_the_same_object_every_time() -> None:
    text = objects.tir_json(convolution(4, 8))
    first, second = (objects.object_code(text, "kernel", resolve({"cpu": "x86-64-v3"})) for _ in range(2))
    assert first == second
