"""Programs whose kernels are written in C: they stand in for compiled ones where the kernels are not what is tested."""

import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from graphc.artifact import Manifest, Quantization, read
from graphc.backends.cache import default_folder
from graphc.backends.emit import NONE, emit
from graphc.backends.plan import plan
from graphc.backends.program import Buffer, Call, Kernel, Program
from graphc.backends.targets import Target, resolve
from graphc.backends.toolchain import FREESTANDING, Toolchain, find
from graphc.backends.toolchain_bare import find_bare
from graphc.backends.x86 import LEVELS, level_target
from graphc.errors import ToolchainError

TARGET = level_target(LEVELS[0])

KERNELS = {
    "scale": """
void scale(const float *x, const float *w, float *y, int32_t begin, int32_t end) {
    for (int32_t i = begin * 16; i < end * 16; ++i) y[i] = x[i] * w[i % 4];
}""",
    "add": """
void add(const float *a, const float *b, float *y, int32_t begin, int32_t end) {
    for (int32_t i = begin * 16; i < end * 16; ++i) y[i] = a[i] + b[i];
}""",
    "total": """
void total(const float *x, double *y, int32_t begin, int32_t end) {
    for (int32_t t = begin; t < end; ++t) { *y = 0; for (int32_t i = 0; i < 64; ++i) *y += (double)x[i]; }
}""",
    "reverse": """
void reverse(const float *x, float *y, int32_t begin, int32_t end) {
    for (int32_t i = begin * 16; i < end * 16; ++i) y[i] = x[63 - i];
}""",
    "count": """
void count(int32_t *y, int32_t begin, int32_t end) {
    for (int32_t i = begin; i < end; ++i) y[i] = i;
}""",
}
DTYPES = {
    "scale": ("float32", "float32", "float32"),
    "add": ("float32", "float32", "float32"),
    "total": ("float32", "float64"),
    "reverse": ("float32", "float32"),
    "count": ("int32",),
}


@cache
def toolchain() -> Toolchain:
    """What this machine has; the test skips where it has no C compiler, zig included."""
    try:
        return find(TARGET.triple, default_folder())
    except ToolchainError as error:
        pytest.skip(str(error))


@cache
def bare_toolchain(cpu: str) -> Toolchain:
    """A compiler for a processor without an operating system; the test skips where there is none."""
    try:
        return find_bare(resolve({"cpu": cpu}), default_folder())
    except ToolchainError as error:
        pytest.skip(str(error))


@cache
def kernels(bare: str = "") -> Mapping[str, bytes]:
    """Every kernel above as an object file of its own, for this machine or the processor `bare`."""
    objects = {}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in KERNELS:
            write_kernel(name, folder)
            if bare:
                bare_toolchain(bare).compile(f"{name}.c", f"{name}.o", folder, FREESTANDING)
            else:
                toolchain().compile(f"{name}.c", f"{name}.o", folder)
            objects[name] = (folder / f"{name}.o").read_bytes()
    return objects


def write_kernel(name: str, folder: Path) -> Path:
    """`<name>.c`: one kernel as C."""
    path = folder / f"{name}.c"
    path.write_text(f"#include <stdint.h>\n{KERNELS[name]}\n")
    return path


def make(
    calls: list[Call],
    types: Mapping[str, tuple[str, tuple[int, ...]]],
    *,
    inputs: tuple[str, ...] = ("x",),
    outputs: tuple[str, ...] = ("y",),
    constants: Mapping[str, np.ndarray] | None = None,
    aliases: Mapping[str, str] | None = None,
    name: str = "demo",
) -> Program:
    """A Program of these kernels. Each writes its last argument."""
    buffers = {each: Buffer(each, dtype, shape, "scratch") for each, (dtype, shape) in types.items()}
    constants = dict(constants or {})
    buffers |= {each: Buffer(each, array.dtype.name, array.shape, "constant") for each, array in constants.items()}
    kernels = {
        each: Kernel(each, "", DTYPES[each], (True,) * (len(DTYPES[each]) - 1) + (False,))
        for each in dict.fromkeys(call.kernel for call in calls)
    }
    return Program(name, buffers, kernels, tuple(calls), inputs, outputs, constants, dict(aliases or {}))


