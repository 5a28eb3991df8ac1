"""The command line: what it prints, how it ends, and that no mistake of a user ever shows a traceback."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from graphc import cli
from graphc.errors import InternalError
from tests import small


class Outcome:
    """How one command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Command = Callable[..., Outcome]


@pytest.fixture
def graphc(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["graphc", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
        printed = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of the small network, by the command in a process of its own: its working folder."""
    folder = tmp_path_factory.mktemp("built")
    small.write(folder)
    command = [sys.executable, "-c", "from graphc.cli import main; main()", "build", "small.yaml"]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    (folder / "printed.txt").write_text(done.stdout)
    return folder


def test_help_imports_nothing_heavy() -> None:
    code = """import sys; sys.argv = ['graphc', '--help']
from graphc.cli import main
try: main()
finally: print(*sys.modules)"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(printed.splitlines()[-1].split())
    assert loaded.isdisjoint({"numpy", "onnx", "onnxruntime", "pydantic", "networkx", "yaml", "tvm"})


def test_help_names_every_command(graphc: Command) -> None:
    printed = graphc("--help").out
    for name in ("build", "check", "show", "run", "verify", "bench", "schema", "targets", "passes"):
        assert f"\n  {name} " in printed


PRUNED = """
model: {path: pruned.onnx}
passes:
  - kind: fold
  - {kind: prune, method: magnitude, pattern: block, sparsity: 0.75, block: [16, 4], where: [{name: two, sparsity: 0}]}
  - {kind: prune, method: magnitude, pattern: "2:4", where: [{name: one, sparsity: 0}]}
targets: [{cpu: x86-64-v4}]
"""


def test_build_tells_which_kernels_skip_zeros(graphc: Command, tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 18]>
    pruned (float[1,64,28,28] x) => (float[1,64,28,28] y) {
        [one] a = Conv (x, w)
        [two] y = Conv (a, v)
    }"""
    proto = onnx.parser.parse_model(text)
    for seed, name in enumerate(("w", "v")):
        weights = np.random.default_rng(seed).standard_normal((64, 64, 1, 1)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    onnx.save(proto, tmp_path / "pruned.onnx")
    (tmp_path / "pruned.yaml").write_text(PRUNED)
    done = graphc("build", tmp_path / "pruned.yaml", "-o", tmp_path)
    assert done.code == 0, done.err
    assert "x86-64-v4: 1 of 2 layers with zeros skip them" in done.out
    (kept,) = (line for line in done.out.splitlines() if "kept dense" in line)
    assert "two (0." in kept
    (target,) = json.loads((tmp_path / "pruned" / "report.json").read_text())["targets"]
    assert {each["node"]: each["kernel"] for each in target["decisions"]} == {"one": "sparse", "two": "dense"}


def test_build_prints_before_and_after(built: Path) -> None:
    printed = (built / "printed.txt").read_text()
    for row in ("0 model", "1 fold", "2 quantize", "top1, native", "weights", "MACs", "latency, native"):
        assert row in printed
    assert "artifact  build/small/native" in printed
    assert "━" not in printed


def test_build_json_prints_the_report_alone(graphc: Command, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(built)
    found = graphc("build", "small.yaml", "--json")
    assert found.code == 0
    assert json.loads(found.out) == json.loads((built / "build/small/report.json").read_text())


def test_check(graphc: Command, built: Path) -> None:
    found = graphc("check", built / "small.yaml")
    assert found.code == 0 and found.out.endswith("no mistakes found\n")
    facts = json.loads(graphc("check", built / "small.yaml", "--json").out)
    assert facts["targets"] == "native" and facts["passes"] == "fold, quantize"


def test_show(graphc: Command, built: Path) -> None:
    assert "QuantizeLinear" in graphc("show", built / "build/small/model.onnx").out
    assert json.loads(graphc("show", built / "small.onnx", "--json").out)["operators"]["Conv"] == 1
    assert "Conv(image, w, b)" in graphc("show", built / "small.onnx", "--text").out
    assert "small for native" in graphc("show", built / "build/small/native").out
    assert json.loads(graphc("show", built / "build/small/native", "--json").out)["name"] == "small"


def test_run_writes_outputs(graphc: Command, built: Path, tmp_path: Path) -> None:
    x = np.load(built / "data.npz")["image"][:1]
    np.save(tmp_path / "x.npy", x)
    done = graphc(
        "run", built / "build/small/native", "--input", f"image={tmp_path / 'x.npy'}", "--output", tmp_path / "y"
    )
    assert done.code == 0
    assert np.load(tmp_path / "y" / "scores.npy").shape == (1, 5)


def test_verify(graphc: Command, built: Path) -> None:
    found = graphc("verify", built / "build/small/native", "--samples", "4", "--json")
    assert found.code == 0
    result = json.loads(found.out)
    assert result["agrees"] and result["outputs"][0]["limit"] == 0 and result["outputs"][0]["elements"] == 20
    assert result["inputs"].startswith("4 inputs of")


def test_bench(graphc: Command, built: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    arguments = ("--against", "onnxruntime", "--threads", "1,2", "--seconds", "0.05", "--layers", "--json", file)
    found = graphc("bench", built / "build/small/native", *arguments)
    assert found.code == 0 and "onnxruntime" in found.out
    result = json.loads(file.read_text())
    assert [(f["threads"], f["engine"]) for f in result["figures"]] == [
        (1, "graphc"), (1, "onnxruntime"), (2, "graphc"), (2, "onnxruntime")
    ]  # fmt: skip
    assert result["figures"][0]["ratio"] is None and result["figures"][1]["ratio"]["median"] > 0
    manifest = json.loads((built / "build/small/native/manifest.json").read_text())
    assert len(result["layers"]) == len(manifest["steps"])
    assert [limit["threads"] for limit in result["rooflines"]] == [1, 2]
    assert all(layer["least"] > 0 and layer["roofline"] > 0 for layer in result["layers"])
    assert result["figures"][0]["roofline"] > 0 and result["figures"][1]["roofline"] is None
    assert "float32" in found.out and "roofline" in found.out


def test_lists(graphc: Command) -> None:
    assert "properties" in json.loads(graphc("schema").out)
    assert "native" in {entry["id"] for entry in json.loads(graphc("targets", "--json").out)}
    assert {"fold", "quantize"} <= json.loads(graphc("passes", "--json").out).keys()
    assert "{cpu: native}" in graphc("targets").out
    assert "quantize: " in graphc("passes").out


def _mistakes() -> dict[str, tuple[str, dict[str, Any], str]]:
    """Name -> (the spec, files, what the message says)."""
    whole = small.model().SerializeToString()
    rng = np.random.default_rng(0)
    good = {"image": rng.standard_normal((16, 3, 8, 8)).astype(np.float32), "y": np.zeros(16, np.int64)}
    nan = small.model()
    weights = onnx.numpy_helper.to_array(nan.graph.initializer[0]).copy()
    weights[0, 0, 0, 0] = np.nan
    nan.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w"))
    cyclic = small.model()
    cyclic.graph.node[0].input[0] = "relu"
    spec = small.SPEC
    return {
        "truncated": (spec, {"onnx": whole[: len(whole) // 2]}, "small.onnx"),
        "empty": (spec, {"onnx": b""}, "the file is empty"),
        "not onnx": (spec, {"onnx": b"PK\x03\x04 something else"}, "not an ONNX model"),
        "cyclic": (spec, {"onnx": cyclic.SerializeToString()}, "small.onnx"),
        "wrong input shape": (spec.replace("[1, 3, 8, 8]", "[1, 4, 8, 8]"), {}, "image"),
        "NaN weights": (spec, {"onnx": nan.SerializeToString()}, "'w'"),
        "no external data": (spec, {"onnx": _external("gone.bin").SerializeToString()}, "gone.bin"),
        "escaping path": (spec, {"onnx": _external("../../secret").SerializeToString()}, "../../secret"),
        "open dimension": (spec.replace(", inputs: {image: [1, 3, 8, 8]}", ""), {}, "open dimensions"),
        "impossible size": (
            "model: {path: small.onnx, inputs: {image: [2000000000, 3, 8, 8]}}\ntargets: [{cpu: native}]",
            {},
            "2147483647 elements",
        ),
        "unknown key": (spec + "budgte: {}\n", {}, "small.yaml:9"),
        "unknown pass": (spec.replace("kind: fold", "kind: flod"), {}, "fold"),
        "impossible value": (spec.replace("count: 8", "count: -8"), {}, "small.yaml:3"),
        "bad unit": (spec + "budget: {flash: 512}\n", {}, "unit"),
        "not yaml": ("model: [", {}, "small.yaml"),
        "unknown target": (spec.replace("cpu: native", "board: nucleo-f4"), {}, "nucleo-f4"),
        "wrong order": (spec.replace("- kind: fold\n  ", ""), {}, "fold"),
        "missing model": (spec.replace("small.onnx", "gone.onnx"), {}, "gone.onnx"),
        "missing data": (spec.replace("data.npz, count", "gone.npz, count"), {}, "gone.npz"),
        "data shape": (spec, {"npz": {**good, "image": good["image"][:, :, :4]}}, "[1, 3, 8, 8]"),
        "data name": (spec, {"npz": {"x": good["image"], "y": good["y"]}}, "'image'"),
        "NaN data": (spec, {"npz": {**good, "image": good["image"] * np.nan}}, "NaN"),
        "no labels": (spec, {"npz": {"image": good["image"]}}, "`y`"),
        "labels out of range": (spec, {"npz": {**good, "y": good["y"] + 9}}, "labels"),
        "no calibration": (spec.replace("calibration: {path: data.npz, count: 8}", ""), {}, "calibration"),
    }


def _external(path: str) -> onnx.ModelProto:
    model = small.model()
    tensor = TensorProto(name="w", dims=[4, 3, 3, 3], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=path)
    model.graph.initializer[0].CopyFrom(tensor)
    return model


MISTAKES = _mistakes()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_error_and_leaves_nothing(graphc: Command, tmp_path: Path, mistake: str) -> None:
    spec, files, said = MISTAKES[mistake]
    (tmp_path.parent / "secret").write_bytes(bytes(1000))
    path = small.write(tmp_path, spec, **files)
    found = graphc("build", path, "-o", tmp_path / "out")
    assert found.code == 2
    assert found.err.startswith("error: ") or "\nerror: " in found.err
    assert said in found.err
    assert "Traceback" not in found.err and found.out == ""
    assert not any(tmp_path.glob("out/**/*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("build", "gone.yaml"), "gone.yaml"),
        (("show", "gone.onnx"), "no such file"),
        (("verify", "gone"), "no such file or folder"),
        (("bench", "."), "no manifest.json there"),
        (("bench", "NATIVE", "--against", "tensorflow"), "Known: onnxruntime, openvino"),
        (("bench", "NATIVE", "--threads", "none"), "expected numbers of threads"),
        (("bench", "NATIVE", "--threads", "1,65"), "--threads: expected at most 64, got 65"),
        (("bench", "NATIVE", "--seconds", "-1"), "--seconds"),
        (("bench", "NATIVE", "--model", "none.onnx"), "no engine would run it. Name engines with --against"),
        (("bench", "NATIVE", "--against", "onnxruntime", "--model", "none.onnx"), "none.onnx: no such file"),
        (("bench", "NATIVE", "--json", "none/figures.json"), "no such folder"),
        (("run", "NATIVE", "--output", "y"), "no value for input 'image'"),
        (("run", "NATIVE", "--output", "y", "--input", "image"), "expected NAME=FILE.npy"),
        (("run", "NATIVE", "--output", "y", "--input", "image=gone.npy"), "gone.npy: no such file"),
        (("run", "NATIVE", "--output", "y", "--input", "image=DATA"), "got an .npz archive"),
        (("build", "SPEC", "--target", "x86-64-v3"), "the spec has no target 'x86-64-v3'"),
        (("build", "SPEC", "--stop-after", "-1"), "--stop-after"),
        (("buidl", "SPEC"), "buidl"),
    ],
)
def test_wrong_arguments_exit_with_2(graphc: Command, built: Path, arguments: tuple[str, ...], said: str) -> None:
    places = {"NATIVE": "build/small/native", "SPEC": "small.yaml"}
    found = graphc(
        *(str(built / places[a]) if a in places else a.replace("DATA", str(built / "data.npz")) for a in arguments)
    )
    assert found.code == 2 and said in found.err and "Traceback" not in found.err


def test_a_missing_engine_exits_with_5(graphc: Command, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphc.peers.find_spec", lambda _name: None)
    found = graphc("bench", built / "build/small/native", "--against", "openvino")
    assert found.code == 5 and "pip install" in found.err


def test_a_missing_compiler_exits_with_5(graphc: Command, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    found = graphc("build", built / "small.yaml", "-o", built / "uncompiled")
    assert found.code == 5 and "no-such-compiler" in found.err
    assert not (built / "uncompiled").exists()


def test_a_place_that_cannot_be_written_exits_with_2(graphc: Command, built: Path) -> None:
    (built / "file").write_text("mine")
    for place in (built / "file", Path("/dev/null")):
        found = graphc("build", built / "small.yaml", "-o", place)
        assert found.code == 2 and "-o" in found.err and "Traceback" not in found.err
    assert (built / "file").read_text() == "mine"


def test_a_cache_that_cannot_be_written_costs_a_note(
    graphc: Command, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPHC_CACHE", str(built / "small.onnx"))
    (built / "no_target.yaml").write_text(small.SPEC.replace("targets: [{cpu: native}]", ""))
    found = graphc("build", built / "no_target.yaml", "-o", built / "uncached")
    assert found.code == 0 and "note: results were not kept" in found.err


def test_a_missed_budget_exits_with_3(graphc: Command, built: Path) -> None:
    spec = built / "tight.yaml"
    spec.write_text(small.SPEC + "budget: {ram: 64B}\n")
    found = graphc("build", spec, "-o", built / "tight")
    assert found.code == 3
    assert "ram on native is" in found.err and "more than 64 B" in found.err
    assert "2 quantize" in found.out


def test_an_altered_model_exits_with_4(graphc: Command, built: Path, tmp_path: Path) -> None:
    shutil.copytree(built / "build/small", tmp_path / "small")
    model = onnx.load(tmp_path / "small/model.onnx")
    scale = next(
        tensor for tensor in model.graph.initializer if not tensor.dims and tensor.data_type == TensorProto.FLOAT
    )
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(1.5), scale.name))
    onnx.save(model, tmp_path / "small/model.onnx")
    found = graphc("verify", tmp_path / "small/native", "--samples", "2")
    assert found.code == 4
    assert "DIFFERS" in found.out and "a fresh build agrees" in found.err


@pytest.mark.parametrize(("error", "code"), [(InternalError("node", "broke."), 1), (KeyboardInterrupt(), 130)])
def test_bugs_and_interrupts(
    graphc: Command, built: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr(import_module("graphc.cli_build"), "prepare", fail)
    found = graphc("build", built / "small.yaml")
    assert found.code == code and "Traceback" not in found.err
    assert ("Please report it" in found.err) == (code == 1)
    assert "Traceback" in graphc("--debug", "build", built / "small.yaml").err


def test_an_unforeseen_exception_asks_for_a_report() -> None:
    code = """import sys; sys.argv = ['graphc', 'check', 'x']
import graphc.cli_build
graphc.cli_build.prepare = lambda *_: 1 / 0
from graphc.cli import main
main()"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr and "Please report it" in done.stderr and "Traceback" not in done.stderr
