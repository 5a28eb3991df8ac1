"""Cost against the published table of the real models, and by hand on small graphs."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import parser

from graphc.importer import load
from graphc.ir import Edit, Graph
from graphc.ir.cost import Cost, cost
from tests.models import MODELS

SHAPES_NEED_FOLDING = {
    "converted/cifar10_resnet20.onnx",
    "converted/cifar10_resnet56.onnx",
    "converted/crepe_tiny.onnx",
}
"""torch computes the pads of these at run time."""


def graph_of(text: str) -> Graph:
    return load(parser.parse_model(f'<ir_version: 10, opset_import: ["" : 26]> {text}'))


def cost_of(text: str) -> Cost:
    return cost(graph_of(text))


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.mega_macs is not None])
def test_macs_of_real_models(shared_data: Path, name: str) -> None:
    macs = cost(load(shared_data / "models" / name, MODELS[name].shapes)).macs
    if name in SHAPES_NEED_FOLDING:
        assert macs is None
    else:
        assert macs is not None
        assert round(macs / 1e6, 2) == MODELS[name].mega_macs


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("converted/cifar10_resnet20.onnx", 269_036),
        ("mlperf_tiny/ic_resnet8_float.onnx", 77_706),
        ("mlperf_tiny/ic_resnet8_int8_qdq.onnx", 77_706),
        ("native/silero_vad_16k_op15.onnx", 309_635),
        ("native/yolox_nano.onnx", 904_467),
    ],
)
def test_parameters_of_real_models(shared_data: Path, name: str, parameters: int) -> None:
    assert cost(load(shared_data / "models" / name, MODELS[name].shapes)).parameters == parameters


def test_groups_strides_and_bias() -> None:
    weights = ",".join(["1"] * 108)
    found = cost_of(f"""g (float[1,4,8,8] x) => (y)
        <float[6,2,3,3] w = {{{weights}}}, float[6] b = {{0,0,0,0,0,0}}>
        {{ y = Conv<group=2, strides=[2,2], pads=[1,1,1,1]>(x, w, b) }}""")
    assert found.macs == 6 * 4 * 4 * 2 * 9
    assert found.parameters == 108 + 6
    assert found.bytes == 4 * (108 + 6)


@pytest.mark.parametrize(
    ("body", "macs"),
    [
        ("g (float[2,5,3] a, float[3,4] b) => (y) { y = MatMul(a, b) }", 2 * 5 * 3 * 4),
        ("g (float[3,5] a, float[4,3] b) => (y) { y = Gemm<transA=1, transB=1>(a, b) }", 5 * 3 * 4),
        ('g (float[2,3] a, float[3,4] b) => (y) { y = Einsum<equation="ij,jk->ik">(a, b) }', 2 * 3 * 4),
        ("g (float[1,2,4,4] x, float[2,3,2,2] w) => (y) { y = ConvTranspose<strides=[2,2]>(x, w) }", 2 * 16 * 3 * 4),
        (
            "g (float[7,1,3] x, float[1,16,3] w, float[1,16,4] r) => (y) { y = LSTM<hidden_size=4>(x, w, r) }",
            7 * 16 * 7,
        ),
        (
            "g (float[2,8,5,16] q, float[2,4,9,16] k, float[2,4,9,12] v) => (y) { y = Attention(q, k, v) }",
            2 * 8 * 5 * 9 * (16 + 12),
        ),
        (
            """g (bool c, float[2,3] a, float[3,4] b) => (y) { y = If(c) <
                then_branch = t () => (float[2,4] p) { p = MatMul(a, b) },
                else_branch = e () => (float[2,4] q) { m = MatMul(a, b) n = MatMul(a, b) q = Add(m, n) }> }""",
            2 * 2 * 3 * 4,
        ),
        (
            """g (float[2,3] a, float[7,3,3] b) => (y) { y = Scan<num_scan_inputs=1,
                body = t (float[2,3] h, float[3,3] s) => (float[2,3] i) { i = MatMul(h, s) }>(a, b) }""",
            7 * 2 * 3 * 3,
        ),
        (
            """g (float[2,2] a) => (y) { n = Constant<value = int64 {6}>() y = Loop(n, , a) <
                body = t (int64[] i, bool[] c, float[2,2] h) => (bool[] d, float[2,2] k) {
                    d = Identity(c) k = MatMul(h, h) }> }""",
            6 * 8,
        ),
        ("g (float[N,3] a, float[3,4] b) => (y) { y = MatMul(a, b) }", None),
        ("g (float[N,3] a) => (y) { y = Relu(a) }", 0),
    ],
)
def test_macs_by_hand(body: str, macs: int | None) -> None:
    assert cost_of(body).macs == macs


def test_a_compressed_weight_costs_what_it_stores() -> None:
    graph = graph_of("""g (float[2,64] x) => (y) <float[1] one = {1}> {
        s = Constant<value_ints=[64,32]>() w = Expand(one, s) y = MatMul(x, w) }""")
    edit = Edit(graph)
    packed = edit.constant(np.zeros(64 * 32 // 2, np.uint8), "packed")
    codes = edit.constant(np.zeros(16, np.int8), "codebook")
    scale = edit.constant(np.float32(0.5).reshape(()), "scale")
    codebook = edit.add("DequantizeLinear", [codes, scale])
    weight = edit.add("Lookup", [codebook, packed], {"bits": 4, "shape": (64, 32)}, domain="graphc")
    edit.replace(graph.producers["y"], inputs=["x", weight])
    edit.remove(graph.producers["w"])
    found = cost(edit.apply())
    assert found.macs == 2 * 64 * 32
    assert found.parameters == 64 * 32
    assert found.bytes == 64 * 32 // 2 + 16 + 4


def test_four_bit_weights_take_half_a_byte_and_shared_ones_count_once() -> None:
    graph = graph_of("g (float[2,2] x) => (z) { y = Relu(x) z = Add(x, y) }")
    edit = Edit(graph)
    weight = edit.constant(np.ones((2, 5), ml_dtypes.int4), "w")
    scale = edit.constant(np.float32(0.5).reshape(()), "scale")
    dense = edit.add("DequantizeLinear", [weight, scale])
    a, b = edit.add("MatMul", ["x", dense]), edit.add("MatMul", ["y", dense])
    edit.redirect("z", edit.add("Add", [a, b]))
    edit.remove(graph.producers["z"])
    found = cost(edit.apply())
    assert found.bytes == 5 + 4
    assert found.parameters == 10
    assert [node.macs for node in found.nodes] == [0, 20, 20, 0]
