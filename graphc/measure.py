"""What a build came to: each artifact's memory, accuracy and latency, beside the original model in onnxruntime.

Artifacts are run where this machine can run them; for the others only sizes are known.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from graphc import artifact
from graphc.artifact import Manifest, Part
from graphc.bench import Timing, interleave
from graphc.borders import Border, border_types
from graphc.budget import limits
from graphc.errors import UnsupportedError
from graphc.exporter import save
from graphc.ir import Array, Graph
from graphc.ir.cost import cost
from graphc.ir.text import fingerprint
from graphc.job import Job
from graphc.machine import machine
from graphc.memory import Memory
from graphc.peers import Run, start
from graphc.pipeline import Compressed
from graphc.progress import Progress
from graphc.quality import Model, qualities
from graphc.report import Decided, Latency, Multiplied, PreparedLayer, Quality, Report, StoredLayer, TargetReport
from graphc.runner import Opened, Runner
from graphc.samples import seeded
from graphc.staging import MODEL, MODEL_DATA
from graphc.version import VERSION

SECONDS = 0.5
"""How long latency is measured for, per target."""
OWN = "graphc"
BEFORE = "onnxruntime"


def measure(
    job: Job, done: Compressed, folder: Path, memory: Memory, notes: Mapping[str, str], progress: Progress
) -> Report:
    """The report of a build whose model and artifacts lie in `folder`; `notes` say how kernels were tuned."""
    figures = [
        _Target(job, done.graph, folder / target.id, memory, notes[target.id], progress).report()
        for target in job.targets
    ]
    targets = tuple(target for target, _ in figures)
    before = next((latency for _, latency in figures if latency is not None), None)
    size = sum((folder / name).stat().st_size for name in (MODEL, MODEL_DATA) if (folder / name).exists())
    return Report(
        graphc=VERSION,
        name=job.name,
        model=job.source,
        spec=_absolute(job.spec.model_dump(mode="json")),
        folder=str(job.spec.folder.absolute()),
        types={name: str(dtype) for name, dtype in border_types(job.model).items()},
        model_bytes=size,
        steps=done.steps,
        targets=targets,
        before=before,
        budget=limits(job.spec.budget, done.steps, targets, size, job.data.metric),
    )


@dataclass(frozen=True)
class _Target:
    """One artifact of a build, and how to find out about it."""

    job: Job
    graph: Graph
    folder: Path
    memory: Memory
    tuning: str
    progress: Progress

    def report(self) -> tuple[TargetReport, Latency | None]:
        """Its figures, and the latency of the original model measured beside it."""
        quality = after = before = None
        if self._runs_here():
            quality = self._quality()
            after, before = self._latencies()
        return _target_report(self._manifest, self.folder, self.graph, quality, after, self.tuning), before

    def _runs_here(self) -> bool:
        try:
            Runner(self.folder).close()
        except UnsupportedError:
            return False
        return True

    def _quality(self) -> Quality | None:
        samples = self.job.data.judged_on
        if samples is None:
            return None
        with_library = {self._content: self._model}
        stage = f"{self.folder.name}: accuracy on {samples.kind} data"
        found = qualities(
            self.job.model, with_library, samples, self.memory, lambda _, part: self.progress(stage, part)
        )
        return found[self._content]

    def _model(self) -> Model:
        return self._border.around(by_name(Runner(self.folder)))

    @property
    def _border(self) -> Border:
        return Border.of(self.graph, border_types(self.job.model))

    @cached_property
    def _manifest(self) -> Manifest:
        return artifact.read(self.folder)

    @cached_property
    def _content(self) -> str:
        """What the artifact runs, as a digest."""
        library = self._manifest.files.library
        assert library is not None
        return hashlib.sha256((self.folder / library).read_bytes()).hexdigest()

    def _latencies(self) -> tuple[Latency, Latency | None]:
        """One run of the artifact, and of the original where onnxruntime can run it; one thread, once per machine."""
        parts = (self._content, fingerprint(self.job.model), machine())
        kept = self.memory.recall("latency", *parts)
        if kept is None:
            kept = json.dumps([latency.model_dump() for latency in self._measured()]).encode()
            self.memory.keep(kept, "latency", *parts)
        found = {latency.engine: latency for latency in map(Latency.model_validate, json.loads(kept))}
        return found[OWN], found.get(BEFORE)

    def _measured(self) -> list[Latency]:
        stage = f"{self.folder.name}: latency"
        self.progress(stage, 0.0)
        original = self.folder.with_name(".original.onnx")
        save(self.job.model, original)
        feeds = one_input(self.job)
        with Runner(self.folder) as runner:
            stored = self._border.enter(feeds)
            given = [np.require(stored[tensor.name], requirements=("C", "A")) for tensor in runner.inputs]
            runs: dict[str, Run] = {OWN: runner.bind(*given)}
            with suppress(UnsupportedError):
                runs[BEFORE] = start(BEFORE, original, feeds, 1)
            figures = interleave(runs, SECONDS)
        for path in (original, original.with_name(f"{original.name}.data")):
            path.unlink(missing_ok=True)
        self.progress(stage, 1.0)
        return [latency_of(name, 1, seconds) for name, seconds in figures.items()]


def by_name(runner: Opened) -> Model:
    """A runner as a function from inputs by name to outputs by name."""
    names = [tensor.name for tensor in runner.outputs]

    def run(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        found = runner(*(feeds[tensor.name] for tensor in runner.inputs))
        return {names[0]: found} if len(names) == 1 else found

    return run


def one_input(job: Job) -> Mapping[str, Array]:
    """The first sample of the data, or random numbers where there is none."""
    samples = job.data.judged_on
    if samples is not None:
        return next(iter(samples.dataset)).feeds
    return seeded({name: job.model.types[name] for name in job.model.inputs}, 1).feeds[0]


def latency_of(engine: str, threads: int, seconds: Sequence[float]) -> Latency:
    """Seconds per run, round by round, as a record of now."""
    timing = Timing.of(seconds)
    return Latency(
        engine=engine,
        threads=threads,
        median=timing.median,
        minimum=timing.minimum,
        low=timing.low,
        high=timing.high,
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _target_report(
    manifest: Manifest, folder: Path, graph: Graph, quality: Quality | None, latency: Latency | None, tuning: str
) -> TargetReport:
    return TargetReport(
        id=folder.name,
        flash=_flash(manifest, folder),
        ram=manifest.ram,
        ram_lower_bound=manifest.arena.lower_bound,
        kernels=len({step.kernel for step in manifest.steps if step.kernel}),
        calls=len(manifest.steps),
        decisions=tuple(Decided.model_validate(asdict(each)) for each in manifest.decisions),
        prepared=tuple(PreparedLayer.model_validate(asdict(each)) for each in manifest.prepared),
        multiplied=tuple(Multiplied.model_validate(asdict(each)) for each in manifest.multiplied),
        quality=quality,
        latency=latency,
        weights=tuple(_stored(manifest, graph)),
        tuning=tuning,
    )


def _flash(manifest: Manifest, folder: Path) -> int:
    """Bytes of code and weights: counted where there is no operating system, else those of the library's file."""
    if manifest.footprint is not None:
        return manifest.weights.bytes + manifest.footprint.code
    return (folder / (manifest.files.library or manifest.files.archive)).stat().st_size


