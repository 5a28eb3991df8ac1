"""networkx views."""

import networkx as nx
from onnx import parser

from graphc.importer import load
from graphc.ir.views import nodes_view

GRAPH = load(
    parser.parse_model("""<ir_version: 10, opset_import: ["" : 26]>
g (float[2,2] x) => (float[2,2] z) <float[2] w = {1, 2}> {
    y = Mul(x, w) a, b = Split<num_outputs=2>(y) z = Concat<axis=0>(b, a)
}""")
)


def test_nodes_view() -> None:
    view = nodes_view(GRAPH)
    assert [node.op for node in nx.topological_sort(view)] == ["Mul", "Split", "Concat"]
    mul, split, concat = GRAPH.nodes
    assert view.edges[mul, split]["values"] == ("y",)
    assert view.edges[split, concat]["values"] == ("b", "a")
    assert nx.immediate_dominators(view, mul)[concat] is split
