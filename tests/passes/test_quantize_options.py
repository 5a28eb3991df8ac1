"""Quantize: options for the whole and for single nodes, integer borders, reasons for what stays float, odd models."""

from collections import Counter
from typing import Any, get_args

import numpy as np
import pytest
from onnx import parser
from pydantic import ValidationError

from graphc.backends.integer import explain
from graphc.calibrate import calibrate
from graphc.errors import InputError
from graphc.execute import Session
from graphc.importer import load
from graphc.ir.check import check
from graphc.ir.graph import Array, Graph
from graphc.passes.protocol import Context
from graphc.passes.quantize import Quantize
from graphc.passes.quantize_ranges import Method
from tests.passes.quantized import (
    CONSTANTS,
    CONV,
    STATIC,
    assert_all_integer,
    assert_close,
    conv_relu,
    feeds_of,
    model,
    normal,
    ops,
    producer_chain,
    quantized,
)


@pytest.mark.parametrize(
    ("options", "location"),
    [
        ({"weights": "int8", "activations": "uint8"}, ("calibrate",)),
        ({"weights": "int8", "calibrate": "minmax"}, ("activations",)),
        ({"activations": "int8", "calibrate": "minmax"}, ("weights",)),
        ({**STATIC, "calibrate": "percentile"}, ("percentile",)),
        ({**STATIC, "percentile": 99.9}, ("percentile",)),
        ({"weights": "int8", "activations": "none", "io": "int8"}, ("io",)),
        ({**STATIC, "where": [{"name": "a", "io": "int8"}]}, ("where", 0, "io")),
        ({**STATIC, "where": [{"name": "a", "calibrate": "percentile"}]}, ("where", 0, "percentile")),
        ({**STATIC, "weights": "int3"}, ("weights",)),
        ({**STATIC, "where": [{"name": "a", "weights": ["int4"]}]}, ("where", 0, "weights")),
        ({**STATIC, "where": [{"name": "a", "group": 1}]}, ("where", 0, "group")),
    ],
)
def test_options_that_change_numbers_must_be_stated(options: dict[str, Any], location: tuple[object, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        Quantize.model_validate(options)
    assert [error["loc"] for error in caught.value.errors()] == [location]


@pytest.mark.parametrize("io", ["int8", "uint8"])
@pytest.mark.parametrize("activations", ["int8", "uint8"])
def test_integer_inputs_and_outputs_keep_their_names(io: str, activations: str) -> None:
    before = conv_relu()
    after, _ = quantized(before, io=io, activations=activations)
    assert (after.inputs, after.outputs) == (("x",), ("y",))
    assert [after.types[name].dtype.name for name in ("x", "y")] == [io, io]
    assert ops(after) == {"QuantizeLinear": 1, "DequantizeLinear": 3, "Conv": 1, "Relu": 1}
    assert not explain(after).skipped
    feeds = feeds_of(before)[0]
    expected = Session(before).run(feeds)["y"]
    scale, offset = after.constants["x_scale"], after.constants["x_zero_point"].astype(np.float32)
    info = np.iinfo(io)
    given = np.clip(np.rint(feeds["x"] / scale) + offset, info.min, info.max).astype(io)
    found = Session(after).run({"x": given})["y"].astype(np.float32)
    floats = (found - after.constants["y_zero_point"].astype(np.float32)) * after.constants["y_scale"]
    assert np.abs(floats - expected).max() < 4 * after.constants["y_scale"]


def test_integer_borders_of_a_float_graph_and_of_values_read_inside() -> None:
    before = model(
        "(float[2,4] x, float[2,4] t, int64[1] n) => (float[2,4] e, float[2,4] h, float[2,4] x2, int64[1] m)",
        "e = Exp (x)\nh = MatMul (x, w)\nk = Relu (h)\nx2 = Add (k, t)\nm = Add (n, n)",
        w=normal(4, 4),
    )
    step = Quantize.model_validate({**STATIC, "io": "int8"})
    given = [{**feeds_of_floats(before), "n": np.array([1])} for _ in range(3)]
    after = step.apply(before, Context(calibrate(before, step.observes(before), given)))
    check(after)
    kinds = {name: after.types[name].dtype.name for name in (*after.inputs, *after.outputs)}
    assert kinds == dict.fromkeys(("x", "t", "e", "h", "x2"), "int8") | {"n": "int64", "m": "int64"}
    zeros = {"x": np.zeros((2, 4), np.int8), "t": np.zeros((2, 4), np.int8), "n": np.array([3])}
    assert Session(after).run(zeros)["m"] == [6]


def feeds_of_floats(graph: Graph) -> dict[str, Array]:
    names = [name for name in graph.inputs if graph.types[name].dtype == np.float32]
    return {name: normal(*graph.types[name].dims) for name in names}


TWO = """
[stem] a = Conv <pads = [1,1,1,1]> (x, w1)
[act] b = Relu (a)
[head] y = Conv <pads = [1,1,1,1]> (b, w2)
"""


def two_convs() -> Graph:
    return model(CONV, TWO, w1=normal(4, 3, 3, 3), w2=normal(4, 4, 3, 3))


def test_a_node_can_keep_float_activations_and_still_get_integer_weights() -> None:
    after, context = quantized(two_convs(), where=[{"name": "head", "activations": "none"}])
    stem, head = (node for node in after.nodes if node.op == "Conv")
    assert all(after.producers[name].op == "DequantizeLinear" for name in stem.inputs)
    assert after.types[after.producers[head.inputs[1]].inputs[0]].dtype == np.int8
    assert producer_chain(after, "y")[0] == "Conv"
    assert [(skip.node, skip.reason) for skip in context.skips] == [
        ("head", "the options ask for floating-point activations")
    ]


def test_a_node_can_stay_float_altogether() -> None:
    after, context = quantized(two_convs(), where=[{"position": "first", "weights": "none"}])
    stem, head = (node for node in after.nodes if node.op == "Conv")
    assert stem.inputs[1] == "w1"
    assert after.constants["w1"].dtype == np.float32
    assert after.producers[head.inputs[1]].op == "DequantizeLinear"
    assert Counter(skip.node for skip in context.skips)["stem"] == 1


def test_nodes_may_have_formats_of_their_own() -> None:
    rule = {"name": "head", "activations": "int8", "weights": "uint8", "per_channel": False, "symmetric": True}
    after, _ = quantized(two_convs(), where=[rule])
    assert [after.types[f"{name}_zero_point"].dtype.name for name in ("x", "b", "y")] == ["uint8", "uint8", "int8"]
    assert after.constants["w2_scale"].shape == ()
    assert after.constants["w2_quantized"].dtype == np.uint8
    assert after.constants["y_zero_point"] == 0
    assert_all_integer(after)


@pytest.mark.parametrize(
    ("base", "rule"),
    [
        ({"weights": "int4", "group": 4, "rounding": "gptq"}, {"weights": "fp16"}),
        ({"weights": "int4", "group": 4, "bias_correction": True}, {"weights": "none"}),
        ({"weights": "int4", "group": 4}, {"per_channel": False}),
        ({**STATIC, "calibrate": "percentile", "percentile": 99.0}, {"calibrate": "minmax"}),
        ({**STATIC, "calibrate": "percentile", "percentile": 99.0}, {"activations": "none"}),
    ],
)
def test_a_rule_leaves_out_what_loses_its_meaning(base: dict[str, Any], rule: dict[str, Any]) -> None:
    step = Quantize.model_validate({"activations": "none", **base, "where": [{"position": "first", **rule}]})
    options = step.options(conv_relu())
    first = next(own for node, own in options.items() if node.op == "Conv")
    assert all(getattr(first, key) == value for key, value in rule.items())
    assert first.group is None and (first.percentile is None or first.calibrate == "percentile")


@pytest.mark.parametrize("asked", [{"rounding": "gptq"}, {"weight_range": "mse"}, {"bias_correction": True}])
def test_rounding_needs_integers(asked: dict[str, Any]) -> None:
    options = {"weights": "fp16", "activations": "none", **asked}
    with pytest.raises(ValidationError, match=r"nothing \(no weights are integers\)") as caught:
        Quantize.model_validate(options)
    assert [error["loc"] for error in caught.value.errors()] == [tuple(asked)]
    Quantize.model_validate({**options, "where": [{"operator": "MatMul", "weights": "int4"}]})


def test_float_nodes_and_integer_outputs_go_together() -> None:
    after, _ = quantized(two_convs(), io="int8", where=[{"name": "he*", "weights": "int8", "activations": "none"}])
    assert [after.types[name].dtype.name for name in ("x", "y")] == ["int8", "int8"]
    assert producer_chain(after, "y")[:2] == ["QuantizeLinear", "Conv"]


def test_weights_alone_need_no_data() -> None:
    before = two_convs()
    step = Quantize.model_validate({"weights": "int8", "activations": "none"})
    assert step.observes(before) == ()
    after = step.apply(before, Context())
    check(after)
    assert ops(after) == {"DequantizeLinear": 2, "Conv": 2, "Relu": 1}
    assert_close(before, after, 40)


def test_nothing_asked_changes_nothing() -> None:
    before = two_convs()
    context = Context()
    assert Quantize.model_validate({"weights": "none", "activations": "none"}).apply(before, context) is before
    assert len(context.skips) == 3


REASONS = {
    "z = Exp (c)": "its result spans more magnitudes than 8 bits hold",
    'z = Resize <mode = "linear"> (c, none, scales)': "it interpolates (linear)",
    "z = Pad (c, pads, one)": "it pads with 1.0, and only zero is exact on every grid",
    "z, i = MaxPool <kernel_shape = [2,2]> (c)\nu = Identity (i)": "it also gives 'i'",
    "d = Conv (x, w)\nz = Div (c, d)": "Div of several values has no 8-bit form",
    "z = InstanceNormalization (c, v4, v4)": "InstanceNormalization has no 8-bit form",
    "z = PRelu (c, v)": "it has a slope per channel",
    "z = Add (c, inf)": "its constant 'inf' holds NaN or infinity",
}


@pytest.mark.parametrize("body", REASONS)
def test_what_stays_float_has_a_reason(body: str) -> None:
    constants = {
        **CONSTANTS,
        "one": np.float32(1),
        "v4": np.ones(4, np.float32),
        "inf": np.full((4, 1, 1), -np.inf, np.float32),
    }
    used = {name: array for name, array in constants.items() if f"{name}," in body or f"{name})" in body}
    outputs = "(float z, int64 u)" if "u =" in body else "(float z)"
    before = model(f"(float[1,3,8,8] x) => {outputs}", f"c = Conv (x, w)\n{body}", w=normal(4, 3, 3, 3), **used)
    after, context = quantized(before)
    assert REASONS[body] in [skip.reason for skip in context.skips]
    assert "Conv" in ops(after)


def test_a_result_read_inside_a_subgraph_stays_float() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[1,3,8,8] x, bool k) => (float z)
    <float[4,3,1,1] w = {1,2,3,4,5,6,7,8,9,10,11,12}>
    {
      c = Conv (x, w)
      z = If (k) <then_branch = a () => (float p) { p = Relu (c) }, else_branch = b () => (float q) { q = Neg (c) }>
    }
    """
    graph = load(parser.parse_model(text))
    context = Context()
    assert Quantize.model_validate(STATIC).apply(graph, context) is graph
    reasons = {skip.operator: skip.reason for skip in context.skips}
    assert reasons == {"Conv": "its result is read inside a subgraph", "If": "If has no 8-bit form"}


def test_elementwise_work_without_a_product_stays_float() -> None:
    before = model("(float[4] x) => (float[4] y)", "y = Sigmoid (x)")
    context = Context()
    assert Quantize.model_validate(STATIC).apply(before, context) is before
    assert context.skips[0].reason == "no quantized convolution or matrix product is connected to it"


def test_a_quantized_model_is_left_alone() -> None:
    once, _ = quantized(two_convs())
    twice, context = quantized(once)
    assert twice is once
    assert {skip.reason for skip in context.skips} == {"it is quantized already"}


def test_compressed_and_computed_weights_stay() -> None:
    before = model(
        CONV,
        "c = Conv <pads = [1,1,1,1]> (x, w)\nk = ReduceMax (c)\nv = Mul (u, k)\ny = Conv <pads = [1,1,1,1]> (c, v)",
        w=normal(4, 3, 3, 3), u=normal(4, 4, 3, 3),
    )  # fmt: skip
    _, context = quantized(before)
    assert "its weights are computed at run time" in [skip.reason for skip in context.skips]


def test_weights_that_two_nodes_share_are_stored_once() -> None:
    before = model(
        "(float[1,4,8,8] x) => (float[1,4,8,8] y)",
        "c = Conv <pads = [1,1,1,1]> (x, w)\ny = Conv <pads = [1,1,1,1]> (c, w)",
        w=normal(4, 4, 3, 3),
    )
    after, _ = quantized(before)
    stored = [name for name, array in after.constants.items() if array.shape == (4, 4, 3, 3)]
    assert stored == ["w_quantized"]


def test_zero_channels_and_tiny_weights_are_harmless_and_values_without_a_range_stay_float() -> None:
    weights = normal(4, 3, 3, 3)
    weights[1] = 0
    weights[2] *= 1e-12
    bias = np.float32([1, 2, 3, 0])
    before = model(
        "(float[1,3,8,8] x) => (float[1,4,8,8] y, float[1,4,8,8] z)",
        "y = Conv <pads = [1,1,1,1]> (x, w, b)\nn = Neg (y)\nm = Mul (n, zero)\nz = Conv <pads = [1,1,1,1]> (m, v)",
        w=weights, b=bias, zero=np.float32(0), v=normal(4, 4, 3, 3),
    )  # fmt: skip
    after, context = quantized(before)
    feeds = feeds_of(before)[0]
    expected, found = Session(before).run(feeds), Session(after).run(feeds)
    step = float(after.constants["y_scale"])
    assert np.abs(found["y"] - expected["y"]).max() <= 4 * step
    assert np.abs(found["y"][:, 1:3] - expected["y"][:, 1:3]).max() <= 0.51 * step
    assert not found["z"].any()
    assert all(np.isfinite(array).all() for array in after.constants.values())
    reasons = {skip.node: skip.reason for skip in context.skips}
    assert "has one value in all of the calibration data" in reasons["z"]


def test_an_integer_input_that_the_data_does_not_vary_is_refused() -> None:
    graph = conv_relu()
    step = Quantize.model_validate({**STATIC, "io": "int8"})
    zeros = [{"x": np.zeros((1, 3, 8, 8), np.float32)}]
    with pytest.raises(InputError, match=r"input 'x': has one value in all .* data.*io: float"):
        step.apply(graph, Context(calibrate(graph, step.observes(graph), zeros)))


@pytest.mark.parametrize("method", [m for m in get_args(Method) if m != "best"])
def test_data_that_does_not_vary_makes_no_integers(method: str) -> None:
    graph = conv_relu()
    percentile = {"percentile": 99.0} if method == "percentile" else {}
    step = Quantize.model_validate({**STATIC, "calibrate": method, **percentile})
    context = Context(calibrate(graph, step.observes(graph), [{"x": np.full((1, 3, 8, 8), 3, np.float32)}]))
    assert step.apply(graph, context) is graph
    assert "one value in all of the calibration data" in context.skips[0].reason


def test_values_that_a_percentile_cuts_off_leave_no_range() -> None:
    graph = conv_relu()
    step = Quantize.model_validate({**STATIC, "calibrate": "percentile", "percentile": 90.0})
    rare = np.zeros((1, 3, 8, 8), np.float32)
    rare[0, 0, 0, 0] = 1
    context = Context(calibrate(graph, step.observes(graph), [{"x": rare}]))
    assert step.apply(graph, context) is graph
    assert "'x' has one value in nearly all of the calibration data" in context.skips[0].reason


def test_infinite_weights_stay_float_with_a_reason() -> None:
    weights = normal(4, 3, 3, 3)
    weights[0, 0, 0, 0] = np.inf
    before = model("(float[1,3,8,8] x) => (float z)", "z = Conv (x, w)", w=weights)
    context = Context()
    Quantize.model_validate(STATIC).apply(before, context)
    assert context.skips[0].reason == "its weights 'w' hold NaN or infinity"


def test_half_precision_stays_with_a_reason() -> None:
    before = model("(float16[1,3,8,8] x) => (float16 z)", "z = Conv (x, w)", w=normal(4, 3, 3, 3).astype(np.float16))
    context = Context()
    Quantize.model_validate(STATIC).apply(before, context)
    assert context.skips[0].reason == "its values are float16, not float32"


def test_integers_that_lead_to_floating_point_alone_are_not_made() -> None:
    """The statistics of a normalization: 8 bits would ruin them, and the division by them is float anyway."""
    before = model(
        "(float[2,8] x) => (float[2,5] y)",
        """
        h = MatMul (x, w)
        m = ReduceMean <keepdims = 1> (h, last)
        d = Sub (h, m)
        s = Mul (d, d)
        v = ReduceMean <keepdims = 1> (s, last)
        r = Sqrt (v)
        n = Div (d, r)
        k = Add (n, n2)
        y = MatMul (k, u)
        """,
        w=normal(8, 6), u=normal(6, 5), last=np.array([1]), n2=normal(6),
    )  # fmt: skip
    after, context = quantized(before)
    reasons = {skip.node: skip.reason for skip in context.skips}
    assert set(reasons.values()) == {
        "only floating-point nodes read its result",
        "everything that it reads is floating point",
        "Div of several values has no 8-bit form",
    }
    assert ops(after)["QuantizeLinear"] == 4, "x, h, k and y"
    assert_close(before, after, 25)
