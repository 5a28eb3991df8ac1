"""Pruning: what options allow, where the pass may stand, what each pattern leaves of a layer's weights."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from graphc.calibrate import calibrate
from graphc.errors import InputError
from graphc.execute import Session
from graphc.ir.check import check
from graphc.ir.cost import cost
from graphc.ir.graph import Graph
from graphc.ir.sparse import densified, mask_of, pruned_values
from graphc.passes.awq import Awq
from graphc.passes.fold import Fold
from graphc.passes.protocol import Context, check_order
from graphc.passes.prune import Prune
from graphc.passes.quantize import Quantize
from tests.passes.quantized import feeds_of, model, normal

WIDE = "(float[1,12,6,6] x) => (float[1,32,6,6] y)"


def step(**options: Any) -> Prune:
    return Prune.model_validate({"method": "magnitude", "pattern": "unstructured", "sparsity": 0.5, **options})


def pruned(graph: Graph, **options: Any) -> tuple[Graph, Context]:
    made = step(**options)
    context = Context(calibrate(graph, made.observes(graph), feeds_of(graph)))
    result = made.apply(graph, context)
    check(result)
    return result, context


def conv() -> Graph:
    return model(WIDE, "y = Conv <pads = [1,1,1,1]> (x, w, b)", w=normal(32, 12, 3, 3), b=normal(32))


def kept(graph: Graph) -> np.ndarray[Any, Any]:
    (node,) = pruned_values(graph).values()
    return mask_of(graph, node)


@pytest.mark.parametrize(
    ("options", "at", "message"),
    [
        ({"pattern": "channels", "method": "wanda"}, "method", "those that pattern channels knows"),
        ({"sparsity": None}, "sparsity", "a share from 0"),
        ({"pattern": "2:4", "sparsity": 0.4}, "sparsity", "nothing, 0.5 or 0"),
        ({"pattern": "4:4", "sparsity": None}, "sparsity", "N below M"),
        ({"pattern": "diagonal"}, "pattern", "should match"),
        ({"block": [16, 4]}, "block", "the pattern is not 'block'"),
        ({"pattern": "2:4", "sparsity": None, "allocation": "erk"}, "allocation", "those that pattern N:M knows"),
        ({"method": "wanda", "allocation": "global"}, "allocation", "only magnitudes compare"),
        ({"where": [{"name": "c", "allocation": "erk"}]}, "allocation", "a rule cannot set this"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], at: str, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        step(**options)
    errors = {error["loc"][-1]: error["msg"] for error in caught.value.errors()}
    assert message in errors[at]


def test_order() -> None:
    quantize = Quantize.model_validate({"weights": "int8", "activations": "none"})
    check_order([Fold(), step(), quantize])
    with pytest.raises(InputError, match=r"prune \(step 2\) must come before quantize"):
        check_order([quantize, step()])
    with pytest.raises(InputError, match=r"prune .* needs fold before it"):
        check_order([step()])
    with pytest.raises(InputError, match="must come after awq"):
        check_order([Fold(), step(), Awq.model_validate({"weights": "int4"})])
    check_order([step(pattern="channels")])


def test_magnitude_keeps_the_largest_and_runs() -> None:
    graph = conv()
    result, _ = pruned(graph)
    magnitudes, mask = np.abs(graph.constants["w"]), kept(result)
    assert mask.mean() == 0.5
    assert magnitudes[mask].min() >= magnitudes[~mask].max()
    feeds = feeds_of(graph)[0]
    np.testing.assert_array_equal(Session(result).run(feeds)["y"], Session(densified(result)).run(feeds)["y"])


def test_bytes_count_the_mask() -> None:
    graph = conv()
    result, _ = pruned(graph, sparsity=0.75)
    weights = graph.constants["w"].size
    assert cost(result).bytes == weights + 32 * 4 + weights // 8  # a quarter of the floats, the bias, one bit for each
    assert cost(result).parameters == cost(graph).parameters


def integers(graph: Graph, **options: Any) -> tuple[Graph, Context]:
    """`graph`, which has one pruned tensor, quantized."""
    made = Quantize.model_validate({"weights": "int8", "activations": "uint8", "calibrate": "minmax", **options})
    context = Context(calibrate(graph, made.observes(graph), feeds_of(graph)))
    result = made.apply(graph, context)
    check(result)
    return result, context


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rounding": "gptq"},
        {"rounding": "adaround"},
        {"weight_range": "hqq", "activations": "none"},
        {"group": 6, "activations": "none"},
        {"weights": "fp16", "activations": "none"},
    ],
)
def test_zeros_stay_zeros_when_integers_come(options: dict[str, Any]) -> None:
    before, _ = pruned(conv(), method="sparsegpt", sparsity=0.6)
    after, context = integers(before, **options)
    assert not [skip for skip in context.skips if "zeros" in skip.reason]
    (decoder,) = pruned_values(after).values()
    mask = kept(before)
    np.testing.assert_array_equal(mask_of(after, decoder).reshape(mask.shape), mask)
    read = next(node for node in after.nodes if node.op == "Conv").inputs[1]
    weights = Session(after, taps=[read]).run(feeds_of(after)[0])[read]
    assert not weights[~mask].any()
    assert cost(after).bytes < cost(before).bytes


def test_zeros_that_another_integer_stands_for_are_stored_and_told() -> None:
    before, _ = pruned(conv())
    after, context = integers(before, weights="uint8")
    assert [skip.reason.split(":")[0] for skip in context.skips] == ["its zeros are stored"]
    assert not pruned_values(after)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize(("kept_of", "shape"), [((2, 4), (1, 1)), (None, (16, 4)), (None, (8, 2))])
def test_patterns(method: str, kept_of: tuple[int, int] | None, shape: tuple[int, int]) -> None:
    pattern = {"pattern": "2:4", "sparsity": None} if kept_of else {"pattern": "block", "block": shape}
    result, context = pruned(conv(), method=method, **pattern)
    assert context.skips == []
    mask = kept(result)
    if kept_of:
        assert (mask.reshape(32, 3, 4, 9).sum(axis=2) == 2).all(), "of every 4 inputs at a tap 2 stay"
    else:
        tiles = mask.reshape(32 // shape[0], shape[0], 12 // shape[1], shape[1], 9)
        assert (tiles.all(axis=(1, 3)) | ~tiles.any(axis=(1, 3))).all()
        assert abs(mask.mean() - 0.5) < 0.03


def test_an_automatic_block_is_the_targets_vector() -> None:
    made = step(pattern="block")
    for lanes in (8, 16):
        mask = kept(made.apply(conv(), Context(lanes=lanes)))
        rows = mask.reshape(32 // lanes, lanes, 3, 4, 9)
        assert (rows.all(axis=(1, 3)) | ~rows.any(axis=(1, 3))).all()
        assert (mask[:8] != mask[8:16]).any() == (lanes == 8)


def output_error(graph: Graph, **options: Any) -> float:
    result, _ = pruned(graph, **options)
    runs = [(Session(graph).run(feeds)["y"], Session(result).run(feeds)["y"]) for feeds in feeds_of(graph)]
    return float(sum(np.square(a - b).sum() for a, b in runs))


def uneven() -> Graph:
    """Inputs whose channels differ a lot in size and share a common part."""
    mix = np.eye(12, dtype=np.float32) * np.geomspace(0.05, 3, 12, dtype=np.float32)[:, None] + 0.1
    body = "s = Conv (x, m, c)\ny = Conv <pads = [1,1,1,1]> (s, w, b)"
    return model(WIDE, body, m=mix.reshape(12, 12, 1, 1), c=normal(12) / 4, w=normal(32, 12, 3, 3), b=normal(32))


def test_what_is_known_of_the_inputs_helps() -> None:
    graph = uneven()
    only = {"where": [{"position": "first", "sparsity": 0}]}
    errors = [output_error(graph, method=method, **only) for method in ("magnitude", "wanda", "sparsegpt")]
    assert errors[0] > 1.5 * errors[1] > 3 * errors[2], errors
    for method in ("magnitude", "wanda", "sparsegpt"):
        none, bias, fitted = (
            output_error(graph, method=method, repair=how, **only) for how in ("none", "bias", "least_squares")
        )
        assert bias < none, method
        assert fitted == bias if method == "sparsegpt" else fitted < 0.8 * bias, (method, bias, fitted)


@pytest.mark.parametrize("allocation", ["global", "erk", "sensitivity"])
def test_allocations_keep_the_sum_and_differ_between_layers(allocation: str) -> None:
    weights = {"w": normal(16, 3, 3, 3) / 4, "v": normal(24, 16, 3, 3), "u": normal(24, 24, 1, 1)}
    body = "a = Conv <pads = [1,1,1,1]> (x, w)\nb = Conv <pads = [1,1,1,1]> (a, v)\ny = Conv (b, u)"
    graph = model("(float[1,3,8,8] x) => (float[1,24,8,8] y)", body, **weights)
    result, _ = pruned(graph, allocation=allocation)
    masks = [mask_of(result, node) for node in pruned_values(result).values()]
    sizes = np.array([mask.size for mask in masks])
    shares = np.array([1 - mask.mean() for mask in masks])
    assert abs((shares * sizes).sum() / sizes.sum() - 0.5) < 0.02
    assert shares.max() - shares.min() > 0.03


def test_nothing_is_skipped_in_silence() -> None:
    graph = model(
        "(float[1,3,8,8] x) => (float[1,16,10,10] y)",
        """
        [stem] a = Conv <pads = [1,1,1,1]> (x, w)
        [left] l = Conv <pads = [1,1,1,1]> (a, v)
        [up] y = ConvTranspose (l, t)
        """,
        w=normal(16, 3, 3, 3), v=normal(16, 16, 3, 3), t=normal(16, 16, 3, 3),
    )  # fmt: skip
    _, context = pruned(graph, pattern="block", where=[{"name": "left", "sparsity": 0}])
    reasons = {skip.node: skip.reason for skip in context.skips}
    assert reasons == {
        "stem": "16 x 4 weights go together, and it has 16 outputs x 3 inputs",
        "left": "the options give it a share of 0",
        "up": "pruning knows the weights of Conv, Gemm and MatMul by a matrix, not those of this ConvTranspose",
    }


def test_shared_weights_are_pruned_together_or_not_at_all() -> None:
    body = "[one] a = Conv <pads = [1,1,1,1]> (x, w)\n[two] y = Conv <pads = [1,1,1,1]> (a, w)"
    graph = model("(float[1,8,6,6] x) => (float[1,8,6,6] y)", body, w=normal(8, 8, 3, 3))
    together, _ = pruned(graph, method="sparsegpt")
    assert len({node.inputs[1] for node in together.nodes if node.op == "Conv"}) == len(pruned_values(together)) == 1
    apart, context = pruned(graph, where=[{"name": "two", "sparsity": 0.3}])
    assert apart is graph
    assert context.skips[0].reason == "its weights are shared with Conv 'two', which the options treat in another way"


def test_pruning_again_goes_on_from_what_is_left() -> None:
    once, _ = pruned(conv(), sparsity=0.5)
    twice, _ = pruned(once, sparsity=0.75)
    assert kept(twice).mean() == 0.25
    assert not (kept(twice) & ~kept(once)).any()
    assert len([node for node in twice.nodes if node.op == "SparseToDense"]) == 1
