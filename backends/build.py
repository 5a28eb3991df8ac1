"""One target, from a graph to an artifact's folder; from the cache where the same was built before.

    Graph -> decompose -> integerize -> lower (compile server) -> plan -> kernels (compile server) -> C -> libraries

What is cached whole is not lowered again: TVM is not even imported.
"""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from graphc import artifact
from graphc.artifact import Manifest, Quantization
from graphc.backends import toolchain
from graphc.backends.cache import Cache, key
from graphc.backends.choices import NO_CHOICES, Choices
from graphc.backends.integer import integerize
from graphc.backends.program import Program
from graphc.backends.targets import Target
from graphc.backends.toolchain import Toolchain
from graphc.backends.worker import Job, Server, Watcher, note
from graphc.borders import input_grids, output_grids
from graphc.errors import UnsupportedError
from graphc.ir import Graph
from graphc.ir.sparse import densified
from graphc.ir.text import fingerprint
from graphc.progress import Progress, silent

if TYPE_CHECKING:
    from graphc.backends.patches import Patched
    from graphc.backends.plan import MemoryPlan

LOWER = "graphc.backends.lower:lower_job"
MOST_ELEMENTS = 2**31 - 1
EPOCH = (1980, 1, 1, 0, 0, 0)


def build_target(
    graph: Graph,
    target: Target,
    folder: Path,
    server: Server,
    cache: Cache,
    *,
    choices: Choices = NO_CHOICES,
    progress: Progress = silent,
) -> Manifest:
    """Compile `graph`, whose name becomes the artifact's, for `target` into `folder`.

    `choices` are how to compute nodes of `integerized(graph)` as it is laid out, where not as the cost model says.
    Raises UnsupportedError for a node that has no kernel, ToolchainError where the C compiler is missing or fails,
    InternalError where TVM fails; each names its node.
    """
    tools = toolchain.find_for(target, cache.folder)
    made_from = (graph.name, fingerprint(graph), target.description(), tools.name, tools.version, tools.compiler)
    chosen = {name: choice.data() for name, choice in choices.items()}
    name = key("artifact", *made_from, chosen)
    kept = cache.get(name)
    if kept is not None:
        unpack(kept, folder)
        return artifact.read(folder)
    manifest = build_uncached(graph, target, folder, server, cache, tools, choices=choices, progress=progress)
    cache.put(name, pack(folder))
    return manifest


def build_uncached(
    graph: Graph,
    target: Target,
    folder: Path,
    server: Server,
    cache: Cache,
    tools: Toolchain,
    *,
    choices: Choices = NO_CHOICES,
    progress: Progress = silent,
) -> Manifest:
    """`build_target` with the C compiler `tools`, and nothing but kernels cached."""
    grids = {**input_grids(graph), **output_grids(graph)}
    quantization = {name: Quantization(grid.scale, grid.zero_point) for name, grid in grids.items()}
    return build_integerized(
        integerized(graph),
        target,
        folder,
        server,
        cache,
        tools,
        quantization=quantization,
        choices=choices,
        progress=progress,
    )


def integerized(graph: Graph) -> Graph:
    """The graph in operators that have kernels, integers for quantized ones."""
    from graphc.backends.decompose import decompose  # here, because a build that is cached whole needs none of it

    return integerize(decompose(densified(graph), kernels=True))


def build_integerized(
    graph: Graph,
    target: Target,
    folder: Path,
    server: Server,
    cache: Cache,
    tools: Toolchain,
    *,
    quantization: Mapping[str, Quantization] = MappingProxyType({}),
    choices: Choices = NO_CHOICES,
    progress: Progress = silent,
) -> Manifest:
    """`build_uncached` for a graph in the integer arithmetic."""
    _require_indexable(graph)
    program = lowered(graph, target, server, choices, progress)
    helpful = _patches(graph, program, target)
    if helpful is not None:
        cut = lowered(graph, replace(target, patches=helpful.count), server, choices, progress)
        program = cut if _missing(cut, target)[0] <= 0 else program
    return build_program(
        program, target, folder, server, cache, tools, quantization=quantization, helpful=helpful, progress=progress
    )


