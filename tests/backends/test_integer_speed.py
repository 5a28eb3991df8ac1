"""Nodes that integers would slow down stay in floating point, and the report says by how much on which target."""

from graphc.backends import targets
from graphc.backends.integer_speed import slower_on
from graphc.calibrate import calibrate
from graphc.ir.graph import Graph
from graphc.passes.protocol import Context
from graphc.passes.quantize import Quantize
from tests.passes.quantized import STATIC, feeds_of, model, normal, ops, producer_chain

V2, V3 = (targets.resolve({"cpu": level}) for level in ("x86-64-v2", "x86-64-v3"))


def grouped() -> Graph:
    return model(
        "(float[1,4,16,16] x) => (float[1,4,8,8] y)",
        """
        [dense] a = Conv <pads = [1,1,1,1], dilations = [1,1], strides = [2,2]> (x, w)
        [grouped] g = Conv <pads = [1,1,1,1], group = 2> (a, v)
        [limits] r = Relu (g)
        [depthwise] y = Conv <pads = [1,1,1,1], group = 4> (r, u)
        """,
        w=normal(4, 4, 3, 3), v=normal(4, 2, 3, 3), u=normal(4, 1, 3, 3),
    )  # fmt: skip


def quantized_for(graph: Graph, *on: targets.Target) -> tuple[Graph, dict[str, str]]:
    step = Quantize.model_validate(STATIC)
    context = Context(calibrate(graph, step.observes(graph), feeds_of(graph)), slower=slower_on(on))
    return step.apply(graph, context), {skip.node: skip.reason for skip in context.skips}


def test_a_grouped_convolution_stays_float_with_its_relu_and_the_ratio_is_told() -> None:
    after, reasons = quantized_for(grouped(), V3, V2)
    assert reasons == dict.fromkeys(
        ("grouped", "limits"), "its integer code has 0.47x the speed of its float code on x86-64-v2"
    )
    assert producer_chain(after, "r")[:3] == ["Relu", "Conv", "DequantizeLinear"]
    assert "v" in after.constants, "float weights for float code"


def test_without_targets_everything_becomes_integers() -> None:
    after, reasons = quantized_for(grouped())
    assert reasons == {}
    assert "v_quantized" in after.constants


def convolution(channels: int, side: int) -> Graph:
    body = "[plain] y = Conv <pads = [1,1,1,1]> (x, w)"
    signature = f"(float[1,{channels},{side},{side}] x) => (float[1,{channels},{side},{side}] y)"
    return model(signature, body, w=normal(channels, channels, 3, 3))


def test_where_floats_have_winograd_and_integers_no_dot_product_they_win() -> None:
    reason = "its integer code has 0.64x the speed of its float code on x86-64-v3"
    assert quantized_for(convolution(16, 16), V3)[1] == {"plain": reason}
    direct = targets.resolve({"cpu": "x86-64-v3", "winograd": False})
    assert quantized_for(convolution(16, 16), direct)[1] == {}


def test_weights_alone_stay_integers_unless_speed_is_asked_for() -> None:
    for asked, reasons in ((None, {}), (True, {"plain": "0.46x"})):
        step = Quantize(weights="int8", activations="none", never_slower=asked)
        context = Context(slower=slower_on([V3]))
        after = step.apply(convolution(128, 28), context)
        assert ("w" in after.constants) == bool(asked)
        told = {skip.node: skip.reason for skip in context.skips if "speed" in skip.reason}
        assert told.keys() == reasons.keys() and all(reasons[node] in told[node] for node in told)


def test_it_can_be_switched_off() -> None:
    graph = grouped()
    step = Quantize.model_validate({**STATIC, "never_slower": False})
    context = Context(calibrate(graph, step.observes(graph), feeds_of(graph)), slower=slower_on([V2]))
    step.apply(graph, context)
    assert context.skips == []


def test_products_of_activations_depend_on_the_target() -> None:
    graph = model("(float[1,4,8] x, float[1,8,4] z) => (float[1,4,4] y)", "[scores] y = MatMul (x, z)")
    assert ops(quantized_for(graph, V2)[0])["QuantizeLinear"] == 3
    after, reasons = quantized_for(graph, V3)
    assert after is graph
    assert reasons == {"scores": "its integer code has 0.72x the speed of its float code on x86-64-v3"}


def test_products_quantized_at_run_time_stay_float_for_the_same_reason() -> None:
    context = Context(slower=slower_on([V2]))
    step = Quantize.model_validate({"weights": "int8", "activations": "uint8", "calibrate": "dynamic"})
    after = step.apply(grouped(), context)
    reasons = {skip.node: skip.reason for skip in context.skips}
    assert reasons["grouped"] == "its integer code has 0.47x the speed of its float code on x86-64-v2"
    assert ops(after)["ConvInteger"] == 2 and "v" in after.constants
