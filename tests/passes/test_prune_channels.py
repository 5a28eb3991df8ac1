"""Channels, heads and blocks that leave a graph: sizes, repair, schedules, and what the options refuse."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from graphc.calibrate import calibrate
from graphc.errors import InputError
from graphc.execute import run
from graphc.ir.check import check
from graphc.ir.cost import cost
from graphc.ir.graph import Array, Graph
from graphc.passes.fold import Fold
from graphc.passes.output_error import distance, outputs
from graphc.passes.protocol import Context, check_order
from graphc.passes.prune import Prune
from graphc.passes.quantize import Quantize
from tests.passes.quantized import model, normal

METHODS = ("magnitude", "l1", "fpgm", "taylor", "fisher", "energy", "hessian", "reconstruction")
IMAGE = "(float[1,3,8,8] x) => (float[1,5,8,8] y)"


def chain() -> Graph:
    """Three convolutions; some of the channels between them are nearly sums of others."""
    body = """
        a = Conv <pads = [1,1,1,1]> (x, w1, b1)
        r = Relu (a)
        c = Conv <pads = [1,1,1,1]> (r, w2, b2)
        s = Relu (c)
        y = Conv (s, w3, b3)
    """
    return model(
        IMAGE, body, w1=normal(16, 3, 3, 3), b1=normal(16), w2=normal(24, 16, 3, 3), b2=normal(24),
        w3=normal(5, 24, 1, 1), b3=normal(5),
    )  # fmt: skip


def residual() -> Graph:
    """Three residual blocks of which the second does next to nothing."""
    body = "h0 = Conv <pads = [1,1,1,1]> (x, w0, b0)"
    arrays = {"w0": normal(8, 3, 3, 3), "b0": normal(8)}
    for i, scale in enumerate((0.2, 0.001, 0.2)):
        body += f"""
            a{i} = Conv <pads = [1,1,1,1]> (h{i}, u{i}, b0)
            r{i} = Relu (a{i})
            f{i} = Conv <pads = [1,1,1,1]> (r{i}, v{i}, d{i})
            h{i + 1} = Add (h{i}, f{i})
        """
        arrays |= {f"u{i}": normal(8, 8, 3, 3), f"v{i}": scale * normal(8, 8, 3, 3), f"d{i}": scale * normal(8)}
    return model(IMAGE, body + " y = Conv (h3, w9)", **arrays, w9=normal(5, 8, 1, 1))


def feeds(graph: Graph, count: int = 24) -> list[dict[str, Array]]:
    rng = np.random.default_rng(5)
    return [{"x": rng.normal(size=graph.types["x"].dims).astype(np.float32)} for _ in range(count)]


def step(**options: Any) -> Prune:
    return Prune.model_validate({"method": "magnitude", "pattern": "channels", **options})


def pruned(graph: Graph, **options: Any) -> tuple[Graph, Context]:
    made = step(**options)
    context = Context(calibrate(graph, made.observes(graph), feeds(graph)))
    after = made.apply(graph, context)
    check(after)
    return after, context


def channels(graph: Graph) -> list[int]:
    return [graph.constants[node.inputs[1]].shape[0] for node in graph.nodes if node.op == "Conv"]


def error(graph: Graph, after: Graph) -> float:
    held_out = feeds(graph, 40)[24:]
    return distance(outputs(graph, graph, held_out), outputs(after, graph, held_out))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_its_share_and_keeps_the_borders(method: str, tmp_path: Path) -> None:
    graph = chain()
    options: dict[str, Any] = {"method": method, "sparsity": 0.25}
    if method in ("taylor", "fisher"):
        options["gradients"] = tmp_path / "gradients.npz"
        arrays: Any = {name: normal(2, *array.shape) for name, array in graph.constants.items()}
        np.savez(options["gradients"], **arrays)
    after, context = pruned(graph, **options)
    assert channels(after) == [12, 18, 5]
    assert [graph.types[name] for name in ("x", "y")] == [after.types[name] for name in ("x", "y")]
    assert [skip.node for skip in context.skips] == [graph.nodes[-1].name]
    assert "'y' is an output of the graph" in context.skips[0].reason


def test_the_smallest_channels_go() -> None:
    graph = chain()
    sizes = np.square(graph.constants["w1"]).sum(axis=(1, 2, 3))
    after, _ = pruned(graph, sparsity=0.5)
    kept = np.sort(np.argsort(sizes)[8:])
    np.testing.assert_array_equal(after.constants["w1"], graph.constants["w1"][kept])


def test_repair_makes_up_for_most_and_is_compared() -> None:
    graph = chain()
    after, context = pruned(graph, method="reconstruction", sparsity=0.4, repair="least_squares")
    bare = context.compared["without repair"]
    assert channels(after) == channels(bare)
    assert error(graph, after) < 0.5 * error(graph, bare)
    shifted, _ = pruned(graph, method="reconstruction", sparsity=0.4, repair="bias")
    assert error(graph, shifted) < error(graph, bare)


def test_what_others_can_say_is_repaired_exactly() -> None:
    """A channel that repeats another one goes, and the next layer's weights take its part."""
    graph = chain()
    twice = graph.constants["w1"].copy(), graph.constants["b1"].copy()
    for array in twice:
        array[8:] = array[:8]
    same = model(IMAGE, "a = Conv <pads = [1,1,1,1]> (x, w1, b1) y = Conv (a, w3, b3)", w1=twice[0], b1=twice[1],
                 w3=normal(5, 16, 1, 1), b3=normal(5))  # fmt: skip
    after, _ = pruned(same, method="reconstruction", sparsity=0.5, repair="least_squares")
    assert channels(after) == [8, 5]
    assert error(same, after) < 1e-6


