"""The rule for sums and extrema over axes that do not lie dense: several results at a time, next to each other.

parallel for i, j / run: a[0:run] = 0; for k: a[0:run] += x[i, k, j + 0:run]; y[i, j] = a
"""

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from graphc.backends.expressions import loads, variables
from graphc.backends.statements import PARALLEL

SPATIAL, REDUCTION = 0, 2
"""TVM's kinds of block variables: data-parallel, and summed over."""
RUNS = (4, 2, 1)
"""Vectors of sums side by side: enough that additions do not wait for each other."""


def schedule(sch: Any, block: Any, spatial: Sequence[Any], reduction: Sequence[Any], lanes: int) -> bool:
    """Schedule a reduction block whose loops are `spatial`, then `reduction`; False where its results do not fit."""
    if lanes < 2 or not spatial:
        return False
    last = [axis.var for axis in sch.get(block).iter_vars if axis.iter_type == SPATIAL][-1]
    if not _is_dense(sch, block, last):
        return False
    *outer, inner = spatial
    run = next((run for run in RUNS if int(sch.get(inner).extent) % (run * lanes) == 0), None)
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


def _is_dense(sch: Any, block: Any, variable: Any) -> bool:
    """Whether every read that moves with an axis of a block has it as its last index, and one does."""
    body = sch.get(block).body
    read = loads(body.value) if isinstance(body, tirx.BufferStore) else []
    moving = [load for load in read if any(_mentions(index, variable) for index in load.indices)]
    sources = [load for load in moving if not load.source.same_as(body.buffer)]
    return bool(sources) and all(
        load.indices[-1].same_as(variable) and not any(_mentions(index, variable) for index in load.indices[:-1])
        for load in moving
    )


def _mentions(expression: Any, variable: Any) -> bool:
    return any(each.same_as(variable) for each in variables(expression))
