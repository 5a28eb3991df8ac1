"""Sums and extrema over axes, dense or not, of lengths that fit in vectors and that do not: against float64."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import te, tirx

from graphc.backends import objects
from graphc.backends.schedule import scheduled
from graphc.backends.stages import stages
from tests.backends.kernel_calls import LEVELS, Compiled, runnable

CASES = (
    ((2, 7, 7, 64), (1, 2)),
    ((2, 5, 48), (1,)),
    ((3, 5, 20), (1,)),
    ((4, 384), (1,)),
    ((2, 8, 16, 32), (2, 3)),
    ((3, 4096), (1,)),
    ((5, 7), (1,)),
    ((6, 32, 3), (1,)),
    ((64,), (0,)),
    ((3, 4), (1,)),
    ((3, 8), (1,)),
    ((2, 3, 1, 8), (2, 3)),
    ((5, 16), (1,)),
    ((9, 7, 7), (1, 2)),
    ((3, 14, 14), (1, 2)),
    ((3, 100), (1,)),
)


def _larger(a: Any, b: Any) -> Any:
    return tirx.max(b, a)


LARGEST = te.comm_reducer(_larger, lambda kind: tirx.const(-math.inf, str(kind)), name="largest")
"""Of nothing: -infinity, from which TVM cannot reduce in two steps."""


def reduction(shape: Sequence[int], axes: Sequence[int], kind: Any) -> Any:
    """A PrimFunc: y = kind over `axes` of (x - 1)^2, the subtraction and the square fused into it."""
    x = te.placeholder(shape, name="x")
    moved = te.compute(shape, lambda *i: x[i] - 1.0, name="moved")
    steps = {axis: te.reduce_axis((0, shape[axis]), f"k{axis}") for axis in axes}
    kept = [size for axis, size in enumerate(shape) if axis not in axes]

    def element(*i: Any) -> Any:
        rest = iter(i)
        at = tuple(steps[axis] if axis in steps else next(rest) for axis in range(len(shape)))
        return kind(moved[at] * moved[at], axis=list(steps.values()))

    return te.create_prim_func([x, te.compute(kept or (1,), element if kept else lambda _: element(), name="y")])


@pytest.mark.parametrize("cpu", LEVELS)
def test_values(cpu: str, tmp_path: Path) -> None:
    target, rng = runnable(cpu), np.random.default_rng(11)
    for shape, axes in CASES:
        for number, (name, kind) in enumerate((("sum", te.sum), ("max", te.max), ("max", LARGEST))):
            (stage,) = stages(scheduled(reduction(shape, axes, kind), target))
            x = rng.standard_normal(shape).astype(np.float32)
            expected = getattr((x.astype(np.float64) - 1) ** 2, name)(axis=axes)
            y = np.full(expected.shape or (1,), np.nan, np.float32)
            folder = tmp_path / f"{number}_{'_'.join(map(str, shape))}"
            folder.mkdir()
            Compiled(stage.function, target, folder)(x, y)
            assert np.abs(y.reshape(expected.shape) - expected).max() <= 1e-6 * np.abs(expected).max(), (shape, name)


@pytest.mark.parametrize(("shape", "axes"), [((2, 7, 7, 64), (1, 2)), ((4, 384), (1,)), ((6, 32, 16), (2,))])
def test_sums_are_vectors(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    target = runnable("x86-64-v3")
    (stage,) = stages(scheduled(reduction(shape, axes, te.sum), target))
    code = objects.assembly(objects.tir_json(stage.function), "kernel", target)
    assert "vfmadd" in code and "ymm" in code


@pytest.mark.parametrize("shape", [(3, 100), (4, 40), (3, 5)])
def test_nan_is_passed_over(shape: tuple[int, int], tmp_path: Path) -> None:
    """Wherever it stands, in rows with and without whole vectors."""
    target, rng = runnable("x86-64-v3"), np.random.default_rng(12)
    x = te.placeholder(shape, name="x")
    steps = te.reduce_axis((0, shape[1]), "k")
    y = te.compute(shape[:1], lambda i: LARGEST(x[i, steps], axis=[steps]), name="y")
    (stage,) = stages(scheduled(te.create_prim_func([x, y]), target))
    run = Compiled(stage.function, target, tmp_path)
    for place in range(shape[1]):
        given = rng.standard_normal(shape).astype(np.float32)
        given[:, place] = math.nan
        found = np.empty(shape[0], np.float32)
        run(given, found)
        np.testing.assert_array_equal(found, np.nanmax(given, axis=1))


def test_places_of_64_bits_may_be_compared(tmp_path: Path) -> None:
    """As in a transposed convolution, which asks of each tap whether it meets an element."""
    rows, depth = (tirx.const(size, "int64") for size in (6, 32))
    x = te.placeholder((rows, depth), name="x")
    k = te.reduce_axis((tirx.const(0, "int64"), depth), "k")
    y = te.compute(
        (rows,),
        lambda i: te.sum(tirx.if_then_else(i * 4 + k < 40, x[i, k], tirx.const(0, "float32")), axis=k),
        name="y",
    )
    target = runnable(LEVELS[-1])
    given = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)
    found = np.empty(6, np.float32)
    (stage,) = stages(scheduled(te.create_prim_func([x, y]), target))
    Compiled(stage.function, target, tmp_path)(given, found)
    met = 4 * np.arange(6)[:, None] + np.arange(32) < 40
    np.testing.assert_allclose(found, np.where(met, given, 0).sum(axis=1), rtol=1e-5, atol=1e-5)
