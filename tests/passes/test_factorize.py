"""Factorize: what layers become, by which rule ranks are found, and what stays as it is."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from graphc.calibrate import calibrate
from graphc.execute import run
from graphc.ir.check import check
from graphc.ir.cost import cost
from graphc.ir.graph import Array, Graph
from graphc.passes.factorize import Factorize
from graphc.passes.protocol import Context
from tests.passes.quantized import model, normal, ops

SIGNATURE = "(float[1,16,12,12] x) => (float[1,20] y)"
BODY = """a = Conv <pads = [1,1,1,1], strides = [2,1]> (x, w, b)
r = Relu (a)
c = Conv <pads = [2,2,2,2], dilations = [2,2]> (r, v)
s = Relu (c)
p = GlobalAveragePool (s)
f = Flatten (p)
h = MatMul (f, m)
y = Gemm <transB = 1> (h, g, d)"""


def thin(*shape: int, rank: int = 5) -> Array:
    """Weights that are nearly of low rank."""
    rest = int(np.prod(shape[1:]))
    return (normal(shape[0], rank) @ normal(rank, rest) / rank + 0.05 * normal(shape[0], rest)).reshape(shape)


def network() -> Graph:
    return model(
        SIGNATURE, BODY, w=thin(24, 16, 3, 3), b=normal(24), v=thin(24, 24, 3, 3), m=thin(24, 40), g=thin(20, 40),
        d=normal(20),
    )  # fmt: skip


def feeds(count: int = 12) -> list[dict[str, Array]]:
    rng = np.random.default_rng(3)
    mixing = rng.normal(size=(16, 16)) * np.exp(rng.normal(size=16))
    return [
        {"x": np.einsum("bchw,cd->bdhw", rng.normal(size=(1, 16, 12, 12)), mixing).astype(np.float32)}
        for _ in range(count)
    ]


def factorized(graph: Graph, **options: Any) -> tuple[Graph, Context]:
    step = Factorize.model_validate({"form": "channel", "data": "none", **options})
    context = Context(calibrate(graph, step.observes(graph), feeds()))
    result = step.apply(graph, context)
    check(result)
    return result, context


def error(graph: Graph, after: Graph) -> float:
    pairs = [(run(graph, feed)["y"], run(after, feed)["y"]) for feed in feeds()]
    return float(sum(np.square(a - b).sum() for a, b in pairs) / sum(np.square(a).sum() for a, _ in pairs))


@pytest.mark.parametrize(
    ("form", "convolutions"), [("channel", 4), ("tucker", 6), ("spatial", 4), ("depthwise", 4), ("cp", 8)]
)
def test_every_form_takes_the_place_of_its_layer(form: str, convolutions: int) -> None:
    graph = network()
    after, context = factorized(graph, form=form, data="whitened", ratio=0.75)
    assert ops(after)["Conv"] == convolutions
    assert {k: ops(after)[k] for k in ("MatMul", "Gemm")} == {"MatMul": 2, "Gemm": 2}
    assert cost(after).macs < 0.76 * cost(graph).macs
    assert error(graph, after) < 0.5
    assert [note.figures["macs"] <= 0.75 for note in context.notes] == [True] * 4


def test_what_is_nearly_of_low_rank_stays_nearly_the_same() -> None:
    graph = network()
    after, _ = factorized(graph, energy=0.99, data="whitened")
    assert cost(after).macs < 0.6 * cost(graph).macs
    assert error(graph, after) < 0.05


def test_energy_decides_each_rank() -> None:
    ranks = [[n.figures["rank"] for n in factorized(network(), energy=e)[1].notes] for e in (0.5, 0.9, 0.99)]
    assert ranks[0] < ranks[1] < ranks[2]


@pytest.mark.parametrize("rule", ["macs", "parameters"])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_one_choice_over_all_layers_meets_the_target(rule: str, share: float) -> None:
    graph = network()
    after, _ = factorized(graph, data="whitened", **{rule: share})
    before, left = cost(graph), cost(after)
    part = left.macs / before.macs if rule == "macs" else left.parameters / before.parameters
    assert 0.7 * share < part <= share
    even, _ = factorized(graph, data="whitened", ratio=share)
    if rule == "macs":
        assert error(graph, after) < 1.3 * error(graph, even)


def test_what_is_known_of_the_inputs_lessens_the_error() -> None:
    graph = network()
    plain, whitened, repaired = (
        error(graph, factorized(graph, macs=0.3, **options)[0])
        for options in ({}, {"data": "whitened"}, {"data": "whitened", "repair": "least_squares", "samples": 12})
    )
    assert whitened < plain
    assert repaired < whitened


def test_an_accuracy_decides_how_much_goes() -> None:
    graph = network()
    shares = []
    for drop in (5, 50):
        after, _ = factorized(graph, data="whitened", accuracy_drop=drop, samples=12)
        changed = [run(graph, f)["y"].argmax() != run(after, f)["y"].argmax() for f in feeds()]
        assert 100 * np.mean(changed) <= drop
        shares.append(cost(after).macs)
    assert shares[1] <= shares[0] < cost(graph).macs


def test_a_metric_decides_where_there_is_one() -> None:
    graph, heard = network(), []

    def drop(after: Graph) -> float:
        heard.append(cost(after).macs)
        return 100 * (1 - (cost(after).macs or 0) / (cost(graph).macs or 1))

    step = Factorize.model_validate({"form": "channel", "data": "none", "accuracy_drop": 40})
    after = step.apply(graph, Context(calibrate(graph, step.observes(graph), feeds()), drop=drop))
    assert 0.6 <= (cost(after).macs or 0) / (cost(graph).macs or 1) < 0.65
    assert len(heard) > 2
    context = Context(calibrate(graph, step.observes(graph), feeds()), drop=lambda after: 99.0)
    assert step.apply(graph, context) is graph
    assert [skip.reason for skip in context.skips] == ["no ranks that were tried keep the accuracy"] * 4


def test_ranks_are_multiples_where_that_is_asked() -> None:
    _, context = factorized(network(), ratio=0.6, multiple=4)
    assert all(note.figures["rank"] % 4 == 0 for note in context.notes)


def test_embeddings_become_two_tables() -> None:
    graph = model("(int64[7] i) => (float[7,24] y)", "y = Gather (t, i)", t=thin(300, 24))
    step = Factorize(form="channel", data="none", parameters=0.3)
    after = step.apply(graph, Context())
    assert ops(after) == {"Gather": 1, "MatMul": 1}
    feed = {"i": np.array([0, 5, 299, 17, 100, 1, 2])}
    exact, found = run(graph, feed)["y"], run(after, feed)["y"]
    assert np.square(exact - found).sum() < 0.05 * np.square(exact).sum()
    assert cost(after).parameters < 0.3 * cost(graph).parameters


def test_attention_projections_of_sequences() -> None:
    graph = model("(float[2,9,32] x) => (float[2,9,32] y)", "q = MatMul (x, w)\ny = Relu (q)", w=thin(32, 32))
    step = Factorize(form="channel", data="whitened", ratio=0.5)
    batches = [{"x": normal(2, 9, 32)} for _ in range(3)]
    after = step.apply(graph, Context(calibrate(graph, step.observes(graph), batches)))
    assert ops(after) == {"MatMul": 2, "Relu": 1}
    exact, found = run(graph, batches[0])["y"], run(after, batches[0])["y"]
    assert np.square(exact - found).sum() < 0.05 * np.square(exact).sum()


def test_what_cannot_get_smaller_stays_and_the_report_says_so() -> None:
    graph = model(
        "(float[1,4,6,6] x) => (float[1,3,6,6] y)",
        "a = Conv <group = 4, pads = [1,1,1,1]> (x, w)\ny = Conv (a, v)", w=normal(4, 1, 3, 3), v=normal(3, 4, 1, 1),
    )  # fmt: skip
    after, context = factorized(graph, ratio=0.2)
    assert after is graph
    assert [skip.reason for skip in context.skips] == [
        "its channels are in groups, which are thin already",
        "no rank within the limits errs less than the dense layer costs",
    ]


def test_rules_leave_single_layers_alone() -> None:
    _, context = factorized(network(), ratio=0.5, where=[{"operator": "Conv", "form": "none"}])
    assert {note.operator for note in context.notes} == {"MatMul", "Gemm"}


def test_one_rule_decides_ranks() -> None:
    with pytest.raises(ValidationError, match="one of energy, ratio, macs, parameters, accuracy_drop"):
        Factorize(form="channel", data="none")
    with pytest.raises(ValidationError, match="given: energy, ratio"):
        Factorize(form="channel", data="none", energy=0.9, ratio=0.5)
