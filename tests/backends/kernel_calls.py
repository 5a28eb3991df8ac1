"""Running one kernel: compiled to an object, linked by the system's C compiler, called through ctypes."""

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from graphc.backends import objects
from graphc.backends.targets import Target, resolve
from graphc.errors import UnsupportedError

LEVELS = ("x86-64-v2", "x86-64-v3", "x86-64-v4")


def host_runs(target: Target) -> bool:
    """Whether this machine executes code for `target`."""
    try:
        native = resolve({"cpu": "native"})
    except UnsupportedError:
        return False
    return target.instructions <= native.instructions


def runnable(cpu: str) -> Target:
    """The target, or a skipped test where this machine cannot run its code."""
    target = resolve({"cpu": cpu})
    if not host_runs(target):
        pytest.skip(f"this machine does not run {cpu}")
    return target


class Compiled:
    """A kernel as a function of arrays; `tasks` is how many it has."""

    def __init__(self, func: Any, target: Target, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler on PATH")
        self.tasks = objects.task_count(func)
        (folder / "kernel.o").write_bytes(objects.object_code(objects.tir_json(func), "kernel", target))
        subprocess.run([compiler, "-shared", "-o", folder / "kernel.so", folder / "kernel.o", "-lm"], check=True)
        self.call = ctypes.CDLL(str(folder / "kernel.so")).kernel

    def __call__(self, *arrays: NDArray[Any], tasks: tuple[int, int] | None = None) -> None:
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        self.call(*pointers, *map(ctypes.c_int32, tasks or (0, self.tasks)))


def integers(rng: np.random.Generator, dtype: str, *shape: int) -> NDArray[Any]:
    """All values of the type alike, its extremes among them."""
    limits = np.iinfo(dtype)
    array = rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    array.flat[:2] = limits.min, limits.max
    return array
