"""What the tests of quantization share: graphs from text, calibration on noise, questions about the result."""

from collections import Counter
from typing import Any

import numpy as np
from onnx import numpy_helper, parser

from graphc.backends.integer import explain
from graphc.calibrate import calibrate
from graphc.execute import Session
from graphc.importer import load
from graphc.ir.check import check
from graphc.ir.graph import Array, Graph, Node
from graphc.passes.protocol import Context
from graphc.passes.quantize import Quantize

STATIC = {"weights": "int8", "activations": "uint8", "calibrate": "minmax"}
RNG = np.random.default_rng(0)
START = RNG.bit_generator.state


def model(signature: str, body: str, opset: int = 21, **weights: Array) -> Graph:
    """A graph from ONNX text; `weights` become its constants."""
    text = f'<ir_version: 10, opset_import: ["" : {opset}]>\ng {signature}\n{{\n{body}\n}}'
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return load(proto)


def normal(*shape: int) -> Array:
    """Seeded noise: the same in every run of a test, whatever ran before it (see conftest.py)."""
    return RNG.normal(size=shape).astype(np.float32)


def feeds_of(graph: Graph, count: int = 4) -> list[dict[str, Array]]:
    rng = np.random.default_rng(1)
    return [{n: rng.normal(size=graph.types[n].dims).astype(np.float32) for n in graph.inputs} for _ in range(count)]


def quantized(graph: Graph, **options: Any) -> tuple[Graph, Context]:
    """`graph` after the pass, calibrated on `feeds_of`; checked by onnx."""
    step = Quantize.model_validate({**STATIC, **options})
    context = Context(calibrate(graph, step.observes(graph), feeds_of(graph)))
    result = step.apply(graph, context)
    check(result)
    return result, context


def ops(graph: Graph) -> dict[str, int]:
    return dict(Counter(node.op for node in graph.nodes))


def producer_chain(graph: Graph, value: str) -> list[str]:
    """Operators from a value back along first operands."""
    found = []
    while value in graph.producers:
        found.append(graph.producers[value].op)
        value = graph.producers[value].inputs[0]
    return found


def only(graph: Graph, op: str) -> Node:
    (node,) = (node for node in graph.nodes if node.op == op)
    return node


def assert_close(before: Graph, after: Graph, decibels: float) -> None:
    """The outputs' signal to quantization-noise ratio on calibration data."""
    one, two = Session(before), Session(after)
    for feeds in feeds_of(before):
        expected, found = one.run(feeds), two.run(feeds)
        for name in before.outputs:
            noise = np.square(expected[name].astype(np.float64) - found[name]).sum()
            signal = np.square(expected[name].astype(np.float64)).sum()
            assert 10 * np.log10(signal / noise) > decibels, name


def assert_all_integer(graph: Graph) -> None:
    """Between its borders the graph runs on integers: no float operator is left, conversions stand at the ends only."""
    result = explain(graph)
    left = [s for s in result.skipped if not s.reason.endswith(("is an input of the graph", "an output of the graph"))]
    assert left == []
    floats = [node.op for node in result.graph.nodes if result.graph.types[node.outputs[0]].dtype == np.float32]
    assert set(floats) <= {"DequantizeLinear"}


def grids(graph: Graph, *values: str) -> set[tuple[float, int]]:
    """The grids that values are quantized to."""
    nodes = [node for node in graph.nodes if node.op == "QuantizeLinear"]
    by_value = {node.inputs[0].removesuffix("_float"): node for node in nodes}
    found = [by_value[value] for value in values]
    return {(float(graph.constants[n.inputs[1]]), int(graph.constants[n.inputs[2]])) for n in found}


CONV = "(float[1,3,8,8] x) => (float[1,4,8,8] y)"


def conv_relu() -> Graph:
    return model(CONV, "c = Conv <pads = [1,1,1,1]> (x, w, b)\ny = Relu (c)", w=normal(4, 3, 3, 3), b=normal(4))


CONSTANTS: dict[str, Array] = {
    "v": np.float32([[[1]], [[-0.5]], [[2]], [[0.3]]]),
    "s": np.float32(3),
    "axes": np.array([2, 3]),
    "low": np.float32(-0.5),
    "high": np.float32(0.5),
    "shape": np.array([1, -1]),
    "starts": np.array([1, 0]),
    "far": np.array([7, 9]),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "none": np.zeros(0, np.float32),
    "scales": np.float32([1, 1, 2, 2]),
    "picks": np.array([2, 0]),
    "zero": np.array([0]),
}
