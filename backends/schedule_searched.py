"""The rule for sums whose tiles were searched and stand in their annotation (see `searchable` and `search`).

    for task = spatial tile:
      acc[rows][tile] = 0
      for outer reductions: for rows: for inner reductions: for tile:
        acc[rows][tile] += pad[...] * w[...]
      for rows, tile: y[...] = epilogue(acc[rows][tile])

The last loop of `tile` is a vector. Sums that fit the registers are written out, so that they stay there.
"""

import json
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

from tvm import s_tir

from graphc.backends.schedule_generic import inline_all, schedule_block
from graphc.backends.schedule_reduction import REDUCTION, SPATIAL
from graphc.backends.searchable import ATTRIBUTE, Loops
from graphc.backends.statements import PARALLEL
from graphc.backends.targets import Target


def schedule(function: Any, target: Target) -> Any:
    """The kernel of a PrimFunc whose sum has tiles, None for everything else."""
    sch, blocks = _blocks(function)
    sums = next((block for block in blocks if ATTRIBUTE in sch.get(block).annotations), None)
    if sums is None:
        return None
    tiles = json.loads(str(sch.get(sums).annotations[ATTRIBUTE]))
    lanes = max(1, target.lanes(32))
    *others, out = (block for block in blocks if not block.same_as(sums))
    for block in others:
        schedule_block(sch, block, lanes)
    _tiled(sch, sums, out, tiles, target)
    return sch.mod["main"]


def searched_sum(function: Any, loops: Loops) -> Any:
    """A schedule of the PrimFunc in which nothing is decided yet, None where it has no sum over `loops`."""
    sch, blocks = _blocks(function)
    extents = [
        [tuple(int(axis.dom.extent) for axis in sch.get(block).iter_vars if axis.iter_type == kind) for kind in KINDS]
        for block in blocks
    ]
    return sch if [loops.spatial, loops.reduced] in extents else None


KINDS = (SPATIAL, REDUCTION)


def _blocks(function: Any) -> tuple[Any, list[Any]]:
    sch = s_tir.Schedule(function, debug_mask="none")
    inline_all(sch)
    return sch, sch.get_child_blocks(sch.get_sblock("root"))


def _tiled(sch: Any, sums: Any, out: Any, tiles: Sequence[Sequence[int]], target: Target) -> None:
    """Cut the loops of `sums`, and compute `out` at the end of each task."""
    kinds = [axis.iter_type for axis in sch.get(sums).iter_vars]
    cut = [sch.split(loop, parts) for loop, parts in zip(sch.get_loops(sums), tiles, strict=True)]
    tasks, rows, tile = zip(*(loops for loops, kind in zip(cut, kinds, strict=True) if kind == SPATIAL), strict=True)
    outer, inner = zip(*(loops for loops, kind in zip(cut, kinds, strict=True) if kind == REDUCTION), strict=True)
    sch.reorder(*tasks, *outer, *rows, *inner, *tile)
    sch.set_scope(sums, 0, "local")
    task = sch.fuse(*tasks)
    sch.annotate(task, PARALLEL, 1)
    sch.reverse_compute_at(out, task)
    spatial = [parts for parts, kind in zip(tiles, kinds, strict=True) if kind == SPATIAL]
    lanes = spatial[-1][-1]
    vectors = target.vector_registers // -(-lanes // max(1, target.lanes(32)))
    tile_fits, task_fits = (prod(prod(p[n:]) for p in spatial) <= vectors * lanes for n in (2, 1))
    _written_out(sch, tile, lanes, tile_fits)
    _written_out(sch, rows, 1, task_fits)
    first = sch.decompose_reduction(sums, outer[0])
    _written_out(sch, sch.get_loops(first)[1:], lanes, task_fits)
    *rest, last = sch.get_loops(out)[1:]
    _written_out(sch, [*rest, *sch.split(last, [None, lanes])], lanes, task_fits)


def _written_out(sch: Any, loops: Iterable[Any], lanes: int, whole: bool) -> None:
    """The last loop as a vector if it has `lanes`, the others one statement after another if that is `whole`."""
    *others, last = loops
    if lanes > 1:
        sch.vectorize(last)
    else:
        others.append(last)
    for loop in others if whole else ():
        sch.unroll(loop)