def call(kernel: str, *arguments: str, tasks: int = 4, **in_place: str) -> Call:
    return Call(kernel, arguments, tasks, (f"{kernel} -> {arguments[-1]}",), arguments[-1:], in_place)


FLOATS = ("float32", (4, 16))
WEIGHTS = {"w": np.array([1, -2, 0.5, 3], np.float32), "v": np.array([2, 2, -1, 1], np.float32)}


def demo(name: str = "demo") -> Program:
    """y = reverse(x * w + x * v) + x, total = sum(y); the middle works in place."""
    calls = [
        call("scale", "x", "w", "a"),
        call("scale", "x", "v", "b"),
        call("add", "a", "b", "c", c="a"),
        call("reverse", "c", "d"),
        call("add", "d", "x", "y", y="d"),
        call("total", "y", "total", tasks=1),
    ]
    types = {**dict.fromkeys("xabcdy", FLOATS), "total": ("float64", ())}
    return make(calls, types, outputs=("y", "total"), constants=WEIGHTS, name=name)


def demo_reference(x: np.ndarray) -> dict[str, np.ndarray]:
    """What `demo` computes, in numpy and in the same order of operations."""
    index = np.arange(64) % 4
    flat = x.reshape(-1)
    y = (flat * WEIGHTS["w"][index] + flat * WEIGHTS["v"][index])[::-1] + flat
    return {"y": y.reshape(x.shape), "total": np.float64(sum(float(value) for value in y))}


def build(
    program: Program,
    folder: Path,
    *,
    target: Target = TARGET,
    quantization: Mapping[str, Quantization] = NONE,
    io_in_arena: bool = False,
) -> Manifest:
    """Plan and emit `program` to `folder`."""
    planned = plan(program, io_in_arena=io_in_arena)
    return emit(program, planned, kernels(), folder, target=target, toolchain=toolchain(), quantization=quantization)


def build_bare(program: Program, folder: Path, target: Target) -> Manifest:
    """The same for a target without an operating system."""
    planned = plan(program, alignment=8, io_in_arena=True)
    tools = bare_toolchain(target.cpu)
    return emit(program, planned, kernels(target.cpu), folder, target=target, toolchain=tools)


def compile_and_run(main: str, folder: Path, work: Path, *flags: str, kernels_as_c: bool = False) -> str:
    """Build a C program on the artifact in `folder` with all warnings as errors, run it, and return what it prints.

    `kernels_as_c` compiles the artifact's own C and its kernels with the same flags, instead of taking the archive.
    """
    compiler, name = toolchain().compiler, read(folder).identifier
    (work / "main.c").write_text(f'#include "{name}.h"\n#include <stdio.h>\n#include <stdlib.h>\n{main}\n')
    sources = [str(folder / f"lib{name}.a")]
    if kernels_as_c:
        sources = [str(folder / f"{name}.c"), *(str(write_kernel(each, work)) for each in KERNELS)]
        sources += [str(extract_weights(folder, work))]
    strict = ["-std=c99", "-O1", "-g", "-Wall", "-Wextra", "-Wconversion", "-Werror", f"-I{folder}"]
    command = [*compiler, *strict, "main.c", *sources, *flags, "-o", "main", "-lpthread", "-lm"]
    compiled = subprocess.run(command, cwd=work, check=False, capture_output=True, text=True, timeout=300)
    assert compiled.returncode == 0, compiled.stderr
    ran = subprocess.run([work / "main"], check=False, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def extract_weights(folder: Path, work: Path) -> Path:
    """The object of the weights, taken from the archive."""
    name = read(folder).identifier
    command = [*toolchain().archiver, "x", str(folder / f"lib{name}.a"), f"{name}_weights.o"]
    subprocess.run(command, cwd=work, check=True, timeout=60)
    return work / f"{name}_weights.o"
