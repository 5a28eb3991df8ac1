"""Write an artifact: a planned Program and its kernels' objects become a folder that needs nothing of graphc.

    Program, MemoryPlan, objects -> C, weights -> lib<name>.so, lib<name>.a, <name>.h, <name>.c, CMakeLists.txt,
    manifest.json

Everything is made in a folder beside the target, which then takes its place: there is never half an artifact.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from graphc import artifact
from graphc.artifact import Footprint, Manifest, Quantization, Step, Work
from graphc.backends import device, emit_c, emit_weights, fit, freestanding
from graphc.backends.elf import loaded_bytes
from graphc.backends.emit_c import Unit
from graphc.backends.emit_weights import Weights
from graphc.backends.plan import MemoryPlan
from graphc.backends.program import Program
from graphc.backends.stack import stack_bound
from graphc.backends.targets import Target
from graphc.backends.toolchain import COMPILE, FREESTANDING, Toolchain
from graphc.errors import InternalError, UnsupportedError
from graphc.version import VERSION

MAX_WEIGHTS = (1 << 31) - (1 << 26)
"""Bytes that the small code model reaches, less room for code."""

FUNCTIONS = ("close", "init", "profile", "run")

NONE: Mapping[str, Quantization] = MappingProxyType({})


class Cache(Protocol):
    """Bytes by key, kept between builds."""

    def get(self, key: str) -> bytes | None: ...

    def put(self, key: str, data: bytes) -> None: ...


def emit(
    program: Program,
    plan: MemoryPlan,
    objects: Mapping[str, bytes],
    folder: Path,
    *,
    target: Target,
    toolchain: Toolchain,
    quantization: Mapping[str, Quantization] = NONE,
    cache: Cache | None = None,
) -> Manifest:
    """Write the artifact of `program` to `folder`, replacing what is there, and return its manifest.

    `objects` holds an object file for each kernel that a call names (with `emit: c`, its C);
    `quantization` is that of inputs and outputs.
    With a `cache` an unchanged C file is not compiled again.
    Raises ToolchainError when the C compiler fails, UnsupportedError for weights past 2 GiB, BudgetError where a
    board's memory is too small, InternalError when program, plan and objects do not fit together.
    """
    if missing := sorted(set(_compiled(program, plan)) - objects.keys()):
        raise InternalError(f"program '{program.name}'", f"kernels without an object: {', '.join(missing)}.")
    weights = emit_weights.lay_out(program, plan if target.emit == "objects" else replace(plan, alignment=1))
    unit = Unit(program, plan, weights, target, quantization, objects, _build_id(program, plan, objects, weights))
    if unit.weights.bytes > MAX_WEIGHTS:
        raise UnsupportedError(
            f"model '{program.name}'",
            f"its weights take {unit.weights.bytes} bytes; one library holds at most {MAX_WEIGHTS}.",
            "Compress the weights (quantize, share_weights) or split the model.",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        work, result = Path(temporary) / "work", Path(temporary) / "result"
        work.mkdir()
        result.mkdir()
        footprint = _build(unit, toolchain, work, cache)
        library = _library(unit)
        described = manifest(unit, toolchain, (work / library).stat().st_size if library else 0, footprint)
        for name in (library, described.files.archive, described.files.header, described.files.source):
            if name is not None:
                shutil.move(work / name, result / name)
        (result / "CMakeLists.txt").write_text(_cmake(unit), encoding="utf-8")
        _write_example(unit, described, toolchain, result / "example")
        (result / artifact.MANIFEST).write_text(described.to_json(), encoding="utf-8")
        _replace(result, folder, Path(temporary) / "before")
    return described


def manifest(unit: Unit, toolchain: Toolchain, library_bytes: int, footprint: Footprint | None) -> Manifest:
    """What `manifest.json` says."""
    plan, prefix = unit.plan, unit.prefix
    steps = [Step(call.nodes, call.kernel, call.tasks, call.work) for call in plan.calls]
    steps += [Step((unit.program.outputs[copy.output],), "", 1, Work(data=2 * copy.bytes)) for copy in plan.copies]
    peak = plan.calls[plan.peak].nodes if plan.peak >= 0 else ()
    weights = unit.weights
    return Manifest(
        format=artifact.FORMAT,
        build=unit.build,
        graphc=VERSION,
        name=unit.program.name,
        identifier=prefix,
        target=unit.target.description(),
        toolchain=artifact.Toolchain(toolchain.name, toolchain.version),
        files=artifact.Files(_library(unit), library_bytes, f"lib{prefix}.a", f"{prefix}.h", f"{prefix}.c"),
        inputs=unit.inputs,
        outputs=unit.outputs,
        arena=artifact.Arena(
            unit.arena_bytes, unit.alignment, unit.state_bytes, plan.lower_bound, peak, unit.program.patches
        ),
        weights=artifact.Weights(weights.bytes, weights.sha256, weights.crc32, _parts(unit)),
        footprint=footprint,
        max_threads=unit.max_threads,
        steps=tuple(steps),
        decisions=unit.program.decisions,
        prepared=unit.program.prepared,
        multiplied=unit.program.multiplied,
    )


def _parts(unit: Unit) -> tuple[artifact.Part, ...]:
    return tuple(artifact.Part(each.nodes, each.packed, each.stored, each.bound) for each in unit.program.coded)


def _compiled(program: Program, plan: MemoryPlan) -> list[str]:
    """The kernels that are objects of their own."""
    named = {call.kernel for call in (*program.setup, *plan.calls)}
    return sorted(name for name in named if name not in program.kernels or not program.kernels[name].c)


def _build_id(program: Program, plan: MemoryPlan, objects: Mapping[str, bytes], weights: Weights) -> str:
    digest = hashlib.sha256(
        repr((VERSION, program.name, program.setup, plan, weights.sha256, weights.offsets)).encode()
    )
    for symbol in _compiled(program, plan):
        digest.update(hashlib.sha256(objects[symbol]).digest())
    return digest.hexdigest()[:16]


def _library(unit: Unit) -> str | None:
    return f"lib{unit.prefix}{unit.target.library_ending}" if unit.target.library_ending else None


def _build(unit: Unit, toolchain: Toolchain, work: Path, cache: Cache | None) -> Footprint | None:
    """Compile, link and archive in `work`. The footprint where there is no operating system."""
    prefix = unit.prefix
    (work / f"{prefix}.h").write_text(emit_c.header(unit), encoding="utf-8")
    (work / f"{prefix}.c").write_text(emit_c.source(unit), encoding="utf-8")
    _compile(unit, toolchain, work, cache)
    names = [f"{prefix}.o", *([] if unit.in_c else _kernels(unit, toolchain, work))]
    footprint = None
    if not unit.target.hosted:
        footprint = _footprint(unit, [(work / name).read_bytes() for name in names])
        fit.check_code(unit, footprint)
        (work / f"{prefix}.h").write_text(emit_c.header(unit, footprint), encoding="utf-8")
    if unit.weights.bytes and not unit.in_c:
        emit_weights.write(unit.weights, work / "weights.bin")
        (work / "weights.s").write_text(emit_c.assembly(unit), encoding="utf-8")
        toolchain.compile("weights.s", f"{prefix}_weights.o", work, flags=())
        names.append(f"{prefix}_weights.o")
    toolchain.archive(names, f"lib{prefix}.a", work)
    library = _library(unit)
    if library is not None:
        toolchain.link(names, library, [f"{prefix}_{name}" for name in FUNCTIONS], work)
    return footprint


def _kernels(unit: Unit, toolchain: Toolchain, work: Path) -> list[str]:
    """Kernels' objects as files, and one with what they call of a C library where there is none."""
    names = []
    for symbol in _compiled(unit.program, unit.plan):
        (work / f"{symbol}.kernel.o").write_bytes(unit.code[symbol])
        names.append(f"{symbol}.kernel.o")
    needed = [] if unit.target.hosted else freestanding.needed(unit.compiled, unit.code)
    if needed:
        (work / "freestanding.c").write_text(freestanding.text(), encoding="utf-8")
        names.append(f"{unit.prefix}_freestanding.o")
        toolchain.compile("freestanding.c", names[-1], work, (*FREESTANDING, *(f"-DNEED_{name}" for name in needed)))
    return names