@pytest.mark.parametrize("allocation", ["uniform", "global", "sensitivity"])
def test_macs_come_down_to_what_is_asked(allocation: str) -> None:
    graph = chain()
    after, _ = pruned(graph, method="hessian", macs=0.5, allocation=allocation)
    before, now = cost(graph).macs, cost(after).macs
    assert before is not None and now is not None
    assert 0.4 * before <= now <= 0.5 * before


def test_rounding_and_rules() -> None:
    graph = chain()
    first = graph.nodes[0].name
    after, _ = pruned(graph, sparsity=0.4, round_to=8)
    assert channels(after) == [8, 16, 5]
    after, _ = pruned(graph, sparsity=0.5, where=[{"name": first, "sparsity": 0}])
    assert channels(after) == [16, 12, 5]
    with pytest.raises(InputError, match="matches no node"):
        pruned(graph, sparsity=0.5, where=[{"name": "nothing", "sparsity": 0}])


def test_schedules_end_where_one_step_does() -> None:
    graph = chain()
    after, context = pruned(graph, method="reconstruction", sparsity=[0.25, 0.5], repair="least_squares")
    assert channels(after) == [8, 12, 5] == channels(context.compared["without repair"])


def test_feeds_that_do_not_fit_in_memory_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = chain()
    monkeypatch.setattr("graphc.passes.channel_walk.MEMORY", 1 << 17)
    _, context = pruned(graph, sparsity=0.25, repair="bias")
    figures = context.notes[0].figures
    assert figures["feeds_given"] == 24 and 1 <= figures["feeds_used"] < 24


def test_batch_norms_are_estimated_anew() -> None:
    body = "a = Conv (x, w) n = BatchNormalization (a, g, b, m, v) r = Relu (n) y = Conv (r, u)"
    arrays = {"w": normal(16, 3, 3, 3), "u": normal(5, 16, 1, 1), "g": normal(16), "b": normal(16)}
    rows = np.abs(normal(16))
    graph = model("(float[1,3,10,10] x) => (float[1,5,8,8] y)", body, **arrays, m=normal(16), v=rows)
    after, _ = pruned(graph, sparsity=0.5, repair="batch_norm")
    values = [run(after, feed, ["a"])["a"] for feed in feeds(graph)]
    everything = np.concatenate(values).astype(np.float64)
    np.testing.assert_allclose(after.constants["m"], everything.mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after.constants["v"], everything.var(axis=(0, 2, 3)), rtol=1e-4)


def test_the_block_that_does_least_goes() -> None:
    graph = residual()
    after, context = pruned(graph, pattern="layers", method="similarity", sparsity=0.34, repair="bias")
    assert sum(node.op == "Conv" for node in after.nodes) == 6
    assert "u1" not in after.constants and "u0" in after.constants
    bare = context.compared["without repair"]
    assert sum(node.op == "Conv" for node in bare.nodes) == 6
    assert error(graph, after) < error(graph, bare) < 0.01


def test_blocks_go_one_step_after_another() -> None:
    graph = residual()
    after, context = pruned(graph, pattern="layers", method="similarity", sparsity=[0.34, 0.67], repair="least_squares")
    bare = context.compared["without repair"]
    assert [sum(node.op == "Conv" for node in each.nodes) for each in (after, bare)] == [4, 4]
    assert error(graph, after) < error(graph, bare)


def test_sums_whose_other_side_runs_later_are_repaired_too() -> None:
    """c is summed last and runs first; a and b are summed before."""
    body = """
        h = Conv (x, w0, b0)
        r = Relu (h)
        c = Conv (r, w1, b1)
        a = Conv (r, w2, b1)
        b = Conv (r, w3, b1)
        s = Add (a, b)
        t = Add (c, s)
        y = Conv (t, w4)
    """
    arrays = {f"w{i}": normal(8, 8, 1, 1) for i in (1, 2, 3)}
    graph = model(
        IMAGE, body, **arrays, w0=normal(8, 3, 1, 1), b0=normal(8), b1=normal(8), w4=normal(5, 8, 1, 1)
    )  # fmt: skip
    after, context = pruned(graph, method="reconstruction", sparsity=0.25, repair="least_squares")
    assert error(graph, after) < error(graph, context.compared["without repair"])


