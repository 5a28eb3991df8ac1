"""Integer inputs that a Cast makes floats: products read the integers themselves, bit for bit."""

from typing import Literal

import numpy as np
import pytest

from graphc.backends.integer import explain
from graphc.backends.reference import run
from graphc.calibrate import calibrate
from graphc.execute import Session
from graphc.ir.check import check
from graphc.ir.graph import Array, Graph
from graphc.passes.fold import fold
from graphc.passes.protocol import Context
from graphc.passes.quantize import Quantize
from graphc.preprocess import prepend
from graphc.spec.model import Preprocess
from tests.passes.quantized import STATIC, model, normal, ops

Kind = Literal["uint8", "int8"]
PADDED = "c = Conv <pads=[1,1,1,1]> (x, w, b)\ny = Relu (c)"
SHIFTED = {"mean": (0.48, 0.45, 0.4), "std": (0.22, 0.21, 0.2)}


def network() -> Graph:
    return model("(float[1,3,6,6] x) => (float[1,4,6,6] y)", PADDED, w=normal(4, 3, 3, 3), b=normal(4))


def quantized_on(graph: Graph, kind: Kind, activations: str = "uint8") -> tuple[Graph, Context, list[dict[str, Array]]]:
    info, rng = np.iinfo(kind), np.random.default_rng(1)
    size = graph.types["x"].dims
    feeds: list[dict[str, Array]] = [{"x": rng.integers(info.min, info.max, size, kind)} for _ in range(4)]
    step = Quantize.model_validate({**STATIC, "activations": activations})
    context = Context(calibrate(graph, step.observes(graph), feeds))
    result = step.apply(graph, context)
    check(result)
    return result, context, feeds


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_a_convolution_reads_the_pixels_themselves(kind: Kind, activations: str) -> None:
    raw = prepend(network(), Preprocess(fold=True, layout="nhwc", dtype=kind, scale=1 / 255))
    graph, context, feeds = quantized_on(fold(raw), kind, activations)
    assert not context.skips
    assert {"Cast", "Mul", "Sub"}.isdisjoint(ops(graph))
    assert [reader.op for reader in graph.users["x"]] == ["DequantizeLinear"]
    found = run(explain(graph).graph, feeds[0])["y"]
    np.testing.assert_array_equal(found, Session(graph).run(feeds[0])["y"])


def test_a_shift_per_channel_is_the_one_thing_left() -> None:
    raw = prepend(network(), Preprocess(fold=True, layout="nhwc", dtype="uint8", scale=1 / 255, **SHIFTED))
    graph, context, feeds = quantized_on(fold(raw), "uint8")
    assert not context.skips
    assert ops(graph)["Add"] == 1 and {"Cast", "Mul", "Sub", "Div"}.isdisjoint(ops(graph))
    expected, found = Session(raw).run(feeds[0])["y"], Session(graph).run(feeds[0])["y"]
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_what_others_read_of_a_cast_stays() -> None:
    graph = model(
        "(uint8[1,3,6,6] q) => (float[1,4,4,4] y, float[1,3,6,6] f)",
        "f = Cast <to=1> (q)\nc = Conv (f, w, b)\ny = Relu (c)",
        w=normal(4, 3, 3, 3),
        b=normal(4),
    )
    feeds: list[dict[str, Array]] = [{"q": np.arange(108, dtype=np.uint8).reshape(1, 3, 6, 6)}]
    step = Quantize.model_validate(STATIC)
    found = step.apply(graph, Context(calibrate(graph, step.observes(graph), feeds)))
    check(found)
    np.testing.assert_array_equal(Session(found).run(feeds[0])["f"], feeds[0]["q"].astype(np.float32))
