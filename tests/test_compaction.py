"""Compacted weights end to end: the exported model in plain onnxruntime and the artifact say the same."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import graphc
from graphc.artifact import read
from graphc.emulator import open_anywhere
from graphc.errors import GraphcError
from graphc.ir.graph import Graph
from tests.passes.quantized import feeds_of, model, normal

BODY = """a = Conv <pads = [1,1,1,1]> (x, w, b)
r = Relu (a)
d = Conv <pads = [1,1,1,1], group = 32> (r, s)
p = GlobalAveragePool (d)
f = Flatten (p)
h = MatMul (f, v)
y = Gemm <transB = 1> (h, u)"""


def network() -> Graph:
    """A small network with every kind of layer, a part of its weights zero."""
    w = normal(32, 16, 3, 3)
    w[np.abs(w) < 1] = 0
    constants = {"w": w, "b": normal(32), "s": normal(32, 1, 3, 3), "v": normal(32, 128), "u": normal(24, 128)}
    return model("(float[1,16,9,9] x) => (float[1,24] y)", BODY, **constants)


def shares(options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The pass with options of its own for the reader of each constant."""
    graph = network()
    rules = [{"name": graph.users[name][0].name, **rule} for name, rule in options.items()]
    return {"kind": "share_weights", "bits": 4, "weighting": "none", "where": rules}


CASES: Mapping[str, list[dict[str, Any]]] = {
    "tensors": [shares({"s": {"bits": 3}, "v": {"zeros": "codebook"}, "u": {"bits": 5, "codebook": "int8"}})],
    "factors": [
        {"kind": "factorize", "form": "tucker", "data": "none", "ratio": 0.7, "never_slower": False},
        {"kind": "prune", "pattern": "unstructured", "method": "magnitude", "sparsity": 0.6},
        {"kind": "share_weights", "bits": 4, "weighting": "none", "codebook": "int8"},
    ],
    "groups": [shares({"w": {"group": 8}, "s": {"group": 32}, "v": {"vector": 4}, "u": {"vector": 2, "group": 8}})],
}


def in_onnxruntime(path: Path, feeds: Mapping[str, Any]) -> Any:
    proto = onnx.load(path)
    assert proto.functions
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    (found,) = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"]).run(None, dict(feeds))
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_exported_model_and_the_artifact_agree(case: str, tmp_path: Path) -> None:
    graph = network()
    target = {"cpu": "native", "weights": "coded" if case == "tensors" else "streamed"}

    spec = {"name": "compact", "passes": [{"kind": "fold"}, *CASES[case]], "targets": [target]}
    build = graphc.compile(graph, spec, out=tmp_path)
    *layers, whole = build.report.targets[0].weights
    assert whole.stored <= whole.packed < whole.raw == 4 * build.report.steps[-1].parameters
    assert sum(each.stored for each in layers) == whole.stored < 1.5 * whole.bound
    assert build.report.steps[-1].bytes < build.report.steps[0].bytes * 0.4
    made = build.report.targets[0].prepared  # entries of several weights
    assert {each.once for each in made} == ({False} if case == "groups" else set())
    assert not any("conv_w" in node for each in made for node in each.nodes)
    with build.open() as runner:
        for feeds in feeds_of(graph):
            expected = in_onnxruntime(build.model, feeds)
            np.testing.assert_allclose(runner(feeds["x"]), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


EMULATORS = {"mps2-an386": "qemu-system-arm", "raspberry-pi-4": "qemu-aarch64-static"}


@pytest.mark.parametrize("board", EMULATORS)
@pytest.mark.parametrize("storage", ["coded", "streamed"])
def test_boards_decode_what_they_hold_and_refuse_what_is_damaged(board: str, storage: str, tmp_path: Path) -> None:
    if shutil.which(EMULATORS[board]) is None:
        pytest.skip(f"no {EMULATORS[board]} on PATH")
    body = "c = Conv <pads = [1,1,1,1]> (x, w)\nr = Relu (c)\nf = Flatten (r)\ny = MatMul (f, v)"
    w, v = normal(16, 8, 3, 3), normal(576, 10)
    v[np.abs(v) < 1] = 0
    graph = model("(float[1,8,6,6] x) => (float[1,10] y)", body, w=w, v=v)
    rules = [{"operator": "Conv", "group": 4}, {"operator": "MatMul", "zeros": "mask"}]
    share = {"kind": "share_weights", "bits": 3, "weighting": "none", "where": rules}
    spec = {"name": "b", "passes": [{"kind": "fold"}, share], "targets": [{"board": board, "weights": storage}]}
    build = graphc.compile(graph, spec, out=tmp_path)
    (feeds,) = feeds_of(graph, 1)
    expected = in_onnxruntime(build.model, feeds)
    with open_anywhere(build.artifact(board)) as artifact:
        found = artifact(feeds["x"])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    damage(build.artifact(board))
    with pytest.raises(GraphcError, match="weights"):
        open_anywhere(build.artifact(board))(feeds["x"])


def damage(folder: Path) -> None:
    """Invert the archive's weights."""
    (library,) = folder.glob("*.a")
    content = bytearray(library.read_bytes())
    begin = content.index(b"\x7fELF", content.index(b"_weights.o")) + 64
    end = begin + read(folder).weights.bytes - 64
    content[begin:end] = bytes(byte ^ 255 for byte in content[begin:end])
    library.write_bytes(content)
