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
