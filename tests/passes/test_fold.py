"""Folding as a whole: the pass, its fixpoint, random graphs, and every real model."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphc.errors import InternalError
from graphc.exporter import save
from graphc.importer import load
from graphc.ir.check import check
from graphc.ir.graph import Graph, Node
from graphc.passes import fold as module
from graphc.passes.fold import Fold, fold
from graphc.passes.fold_sweep import Sweep
from graphc.passes.protocol import Context
from tests.models import MODELS
from tests.passes.folding import difference, feeds, model
from tests.test_models import largest_difference, run


def test_the_pass_is_the_function() -> None:
    graph = load(model("g (float[2] x) => (float[2] y) { a = Identity(x)  y = Relu(a) }"))
    context = Context()
    assert [node.op for node in Fold().apply(graph, context).nodes] == ["Relu"]
    assert context.skips == []


def test_nothing_to_fold_is_the_same_object() -> None:
    graph = load(model("g (float[2] x) => (float[2] y) { y = Relu(x) }"))
    assert Fold().apply(graph, Context()) is graph


def test_the_input_is_not_spoiled() -> None:
    graph = load(model("g (float[2] x) => (float[2] y) { a = Identity(x)  y = Relu(a) }"))
    nodes, types = graph.nodes, dict(graph.types)
    fold(graph)
    assert graph.nodes is nodes
    assert graph.types == types


def test_rules_that_undo_each_other_are_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def flip(sweep: Sweep, node: Node) -> bool:
        sweep.edit.replace(node, "Sin" if node.op == "Cos" else "Cos")
        return True

    monkeypatch.setattr(module, "STAGES", ({"Sin": (flip,), "Cos": (flip,)},))
    monkeypatch.setattr(module, "ROUNDS", 5)
    with pytest.raises(InternalError, match="not come to an end"):
        fold(load(model("g (float[2] x) => (float[2] y) { y = Sin(x) }")))


# One line for each step of a random graph: `{a}` and `{b}` are earlier values of shape [2, 3, 4], `{i}` is a number.
STEPS = (
    "v{i} = Relu({a})",
    "v{i} = Neg({a})",
    "v{i} = Identity({a})",
    "v{i} = Sigmoid({a})",
    "v{i} = Add({a}, {b})",
    "v{i} = Mul({a}, {b})",
    "v{i} = Sub({a}, c_last)",
    "v{i} = Mul(c_middle, {a})",
    "v{i} = Div({a}, cp_full)",
    "v{i} = Add({a}, c_one)",
    "v{i} = Sub(c_one, {a})",
    "v{i} = BatchNormalization({a}, cp_g, c_g, c_g, cp_g)",
    "v{i} = MatMul({a}, c_square)",
    "v{i} = Conv({a}, c_kernel)",
    "v{i} = Conv<pads=[1,1]>({a}, c_kernel3, c_g)",
    "v{i} = Softmax<axis=1>({a})",
    "v{i} = Clip({a}, c_low, cp_high)",
    "t{i} = Transpose<perm=[0,2,1]>({a})  s{i} = Add(t{i}, c_other)  v{i} = Transpose<perm=[0,2,1]>(s{i})",
    "t{i} = Transpose<perm=[2,0,1]>({a})  r{i} = Relu(t{i})  v{i} = Transpose<perm=[1,2,0]>(r{i})",
    "t{i} = Transpose<perm=[0,2,1]>({a})  u{i} = Transpose<perm=[0,2,1]>({b})  w{i} = Mul(t{i}, u{i})"
    "  v{i} = Transpose<perm=[0,2,1]>(w{i})",
    "r{i} = Reshape({a}, k_flat)  e{i} = Exp(r{i})  v{i} = Reshape(e{i}, k_shape)",
    "r{i} = Reshape({a}, k_rows)  m{i} = MatMul(r{i}, c_square)  b{i} = Add(m{i}, c_last)"
    "  v{i} = Reshape(b{i}, k_shape)",
    "p{i} = Concat<axis=2>({a}, {b})  v{i} = Slice(p{i}, k_two, k_six, k_two)",
    "n{i} = Shape({a})  v{i} = Reshape({a}, n{i})",
    "m{i} = ReduceMean({a}, k_two)  v{i} = Sub({a}, m{i})",
    "m{i} = ReduceMax<keepdims=0>({a}, k_two)  u{i} = Unsqueeze(m{i}, k_two)  v{i} = Div({a}, u{i})",
    "g{i} = Gather<axis=1>({a}, k_index)  u{i} = Unsqueeze(g{i}, k_one)  v{i} = Mul({b}, u{i})",
    "g{i} = Gather<axis=2>({a}, k_odd)  h{i} = Slice({b}, k_two, k_six, k_two)  v{i} = Concat<axis=2>(g{i}, h{i})",
    "v{i} = ScatterND({a}, k_where, c_block)",
    "p{i} = Concat<axis=1>({a}, {b})  t{i} = Transpose<perm=[0,2,1]>(p{i})  s{i} = Slice(t{i}, k_two, k_five, k_two)"
    "  v{i} = Transpose<perm=[0,2,1]>(s{i})",
    "f{i} = Pad({a}, k_pads)  v{i} = Conv(f{i}, c_kernel3)",
)
CONSTANTS = """float[4] c_last, float[3,1] c_middle, float[2,3,4] cp_full, float c_one, float[3] cp_g, float[3] c_g,
    float[4,4] c_square, float[3,3,1] c_kernel, float[3,3,3] c_kernel3, float c_low, float cp_high,
    float[2,4,3] c_other, float[2,2,4] c_block"""
SHAPES = """<int64[1] k_flat = {24}, int64[3] k_shape = {2, 3, 4}, int64[2] k_rows = {6, 4}, int64[1] k_two = {2},
    int64[1] k_six = {6}, int64[6] k_pads = {0, 0, 1, 0, 0, 1}, int64 k_index = {2}, int64[1] k_one = {1},
    int64[2] k_odd = {1, 3}, int64[1] k_five = {5}, int64[2,2,2] k_where = {0,1, 0,2, 1,1, 1,2}>"""


@st.composite
def random_models(draw: st.DrawFn) -> str:
    values, lines = ["x"], []
    for i in range(draw(st.integers(1, 9))):
        step = draw(st.sampled_from(STEPS))
        lines.append(step.format(i=i, a=draw(st.sampled_from(values)), b=draw(st.sampled_from(values))))
        values.append(f"v{i}")
    body = "\n".join(lines) + f"\ny = Identity({values[-1]})  z = Identity({draw(st.sampled_from(values[1:]))})"
    return f"g (float[2,3,4] x, {CONSTANTS}) => (float[2,3,4] y, float[2,3,4] z) {SHAPES} {{ {body} }}"


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(random_models())
def test_random_graphs_fold_to_equal_ones(source: str) -> None:
    before = load(model(source))
    after = fold(before)
    check(after)
    assert fold(after) is after
    assert difference(before, after, feeds(before)) <= 1e-4


COUNTS = {
    "converted/cifar10_resnet20.onnx": {"Conv": 19, "Relu": 19, "Add": 9, "Gemm": 1},
    "converted/fer_mini_xception.onnx": {"BatchNormalization": 0, "Mul": 0, "Conv": 23},
    "converted/kwt1_raw_audio.onnx": {"LayerNormalization": 24, "Gelu": 12, "Softmax": 12},
    "converted/mlkws_crnn_s.onnx": {"Scan": 0},
    "converted/stories260k_prefill64.onnx": {"RMSNormalization": 11},
    "mlperf_tiny/ad_autoencoder_float.onnx": {"Gemm": 10, "Relu": 9, "MatMul": 0, "Add": 0, "Mul": 0},
    "mlperf_tiny/ic_resnet8_float.onnx": {"Gemm": 1, "Add": 3, "MatMul": 0},
    "native/ch_PP-OCRv3_det_infer.onnx": {"BatchNormalization": 0, "ConvTranspose": 2},
    "native/gtcrn_simple_stream.onnx": {"BatchNormalization": 0, "GRU": 14},
    "native/magika_standard_v3_3.onnx": {"Gelu": 2, "Expand": 0, "Softmax": 1},
    "native/mnist-8.onnx": {"Conv": 2, "Relu": 2, "MaxPool": 2, "Reshape": 1, "Gemm": 1, "Add": 0},
    "native/silero_vad_16k_op15.onnx": {"If": 0, "Shape": 0, "LSTM": 1},
    "native/ultraface_RFB-320.onnx": {"BatchNormalization": 0, "Shape": 0, "Gather": 0},
}


@pytest.mark.parametrize("name", MODELS)
def test_real_models(shared_data: Path, tmp_path: Path, name: str) -> None:
    source = shared_data / "models" / name
    before = load(source, MODELS[name].shapes)
    after = fold(before)
    check(after)
    assert fold(after) is after
    assert all(kind.is_static for kind in after.types.values())
    counts = Counter(node.op for node in after.nodes)
    assert {op: counts[op] for op in COUNTS.get(name, {})} == COUNTS.get(name, {})
    assert _bytes(after) <= 1.02 * _bytes(before) + 16384
    assert _decoders(after) >= _decoders(before)
    save(after, tmp_path / "folded.onnx")
    pairs = zip(run(tmp_path / "folded.onnx", MODELS[name]), run(source, MODELS[name]), strict=True)
    assert max(largest_difference(got, expected) for got, expected in pairs) <= 1e-4


def _bytes(graph: Graph) -> int:
    return sum(array.nbytes for array in graph.constants.values())


def _decoders(graph: Graph) -> int:
    return sum(node.op == "DequantizeLinear" for node in graph.nodes)


OPEN = ("converted/cifar10_resnet20.onnx", "native/dnsmos_model_v8.onnx", "native/ch_ppocr_mobile_v2.0_cls_infer.onnx")


@pytest.mark.parametrize("name", OPEN)
def test_an_open_batch_stays_open(shared_data: Path, name: str) -> None:
    before = load(shared_data / "models" / name)
    after = fold(before)
    assert fold(after) is after
    assert not any(node.op in {"Shape", "BatchNormalization"} for node in after.nodes)
    rows = {key: np.concatenate([value] * 2) for key, value in MODELS[name].feeds().items()}
    assert difference(before, after, rows) <= 1e-4
