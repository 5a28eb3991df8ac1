"""The text form and the fingerprint: stable, and different where graphs differ."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from onnx import parser

from graphc.importer import load
from graphc.ir import Edit, Graph
from graphc.ir.text import digest, fingerprint, text

MODEL = """<ir_version: 10, opset_import: ["" : 26]>
small (float[1,3] x, bool c) => (float[1,2] z) <float[3,4] w = {0,1,2,3,4,5,6,7,8,9,10,11}> {
    m = MatMul(x, w)
    s, t = Split<num_outputs=2, axis=1>(m)
    z = If (c) <then_branch = a () => (float[1,2] p) { p = Clip(s, , k) k = Constant<value = float {2.5}>() },
                else_branch = b () => (float[1,2] q) { q = LeakyRelu<alpha = 0.1>(t) }>
}"""

TEXT = """graph small
input x: float32[1, 3]
input c: bool[]
constant w: float32[3, 4] sha256 8a5d0e2a5df1
m: float32[1, 4] = MatMul(x, w)    # m
s: float32[1, 2], t: float32[1, 2] = Split(m) axis=1 num_outputs=2    # s
z: float32[1, 2] = If(c)    # z
    else_branch:
        graph b
        q: float32[1, 2] = LeakyRelu(t) alpha=0.1    # q
        output q
    then_branch:
        graph a
        constant k: float32[] {2.5}
        p: float32[1, 2] = Clip(s, _, k)    # p
        output p
output z
"""


def graph() -> Graph:
    return load(parser.parse_model(MODEL))


def test_text() -> None:
    expected = TEXT.replace("8a5d0e2a5df1", digest(np.arange(12, dtype=np.float32).reshape(3, 4))[:12])
    assert text(graph()) == expected


def test_fingerprint_is_stable_through_export() -> None:
    assert fingerprint(graph()) == fingerprint(load(graph().to_onnx()))
    assert len(fingerprint(graph())) == 64


def changed_weight(graph: Graph) -> Graph:
    weight = graph.constants["w"].copy()
    weight[0, 0] += 1
    return replace(graph, constants={**graph.constants, "w": weight})


def changed_attribute(graph: Graph) -> Graph:
    edit = Edit(graph)
    edit.replace(graph.nodes[1], attributes={"axis": -1, "num_outputs": 2})
    return edit.apply()


def changed_subgraph(graph: Graph) -> Graph:
    node = graph.nodes[2]
    body = node.attributes["then_branch"]
    assert isinstance(body, Graph)
    body = replace(body, constants={"k": np.float32(2.25).reshape(())})
    other = replace(node, attributes={**node.attributes, "then_branch": body})
    return replace(graph, nodes=(*graph.nodes[:2], other))


@pytest.mark.parametrize(
    "change",
    [
        changed_weight,
        changed_attribute,
        changed_subgraph,
        lambda g: replace(g, metadata={"a": "b"}),
        lambda g: replace(g, name="other"),
    ],
)
def test_fingerprint_sees_every_change(change) -> None:
    assert fingerprint(change(graph())) != fingerprint(graph())


def test_digest_tells_types_and_shapes_apart() -> None:
    arrays = [
        np.zeros(12, np.float32),
        np.zeros((3, 4), np.float32),
        np.zeros(12, np.int32),
        np.zeros(12, ml_dtypes.int4),
        np.zeros(12, ml_dtypes.bfloat16),
        np.array(["a"] * 12, object),
    ]
    assert len({digest(array) for array in arrays}) == len(arrays)
    assert digest(arrays[1].T) != digest(arrays[1])
