"""Shared weights: what the graph holds then, what stays exact, what gets better with what is known of the inputs."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from graphc.calibrate import calibrate
from graphc.execute import Session, run
from graphc.ir.check import check
from graphc.ir.cost import cost
from graphc.ir.edit import Edit
from graphc.ir.graph import Array, Graph, Node
from graphc.passes.protocol import Context
from graphc.passes.share_codebooks import packed
from graphc.passes.share_weights import ShareWeights
from tests.passes.quantized import feeds_of, model, normal, ops, producer_chain

TWO = "(float[1,8,6,6] x) => (float[1,10] y)"
BODY = "c = Conv <pads = [1,1,1,1]> (x, w)\nr = Relu (c)\nf = Flatten (r)\ny = MatMul (f, v)"


def network() -> Graph:
    return model(TWO, BODY, w=normal(16, 8, 3, 3), v=normal(576, 10))


def shared(graph: Graph, **options: Any) -> tuple[Graph, Context]:
    step = ShareWeights.model_validate({"bits": 4, "weighting": "none", **options})
    context = Context(calibrate(graph, step.observes(graph), feeds_of(graph)))
    result = step.apply(graph, context)
    check(result)
    return result, context


def weights(graph: Graph, node: str) -> Array:
    """What a node multiplies by, decoded."""
    (found,) = (each.inputs[1] for each in graph.nodes if each.op == node)
    return Session(graph, taps=(found,)).run(feeds_of(graph, 1)[0])[found]


@pytest.mark.parametrize("bits", range(1, 9))
def test_weights_take_the_values_of_a_codebook_of_so_many_bits(bits: int) -> None:
    graph = network()
    after, context = shared(graph, bits=bits)
    assert ops(after)["Lookup"] == 2
    for node in ("Conv", "MatMul"):
        assert weights(after, node).shape == weights(graph, node).shape
        assert len(np.unique(weights(after, node))) <= 1 << bits
    assert after.constants["w_packed"].nbytes == 1152 * bits // 8
    assert [note.figures["bits"] for note in context.notes] == [bits, bits]


def test_more_bits_err_less() -> None:
    errors = [[n.figures["error"] for n in shared(network(), bits=bits)[1].notes] for bits in (1, 3, 5, 7)]
    assert (np.diff(errors, axis=0) < 0).all()


@pytest.mark.parametrize("start", ["linear", "density", "kmeans++"])
@pytest.mark.parametrize("vector", [1, 4])
def test_no_start_ends_much_better_than_the_optimal_one(start: str, vector: int) -> None:
    errors = [
        [n.figures["error"] for n in shared(network(), start=s, vector=vector)[1].notes] for s in (start, "optimal")
    ]
    assert (np.divide(*errors) > 0.9).all() and (np.divide(*errors) < 1.5).all()


@pytest.mark.parametrize("group", [1, 2, 5])
def test_groups_of_channels_have_codebooks_of_their_own(group: int) -> None:
    graph = network()
    after, _ = shared(graph, where=[{"operator": "MatMul", "group": group, "bits": 3}])
    assert after.constants["v_codebook"].shape == (10 // group, 8, 1)
    own = weights(after, "MatMul")
    assert all(len(np.unique(own[:, at : at + group])) <= 8 for at in range(0, 10, group))
    together = weights(shared(graph, where=[{"operator": "MatMul", "bits": 3}])[0], "MatMul")
    exact = graph.constants["v"]
    assert np.square(own - exact).sum() < np.square(together - exact).sum()


def test_vectors_store_one_code_for_several_weights() -> None:
    after, context = shared(network(), bits=6, vector=4)
    assert after.constants["v_packed"].nbytes == 5760 // 4 * 6 // 8
    assert after.constants["v_codebook"].shape == (1, 64, 4)
    rows = weights(after, "MatMul").T.reshape(-1, 4)
    assert len(np.unique(rows, axis=0)) <= 64
    assert context.notes[0].figures["bits"] == 1.5


@pytest.mark.parametrize("options", [{}, {"group": 2}, {"vector": 2}])
def test_codebooks_of_8_bits_nest(options: dict[str, int]) -> None:
    graph = network()
    after, _ = shared(graph, codebook="int8", **options)
    assert after.constants["w_codebook"].dtype == np.int8
    assert ops(after)["DequantizeLinear"] == 2
    floats, _ = shared(graph, **options)
    errors = [np.square(weights(each, "Conv") - weights(graph, "Conv")).sum() for each in (after, floats)]
    assert errors[0] < 1.02 * errors[1]
    assert cost(after).bytes < cost(floats).bytes


def pruned(share: float) -> Graph:
    w, v = normal(16, 8, 3, 3), normal(576, 10)
    w[np.abs(w) < np.quantile(np.abs(w), share)] = 0
    v[np.abs(v) < np.quantile(np.abs(v), share)] = 0
    return model(TWO, BODY, w=w, v=v)


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("zeros", ["codebook", "mask"])
def test_zeros_of_pruned_weights_stay(zeros: str, rounding: str) -> None:
    graph = pruned(0.6)
    after, _ = shared(graph, zeros=zeros, rounding=rounding)
    assert ops(after).get("SparseToDense", 0) == (2 if zeros == "mask" else 0)
    for node in ("Conv", "MatMul"):
        assert (weights(after, node)[weights(graph, node) == 0] == 0).all()
        assert len(np.unique(weights(after, node))) <= 16
    assert after.constants["w_codebook"][0] == 0


@pytest.mark.parametrize(("share", "chain"), [(0.1, ["Lookup"]), (0.6, ["SparseToDense"])])
def test_zeros_are_stored_the_smaller_way(share: float, chain: list[str]) -> None:
    after, _ = shared(pruned(share))
    smaller = cost(after).bytes
    assert smaller == min(cost(shared(pruned(share), zeros=how)[0]).bytes for how in ("codebook", "mask"))
    (node,) = (each for each in after.nodes if each.op == "Conv")
    assert producer_chain(after, node.inputs[1])[0] == chain[0]


def test_the_mask_of_pruned_weights_is_read() -> None:
    held = normal(16, 64) > 0.5
    constants = {"mask": np.packbits(held, bitorder="little"), "values": normal(int(held.sum()))}
    node = Node("SparseToDense", ("mask", "values"), ("w",), {"shape": (16, 64)}, "sparse", "graphc")
    graph = model("(float[1,64] x) => (float[1,16] y)", "y = Gemm <transB = 1> (x, v)", v=normal(16, 64))
    edit = Edit(graph)
    for name in node.inputs:
        assert edit.constant(constants[name], name) == name
    edit.redirect("v", edit.add(node.op, node.inputs, node.attributes, domain="graphc"))
    after, _ = shared(edit.apply(), bits=3)
    assert ops(after) == {"Lookup": 1, "SparseToDense": 1, "Gemm": 1}
    np.testing.assert_array_equal(weights(after, "Gemm") != 0, held)


def correlated() -> list[dict[str, Array]]:
    """Inputs whose channels differ much in energy and go together."""
    rng = np.random.default_rng(3)
    mixing = rng.normal(size=(64, 64)) * np.exp(rng.normal(size=64))
    return [{"x": (rng.normal(size=(64, 64)) @ mixing).astype(np.float32)} for _ in range(4)]


def output_error(graph: Graph, **options: Any) -> float:
    step = ShareWeights.model_validate({"bits": 3, "weighting": "none", **options})
    after = step.apply(graph, Context(calibrate(graph, step.observes(graph), correlated())))
    return sum(float(np.square(run(after, f)["y"] - run(graph, f)["y"]).sum()) for f in correlated())


@pytest.mark.parametrize("transposed", [False, True])
def test_what_is_known_of_the_inputs_lessens_the_error_at_the_output(transposed: bool) -> None:
    body = "y = Gemm <transB = 1> (x, w)" if transposed else "y = MatMul (x, w)"
    w = normal(32, 64) if transposed else normal(64, 32)
    graph = model("(float[64,64] x) => (float[64,32] y)", body, w=w)
    plain = output_error(graph)
    weighted = output_error(graph, weighting="hessian")
    assert weighted < 0.95 * plain
    assert output_error(graph, weighting="hessian", rounding="gptq") < 0.7 * weighted


def test_grouped_convolutions_are_weighted_by_their_own_inputs() -> None:
    graph = model("(float[1,8,6,6] x) => (float[1,16,4,4] y)", "y = Conv <group = 4> (x, w)", w=normal(16, 2, 3, 3))
    step = ShareWeights.model_validate({"bits": 3, "weighting": "hessian", "rounding": "gptq"})
    silent = [{"x": feeds["x"] * np.float32([1, 0, 1, 0, 1, 0, 1, 0])[:, None, None]} for feeds in feeds_of(graph)]
    after = step.apply(graph, Context(calibrate(graph, step.observes(graph), silent)))
    plain, _ = shared(graph, bits=3)
    errors = [sum(float(np.square(run(g, f)["y"] - run(graph, f)["y"]).sum()) for f in silent) for g in (after, plain)]
    assert errors[0] < 0.95 * errors[1]


def test_what_would_not_get_smaller_stays_and_the_report_says_so() -> None:
    graph = model("(float[1,8] x) => (float[1,8] y)", "y = MatMul (x, w)", w=normal(8, 8))
    after, context = shared(graph, bits=8)
    assert after is graph
    assert [skip.reason for skip in context.skips] == ["sharing stores 1088 bytes instead of 256"]


def test_embeddings_and_recurrent_weights_are_shared_too() -> None:
    graph = model("(int64[3] i) => (float[3,16] y)", "y = Gather (table, i)", table=normal(200, 16))
    step = ShareWeights(bits=4, weighting="none")
    after = step.apply(graph, Context())
    assert ops(after) == {"Lookup": 1, "Gather": 1}
    assert len(np.unique(run(after, {"i": np.array([5, 7, 199])})["y"])) <= 16


def test_options_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValidationError, match="entries are vectors"):
        ShareWeights(bits=4, weighting="none", vector=2, rounding="gptq")
    with pytest.raises(ValidationError, match="groups have codebooks of their own"):
        ShareWeights(bits=4, weighting="none", group=2, zeros="mask")


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_are_packed_lowest_bits_first(bits: int) -> None:
    codes = np.random.default_rng(0).integers(0, 1 << bits, 1001).astype(np.uint8)
    number = int.from_bytes(packed(codes, bits).tobytes(), "little")
    assert [(number >> (i * bits)) % (1 << bits) for i in range(1001)] == codes.tolist()
