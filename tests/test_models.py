"""Every real model: it loads, exports, runs in onnxruntime and equals the original."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from graphc.exporter import save
from graphc.importer import load
from tests.models import MODELS, Model


def run(path: Path, model: Model) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options).run(None, model.feeds())


def largest_difference(got: np.ndarray, expected: np.ndarray) -> float:
    """As a part of the largest magnitude."""
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    return float(np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-30))


def test_the_table_is_complete(shared_data: Path) -> None:
    assert {str(p.relative_to(shared_data / "models")) for p in shared_data.glob("models/*/*.onnx")} == MODELS.keys()
    assert len(MODELS) == 38


@pytest.mark.parametrize("name", MODELS)
def test_exported_model_equals_the_original(shared_data: Path, tmp_path: Path, name: str) -> None:
    source = shared_data / "models" / name
    graph = load(source, MODELS[name].shapes)
    assert all(graph.types[value].is_static for value in graph.inputs)
    save(graph, tmp_path / "again.onnx")
    onnx.checker.check_model(str(tmp_path / "again.onnx"), full_check=True)
    expected = run(source, MODELS[name])
    got = run(tmp_path / "again.onnx", MODELS[name])
    assert len(got) == len(expected)
    assert max(map(largest_difference, got, expected)) <= 1e-4
