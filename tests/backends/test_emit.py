"""Artifacts as a whole: what is written, that it runs, that it is the same everywhere, that failures leave nothing."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from graphc import runner
from graphc.artifact import Quantization, read
from graphc.backends.cache import Cache
from graphc.backends.emit import emit
from graphc.backends.plan import plan
from graphc.backends.targets import Target
from graphc.backends.toolchain import Toolchain
from graphc.errors import InputError, InternalError, ToolchainError
from tests.backends import c_programs
from tests.backends.c_programs import FLOATS, TARGET, build, call, demo, demo_reference, make, toolchain

X = np.random.default_rng(7).normal(size=(4, 16)).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 64])
def test_results_are_those_of_numpy_for_any_number_of_threads(tmp_path: Path, threads: int) -> None:
    build(demo(), tmp_path / "demo")
    expected = demo_reference(X)
    with runner.open(tmp_path / "demo", threads=threads) as model:
        for _ in range(50):
            result = model(X)
            assert all(np.array_equal(result[name], expected[name]) for name in expected)


def test_the_folder_holds_what_it_says(tmp_path: Path) -> None:
    written = build(demo(), tmp_path / "demo", quantization={"x": Quantization(0.1, -3)})
    names = {"libdemo.so", "libdemo.a", "demo.h", "demo.c", "manifest.json", "CMakeLists.txt"}
    assert {path.name for path in (tmp_path / "demo").iterdir()} == names
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert read(tmp_path / "demo") == written
    assert written.arena.bytes == 1024 + 512
    assert written.arena.lower_bound == 512
    assert written.inputs[0].quantization == Quantization(0.1, -3)
    assert [step.tasks for step in written.steps] == [4, 4, 4, 4, 4, 1]


def test_equal_builds_have_equal_bytes(tmp_path: Path) -> None:
    for folder in ("one", "another/and a longer name"):
        build(demo(), tmp_path / folder / "demo")
    for file in sorted((tmp_path / "one/demo").iterdir()):
        other = tmp_path / "another/and a longer name/demo" / file.name
        assert file.read_bytes() == other.read_bytes(), file.name
        assert str(tmp_path).encode() not in file.read_bytes(), file.name


def test_libraries_need_the_c_library_alone_and_show_four_functions(tmp_path: Path) -> None:
    build(demo(), tmp_path / "demo")
    if not shutil.which("readelf"):
        pytest.skip("no readelf")
    library = tmp_path / "demo/libdemo.so"
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    libraries = {line.split("[")[1].split("]")[0] for line in needed.splitlines() if "(NEEDED)" in line}
    assert libraries <= {"libc.so.6", "libpthread.so.0", "libm.so.6"}
    symbols = subprocess.run(["readelf", "--dyn-syms", "-W", library], capture_output=True, text=True, check=True)
    shown = {line.split()[-1] for line in symbols.stdout.splitlines() if " UND " not in line and " FUNC " in line}
    assert shown == {"demo_init", "demo_run", "demo_profile", "demo_close"}


NAMES = [
    ("int", "float"),
    ("input:0", "output/1"),
    ("入力", "出力"),
    ("X", "x"),
    ("arena", "threads"),
    ("linux", "NULL"),
    ("1st", ""),
    ("a*/b", "/*??/\n\\"),
    ("state", "s"),
    ("x" * 300, "x" * 301),
    ("step_0", "runtime_open"),
    ('quo"te', "naïve Ünï"),
]


@pytest.mark.parametrize(("given", "returned"), NAMES)
def test_any_name_will_do(tmp_path: Path, given: str, returned: str) -> None:
    types = {given: FLOATS, returned: FLOATS, "second": ("float64", ())}
    calls = [call("reverse", given, returned), call("total", returned, "second", tasks=1)]
    program = make(calls, types, inputs=(given,), outputs=(returned, "second"), name=given)
    written = build(program, tmp_path / "model")
    with runner.open(tmp_path / "model", threads=2) as model:
        result = model(**{given: X})
    assert np.array_equal(result[returned], X.reshape(-1)[::-1].reshape(X.shape))
    main = f"int main(void) {{ return {written.identifier}_init(NULL, NULL) == 1 ? 0 : 1; }}"
    c_programs.compile_and_run(main, tmp_path / "model", tmp_path)
    source = (tmp_path / "model" / written.files.source).read_text()
    assert source.isascii()


@pytest.mark.parametrize("name", ["sem", "pthread_mutex", "mtx", "atomic", "9", "", "C++", "for"])
def test_a_model_name_never_meets_the_c_library(tmp_path: Path, name: str) -> None:
    written = build(replace(demo(), name=name), tmp_path / "model")
    main = f"""#include <pthread.h>
    #include <semaphore.h>
    static uint8_t arena[{written.identifier.upper()}_ARENA_BYTES] __attribute__((aligned(64)));
    int main(void) {{ sem_t s; sem_init(&s, 0, 1); return {written.identifier}_init(arena, NULL); }}"""
    c_programs.compile_and_run(main, tmp_path / "model", tmp_path)
    assert read(tmp_path / "model").name == name


def test_a_model_may_have_no_input_and_many_outputs(tmp_path: Path) -> None:
    names = tuple(f"y{index}" for index in range(40))
    calls = [call("count", name, tasks=index + 1) for index, name in enumerate(names)]
    types = {name: ("int32", (index + 1,)) for index, name in enumerate(names)}
    build(make(calls, types, inputs=(), outputs=names), tmp_path / "model")
    with runner.open(tmp_path / "model", threads=3) as model:
        result = model()
    assert list(result) == list(names)
    assert all(np.array_equal(result[name], np.arange(index + 1)) for index, name in enumerate(names))


def test_outputs_may_be_inputs_constants_views_and_each_other(tmp_path: Path) -> None:
    types = {
        "x": FLOATS,
        "y": FLOATS,
        "flat": ("float32", (64,)),
        "passed": ("float32", (64,)),
        "weights": ("float32", (2, 2)),
    }
    program = make(
        [call("reverse", "x", "y")],
        types,
        outputs=("flat", "y", "passed", "weights", "x"),
        constants={"w": c_programs.WEIGHTS["w"]},
        aliases={"flat": "y", "passed": "x", "weights": "w"},
    )
    build(program, tmp_path / "model")
    with runner.open(tmp_path / "model", threads=2) as model:
        result = model(X)
    reversed_ = X.reshape(-1)[::-1]
    assert np.array_equal(result["flat"], reversed_)
    assert np.array_equal(result["y"], reversed_.reshape(4, 16))
    assert np.array_equal(result["passed"], X.reshape(-1))
    assert np.array_equal(result["weights"], c_programs.WEIGHTS["w"].reshape(2, 2))
    assert np.array_equal(result["x"], X)


def test_empty_tensors_pass_through(tmp_path: Path) -> None:
    types = {"x": ("float32", (0, 3)), "same": ("float32", (3, 0)), "y": ("int32", (2,))}
    program = make([call("count", "y", tasks=2)], types, outputs=("same", "y"), aliases={"same": "x"})
    build(program, tmp_path / "model")
    with runner.open(tmp_path / "model") as model:
        result = model(np.zeros((0, 3), np.float32))
    assert result["same"].shape == (3, 0)
    assert result["y"].tolist() == [0, 1]


def test_equal_constants_are_stored_once(tmp_path: Path) -> None:
    calls = [call("scale", "x", "w", "a"), call("scale", "a", "again", "y")]
    constants = {"w": c_programs.WEIGHTS["w"], "again": c_programs.WEIGHTS["w"].copy(), "unused": np.ones(9)}
    written = build(make(calls, dict.fromkeys("xay", FLOATS), constants=constants), tmp_path / "model")
    assert written.weights.bytes == 64


def test_damaged_weights_are_noticed(tmp_path: Path) -> None:
    build(demo(), tmp_path / "demo")
    library = tmp_path / "demo/libdemo.so"
    data = bytearray(library.read_bytes())
    at = data.index(c_programs.WEIGHTS["v"].tobytes())
    data[at] ^= 1
    library.write_bytes(data)
    runner.open(tmp_path / "demo").close()
    with pytest.raises(InputError, match="checksum is wrong"):
        runner.open(tmp_path / "demo", checksum=True)


def test_a_library_of_another_build_is_refused(tmp_path: Path) -> None:
    build(demo(), tmp_path / "demo")
    with runner.open(tmp_path / "demo") as model:
        build(replace(demo(), outputs=("total", "y")), tmp_path / "demo")
        # The system's loader goes by the path and finds the library that is still open.
        with pytest.raises(InputError, match="another build"):
            runner.open(tmp_path / "demo")
        model(X)
    with runner.open(tmp_path / "demo") as model:
        assert list(model(X)) == ["total", "y"]


def test_the_cache_spares_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    original = Toolchain.compile

    def compile_(self: Toolchain, source: str, *arguments: object, **named: object) -> None:
        compiled.append(source)
        original(self, source, *arguments, **named)

    program, cache, tools, objects = demo(), Cache(tmp_path / "cache"), toolchain(), c_programs.kernels()
    monkeypatch.setattr(Toolchain, "compile", compile_)
    for folder in ("one", "two"):
        emit(program, plan(program), objects, tmp_path / folder, target=TARGET, toolchain=tools, cache=cache)
    assert compiled == ["demo.c", "weights.s", "weights.s"]
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_a_failed_build_leaves_the_old_artifact_and_nothing_else(tmp_path: Path) -> None:
    build(demo(), tmp_path / "demo")
    before = {path.name: path.read_bytes() for path in (tmp_path / "demo").iterdir()}
    program = demo("other")
    objects = {**c_programs.kernels(), "add": b"no object"}
    with pytest.raises(ToolchainError, match="add"):
        emit(program, plan(program), objects, tmp_path / "demo", target=TARGET, toolchain=toolchain())
    assert {path.name: path.read_bytes() for path in (tmp_path / "demo").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_missing_objects_are_a_bug(tmp_path: Path) -> None:
    program = demo()
    with pytest.raises(InternalError, match="without an object: add, reverse"):
        emit(
            program,
            plan(program),
            {name: code for name, code in c_programs.kernels().items() if name not in ("add", "reverse")},
            tmp_path / "demo",
            target=TARGET,
            toolchain=toolchain(),
        )
    assert not list(tmp_path.iterdir())


def test_artifacts_of_one_name_run_side_by_side(tmp_path: Path) -> None:
    build(demo(), tmp_path / "one")
    build(make([call("reverse", "x", "y")], dict.fromkeys("xy", FLOATS)), tmp_path / "two")
    with runner.open(tmp_path / "one") as one, runner.open(tmp_path / "two") as two:
        assert np.array_equal(two(X).reshape(-1), X.reshape(-1)[::-1])
        assert np.array_equal(one(X)["y"], demo_reference(X)["y"])
        assert np.array_equal(two(X).reshape(-1), X.reshape(-1)[::-1])


def test_cmake_takes_the_folder(tmp_path: Path) -> None:
    if not shutil.which("cmake"):
        pytest.skip("no cmake")
    build(demo(), tmp_path / "demo")
    (tmp_path / "main.c").write_text(
        '#include "demo.h"\nint main(void) { return demo_init(0, 0) != DEMO_ERROR_NULL; }\n'
    )
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.11)\nproject(example C)\nadd_subdirectory(demo)\n"
        "add_executable(example main.c)\ntarget_link_libraries(example PRIVATE demo)\n"
    )
    for command in (["cmake", "-S", ".", "-B", "build"], ["cmake", "--build", "build"], ["build/example"]):
        subprocess.run(command, cwd=tmp_path, check=True, timeout=300, capture_output=True)


def test_bare_metal_has_no_library_and_no_thread(tmp_path: Path) -> None:
    target: Target = replace(TARGET, id="bare", hosted=False, library_ending="")
    written = build(demo(), tmp_path / "demo", target=target, io_in_arena=True)
    assert written.files.library is None
    assert written.max_threads == 1
    assert written.arena.state == 64
    source = (tmp_path / "demo/demo.c").read_text()
    assert "pthread" not in source
    assert all(tensor.offset is not None for tensor in (*written.inputs, *written.outputs))
    main = """
    static uint8_t arena[DEMO_ARENA_BYTES] __attribute__((aligned(DEMO_ARENA_ALIGNMENT)));
    static uint64_t count;
    static uint64_t tick(void) { return ++count; }
    int main(void) {
        demo_options options = {0};
        uint64_t ticks[DEMO_CALLS];
        float *x = (float *)(void *)(arena + DEMO_X_OFFSET), *y = (float *)(void *)(arena + DEMO_Y_OFFSET);
        double *total = (double *)(void *)(arena + DEMO_TOTAL_OFFSET);
        if (demo_init(arena, NULL) != DEMO_OK) return 1;
        if (demo_profile(arena, ticks, x, y, total) != DEMO_ERROR_CLOCK) return 2;
        options.clock = tick;
        if (demo_init(arena, &options) != DEMO_OK) return 3;
        for (int i = 0; i < DEMO_X_ELEMENTS; ++i) x[i] = (float)i / 8;
        if (demo_profile(arena, ticks, x, y, total) != DEMO_OK || ticks[5] != 1) return 4;
        for (int i = 0; i < DEMO_Y_ELEMENTS; ++i) printf("%.9g ", (double)y[i]);
        printf("%.17g", *total);
        return 0;
    }"""
    printed = c_programs.compile_and_run(main, tmp_path / "demo", tmp_path)
    expected = demo_reference((np.arange(64, dtype=np.float32) / 8).reshape(4, 16))
    values = [float(text) for text in printed.split()]
    assert values[:64] == expected["y"].reshape(-1).tolist()
    assert values[64] == expected["total"]


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    build(demo(), tmp_path / "demo")
    text = (tmp_path / "demo/manifest.json").read_text()
    assert json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n" == text
