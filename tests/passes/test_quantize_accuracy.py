"""Accuracy of quantized real networks in onnxruntime, beside what onnxruntime's own quantizer gives on the same data.

Calibration rows are never test rows: training images for CIFAR-10 and MNIST, the first 100 rows of the keyword sets.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from graphc.calibrate import calibrate
from graphc.execute import Session, batches
from graphc.importer import load
from graphc.ir.graph import Graph
from graphc.passes.fold import Fold
from graphc.passes.protocol import Context
from graphc.passes.quantize import Quantize
from tests.bench.tasks import Rows, cifar, mnist, normalized, raw

Labels = npt.NDArray[np.integer]
pytestmark = pytest.mark.slow


def keywords(data: Path) -> Rows:
    rows = np.load(data / "datasets/mlperf_tiny/kws01_mfcc_int8_1000.npz")
    x = (rows["x"].astype(np.float32) - 83) * np.float32(0.5847029089927673)
    return Rows(x[:100], x[200:], rows["y"][200:])


def arm_keywords(data: Path) -> Rows:
    rows = np.load(data / "datasets/mlperf_tiny/mlkws_mfcc_49x10_1000.npz")
    return Rows(rows["x"][:100], rows["x"][200:], rows["y"][200:])


@dataclass(frozen=True)
class Case:
    """`peer`: top-1 per cent of onnxruntime's min-max quantization; `samples`: how many fewer answers may be right."""

    model: str
    rows: Callable[[Path], Rows]
    options: dict[str, Any]
    peer: float
    samples: int


CASES = {
    "resnet20": Case("converted/cifar10_resnet20.onnx", cifar(normalized), {"calibrate": "minmax"}, 91.54, 10),
    "resnet8": Case("mlperf_tiny/ic_resnet8_float.onnx", cifar(raw), {"calibrate": "minmax"}, 87.16, 10),
    "resnet8_integer": Case(
        "mlperf_tiny/ic_resnet8_float.onnx", cifar(raw), {"calibrate": "mse", "io": "uint8"}, 87.16, 10
    ),
    "kws_dscnn": Case("mlperf_tiny/kws_dscnn_float.onnx", keywords, {"calibrate": "minmax"}, 91.375, 3),
    "ds_cnn_s": Case("converted/mlkws_ds_cnn_s.onnx", arm_keywords, {"calibrate": "entropy"}, 86.5, 3),
    "ds_cnn_s_average": Case("converted/mlkws_ds_cnn_s.onnx", arm_keywords, {"calibrate": "average"}, 86.5, 3),
    "mnist": Case("native/mnist-8.onnx", mnist, {"calibrate": "minmax"}, 98.91, 10),
}


def right(graph: Graph, x: npt.NDArray[np.generic], labels: Labels) -> int:
    """How many answers of `graph` are right."""
    session, name = Session(graph, optimize=True), graph.inputs[0]
    answers = [session.run(feeds)[graph.outputs[0]][:count] for feeds, count in batches(graph, {name: x}, 100)]
    return int((np.concatenate(answers).reshape(len(labels), -1).argmax(1) == labels).sum())


@pytest.mark.parametrize("name", CASES)
def test_accuracy_is_that_of_the_peer(name: str, shared_data: Path) -> None:
    case = CASES[name]
    rows = case.rows(shared_data)
    x, labels = rows.test, rows.labels
    graph = load(shared_data / "models" / case.model)
    if graph.types[graph.inputs[0]].shape[:1] != (1,):
        graph = load(shared_data / "models" / case.model, {graph.inputs[0]: (100, *x.shape[1:])})
    graph = Fold().apply(graph, Context())
    step = Quantize.model_validate({"weights": "int8", "activations": "uint8", **case.options})
    feeds = (feeds for feeds, _ in batches(graph, {graph.inputs[0]: rows.calibration}, 50))
    context = Context(calibrate(graph, step.observes(graph), feeds))
    result = step.apply(graph, context)
    if "io" in case.options:
        source = result.inputs[0]
        scale, offset = (float(result.constants[f"{source}_{part}"]) for part in ("scale", "zero_point"))
        x = np.clip(np.rint(x / scale) + offset, 0, 255).astype(np.uint8)
    found = right(result, x, labels)
    print(f"{name}: {100 * found / len(labels):.2f} % (onnxruntime min-max: {case.peer} %)")
    assert found >= len(labels) * case.peer / 100 - case.samples
    assert context.skips == []
