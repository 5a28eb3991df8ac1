"""Decomposed graphs give what onnxruntime (or onnx's own evaluator) gives for the operators they came from."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from graphc.backends.decompose import RULES, decompose
from graphc.execute import Session
from graphc.exporter import to_model
from graphc.importer import load
from graphc.ir.graph import Array, Graph

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def graph_of(
    op: str, operands: list[Array | None], constants: tuple[int, ...] = (), outputs: int = 1, **attributes: Any
) -> tuple[Graph, dict[str, Array]]:
    """One node whose operands are inputs (`constants`: their positions among the operands that are not), and feeds."""
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(operands)]
    given = {n: x for i, (n, x) in enumerate(zip(names, operands, strict=True)) if x is not None and i not in constants}
    fixed = {names[i]: operands[i] for i in constants}
    node = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], **attributes)
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in given.items()
    ]
    results = [helper.make_empty_tensor_value_info(name) for name in node.output]
    tensors = [numpy_helper.from_array(x, name) for name, x in fixed.items()]
    model: ModelProto = helper.make_model(
        helper.make_graph([node], "one", inputs, results, tensors),
        opset_imports=[helper.make_opsetid("", 26)],
        ir_version=13,
    )
    return load(model), given


def compare(graph: Graph, given: dict[str, Array], rtol: float, atol: float, in_onnx: bool = False) -> Graph:
    """The decomposed graph, which holds no operator of RULES, after a comparison of all outputs."""
    written = decompose(graph)
    assert not {node.op for node in written.nodes} & set(RULES)
    if in_onnx:
        found = ReferenceEvaluator(to_model(graph)).run(None, given)
        expected = dict(zip(graph.outputs, found, strict=True))
    else:
        expected = Session(graph).run(given)
    actual = Session(written).run({name: given[name] for name in written.inputs})
    for name, value in expected.items():
        assert (actual[name].shape, actual[name].dtype) == (np.shape(value), value.dtype), name
        np.testing.assert_allclose(actual[name], value, rtol=rtol, atol=atol, equal_nan=True)
    return written


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(op: str, direction: str, steps: int = 4, **attributes: Any) -> tuple[Graph, dict[str, Array]]:
    """Batch 3, 5 inputs, 6 hidden; all operands there, sequences of different lengths."""
    both, gates = 2 if direction == "bidirectional" else 1, GATES[op]
    operands: list[Array | None] = [
        normal(steps, 3, 5), normal(both, gates * 6, 5), normal(both, gates * 6, 6), normal(both, 2 * gates * 6),
        np.array([steps, 1, steps - 1], np.int32), normal(both, 3, 6),
    ]  # fmt: skip
    if op == "LSTM":
        operands += [normal(both, 3, 6), normal(both, 18)]
    outputs = 3 if op == "LSTM" else 2
    return graph_of(
        op,
        operands,
        (1, 2, 3, 7)[: 4 if op == "LSTM" else 3],
        outputs,
        hidden_size=6,
        direction=direction,
        **attributes,
    )


@pytest.mark.parametrize(("op", "direction"), list(product(GATES, ("forward", "reverse", "bidirectional"))))
def test_recurrent_layers_step_by_step(op: str, direction: str) -> None:
    compare(*recurrent(op, direction), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("LSTM", {"clip": 0.4}),
        ("LSTM", {"input_forget": 1}),
        ("LSTM", {"activations": ["HardSigmoid", "ScaledTanh", "Affine"],
                  "activation_alpha": [0.3, 1.5, 0.7], "activation_beta": [0.4, 0.6, 0.1]}),
        ("GRU", {"linear_before_reset": 1}),
        ("GRU", {"clip": 0.3, "activations": ["Sigmoid", "LeakyRelu"], "activation_alpha": [0.2]}),
        ("RNN", {"activations": ["Relu"]}),
        ("RNN", {"activations": ["Softsign"], "clip": 0.5}),
    ],
)  # fmt: skip
def test_recurrent_options(op: str, attributes: dict[str, Any]) -> None:
    compare(*recurrent(op, "forward", **attributes), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", GATES)
def test_recurrent_layers_with_the_batch_first(op: str) -> None:
    graph, given = recurrent(op, "bidirectional")
    turned = {name: x.swapaxes(0, 1).copy() if x.ndim == 3 else x for name, x in given.items()}
    operands: list[Array | None] = [turned.get(n, graph.constants.get(n)) for n in graph.nodes[0].inputs]
    fixed = tuple(i for i, n in enumerate(graph.nodes[0].inputs) if n in graph.constants)
    outputs = len(graph.outputs)
    first, _ = graph_of(op, operands, fixed, outputs, hidden_size=6, direction="bidirectional", layout=1)
    expected = list(Session(graph).run(given).values())
    found = list(Session(decompose(first)).run(turned).values())
    np.testing.assert_allclose(found[0], expected[0].transpose(2, 0, 1, 3), rtol=1e-5, atol=1e-6)
    for x, y in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(x, y.swapaxes(0, 1), rtol=1e-5, atol=1e-6)


def test_a_single_step_has_no_slices_of_time() -> None:
    graph, given = graph_of("LSTM", [normal(1, 2, 5), normal(1, 24, 5), normal(1, 24, 6)], (1, 2), 3, hidden_size=6)
    written = compare(graph, given, rtol=1e-5, atol=1e-6)
    assert [node.op for node in written.nodes].count("MatMul") == 1  # the state is zero, so is its share


def test_sequences_too_long_to_unroll_stay() -> None:
    graph, _ = graph_of("RNN", [normal(600, 1, 2), normal(1, 3, 2), normal(1, 3, 3)], (1, 2), 2, hidden_size=3)
    assert decompose(graph) is graph


LABELS = RANDOM.integers(0, 5, (3, 4))
UINT8 = RANDOM.integers(0, 256, (2, 3, 5, 5)).astype(np.uint8)
IMAGE = normal(1, 2, 6, 7)
ROI = np.array([0, 0, -0.2, 0.3, 1, 1, 0.7, 1.2], np.float32)
CROP = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 9.0}
COMPLEX = normal(2, 10, 2)

ONNXRUNTIME = [
    ("Celu", [normal(3, 4)], (), {"alpha": 0.7}),
    ("SoftmaxCrossEntropyLoss", [normal(3, 5, 4), LABELS, np.abs(normal(5))], (),
     {"reduction": "mean", "ignore_index": 2}),
    ("NegativeLogLikelihoodLoss", [normal(3, 5, 4), LABELS], (), {"reduction": "sum"}),
    ("GroupNormalization", [normal(*n).astype(float) for n in ((2, 6, 5), (6,), (6,))], (), {"num_groups": 3}),
    ("LpNormalization", [normal(3, 4, 5)], (), {"axis": 1, "p": 1}),
    ("LpNormalization", [normal(3, 4, 5)], (), {"axis": -1, "p": 2}),
    ("ReverseSequence", [normal(5, 3, 2), np.array([5, 2, 1])], (), {}),
    ("ReverseSequence", [normal(3, 5), np.array([4, 0, 5])], (), {"time_axis": 1, "batch_axis": 0}),
    ("Det", [normal(2, 4, 4)], (), {}),
    ("Col2Im", [normal(2, 12, 16), np.array([5, 6]), np.array([2, 3])], (1, 2), {}),
    ("Col2Im", [normal(1, 8, 6), np.array([5, 6]), np.array([2, 2])], (1, 2), {"strides": [2, 2]}),
    ("DFT", [COMPLEX, None, np.array(1)], (2,), {}),
    ("DFT", [COMPLEX, np.array(12), np.array(1)], (1, 2), {"inverse": 1}),
    ("DFT", [normal(2, 9, 3, 1), None, np.array(1)], (2,), {"onesided": 1}),
    ("STFT", [normal(2, 40, 1), np.array(4), np.abs(normal(16)), np.array(16)], (1, 3), {}),
    ("STFT", [normal(1, 40), np.array(8), None, np.array(8)], (1, 3), {"onesided": 0}),
    ("ConvInteger", [UINT8, UINT8[:, :, :3, :3], np.array(9, np.uint8), np.array(99, np.uint8)], (), {"pads": [1] * 4}),
    ("LayerNormalization", [normal(3, 4, 5), normal(5), normal(4, 5)], (), {"axis": 1}),
    ("Resize", [IMAGE, None, np.array([1, 1, 0.6, 1.7], np.float32)], (2,), {"mode": "cubic", "antialias": 1}),
    ("Resize", [IMAGE, None, np.array([1, 1, 0.6, 0.5], np.float32)], (2,), {"mode": "linear", "antialias": 1}),
    ("Resize", [IMAGE, None, None, np.array([1, 2, 9, 8])], (3,), {"mode": "cubic", "exclude_outside": 1}),
    ("Resize", [IMAGE, None, None, np.array([1, 2, 9, 8])], (3,), {"mode": "nearest"}),
    ("Resize", [IMAGE, ROI, None, np.array([1, 2, 5, 4])], (1, 3), {"mode": "linear", **CROP}),
    ("DeformConv", [normal(1, 4, 6, 7), normal(2, 2, 3, 3), normal(1, 36, 3, 3), normal(2), normal(1, 18, 3, 3)], (),
     {"group": 2, "offset_group": 2, "strides": [2, 2], "pads": [1, 0, 0, 0]}),
    ("IsInf", [np.array([np.inf, -np.inf, 1, np.nan], np.float32)], (), {"detect_negative": 0}),
    ("Resize", [normal(2, 9), None, np.array([1, 0.7], np.float32)], (2,), {"mode": "linear"}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "operands", "constants", "attributes"), ONNXRUNTIME)
def test_as_in_onnxruntime(
    op: str, operands: list[Array | None], constants: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    compare(*graph_of(op, operands, constants, **attributes), rtol=1e-4, atol=2e-5)


IN_ONNX = [
    ("CumProd", [normal(3, 4), np.array(1)], (1,), {"exclusive": 1, "reverse": 1}),
    ("CumProd", [normal(3, 4), np.array(0)], (1,), {}),
    ("TensorScatter", [normal(2, 3, 6, 4), normal(2, 3, 2, 4), np.array([1, 3])], (), {"axis": 2}),
    ("TensorScatter", [normal(2, 6, 4), normal(2, 2, 4), np.array([5, 3])], (), {"axis": 1, "mode": "circular"}),
    ("AffineGrid", [normal(2, 2, 3), np.array([2, 3, 4, 5])], (1,), {"align_corners": 1}),
    ("AffineGrid", [normal(2, 3, 4), np.array([2, 3, 4, 5, 2])], (1,), {}),
    ("CenterCropPad", [normal(5, 8), np.array([7, 4])], (1,), {}),
    ("Swish", [normal(3, 4)], (), {"alpha": 1.5}),
    ("RotaryEmbedding", [normal(1, 2, 3, 8), normal(1, 3, 4), normal(1, 3, 4)], (), {"interleaved": 1}),
    ("Attention", [normal(1, 2, 4, 8), normal(1, 2, 6, 8), normal(1, 2, 6, 8)], (), {"is_causal": 1}),
]


@pytest.mark.parametrize(("op", "operands", "constants", "attributes"), IN_ONNX)
def test_as_in_onnx(
    op: str, operands: list[Array | None], constants: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    compare(*graph_of(op, operands, constants, **attributes), rtol=1e-5, atol=1e-6, in_onnx=True)


POOLS: list[dict[str, Any]] = [
    {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER", "storage_order": 1},
    {"kernel_shape": [2, 3], "dilations": [2, 2]},
]


@pytest.mark.parametrize("attributes", POOLS)
def test_maxima_and_where_they_lay(attributes: dict[str, Any]) -> None:
    compare(*graph_of("MaxPool", [normal(2, 3, 7, 8)], (), 2, **attributes), rtol=0, atol=0)


def test_maxima_go_back_to_their_places() -> None:
    x, places = normal(1, 1, 2, 2), np.array([5, 7, 13, 15]).reshape(1, 1, 2, 2)
    compare(*graph_of("MaxUnpool", [x, places], (), kernel_shape=[2, 2], strides=[2, 2]), rtol=0, atol=0)


def test_both_branches_are_computed_and_one_is_picked() -> None:
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["": 21]>
        choose (bool c, float[3] x) => (float[3] y) {
          y = If (c) <then_branch = a () => (float[3] p) { p = Relu (x) },
                      else_branch = b () => (float[3] q) { q = Neg (x) }>
        }""")
    for condition in (True, False):
        given = {"c": np.array(condition), "x": np.array([-1, 0, 2], np.float32)}
        written = compare(load(model), given, rtol=0, atol=0)
        assert "Where" in {node.op for node in written.nodes}


