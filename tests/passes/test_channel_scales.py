"""Equalize, SmoothQuant and AWQ: the function stays the same, and each makes alike, or finer, what it says."""

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from graphc.calibrate import calibrate
from graphc.errors import InputError
from graphc.execute import run
from graphc.ir.check import check
from graphc.ir.graph import Graph
from graphc.passes.awq import Awq
from graphc.passes.channel_scales import Link, links
from graphc.passes.equalize import Equalize
from graphc.passes.fold import Fold
from graphc.passes.protocol import Context, Pass, check_order
from graphc.passes.quantize import Quantize
from graphc.passes.smooth_quant import SmoothQuant, smoothing
from tests.passes.quantized import feeds_of, model, normal

Floats = npt.NDArray[np.float32]


def uneven(*shape: int, axis: int = 0) -> Floats:
    """Weights whose channels along `axis` differ a hundredfold."""
    factors = np.logspace(-1, 1, shape[axis]).astype(np.float32)
    return np.asarray(normal(*shape) * factors.reshape([-1 if i == axis else 1 for i in range(len(shape))]))


IMAGE = "(float[1,3,8,8] x) => (float[a,b,c,d] y)"
CHAIN = "a = Conv (x, w, b)\nr = Relu (a)\nd = Conv <group = 6> (r, v, e)\ns = Relu (d)\ny = Conv (s, u)"


def convolutions() -> Graph:
    return model(
        IMAGE, CHAIN, w=uneven(6, 3, 3, 3), b=normal(6), v=uneven(6, 1, 3, 3), e=normal(6), u=normal(4, 6, 1, 1)
    )


def grouped() -> Graph:
    body = "a = Conv (x, w)\nr = LeakyRelu (a)\np = MaxPool <kernel_shape = [2,2]> (r)\ny = Conv <group = 2> (p, v)"
    return model(IMAGE, body, w=uneven(6, 3, 3, 3), v=normal(4, 3, 2, 2))


def flattened() -> Graph:
    body = "a = Conv (x, w)\nr = Relu (a)\nf = Flatten (r)\ny = Gemm <transB = 1> (f, v, c)"
    signature = "(float[1,3,8,8] x) => (float[1,5] y)"
    return model(signature, body, w=uneven(6, 3, 7, 7), v=normal(5, 24), c=normal(5))


def normalized() -> Graph:
    body = "n = LayerNormalization (x, g, h)\nq = MatMul (n, w)\nk = MatMul (n, v)\ny = Concat <axis = 2> (q, k)"
    signature = "(float[1,5,8] x) => (float[1,5,8] y)"
    return model(signature, body, g=uneven(8), h=normal(8), w=normal(8, 4), v=normal(8, 4))


def multiplied() -> Graph:
    body = "m = Mul (x, g)\nn = Add (m, h)\ny = MatMul (n, w)"
    return model("(float[1,5,8] x) => (float[1,5,4] y)", body, g=uneven(8), h=normal(1, 1, 8), w=normal(8, 4))


def gated() -> Graph:
    body = "a = MatMul (x, w)\nb = MatMul (x, v)\ns = Sigmoid (b)\ng = Mul (s, a)\ny = MatMul (g, u)"
    return model("(float[1,5,8] x) => (float[1,5,4] y)", body, w=uneven(8, 6, axis=1), v=normal(8, 6), u=normal(6, 4))


GRAPHS = {each.__name__: each for each in (convolutions, grouped, flattened, normalized, multiplied, gated)}
PASSES: dict[str, Pass] = {
    "equalize": Equalize(), "smooth_quant": SmoothQuant(), "awq": Awq(weights="int4", group=4)
}  # fmt: skip


def applied(step: Pass, graph: Graph) -> tuple[Graph, Context]:
    context = Context(calibrate(graph, step.observes(graph), feeds_of(graph)))
    result = step.apply(graph, context)
    check(result)
    return result, context


