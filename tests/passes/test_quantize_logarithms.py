"""Values before a logarithm stay float where their grid would swallow most elements, and only there."""

import numpy as np
import pytest

from graphc.calibrate import calibrate
from graphc.ir.graph import Graph
from graphc.passes.protocol import Context
from graphc.passes.quantize import Quantize
from graphc.passes.quantize_logarithms import before_logarithms
from tests.passes.quantized import model, normal, ops

BODY = "p = MatMul (x, w)\ne = Mul (p, p)\nm = MatMul (e, v)\nc = Max (m, s)\nl = Log (c)\ny = MatMul (l, u)"


def spectrum() -> Graph:
    v = np.abs(normal(16, 8))
    return model("(float[4,16] x) => (float[4,4] y)", BODY, w=normal(16, 16), v=v, u=normal(8, 4), s=np.float32([1e-6]))


def quantize(graph: Graph, heavy: bool) -> tuple[Graph, Context]:
    rng = np.random.default_rng(0)
    loud = 10.0 ** rng.uniform(-4, 0, (20, 4, 1)) if heavy else np.ones((20, 4, 1))
    feeds = [{"x": (rng.normal(size=(4, 16)) * scale).astype(np.float32)} for scale in loud]
    step = Quantize(weights="int8", activations="uint8", calibrate="minmax")
    context = Context(calibrate(graph, step.observes(graph), feeds))
    return step.apply(graph, context), context


def test_what_a_logarithm_is_made_of() -> None:
    assert set(before_logarithms(spectrum())) == {"c", "m", "e", "p", "x"}


@pytest.mark.parametrize("heavy", [True, False])
def test_products_before_it_stay_float_where_most_elements_would_vanish(heavy: bool) -> None:
    after, context = quantize(spectrum(), heavy)
    kept = [skip.node for skip in context.skips if "a logarithm follows" in skip.reason]
    assert bool(kept) == heavy
    assert ops(after)["DequantizeLinear"] >= 3  # the product behind the logarithm is quantized either way
