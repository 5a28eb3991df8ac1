"""Quantize: where pairs stand, which grids are shared, and that nothing but rounding changes."""

import numpy as np
import pytest

from graphc.errors import InputError
from graphc.execute import Session
from graphc.ir import Graph
from graphc.passes.protocol import Context
from graphc.passes.quantize import Quantize
from tests.passes.quantized import (
    CONSTANTS,
    CONV,
    STATIC,
    assert_all_integer,
    assert_close,
    conv_relu,
    feeds_of,
    grids,
    model,
    normal,
    only,
    ops,
    producer_chain,
    quantized,
)


def test_conv_and_relu_are_one_unit_with_integer_weights_and_bias() -> None:
    before = conv_relu()
    after, context = quantized(before)
    assert ops(after) == {"QuantizeLinear": 2, "DequantizeLinear": 4, "Conv": 1, "Relu": 1}
    assert producer_chain(after, "y") == [
        "DequantizeLinear", "QuantizeLinear", "Relu", "Conv", "DequantizeLinear", "QuantizeLinear",
    ]  # fmt: skip
    conv = only(after, "Conv")
    weights, bias = (after.producers[name] for name in conv.inputs[1:])
    assert [after.types[n].dtype.name for n in weights.inputs] == ["int8", "float32", "int8"]
    assert [after.types[n].shape for n in weights.inputs[1:]] == [(4,), (4,)]
    assert weights.attributes["axis"] == 0
    assert [after.types[n].dtype.name for n in bias.inputs] == ["int32", "float32"]
    steps = after.constants[weights.inputs[1]] * after.constants["x_scale"]
    np.testing.assert_array_equal(after.constants[bias.inputs[1]], steps)
    assert after.constants["y_zero_point"] == 0, "what a Relu gives starts at the lowest integer"
    assert context.skips == []
    assert_close(before, after, 35)
    assert_all_integer(after)


def test_names_are_readable() -> None:
    after, _ = quantized(conv_relu())
    assert {"x_quantized", "x_dequantized", "x_scale", "w_quantized", "w_scale", "b_quantized"} <= set(after.types)
    assert "y" in after.outputs


