"""Graphs in onnxruntime: taps, batches, large constants, and every way to feed them wrongly."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from onnx import parser

from graphc import execute
from graphc.errors import InputError, UnsupportedError
from graphc.importer import load
from graphc.ir.edit import Edit
from graphc.ir.graph import Array, Graph, Node, TensorType

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[n,3] x) => (float[n,2] y)
<float[3,2] w = {1, 2, 3, 4, 5, 6}>
{
  h = MatMul (x, w)
  y = Relu (h)
}
"""
X = np.array([[1, 0, -1], [0, 1, 0]], np.float32)


def graph() -> Graph:
    return load(parser.parse_model(TEXT))


def test_outputs_come_first_then_taps_of_any_kind() -> None:
    found = execute.run(graph(), {"x": X}, taps=("h", "w", "x"))
    assert list(found) == ["y", "h", "w", "x"]
    np.testing.assert_array_equal(found["h"], X @ found["w"])
    np.testing.assert_array_equal(found["y"], np.maximum(found["h"], 0))
    np.testing.assert_array_equal(found["x"], X)


def test_a_session_runs_again_and_gives_the_same_bits() -> None:
    session = execute.Session(graph(), optimize=True, threads=2)
    first, second = session.run({"x": X}), session.run({"x": X})
    np.testing.assert_array_equal(first["y"], second["y"])


@pytest.mark.parametrize("optimize", [False, True])
def test_large_constants_are_passed_as_they_lie_in_memory(optimize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "BESIDE", 16)
    half = np.array([1, 0.5, 2], ml_dtypes.bfloat16)
    made = graph()
    edit = Edit(made)
    wide = edit.add("Cast", [edit.constant(half.repeat(4).reshape(3, 4), "half")], {"to": 1})
    edit.redirect("y", edit.add("MatMul", ["x", wide]))
    edit.remove(*made.nodes)
    found = execute.Session(edit.apply(), optimize=optimize).run({"x": X})
    np.testing.assert_array_equal(found["y"], X @ half.repeat(4).reshape(3, 4).astype(np.float32))


def test_an_unknown_tap_is_refused() -> None:
    with pytest.raises(InputError, match=r"'z': is not in the graph"):
        execute.Session(graph(), taps=("z",))


def test_a_graph_that_onnxruntime_cannot_run_is_refused_with_its_words() -> None:
    made = graph()
    strange = Node("Relu", ("b",), ("y",), {}, "odd")
    types = {"b": TensorType(np.dtype(bool), (2,)), "y": TensorType(np.dtype(bool), (2,))}
    broken = replace(made, inputs=("b",), nodes=(strange,), types=types, constants={})
    with pytest.raises(UnsupportedError, match=r"onnxruntime: refuses this graph: .*bool"):
        execute.Session(broken)


@pytest.mark.parametrize(
    ("feeds", "problem"),
    [
        ({}, r"input 'x': has no data"),
        ({"x": X, "z": X}, r"data 'z': is no input of the model \(inputs: x\)"),
        ({"x": X.astype(np.float64)}, r"input 'x': has another type: expected float32\[n, 3\], got float64\[2, 3\]"),
        ({"x": X[:, :2]}, r"input 'x': has another shape: expected float32\[n, 3\], got float32\[2, 2\]"),
        ({"x": X[0]}, r"input 'x': has another shape"),
    ],
)
def test_wrong_feeds_are_refused(feeds: dict[str, Array], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        execute.run(graph(), feeds)


def test_rows_are_cut_into_batches_and_the_last_one_is_filled_up() -> None:
    rows = np.arange(15, dtype=np.float32).reshape(5, 3)
    cut = list(execute.batches(graph(), {"x": rows}, 2))
    assert [count for _, count in cut] == [2, 2, 1]
    np.testing.assert_array_equal(cut[2][0]["x"], rows[[4, 4]])
    assert list(execute.batches(graph(), {"x": rows[:0]}, 2)) == []


def test_inputs_that_disagree_about_rows_are_refused() -> None:
    text = TEXT.replace("(float[n,3] x)", "(float[2,3] x, float[3,3] z)")
    two = load(parser.parse_model(text))
    with pytest.raises(InputError, match=r"different numbers of rows \(x: 1, z: 2\)"):
        list(execute.batches(load(parser.parse_model(text.replace("[3,3] z", "[2,3] z"))), {"x": X[:1], "z": X}, 2))
    with pytest.raises(InputError, match=r"disagree about the batch"):
        execute.batch_size(two, 8)
