"""Export: what onnxruntime runs, the same bytes every time, whole files or none, and weights past 2 GB."""

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser

from graphc import exporter
from graphc.errors import InputError, InternalError
from graphc.exporter import save, to_model
from graphc.importer import load
from graphc.ir import Edit, Graph, Node, TensorType
from graphc.ir.text import fingerprint

TEXT = """<ir_version: 10, opset_import: ["" : 26]>
g (float[1,3] x) => (float[1,2] y) <float[3,2] w = {1,2,3,4,5,6}> { y = MatMul(x, w) }"""


def linear() -> Graph:
    return load(parser.parse_model(TEXT))


def run(path: Path, **feeds: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(path).run(None, feeds)


def test_the_model_says_what_it_needs_and_no_more() -> None:
    model = to_model(linear())
    assert (model.ir_version, [(o.domain, o.version) for o in model.opset_import]) == (13, [("", 26)])
    assert not model.functions
    assert (model.producer_name, bool(model.producer_version)) == ("graphc", True)


def test_functions_used_in_subgraphs_alone_are_attached(tmp_path: Path) -> None:
    graph = load(
        parser.parse_model("""<ir_version: 13, opset_import: ["" : 26, "graphc" : 1]>
        g (bool c) => (float[2] y) <float[2] b = {5, 7}, uint8[1] p = {2}> {
            y = If (c) <then_branch = t () => (float[2] d) { d = graphc.Lookup<bits = 1, shape = [2]>(b, p) },
                        else_branch = e () => (float[2] f) { f = Neg(b) }> }""")
    )
    save(graph, tmp_path / "m.onnx")
    assert [f.name for f in onnx.load(tmp_path / "m.onnx").functions] == ["Lookup"]
    assert run(tmp_path / "m.onnx", c=np.array(True))[0].tolist() == [5, 7]
    assert run(tmp_path / "m.onnx", c=np.array(False))[0].tolist() == [-5, -7]


def test_other_domains_are_stated() -> None:
    graph = load(
        parser.parse_model("""<ir_version: 10, opset_import: ["" : 26, "ai.onnx.ml" : 5]>
        g (float[1,3] x) => (y) { y = ai.onnx.ml.Binarizer<threshold = 0.5>(x) }""")
    )
    assert [(o.domain, o.version) for o in to_model(graph).opset_import] == [("", 26), ("ai.onnx.ml", 5)]


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    graph = linear()
    for name in ("a", "b"):
        save(graph, tmp_path / name / "m.onnx")
    first = (tmp_path / "a" / "m.onnx").read_bytes()
    assert first == (tmp_path / "b" / "m.onnx").read_bytes()
    save(load(tmp_path / "a" / "m.onnx"), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == first


def test_operators_of_a_backend_are_not_exported() -> None:
    graph = linear()
    edit = Edit(graph)
    edit.replace(graph.nodes[0], domain="graphc.integer", types=[graph.types["y"]])
    with pytest.raises(InternalError, match=r"operators of domain graphc\.integer have no ONNX form"):
        to_model(edit.apply())


def test_graph_method() -> None:
    assert linear().to_onnx() == to_model(linear())


def test_a_constant_or_an_input_may_be_an_output(tmp_path: Path) -> None:
    kind = TensorType(np.dtype(np.float32), (2,))
    node = Node("Neg", ("x",), ("y",), {}, "n")
    graph = Graph("g", ("x",), ("y", "c"), (node,), dict.fromkeys("xyc", kind), {"c": np.ones(2, np.float32)})
    save(graph, tmp_path / "m.onnx")
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    assert [v.tolist() for v in run(tmp_path / "m.onnx", x=np.ones(2, np.float32))] == [[-1, -1], [1, 1]]


def test_attributes_of_every_kind_survive() -> None:
    attributes = {
        "i": 3,
        "f": 0.5,
        "s": "text",
        "broken": "a\udccc",
        "ints": (1, 2),
        "floats": (0.5, 1.0),
        "strings": ("a", "b"),
        "tensor": np.arange(3, dtype=ml_dtypes.int4),
        "none": (),
    }
    kind = TensorType(np.dtype(np.float32), (2,))
    graph = Graph("g", ("x",), ("y",), (Node("Neg", ("x",), ("y",), attributes, "n"),), dict.fromkeys("xy", kind), {})
    model = onnx.ModelProto.FromString(to_model(graph).SerializeToString())
    found = load(model).nodes[0].attributes
    assert {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in found.items()} == {
        k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in attributes.items()
    }


def test_an_unwritable_place_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        save(linear(), tmp_path / "file" / "m.onnx")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(linear(), tmp_path / "m.onnx")
    before = (tmp_path / "m.onnx").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        save(linear(), tmp_path / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == before


def big_and_small(dtype: type[np.generic]) -> Graph:
    """A constant past the page size that external data starts from, in two halves around a small one."""
    edit = Edit(
        load(parser.parse_model("""<ir_version: 10, opset_import: ["" : 26]> g (float[1] x) => (y) { y = Neg(x) }"""))
    )
    values = np.arange(20000).reshape(100, 200) % 7
    a, b = (edit.constant((values + i).astype(dtype), "w") for i in range(2))
    small = edit.constant(np.array([-1], np.int64), "small")
    cast = [edit.add("Reshape", [edit.add("Cast", [n], {"to": 1}), small]) for n in (a, b)]
    edit.redirect("y", edit.add("Add", [edit.add("Concat", cast, {"axis": 0}), "x"]))
    edit.remove(edit.graph.nodes[0])
    return edit.apply()


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.float16, np.bool_, ml_dtypes.int4, ml_dtypes.bfloat16])
def test_external_data_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type[np.generic]) -> None:
    monkeypatch.setattr(exporter, "EXTERNAL_ABOVE", 1000)
    graph = big_and_small(dtype)
    path = tmp_path / "m.onnx"
    save(graph, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert path.stat().st_size < 3000
    onnx.checker.check_model(str(path), full_check=True)
    again = load(path)
    assert fingerprint(again) == fingerprint(graph)
    values = np.arange(20000) % 7
    expected = np.concatenate([(values + i).astype(dtype).astype(np.float32) for i in range(2)]) + 1
    np.testing.assert_array_equal(run(path, x=np.ones(1, np.float32))[0], expected)
    save(again, path)  # over the file that its weights are mapped from
    assert fingerprint(load(path)) == fingerprint(graph)


def test_weights_past_two_gigabytes(tmp_path: Path) -> None:
    """Sparse files: 3 GB of zeros take no room, and mapping them takes no memory."""
    rows = 375_000_000 // 1000
    shape = (rows, 2000)
    path = tmp_path / "m.onnx"
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(rows * 2000 * 4)
        file.seek(-4, os.SEEK_END)
        file.write(np.float32(7).tobytes())
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 17]> g (int64[1] i) => (float[1,2000] y)
        <float[1] w = {1}> { y = Gather(w, i) }"""
    )
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.dims[:] = shape
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    path.write_bytes(model.SerializeToString())
    graph = load(path)
    assert graph.types["w"].bytes == 3_000_000_000
    assert graph.types["y"].shape == (1, 2000)
    assert graph.constants["w"][-1, -1] == 7
    assert resident() < 1 << 20


def resident() -> int:
    """Peak memory of this process in KiB that is not a mapped file."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1])
