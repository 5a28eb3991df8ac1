"""Quantized models of other tools: the same numbers as in onnxruntime, from graphs of integers and decoders alone."""

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper, parser
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

import graphc
from graphc.backends.integer import explain
from graphc.backends.reference import run
from graphc.errors import UnsupportedError
from graphc.execute import Session
from graphc.importer import load
from graphc.ir.graph import Array, Graph
from graphc.qoperators import CONTRIB, RULES

HEAD = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'
RNG = np.random.default_rng(0)

NET = """
g (float[1,3,12,12] x) => (float[1,5] y) {
  c1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
  r1 = Relu (c1)
  c2 = Conv <pads = [1,1,1,1]> (r1, w2, b2)
  a = Add (c2, r1)
  s = Sigmoid (c2)
  m = Mul (a, s)
  j = Concat <axis = 1> (m, r1)
  l = LeakyRelu <alpha = 0.1> (j)
  p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (l)
  q = AveragePool <kernel_shape = [2,2]> (p)
  g1 = GlobalAveragePool (q)
  f = Flatten (g1)
  h = MatMul (f, w3)
  z = Gemm <transB = 1> (h, w4, b4)
  y = Softmax (z)
}
"""
SHAPES = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "w3": (16, 9), "w4": (5, 9), "b4": (5,)}


