"""Running an artifact from Python: what it takes, what it refuses, and that nothing is left behind."""

import gc
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import graphc
from graphc import runner
from graphc.artifact import Quantization, find, read
from graphc.errors import GraphcError, InputError, UnsupportedError
from tests.backends import c_programs
from tests.backends.c_programs import build, call, demo, demo_reference, make

X = np.random.default_rng(5).normal(size=(4, 16)).astype(np.float32)
EXPECTED = demo_reference(X)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact") / "demo"
    build(demo(), folder, quantization={"x": Quantization(0.5, 3)})
    return folder


def same(result: object) -> bool:
    return isinstance(result, dict) and all(np.array_equal(result[name], value) for name, value in EXPECTED.items())


@pytest.fixture(scope="module")
def two_inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two") / "model"
    types = dict.fromkeys(("a", "b:0", "y"), c_programs.FLOATS)
    build(make([call("add", "a", "b:0", "y")], types, inputs=("a", "b:0")), folder)
    return folder


def test_inputs_go_by_position_or_by_name(two_inputs: Path) -> None:
    with graphc.open(two_inputs) as model:
        for result in (model(X, X), model(X, **{"b:0": X}), model(**{"b:0": X, "a": X})):
            assert isinstance(result, np.ndarray)
            assert np.array_equal(result, X + X)


@pytest.mark.parametrize(
    ("arrays", "named", "message"),
    [
        ((), {}, "no value for input 'a', 'b:0'"),
        ((X,), {}, "no value for input 'b:0'"),
        ((X, X, X), {}, "expected 'a', 'b:0', got 3 arrays"),
        ((X, X), {"a": X}, "got 'a' as well"),
        ((X, X), {"c": X}, "got 'c' as well"),
        (
            (X, X.astype(np.float64)),
            {},
            r"input 'b:0': expected dtype float32, got float64. Convert it: x.astype\('float32'\)",
        ),
        ((X, X.astype(">f4")), {}, "expected dtype float32, got >f4"),
        ((X, [1, 2]), {}, "expected dtype float32, got int64"),
        ((X, X[0]), {}, r"input 'b:0': expected shape \[4, 16\], got \[16\]"),
        ((X[None], X), {}, r"expected shape \[4, 16\], got \[1, 4, 16\]"),
    ],
)
def test_wrong_inputs_are_refused(two_inputs: Path, arrays: tuple, named: dict, message: str) -> None:
    with graphc.open(two_inputs) as model, pytest.raises(InputError, match=message):
        model(*arrays, **named)


