"""Programs whose kernels are written in C: they stand in for compiled ones where the kernels are not what is tested."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from graphc.artifact import Manifest, Quantization
from graphc.backends.emit import emit
from graphc.backends.plan import plan
from graphc.backends.program import Buffer, Call, Kernel, Program
from graphc.backends.toolchain import COMPILE, Toolchain
from graphc.backends.x86 import LEVELS, level_target

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


def compile_kernels(toolchain: Toolchain, folder: Path, *flags: str) -> dict[str, bytes]:
    """Every kernel above as an object file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    objects = {}
    for name, text in KERNELS.items():
        (folder / f"{name}.c").write_text(f"#include <stdint.h>\n{text}\n")
        toolchain.compile(f"{name}.c", f"{name}.o", folder, (*COMPILE, "-Wno-missing-prototypes", *flags))
        objects[name] = (folder / f"{name}.o").read_bytes()
    return objects


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
    objects: Mapping[str, bytes],
    folder: Path,
    toolchain: Toolchain,
    quantization: Mapping[str, Quantization] | None = None,
    io_in_arena: bool = False,
) -> Manifest:
    planned = plan(program, io_in_arena=io_in_arena)
    return emit(program, planned, objects, folder, target=TARGET, toolchain=toolchain, quantization=quantization or {})
