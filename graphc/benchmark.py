"""`graphc bench`: an artifact and other engines on the same inputs, in turns; and the artifact call by call."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from graphc import peers
from graphc.bench import Timing, interleave
from graphc.importer import load
from graphc.machine import machine
from graphc.progress import Progress, silent
from graphc.runner import Runner
from graphc.samples import Inputs, inputs_for, model_beside

OWN = "graphc"
PROFILED_RUNS = 31


@dataclass(frozen=True, slots=True)
class Figure:
    """One engine with one number of threads. `ratio`: its time over graphc's, round by round; None for graphc."""

    threads: int
    engine: str
    timing: Timing
    ratio: Timing | None


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What was run, on what, where; seconds throughout."""

    artifact: str
    model: str
    machine: str
    inputs: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class CallTime:
    """One entry of the manifest's steps: the median seconds that it took."""

    index: int
    nodes: tuple[str, ...]
    kernel: str
    seconds: float


def benchmark(
    folder: Path,
    engines: Sequence[str],
    threads: Sequence[int],
    seconds: float,
    *,
    model: Path | None = None,
    progress: Progress = silent,
) -> Benchmark:
    """Time the artifact in `folder` and `engines`, which run `model` (the build's own where None).

    Raises InputError where a file or an engine's name is wrong, ToolchainError where an engine is not installed.
    """
    path = model or model_beside(folder)
    inputs = inputs_for(folder, load(model_beside(folder)), 1)
    figures: list[Figure] = []
    for count in threads:
        progress(f"{count} threads", 0.0)
        runs = {name: partial(peers.start, name, path, inputs.feeds[0], count) for name in engines}
        figures += _figures(folder, runs, inputs, count, seconds)
        progress(f"{count} threads", 1.0)
    return Benchmark(str(folder), str(path), machine(), inputs.source, tuple(figures))


def _figures(
    folder: Path, engines: Mapping[str, Callable[[], peers.Run]], inputs: Inputs, threads: int, seconds: float
) -> list[Figure]:
    with Runner(folder, threads) as runner:
        given = [np.require(inputs.feeds[0][tensor.name], requirements=("C", "A")) for tensor in runner.inputs]
        runs: dict[str, peers.Run] = {OWN: runner.bind(*given)}
        runs |= {name: start() for name, start in engines.items()}
        figures = interleave(runs, seconds)
    ratios = {
        name: [theirs / ours for theirs, ours in zip(figures[name], figures[OWN], strict=True)] for name in engines
    }
    return [
        Figure(threads, name, Timing.of(times), Timing.of(ratios[name]) if name in ratios else None)
        for name, times in figures.items()
    ]


def profile(folder: Path, threads: int) -> tuple[CallTime, ...]:
    """Every call of the artifact, timed on its own."""
    inputs = inputs_for(folder, load(model_beside(folder)), 1)
    with Runner(folder, threads) as runner:
        given = [inputs.feeds[0][tensor.name] for tensor in runner.inputs]
        runs = [runner.profile(*given) for _ in range(PROFILED_RUNS)]
        steps = runner.manifest.steps
    return tuple(
        CallTime(index, step.nodes, step.kernel, median(times) * 1e-9)
        for index, (step, *times) in enumerate(zip(steps, *runs, strict=True))
    )
