"""Layers in patches: the same bits in less memory, as `patches` asks or where a board is too small."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

import graphc
from graphc.artifact import read
from graphc.backends.layout import channels_last
from graphc.backends.patches import DOMAIN, Patched, patched, peak_bytes
from graphc.errors import BudgetError, UnsupportedError
from graphc.importer import load
from tests import small

MODEL = """<ir_version: 10, opset_import: ["" : 18]>
net (float[N,3,33,20] image) => (float[N,5] scores)
<float[8,3,3,3] a, float[8,1,3,3] b, float[8,8,1,1] c, float[12,8,5,3] d, float[5,12] v> {
    first = Conv<pads = [1,1,1,1]>(image, a)
    relu = Relu(first)
    depth = Conv<group = 8, pads = [1,1,1,1]>(relu, b)
    point = Conv(depth, c)
    sum = Add(point, relu)
    pooled = MaxPool<kernel_shape = [2,2], strides = [2,2]>(sum)
    strided = Conv<pads = [2,1,2,1], strides = [2,2]>(pooled, d)
    means = GlobalAveragePool(strided)
    flat = Flatten(means)
    scores = Gemm<transB = 1>(flat, v)
}"""
SHAPES = {"a": (8, 3, 3, 3), "b": (8, 1, 3, 3), "c": (8, 8, 1, 1), "d": (12, 8, 5, 3), "v": (5, 12)}


def model() -> onnx.ModelProto:
    """A residual, a stride, a pool that leaves a row out, and windows of several heights."""
    rng, proto = np.random.default_rng(5), parser.parse_model(MODEL)
    del proto.graph.initializer[:]
    for name, shape in SHAPES.items():
        array = (rng.standard_normal(shape) / 3).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def build(folder: Path, target: str, quantized: bool = True) -> graphc.Build:
    images = np.random.default_rng(3).standard_normal((8, 3, 33, 20)).astype(np.float32)
    arrays = {"image": images, "y": np.zeros(8, np.int64)}
    text = small.SPEC.replace("[1, 3, 8, 8]", "[1, 3, 33, 20]").replace("{cpu: native}", target)
    if not quantized:
        text = "".join(line for line in text.splitlines(keepends=True) if "quantize" not in line)
    spec = small.write(folder, text, onnx=model().SerializeToString(), npz=arrays)
    return graphc.compile(None, spec, out=folder / "build")


def results(built: graphc.Build, name: str) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    with built.open(name) as runner:
        return [np.asarray(runner(rng.standard_normal((1, 3, 33, 20)).astype(np.float32))) for _ in range(4)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> graphc.Build:
    return build(tmp_path_factory.mktemp("whole"), "{cpu: native, emit: c}")


@pytest.mark.parametrize("count", [2, 3, 7])
def test_every_bit_is_the_same_in_less_memory(count: int, whole: graphc.Build, tmp_path: Path) -> None:
    built = build(tmp_path, f"{{cpu: native, emit: c, patches: {count}}}")
    before, after = read(whole.artifact("native-c")).arena, read(built.artifact("native-c")).arena
    assert before.patches is None and after.patches is not None
    assert after.patches.count == count and after.bytes < before.bytes
    assert (
        after.patches.macs
        > after.patches.macs_before
        == sum(s.work.macs for s in read(whole.artifact("native-c")).steps)
    )
    assert sum(step.work.macs for step in read(built.artifact("native-c")).steps) == after.patches.macs
    assert all(map(np.array_equal, results(built, "native-c"), results(whole, "native-c")))


def test_floats_agree(tmp_path: Path) -> None:
    built = build(tmp_path / "patches", "{cpu: native, emit: c, patches: 4}", quantized=False)
    plain = build(tmp_path / "plain", "{cpu: native, emit: c}", quantized=False)
    for found, expected in zip(results(built, "native-c"), results(plain, "native-c"), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def nhwc(tmp_path: Path) -> graphc.ir.Graph:
    onnx.save(model(), tmp_path / "net.onnx")
    return channels_last(load(tmp_path / "net.onnx", {"image": (1, 3, 33, 20)}))


def test_what_is_computed_twice_is_what_lies_at_the_seams(tmp_path: Path) -> None:
    graph = nhwc(tmp_path)
    found = patched(graph, 2, 8)
    assert isinstance(found, Patched)
    assert found.bytes == (peak_bytes(graph), peak_bytes(found.graph)) and found.bytes[1] < found.bytes[0]
    assert found.macs[0] < found.macs[1] < 1.5 * found.macs[0]
    assert [node.op for node in found.graph.nodes if node.domain == DOMAIN].count("Assemble") == 1
    assert found.graph.outputs == graph.outputs and found.graph.inputs == graph.inputs


def test_a_board_that_is_too_small_gets_patches(whole: graphc.Build, tmp_path: Path) -> None:
    needed = read(whole.artifact("native-c")).arena.bytes
    board = f"{{board: {{name: tiny, cpu: cortex-m4, ram: {needed - 2048}B, flash: 1MiB}}}}"
    arena = read(build(tmp_path / "fits", board).artifact("tiny")).arena
    assert arena.patches is not None and arena.bytes <= needed - 2048
    with pytest.raises(BudgetError, match=r"`patches: \d+` for the target \(\d+ bytes, \d+% more products\)") as error:
        build(tmp_path / "misses", board.replace(f"{needed - 2048}", "6000"))
    assert error.value.exit_code == 3


def test_what_cannot_be_cut_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="this target has an operating system"):
        build(tmp_path, "{cpu: native, patches: 2}")
    spec = small.write(tmp_path / "small", small.SPEC.replace("{cpu: native}", "{cpu: cortex-m4, patches: 64}"))
    with pytest.raises(UnsupportedError, match="no part of it takes less memory in 64 patches"):
        graphc.compile(None, spec, out=tmp_path / "build")
