"""Edits: names, order, redirected outputs, types, subgraphs."""

import numpy as np
import onnx
import pytest
from onnx import parser

from graphc.errors import InputError, InternalError
from graphc.importer import load
from graphc.ir import Edit, Graph, TensorType


def graph_of(text: str) -> Graph:
    return load(parser.parse_model(f'<ir_version: 10, opset_import: ["" : 26]> {text}'))


def accepted(graph: Graph) -> Graph:
    onnx.checker.check_model(graph.to_onnx(), full_check=True)
    return graph


CHAIN = "g (float[2,3] x) => (float[2,3] z) { y = Relu(x) z = Abs(y) }"
BRANCH = """g (float[2,3] x, bool c) => (float[2,3] z) {
    y = Relu(x)
    z = If (c) <
        then_branch = t () => (float[2,3] a) { a = Neg(y) },
        else_branch = e () => (float[2,3] b) {
            b = If (c) <then_branch = tt () => (float[2,3] p) { p = Exp(y) },
                        else_branch = ee () => (float[2,3] q) { q = Abs(x) }>
        }>
}"""


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def test_nothing_recorded_returns_the_same_graph() -> None:
    graph = graph_of(CHAIN)
    assert Edit(graph).apply() is graph


def test_insert_keeps_the_order_and_leaves_the_input_alone() -> None:
    graph = graph_of(CHAIN)
    last = graph.nodes[1]
    edit = Edit(graph)
    edit.replace(last, inputs=[edit.add("Neg", ["y"], near=last)])
    changed = accepted(edit.apply())
    assert ops(changed) == ["Relu", "Neg", "Abs"]
    assert ops(graph) == ["Relu", "Abs"]
    assert changed.types["neg_out"] == TensorType(np.dtype(np.float32), (2, 3))


def test_redirected_output_keeps_its_name() -> None:
    graph = graph_of(CHAIN)
    edit = Edit(graph)
    edit.redirect("z", edit.add("Neg", ["y"]))
    edit.remove(graph.nodes[1])
    changed = accepted(edit.apply())
    assert changed.outputs == ("z",)
    assert ops(changed) == ["Relu", "Neg"]
    assert changed.producers["z"].op == "Neg"


def test_redirected_output_whose_producer_stays() -> None:
    graph = graph_of(CHAIN)
    edit = Edit(graph)
    edit.redirect("z", edit.add("Neg", ["y"]))
    changed = accepted(edit.apply())
    assert changed.producers["z"].op == "Neg"
    assert sorted(ops(changed)) == ["Abs", "Neg", "Relu"]


def test_output_redirected_to_an_input_or_another_output_is_copied() -> None:
    graph = graph_of(
        "g (float[2] x) => (float[2] a, float[2] b, float[2] c) { a = Relu(x) b = Identity(x) c = Abs(x) }"
    )
    edit = Edit(graph)
    edit.redirect("b", "x")
    edit.redirect("c", "a")
    edit.remove(*graph.nodes[1:])
    changed = accepted(edit.apply())
    assert changed.outputs == ("a", "b", "c")
    assert [(changed.producers[name].op, changed.producers[name].inputs) for name in "abc"] == [
        ("Relu", ("x",)),
        ("Identity", ("x",)),
        ("Identity", ("a",)),
    ]


def test_output_of_another_type_takes_its_source_type() -> None:
    graph = graph_of(CHAIN)
    edit = Edit(graph)
    edit.redirect("z", edit.add("Cast", ["y"], {"to": onnx.TensorProto.INT8}))
    edit.remove(graph.nodes[1])
    assert accepted(edit.apply()).types["z"].dtype == np.int8


def test_unused_constants_go() -> None:
    graph = graph_of("g (float[2] x) => (float[2] y) { c = Constant<value = float {2}>() y = Mul(x, c) }")
    edit = Edit(graph)
    edit.replace(graph.nodes[0], "Abs", ["x"])
    changed = accepted(edit.apply())
    assert not changed.constants
    assert "c" not in changed.types


def test_types_follow_a_changed_operand() -> None:
    graph = graph_of("g (float[2,3] x) => (float[2,3] z) { y = Transpose(x) z = Abs(y) }")
    edit = Edit(graph)
    edit.replace(graph.nodes[1], inputs=["x"])
    assert edit.apply().types["z"].shape == (2, 3)


def test_types_known_from_shape_arithmetic_survive_a_change_elsewhere() -> None:
    graph = graph_of("""g (float[2,3] x) => (float[2,3] z) {
        a = Abs(x)
        s = Shape(x)
        one = Constant<value_ints=[1]>()
        t = Concat<axis=0>(s, one)
        r = Reshape(a, t)
        z = Neg(r)
    }""")
    assert graph.types["z"].shape == (2, 3, 1)
    edit = Edit(graph)
    edit.redirect("a", edit.add("Relu", ["x"]))
    edit.remove(graph.producers["a"])
    assert edit.apply().types["z"].shape == (2, 3, 1)


def test_redirect_reaches_into_nested_subgraphs() -> None:
    graph = graph_of(BRANCH)
    edit = Edit(graph)
    edit.redirect("y", edit.add("Sigmoid", ["x"]))
    edit.remove(graph.nodes[0])
    changed = accepted(edit.apply())
    assert ops(changed) == ["Sigmoid", "If"]
    assert set(changed.nodes[1].reads) == {"c", "x", "sigmoid_out"}
    body = changed.nodes[1].attributes["else_branch"]
    assert isinstance(body, Graph)
    assert set(body.captures) == {"c", "sigmoid_out", "x"}


def test_types_inside_subgraphs_follow() -> None:
    graph = graph_of(BRANCH)
    edit = Edit(graph)
    edit.set_inputs({"x": TensorType(np.dtype(np.float32), (5, 7)), "c": graph.types["c"]})
    changed = accepted(edit.apply())
    assert changed.types["z"].shape == (5, 7)
    body = changed.nodes[1].attributes["then_branch"]
    assert isinstance(body, Graph)
    assert body.types["a"].shape == (5, 7)


def test_fresh_names_avoid_those_inside_subgraphs() -> None:
    edit = Edit(graph_of(BRANCH))
    assert edit.fresh("a") == "a_1"
    assert edit.fresh("p") == "p_1"
    assert edit.fresh("new") == "new"


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda e, g: e.remove(g.nodes[0]), "reads 'y', which nothing produces"),
        (lambda e, g: e.remove(g.nodes[1]), "is an output of the graph, and nothing produces it"),
        (lambda e, g: e.add("Neg", ["x"], outputs=["y"]), "produces 'y', which something else produces"),
        (lambda e, g: e.redirect("y", "z"), "cycle"),
        (lambda e, g: (e.redirect("y", "z"), e.redirect("z", "y")), "in a circle"),
    ],
)
def test_a_broken_edit_is_refused(spoil, problem: str) -> None:
    graph = graph_of(CHAIN)
    edit = Edit(graph)
    spoil(edit, graph)
    with pytest.raises(InternalError, match=problem):
        edit.apply()


def test_operands_that_do_not_fit_are_refused() -> None:
    graph = graph_of(CHAIN)
    edit = Edit(graph)
    edit.redirect("z", edit.add("Add", ["y", edit.constant(np.ones(5, np.float32))], name="late"))
    edit.remove(graph.nodes[1])
    with pytest.raises(InputError, match=r"Add 'late': its operands.*float32\[2, 3\].*float32\[5\]"):
        edit.apply()
