"""From a spec to artifacts: the whole road, top to bottom.

spec, model, data -> passes -> model.onnx -> one artifact per target -> measured -> report.json -> budget
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphc import pipeline
from graphc.backends import toolchain
from graphc.backends.build import build_target
from graphc.backends.cache import Cache, key
from graphc.backends.factor_speed import speed_on
from graphc.backends.integer_speed import slower_on
from graphc.backends.worker import Server
from graphc.budget import check_budget
from graphc.exporter import save
from graphc.importer import Source
from graphc.ir import Graph
from graphc.job import Job, SpecSource, prepare
from graphc.measure import measure
from graphc.passes.protocol import LANES
from graphc.progress import Progress, silent
from graphc.report import Report
from graphc.runner import Runner
from graphc.staging import MODEL, REPORT, Staging
from graphc.tune import searcher, timer, tuned


@dataclass(frozen=True)
class Build:
    """What a build left in `folder`: model.onnx, report.json, and a folder for each target.

    `cache_problem` says why results could not be kept for the next build, where they could not.
    """

    folder: Path
    report: Report
    cache_problem: str | None = None

    @property
    def model(self) -> Path:
        return self.folder / MODEL

    def artifact(self, target: str) -> Path:
        """The folder of one target, such as `native`."""
        return self.folder / target

    def open(self, target: str = "native", threads: int = 1) -> Runner:
        """Open the artifact of one target. Raises as `graphc.open` does."""
        return Runner(self.artifact(target), threads)


def compile(  # noqa: A001
    model: Source | Graph | None,
    spec: SpecSource,
    *,
    out: str | Path = "build",
    only: Collection[str] = (),
    stop_after: int | None = None,
    progress: Progress = silent,
    cache: Path | None = None,
) -> Build:
    """Build what `spec` asks for into `out`/NAME; `model` stands in for the spec's own where it is not None.

    `only` names targets of the spec to build; `stop_after` ends the passes after that many; `cache` is the folder that
    keeps results between builds ($GRAPHC_CACHE, or the user's cache folder). Nothing global changes.
    Raises GraphcError: InputError for mistakes in spec, model or data, BudgetError where the finished build is over its
    budget, ToolchainError where a compiler is missing, InternalError for a bug in graphc. Until the build is finished,
    what was in `out` stays as it was.
    """
    job = prepare(model, spec, only)
    build = build_job(job, Path(out), stop_after=stop_after, progress=progress, cache=cache)
    check_budget(build.report)
    return build


def build_job(
    job: Job, out: Path, *, stop_after: int | None = None, progress: Progress = silent, cache: Path | None = None
) -> Build:
    """The road from a checked job to a build. The budget is in its report, and nothing is raised for it."""
    memory = FolderMemory(Cache(cache))
    for target in job.targets:
        toolchain.find_for(target, memory.cache.folder)  # a missing compiler is an error now, not after the passes
    names = (MODEL, REPORT, *(target.id for target in job.targets))
    with Staging(out / job.name, names) as staging, Server(scratch=memory.cache.scratch()) as server:
        done = pipeline.run(
            job.model,
            job.spec.passes,
            job.data,
            memory,
            progress=progress,
            stop_after=stop_after,
            slower=slower_on(job.targets),
            speed=speed_on(job.targets),
            lanes=max((target.lanes(32) for target in job.targets), default=LANES),
        )
        save(done.graph, staging.folder / MODEL)
        notes: dict[str, str] = {}
        for target in job.targets:
            measure_kernels, search = timer(target, server, memory.cache), searcher(target, server)
            found = tuned(done.graph, target, job.tunings.get(target.id), measure_kernels, search, progress)
            notes[target.id], folder = found.note, staging.folder / target.id
            build_target(done.graph, target, folder, server, memory.cache, choices=found.choices, progress=progress)
        report = measure(job, done, staging.folder, memory, notes, progress)
        (staging.folder / REPORT).write_text(report.text(), encoding="utf-8")
        staging.commit()
    return Build(staging.place, report, memory.cache.problem)


@dataclass(frozen=True)
class FolderMemory:
    """Results kept in the cache folder. The versions and the code of graphc are part of every key."""

    cache: Cache

    def recall(self, kind: str, *parts: Any) -> bytes | None:
        return self.cache.get(key(kind, *parts))

    def keep(self, value: bytes, kind: str, *parts: Any) -> None:
        self.cache.put(key(kind, *parts), value)