def _stored(manifest: Manifest, graph: Graph) -> Iterator[StoredLayer]:
    """What coding came to for the constants of each layer, then for all of them."""
    layers: dict[tuple[str, ...], list[Part]] = {}
    for part in manifest.weights.parts:
        layers.setdefault(part.nodes, []).append(part)
    floats = {node.name: 4 * node.parameters for node in cost(graph).nodes}
    for nodes, parts in layers.items():
        yield _sum_of(parts, nodes, sum(floats.get(name, 0) for name in nodes))
    if layers:
        yield _sum_of(manifest.weights.parts, (), sum(floats.values()))


def _sum_of(parts: Sequence[Part], nodes: tuple[str, ...], raw: int) -> StoredLayer:
    packed, stored = sum(part.packed for part in parts), sum(part.stored for part in parts)
    return StoredLayer(nodes=nodes, raw=raw, packed=packed, stored=stored, bound=sum(part.bound for part in parts))


def _absolute(spec: dict[str, Any]) -> dict[str, Any]:
    """A spec whose paths hold wherever it is read again."""
    files = [spec.get("model"), spec["data"]["calibration"], spec["data"]["evaluation"]]
    for section in files:
        for key in ("path", "images"):
            if section is not None and section.get(key) is not None:
                section[key] = str(Path(section[key]).absolute())
    return spec
