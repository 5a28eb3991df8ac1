"""The rule for sums and extrema over axes: in vector registers, whichever axis lies dense in memory.

the dense axis is kept:     parallel for i, j / run: a[0:run] = 0; for k: a[0:run] += x[i, k, j + 0:run]; y[i, j] = a
the dense axis is reduced:  parallel for i: a[0:run] = 0; for k / run: a[0:run] += x[i, k + 0:run]; y[i] = sum of a
"""

import math
from collections.abc import Sequence
from typing import Any

import tvm.ir
import tvm_ffi
from tvm import tirx

from graphc.backends.statements import PARALLEL

SPATIAL, REDUCTION = 0, 2
"""TVM's kinds of block variables: data-parallel, and summed over."""
RUNS = (4, 2, 1)
"""Vectors of sums side by side: enough that additions do not wait for each other."""
LONG = 2048
"""Elements from which on folding several vectors into one at the end costs nothing."""


def schedule(sch: Any, block: Any, spatial: Sequence[Any], reduction: Sequence[Any], lanes: int) -> bool:
    """Schedule a reduction block whose loops are `spatial`, then `reduction`; False where no axis fits in vectors."""
    if lanes < 2 or not spatial:
        return False
    axes = sch.get(block).iter_vars
    if _is_dense(sch, block, [axis.var for axis in axes if axis.iter_type == SPATIAL][-1]):
        return _across(sch, block, spatial, reduction, lanes)
    if _divides(sch, block) and _is_dense(sch, block, [axis.var for axis in axes if axis.iter_type == REDUCTION][-1]):
        return _along(sch, block, spatial, reduction, lanes)
    return False


def _across(sch: Any, block: Any, spatial: Sequence[Any], reduction: Sequence[Any], lanes: int) -> bool:
    """Several results at a time, next to each other in memory."""
    *outer, inner = spatial
    run = _run(int(sch.get(inner).extent), lanes, RUNS)
    if run is None:
        return False
    write = sch.cache_write(block, 0, "local")
    chunk, vectors, vector = sch.split(inner, [None, run, lanes])
    sch.reorder(*outer, chunk, *reduction, vectors, vector)
    tasks = sch.fuse(*outer, chunk) if outer else chunk
    sch.annotate(tasks, PARALLEL, 1)
    sch.reverse_compute_at(write, tasks)
    sch.vectorize(sch.split(sch.get_loops(write)[-1], [None, lanes])[1])
    sch.vectorize(vector)
    sch.unroll(vectors)
    sch.decompose_reduction(block, reduction[0])
    return True


def _along(sch: Any, block: Any, spatial: Sequence[Any], reduction: Sequence[Any], lanes: int) -> bool:
    """One result at a time, from partial sums of every lane."""
    length = int(sch.get(reduction[-1]).extent)
    run = _run(length, lanes, RUNS if length >= LONG else (1,))
    if run is None or math.prod(int(sch.get(loop).extent) for loop in reduction) == run * lanes:
        return False  # a single run leaves nothing to add up
    _, lane = sch.split(reduction[-1], [None, run * lanes])
    partial = sch.rfactor(lane, len(spatial))
    sch.set_scope(partial, 0, "local")
    rows = sch.get_loops(block)[: len(spatial)]
    tasks = sch.fuse(*rows) if len(rows) > 1 else rows[0]
    sch.annotate(tasks, PARALLEL, 1)
    sch.compute_at(partial, tasks)
    lane, *steps = sch.get_loops(partial)[1:]
    sch.reorder(*steps, lane)
    vectors, vector = sch.split(lane, [run, lanes])
    sch.vectorize(vector)
    sch.unroll(vectors)
    sch.decompose_reduction(partial, steps[0])
    sch.decompose_reduction(block, sch.get_loops(block)[-1])
    return True


def _divides(sch: Any, block: Any) -> bool:
    """Whether TVM can reduce in two steps: it knows sums, products, and extrema that start at a finite number."""
    init = sch.get(block).init
    if not isinstance(init, tirx.BufferStore) or str(init.buffer.dtype) == "bool":
        return False
    return not isinstance(init.value, tirx.FloatImm) or math.isfinite(init.value.value)


def _run(extent: int, lanes: int, runs: Sequence[int]) -> int | None:
    """Vectors in a run that divides `extent`, None where not even one vector does."""
    return next((run for run in runs if extent % (run * lanes) == 0), None)


def _is_dense(sch: Any, block: Any, variable: Any) -> bool:
    """Whether every read that moves with an axis of a block has it as its last index, and one does."""
    body = sch.get(block).body
    loads: list[Any] = []
    if isinstance(body, tirx.BufferStore):
        tvm_ffi.structural_walk(body.value, (tvm.ir.TensorLoad, loads.append))
    moving = [load for load in loads if any(_mentions(index, variable) for index in load.indices)]
    sources = [load for load in moving if not load.source.same_as(body.buffer)]
    return bool(sources) and all(
        load.indices[-1].same_as(variable) and not any(_mentions(index, variable) for index in load.indices[:-1])
        for load in moving
    )


def _mentions(expression: Any, variable: Any) -> bool:
    found: list[Any] = []
    tvm_ffi.structural_walk(expression, (tirx.Var, found.append))
    return any(each.same_as(variable) for each in found)
