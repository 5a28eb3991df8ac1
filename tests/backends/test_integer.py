"""QDQ graphs become integer nodes, and those give what onnxruntime gives for the floats between, to a step."""

from collections.abc import Callable

import numpy as np
import pytest

from graphc.backends.integer import DOMAIN, explain, integerize
from graphc.backends.reference import run
from graphc.execute import Session
from graphc.importer import load
from graphc.ir.graph import Graph
from tests.backends.qdq import Qdq, feeds


def operators(graph: Graph) -> list[str]:
    """Operators in order, those of the integer domain with a star."""
    return [f"*{node.op}" if node.domain == DOMAIN else node.op for node in graph.nodes]


def agree(graph: Graph, steps: int = 1) -> Graph:
    """The integerized graph, after a comparison with onnxruntime over all integers that inputs take."""
    rewritten = integerize(graph)
    random = np.random.default_rng(7)
    for _ in range(3):
        given = feeds(graph, random)
        expected, found = Session(graph).run(given), run(rewritten, given)
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            assert found[name].shape == value.shape
            step = steps if value.dtype.kind in "iu" else 2e-5 * float(np.abs(value).max())
            assert np.abs(found[name].astype(np.float64) - value).max() <= step, name
    return rewritten


Build = Callable[[Qdq], None]
CASES: dict[str, tuple[Build, list[str]]] = {}


def case(*expected: str) -> Callable[[Build], Build]:
    def register(build: Build) -> Build:
        CASES[build.__name__] = (build, list(expected))
        return build

    return register


@case("*Conv")
def conv_per_channel_with_float_bias_and_relu(m: Qdq) -> None:
    x, w = m.input((2, 3, 9, 8)), m.weights((5, 3, 3, 3))
    y = m.node("Conv", [x, w, m.floats((5,))], pads=[1, 0, 1, 2], strides=[2, 1])
    m.result(m.node("Relu", [y]))


@case("*Conv")
def conv_uint8_weights_with_zero_points_and_clip(m: Qdq) -> None:
    x, w = m.input((1, 4, 7, 7), "uint8", 0.02, 128), m.weights((6, 2, 3, 3), 0, "uint8", (100, 150))
    y = m.node("Conv", [x, w], group=2, auto_pad="SAME_LOWER", strides=[2, 2])
    ends = [m.constant(np.array(v, np.float32)) for v in (-0.5, 6.0)]
    m.result(m.node("Clip", [y, *ends]), "uint8")


@case("*Conv")
def conv_depthwise_per_tensor_with_quantized_bias(m: Qdq) -> None:
    x, w = m.input((1, 4, 8, 8), scale=0.5), m.weights((4, 1, 3, 3), None)
    bias = m.dequantize(
        m.constant(np.array([1000, -2000, 5, 77], np.int32)), np.array(0.004, np.float32), np.array(0, np.int32)
    )
    m.result(m.node("Conv", [x, w, bias], group=4, auto_pad="SAME_UPPER"))


@case("*Conv")
def conv_1d_with_a_bias_added_after(m: Qdq) -> None:
    y = m.node("Conv", [m.input((2, 3, 16)), m.weights((4, 3, 5))], auto_pad="VALID")
    m.result(m.node("Relu", [m.node("Add", [m.floats((1, 4, 1)), y])]))


@case("*Conv")
def conv_3d(m: Qdq) -> None:
    m.result(m.node("Conv", [m.input((1, 2, 5, 5, 5)), m.weights((3, 2, 2, 2, 2))], strides=[2, 2, 1]))


@case("*Conv")
def conv_with_dead_channel_and_large_bias(m: Qdq) -> None:
    w = m.constant(np.zeros((2, 3, 1, 1), np.int8))
    scales = m.dequantize(w, np.array([1e-12, 1e-12], np.float32), np.zeros(2, np.int8), 0)
    m.output(
        m.quantize(
            m.node("Conv", [m.input((1, 3, 4, 4)), scales, m.constant(np.array([3, -2], np.float32))]), "int8", 0.1, 0
        )
    )


@case("*Conv")
def conv_of_transposed_weights(m: Qdq) -> None:
    w = m.node("Transpose", [m.weights((3, 3, 2, 5), 3)], perm=[3, 2, 0, 1])
    m.result(m.node("Conv", [m.input((1, 2, 6, 6)), w]))


@case("*Conv")
def conv_of_weights_quantized_in_the_graph(m: Qdq) -> None:
    scale, zero = m.constant(np.full(4, 0.01, np.float32)), m.constant(np.zeros(4, np.int8))
    q = m.node("QuantizeLinear", [m.floats((4, 2, 3, 3), 0.5), scale, zero], axis=0)
    m.result(m.node("Conv", [m.input((1, 2, 6, 6)), m.node("DequantizeLinear", [q, scale, zero], axis=0)]))