def _missing(program: Program, target: Target) -> tuple[int, int]:
    """(bytes by which the arena is larger than the board's memory, bytes that are planned)."""
    from graphc.backends.fit import missing_ram  # here, as below

    planned, memory = _planned(program, target)
    return missing_ram(planned, memory, target), memory.bytes


def _planned(program: Program, target: Target) -> tuple[Program, "MemoryPlan"]:
    """(the program with constants as they are stored and the kernels that its plan calls, that plan)."""
    from graphc.backends.coded_weights import store  # here, because a build that is cached whole needs none of it
    from graphc.backends.plan import overlapped, plan

    stored = store(program, target.weights)
    if target.system:
        return stored, plan(stored)
    memory = plan(stored, alignment=target.alignment, io_in_arena=True, overlap=True)
    return overlapped(stored, memory), memory


def _patches(graph: Graph, program: Program, target: Target) -> "Patched | None":
    """Patches that lower the peak, where the arena is too large for the board and nothing is asked for."""
    if target.board is None or target.system or target.patches:
        return None
    from graphc.backends.patches import laid_out, peak_bytes, suggested

    missing, planned = _missing(program, target)
    if missing <= 0:
        return None
    graph = laid_out(graph)
    limit = min(peak_bytes(graph), planned) - missing  # patches may leave nothing to overlap
    return suggested(graph, limit, target.alignment)


def build_program(
    program: Program,
    target: Target,
    folder: Path,
    server: Server,
    cache: Cache,
    tools: Toolchain,
    *,
    quantization: Mapping[str, Quantization] = MappingProxyType({}),
    helpful: "Patched | None" = None,
    progress: Progress = silent,
) -> Manifest:
    """`build_uncached` for a program that is lowered already; `helpful` is named where it does not fit."""
    from graphc.backends.emit import emit  # here, because a build that is cached whole needs none of it
    from graphc.backends.fit import check_memory
    from graphc.backends.kernels import compile_kernels
    from graphc.backends.prepared import prepared

    program = prepared(program, target)
    stored, memory = _planned(program, target)
    check_memory(stored, memory, target, helpful)
    code = compile_kernels(stored, target, cache, server, _watching(progress, "compile kernels"))
    progress("link", 0.0)
    manifest = emit(
        stored, memory, code, folder, target=target, toolchain=tools, quantization=quantization, cache=cache
    )
    progress("link", 1.0)
    return manifest


def _require_indexable(graph: Graph) -> None:
    for name, kind in graph.types.items():
        if kind.is_static and kind.size > MOST_ELEMENTS:
            node = graph.producers.get(name)
            raise UnsupportedError(
                node.label if node else f"input '{name}'",
                f"'{name}' would be {kind}; kernels count at most {MOST_ELEMENTS} elements.",
                "Give smaller shapes under `model: inputs:`.",
            )


def lowered(
    graph: Graph, target: Target, server: Server, choices: Choices = NO_CHOICES, progress: Progress = silent
) -> Program:
    """The program of a graph in the integer arithmetic."""
    job = Job(LOWER, (graph, target, note, dict(choices)), f"model '{graph.name}'")
    progress("lower", 0.0)
    program: Program = server.run([job], progress=_watching(progress, "lower"))[0]
    return replace(program, name=graph.name)


def pack(folder: Path) -> bytes:
    """The files of a folder as bytes that depend on their names, content and modes alone."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), EPOCH)
                entry.external_attr = path.stat().st_mode << 16
                archive.writestr(entry, path.read_bytes())
    return content.getvalue()


def unpack(content: bytes, folder: Path) -> None:
    """The files that were packed, in `folder`."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for entry in archive.infolist():
            path = folder / entry.filename
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(entry))
            path.chmod(entry.external_attr >> 16 & 0o777)


def _watching(progress: Progress, stage: str) -> Watcher:
    return lambda done, total, _text: progress(stage, done / max(total, 1))
