"""The rule for any fused PrimFunc: inline what can be inlined, run outer loops as tasks, keep reductions innermost.

    for i, j: a[i, j] = f(x[i, j])
    for i, j: y[i, j] = g(a[i, j])      ->      parallel for i: for j: y[i, j] = g(f(x[i, j]))
"""

from typing import Any

from tvm import s_tir

SPATIAL, REDUCTION = 0, 2
"""TVM's kinds of block variables: data-parallel, and summed over."""
PARALLEL = "graphc.parallel"
"""Annotation of an outermost loop whose iterations may run in any order, at the same time."""


def schedule(function: Any) -> Any:
    """Schedule one PrimFunc; its root becomes a sequence of loop nests, one per stage."""
    sch = s_tir.Schedule(function, debug_mask="none")
    inline_all(sch)
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        schedule_block(sch, block)
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
    return statement.init is None and "graphc.role" not in statement.annotations and all(axis.iter_type == SPATIAL for axis in statement.iter_vars)


def _is_output(sch: Any, block: Any) -> bool:
    return any(region.source.same_as(p) for region in sch.get(block).writes for p in sch.mod["main"].params)


def schedule_block(sch: Any, block: Any) -> None:
    """Outer spatial loops fused into tasks, reductions next, the innermost spatial loop last."""
    loops = sch.get_loops(block)
    if not loops:
        return
    kinds = [axis.iter_type for axis in sch.get(block).iter_vars]
    if len(kinds) != len(loops):
        return
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == SPATIAL]
    reduction = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == REDUCTION]
    if len(spatial) + len(reduction) != len(loops) or not spatial:
        return
    inner = spatial.pop() if len(spatial) > 1 or not reduction else None
    if inner is not None and reduction:
        sch.reorder(*spatial, *reduction, inner)
    if spatial:
        sch.annotate(sch.fuse(*spatial) if len(spatial) > 1 else spatial[0], PARALLEL, 1)
    if reduction:
        sch.decompose_reduction(block, reduction[0])
