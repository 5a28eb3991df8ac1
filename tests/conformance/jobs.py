"""What runs in a child of the compile server: one case down the whole road, and its results compared."""

from collections.abc import Callable, Generator, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx.parser

from graphc import ort
from graphc.backends import toolchain
from graphc.backends.build import build_uncached
from graphc.backends.cache import Cache, default_folder
from graphc.backends.targets import resolve
from graphc.backends.toolchain import Toolchain
from graphc.backends.worker import Job, Server, Watcher
from graphc.importer import load
from graphc.ir import Graph
from graphc.passes.fold import fold
from graphc.runner import Runner
from tests.conformance.cases import ROUNDED, WRONG, Case

TARGET = resolve({"cpu": "x86-64-v3"})


class Quick(Toolchain):
    """Compiles the generated C without optimization or warnings, archives nothing: it runs once, from the library."""

    def compile(self, source: str, output: str, folder: Path, flags: Sequence[str] = ()) -> None:
        super().compile(source, output, folder, ("-O0", "-w", "-fPIC"))

    def archive(self, objects: Sequence[str], output: str, folder: Path) -> None:
        (folder / output).touch()


class Here(Server):
    """Runs jobs in this process, which is a child of a compile server already."""

    def outcomes(self, jobs: Sequence[Job], progress: Watcher | None = None) -> Generator[tuple[int, Any]]:
        yield from ((index, _call(job)) for index, job in enumerate(jobs))


def _call(job: Job) -> Any:
    module, _, name = job.function.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function(*job.arguments)


TOOLS = Quick(**vars(toolchain.find(TARGET.triple, default_folder())))


def attempt(case: Case, cache: Path) -> str:
    """Build, run and compare. Returns what differs, the empty string where nothing does; raises as a build does."""
    shapes = {name: np.shape(value) for name, value in case.inputs.items() if isinstance(value, np.ndarray)}
    graph = fold(load(case.model, shapes, allow_nan=True))
    with TemporaryDirectory() as temporary:
        build(graph, Path(temporary) / "artifact", cache)
        with Runner(Path(temporary) / "artifact") as runner:
            results = runner(**case.inputs)
    if not isinstance(results, dict):
        results = {next(iter(case.expected)): results}
    return _difference(case, results)


def build(graph: Graph, folder: Path, cache: Path) -> None:
    """As `graphc build` does it."""
    build_uncached(graph, TARGET, folder, Here(), Cache(cache), TOOLS)


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
            return ROUNDED if _is_rounding(got, expected) else WRONG
    return ""


def _is_rounding(got: Any, expected: Any) -> bool:
    """Whether float32 sums with both signs are as near as such sums can be: to an ulp of the largest result."""
    if expected.dtype.kind != "f" or expected.dtype.itemsize < 4 or not np.isfinite(expected).all():
        return False
    return bool(np.abs(got - expected).max() <= np.finfo(expected.dtype).eps * np.abs(expected).max())


def _warm() -> None:
    """Import and initialise, once for all children, what every case needs; fold computes constants with onnxruntime."""
    ort.onnxruntime()
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> warm (float[4] x) => (float[4] y) { y = Exp(x) }'
    )
    with TemporaryDirectory() as temporary:
        build(fold(load(model)), Path(temporary) / "artifact", Path(temporary) / "cache")


_warm()
