"""Preprocessing: as graph nodes and as numpy it gives the same bits; what does not fit the model is refused."""

import numpy as np
import pytest
from onnx import parser

from graphc import preprocess as preprocessing
from graphc.data import Dataset
from graphc.errors import InputError
from graphc.execute import run
from graphc.importer import load
from graphc.ir import Graph, TensorType
from graphc.spec.model import Calibration, Preprocess

RNG = np.random.default_rng(0)
IMAGE = TensorType(np.dtype(np.float32), (1, 3, 4, 5))


def network(text: str) -> Graph:
    return load(parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}'))


RELU = "net (float[1,3,4,5] x) => (float[1,3,4,5] y) { y = Relu(x) }"


def options(**given: object) -> Preprocess:
    return Preprocess.model_validate({"fold": True, **given})


OPTIONS = {
    "full": options(layout="nhwc", dtype="uint8", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "scale": options(scale=1 / 127.5),
    "mean": options(mean=128.0, dtype="int16"),
    "channels": options(layout="nchw", std=(1.5, 2.5, 3.5)),
    "transpose": options(layout="nhwc"),
    "model takes nhwc": options(layout="nchw", model_layout="nhwc", mean=(1.0, 2.0, 3.0, 4.0, 5.0)),
    "nothing": options(),
}


@pytest.mark.parametrize("chosen", OPTIONS.values(), ids=OPTIONS.keys())
def test_nodes_and_numpy_agree_to_the_bit(chosen: Preprocess) -> None:
    graph = network(RELU)
    folded = preprocessing.prepend(graph, chosen)
    raw = preprocessing.raw_type(chosen, IMAGE)
    assert folded.inputs == ("x",) and folded.types["x"] == raw
    data = RNG.integers(0, 256, raw.dims).astype(raw.dtype)
    expected = run(graph, {"x": preprocessing.apply(chosen, data, IMAGE)})["y"]
    assert np.array_equal(run(folded, {"x": data})["y"], expected)


def test_the_formula() -> None:
    data = RNG.integers(0, 256, (2, 4, 5, 3)).astype(np.uint8)
    chosen = OPTIONS["full"]
    mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in (chosen.mean, chosen.std))
    exact = (data.transpose(0, 3, 1, 2) / 255 - mean) / std
    found = preprocessing.apply(chosen, data, IMAGE)
    assert found.dtype == np.float32 and found.flags.c_contiguous
    assert np.abs(found - exact).max() < 1e-5


def test_nodes_that_do_nothing_are_not_made() -> None:
    graph = network(RELU)
    assert [node.op for node in preprocessing.prepend(graph, options()).nodes] == ["Relu"]
    full = preprocessing.prepend(graph, OPTIONS["full"])
    assert [node.op for node in full.nodes] == ["Cast", "Transpose", "Mul", "Sub", "Div", "Relu"]


def test_one_input_of_several() -> None:
    graph = network("net (float[1,2] a, float[1,2] b) => (float[1,2] y) { y = Sub(a, b) }")
    folded = preprocessing.prepend(graph, options(input="b", scale=2.0))
    assert folded.inputs == ("a", "b")
    feeds = {"a": np.array([[5, 5]], np.float32), "b": np.array([[1, 2]], np.float32)}
    assert run(folded, feeds)["y"].tolist() == [[3.0, 1.0]]


def test_an_input_that_is_also_an_output() -> None:
    graph = network("net (float[1,2] x) => (float[1,2] x, float[1,2] y) { y = Relu(x) }")
    with pytest.raises(InputError, match=r"the input 'x' is an output of the model as well. Say `fold: false`"):
        preprocessing.prepend(graph, options(scale=2.0))


def test_a_subgraph_that_reads_the_input() -> None:
    graph = network(
        """net (float[1,2] x, bool c) => (float[1,2] y) {
        y = If (c) <
            then_branch = t () => (float[1,2] a) { a = Relu(x) },
            else_branch = e () => (float[1,2] b) { b = Neg(x) }
        >
    }"""
    )
    folded = preprocessing.prepend(graph, options(input="x", scale=2.0))
    feeds = {"x": np.array([[1, 2]], np.float32), "c": np.array(False)}
    assert run(folded, feeds)["y"].tolist() == [[-2.0, -4.0]]


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        (
            RELU,
            {"layout": "nhwc", "mean": (1, 2)},
            r"preprocess.mean: expected 3 values for float32\[1, 3, 4, 5\], got 2",
        ),
        (RELU, {"input": "z"}, r"preprocess.input: expected an input of the model \(x\), got 'z'"),
        ("n (float[1,2] a, float[1,2] b) => (float[1,2] y) { y = Sub(a, b) }", {}, "a model with one input, got a, b"),
        ("n (float[1,2] x) => (float[1,2] y) { y = Relu(x) }", {"layout": "nhwc"}, "with 3 dimensions or more"),
        ("n (int8[1,2] x) => (int8[1,2] y) { y = Relu(x) }", {"scale": 2}, "expected a floating-point input for scale"),
        ("n (float[N,2] x) => (float[N,2] y) { y = Relu(x) }", {"scale": 2}, "expected an input of fixed shape"),
    ],
)
def test_misfits(text: str, given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        preprocessing.prepend(network(text), options(**given))


def test_samples_fit_the_folded_graph(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Raw data reaches the same result through a folded model as preprocessed data through the plain one."""
    np.savez(tmp_path / "a.npz", x=RNG.integers(0, 256, (3, 4, 5, 3)).astype(np.uint8))
    section, graph = Calibration(path=tmp_path / "a.npz"), network(RELU)
    plain, chosen = OPTIONS["full"].model_copy(update={"fold": False}), OPTIONS["full"]
    folded = preprocessing.prepend(graph, chosen)
    ours = [run(folded, batch.feeds)["y"] for batch in Dataset(section, {"x": folded.types["x"]}, chosen)]
    theirs = [run(graph, batch.feeds)["y"] for batch in Dataset(section, {"x": graph.types["x"]}, plain)]
    assert np.array_equal(np.stack(ours), np.stack(theirs)) and len(ours) == 3