def test_batch_normalization_in_training() -> None:
    operands: list[Array | None] = [normal(4, 3, 5), normal(3), normal(3), normal(3), np.abs(normal(3))]
    compare(*graph_of("BatchNormalization", operands, (), 3, training_mode=1, momentum=0.8), rtol=1e-4, atol=1e-5)


def test_layer_normalization_gives_its_mean_and_deviation() -> None:
    graph, given = graph_of("LayerNormalization", [normal(3, 4, 5), normal(5), normal(5)], (), 3)
    compare(graph, given, rtol=1e-5, atol=1e-6)


def test_plain_nodes_are_left_alone() -> None:
    for op, operands, constants in (
        ("LayerNormalization", [normal(3, 5), normal(5)], ()),
        ("RMSNormalization", [normal(3, 5), normal(5)], ()),
        ("Resize", [normal(1, 2, 4, 4), None, np.array([1, 1, 2, 2], np.float32)], (2,)),
        ("BatchNormalization", [normal(4, 3), normal(3), normal(3), normal(3), np.abs(normal(3))], ()),
    ):
        graph, _ = graph_of(op, operands, constants)
        assert decompose(graph) is graph


def test_quantized_operators_become_pairs_around_plain_ones() -> None:
    x, w = (
        RANDOM.integers(0, 256, (1, 2, 5, 5)).astype(np.uint8),
        RANDOM.integers(-128, 128, (3, 2, 3, 3)).astype(np.int8),
    )
    scales = [np.array(0.02, np.float32), np.abs(normal(3)) / 50, np.array(0.07, np.float32)]
    zeros = [np.array(130, np.uint8), np.zeros(3, np.int8), np.array(99, np.uint8)]
    operands: list[Array | None] = [
        x,
        scales[0],
        zeros[0],
        w,
        scales[1],
        zeros[1],
        scales[2],
        zeros[2],
        np.array([5, -900, 70], np.int32),
    ]
    graph, given = graph_of("QLinearConv", operands, tuple(range(1, 9)), pads=[1, 1, 1, 1])
    written = decompose(graph)
    assert [node.op for node in written.nodes if node.op != "DequantizeLinear"] == ["Conv", "QuantizeLinear"]
    expected, found = Session(graph).run(given)["y0"], Session(written).run(given)["y0"]
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def test_quantized_products_of_two_inputs() -> None:
    a, b = RANDOM.integers(0, 256, (2, 4, 6)).astype(np.uint8), RANDOM.integers(0, 256, (2, 6, 3)).astype(np.uint8)
    one = [np.array(0.02, np.float32), np.array(120, np.uint8)]
    operands: list[Array | None] = [a, *one, b, *one, np.array(0.1, np.float32), np.array(128, np.uint8)]
    graph, given = graph_of("QLinearMatMul", operands, (1, 2, 4, 5, 6, 7))
    expected, found = Session(graph).run(given)["y0"], Session(decompose(graph)).run(given)["y0"]
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
