"""What a convolution reads with padding around it is written so: no call pads, nothing changes, for any division of
the tasks among threads."""

from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper, parser

from graphc.backends.build import build_target
from graphc.backends.cache import Cache
from graphc.backends.integer import integerize
from graphc.backends.reference import Reference
from graphc.backends.worker import Server
from graphc.execute import Session
from graphc.importer import load
from graphc.ir import Array, Graph
from graphc.runner import Runner
from tests.backends.kernel_calls import runnable
from tests.backends.qdq import Qdq, feeds

CPUS = ("x86-64-v3", "native")


def outputs(graph: Graph, cpu: str, given: dict[str, Array], folder: Path) -> tuple[list[str], list[Array]]:
    """(the kernels called, the result with one thread, with two, with five)."""
    with Server(1) as server:
        manifest = build_target(graph, runnable(cpu), folder / "out", server, Cache(folder / "cache"))
    found = []
    for threads in (1, 2, 5):
        with Runner(folder / "out", threads) as runner:
            found.append(np.asarray(runner(**given)))
    return [step.kernel for step in manifest.steps], found


def residual_blocks(seed: int) -> Graph:
    """Two images: a pool, a 3x3 convolution, one of another size, a sum with what the first of them read."""
    model = Qdq(seed)
    x = model.input((2, 3, 19, 37), "uint8")
    stem = model.node("Relu", [model.node("Conv", [x, model.weights((32, 3, 5, 5))], pads=[2, 2, 2, 2])])
    pooled = model.node("MaxPool", [model.requantize(stem, "uint8")], kernel_shape=[2, 2], strides=[2, 2])
    inner = model.node("Relu", [model.node("Conv", [pooled, model.weights((32, 32, 3, 3))], pads=[1, 1, 1, 1])])
    inner = model.requantize(inner, "uint8")
    outer = model.node("Conv", [inner, model.weights((32, 32, 3, 5))], pads=[1, 2, 1, 2])
    model.result(model.node("Add", [model.requantize(outer, "uint8"), pooled]), "uint8")
    return model.graph()


@pytest.mark.parametrize("cpu", CPUS)
def test_integers(cpu: str, tmp_path: Path) -> None:
    graph = residual_blocks(7)
    given = feeds(graph, np.random.default_rng(8))
    (expected,) = Reference(integerize(graph)).run(given).values()
    kernels, found = outputs(graph, cpu, given, tmp_path)
    assert not [name for name in kernels if name.startswith("pad")]
    assert len(kernels) <= 7  # the input, four layers, the sum, the result's own layout
    for each in found:
        np.testing.assert_array_equal(each, expected)


def test_floats_of_few_positions(tmp_path: Path) -> None:
    """Few output positions are a run over the padded input; the sum reads what is padded, too."""
    rng = np.random.default_rng(9)
    text = """g (float[2,6,9,9] x) => (y) {
        a = Conv(x, w)  b = Relu(a)
        c = Conv<pads=[1,1,1,1], strides=[2,2]>(b, v)
        d = Relu(c)
        e = Conv<pads=[2,1,2,1]>(d, u)
        f = Conv(d, t)
        y = Add(e, f)
    }"""
    proto = parser.parse_graph(text)
    shapes = {"w": (24, 6, 1, 1), "v": (24, 24, 3, 3), "u": (10, 24, 5, 3), "t": (10, 24, 1, 1)}
    proto.initializer.extend(
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name) for name, shape in shapes.items()
    )
    graph = load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 22)], ir_version=10))
    given: dict[str, Array] = {"x": rng.standard_normal((2, 6, 9, 9)).astype(np.float32)}
    expected = Session(graph).run(given)["y"]
    kernels, found = outputs(graph, "x86-64-v3", given, tmp_path)
    assert not [name for name in kernels if name.startswith("pad")]
    for each in found:
        assert np.abs(each - expected).max() <= 1e-5 * np.abs(expected).max()
