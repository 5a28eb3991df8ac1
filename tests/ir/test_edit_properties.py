"""Random edits of random graphs: the result is sound, the order of recording does not matter, nothing is spoiled."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from graphc.ir import Edit, Graph, Node, TensorType
from graphc.ir.check import check
from graphc.ir.text import fingerprint

KIND = TensorType(np.dtype(np.float32), (2, 3))


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """A few element-wise nodes on one input and one constant; every other value is an output as well."""
    values = ["x", "w"]
    nodes = []
    for i in range(draw(st.integers(1, 8))):
        op = draw(st.sampled_from(["Neg", "Abs", "Add", "Mul"]))
        operands = [draw(st.sampled_from(values)) for _ in range(2 if op in ("Add", "Mul") else 1)]
        nodes.append(Node(op, tuple(operands), (f"v{i}",), {}, f"n{i}"))
        values.append(f"v{i}")
    outputs = tuple(f"v{i}" for i in range(0, len(nodes), 2))
    return Graph("g", ("x",), outputs, tuple(nodes), dict.fromkeys(values, KIND), {"w": np.ones((2, 3), np.float32)})


@given(graphs(), st.data())
@settings(max_examples=100, deadline=None)
def test_nodes_put_behind_values(graph: Graph, data: st.DataObject) -> None:
    before = fingerprint(graph)
    chosen = data.draw(st.lists(st.sampled_from(graph.nodes), unique=True))
    edit = Edit(graph)
    for node in chosen:
        edit.replace(node, inputs=[edit.add("Sigmoid", [name], near=node) for name in node.inputs])
    changed = edit.apply()
    check(changed)
    assert fingerprint(graph) == before
    assert (changed is graph) == (not chosen)
    added = sum(len(node.inputs) for node in chosen)
    assert len(changed.nodes) == len(graph.nodes) + added
    kept = [node for node in changed.nodes if node.op != "Sigmoid"]
    assert [node.name for node in kept] == [node.name for node in graph.nodes]


@given(graphs(), st.data())
@settings(max_examples=100, deadline=None)
def test_nodes_bypassed(graph: Graph, data: st.DataObject) -> None:
    """Redirecting a node's result to its operand and removing the node: readers and outputs follow."""
    chosen = data.draw(st.lists(st.sampled_from(graph.nodes), unique=True))
    order = data.draw(st.permutations(chosen))
    results = []
    for nodes in (chosen, order):
        edit = Edit(graph)
        for node in nodes:
            edit.redirect(node.outputs[0], node.inputs[0])
        edit.remove(*nodes)
        results.append(edit.apply())
    check(results[0])
    assert fingerprint(results[0]) == fingerprint(results[1])
    assert results[0].outputs == graph.outputs
    names = {node.name for node in results[0].nodes}
    assert not names & {node.name for node in chosen}