def test_arrays_may_lie_in_memory_in_any_way(artifact: Path) -> None:
    unaligned = np.zeros(X.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(X.shape)
    unaligned[:] = X
    frozen = X.copy()
    frozen.flags.writeable = False
    with graphc.open(artifact) as model:
        for array in (np.asfortranarray(X), np.repeat(X, 2, axis=1)[:, ::2], X[::-1][::-1], unaligned, frozen):
            assert same(model(array))


def test_results_are_new_arrays(artifact: Path) -> None:
    with graphc.open(artifact) as model:
        first = model(X)
        model(np.zeros_like(X))
        assert same(first)


def test_a_bound_model_reads_and_writes_in_place(artifact: Path) -> None:
    x = np.zeros_like(X)
    with graphc.open(artifact) as model:
        run = model.bind(x)
        x[:] = X
        first = run()
        assert same(first) and run() is first
        with pytest.raises(InputError, match="expected a dense array"):
            model.bind(np.asfortranarray(X))
    with pytest.raises(InputError, match="is closed"):
        run()


def test_it_tells_what_it_is(artifact: Path) -> None:
    with graphc.open(artifact) as model:
        assert [(t.name, t.dtype, t.shape) for t in model.inputs] == [("x", "float32", (4, 16))]
        assert model.inputs[0].quantization == Quantization(0.5, 3)
        assert [t.name for t in model.outputs] == ["y", "total"]
        assert repr(model) == "<graphc.Runner demo (x86-64-v2)>"
    assert repr(model) == "<graphc.Runner demo (x86-64-v2) closed>"


def test_profile_times_every_step(artifact: Path) -> None:
    for threads in (1, 3):
        with graphc.open(artifact, threads=threads) as model:
            assert len(model.profile(X)) == len(model.manifest.steps) == 6
            assert sum(model.profile(x=X)) > 0
            assert same(model(X))


def test_closing_twice_is_harmless_and_use_after_it_an_error(artifact: Path) -> None:
    model = graphc.open(artifact, threads=2)
    assert not model.closed
    model.close()
    model.close()
    assert model.closed
    for use in (model, model.profile):
        with pytest.raises(InputError, match="this model is closed"):
            use(X)


def running_threads() -> int:
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        pytest.skip("no /proc")
    return len(list(tasks.iterdir()))


def test_a_forgotten_model_ends_its_threads(artifact: Path) -> None:
    before = running_threads()
    model = graphc.open(artifact, threads=4)
    assert running_threads() == before + 3
    assert same(model(X))
    del model
    gc.collect()
    assert running_threads() == before


def test_python_ends_with_models_open(artifact: Path) -> None:
    code = (
        f"import graphc, numpy as np; m = graphc.open({str(artifact)!r}, threads=3); m(np.zeros((4, 16), np.float32))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_many_threads_may_call_one_model_or_one_each(artifact: Path) -> None:
    failures = []

    def use(model: runner.Runner) -> None:
        for _ in range(100):
            if not same(model(X)):
                failures.append(model)

    models = [graphc.open(artifact, threads=count) for count in (1, 2, 3)]
    users = [threading.Thread(target=use, args=(model,)) for model in [*models, models[0], models[1]]]
    for user in users:
        user.start()
    for user in users:
        user.join()
    for model in models:
        model.close()
    assert not failures


def test_types_that_numpy_lacks(tmp_path: Path) -> None:
    types = {"x": ("bfloat16", (3,)), "y": ("bfloat16", (3,)), "z": ("int32", (4,)), "h": ("float16", (2,))}
    program = make(
        [call("count", "z")], types, inputs=("x", "h"), outputs=("y", "z", "g"), aliases={"y": "x", "g": "h"}
    )
    program = replace(program, buffers={**program.buffers, "g": replace(program.buffers["h"], name="g")})
    build(program, tmp_path / "model")
    x, h = np.array([1, 2, 3], ml_dtypes.bfloat16), np.array([1, 2], np.float16)
    with graphc.open(tmp_path / "model") as model:
        result = model(x, h)
        with pytest.raises(InputError, match="expected dtype bfloat16, got float32"):
            model(x.astype(np.float32), h)
    assert result["y"].dtype == x.dtype
    assert result["y"].tolist() == x.tolist()
    assert np.array_equal(result["g"], h)


@pytest.mark.parametrize("threads", [0, -1, 65])
def test_impossible_numbers_of_threads(artifact: Path, threads: int) -> None:
    with pytest.raises(InputError, match=f"expected 1 to 64 threads, got {threads}"):
        graphc.open(artifact, threads=threads)


def test_the_runner_is_light() -> None:
    heavy = "{'onnx', 'onnxruntime', 'pydantic', 'tvm', 'networkx', 'yaml', 'typer', 'rich', 'ml_dtypes', 'graphc.ir'}"
    code = f"import sys, graphc.runner; found = {heavy} & sys.modules.keys(); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


ON_A_BOARD = """
import importlib.abc, sys

class Board(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy", "graphc"}:
            raise ModuleNotFoundError(f"a board has no {name}")

sys.meta_path.insert(0, Board())
import numpy, graphc
with graphc.open(sys.argv[1], threads=2) as model:
    model(numpy.zeros((4, 16), numpy.float32))
"""


def test_a_board_needs_numpy_alone(artifact: Path) -> None:
    """graphc itself goes there by `pip install --no-deps graphc`."""
    subprocess.run([sys.executable, "-c", ON_A_BOARD, str(artifact)], check=True, timeout=60)


def test_an_artifact_is_found_by_its_folder_or_a_file_in_it(artifact: Path) -> None:
    assert find(artifact) == find(artifact / "manifest.json") == find(str(artifact / "libdemo.so")) == artifact


def test_what_is_no_artifact_is_refused(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "nothing", "no such file or folder"), (tmp_path, "no manifest.json")):
        with pytest.raises(InputError, match=message):
            graphc.open(path)


def copy(artifact: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in artifact.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_damaged_manifests_are_refused(artifact: Path, tmp_path: Path) -> None:
    folder = copy(artifact, tmp_path / "copy")
    manifest = folder / "manifest.json"
    good = json.loads(manifest.read_text())

    def mutants() -> list[object]:
        found: list[object] = [None, [], 3, {}]
        for key in good:
            found += [{k: v for k, v in good.items() if k != key}, {**good, key: None}, {**good, key: "?"}]
        found += [{**good, "new": 1}, {**good, "inputs": [{**good["inputs"][0], "shape": ["4"]}]}]
        return [mutant for mutant in found if mutant != good]

    for mutant in mutants():
        if isinstance(mutant, dict) and mutant.keys() == good.keys() and mutant["format"] == good["format"]:
            changed = next(key for key in good if mutant[key] != good[key])
            if changed in ("name", "graphc", "identifier", "build") and mutant[changed] is not None:
                continue  # any text is valid there
        manifest.write_text(json.dumps(mutant))
        with pytest.raises(InputError):
            read(folder)
    for text in ("", "{", "\0", good["name"]):
        manifest.write_text(text)
        with pytest.raises(InputError, match="cannot be read"):
            read(folder)


def test_damaged_libraries_are_refused(artifact: Path, tmp_path: Path) -> None:
    folder = copy(artifact, tmp_path / "copy")
    library = folder / "libdemo.so"
    whole = library.read_bytes()
    library.write_bytes(whole[:1000])
    with pytest.raises(InputError, match=rf"expected {len(whole)} bytes, got 1000"):
        graphc.open(folder)
    library.write_bytes(bytes(len(whole)))
    with pytest.raises(UnsupportedError, match="cannot load it"):
        graphc.open(folder)
    library.unlink()
    with pytest.raises(InputError, match="no such file"):
        graphc.open(folder)


def test_a_board_without_libraries_is_refused(tmp_path: Path) -> None:
    bare = replace(c_programs.TARGET, id="bare", hosted=False, library_ending="")
    build(demo(), tmp_path / "demo", target=bare)
    with pytest.raises(UnsupportedError, match="has no library to load"):
        graphc.open(tmp_path / "demo")


def test_errors_are_graphcs_own() -> None:
    assert issubclass(InputError, GraphcError)
    assert runner.failure(Path("x"), 5).exit_code == 2
