"""What runs in a child of the compile server: one case down the whole road, and its results compared."""

from collections.abc import Callable, Generator, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import graphc.backends.lower  # noqa: F401 (here once for all children)
import graphc.backends.objects  # noqa: F401
from graphc.backends.build import build_target
from graphc.backends.cache import Cache, key
from graphc.backends.targets import resolve
from graphc.backends.worker import Job
from graphc.importer import load
from graphc.passes.fold import fold
from graphc.runner import Runner
from tests.conformance.cases import Case

TARGET = resolve({"cpu": "x86-64-v3"})

key("warm")  # reads all of graphc's code: once for all children


class Wrong(Exception):  # noqa: N818 (an answer, not an error)
    """A result differs from what the case expects."""


class Here:
    """Stands in for the compile server in a process that is its child already."""

    def run(self, jobs: Sequence[Job], *, progress: object = None) -> list[Any]:
        return [_call(job) for job in jobs]

    def outcomes(self, jobs: Sequence[Job], progress: object = None) -> Generator[tuple[int, Any]]:
        yield from ((index, _call(job)) for index, job in enumerate(jobs))


def _call(job: Job) -> Any:
    module, _, name = job.function.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function(*job.arguments)


def attempt(case: Case, cache: Path) -> str:
    """Build, run and compare. Returns what differs, the empty string where nothing does; raises as a build does."""
    shapes = {name: np.shape(value) for name, value in case.inputs.items() if isinstance(value, np.ndarray)}
    graph = fold(load(case.model, shapes, allow_nan=True))
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "artifact"
        build_target(graph, TARGET, folder, Here(), Cache(cache))  # type: ignore[arg-type]
        with Runner(folder) as runner:
            results = runner(**case.inputs)
    if not isinstance(results, dict):
        results = {next(iter(case.expected)): results}
    return _difference(case, results)


def _difference(case: Case, results: dict[str, Any]) -> str:
    for name, expected in case.expected.items():
        got = results[name]
        if got.dtype != expected.dtype or got.shape != expected.shape:
            return f"expected {expected.dtype}{list(expected.shape)}, got {got.dtype}{list(got.shape)}"
        # As onnx's own runner compares: bfloat16 to two units in the last place.
        narrow = got.dtype.kind not in "biufc"
        rtol = max(case.rtol, 2**-6) if got.dtype.name == "bfloat16" else case.rtol
        a, b = (np.asarray(each).astype(np.float32) if narrow else np.asarray(each) for each in (got, expected))
        if not np.allclose(a, b, rtol=rtol, atol=case.atol, equal_nan=True):
            return "wrong values"
    return ""
