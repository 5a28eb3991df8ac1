"""Activations quantized at run time: which operators stand for a product, how close it is, that it is integer code."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from graphc.backends.decompose import decompose
from graphc.backends.integer import DOMAIN, integerize
from graphc.backends.reference import run
from graphc.execute import Session
from graphc.ir.check import check
from graphc.ir.graph import Graph
from graphc.passes.protocol import Context
from graphc.passes.quantize import Quantize
from tests.passes.quantized import assert_close, feeds_of, model, normal, only, ops

DYNAMIC = {"weights": "int8", "activations": "uint8", "calibrate": "dynamic"}

BODIES = {
    "conv": ("(float[1,3,8,8] x) => (float[1,4,8,8] y)", "y = Conv <pads = [1,1,1,1]> (x, w, b)", (4, 3, 3, 3), (4,)),
    "depthwise": ("(float[1,4,8,8] x) => (float[1,4,6,6] y)", "y = Conv <group = 4> (x, w)", (4, 1, 3, 3), None),
    "conv_1d": ("(float[1,3,16] x) => (float[1,4,14] y)", "y = Conv (x, w, b)", (4, 3, 3), (4,)),
    "gemm": (
        "(float[2,8] x) => (float[2,5] y)", "y = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (x, w, b)", (5, 8), (5,),
    ),
    "matmul": ("(float[2,3,8] x) => (float[2,3,5] y)", "h = MatMul (x, w)\ny = Add (h, b)", (8, 5), (5,)),
}  # fmt: skip


def dynamic(before: Graph, **options: Any) -> tuple[Graph, Context]:
    context = Context()
    step = Quantize.model_validate({**DYNAMIC, **options})
    assert step.observes(before) == ()
    after = step.apply(before, context)
    check(after)
    return after, context


@pytest.mark.parametrize("weights", ["int8", "uint8"])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("case", BODIES)
def test_products_run_on_integers_without_data(case: str, per_channel: bool, weights: str) -> None:
    signature, body, shape, bias = BODIES[case]
    before = model(signature, body, w=normal(*shape), **({"b": normal(*bias)} if bias else {}))
    after, context = dynamic(before, weights=weights, per_channel=per_channel)
    assert [skip.operator for skip in context.skips] == (["Add"] if case == "matmul" else [])
    assert_close(before, after, 34)
    integers = integerize(decompose(after))
    (product,) = (node for node in integers.nodes if node.domain == DOMAIN)
    assert integers.types[product.outputs[0]].dtype == np.int32
    feeds = feeds_of(before)[0]
    np.testing.assert_allclose(run(integers, feeds)["y"], Session(after).run(feeds)["y"], rtol=1e-5, atol=1e-5)


def test_weights_may_have_zero_points_of_their_own() -> None:
    before = model("(float[2,8] x) => (float[2,5] y)", "y = MatMul (x, w)", w=normal(8, 5) + np.float32(2))
    after, _ = dynamic(before, symmetric_weights=False)
    assert after.types[only(after, "MatMulInteger").inputs[3]].shape == (5,)
    assert_close(before, after, 38)


def test_products_of_one_value_share_its_integers() -> None:
    before = model(
        "(float[2,8] x) => (float[2,5] y, float[2,5] z)",
        "y = MatMul (x, w)\nz = MatMul (x, v)",
        w=normal(8, 5), v=normal(8, 5),
    )  # fmt: skip
    after, _ = dynamic(before)
    assert ops(after)["DynamicQuantizeLinear"] == 1


def test_what_stays_float_has_a_reason() -> None:
    before = model(
        "(float[2,3,8] x) => (float[2,3,5] y, float[2,8,8] z)",
        "h = MatMul (x, w)\ny = Softmax (h)\nt = Transpose <perm = [0,2,1]> (x)\nz = MatMul (t, x)",
        w=normal(2, 8, 5),
    )
    after, context = dynamic(before)
    assert after is before
    assert {skip.reason for skip in context.skips} == {
        "its weights are a batch of matrices",
        "its weights are computed at run time",
        "Softmax has no form for activations quantized at run time",
        "Transpose has no form for activations quantized at run time",
    }


def test_a_rule_can_make_one_node_dynamic_or_all_but_one() -> None:
    before = model(
        "(float[2,8] x) => (float[2,5] y)",
        "[first] h = MatMul (x, w)\n[second] y = MatMul (h, v)",
        w=normal(8, 8), v=normal(8, 5),
    )  # fmt: skip
    after, _ = dynamic(before, where=[{"name": "second", "activations": "none", "weights": "int4"}])
    assert ops(after)["MatMulInteger"] == ops(after)["DequantizeLinear"] == ops(after)["MatMul"] == 1
    assert_close(before, after, 12)


@pytest.mark.parametrize("options", [{"activations": "int8"}, {"io": "uint8"}])
def test_onnx_has_it_for_uint8_inside_the_graph_alone(options: dict[str, str]) -> None:
    with pytest.raises(ValidationError) as caught:
        Quantize.model_validate({**DYNAMIC, **options})
    assert [error["loc"] for error in caught.value.errors()] == [("calibrate",)]
