"""The rule for any fused PrimFunc: inline what can be inlined, run outer loops as tasks, keep reductions innermost.

for i, j: a[i, j] = f(x[i, j])
for i, j: y[i, j] = g(a[i, j])      ->      parallel for i: for j: y[i, j] = g(f(x[i, j]))
"""

from typing import Any

import tvm_ffi
from tvm import s_tir, tirx

from graphc.backends import schedule_reduction
from graphc.backends.expressions import loads
from graphc.backends.schedule_reduction import REDUCTION, SPATIAL
from graphc.backends.statements import PARALLEL
from graphc.backends.targets import Target

RUN = 64
"""Most vectors in one task of an elementwise kernel."""


def schedule(function: Any, target: Target) -> Any:
    """Schedule one PrimFunc; its root becomes a sequence of loop nests, one per stage."""
    sch = s_tir.Schedule(function, debug_mask="none")
    inline_all(sch)
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        schedule_block(sch, block, max(1, target.lanes(32)))
    return sch.mod["main"]


def inline_all(sch: Any) -> None:
    """Inline every injective block into its readers, except the last one of the function."""
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        if _is_injective(sch, block) and not _is_output(sch, block) and sch.get_consumers(block):
            try:
                sch.compute_inline(block)
            except s_tir.ScheduleError:
                continue  # read at places that inlining cannot express: it stays a loop nest of its own


def _is_injective(sch: Any, block: Any) -> bool:
    statement = sch.get(block)
    return (
        statement.init is None
        and not {"graphc.role", "graphc.anchor"} & set(statement.annotations)
        and all(axis.iter_type == SPATIAL for axis in statement.iter_vars)
    )


def _is_output(sch: Any, block: Any) -> bool:
    return any(region.source.same_as(p) for region in sch.get(block).writes for p in sch.mod["main"].params)


def schedule_block(sch: Any, block: Any, lanes: int) -> None:
    """Outer spatial loops fused into tasks, then reductions, the innermost spatial loop last, in vectors if it can."""
    loops = sch.get_loops(block)
    kinds = [axis.iter_type for axis in sch.get(block).iter_vars]
    if not loops or len(kinds) != len(loops) or not set(kinds) <= {SPATIAL, REDUCTION}:
        return
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == SPATIAL]
    reduction = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == REDUCTION]
    if not reduction and _same_index_everywhere(sch.get(block)):
        _schedule_flat(sch, sch.fuse(*loops) if len(loops) > 1 else loops[0], lanes)
        return
    if reduction and schedule_reduction.schedule(sch, block, spatial, reduction, lanes):
        return
    inner = spatial.pop() if len(spatial) > 1 else None
    if inner is not None and reduction:
        sch.reorder(*spatial, *reduction, inner)
    if spatial:
        sch.annotate(sch.fuse(*spatial) if len(spatial) > 1 else spatial[0], PARALLEL, 1)
    if inner is not None and not reduction and _extent(sch, inner) % lanes == 0 and lanes > 1:
        sch.vectorize(sch.split(inner, [None, lanes])[1])
    if reduction:
        sch.decompose_reduction(block, reduction[0])


def _schedule_flat(sch: Any, loop: Any, lanes: int) -> None:
    """An operator that works element by element on dense buffers of one shape: runs of `RUN` vectors are tasks."""
    extent = _extent(sch, loop)
    if lanes == 1 or extent % lanes:
        sch.annotate(loop, PARALLEL, 1)
        return
    run = next(run for run in range(min(RUN, extent // lanes), 0, -1) if extent // lanes % run == 0)
    task, _, vector = sch.split(loop, [None, run, lanes])
    sch.annotate(task, PARALLEL, 1)
    sch.vectorize(vector)


def _extent(sch: Any, loop: Any) -> int:
    return int(sch.get(loop).extent)


def _same_index_everywhere(block: Any) -> bool:
    """Whether every access of a block is at its own position, or of a single element."""
    store = block.body
    if not isinstance(store, tirx.BufferStore):
        return False
    shape = store.buffer.shape
    return all(
        (tvm_ffi.structural_equal(load.indices, store.indices) and tvm_ffi.structural_equal(load.source.shape, shape))
        or all(isinstance(index, tirx.IntImm) for index in load.indices)
        for load in loads(store.value)
    )