def model(text: str, **constants: Array) -> ModelProto:
    proto = parser.parse_model(HEAD + text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    return proto


def normal(*shape: int) -> Array:
    return np.asarray(RNG.normal(size=shape) * 0.3, np.float32)


def onnxruntime_says(proto: ModelProto, feeds: dict[str, Array]) -> Array:
    """The first result, each node by itself."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: Array = session.run(None, feeds)[0]
    return found


def assert_spelled_out(graph: Graph) -> None:
    assert not {(node.domain, node.op) for node in graph.nodes} & set(RULES)
    assert all(node.domain != CONTRIB for node in graph.nodes)


class Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self._rows: Iterator[dict[str, Array]] = iter([{"x": normal(1, 3, 12, 12)} for _ in range(8)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._rows, None)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("activations", [QuantType.QUInt8, QuantType.QInt8])
@pytest.mark.parametrize("form", [QuantFormat.QOperator, QuantFormat.QDQ])
def test_static_models_are_integers_throughout(
    form: QuantFormat, activations: QuantType, per_channel: bool, tmp_path: Path
) -> None:
    source = model(NET, **{name: normal(*shape) for name, shape in SHAPES.items()})
    options = {"activation_type": activations, "weight_type": QuantType.QInt8, "per_channel": per_channel}
    quantize_static(source, tmp_path / "q.onnx", Images(), quant_format=form, **options)
    proto = onnx.load(tmp_path / "q.onnx")
    graph = load(proto)
    assert_spelled_out(graph)
    integers = explain(graph)
    floats = [n.op for n in integers.graph.nodes if integers.graph.types[n.outputs[0]].dtype == np.float32]
    assert floats == ["DequantizeLinear"], "the last one"
    feeds = {"x": normal(1, 3, 12, 12)}
    expected = onnxruntime_says(proto, feeds)
    step = 1 / 256
    np.testing.assert_allclose(Session(graph).run(feeds)["y"], expected, rtol=0, atol=1.01 * step)
    np.testing.assert_allclose(run(integers.graph, feeds)["y"], expected, rtol=0, atol=1.01 * step)


@pytest.mark.parametrize("weights", [QuantType.QUInt8, QuantType.QInt8])
def test_dynamic_models_give_the_same_floats(weights: QuantType, tmp_path: Path) -> None:
    source = model(NET, **{name: normal(*shape) for name, shape in SHAPES.items()})
    kinds = None if weights == QuantType.QUInt8 else ["MatMul", "Gemm"]
    quantize_dynamic(source, tmp_path / "q.onnx", weight_type=weights, op_types_to_quantize=kinds)
    proto = onnx.load(tmp_path / "q.onnx")
    graph = load(proto)
    feeds = {"x": normal(1, 3, 12, 12)}
    np.testing.assert_allclose(Session(graph).run(feeds)["y"], onnxruntime_says(proto, feeds), rtol=1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "block"), [(4, 16), (4, 32), (8, 32), (2, 16)])
def test_packed_weights_become_decoders(bits: int, block: int, symmetric: bool) -> None:
    """40 rows are no whole number of groups of 16 or 32."""
    depth, columns = 40, 24
    groups, per_byte = -(-depth // block), 8 // bits
    packed = RNG.integers(0, 256, (columns, groups, block // per_byte), np.uint8)
    constants: dict[str, Array] = {"b": packed, "s": np.abs(normal(columns * groups)) + np.float32(0.1)}
    if not symmetric:
        constants["z"] = RNG.integers(0, 256, columns * -(-groups // per_byte), np.uint8)
    proto = model(
        f"""g (float[2,{depth}] x) => (float[2,{columns}] y) {{
          y = com.microsoft.MatMulNBits <K = {depth}, N = {columns}, bits = {bits}, block_size = {block}>
            (x, b, s{"" if symmetric else ", z"})
        }}""",
        **constants,
    )
    graph = load(proto)
    assert_spelled_out(graph)
    (decoder,) = (node for node in graph.nodes if node.op == "DequantizeLinear")
    kind = graph.types[decoder.inputs[0]]
    assert (kind.shape, kind.bits) == ((depth, columns), bits)
    feeds = {"x": normal(2, depth)}
    np.testing.assert_allclose(Session(graph).run(feeds)["y"], onnxruntime_says(proto, feeds), rtol=1e-4, atol=1e-4)


def test_packed_weights_may_have_their_rows_in_any_order() -> None:
    depth, columns, block = 64, 6, 16
    packed = RNG.integers(0, 256, (columns, depth // block, block // 2), np.uint8)
    scale, group_of = np.abs(normal(columns * depth // block)), RNG.permutation(np.arange(depth) // block)
    proto = model(
        f"""g (float[2,{depth}] x) => (float[2,{columns}] y) {{
          y = com.microsoft.MatMulNBits <K = {depth}, N = {columns}, bits = 4, block_size = {block}> (x, b, s, , g)
        }}""",
        b=packed, s=scale, g=group_of.astype(np.int32),
    )  # fmt: skip
    graph = load(proto)
    assert_spelled_out(graph)
    fields = np.stack([packed & 15, packed >> 4], axis=-1).reshape(columns, depth).astype(np.float32) - 8
    weights = fields * scale.reshape(columns, -1)[:, group_of]
    feeds = {"x": normal(2, depth)}
    np.testing.assert_allclose(Session(graph).run(feeds)["y"], feeds["x"] @ weights.T, rtol=1e-4, atol=1e-4)


def test_packed_weights_with_groups_of_other_sizes_stay_and_are_named(tmp_path: Path) -> None:
    proto = model(
        """g (float[2,32] x) => (float[2,2] y) {
          y = com.microsoft.MatMulNBits <K = 32, N = 2, bits = 4, block_size = 16> (x, b, s, , g)
        }""",
        b=np.zeros((2, 2, 8), np.uint8), s=np.ones(4, np.float32), g=np.zeros(32, np.int32),
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match="MatMulNBits"):
        graphc.compile(load(proto), {"targets": [{"cpu": "native"}]}, out=tmp_path)


U8, S8 = np.uint8, np.int8
SCALARS: dict[str, Array] = {
    "xs": np.float32(0.02), "xz": U8(120), "ys": np.float32(0.05), "yz": U8(100), "zs": np.float32(0.04), "zz": U8(7),
}  # fmt: skip
BODIES: dict[str, tuple[str, dict[str, Array]]] = {
    "where": (
        "(uint8[2,6] x) => (uint8[2,6] y) { y = com.microsoft.QLinearWhere (c, x, xs, xz, k, zs, zz, ys, yz) }",
        {"c": np.arange(6) % 2 == 0, "k": RNG.integers(0, 256, (2, 6), U8)},
    ),
    "gemm_with_a_float_result": (
        """(uint8[2,6] x) => (float[2,5] y) {
          y = com.microsoft.QGemm <alpha = 0.5, transB = 1> (x, xs, xz, w, ws, wz, b) }""",
        {
            "w": RNG.integers(-128, 128, (5, 6), S8), "ws": np.abs(normal(5)) + np.float32(0.01),
            "wz": np.zeros(5, S8), "b": RNG.integers(-500, 500, 5).astype(np.int32),
        },
    ),
    "softmax_of_opset_12": (
        """(uint8[2,3,4] x) => (uint8[2,3,4] y) {
          y = com.microsoft.QLinearSoftmax <axis = 1, opset = 12> (x, xs, xz, ps, pz) }""",
        {"ps": np.float32(1 / 256), "pz": U8(0)},
    ),
    "integer_product_to_float": (
        """(uint8[2,6] x) => (float[2,5] y) {
          y = com.microsoft.MatMulIntegerToFloat (x, w, xs, ws, xz, wz, b) }""",
        {
            "w": RNG.integers(-128, 128, (6, 5), S8), "ws": np.abs(normal(5)), "wz": np.zeros(5, S8), "b": normal(5),
        },
    ),
    "dynamic_product": (
        "(float[2,6] x) => (float[2,5] y) { y = com.microsoft.DynamicQuantizeMatMul (x, w, ws, wz, b) }",
        {"w": RNG.integers(0, 256, (6, 5), U8), "ws": np.float32(0.1), "wz": U8(128), "b": normal(5)},
    ),
    "fused_conv": (
        """(float[1,2,5,5] x) => (float[1,3,3,3] y) {
          y = com.microsoft.FusedConv <activation = "Clip", activation_params = [-0.5, 0.4]> (x, w, b, r) }""",
        {"w": normal(3, 2, 3, 3), "b": normal(3), "r": normal(1, 3, 3, 3)},
    ),
    "fused_gemm": (
        """(float[2,6] x) => (float[2,5] y) {
          y = com.microsoft.FusedGemm <activation = "LeakyRelu", activation_alpha = 0.2, alpha = 2.0> (x, w, b) }""",
        {"w": normal(6, 5), "b": normal(5)},
    ),
    "rounding": (
        """(float[2,6] x) => (float[2,6] y) {
          q = com.microsoft.QuantizeLinear (x, ws, wz)
          y = com.microsoft.DequantizeLinear (q, ws, wz) }""",
        {"ws": np.float32(0.001), "wz": np.int16(3)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_single_operators(name: str) -> None:
    text, constants = BODIES[name]
    names = {name for node in model("g " + text).graph.node for name in node.input}
    given = {key: np.asarray(array) for key, array in {**SCALARS, **constants}.items() if key in names}
    proto = model("g " + text, **given)
    graph = load(proto)
    assert_spelled_out(graph)
    kind = graph.types["x"]
    feeds = {"x": normal(*kind.dims) if kind.dtype == np.float32 else RNG.integers(0, 256, kind.dims, U8)}
    expected = onnxruntime_says(proto, feeds)
    found = Session(graph).run(feeds)["y"].astype(np.float64)
    step = 1 if expected.dtype == U8 else 1e-5
    np.testing.assert_allclose(found, expected.astype(np.float64), rtol=1e-5, atol=step)


def test_a_scale_that_is_computed_leaves_the_node_as_it_is() -> None:
    proto = model(
        """g (uint8[2,6] x, float s) => (uint8[2,5] y) {
          y = QLinearMatMul (x, s, xz, w, ws, wz, s, xz)
        }""",
        xz=np.asarray(U8(3)), w=RNG.integers(0, 256, (6, 5), U8), ws=np.float32([0.1]), wz=np.zeros(1, U8),
    )  # fmt: skip
    assert [node.op for node in load(proto).nodes] == ["QLinearMatMul"]


def test_integers_of_four_bits_keep_their_type() -> None:
    proto = model(
        """g (float[1,32] x) => (float[1,2] y) {
          y = com.microsoft.MatMulNBits <K = 32, N = 2, bits = 4, block_size = 32> (x, b, s)
        }""",
        b=np.full((2, 1, 16), 0x8F, np.uint8), s=np.ones(2, np.float32),
    )  # fmt: skip
    graph = load(proto)
    stored = next(array for array in graph.constants.values() if array.shape == (32, 2))
    assert stored.dtype == ml_dtypes.uint4
    assert stored[:2].astype(int).tolist() == [[15, 15], [8, 8]]
