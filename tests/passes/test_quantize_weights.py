"""Formats of constant weights: what is stored and how it is decoded, that it is as close as it can be, that it runs."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from pydantic import ValidationError

from graphc.backends.integer import integerize
from graphc.backends.reference import run
from graphc.execute import Session
from graphc.ir.check import check
from graphc.ir.graph import Graph, Node
from graphc.passes.protocol import Context
from graphc.passes.quantize import Quantize
from graphc.passes.quantize_schemes import FLOATS, FORMATS
from tests.passes.quantized import assert_all_integer, conv_relu, feeds_of, model, normal, only, ops, quantized

BODIES = {
    "conv": ("(float[1,5,8,8] x) => (float[1,4,6,6] y)", "y = Conv (x, w, b)", (4, 5, 3, 3), (4,)),
    "depthwise": ("(float[1,4,8,8] x) => (float[1,4,6,6] y)", "y = Conv <group = 4> (x, w, b)", (4, 1, 3, 3), (4,)),
    "conv_transpose": (
        "(float[1,12,5,5] x) => (float[1,6,7,7] y)", "y = ConvTranspose <group = 2> (x, w, b)", (12, 3, 3, 3), (6,),
    ),
    "gemm": ("(float[2,21] x) => (float[2,5] y)", "y = Gemm <alpha = 0.5> (x, w, b)", (21, 5), (5,)),
    "gemm_transposed": ("(float[2,21] x) => (float[2,5] y)", "y = Gemm <transB = 1> (x, w, b)", (5, 21), (5,)),
    "matmul": ("(float[1,3,21] x) => (float[1,3,5] y)", "h = MatMul (x, w)\ny = Add (h, b)", (21, 5), (5,)),
    "batched": ("(float[2,3,21] x) => (float[2,3,5] y)", "h = MatMul (x, w)\ny = Add (h, b)", (2, 21, 5), (5,)),
}  # fmt: skip


def product(case: str) -> Graph:
    signature, body, weights, bias = BODIES[case]
    return model(signature, body, w=normal(*weights), b=normal(*bias))


def stored(graph: Graph, **options: Any) -> tuple[Graph, Context]:
    context = Context()
    result = Quantize.model_validate({"activations": "none", **options}).apply(graph, context)
    check(result)
    return result, context


def decoder(graph: Graph) -> Node:
    return only(graph, "DequantizeLinear")


def noise(before: Graph, after: Graph) -> float:
    """Decibels of the error beside the result."""
    feeds = feeds_of(before)[0]
    expected, found = Session(before).run(feeds)["y"], Session(after).run(feeds)["y"]
    return float(10 * np.log10(np.square(found - expected).sum() / np.square(expected).sum()))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [None, 8])
@pytest.mark.parametrize("case", BODIES)
def test_fewer_bits_cost_accuracy_and_nothing_else(case: str, group: int | None, symmetric: bool) -> None:
    before = product(case)
    found = []
    for name in ("uint8", "int8", "uint4", "int4", "uint2", "int2"):
        after, _ = stored(before, weights=name, group=group, symmetric_weights=symmetric)
        q, scale, zero_point = (after.types[n] for n in decoder(after).inputs)
        assert (q.dtype, zero_point.dtype) == (FORMATS[name].dtype,) * 2
        assert scale.shape == zero_point.shape
        found.append(noise(before, after))
    bytes_, nibbles, pairs = found[:2], found[2:4], found[4:]
    assert max(bytes_) < -38 < min(nibbles)
    assert max(nibbles) < -13 < min(pairs) + 10


@pytest.mark.parametrize("case", BODIES)
def test_a_scale_for_every_group(case: str) -> None:
    before = product(case)
    coarse, _ = stored(before, weights="int4")
    fine, _ = stored(before, weights="int4", group=4)
    assert decoder(fine).get_int("block_size", 0) == 4
    assert noise(before, fine) < noise(before, coarse)
    integers, scale = (fine.constants[name] for name in decoder(fine).inputs[:2])
    axis = decoder(fine).get_int("axis", 1) % integers.ndim
    assert scale.shape[axis] == -(-integers.shape[axis] // 4), "the last group of a channel is shorter"


def test_groups_of_a_convolution_run_across_its_channels_and_taps() -> None:
    after, _ = stored(product("conv"), weights="int4", group=32)
    assert ops(after) == {"DequantizeLinear": 1, "Reshape": 1, "Conv": 1}
    assert after.types[decoder(after).inputs[0]].shape == (4, 45)
    assert after.types[decoder(after).inputs[1]].shape == (4, 2)
    assert only(after, "Conv").inputs[1] == only(after, "Reshape").outputs[0]


def test_a_group_that_a_channel_fits_in_is_that_channel() -> None:
    before = product("conv")
    one, other = (stored(before, weights="int4", group=group)[0] for group in (45, None))
    assert decoder(one).attributes == decoder(other).attributes == {"axis": 0}
    np.testing.assert_array_equal(one.constants["w_scale"], other.constants["w_scale"])


def test_asymmetric_weights_waste_no_integers_on_a_sign_that_is_absent() -> None:
    before = product("gemm_transposed")
    shifted = model(*BODIES["gemm_transposed"][:2], w=before.constants["w"] + 5, b=before.constants["b"])
    even, odd = (stored(shifted, weights="uint4", symmetric_weights=flag)[0] for flag in (True, False))
    assert noise(shifted, odd) < noise(shifted, even) - 3
    assert odd.constants["w_quantized"].astype(int).max(axis=1).tolist() == [15] * 5
    assert not odd.constants["w_zero_point"].any()


@pytest.mark.parametrize("weights", FLOATS)
@pytest.mark.parametrize("activations", ["none", "uint8"])
def test_narrower_floats_are_a_cast(weights: str, activations: str) -> None:
    before = conv_relu()
    options = {"weights": weights, "activations": activations, "calibrate": None if activations == "none" else "minmax"}
    after, context = stored(before, **options)
    assert ops(after) == {"Cast": 1, "Conv": 1, "Relu": 1}
    assert after.types[only(after, "Cast").inputs[0]].dtype == FLOATS[weights]
    bits = ml_dtypes.finfo(FLOATS[weights]).nmant + 1
    assert noise(before, after) < -6 * bits
    assert context.skips[0].node == "c"


def test_weights_beyond_the_range_of_a_float_stay() -> None:
    before = model("(float[2,4] x) => (float[2,3] y)", "y = MatMul (x, w)", w=np.full((4, 3), 1e6, np.float32))
    after, context = stored(before, weights="fp16")
    assert after is before
    assert [skip.reason for skip in context.skips] == ["its weights reach 1e+06, more than fp16 holds"]
    assert ops(stored(before, weights="bf16")[0]) == {"Cast": 1, "MatMul": 1}


def test_nodes_have_formats_of_their_own() -> None:
    before = model(
        "(float[1,4,8,8] x) => (float[1,4,8,8] y)",
        "[stem] c = Conv <pads = [1,1,1,1]> (x, w)\n[head] y = Conv <pads = [1,1,1,1]> (c, v)",
        w=normal(4, 4, 3, 3), v=normal(4, 4, 3, 3),
    )  # fmt: skip
    rules = [{"name": "head", "weights": "uint2", "group": None, "symmetric_weights": False}]
    after, _ = stored(before, weights="int4", group=6, where=rules)
    assert [after.constants[f"{name}_quantized"].dtype.name for name in "wv"] == ["int4", "uint2"]
    assert after.constants["v_scale"].shape == (4,)


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "int4", "group": 1},
        {"weights": "fp16", "group": 8},
        {"weights": "int8", "group": 8, "per_channel": False},
    ],
)
def test_groups_need_integers_of_single_channels(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Quantize.model_validate({"activations": "none", **options})
    assert [error["loc"] for error in caught.value.errors()] == [("group",)]


def test_grouped_weights_leave_the_activations_in_floating_point_and_say_why() -> None:
    context = Context()
    options = {"weights": "int4", "group": 8, "activations": "uint8", "calibrate": "minmax"}
    after = Quantize.model_validate(options).apply(product("matmul"), context)
    assert ops(after) == {"DequantizeLinear": 1, "MatMul": 1, "Add": 1}
    assert context.skips[0].reason == "its weights have a scale for every 8, so their sums are floating point"


@pytest.mark.parametrize("weights", ["int4", "uint4", "int2", "uint2"])
def test_few_bits_multiply_integer_activations(weights: str) -> None:
    before = conv_relu()
    after, _ = quantized(before, weights=weights, symmetric_weights=weights.startswith("i"))
    assert after.constants["w_quantized"].dtype == FORMATS[weights].dtype
    assert_all_integer(after)
    integers, feeds = integerize(after), feeds_of(before)[0]
    step = float(after.constants["y_scale"])
    found = run(integers, feeds)["y"] - Session(after).run(feeds)["y"]
    assert np.abs(found).max() <= 1.01 * step


LOOKED_UP = "(int64[1,6] i, float[5,2,12] x) => (float[1,6,40] y, float[5,2,2,8] h, float[5,1,2,8] g)"
RECURRENT = """
    y = Gather (table, i)
    h = LSTM <direction = "bidirectional", hidden_size = 8> (x, w, r)
    g = GRU <hidden_size = 8, linear_before_reset = 1> (x, w3, r3, b3)
