"""`emit: c`: portable C99 that gives what the objects give, without a warning."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

import graphc
from graphc.artifact import read
from graphc.backends.emit_sources import helper
from graphc.backends.toolchain import find_zig
from graphc.emulated_board import EMULATOR
from graphc.errors import InternalError, UnsupportedError
from graphc.verify import verify
from tests import small

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-O1", "-c")

FUNCTIONS = """
<ir_version: 10, opset_import: ["" : 21]>
many (float[2, 3, 8, 8] x, int64[4] indices) => (float[2, 3, 4, 4] pooled, float[2, 192] soft, int64[2, 3] best, \
float[4, 3, 8, 8] picked, float[2, 3, 8, 8] curve, bool[2, 3, 8, 8] large, int32[2, 3, 8, 8] whole)
<float half = {0.5}, int64[2] flat = {2, 192}, float three = {3.0}, int64[1] last = {3}>
{
    pooled = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
    lines = Reshape(x, flat)
    soft = Softmax <axis = 1> (lines)
    squares = Mul(x, x)
    sums = ReduceSum <keepdims = 0> (squares, last)
    best = ArgMax <axis = 2, keepdims = 0> (sums)
    picked = Gather <axis = 0> (x, indices)
    tripled = Mul(x, three)
    e = Exp(x)
    t = Tanh(e)
    f = Floor(x)
    s = Sqrt(e)
    r = Round(tripled)
    p = Pow(e, t)
    h = Sinh(x)
    c = Cosh(x)
    curve = Sum(t, f, s, r, p, h, c)
    large = Greater(x, half)
    whole = Cast <to = 6> (tripled)
}
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> graphc.Build:
    """The small quantized model as objects and as C."""
    folder = tmp_path_factory.mktemp("emit_c")
    spec = small.write(folder)
    text = spec.read_text()
    assert "{cpu: native}" in text
    spec.write_text(text.replace("{cpu: native}", "{cpu: native}, {cpu: native, emit: c}"))
    return graphc.compile(None, spec, out=folder / "build")


def warn(compiler: list[str], source: Path) -> str:
    """What a compiler says about a file, all warnings being errors."""
    command = [*compiler, *STRICT, source.name, "-o", "x.o"]
    done = subprocess.run(command, check=False, cwd=source.parent, capture_output=True, text=True)
    return done.stderr if done.returncode else ""


def compilers() -> list[list[str]]:
    zig = find_zig()
    found = [[name] for name in ("gcc", "clang") if shutil.which(name)] + ([[str(zig), "cc"]] if zig else [])
    return found or pytest.skip("no C compiler on PATH")


def test_integers_equal_those_of_the_objects(build: graphc.Build) -> None:
    result = verify(build.artifact("native-c"), samples=16)
    assert result.agrees and result.integer_nodes > 0
    rng = np.random.default_rng(0)
    with build.open("native") as objects, build.open("native-c") as text:
        for _ in range(8):
            feeds = [rng.normal(size=t.shape).astype(t.dtype) for t in objects.inputs]
            assert np.array_equal(objects(*feeds), text(*feeds))


def test_no_compiler_warns(build: graphc.Build) -> None:
    manifest = read(build.artifact("native-c"))
    for compiler in compilers():
        assert warn(compiler, build.artifact("native-c") / manifest.files.source) == ""


def test_two_files_are_all(build: graphc.Build, tmp_path: Path) -> None:
    """No system header but those of every C99 compiler, and nothing left to find at link time but memory functions."""
    manifest = read(build.artifact("native-c"))
    text = (build.artifact("native-c") / manifest.files.source).read_text()
    included = {line.split()[1] for line in text.splitlines() if line.startswith("#include")}
    assert included <= {f'"{manifest.files.header}"', "<stddef.h>", "<stdint.h>"}
    assert "__attribute__" not in text.partition("#define OWN static")[0]
    assert manifest.max_threads == 1