@pytest.mark.parametrize("kind", PASSES)
@pytest.mark.parametrize("name", GRAPHS)
def test_the_function_stays_the_same(name: str, kind: str) -> None:
    graph = GRAPHS[name]()
    after, _ = applied(PASSES[kind], graph)
    for feeds in feeds_of(graph):
        expected = run(graph, feeds)["y"]
        np.testing.assert_allclose(run(after, feeds)["y"], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def spread(channels: Any) -> float:
    """How much larger the largest channel [channels, ...] is than the smallest."""
    largest = np.abs(channels).reshape(len(channels), -1).max(axis=1)
    return float(largest.max() / largest.min())


def test_equalized_channels_have_like_ranges() -> None:
    graph = convolutions()
    after, _ = applied(Equalize(), graph)
    first, depthwise, last = (after.constants[node.inputs[1]] for node in after.nodes if node.op == "Conv")
    one, two = (np.abs(each).reshape(6, -1).max(axis=1) for each in (first, depthwise))
    np.testing.assert_allclose(one, two, rtol=5e-3)
    np.testing.assert_allclose(two, np.abs(last).max(axis=(0, 2, 3)), rtol=5e-3)
    assert spread(first) < spread(graph.constants["w"]) / 3


def test_equalize_makes_one_scale_per_layer_better() -> None:
    weights = {"w": uneven(6, 3, 3, 3), "b": normal(6), "v": uneven(6, 1, 3, 3)[::-1].copy(), "e": normal(6)}
    graph = model(IMAGE, CHAIN, **weights, u=normal(4, 6, 1, 1))
    step = Quantize(weights="int8", activations="none", per_channel=False)
    errors = []
    for each in (graph, applied(Equalize(), graph)[0]):
        after = step.apply(each, Context())
        errors.append(sum(float(np.square(run(after, f)["y"] - run(graph, f)["y"]).sum()) for f in feeds_of(graph)))
    assert errors[1] < errors[0] / 4


def test_smoothing_is_that_of_the_paper() -> None:
    found = smoothing(np.array([4.0, 9.0, 0.0]), np.array([1.0, 4.0, 1.0]), 0.5)
    np.testing.assert_allclose(found, [2.0, 1.5, 1.0])


@pytest.mark.parametrize("name", ["normalized", "multiplied"])
def test_smooth_quant_makes_activations_alike(name: str) -> None:
    graph = GRAPHS[name]()
    after, _ = applied(SmoothQuant(strength=1.0), graph)
    spreads = []
    for each in (graph, after):
        values = np.concatenate([run(each, f, ("n",))["n"] for f in feeds_of(graph)])
        spreads.append(spread(values.reshape(-1, 8).T))
    assert spreads[1] < 1.01 < spreads[0]


@pytest.mark.parametrize("name", ["normalized", "multiplied"])
def test_awq_makes_rounded_weights_better_for_the_output(name: str) -> None:
    graph = GRAPHS[name]()
    step = Quantize(weights="int4", activations="none", group=4)
    errors = []
    for each in (graph, applied(Awq(weights="int4", group=4), graph)[0]):
        after = step.apply(each, Context())
        errors.append(sum(float(np.square(run(after, f)["y"] - run(graph, f)["y"]).sum()) for f in feeds_of(graph)))
    assert errors[1] < errors[0]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("a = Conv (x, w)\nr = Clip (a, low, high)\ny = Conv (r, v)", "Clip '.*' reads it, which does not pass"),
        ("a = Conv (x, w)\nr = Relu (a)\nb = Conv (r, v)\ny = Add (b, a)", "Add '.*' reads it, which does not pass"),
        ("a = Conv (x, w)\nr = Sigmoid (a)\ny = Conv (r, v)", "Sigmoid '.*' reads it"),
        ("a = Conv (x, w)\nr = Relu (a)\nm = Mul (a, r)\ny = Conv (m, v)", "Mul '.*' multiplies it by itself"),
    ],
)
def test_what_does_not_pass_factors_on_is_left_alone_with_a_reason(body: str, reason: str) -> None:
    limits = {"low": np.float32(0), "high": np.float32(6)} if "Clip" in body else {}
    graph = model(IMAGE, body, w=normal(3, 3, 1, 1), v=normal(3, 3, 1, 1), **limits)
    after, context = applied(Equalize(), graph)
    assert after is graph
    assert any(re.search(reason, skip.reason) for skip in context.skips)


def test_links_name_the_layers_that_read_a_producer() -> None:
    (link,) = (each for each in links(normalized()) if isinstance(each, Link))
    assert (link.producer.op, link.channels, len(link.readers)) == ("LayerNormalization", 8, 2)


def test_a_gate_passes_factors_on() -> None:
    graph = gated()
    (link,) = (each for each in links(graph) if isinstance(each, Link))
    assert (link.producer.outputs, link.passed) == (("a",), ("a", "g"))


@pytest.mark.parametrize("kind", PASSES)
def test_they_come_before_quantize(kind: str) -> None:
    step = Quantize(weights="int8", activations="none")
    with pytest.raises(Exception, match=f"{kind} .* must come before quantize"):
        check_order([PASSES["equalize"].model_validate({"kind": "equalize"}), step, PASSES[kind]])


@pytest.mark.parametrize(
    ("step", "quantize", "misfit"),
    [
        (SmoothQuant(), {"activations": "none"}, "smooth_quant .* leaves activations in floating point"),
        (Awq(weights="int4", group=4), {"group": 4}, "awq .* has weights int4, and quantize int8"),
        (Awq(weights="int8"), {"group": 4}, "awq .* has group None, and quantize 4"),
        (Awq(weights="int8", symmetric_weights=False), {}, "awq .* has symmetric_weights False, and quantize True"),
    ],
)
def test_what_does_not_go_together_is_refused(step: Pass, quantize: dict[str, Any], misfit: str) -> None:
    with pytest.raises(InputError, match=f"do not go together: {misfit}"):
        check_order([Fold(), step, Quantize.model_validate({"weights": "int8", "activations": "none", **quantize})])


def test_rules_may_make_them_go_together() -> None:
    rules = [
        {"operator": "MatMul", "weights": "int4", "group": 4},
        {"name": "a", "activations": "int8", "calibrate": "minmax"},
    ]
    step = Quantize.model_validate({"weights": "int8", "activations": "none", "where": rules})
    check_order([Fold(), SmoothQuant(), Awq(weights="int4", group=4), step])