@case("*ConvTranspose")
def conv_transpose(m: Qdq) -> None:
    x, w = m.input((1, 3, 5, 6)), m.weights((3, 4, 3, 3), 1)
    attributes = {"strides": [2, 2], "pads": [1, 1, 0, 1], "output_padding": [1, 0]}
    m.result(m.node("ConvTranspose", [x, w, m.floats((4,))], **attributes))


@case("*ConvTranspose")
def conv_transpose_in_groups_with_output_shape(m: Qdq) -> None:
    x, w = m.input((2, 4, 5, 5), "uint8", 0.02, 7), m.weights((4, 3, 2, 2), 1, "int8", (-5, 6))
    m.result(m.node("ConvTranspose", [x, w], group=2, strides=[2, 2], output_shape=[9, 9]), "uint8")


@case("*MatMul")
def matmul_with_bias_and_relu(m: Qdq) -> None:
    y = m.node("MatMul", [m.input((2, 5, 16)), m.weights((16, 7), 1)])
    bias = m.dequantize(
        m.constant(np.arange(-300, 400, 100, dtype=np.int32)), np.full(7, 0.003, np.float32), np.zeros(7, np.int32), 0
    )
    m.result(m.node("Relu", [m.node("Add", [y, bias])]))


@case("*MatMul", "*MatMul")
def matmul_of_activations_scaled(m: Qdq) -> None:
    a, b = m.input((2, 3, 4, 8)), m.input((2, 3, 8, 5), "uint8", 0.02, 100)
    scores = m.node("Div", [m.node("MatMul", [a, b]), m.constant(np.array(2.5, np.float32))])
    c = m.input((2, 3, 5, 4))
    m.result(m.node("MatMul", [m.requantize(scores), c]))


@case("*MatMul")
def gemm_with_factors(m: Qdq) -> None:
    x, w = m.input((4, 12)), m.weights((6, 12), 0)
    m.result(m.node("Gemm", [x, w, m.floats((1, 6))], transB=1, alpha=0.5, beta=2.0))


@case("Transpose", "Transpose", "*MatMul")
def gemm_of_transposed_activations(m: Qdq) -> None:
    m.result(m.node("Gemm", [m.input((8, 4)), m.input((5, 8)), m.floats((5,))], transA=1, transB=1))


@case("*Add")
def add_of_two_grids_and_types(m: Qdq) -> None:
    a, b = m.input((2, 3, 4, 4), "int8", 0.05, 3), m.input((3, 1, 1), "uint8", 0.3, 120)
    m.result(m.node("Relu", [m.node("Add", [a, b])]))


@case("*Add")
def add_of_a_float_constant(m: Qdq) -> None:
    m.result(m.node("Add", [m.input((2, 3, 4)), m.floats((3, 4), 3.0)]))


@case("*Add")
def add_of_a_quantized_constant(m: Qdq) -> None:
    m.result(m.node("Add", [m.weights((3, 4), None), m.input((2, 3, 4))]))


@case("*Add", "*Add")
def subtract_both_ways(m: Qdq) -> None:
    x = m.input((2, 3, 4))
    m.result(m.node("Sub", [x, m.input((2, 3, 4), "uint8", 0.02, 9)]))
    m.result(m.node("Sub", [m.floats((3, 4), 2.0), x]))


@case("*Conv", "*Add")
def convolution_rounded_in_its_sum_alone(m: Qdq) -> None:
    y = m.node("Conv", [m.input((1, 3, 6, 6)), m.weights((5, 3, 3, 3)), m.floats((5,))], pads=[1, 1, 1, 1])
    m.result(m.node("Relu", [m.node("Add", [y, m.input((1, 5, 6, 6), "uint8", 0.3, 60)])]))


@case("*MatMul", "*Add", "*MatMul", "*Add")
def products_with_biases_rounded_in_their_sums_alone(m: Qdq) -> None:
    x, residual = m.input((2, 4, 16)), m.input((2, 4, 8), "uint8", 0.02, 9)
    m.result(m.node("Add", [residual, m.node("Add", [m.node("MatMul", [x, m.weights((16, 8), 1)]), m.floats((8,))])]))
    m.result(m.node("Sub", [residual, m.node("MatMul", [x, m.weights((16, 8), 1)])]))


@case("*Multiply")
def multiply_by_a_gate(m: Qdq) -> None:
    m.result(m.node("Mul", [m.input((2, 3, 4, 4)), m.input((2, 3, 1, 1), "uint8", 1 / 255, 0)]))