def test_a_file_of_gradients_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "gradients.npz"
    path.write_text("nothing")
    with pytest.raises(InputError, match="of arrays by name of weights"):
        pruned(chain(), method="taylor", sparsity=0.5, gradients=path)


def test_layers_go_by_what_the_outputs_feel() -> None:
    after, _ = pruned(residual(), pattern="layers", method="similarity", macs=0.7, allocation="sensitivity")
    assert "u1" not in after.constants


@pytest.mark.parametrize(
    ("options", "at", "message"),
    [
        ({}, "sparsity", "or `macs` instead of it"),
        ({"sparsity": 0.5, "macs": 0.5}, "sparsity", "or `macs` instead of it"),
        ({"sparsity": 0.5, "allocation": "erk"}, "allocation", "those that pattern channels knows"),
        ({"pattern": "unstructured", "sparsity": 0.5, "macs": 0.5}, "macs", "leaves the graph its shape"),
        ({"pattern": "unstructured", "sparsity": 0.5, "repair": "batch_norm"}, "repair", "leaves the graph its shape"),
        ({"pattern": "unstructured", "sparsity": [0.5]}, "sparsity", "a share from 0"),
        ({"sparsity": 0.5, "gradients": __file__}, "gradients", "the method is not taylor or fisher"),
        ({"sparsity": 0.5, "gradients": "nowhere.npz"}, "gradients", "a file that exists"),
        ({"sparsity": 0.5, "where": [{"name": "a", "method": "l1"}]}, "where", "only `sparsity`"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], at: str, message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        step(**options)
    found = {error["loc"][0]: error["msg"] for error in raised.value.errors()}
    assert message in found[at]


def test_order_among_passes() -> None:
    quantize = Quantize.model_validate({"weights": "int8", "activations": "none"})
    check_order([Fold(), step(sparsity=0.5), quantize])
    check_order([step(sparsity=0.5, repair="batch_norm"), Fold()])
    with pytest.raises(InputError, match="must come before quantize"):
        check_order([Fold(), quantize, step(sparsity=0.5)])
    with pytest.raises(InputError, match="must come before fold"):
        check_order([Fold(), step(sparsity=0.5, repair="batch_norm")])


def test_gradients_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "gradients.npz"
    np.savez(path, w1=normal(3, 3))
    with pytest.raises(InputError, match=r"expected gradients \[16, 3, 3, 3\].* of 'w1', got \[3, 3\]"):
        pruned(chain(), method="taylor", sparsity=0.5, gradients=path)


def test_heads_leave_an_attention() -> None:
    """Two of four heads go, the shapes of the Reshapes with them; repair keeps most of what they did."""
    body = """
        q = MatMul (x, wq)
        qs = Reshape (q, split)
        qt = Transpose <perm = [0,2,1,3]> (qs)
        k = MatMul (x, wk)
        ks = Reshape (k, split)
        kt = Transpose <perm = [0,2,3,1]> (ks)
        v = MatMul (x, wv)
        vs = Reshape (v, split)
        vt = Transpose <perm = [0,2,1,3]> (vs)
        scores = MatMul (qt, kt)
        p = Softmax <axis = -1> (scores)
        m = MatMul (p, vt)
        mt = Transpose <perm = [0,2,1,3]> (m)
        flat = Reshape (mt, joined)
        y = MatMul (flat, wo)
    """
    weights = {name: 0.2 * normal(16, 16) for name in ("wq", "wk", "wv", "wo")}
    shapes = {"split": np.array([1, 6, 4, 4]), "joined": np.array([1, 6, 16])}
    graph = model("(float[1,6,16] x) => (float[1,6,16] y)", body, **weights, **shapes)
    after, context = pruned(graph, pattern="heads", method="reconstruction", sparsity=0.5, repair="least_squares")
    assert [after.constants[name].shape for name in ("wq", "wk", "wv", "wo")] == [(16, 8)] * 3 + [(8, 16)]
    assert error(graph, after) < error(graph, context.compared["without repair"])


def test_rounding_to_the_targets_vectors() -> None:
    graph = chain()
    made = step(sparsity=0.4, round_to="auto")
    after = made.apply(graph, Context(lanes=4))
    assert channels(after) == [8, 16, 5]


def test_a_pruned_graph_is_quantized_like_any_other() -> None:
    graph = chain()
    after, _ = pruned(graph, method="hessian", macs=0.6, repair="least_squares")
    quantize = Quantize.model_validate({"weights": "int8", "activations": "uint8", "calibrate": "minmax"})
    integers = quantize.apply(after, Context(calibrate(after, quantize.observes(after), feeds(after))))
    check(integers)
    assert error(after, integers) < 1e-3