def test_a_damaged_weight_is_found(build: graphc.Build, tmp_path: Path) -> None:
    """The checksum covers every array."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler on PATH")
    manifest = read(build.artifact("native-c"))
    name, folder = manifest.identifier, build.artifact("native-c")
    text = (folder / manifest.files.source).read_text()
    start = text.index("{", text.index("static const int8_t w")) + 1
    end = text.index(",", start)
    for source, expected in ((text, 0), (text[:start] + f" {int(text[start:end]) ^ 1}" + text[end:], 6)):
        (tmp_path / "changed.c").write_text(source)
        main = f"""
#include "{name}.h"
static uint64_t arena[{name.upper()}_ARENA_BYTES / 8 + 1];
int main(void) {{ {name}_options o = {{0, 0, 0, 1, 0}}; return {name}_init(arena, &o); }}
"""
        (tmp_path / "main.c").write_text(main)
        subprocess.run(["cc", f"-I{folder}", "main.c", "changed.c", "-o", "main"], cwd=tmp_path, check=True)
        assert subprocess.run([tmp_path / "main"], check=False).returncode == expected


def test_functions_of_floats_and_integers(tmp_path: Path) -> None:
    model = parser.parse_model(FUNCTIONS)
    onnx.save(model, tmp_path / "many.onnx")
    spec = {"model": {"path": str(tmp_path / "many.onnx")}, "targets": [{"cpu": "native", "emit": "c"}]}
    built = graphc.compile(None, spec, out=tmp_path / "build")
    result = verify(built.artifact("native-c"), samples=8)
    assert result.agrees, [c for c in result.outputs if not c.agrees]
    for compiler in compilers():
        assert warn(compiler, built.artifact("native-c") / "many.c") == ""


@pytest.mark.parametrize(("cpu", "rounds"), [("cortex-m7", ""), ("cortex-m3", "graphc_rounded_product")])
def test_the_same_on_an_emulated_board(cpu: str, rounds: str, tmp_path: Path) -> None:
    """Rounding is integer code where there is no floating-point unit, and needs no function of a library anywhere."""
    if shutil.which(EMULATOR) is None:
        pytest.skip(f"no {EMULATOR} on PATH: apt install qemu-system-arm")
    spec = small.write(tmp_path)
    spec.write_text(spec.read_text().replace("{cpu: native}", f"{{cpu: {cpu}, emit: c}}"))
    built = graphc.compile(None, spec, out=tmp_path / "build")
    text = (built.artifact(f"{cpu}-c") / read(built.artifact(f"{cpu}-c")).files.source).read_text()
    needs = {line.split("NEED_")[1] for line in text.splitlines() if line.startswith("#define NEED_")}
    assert needs - {"nearbyintf"} == ({rounds} if rounds else set()), "nearbyintf: of the model's float input"
    assert verify(built.artifact(f"{cpu}-c"), samples=8).agrees


def test_what_needs_a_library_is_refused(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 21]> m (float[4] x) => (float[4] y) { y = Sin(x) }'
    onnx.save(parser.parse_model(text), tmp_path / "sin.onnx")
    spec = {"model": {"path": str(tmp_path / "sin.onnx")}, "targets": [{"cpu": "native", "emit": "c"}]}
    with pytest.raises(UnsupportedError, match="its code needs sinf"):
        graphc.compile(None, spec, out=tmp_path / "build")
    assert not (tmp_path / "build").exists() or not list((tmp_path / "build").iterdir())


def test_helpers_are_known_by_name() -> None:
    assert "a > b ? a : b" in helper("larger_float")
    assert "static float bits_int32_t_to_float(int32_t x)" in helper("bits_int32_t_to_float")
    with pytest.raises(InternalError):
        helper("unknown_float")


def test_literals_have_their_type() -> None:
    from graphc.backends.c_kernel import integer  # imports TVM

    cases = {("int32", 5): "5", ("int32", -5): "(-5)", ("int32", 70000): "INT32_C(70000)", ("int8", -3): "(int8_t)(-3)"}
    cases |= {("uint32", 7): "UINT32_C(7)", ("int64", 9): "INT64_C(9)", ("int64", -9): "(-INT64_C(9))"}
    cases |= {("int32", -(2**31)): "(-INT32_C(2147483647) - 1)", ("bool", 1): "1"}
    assert {key: integer(key[1], key[0]) for key in cases} == cases
