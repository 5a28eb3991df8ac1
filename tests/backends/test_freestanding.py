"""What graphc brings where there is no C library: the same bits as the library of this machine."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from graphc.backends import freestanding
from graphc.backends.emit_c import template
from graphc.backends.program import Call
from graphc.backends.toolchain import FREESTANDING
from graphc.errors import UnsupportedError
from tests.backends.c_programs import bare_toolchain

EXACT = {
    "nearbyintf": np.rint,
    "rintf": np.rint,
    "roundevenf": np.rint,
    "truncf": np.trunc,
    "floorf": np.floor,
    "ceilf": np.ceil,
    "roundf": lambda x: (np.trunc(x.astype(np.float64) + np.copysign(0.5, x))).astype(np.float32),
    "sqrtf": np.sqrt,
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The functions under names of their own, as a library of this machine."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler on PATH")
    folder = tmp_path_factory.mktemp("freestanding")
    (folder / "own.c").write_text(template(freestanding.SOURCE))
    names = [f for name in freestanding.own_functions() for f in (f"-DNEED_{name}", f"-D{name}=own_{name}")]
    flags = [flag for flag in FREESTANDING if flag != "-Os"]
    command = ["cc", "-O1", *flags, "-Werror", *names, "-shared", "-fPIC", "own.c", "-o", "own.so"]
    subprocess.run(command, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "own.so"))


def test_products_are_rounded_as_the_arithmetic_says(library: ctypes.CDLL) -> None:
    """Sums of all magnitudes, scales that make ties or miss them by a bit, and the ends of both ranges."""
    function, rng, count = library.own_graphc_rounded_product, np.random.default_rng(0), 40_000
    function.argtypes, function.restype = [ctypes.c_int32, ctypes.c_int32], ctypes.c_int32
    sums = rng.integers(-(2**31), 2**31, count) >> rng.integers(0, 31, count)
    sums[:4] = 0, 2**31 - 1, -(2**31), 2**24 + 1
    ties = (rng.integers(0, 300, count) + 0.5) / np.maximum(np.abs(sums), 1)
    near = ties.astype(np.float32).view(np.int32) + rng.integers(-2, 3, count).astype(np.int32)
    every = rng.integers(1, 0x7F7FFFFF, count).astype(np.int32)
    halves = (rng.integers(1, 1024, count) / 1024).astype(np.float32).view(np.int32)
    for scales in (near, every, halves):
        found = np.array([function(int(s), int(f)) for s, f in zip(sums, scales, strict=True)])
        with np.errstate(over="ignore"):
            expected = np.rint(sums.astype(np.float32) * scales.view(np.float32))
        np.testing.assert_array_equal(np.clip(found, -(2**20), 2**20), np.clip(expected, -(2.0**20), 2.0**20))


@pytest.mark.parametrize("name", EXACT)
def test_every_bit_is_the_operations(name: str, library: ctypes.CDLL) -> None:
    function = getattr(library, f"own_{name}")
    function.argtypes, function.restype = [ctypes.c_float], ctypes.c_float
    rng = np.random.default_rng(0)
    numbers = np.concatenate(
        [
            rng.integers(0, 1 << 32, 20_000, np.uint64).astype(np.uint32).view(np.float32),  # all exponents
            (rng.integers(-64, 64, 2_000) / 4).astype(np.float32),  # ties
            np.array([0.0, -0.0, np.inf, -np.inf, 0.49999997, -0.49999997, 8388609.0, 1e-45], np.float32),
        ]
    )
    numbers = numbers[~np.isnan(numbers)]
    numbers = np.abs(numbers) if name == "sqrtf" else numbers
    found = np.array([function(float(x)) for x in numbers], np.float32)
    with np.errstate(invalid="ignore"):
        expected = np.asarray(EXACT[name](numbers), np.float32)
    different = found.view(np.uint32) != expected.view(np.uint32)
    assert not different.any(), (numbers[different][:5], found[different][:5], expected[different][:5])


def test_the_smaller_and_the_larger_leave_out_nan(library: ctypes.CDLL) -> None:
    for name, expected in (("fminf", 1.0), ("fmaxf", 2.0)):
        function = getattr(library, f"own_{name}")
        function.argtypes, function.restype = [ctypes.c_float] * 2, ctypes.c_float
        assert function(1.0, 2.0) == function(2.0, 1.0) == expected
        assert function(float("nan"), 1.0) == function(1.0, float("nan")) == 1.0


def test_memory_moves_over_itself(library: ctypes.CDLL) -> None:
    for source, target in ((0, 3), (3, 0), (2, 2)):
        data = ctypes.create_string_buffer(bytes(range(20)), 20)
        start = ctypes.addressof(data)
        library.own_memmove(ctypes.c_void_p(start + target), ctypes.c_void_p(start + source), ctypes.c_size_t(12))
        expected = bytearray(range(20))
        expected[target : target + 12] = bytes(range(source, source + 12))
        assert data.raw == bytes(expected)


def test_a_call_of_a_c_library_is_refused_by_name(tmp_path: Path) -> None:
    text = "float powf(float, float); float nearbyintf(float); float k(float x); float k(float x)"
    for body, name in (("{ return nearbyintf(x); }", "good"), ("{ return powf(x, 3.5f) + nearbyintf(x); }", "bad")):
        (tmp_path / f"{name}.c").write_text(f"{text} {body}")
        bare_toolchain("cortex-m4").compile(f"{name}.c", f"{name}.o", tmp_path, FREESTANDING)
    objects = {name: (tmp_path / f"{name}.o").read_bytes() for name in ("good", "bad")}
    calls = {name: Call(name, (), 1, (f"node of {name}",), ()) for name in objects}
    assert freestanding.needed([calls["good"]], objects) == ["nearbyintf"]
    with pytest.raises(UnsupportedError, match=r"node of bad: its code needs powf .*kernel bad"):
        freestanding.needed(calls.values(), objects)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
def test_arithmetic_goes_by_the_names_that_kernels_call(name: str, library: ctypes.CDLL) -> None:
    function = getattr(library, f"own___{name}sf3")
    function.argtypes, function.restype = [ctypes.c_float, ctypes.c_float], ctypes.c_float
    numbers = np.random.default_rng(0).standard_normal((200, 2)).astype(np.float32)
    operation = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[name]
    assert [function(float(x), float(y)) for x, y in numbers] == [float(operation(x, y)) for x, y in numbers]
