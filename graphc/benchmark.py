"""`graphc bench`: an artifact and other engines on the same inputs, in turns; and the artifact call by call.

Beside each time of the artifact stands the least that this machine could need for it (graphc/roofline.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from graphc import artifact, peers
from graphc.artifact import Work
from graphc.backends.cache import Cache
from graphc.bench import Timing, interleave
from graphc.errors import InputError, ToolchainError, UnsupportedError
from graphc.importer import load
from graphc.machine import machine
from graphc.progress import Progress, silent
from graphc.roofline import Roofline, model_bytes, rooflines
from graphc.runner import Runner
from graphc.samples import Inputs, inputs_for, model_beside

OWN = "graphc"
PROFILED_RUNS = 31


@dataclass(frozen=True, slots=True)
class Figure:
    """One engine with one number of threads. `ratio`: its time over graphc's, round by round; None for graphc.

    `roofline`: the least seconds that graphc's kernels could take here over its median; None for other engines.
    """

    threads: int
    engine: str
    timing: Timing
    ratio: Timing | None
    roofline: float | None


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What was run, on what, where; seconds throughout."""

    artifact: str
    model: str
    machine: str
    inputs: str
    figures: tuple[Figure, ...]
    rooflines: tuple[Roofline, ...]
    unmeasured: str
    """Why there is no roofline, where there is none."""


@dataclass(frozen=True, slots=True)
class CallTime:
    """One entry of the manifest's steps: the median seconds that it took, and the least that it could take."""

    index: int
    nodes: tuple[str, ...]
    kernel: str
    work: Work
    seconds: float
    least: float | None

    @property
    def roofline(self) -> float | None:
        """The fraction of the roofline that it reached."""
        return self.least / self.seconds if self.least is not None and self.seconds else None


def benchmark(
    folder: Path,
    engines: Sequence[str],
    threads: Sequence[int],
    seconds: float,
    *,
    model: Path | None = None,
    real: bool = False,
    progress: Progress = silent,
) -> Benchmark:
    """Time the artifact in `folder` and `engines`, which run `model` (the build's own where None), on an input of the
    spec's data (else a random one, where it is gone and not `real`).

    Raises InputError where a file or an engine's name is wrong, ToolchainError where an engine is not installed.
    """
    _check(folder, engines, threads, model)
    path = model or model_beside(folder)
    inputs = inputs_for(folder, load(model_beside(folder)), 1, real)
    limits, unmeasured = _rooflines(threads, progress)
    figures: list[Figure] = []
    for count in threads:
        progress(f"{count} threads", 0.0)
        runs = {name: partial(peers.start, name, path, inputs.feeds[0], count) for name in engines}
        figures += _figures(folder, runs, inputs, count, seconds, limits.get(count))
        progress(f"{count} threads", 1.0)
    return Benchmark(
        str(folder), str(path), machine(), inputs.source, tuple(figures), tuple(limits.values()), unmeasured
    )


def _check(folder: Path, engines: Sequence[str], threads: Sequence[int], model: Path | None) -> None:
    """What would fail later fails before anything is measured."""
    for name in engines:
        peers.find(name)
    most = artifact.read(folder).max_threads
    if max(threads) > most:
        raise InputError("--threads", f"expected at most {most}, got {max(threads)}.")
    if model is not None and not engines:
        raise InputError(f"--model {model}", "no engine would run it.", "Name engines with --against.")
    if model is not None and not model.is_file():
        raise InputError(str(model), "no such file.", "Check the path.")


def _rooflines(threads: Sequence[int], progress: Progress) -> tuple[dict[int, Roofline], str]:
    """By number of threads, or why this machine's limits cannot be measured."""
    try:
        return {limit.threads: limit for limit in rooflines(threads, Cache(), progress)}, ""
    except (ToolchainError, UnsupportedError) as error:
        return {}, str(error)


def _figures(
    folder: Path,
    engines: Mapping[str, Callable[[], peers.Run]],
    inputs: Inputs,
    threads: int,
    seconds: float,
    limit: Roofline | None,
) -> list[Figure]:
    with Runner(folder, threads) as runner:
        least = limit.least(runner.manifest) if limit else None
        given = [np.require(inputs.feeds[0][tensor.name], requirements=("C", "A")) for tensor in runner.inputs]
        runs: dict[str, peers.Run] = {OWN: runner.bind(*given)}
        runs |= {name: start() for name, start in engines.items()}
        figures = interleave(runs, seconds)
    ratios = {
        name: [theirs / ours for theirs, ours in zip(figures[name], figures[OWN], strict=True)] for name in engines
    }
    timings = {name: Timing.of(times) for name, times in figures.items()}
    return [
        Figure(
            threads,
            name,
            timing,
            Timing.of(ratios[name]) if name in ratios else None,
            least / timing.median if name == OWN and least is not None else None,
        )
        for name, timing in timings.items()
    ]


def profile(folder: Path, threads: int, limit: Roofline | None = None) -> tuple[CallTime, ...]:
    """Every call of the artifact, timed on its own, under the limits of this machine with so many threads."""
    inputs = inputs_for(folder, load(model_beside(folder)), 1)
    with Runner(folder, threads) as runner:
        given = [inputs.feeds[0][tensor.name] for tensor in runner.inputs]
        runs = [runner.profile(*given) for _ in range(PROFILED_RUNS)]
        manifest = runner.manifest
    size = model_bytes(manifest)
    return tuple(
        CallTime(
            index,
            step.nodes,
            step.kernel,
            step.work,
            median(times) * 1e-9,
            limit.seconds(step.work, size) if limit else None,
        )
        for index, (step, *times) in enumerate(zip(manifest.steps, *runs, strict=True))
    )
