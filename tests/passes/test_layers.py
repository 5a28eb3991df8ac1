"""Layers as matrix products: rows times the matrix is what onnxruntime computes; the error of other weights follows."""

import numpy as np
import numpy.typing as npt
import pytest

from graphc.calibrate import calibrate
from graphc.execute import run
from graphc.ir.graph import Graph
from graphc.passes.layers import Layer, layer_of, layers, row_count, some_rows, unfold
from graphc.passes.protocol import Rows
from tests.passes.quantized import feeds_of, model, normal, only

CONV = "(float[2,6,9,8] x) => (float[a,b,c,d] y)"
GRAPHS = {
    "conv": (CONV, "y = Conv <pads = [1,0,2,1]> (x, w)", (4, 6, 3, 2)),
    "strided": (CONV, "y = Conv <strides = [2,3]> (x, w)", (4, 6, 3, 3)),
    "dilated": (CONV, "y = Conv <dilations = [2,1], pads = [1,1,1,1]> (x, w)", (4, 6, 3, 3)),
    "grouped": (CONV, "y = Conv <group = 3> (x, w)", (9, 2, 3, 3)),
    "depthwise": (CONV, "y = Conv <group = 6, pads = [1,1,1,1]> (x, w)", (6, 1, 3, 3)),
    "one_axis": ("(float[2,6,9] x) => (float[a,b,c] y)", "y = Conv <strides = [2]> (x, w)", (5, 6, 3)),
    "gemm": ("(float[5,6] x) => (float[5,3] y)", "y = Gemm <transB = 1> (x, w)", (3, 6)),
    "gemm_straight": ("(float[5,6] x) => (float[5,3] y)", "y = Gemm (x, w)", (6, 3)),
    "matmul": ("(float[2,3,5,6] x) => (float[2,3,5,4] y)", "y = MatMul (x, w)", (6, 4)),
}


def made(name: str) -> tuple[Graph, Layer]:
    signature, body, shape = GRAPHS[name]
    graph = model(signature, body, w=normal(*shape))
    layer = layer_of(graph, graph.nodes[0])
    assert layer is not None
    return graph, layer


def output_rows(layer: Layer, y: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """An output of the node as [groups, n, N]."""
    if layer.rows.kernel:
        y = np.moveaxis(y, 1, -1)
    return y.reshape(-1, layer.rows.groups, y.shape[-1] // layer.rows.groups).transpose(1, 0, 2)


@pytest.mark.parametrize("name", GRAPHS)
def test_rows_times_matrix_is_the_layer(name: str) -> None:
    graph, layer = made(name)
    feeds = feeds_of(graph, 1)[0]
    rows = np.concatenate(list(unfold(feeds["x"], layer.rows)), axis=1)
    found = rows @ layer.matrix(graph.constants["w"]).transpose(0, 2, 1)
    expected = output_rows(layer, run(graph, feeds)["y"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", GRAPHS)
def test_restore_is_the_inverse_of_matrix(name: str) -> None:
    graph, layer = made(name)
    np.testing.assert_array_equal(layer.restore(layer.matrix(graph.constants["w"])), graph.constants["w"])


@pytest.mark.parametrize("name", GRAPHS)
def test_the_error_of_other_weights_follows_from_the_gram_matrix(name: str) -> None:
    graph, layer = made(name)
    change = normal(*GRAPHS[name][2]) / 10
    feeds = feeds_of(graph)
    other = model(*GRAPHS[name][:2], w=graph.constants["w"] + change)
    squares = [np.square(run(other, f)["y"].astype(np.float64) - run(graph, f)["y"]).mean() for f in feeds]
    statistics = calibrate(graph, [layer.gram], feeds)
    assert layer.error(layer.matrix(change).astype(np.float64), statistics) == pytest.approx(np.mean(squares), rel=1e-4)


def test_pieces_are_bounded_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, layer = made("conv")
    x = feeds_of(graph, 1)[0]["x"]
    whole = next(unfold(x, layer.rows))
    monkeypatch.setattr("graphc.passes.layers.CHUNK", 1)
    pieces = list(unfold(x, layer.rows))
    assert len(pieces) == 2
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)


def test_what_is_no_product_with_constant_weights_is_no_layer() -> None:
    graph = model(
        "(float[4,4] x) => (float[4,4] y)",
        "a = MatMul (x, x)\nb = Gemm <transA = 1> (a, w)\nc = MatMul (w, b)\ny = Relu (c)",
        w=normal(4, 4),
    )
    assert layers(graph) == ()
    assert only(graph, "Relu") is graph.nodes[-1]


def test_some_rows_are_those_of_unfold() -> None:
    rng = np.random.default_rng(0)
    for shape, rows in (
        ((3, 8, 9, 7), Rows(2, (3, 2), (2, 1), (1, 2), (1, 1, 0, 2))),
        ((2, 6, 10), Rows(1, (3,), (2,), (1,), (1, 1))),
        ((4, 5, 12), Rows(3)),
    ):
        values = rng.normal(size=shape).astype(np.float32)
        everything = np.concatenate(list(unfold(values, rows)), axis=1)
        chosen = rng.permutation(everything.shape[1])[:9]
        assert row_count(values, rows) == everything.shape[1]
        np.testing.assert_array_equal(some_rows(values, rows, chosen), everything[:, chosen])