def test_the_pass_gives_the_same_bytes_every_time() -> None:
    graph = conv_relu()
    first, second = (quantized(graph)[0].to_onnx().SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_statistics_are_needed_and_asked_for() -> None:
    graph = conv_relu()
    step = Quantize.model_validate(STATIC)
    assert [observation.value for observation in step.observes(graph)] == ["x", "y"]
    with pytest.raises(InputError, match=r"value 'x': has no statistics.*calibration"):
        step.apply(graph, Context())


UNITS = {
    "conv": (CONV, "y = Conv <pads = [1,1,1,1]> (x, w, b)", {"w": (4, 3, 3, 3), "b": (4,)}),
    "conv_1d": ("(float[1,3,16] x) => (float[1,4,14] y)", "y = Conv (x, w)", {"w": (4, 3, 3)}),
    "depthwise": (
        "(float[1,4,8,8] x) => (float[1,4,6,6] y)",
        "y = Conv <group = 4> (x, w, b)",
        {"w": (4, 1, 3, 3), "b": (4,)},
    ),
    "conv_transpose": (
        "(float[1,4,5,5] x) => (float[1,6,11,11] y)",
        "y = ConvTranspose <group = 2, strides = [2,2]> (x, w, b)",
        {"w": (4, 3, 3, 3), "b": (6,)},
    ),
    "gemm": ("(float[2,8] x) => (float[2,5] y)", "y = Gemm <transB = 1> (x, w, b)", {"w": (5, 8), "b": (5,)}),
    "gemm_factors": (
        "(float[2,8] x) => (float[2,5] y)",
        "y = Gemm <alpha = -0.5, beta = 2.0> (x, w, b)",
        {"w": (8, 5), "b": (1, 5)},
    ),
    "gemm_one_bias": ("(float[2,8] x) => (float[2,5] y)", "y = Gemm (x, w, b)", {"w": (8, 5), "b": (1,)}),
    "matmul_bias": (
        "(float[1,3,8] x) => (float[1,3,5] y)",
        "h = MatMul (x, w)\na = Add (b, h)\ny = Relu (a)",
        {"w": (8, 5), "b": (5,)},
    ),
    "matmul_of_activations": (
        "(float[1,2,4,8] x, float[1,2,8,4] z) => (float[1,2,4,4] y)",
        "y = MatMul (x, z)",
        {},
    ),
    "batched_weights": ("(float[2,3,8] x) => (float[2,3,5] y)", "y = MatMul (x, w)", {"w": (2, 8, 5)}),
    "constant_left": ("(float[1,8,5] x) => (float[1,3,5] y)", "y = MatMul (w, x)", {"w": (3, 8)}),
}


@pytest.mark.parametrize("weights", ["int8", "uint8"])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("case", UNITS)
def test_products_become_integer_units(case: str, per_channel: bool, weights: str) -> None:
    signature, body, shapes = UNITS[case]
    before = model(signature, body, **{name: normal(*shape) for name, shape in shapes.items()})
    after, context = quantized(before, weights=weights, per_channel=per_channel)
    assert context.skips == []
    assert_close(before, after, 30)
    assert_all_integer(after)


@pytest.mark.parametrize("case", UNITS)
def test_products_take_sixteen_bits_where_their_sums_fit(case: str) -> None:
    signature, body, shapes = UNITS[case]
    before = model(signature, body, **{name: normal(*shape) for name, shape in shapes.items()})
    after, context = quantized(before, activations="int16", per_channel=False)
    if case in ("matmul_of_activations", "constant_left"):  # 16 by 16 bits
        (skip,) = context.skips
        assert skip.reason.startswith("the int32 accumulator could overflow: its sums may reach")
        return
    assert context.skips == []
    weights_alone, _ = quantized(before, activations="none", calibrate=None, per_channel=False)
    assert_close(weights_alone, after, 50)  # rounded weights may reach beyond the float model's ranges
    assert_all_integer(after)


@pytest.mark.parametrize(("depth", "fits"), [(500, True), (530, False)])
def test_sixteen_bits_stay_float_where_the_sum_could_leave_int32(depth: int, fits: bool) -> None:
    w = np.ones((depth, 2), np.float32)  # 127 each
    before = model(f"(float[1,{depth}] x) => (float[1,2] y)", "y = MatMul (x, w)", w=w)
    _, context = quantized(before, activations="int16")
    assert [skip.operator for skip in context.skips] == ([] if fits else ["MatMul"])


AROUND = {
    "add": ("z = Add (c, d)", 34),
    "sub": ("z = Sub (c, d)", 34),
    "mul": ("z = Mul (c, d)", 28),
    "add_constant": ("z = Add (c, v)", 34),
    "mul_constant": ("z = Mul (c, v)", 30),
    "div_scalar": ("z = Div (c, s)", 34),
    "add_relu": ("h = Add (c, d)\nz = Relu (h)", 34),
    "relu_alone": ("h = Add (c, d)\nk = Relu (c)\nz = Add (h, k)", 30),
    "average_pool": ("z = AveragePool <kernel_shape = [2,2], strides = [2,2]> (c)", 30),
    "global_average_pool": ("z = GlobalAveragePool (c)", 24),
    "max_pool": ("z = MaxPool <kernel_shape = [2,2]> (c)", 34),
    "reduce_mean": ("z = ReduceMean <keepdims = 0> (c, axes)", 24),
    "softmax": ("z = Softmax <axis = 1> (c)", 28),
    "sigmoid": ("z = Sigmoid (c)", 34),
    "tanh": ("z = Tanh (c)", 30),
    "hard_swish": ("z = HardSwish (c)", 30),
    "hard_sigmoid": ("z = HardSigmoid (c)", 30),
    "leaky_relu": ("z = LeakyRelu <alpha = 0.1> (c)", 34),
    "elu": ("z = Elu (c)", 30),
    "clip": ("z = Clip (c, low, high)", 30),
    "gelu": ("z = Gelu (c)", 30),
    "swish_of_two": ("h = Sigmoid (c)\nz = Mul (c, h)", 30),
    "concat": ("z = Concat <axis = 1> (c, d)", 34),
    "transpose": ("z = Transpose <perm = [0,2,3,1]> (c)", 34),
    "reshape": ("z = Reshape (c, shape)", 34),
    "flatten": ("z = Flatten (c)", 34),
    "slice": ("z = Slice (c, starts, far, axes)", 30),
    "pad": ("z = Pad (c, pads)", 34),
    "pad_reflect": ('z = Pad <mode = "reflect"> (c, pads)', 34),
    "resize": ('z = Resize <mode = "nearest"> (c, none, scales)', 34),
    "gather": ("z = Gather <axis = 1> (c, picks)", 30),
    "depth_to_space": ("z = DepthToSpace <blocksize = 2> (c)", 34),
    "squeeze": ("h = Squeeze (c, zero)\nz = Unsqueeze (h, zero)", 34),
}


@pytest.mark.parametrize("activations", ["uint8", "int8"])
@pytest.mark.parametrize("case", AROUND)
def test_what_stands_around_products_runs_on_integers_too(case: str, activations: str) -> None:
    body, decibels = AROUND[case]
    convs = "c = Conv <pads = [1,1,1,1]> (x, w)\nd = Conv <pads = [1,1,1,1]> (x, w2)\n"
    used = {name: array for name, array in CONSTANTS.items() if f"{name}," in body or f"{name})" in body}
    weights = {"w": normal(4, 3, 3, 3), "w2": 2 * normal(4, 3, 3, 3)}
    probe = model("(float[1,3,8,8] x) => (float z)", convs + body, **weights, **used)
    after, context = quantized(probe, activations=activations)
    assert context.skips == []
    assert_close(probe, after, decibels)
    assert_all_integer(after)


def test_data_movement_and_concat_share_a_grid_with_what_they_move() -> None:
    before = model(
        "(float[1,3,8,8] x) => (float[1,8,4,4] y)",
        """
        c = Conv <pads = [1,1,1,1]> (x, w)
        d = Conv <pads = [1,1,1,1]> (x, v)
        j = Concat <axis = 1> (c, d)
        y = MaxPool <kernel_shape = [2,2], strides = [2,2]> (j)
        """,
        w=normal(4, 3, 3, 3), v=5 * normal(4, 3, 3, 3),
    )  # fmt: skip
    after, _ = quantized(before)
    assert len(grids(after, "c", "d", "j", "y")) == 1
    assert_all_integer(after)


def test_a_concat_operand_that_others_read_keeps_its_own_grid() -> None:
    before = model(
        "(float[1,3,8,8] x) => (float[1,8,8,8] j, float[1,4,8,8] y)",
        """
        c = Conv <pads = [1,1,1,1]> (x, w)
        d = Conv <pads = [1,1,1,1]> (x, v)
        j = Concat <axis = 1> (c, d)
        y = Sigmoid (c)
        """,
        w=normal(4, 3, 3, 3), v=5 * normal(4, 3, 3, 3),
    )  # fmt: skip
    after, _ = quantized(before)
    assert len(grids(after, "c", "d")) == 2
    assert grids(after, "d") == grids(after, "j")
    assert_all_integer(after)


def test_a_concat_of_very_different_ranges_stays_float_with_what_follows_it() -> None:
    before = model(
        "(float[1,3,8,8] x) => (float[1,512] y)",
        """
        c = Conv <pads = [1,1,1,1]> (x, w)
        d = Conv <pads = [1,1,1,1]> (x, v)
        s = Sigmoid (c)
        j = Concat <axis = 1> (s, d)
        y = Flatten (j)
        """,
        w=normal(4, 3, 3, 3), v=100 * normal(4, 3, 3, 3),
    )  # fmt: skip
    after, context = quantized(before)
    reasons = {skip.operator: skip.reason.split(":")[0] for skip in context.skips}
    assert reasons["Flatten"] == "everything that it reads is floating point"
    assert reasons["Concat"].startswith("its operands span 1 and")
    feeds = feeds_of(before)[0]
    expected, found = Session(before).run(feeds)["y"], Session(after).run(feeds)["y"]
    assert np.abs(expected - found)[:, :256].max() < 0.05, "what a Sigmoid gives is not rounded to hundreds"


def test_an_attention_mask_does_not_crush_the_scores() -> None:
    mask = np.triu(np.full((6, 6), -1e9, np.float32), 1)
    before = model(
        "(float[6,8] x) => (float[6,8] y)",
        """
        q = MatMul (x, wq)
        t = Transpose <perm = [1,0]> (x)
        s = MatMul (q, t)
        m = Add (s, mask)
        p = Softmax (m)
        y = MatMul (p, x)
        """,
        wq=normal(8, 8), mask=mask,
    )  # fmt: skip
    after, context = quantized(before)
    reasons = {skip.operator: skip.reason for skip in context.skips}
    assert reasons["Add"].endswith("and 1e+09: one grid would crush the smaller")
    assert reasons["Softmax"] == "everything that it reads is floating point"
    assert ops(after)["QuantizeLinear"] == 6, "x, t, q, s, p and y"
    assert_close(before, after, 25)


def test_a_chain_of_functions_of_one_value_is_rounded_once() -> None:
    before = model(
        CONV.replace("y)", "y, float[1,4,8,8] z)"),
        """
        c = Conv <pads = [1,1,1,1]> (x, w)
        h = Add (c, three)
        k = Clip (h, zero, six)
        m = Mul (c, k)
        y = Div (m, six)
        z = Tanh (h)
        """,
        w=normal(4, 3, 3, 3), three=np.float32(3), zero=np.float32(0), six=np.float32(6),
    )  # fmt: skip
    after, _ = quantized(before)
    assert ops(after)["QuantizeLinear"] == 4, "x, c, y and z"
    assert_close(before, after, 30)
    assert_all_integer(after)


def test_softmax_is_on_the_grid_of_one_256th() -> None:
    before = model("(float[2,8] x) => (float[2,5] y)", "h = MatMul (x, w)\ny = Softmax (h)", w=normal(8, 5))
    after, _ = quantized(before)
    assert grids(after, "y") == {(1 / 256, 0)}
    assert grids(quantized(before, activations="int8")[0], "y") == {(1 / 256, -128)}


RESIDUAL = """
    c = Conv <pads = [1,1,1,1]> (x, w)
    d = Conv (x, v)
    a = Add (d, c)
    y = Relu (a)
"""


def residual() -> Graph:
    """Two convolutions and their sum."""
    signature = "(float[1,3,8,8] x) => (float[1,4,8,8] y)"
    return model(signature, RESIDUAL, w=normal(4, 3, 3, 3), v=normal(4, 3, 1, 1))


def test_a_sum_takes_the_product_made_last_as_it_is() -> None:
    before = residual()
    after, context = quantized(before)
    assert context.skips == []
    assert [after.producers[name].op for name in only(after, "Add").inputs] == ["Conv", "DequantizeLinear"]
    assert_close(before, after, 35)
    assert_all_integer(after)


def test_terms_are_rounded_where_that_is_asked_for() -> None:
    before = residual()
    after, _ = quantized(before, round_terms=True)
    assert [after.producers[name].op for name in only(after, "Add").inputs] == ["DequantizeLinear"] * 2
    rule = {"operator": "Add", "round_terms": True}
    assert ops(quantized(before, where=[rule])[0]) == ops(after)
    assert_all_integer(after)


def test_a_product_with_another_reader_is_rounded_for_both() -> None:
    signature = "(float[1,3,8,8] x) => (float[1,3,8,8] y, float[1,3,8,8] c)"
    before = model(signature, "c = Conv <pads = [1,1,1,1]> (x, w)\ny = Add (c, x)", w=normal(3, 3, 3, 3))
    after, _ = quantized(before)
    assert [after.producers[name].op for name in only(after, "Add").inputs] == ["DequantizeLinear"] * 2


def test_sixteen_bits_keep_what_eight_round_away_and_stay_integers() -> None:
    before = model(
        "(float[1,3,8,8] x) => (float[1,4,1,1] y)",
        """
        c = Conv <pads = [1,1,1,1]> (x, w, b)
        r = Relu (c)
        d = Conv <pads = [1,1,1,1]> (r, v)
        a = Add (d, r)
        y = GlobalAveragePool (a)
        """,
        w=normal(4, 3, 3, 3), b=normal(4), v=normal(4, 4, 3, 3),
    )  # fmt: skip
    after, context = quantized(before, activations="int16")
    assert context.skips == []
    assert {zero for _, zero in grids(after, "x", "r", "d", "a", "y")} == {0}
    assert_all_integer(after)
    weights_alone, _ = quantized(before, activations="none", calibrate=None)
    assert_close(weights_alone, after, 60)


def test_sixteen_bits_reach_twice_as_far_as_the_values_seen() -> None:
    before = conv_relu()
    seen = max(np.abs(feed["x"]).max() for feed in feeds_of(before))
    [(scale, zero)] = grids(quantized(before, activations="int16")[0], "x")
    assert (zero, scale) == (0, pytest.approx(2 * seen / 32767, rel=1e-6))


def test_functions_of_sixteen_bits_stay_float() -> None:
    before = model(
        "(float[2,8] x) => (float[2,5] y)",
        "h = MatMul (x, w)\ns = Sigmoid (h)\nk = Add (h, n)\nm = Mul (s, k)\ny = MatMul (m, v)",
        w=normal(8, 6), v=normal(6, 5), n=normal(2, 6),
    )  # fmt: skip
    after, context = quantized(before, activations="int16")
    reasons = {skip.operator: skip.reason for skip in context.skips}
    assert reasons["Sigmoid"] == "Sigmoid of 16 bits would need a table of 65536 entries"
    assert reasons["Add"] == "Add of 16 bits would need a table of 65536 entries"
    weights_alone, _ = quantized(before, activations="none", calibrate=None)
    assert_close(weights_alone, after, 35)
