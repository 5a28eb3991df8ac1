"""`best` comes to the method that is closest at the outputs, judged on feeds that no method learned from."""

from collections.abc import Sequence

import numpy as np
import pytest
from pydantic import ValidationError

from graphc.calibrate import calibrate
from graphc.execute import run
from graphc.ir.graph import Array, Graph
from graphc.passes.protocol import Context, Gram, Observation, Rows, Whole
from graphc.passes.quantize import Quantize
from graphc.passes.quantize_best import CANDIDATES, ROUNDINGS, Trials
from tests.passes.quantized import STATIC, model, normal


def network() -> Graph:
    body = "a = MatMul (x, w)\nr = Relu (a)\nb = MatMul (r, v)\ny = Softmax (b)"
    return model("(float[1,16] x) => (float[1,4] y)", body, w=normal(16, 32), v=normal(32, 4))


def feeds(loud: float) -> list[dict[str, Array]]:
    """Rows of noise; one in ten is `loud` times as large."""
    rng = np.random.default_rng(0)
    return [{"x": (rng.normal(size=(1, 16)) * (loud if i % 10 == 0 else 1)).astype(np.float32)} for i in range(30)]


def quantized(graph: Graph, method: str, data: Sequence[dict[str, Array]]) -> Graph:
    step = Quantize.model_validate({**STATIC, "calibrate": method})
    return step.apply(graph, Context(calibrate(graph, step.observes(graph), data)))


def distance(graph: Graph, after: Graph, data: Sequence[dict[str, Array]]) -> float:
    pairs = [(run(graph, f, ("b",))["b"], run(after, f, ("b",))["b"]) for f in data]
    return float(np.mean([np.square(one - two).sum() / np.square(one).sum() for one, two in pairs]))


@pytest.mark.parametrize("loud", [1.0, 300.0])
def test_best_is_as_good_as_each(loud: float) -> None:
    graph, data = network(), feeds(loud)
    found = {method: distance(graph, quantized(graph, method, data), data) for method in (*CANDIDATES, "best")}
    assert found["best"] in (found[method] for method in CANDIDATES)
    assert found["best"] == min(found.values())
    if loud > 1:
        assert found["minmax"] > 2 * found["best"]


def test_best_serves_integer_inputs() -> None:
    body = "e = Gather (t, i)\ny = MatMul (e, w)"
    graph = model("(int64[1,5] i) => (float[1,5,4] y)", body, t=normal(10, 8), w=normal(8, 4))
    data: list[dict[str, Array]] = [{"i": np.random.default_rng(n).integers(0, 10, (1, 5))} for n in range(8)]
    assert any(node.op == "QuantizeLinear" for node in quantized(graph, "best", data).nodes)


@pytest.mark.parametrize("option", ["calibrate", "rounding"])
def test_best_is_for_all_nodes(option: str) -> None:
    with pytest.raises(ValidationError, match="a method other than best"):
        Quantize.model_validate({**STATIC, "where": [{"operator": "Conv", option: "best"}]})


def test_best_rounding_is_one_of_its_ways() -> None:
    graph, data = network(), feeds(1.0)
    step = Quantize.model_validate({**STATIC, "weights": "int4", "rounding": "best"})
    statistics = calibrate(graph, step.observes(graph), data)
    chosen, known = step.resolved(graph, statistics)
    judge = Trials(graph, known)
    ways = [step.model_copy(update=way).apply(graph, Context(judge.statistics)) for way in ROUNDINGS]
    best = judge.best([{"way": i} for i in range(len(ways))], lambda way: ways[way["way"]])
    assert {key: getattr(chosen, key) for key in ROUNDINGS[0]} == ROUNDINGS[best["way"]]
    after = step.apply(graph, Context(statistics))
    again = step.model_copy(update=ROUNDINGS[best["way"]]).apply(graph, Context(statistics))
    assert distance(graph, after, data) == distance(graph, again, data)


def test_feeds_that_judge_do_not_teach() -> None:
    graph, data = network(), feeds(1.0)
    gram, wish = Observation("x", Gram(Rows())), Observation("x", Whole())
    found = calibrate(graph, (gram, wish), data)
    held = found[wish]["values"].astype(np.float64)[:7, 0]  # a quarter of 30 feeds
    rest = Trials(graph, found).statistics[gram]
    assert rest["count"] == 23
    taught = [feed["x"][0] for feed in data if not (feed["x"] == held).all(axis=1).any()]
    rows = np.array(taught, np.float64)
    np.testing.assert_allclose(rest["gram"][0], rows.T @ rows, rtol=1e-9)
