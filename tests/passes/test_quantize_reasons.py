"""Real models: every node that is left in floating point has a reason in the report."""

from pathlib import Path

import numpy as np
import pytest

from graphc.backends.integer import explain
from graphc.calibrate import calibrate
from graphc.importer import load
from graphc.ir.graph import Graph
from graphc.passes.fold import Fold
from graphc.passes.protocol import Context
from graphc.passes.quantize import Quantize
from graphc.sources import random_array

MODELS = (
    "mlperf_tiny/vww_mobilenet025_float", "mlperf_tiny/ad_autoencoder_float", "converted/kwt1_raw_audio",
    "converted/mlkws_crnn_s", "native/dtln_model_1", "native/gesture_point_history_lstm",
    "native/magika_standard_v3_3", "native/super_resolution_espcn", "native/ultraface_RFB-320_simplified",
    "native/yunet_n_320_320",
)  # fmt: skip


def folded(path: Path) -> Graph:
    """The model with a batch of one, all its open dimensions 1."""
    types = load(path).types
    shapes = {
        name: tuple(d if isinstance(d, int) else 1 for d in types[name].shape or ()) for name in load(path).inputs
    }
    return Fold().apply(load(path, shapes), Context())


@pytest.mark.parametrize("name", MODELS)
def test_every_float_node_has_a_reason(name: str, shared_data: Path) -> None:
    graph = folded(shared_data / "models" / f"{name}.onnx")
    step, rng = Quantize(weights="int8", activations="uint8", calibrate="minmax"), np.random.default_rng(0)
    feeds = [{name: random_array(rng, graph.types[name]) for name in graph.inputs} for _ in range(2)]
    context = Context(calibrate(graph, step.observes(graph), feeds))
    integers = explain(step.apply(graph, context)).graph
    told = {skip.node for skip in context.skips}
    assert all(skip.reason for skip in context.skips)
    left = [
        node.label
        for node in integers.nodes
        if not node.domain and node.op not in ("QuantizeLinear", "DequantizeLinear") and node.name not in told
        if any(integers.types[value].dtype.kind == "f" for value in node.results)
        and not all(value in integers.constants for value in node.reads)
    ]
    assert left == []
