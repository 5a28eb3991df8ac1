"""Accuracy of quantized real networks in onnxruntime, beside what onnxruntime's own quantizer gives on the same data.

Calibration rows are never test rows: training images for CIFAR-10 and MNIST, the first 100 rows of the keyword sets.
"""

import gzip
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

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.integer]
Rows = tuple[Floats, Floats, Labels]
pytestmark = pytest.mark.slow

MEAN, DEVIATION = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def normalized(images: npt.NDArray[np.uint8]) -> Floats:
    return np.ascontiguousarray(((images.astype(np.float32) / 255 - MEAN) / DEVIATION).transpose(0, 3, 1, 2))


def raw(images: npt.NDArray[np.uint8]) -> Floats:
    return images.astype(np.float32)


def cifar(prepare: Callable[[npt.NDArray[np.uint8]], Floats]) -> Callable[[Path], Rows]:
    def read(data: Path) -> Rows:
        train, test = (np.load(data / f"datasets/cifar10/{name}.npz") for name in ("train_10000", "test_even_5000"))
        chosen = np.random.default_rng(0).permutation(len(train["y"]))[:200]
        return prepare(train["x"][chosen]), prepare(test["x"]), test["y"]

    return read


def keywords(data: Path) -> Rows:
    rows = np.load(data / "datasets/mlperf_tiny/kws01_mfcc_int8_1000.npz")
    x = (rows["x"].astype(np.float32) - 83) * np.float32(0.5847029089927673)
    return x[:100], x[200:], rows["y"][200:]


def arm_keywords(data: Path) -> Rows:
    rows = np.load(data / "datasets/mlperf_tiny/mlkws_mfcc_49x10_1000.npz")
    return rows["x"][:100], rows["x"][200:], rows["y"][200:]


def mnist(data: Path) -> Rows:
    def read(name: str) -> npt.NDArray[np.uint8]:
        content = gzip.decompress((data / f"datasets/mnist/{name}-ubyte.gz").read_bytes())
        rank = content[3]
        shape = np.frombuffer(content, ">i4", rank, 4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)

    train = read("train-images-idx3")
    chosen = np.random.default_rng(0).permutation(len(train))[:200]
    return raw(train[chosen, None]), raw(read("t10k-images-idx3")[:, None]), read("t10k-labels-idx1")


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
    calibration, x, labels = case.rows(shared_data)
    graph = load(shared_data / "models" / case.model)
    if graph.types[graph.inputs[0]].shape[:1] != (1,):
        graph = load(shared_data / "models" / case.model, {graph.inputs[0]: (100, *x.shape[1:])})
    graph = Fold().apply(graph, Context())
    step = Quantize.model_validate({"weights": "int8", "activations": "uint8", **case.options})
    feeds = (feeds for feeds, _ in batches(graph, {graph.inputs[0]: calibration}, 50))
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
