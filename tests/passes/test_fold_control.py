"""Branches that are decided are inlined, loops of known length unrolled, bodies that stay are folded."""

import pytest

from graphc.importer import load
from graphc.passes.fold import Fold, fold
from graphc.passes.fold_control import UNROLLED
from graphc.passes.protocol import Context
from tests.golden import Golden
from tests.passes.folding import folded, model, operators, shown

SOURCES = {
    "if_true": """g (float[2] x) => (float[2] y) <bool yes = {1}>
        { a = Relu(x)  y = If(yes) <then_branch = t () => (float[2] p) { q = Exp(a)  p = Neg(q) },
                                    else_branch = e () => (float[2] r) { r = Identity(x) }> }""",
    "if_on_a_shape": """g (float[2,3] x) => (float[2,3] y)
        { s = Shape(x)  n = Size(s)  two = Constant<value_int=2>()  f = Equal(n, two)
          y = If(f) <then_branch = t () => (float[2,3] p) { p = Identity(x) },
                     else_branch = e () => (float[2,3] r) { r = Exp(x) }> }""",
    "nested_if": """g (float[2] x) => (float[2] y) <bool yes = {1}>
        { y = If(yes) <then_branch = t () => (float[2] p) { no = Not(yes)
              p = If(no) <then_branch = u () => (float[2] q) { q = Exp(x) },
                          else_branch = v () => (float[2] w) { k = Sin(x)  w = Cos(k) }> },
            else_branch = e () => (float[2] r) { r = Identity(x) }> }""",
    "loop": """g (float[2] x) => (float[2] y, float[3,2] all) <int64 n = {3}, bool yes = {1}>
        { y, all = Loop(n, yes, x) <body = b (int64 i, bool c, float[2] v) => (bool d, float[2] w, float[2] o)
              { d = Identity(c)  f = Cast<to=1>(i)  w = Add(v, f)  o = Neg(w) }> }""",
    "scan": """g (float[2] x, float[3,2] u) => (float[2] y, float[3,2] all)
        { y, all = Scan(x, u) <num_scan_inputs=1, body = b (float[2] s, float[2] e) => (float[2] t, float[2] o)
              { t = Add(s, e)  o = Exp(t) }> }""",
    "scan_backwards_along_columns": """g (float[2] x, float[2,3] u) => (float[2] y, float[2,3] all)
        { y, all = Scan(x, u) <num_scan_inputs=1, scan_input_axes=[1], scan_input_directions=[1], scan_output_axes=[1],
              scan_output_directions=[1], body = b (float[2] s, float[2] e) => (float[2] t, float[2] o)
              { t = Mul(s, e)  o = Sin(t) }> }""",
}


@pytest.mark.parametrize("name", SOURCES)
def test_decided(name: str, golden: Golden) -> None:
    graph = folded(SOURCES[name])
    assert not any(node.subgraphs for node in graph.nodes)
    golden.check(name, shown(graph))


def test_an_open_condition_stays_and_its_branches_are_folded() -> None:
    graph = folded("""g (float[2] x, bool f) => (float[2] y)
        { y = If(f) <then_branch = t () => (float[2] p) { a = Identity(x)  b = Exp(a)  p = Identity(b) },
                     else_branch = e () => (float[2] r) { r = Identity(x) }> }""")
    branch = next(value for value in graph.nodes[0].subgraphs if any(n.op == "Exp" for n in value.nodes))
    assert operators(branch) == ["Exp"]


def test_a_long_loop_stays_and_says_why() -> None:
    source = f"""g (float[2] x) => (float[2] y) <int64 n = {{{UNROLLED}}}, bool yes = {{1}}>
        {{ y = Loop(n, yes, x) <body = b (int64 i, bool c, float[2] v) => (bool d, float[2] w)
              {{ d = Identity(c)  a = Sin(v)  w = Cos(a) }}> }}"""
    context = Context()
    assert operators(Fold().apply(load(model(source)), context)) == ["Loop"]
    assert "too many to unroll" in context.skips[0].reason


def test_a_loop_whose_condition_may_change_stays() -> None:
    source = """g (float[2] x, bool f) => (float[2] y) <int64 n = {3}, bool yes = {1}>
        { y = Loop(n, yes, x) <body = b (int64 i, bool c, float[2] v) => (bool d, float[2] w)
              { d = Identity(f)  w = Sin(v) }> }"""
    assert operators(fold(load(model(source)))) == ["Loop"]


def test_names_made_in_a_body_do_not_hide_names_around_it() -> None:
    graph = folded("""g (float[2,3] x, bool f, float[1] y_shape) => (float[1,6] y, float[1] z)
        { z = Neg(y_shape)
          y = If(f) <then_branch = t () => (float[1,6] p) { a = Exp(x)  k = Constant<value_ints=[1]>()
                        q = Flatten<axis=0>(a)  p = Abs(q) },
                     else_branch = e () => (float[1,6] r) { r = Flatten<axis=0>(x) }> }""")
    outer = set(graph.types)
    for body in graph.nodes[-1].subgraphs:
        assert not outer & ({name for node in body.nodes for name in node.results} | set(body.constants))
