"""Searching tiles for the sum of a kernel that no schedule rule takes: TVM's MetaSchedule, in the compile server.

    kernel -> MultiLevelTiling: the space of all cuts of its loops -> EvolutionarySearch by our cost model -> tiles

Without measured ones the search begins at random; with them it mutates the fastest. Shao et al., "Tensor Program
Optimization with Probabilistic Programs", NeurIPS 2022. Tiles are all that is taken over: `schedule_searched` makes the
kernel, for measuring and in every later build, without MetaSchedule.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tvm
from tvm import s_tir, tirx
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from graphc.backends.choices import Tiles
from graphc.backends.lower import fused
from graphc.backends.relax_module import relax_module
from graphc.backends.schedule_searched import searched_sum
from graphc.backends.searchable import STRUCTURE, WIDEST, Loops
from graphc.backends.targets import Target
from graphc.backends.worker import note
from graphc.ir import Graph

CUT = "SamplePerfectTile"
"""MetaSchedule's instruction whose decision is how one loop is cut."""
PARENTS, GENERATIONS = 4, 3
"""How many of the fastest are mutated, beside as many at random, and how often."""
POPULATION = 64
"""Tiles to begin with."""
AT_RANDOM = 0.5
"""Part of what is proposed that the cost model does not pick: it knows nothing of caches, nor of what LLVM makes."""
ATTEMPTS = 8
"""Draws until a space counts as exhausted."""


def search_job(graph: Graph, target: Target, loops: Loops, measured: Mapping[Tiles, float], count: int) -> list[Tiles]:
    """At most `count` tiles to measure for the node of `graph` whose sum has these loops: always the same ones.

    `measured` are the seconds of those tried before, which do not come again.
    """
    module, _, _ = relax_module(graph, target, note)
    for function in fused(module)[0].functions.values():
        if isinstance(function, tirx.PrimFunc):
            sch = searched_sum(function, loops)
            if sch is not None:
                return list(_proposed(sch.mod, loops, target, measured, count))
    return []


def _proposed(
    module: Any, loops: Loops, target: Target, measured: Mapping[Tiles, float], count: int
) -> Iterator[Tiles]:
    seed, seen = 1 + len(measured), set(measured)
    context = _context(module, 2 * PARENTS if measured else POPULATION, seed)
    spaces, database = context.generate_design_space(), ms.database.MemoryDatabase()
    workload, arguments = database.commit_workload(module), ms.arg_info.ArgInfo.from_entry_func(module)
    for tiles, seconds in measured.items():
        trace = _decided(spaces[0].trace, tiles)
        database.commit_tuning_record(ms.database.TuningRecord(trace, workload, [seconds], context.target, arguments))
    context.pre_tuning(ATTEMPTS * count, count, spaces, database, _Model(loops, target))
    for _ in range(ATTEMPTS):
        for candidate in context.generate_measure_candidates() or ():
            tiles = _tiles(candidate.sch.trace)
            if tiles not in seen and loops.fits(tiles):
                seen.add(tiles)
                yield tiles
                if len(seen) == len(measured) + count:
                    return


@derived_object
class _Model(ms.cost_model.PyCostModel):  # type: ignore[misc]
    """How good tiles look before they are measured, for MetaSchedule to prefer them."""

    def __init__(self, loops: Loops, target: Target) -> None:
        super().__init__()
        self.loops, self.target = loops, target

    def load(self, path: str) -> None:
        """Nothing is learned."""

    def save(self, path: str) -> None:
        """Nothing is learned."""

    def update(self, context: Any, candidates: list[Any], results: list[Any]) -> None:
        """Nothing is learned."""

    def predict(self, context: Any, candidates: list[Any]) -> Any:
        """A score for each, more being better."""
        return np.array([self.loops.score(_tiles(each.sch.trace), self.target) for each in candidates])


def _context(module: Any, population: int, seed: int) -> Any:
    """MetaSchedule's TuneContext, by the function below its constructor.

    The constructor imports every tensor intrinsic that TVM has for GPUs, which takes minutes and serves nothing here.
    """
    space = ms.space_generator.PostOrderApply(
        sch_rules=[ms.schedule_rule.MultiLevelTiling(STRUCTURE, max_innermost_factor=WIDEST)],
        postprocs=[],
        mutator_probs={ms.mutator.MutateTileSize(): 1.0},
    )
    strategy = ms.search_strategy.EvolutionarySearch(
        population_size=population,
        init_measured_ratio=0.5,
        init_min_unmeasured=1,
        genetic_num_iters=GENERATIONS,
        eps_greedy=AT_RANDOM,
    )
    target = tvm.target.Target({"kind": "llvm", "num-cores": 1})
    context = ms._ffi_api.TuneContext(module, target, space, strategy, "search", 1, seed, lambda *_: None)
    ms._ffi_api.TuneContextInitialize(context)
    return context


def _cuts(trace: Any) -> list[Any]:
    return [each for each in trace.insts if each.kind.name == CUT]


def _tiles(trace: Any) -> Tiles:
    return tuple(tuple(int(part) for part in trace.decisions[cut]) for cut in _cuts(trace))


def _decided(trace: Any, tiles: Tiles) -> s_tir.Trace:
    """A trace of the space with these tiles."""
    for cut, parts in zip(_cuts(trace), tiles, strict=True):
        trace = trace.with_decision(cut, list(parts), False)
    return trace