def _footprint(unit: Unit, objects: list[bytes]) -> Footprint:
    roots = [f"{unit.prefix}_{name}" for name in FUNCTIONS]
    inside = unit.weights.bytes if unit.in_c else 0
    return Footprint(sum(map(loaded_bytes, objects)) - inside, stack_bound(objects, roots))


def _compile(unit: Unit, toolchain: Toolchain, work: Path, cache: Cache | None) -> None:
    """<name>.c -> <name>.o, or the same from the cache."""
    source, output = work / f"{unit.prefix}.c", work / f"{unit.prefix}.o"
    flags: tuple[str, ...] = COMPILE if unit.target.hosted else FREESTANDING
    if unit.in_c:  # what computes is in it
        flags = tuple("-O2" if flag == "-Os" else flag for flag in flags)
    parts = [toolchain.name, toolchain.version, *toolchain.compiler[1:], *flags]
    text = source.read_text(encoding="utf-8") + source.with_suffix(".h").read_text(encoding="utf-8")
    key = hashlib.sha256("\0".join([*parts, text]).encode()).hexdigest()
    known = cache.get(key) if cache is not None else None
    if known is not None:
        output.write_bytes(known)
        return
    toolchain.compile(source.name, output.name, work, flags)
    if cache is not None:
        cache.put(key, output.read_bytes())


def _cmake(unit: Unit) -> str:
    threads = f"find_package(Threads REQUIRED)\ntarget_link_libraries({unit.prefix} INTERFACE Threads::Threads m)\n"
    libraries = threads if unit.target.system else ""
    text = emit_c.template("CMakeLists_c.txt.in" if unit.in_c else "CMakeLists.txt.in")
    return emit_c.fill(text, prefix=unit.prefix, libraries=libraries)


def _write_example(unit: Unit, manifest: Manifest, toolchain: Toolchain, folder: Path) -> None:
    """A project to start from, for a board without an operating system."""
    board = unit.target.board
    if board is None or board.flash is None or unit.target.hosted:
        return
    folder.mkdir()
    flags = [flag for flag in toolchain.compiler if flag.startswith("-m")]
    for name, text in device.example(manifest, board, flags).items():
        (folder / name).write_text(text, encoding="utf-8")


def _replace(result: Path, folder: Path, before: Path) -> None:
    """Put `result` where `folder` is; the old one goes to `before`, to be deleted with the temporary folder."""
    if folder.exists():
        folder.rename(before)
    try:
        result.rename(folder)
    except OSError:
        if before.exists():
            before.rename(folder)
        raise