@case("*Table", "*Table", "*Table")
def functions_of_one_value(m: Qdq) -> None:
    x = m.input((2, 50), scale=0.06)
    m.result(m.node("HardSwish", [x]))
    m.result(m.node("Sigmoid", [x]), "uint8")
    m.result(m.node("PRelu", [x, m.constant(np.array([0.25], np.float32))]))


@case("*Table")
def gelu_spelled_out(m: Qdq) -> None:
    x = m.input((2, 50), scale=0.04)
    inner = m.node("Erf", [m.node("Div", [x, m.constant(np.array(np.sqrt(2), np.float32))])])
    shifted = m.node("Add", [inner, m.constant(np.array(1, np.float32))])
    m.result(m.node("Mul", [m.node("Mul", [x, shifted]), m.constant(np.array(0.5, np.float32))]))


@case("*Table")
def requantization(m: Qdq) -> None:
    m.result(m.input((3, 40), "uint8", 0.02, 17))


@case("*AveragePool", "*AveragePool")
def average_pools(m: Qdq) -> None:
    x = m.input((1, 3, 9, 8))
    m.result(m.node("AveragePool", [x], kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1], ceil_mode=1))
    m.result(m.node("AveragePool", [x], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1))


@case("*Mean", "*Mean", "*Mean")
def means(m: Qdq) -> None:
    x = m.input((2, 3, 7, 5))
    m.result(m.node("GlobalAveragePool", [x]))
    m.result(m.node("ReduceMean", [x, m.constant(np.array([1, -1]))], keepdims=0))
    m.result(m.node("ReduceSum", [x, m.constant(np.array([2]))]))


@case("*Softmax", "*Softmax")
def softmax(m: Qdq) -> None:
    x = m.input((2, 6, 30), scale=0.1)
    m.output(m.quantize(m.node("Softmax", [x]), "uint8", 1 / 256, 0))
    m.output(m.quantize(m.node("Softmax", [x], axis=1), "int8", 1 / 256, -128))


