"""Grids found at run time: bit for bit those of onnxruntime, whatever the size, the layout and the values."""

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper, parser

import graphc
from graphc.execute import Session
from graphc.importer import load
from graphc.ir import Array, Graph

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[1,16,5,7] x, float[3,11] odd, float[2,1024] long)
    => (float[1,6,5,7] y, uint8[3,11] p, float ps, uint8 pz, uint8[2,1024] q, float qs, uint8 qz)
{
    c = Conv <pads = [0,0,0,0]> (x, w)
    a, s, z = DynamicQuantizeLinear (c)
    i = ConvInteger <pads = [1,1,1,1]> (a, v, z)
    f = Cast <to = 1> (i)
    y = Mul (f, s)
    p, ps, pz = DynamicQuantizeLinear (odd)
    q, qs, qz = DynamicQuantizeLinear (long)
}"""


@pytest.fixture(scope="module")
def graph() -> Graph:
    rng = np.random.default_rng(0)
    proto = parser.parse_model(TEXT)
    w = rng.integers(-2, 3, (16, 16, 1, 1)).astype(np.float32)  # sums of whole numbers are exact in any order
    v = rng.integers(-128, 128, (6, 16, 3, 3)).astype(np.int8)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in (("w", w), ("v", v)))
    return load(proto)


def feeds(graph: Graph) -> dict[str, dict[str, Array]]:
    rng = np.random.default_rng(1)
    kinds = {name: graph.types[name].dims for name in graph.inputs}
    whole = {name: rng.integers(-40, 41, dims).astype(np.float32) for name, dims in kinds.items()}
    return {
        "both signs": whole,
        "above zero": {name: np.abs(array) + np.float32(1) for name, array in whole.items()},
        "below zero": {name: -np.abs(array) - np.float32(1) for name, array in whole.items()},
        "zeros": {name: np.zeros_like(array) for name, array in whole.items()},
        "one number": {name: np.full_like(array, 3.5) for name, array in whole.items()},
        "tiny": {name: array * np.float32(1e-30) for name, array in whole.items()},
        "far apart": {name: array * np.float32(1e4) for name, array in whole.items()},
    }


def test_equals_onnxruntime(graph: Graph, tmp_path: Path) -> None:
    build = graphc.compile(graph, {"name": "dynamic", "targets": [{"cpu": "native"}]}, out=tmp_path)
    reference = Session(graph)
    with graphc.open(build.artifact("native")) as model:
        for name, given in feeds(graph).items():
            expected, found = reference.run(given), model(**given)
            for output in graph.outputs:
                np.testing.assert_array_equal(found[output], expected[output], err_msg=f"{name}: {output}")