"""


def looked_up() -> Graph:
    arrays = {"w": (2, 32, 12), "r": (2, 32, 8), "w3": (1, 24, 12), "r3": (1, 24, 8), "b3": (1, 48)}
    return model(LOOKED_UP, RECURRENT, table=normal(50, 40), **{name: normal(*dims) for name, dims in arrays.items()})


@pytest.mark.parametrize(
    ("options", "decibels"),
    [
        ({"weights": "int8"}, 38), ({"weights": "int8", "per_channel": False}, 33),
        ({"weights": "int4", "group": 4}, 15), ({"weights": "bf16"}, 45),
    ],
)  # fmt: skip
def test_tables_and_recurrent_weights_are_stored_too(options: dict[str, Any], decibels: float) -> None:
    before = looked_up()
    after, _ = stored(before, embeddings=options["weights"], **options)
    assert not any(array.dtype == np.float32 and array.size > 500 for array in after.constants.values())
    form = {**FLOATS, **{name: form.dtype for name, form in FORMATS.items()}}[options["weights"]]
    assert sum(array.size for array in after.constants.values() if array.dtype == form) >= 5 * 32 * 12
    rng = np.random.default_rng(2)
    feeds = {"i": rng.integers(-50, 50, (1, 6)), "x": rng.normal(size=(5, 2, 12)).astype(np.float32)}
    expected, found = Session(before).run(feeds), Session(after).run(feeds)
    for name in before.outputs:
        noise = np.square(found[name] - expected[name]).sum() / np.square(expected[name]).sum()
        assert -10 * np.log10(noise) > decibels, name


def test_tables_stay_unless_asked_for() -> None:
    after, _ = stored(looked_up(), weights="int8")
    assert after.constants["table"].dtype == np.float32
    assert only(after, "Gather").inputs[0] == "table"
