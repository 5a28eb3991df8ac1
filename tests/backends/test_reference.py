"""Whole integerized models in numpy: the accuracy of real ones, and onnxruntime's answers where there are no labels."""

from pathlib import Path

import numpy as np
import pytest

from graphc.backends.integer import explain, integerize
from graphc.backends.reference import Reference, run
from graphc.errors import InputError, InternalError
from graphc.execute import Session
from graphc.importer import load
from graphc.ir.edit import Edit
from graphc.ir.graph import Array, Graph
from tests.backends.qdq import Qdq, feeds


def answers(graph: Graph, x: Array, batch: int) -> Array:
    """The first output for every row of `x`."""
    reference = Reference(integerize(graph))
    (name,) = graph.inputs
    parts = [reference.run({name: x[i : i + batch]})[graph.outputs[0]] for i in range(0, len(x), batch)]
    return np.concatenate(parts)


def images(folder: Path, count: int, size: int) -> Array:
    """CIFAR-10 test images, spread over the classes, enlarged to `size` by repetition."""
    with np.load(folder / "datasets/cifar10/test_even_5000.npz") as data:
        x = data["x"][:: len(data["x"]) // count][:count]
    return np.asarray(x.repeat(-(-size // 32), axis=1).repeat(-(-size // 32), axis=2)[:, :size, :size])


MODELS = [
    "converted/mobilenet_v2_100_224_uint8_qdq",
    "mlperf_tiny/ad_autoencoder_int8_qdq",
    "mlperf_tiny/ic_resnet8_int8_qdq",
    "mlperf_tiny/kws_dscnn_int8_qdq",
    "mlperf_tiny/vww_mobilenet025_int8_qdq",
]


@pytest.mark.parametrize("model", MODELS)
def test_real_models_are_integer_from_end_to_end(shared_data: Path, model: str) -> None:
    result = explain(load(shared_data / f"models/{model}.onnx"))
    assert result.skipped == ()
    floats = [name for name in result.graph.producers if result.graph.types[name].dtype.kind == "f"]
    assert floats == []


def test_accuracy_of_resnet8(shared_data: Path) -> None:
    graph = load(shared_data / "models/mlperf_tiny/ic_resnet8_int8_qdq.onnx")
    with np.load(shared_data / "datasets/cifar10/test_even_5000.npz") as data:
        x, y = data["x"], data["y"]
    found = answers(graph, (x.astype(np.int16) - 128).astype(np.int8), 250).argmax(axis=1)
    assert abs(float((found == y).mean()) - 0.8704) <= 0.002


def test_accuracy_of_keyword_spotting(shared_data: Path) -> None:
    graph = load(shared_data / "models/mlperf_tiny/kws_dscnn_int8_qdq.onnx")
    with np.load(shared_data / "datasets/mlperf_tiny/kws01_mfcc_int8_1000.npz") as data:
        x, y = data["x"].reshape(-1, 49, 10, 1), data["y"]
    assert abs(float((answers(graph, x, 250).argmax(axis=1) == y).mean()) - 0.902) <= 0.002


def test_person_detection_agrees_with_onnxruntime(shared_data: Path) -> None:
    graph = load(shared_data / "models/mlperf_tiny/vww_mobilenet025_int8_qdq.onnx")
    x = (images(shared_data, 100, 96).astype(np.int16) - 128).astype(np.int8)
    found, expected = answers(graph, x, 50), Session(graph).run({graph.inputs[0]: x})[graph.outputs[0]]
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.98
    assert np.abs(found.astype(int) - expected.astype(int)).mean() <= 1.0


def test_anomaly_detection_is_close_to_onnxruntime(shared_data: Path) -> None:
    graph = load(shared_data / "models/mlperf_tiny/ad_autoencoder_int8_qdq.onnx")
    x = np.random.default_rng(0).integers(-128, 128, (50, 640)).astype(np.int8)
    found, expected = answers(graph, x, 50), Session(graph).run({graph.inputs[0]: x})[graph.outputs[0]]
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 2
    assert np.abs(found.astype(int) - expected.astype(int)).mean() <= 0.05


def test_uint8_mobilenet_agrees_with_onnxruntime(shared_data: Path) -> None:
    graph = load(shared_data / "models/converted/mobilenet_v2_100_224_uint8_qdq.onnx")
    x = images(shared_data, 10, 224)
    session = Session(graph)
    expected = np.concatenate([session.run({graph.inputs[0]: row[None]})[graph.outputs[0]] for row in x])
    found = answers(graph, x, 1)
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.9
    assert np.abs(found.astype(int) - expected.astype(int)).mean() <= 0.1


def mixed() -> Graph:
    """Integers, a float operator between them, and one that onnxruntime has for floats only (Where on int8)."""
    m = Qdq()
    y = m.requantize(m.node("Conv", [m.input(("N", 2, 4, 4)), m.weights((3, 2, 1, 1))]))
    z = m.requantize(m.node("Softmax", [m.node("LpNormalization", [y], axis=1)]))
    m.result(m.node("Where", [m.constant(np.arange(4) < 2), z, m.constant(np.array(0.5, np.float32))]))
    return m.graph()


def test_float_nodes_run_between_integer_ones() -> None:
    graph = mixed()
    given = feeds(graph, np.random.default_rng(0))
    expected, found = Session(graph).run(given), run(integerize(graph), given)
    assert np.abs(found[graph.outputs[0]].astype(int) - expected[graph.outputs[0]].astype(int)).max() <= 2


def test_kept_values_come_back_and_batches_may_differ() -> None:
    graph = integerize(mixed())
    reference = Reference(graph)
    inner = graph.nodes[0].outputs[0]
    rows = np.random.default_rng(0).integers(-128, 128, (3, 2, 4, 4)).astype(np.int8)
    whole = reference.run({graph.inputs[0]: rows}, keep=[inner])
    assert set(whole) == {*graph.outputs, inner}
    for i in range(3):
        alone = reference.run({graph.inputs[0]: rows[i : i + 1]}, keep=[inner])
        assert all(np.array_equal(alone[name], whole[name][i : i + 1]) for name in whole)


def test_feeds_that_do_not_fit_are_refused() -> None:
    graph = integerize(mixed())
    with pytest.raises(InputError, match="expected int8"):
        run(graph, {graph.inputs[0]: np.zeros((1, 2, 4, 4), np.float32)})


def test_an_unknown_integer_operator_is_a_bug() -> None:
    graph = integerize(mixed())
    edit = Edit(graph)
    edit.replace(graph.nodes[0], "Fold", types=[graph.types[graph.nodes[0].outputs[0]]])
    with pytest.raises(InternalError, match="Fold"):
        run(edit.apply(), feeds(graph, np.random.default_rng(0)))