@case("MaxPool", "*Conv")
def max_pool_keeps_its_grid(m: Qdq) -> None:
    y = m.node("MaxPool", [m.input((1, 3, 8, 8))], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    m.result(m.node("Conv", [y, m.weights((4, 3, 1, 1))]))


@case("*Table", "*Conv", "*Table")
def raw_bytes(m: Qdq) -> None:
    """A Cast of 8-bit integers to floats is exact: the integers stand for themselves."""
    m.result(m.node("Conv", [m.requantize(m.raw((1, 2, 4, 4)), "uint8"), m.weights((3, 2, 1, 1))]))
    m.output(m.quantize(m.node("Relu", [m.raw((2, 3))]), "uint8", 2.0, 0))


@case("ReduceMax", "*Table")
def global_max_pool(m: Qdq) -> None:
    m.result(m.node("GlobalMaxPool", [m.input((2, 3, 5, 6))]))


@case("*Table", "*Table", "Concat")
def concat_of_two_grids(m: Qdq) -> None:
    m.result(m.node("Concat", [m.input((2, 3)), m.input((2, 4), "uint8", 0.1, 200)], axis=1))


@case("Pad", "*Conv")
def pad_with_zeros(m: Qdq) -> None:
    y = m.node("Pad", [m.input((1, 2, 4, 4)), m.constant(np.array([0, 0, 1, 1, 0, 0, 0, 2]))])
    m.result(m.node("Conv", [y, m.weights((3, 2, 3, 3))]))


@case("Split", "*Table", "Where")
def split_and_select(m: Qdq) -> None:
    first = m.node("Split", [m.input((2, 8, 5))], 2, axis=1, num_outputs=2)
    mask = m.constant(np.arange(5) < 3)
    m.result(m.node("Where", [mask, f"{first}_1", m.constant(np.array(-1e9, np.float32))]))


@case("Resize", "*Add")
def nearest_resize_and_add(m: Qdq) -> None:
    scales = m.constant(np.array([1, 1, 2, 2], np.float32))
    small = m.node("Resize", [m.input((1, 3, 4, 4)), "", scales], mode="nearest")
    m.result(m.node("Add", [small, m.input((1, 3, 8, 8), "int8", 0.1, 0)]))


@case("Transpose", "*Conv", "Transpose")
def transposes_between_floats(m: Qdq) -> None:
    x = m.node("Transpose", [m.input((1, 6, 6, 3))], perm=[0, 3, 1, 2])
    y = m.node("Conv", [x, m.weights((4, 3, 3, 3)), m.floats((4,))])
    m.result(m.node("Transpose", [m.node("Relu", [y])], perm=[0, 2, 3, 1]))


@case("*MatMul", "*MatMul", "Relu")
def products_that_nothing_rounds(m: Qdq) -> None:
    m.output(m.node("Gemm", [m.input((4, 64)), m.weights((10, 64), 0), m.floats((10,))], transB=1, alpha=0.5))
    y = m.node("MatMul", [m.input((2, 3, 40), "uint8", 0.02, 7), m.weights((40, 7), 1, "uint8", (100, 150))])
    m.output(m.node("Relu", [m.node("Add", [m.floats((7,)), y])]))


@case("*Conv", "Relu", "*ConvTranspose", "*MatMul")
def convolutions_and_scores_that_nothing_rounds(m: Qdq) -> None:
    x = m.input((1, 3, 9, 8))
    m.output(m.node("Relu", [m.node("Conv", [x, m.weights((5, 3, 3, 3)), m.floats((5,))], pads=[1, 1, 1, 1])]))
    m.output(m.node("ConvTranspose", [m.input((1, 3, 5, 6)), m.weights((3, 4, 3, 3), 1)], strides=[2, 2]))
    m.output(m.node("MatMul", [m.input((2, 3, 4, 8)), m.input((2, 3, 8, 5), "uint8", 0.02, 100)]))


@pytest.mark.parametrize("name", CASES)
def test_region_becomes_integer(name: str) -> None:
    build, expected = CASES[name]
    model = Qdq()
    build(model)
    result = explain(model.graph())
    assert result.skipped == ()
    assert operators(result.graph) == expected
    agree(model.graph())


def test_a_relu_moves_the_smallest_value_in() -> None:
    m = Qdq()
    y = m.node("Relu", [m.node("Conv", [m.input((1, 2, 4, 4)), m.weights((3, 2, 1, 1))])])
    m.output(m.quantize(y, "int8", 0.1, -20))
    (node,) = integerize(m.graph()).nodes
    assert (node.get_int("y_min", 0), node.get_int("y_max", 0), node.get_int("y_zero_point", 0)) == (-20, 127, -20)


def test_weights_are_int8_and_plain_zero_points_are_left_out() -> None:
    m = Qdq()
    x = m.input((1, 8))
    m.result(m.node("MatMul", [x, m.weights((8, 4), None, "uint8", (128, 129))]))
    (node,) = integerize(m.graph()).nodes
    assert len(node.inputs) == 4
    assert integerize(m.graph()).constants[node.inputs[1]].dtype == np.int8


def test_a_pair_on_one_grid_leaves_nothing() -> None:
    m = Qdq()
    x = m.input((2, 3), "int8", 0.05, 3)
    m.output(m.quantize(m.node("Reshape", [x, m.constant(np.array([3, 2]))]), "int8", 0.05, 3))
    assert operators(agree(m.graph(), steps=0)) == ["Reshape"]


def test_a_value_read_by_integers_and_floats_serves_both() -> None:
    m = Qdq()
    y = m.requantize(m.node("Conv", [m.input((1, 2, 4, 4)), m.weights((3, 2, 1, 1))]))
    m.result(m.node("Conv", [y, m.weights((2, 3, 1, 1))]))
    m.output(m.node("LpNormalization", [y], axis=1))
    result = explain(m.graph())
    assert operators(result.graph) == ["*Conv", "DequantizeLinear", "*Conv", "LpNormalization"]
    assert ["LpNormalization" in skip.reason for skip in result.skipped] == [True]
    given = feeds(m.graph(), m.random)
    expected, found = Session(m.graph()).run(given), run(result.graph, given)
    assert np.allclose(found[m.graph().outputs[1]], expected[m.graph().outputs[1]], rtol=0, atol=0.02)


REFUSALS: dict[str, tuple[Build, str]] = {}


def refusal(reason: str) -> Callable[[Build], Build]:
    def register(build: Build) -> Build:
        REFUSALS[build.__name__] = (build, reason)
        return build

    return register


@refusal("has no integer form")
def no_rule(m: Qdq) -> None:
    m.result(m.node("LpNormalization", [m.input((2, 8))]))


@refusal("is not quantized")
def float_weights(m: Qdq) -> None:
    m.result(m.node("Conv", [m.input((1, 2, 4, 4)), m.floats((3, 2, 1, 1))]))


@refusal("do not run along its output channels")
def scales_along_the_depth(m: Qdq) -> None:
    m.result(m.node("MatMul", [m.input((2, 8)), m.weights((8, 4), 0)]))


@refusal("nothing quantizes the result of Conv")
def no_pair_between(m: Qdq) -> None:
    y = m.node("Conv", [m.input((1, 2, 4, 4)), m.weights((3, 2, 1, 1))])
    m.result(m.node("Sigmoid", [y]))


@refusal("uint16 activations have no integer kernels")
def wide_activations(m: Qdq) -> None:
    m.output(m.quantize(m.node("Relu", [m.input((2, 3))]), "uint16", 0.01, 0))


@refusal("would need a table of 65536 entries")
def functions_of_int16(m: Qdq) -> None:
    m.output(m.quantize(m.node("Sigmoid", [m.input((2, 3), "int16", 1e-4, 0)]), "int16", 1e-4, 0))


@refusal("a constant is added to int16")
def constants_beside_int16(m: Qdq) -> None:
    m.output(m.quantize(m.node("Add", [m.input((2, 3), "int16", 1e-4, 0), m.floats((3,))]), "int16", 1e-4, 0))


@refusal("may overflow int64")
def sums_that_overflow(m: Qdq) -> None:
    bias = m.constant(np.array([1e18], np.float32))
    m.output(m.quantize(m.node("Conv", [m.input((1, 2, 4, 4)), m.weights((1, 2, 1, 1)), bias]), "int8", 1e7, 0))


@refusal("the int32 accumulator could overflow")
def products_of_sixteen_bits(m: Qdq) -> None:
    a, b = m.input((1, 8), "int16", 1e-4, 0), m.input((8, 2), "int16", 1e-4, 0)
    m.output(m.quantize(m.node("MatMul", [a, b]), "int16", 1e-4, 0))


@refusal("overflow int32")
def operands_much_coarser_than_the_sum(m: Qdq) -> None:
    y = m.node("Add", [m.input((2, 3), "int8", 1e3), m.input((2, 3))])
    m.output(m.quantize(y, "int8", 1e-5, 0))


@refusal("gives NaN")
def functions_without_a_value(m: Qdq) -> None:
    m.output(m.quantize(m.node("Log", [m.input((2, 3))]), "int8", 0.1, 0))


@refusal("interpolates")
def linear_resize(m: Qdq) -> None:
    scales = m.constant(np.array([1, 1, 2, 2], np.float32))
    m.result(m.node("Resize", [m.input((1, 3, 4, 4)), "", scales], mode="linear"))


@refusal("times as large as the result's")
def a_product_added_to_much_coarser_steps(m: Qdq) -> None:
    y = m.node("MatMul", [m.input((2, 3), "int8", 0.01), m.weights((3, 4), 1)])
    m.output(m.quantize(m.node("Add", [m.input((2, 4), "int8", 1.0), y]), "int8", 1e-3, 0))


@refusal("nothing quantizes the result of Conv")
def two_products_that_nothing_rounds_before_their_sum(m: Qdq) -> None:
    x = m.input((1, 3, 6, 6))
    m.result(m.node("Add", [m.node("Conv", [x, m.weights((5, 3, 1, 1))]) for _ in range(2)]))


@refusal("nothing rounds to 8 bits")
def a_product_that_enters_a_sum_of_sixteen_bits(m: Qdq) -> None:
    y = m.node("MatMul", [m.input((2, 3)), m.weights((3, 4), 1)])
    m.output(m.quantize(m.node("Add", [m.input((2, 4)), y]), "int16", 1e-4, 0))


@pytest.mark.parametrize("name", REFUSALS)
def test_what_stays_in_floating_point_says_why(name: str) -> None:
    build, reason = REFUSALS[name]
    model = Qdq()
    build(model)
    result = explain(model.graph())
    assert any(reason in skip.reason for skip in result.skipped), result.skipped
    assert "QuantizeLinear" in operators(result.graph)


@pytest.mark.parametrize("offset", [-(10**6), -3000, -700, 0, 700, 3000, 10**6])
def test_a_product_far_outside_its_sum_saturates_as_the_sum_does(offset: int) -> None:
    """Wherever the product lies, no 16 bits of it are too few: what is lost is beyond the sum's ends."""
    m = Qdq()
    bias = m.constant(np.full(8, offset * 0.05, np.float32))
    y = m.node("Gemm", [m.input((64, 16)), m.weights((16, 8), 1), bias])
    m.output(m.quantize(m.node("Add", [y, m.input((64, 8), "uint8", 0.3, 128)]), "int8", 0.05, -3))
    agree(m.graph())


def test_a_graph_without_quantization_is_the_same_object() -> None:
    m = Qdq()
    m.output(m.node("Relu", [m.floats((2, 3))]))
    graph = load(m.model())
    assert integerize(graph) is graph
