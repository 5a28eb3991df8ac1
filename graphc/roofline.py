"""The roofline of this machine, measured, and how close steps of an artifact come to it.

    seconds of a step >= max(macs / peak, weights / bandwidth + data / bandwidth)

The peaks are those of small kernels that graphc compiles as it compiles any other (graphc/backends/peaks.py). Bandwidth
depends on how much is read before the same bytes come again: of weights that is the whole model, of a layer's own data
the layer itself, which is still in a cache where it fits. Source: S. Williams, A. Waterman, D. Patterson, Roofline: An
Insightful Visual Performance Model for Multicore Architectures, CACM 52(4), 2009.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graphc.artifact import Manifest, Work
from graphc.backends import toolchain
from graphc.backends.build import build_program, pack, unpack
from graphc.backends.cache import Cache, key
from graphc.backends.program import Program
from graphc.backends.targets import resolve
from graphc.backends.worker import Job, Server
from graphc.progress import Progress, silent
from graphc.runner import Runner

PROGRAM = "graphc.backends.peaks:program_job"
RUNS = 7
ONE = {"int8": 1, "uint16": 0x3F80}
"""As an integer, and as the code of a bfloat16."""
LARGEST, LEAST = 256 << 20, 64 << 20
"""Bytes that are read to know how fast memory is: larger than caches are, and on machines with little memory."""
LITTLE = 4 << 30


@dataclass(frozen=True, slots=True)
class Roofline:
    """With so many threads: multiply-accumulates per second by (arithmetic, instruction), and bytes per second at
    which so many bytes are read again and again, smallest first."""

    threads: int
    peaks: Mapping[str, Mapping[str, float]]
    bandwidth: tuple[tuple[int, float], ...]

    def peak(self, arithmetic: str) -> float | None:
        """Multiply-accumulates per second by the fastest instruction; None for a type that was not measured."""
        return max(self.peaks.get(arithmetic, {}).values(), default=None)

    def read(self, size: int) -> float:
        """Bytes per second where `size` bytes are read before the first come again: the next measured size counts."""
        return next((speed for measured, speed in self.bandwidth if measured >= size), self.bandwidth[-1][1])

    def seconds(self, work: Work, model: int) -> float | None:
        """The least that a step can take in a model of so many bytes; None where its arithmetic was not measured."""
        moved = work.weights / self.read(model) + work.data / self.read(work.data)
        if not work.macs:
            return moved
        peak = self.peak(work.arithmetic)
        return None if peak is None else max(work.macs / peak, moved)

    def least(self, manifest: Manifest) -> float | None:
        """Seconds of a whole run at the roofline, call after call; None where a call's arithmetic was not measured."""
        bounds = [self.seconds(step.work, model_bytes(manifest)) for step in manifest.steps]
        known = [bound for bound in bounds if bound is not None]
        return sum(known) if len(known) == len(bounds) else None


def model_bytes(manifest: Manifest) -> int:
    """What a run goes through: weights and arena."""
    return manifest.weights.bytes + manifest.arena.bytes


def rooflines(threads: Sequence[int], cache: Cache, progress: Progress = silent) -> tuple[Roofline, ...]:
    """Measured now, once for each number of threads. The kernels come from the cache after the first time.

    Raises UnsupportedError on a machine that graphc has no target for, ToolchainError without a C compiler.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "peaks"
        manifest = _build(folder, cache, progress)
        x = np.ones(manifest.inputs[0].shape, np.float32)
        return tuple(_measured(folder, x, count) for count in threads)


def _build(folder: Path, cache: Cache, progress: Progress) -> Manifest:
    target = resolve({"cpu": "native"})
    tools = toolchain.find(target.triple, cache.folder)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    largest = LARGEST if memory >= LITTLE else LEAST
    name = key("peaks", target.description(), largest, tools.name, tools.version)
    kept = cache.get(name)
    if kept is not None:
        unpack(kept, folder)
    else:
        progress("compile the roofline's kernels", 0.0)
        with Server(scratch=cache.scratch()) as server:
            program: Program = server.run([Job(PROGRAM, (target, largest), "the roofline's kernels")])[0]
            build_program(program, target, folder, server, cache, tools)
        cache.put(name, pack(folder))
        progress("compile the roofline's kernels", 1.0)
    with Runner(folder) as runner:
        return runner.manifest


def _measured(folder: Path, x: np.typing.NDArray[np.float32], threads: int) -> Roofline:
    """The best of several runs of every kernel: a limit is what nothing gets past."""
    with Runner(folder, threads) as runner:
        ones = [np.full(tensor.shape, ONE[tensor.dtype], tensor.dtype) for tensor in runner.inputs[1:]]
        runs = [runner.profile(x, *ones) for _ in range(RUNS)]
        steps = runner.manifest.steps
    best: dict[str, tuple[Work, float]] = {}
    for step, nanoseconds in zip(steps, zip(*runs, strict=True), strict=True):
        label, seconds = step.nodes[0], 1e-9 * min(nanoseconds)
        best[label] = (step.work, min(seconds, best[label][1]) if label in best else seconds)
    peaks: dict[str, dict[str, float]] = {}
    for label, (work, seconds) in best.items():
        if work.macs:
            peaks.setdefault(work.arithmetic, {})[label.partition(" ")[2] or "fma"] = work.macs / seconds
    reads = [(work.data, work.data / seconds) for work, seconds in best.values() if not work.macs]
    return Roofline(threads, peaks, tuple(sorted(reads)))
