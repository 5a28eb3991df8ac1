"""Loading: opsets, element types, fixed dimensions, functions, subgraphs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from graphc.errors import InputError, UnsupportedError
from graphc.importer import load
from graphc.ir import Graph, TensorType
from graphc.ir.check import check
from tests.onnx_text import LINEAR, model_of, run

F32 = np.dtype(np.float32)
X = np.array([[1, -2, 3]], np.float32)


def assert_same(model: ModelProto, graph: Graph, **feeds: np.ndarray) -> None:
    check(graph)
    again = graph.to_onnx()
    onnx.checker.check_model(again, full_check=True)
    for got, expected in zip(run(again, **feeds), run(model, **feeds), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "form", [lambda m, p: m, lambda m, p: m.SerializeToString(), lambda m, p: p, lambda m, p: str(p)]
)
def test_every_form_of_source(tmp_path: Path, form: Callable[[ModelProto, Path], object]) -> None:
    model = model_of(LINEAR)
    before = model.SerializeToString()
    onnx.save(model, tmp_path / "m.onnx")
    graph = load(form(model, tmp_path / "m.onnx"))
    assert graph.types == {
        "x": TensorType(F32, (1, 3)),
        "w": TensorType(F32, (3, 2)),
        "y": TensorType(F32, (1, 2)),
    }
    assert_same(model, graph, x=X)
    assert model.SerializeToString() == before


def test_constants_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        load(model_of(LINEAR)).constants["w"][0, 0] = 1


def test_initializers_listed_as_inputs_are_constants() -> None:
    model = model_of(LINEAR)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 2]))
    assert load(model).inputs == ("x",)


@pytest.mark.parametrize("opset", range(7, 27))
def test_opsets_are_converted_up(opset: int) -> None:
    model = model_of(
        """g (float[1,2,4,4] x) => (float[1,2,1,1] y) <float[3] s = {1,1,1}> {
            a = Relu(x) b = Softmax<axis=1>(a) y = GlobalAveragePool(b) }""",
        opset,
    )
    graph = load(model)
    x = np.random.default_rng(0).normal(size=(1, 2, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(run(graph.to_onnx(), x=x)[0], run(model, x=x)[0], rtol=0, atol=1e-7)


@pytest.mark.parametrize("opset", [1, 6, 99])
def test_other_opsets_are_refused(opset: int) -> None:
    with pytest.raises(UnsupportedError, match=rf"opset {opset} \(expected 7 to \d+\)"):
        load(model_of(LINEAR, opset))


@pytest.mark.parametrize(
    "text",
    [
        LINEAR,
        "g (int8[3] x) => (y) { y = Cast<to = 1>(x) }",
        "g (float[2,1] x) => (y) { y = Celu(x) }",
        'g (uint8[2] x) => (y) { y = BitShift<direction = "LEFT">(x, x) }',
        "g (int8[2] x) => (y) { y = Mod(x, x) }",
        "g (float[2] x) => (y) { y = Mod<fmod = 1>(x, x) }",
        "g (int64 x) => (y) { y = Range<stash_type = 1>(x, x, x) }",
        'g (float[1,1,4,4] x) => (y) { y = SpaceToDepth<blocksize = 2, mode = "DCR">(x) }',
    ],
)
def test_newer_opsets_are_read_where_nothing_has_changed(text: str) -> None:
    graph = load(model_of(text, 28))
    onnx.checker.check_model(graph.to_onnx(), full_check=True)


def test_new_operators_dissolve_into_their_bodies() -> None:
    graph = load(model_of("g (float[2,4] a, float[2,4] b) => (y) { y = SwiGLU(a, b) }", 28))
    assert [node.op for node in graph.nodes if node.op != "CastLike"] == ["Mul", "Sigmoid", "Mul", "Mul"]
    a, b = np.random.default_rng(0).normal(size=(2, 2, 4)).astype(np.float32)
    np.testing.assert_allclose(run(graph.to_onnx(), a=a, b=b)[0], a / (1 + np.exp(-a)) * b, rtol=1e-5)
    graph = load(model_of('g (float[1,2,4,4] x) => (y) { y = SpaceToDepth<blocksize = 2, mode = "CRD">(x) }', 28))
    x = np.arange(32, dtype=np.float32).reshape(1, 2, 4, 4)
    expected = x.reshape(1, 2, 2, 2, 2, 2).transpose(0, 1, 3, 5, 2, 4).reshape(1, 8, 2, 2)
    np.testing.assert_array_equal(run(graph.to_onnx(), x=x)[0], expected)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("g (float16[2,1] x) => (y) { y = Celu(x) }", r"operand X is tensor\(float16\), which Celu does not take"),
        ('g (int8[2] x) => (y) { y = BitShift<direction = "LEFT">(x, x) }', r"is tensor\(int8\), which BitShift does"),
        ("g (float[2] x) => (y) { y = Mod(x, x) }", "fmod=0 on floats"),
        ("g (float16 x) => (y) { y = Range(x, x, x) }", "which Range does not take"),
    ],
)
def test_newer_operators_are_refused(text: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        load(model_of(text, 28))


def test_operands_of_two_types_are_refused() -> None:
    with pytest.raises(InputError, match=r"operand B is tensor\(int64\) where another one is tensor\(float\)"):
        load(model_of("g (float[2] x, int64[2] i) => (y) { y = Add(x, i) }"))


def test_scans_of_opset_8_are_refused() -> None:
    model = model_of(
        """g (float[1,3] h, float[1,5,3] s) => (z) { z = Scan <num_scan_inputs = 1,
            body = b (float[3] a, float[3] c) => (float[3] d) { d = Add(a, c) }>(, h, s) }""",
        8,
    )
    with pytest.raises(UnsupportedError, match="Scan 'z': it scans a batch, as Scan of opset 8 does"):
        load(model)


def test_domain_names_have_one_spelling() -> None:
    model = model_of(LINEAR)
    model.opset_import[0].domain = "ai.onnx"
    model.graph.node[0].domain = "ai.onnx"
    assert load(model).nodes[0].domain == ""


def test_every_form_of_constant() -> None:
    model = model_of("""g () => (a, b, c, d, e, f, h) {
        a = Constant<value_int = 3>() b = Constant<value_ints = [1, 2]>() c = Constant<value_float = 0.5>()
        d = Constant<value_floats = [0.5, 1.5]>() e = Constant<value_string = "s">()
        f = Constant<value_strings = ["s", "t"]>() h = Constant<value = int8[2] {1, 2}>() }""")
    graph = load(model)
    assert not graph.nodes
    found = {name: (graph.types[name].dtype.name, array.tolist()) for name, array in graph.constants.items()}
    assert found == {
        "a": ("int64", 3),
        "b": ("int64", [1, 2]),
        "c": ("float32", 0.5),
        "d": ("float32", [0.5, 1.5]),
        "e": ("object", "s"),
        "f": ("object", ["s", "t"]),
        "h": ("int8", [1, 2]),
    }


NOT_PLAIN = ("UNDEFINED", "STRING", "COMPLEX64", "COMPLEX128", "FLOAT6E2M3", "FLOAT6E3M2")
"""Types that Identity does not take at this opset (6-bit floats), or that compare otherwise."""


@pytest.mark.parametrize(
    "dtype",
    [t for t in TensorProto.DataType.values() if TensorProto.DataType.Name(t) not in NOT_PLAIN],
)
def test_every_element_type_survives(dtype: int) -> None:
    array = np.ones((3, 5)).astype(helper.tensor_dtype_to_np_dtype(dtype))
    proto = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", dtype, [3, 5])],
        [numpy_helper.from_array(array, "w")],
    )
    graph = load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 26)], ir_version=13))
    assert graph.constants["w"].dtype == array.dtype
    again = load(graph.to_onnx())
    np.testing.assert_array_equal(again.constants["w"], array)
    assert again.types == graph.types


def test_unsorted_nodes_are_sorted_and_unnamed_ones_named() -> None:
    model = model_of("g (float[2] x) => (z) { z = Neg(y) y = Abs(x) }")
    graph = load(model)
    assert [node.op for node in graph.nodes] == ["Abs", "Neg"]
    assert [node.name for node in graph.nodes] == ["y", "z"]
    for node in model.graph.node:
        node.name = "same"
    assert [node.name for node in load(model).nodes] == ["same", "same_1"]


def test_stale_shapes_are_inferred_anew() -> None:
    model = model_of("g (float[4,3] x) => (float[1,5] z) <float[1,3] y> { y = Abs(x) z = Neg(y) }")
    assert load(model).types["z"].shape == (4, 3)


def test_metadata_is_kept() -> None:
    model = model_of(LINEAR)
    model.metadata_props.add(key="labels", value="a,b")
    graph = load(model)
    assert dict(graph.metadata) == {"labels": "a,b"}
    assert load(graph.to_onnx()).metadata == graph.metadata


def test_shape_arithmetic_gives_shapes() -> None:
    graph = load(
        model_of("""g (float[2,3,4] x) => (z) {
            s = Shape(x) zero = Constant<value_ints=[0]>() n = Gather(s, zero) m = Constant<value_ints=[-1]>()
            t = Concat<axis=0>(n, m) z = Reshape(x, t) }""")
    )
    assert graph.types["z"].shape == (2, 12)


# Dimensions

OPEN = "g (float[N,3] x, float[N,K] w) => (z) { z = Concat<axis=1>(x, w) }"


def test_symbols_are_fixed_everywhere() -> None:
    graph = load(model_of(OPEN), {"x": (4, 3)})
    assert graph.types["w"].shape == (4, "K")
    graph = load(model_of(OPEN), {"x": (4, 3), "w": [4, 2]})
    assert graph.types["z"].shape == (4, 5)


@pytest.mark.parametrize(
    ("shapes", "problem"),
    [
        ({"y": (1, 3)}, "inputs.y: the model has no such input (it has x, w)"),
        ({"x": (1, 3, 1)}, "inputs.x: 3 dimensions [1, 3, 1] for an input float32[N, 3]"),
        ({"x": (1, 4)}, "inputs.x: shape [1, 4] for an input float32[N, 3], whose 3 is fixed"),
        ({"x": (1, 3), "w": (2, 3)}, "inputs.w: the dimension 'N' is 2 here and 1 elsewhere"),
        ({"x": (-1, 3)}, "inputs.x: -1 is no dimension"),
        ({"x": (1.5, 3)}, "inputs.x: 1.5 is no dimension"),
        ({"x": (True, 3)}, "inputs.x: True is no dimension"),
    ],
)
def test_impossible_shapes_are_refused(shapes: dict[str, tuple[int, ...]], problem: str) -> None:
    with pytest.raises(InputError) as caught:
        load(model_of(OPEN), shapes)
    assert problem in str(caught.value)


def test_shapes_that_the_model_cannot_take_name_the_node() -> None:
    model = model_of("g (float[N,K] x) => (y) <float[3,2] w = {1,2,3,4,5,6}> { y = MatMul(x, w) }")
    with pytest.raises(InputError, match=r"MatMul 'y': its operands.*do not fit \(x: float32\[1, 4\], w"):
        load(model, {"x": (1, 4)})


# Functions

FUNCTIONS = """<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
g (float[2] x) => (y) { y = mine.twice<times = 3.0>(x) }
<opset_import: ["" : 17, "mine" : 1], domain: "mine"> twice <times> (a) => (b) {
    t = mine.scale<by: float = @times>(a) b = Add(t, t) }
<opset_import: ["" : 17], domain: "mine"> scale <by> (a) => (b) {
    s = Constant<value_float: float = @by>() b = Mul(a, s) }
"""


def test_foreign_functions_are_inlined() -> None:
    model = parser.parse_model(FUNCTIONS)
    graph = load(model)
    assert [node.op for node in graph.nodes] == ["Mul", "Add"]
    assert_same(model, graph, x=np.array([1, 2], np.float32))


def test_recursive_functions_are_refused() -> None:
    model = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        g (float[2] x) => (y) { y = mine.f(x) }
        <opset_import: ["" : 17, "mine" : 1], domain: "mine"> f (a) => (b) { b = mine.h(a) }
        <opset_import: ["" : 17, "mine" : 1], domain: "mine"> h (a) => (b) { b = mine.f(a) }""")
    with pytest.raises(InputError, match=r"function mine\.[fh]: it calls itself"):
        load(model)


LOOKUP = """<ir_version: 13, opset_import: ["" : {opset}, "graphc" : {version}]>
g (float[4] x) => (y) <float[4] c = {{0.5, 1, 2, 3}}, uint8[1] p = {{228}}> {{
    w = graphc.{name}<bits = 2, shape = [4]>(c, p) y = Mul(x, w) }}"""


@pytest.mark.parametrize("opset", [17, 26])
def test_own_functions_stay_nodes(opset: int) -> None:
    graph = load(parser.parse_model(LOOKUP.format(opset=opset, version=1, name="Lookup")))
    assert [(node.domain, node.op) for node in graph.nodes] == [("graphc", "Lookup"), ("", "Mul")]
    assert graph.types["w"] == TensorType(F32, (4,))
    model = graph.to_onnx()
    assert_same(model, load(model), x=np.ones(4, np.float32))
    np.testing.assert_array_equal(run(model, x=np.ones(4, np.float32))[0], [0.5, 1, 2, 3])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"version": 2}, r"graphc operators of version 2 \(this graphc has 1\)"),
        ({"name": "Magic"}, r"graphc\.Magic: unknown operator of the graphc domain; this version has Lookup"),
    ],
)
def test_own_functions_of_another_version_are_refused(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        load(parser.parse_model(LOOKUP.format(**{"opset": 26, "version": 1, "name": "Lookup", **changes})))


# Subgraphs

BRANCHES = """g (float[2,N] x, bool c) => (z) {
    z = If (c) <then_branch = t () => (float[2,9] a) { k = Constant<value = float {2.0}>() a = Mul(x, k) },
                else_branch = e () => (float[2,9] b) { m = Neg(x) b = Abs(m) }> }"""


@pytest.mark.parametrize("opset", [11, 17, 26])
def test_subgraphs_are_graphs(opset: int) -> None:
    model = model_of(BRANCHES, opset)
    graph = load(model, {"x": (2, 3)})
    assert graph.types["z"].shape == (2, 3)
    (node,) = graph.nodes
    assert {body.name for body in node.subgraphs} == {"t", "e"}
    assert node.reads == ("c", "x")
    for flag in (True, False):
        onnx_model = graph.to_onnx()
        x = np.ones((2, 3), np.float32)
        np.testing.assert_array_equal(run(onnx_model, x=x, c=np.array(flag))[0], x * (2 if flag else 1))


def test_big_constants_of_subgraphs_become_the_graphs() -> None:
    weights = {name: np.random.default_rng(i).normal(size=(40, 40)).astype(np.float32) for i, name in enumerate("tu")}
    model = model_of("""g (float[2,40] x, bool c) => (z) {
        z = If (c) <then_branch = a () => (float[2,40] p) { p = MatMul(x, w) },
                    else_branch = b () => (float[2,40] q) { q = MatMul(x, w) }> }""")
    for attribute, name in zip(model.graph.node[0].attribute, "tu", strict=True):
        attribute.g.initializer.append(numpy_helper.from_array(weights[name], "w"))
    graph = load(model)
    assert {name: array.shape for name, array in graph.constants.items()} == {"w_1": (40, 40), "w_2": (40, 40)}
    for flag in (True, False):
        assert_same(model, graph, x=np.ones((2, 40), np.float32), c=np.array(flag))


def test_subgraphs_may_return_constants_and_values_around_them() -> None:
    model = model_of(
        """g (bool c, float[3] x) => (z) { y = Neg(x) z = If (c) <
            then_branch = t () => (float[3] k) { k = Constant<value = float[3] {1, 2, 3}>() },
            else_branch = e () => (y) { }> }""",
        11,
    )
    graph = load(model)
    assert graph.types["z"].shape == (3,)
    again = graph.to_onnx()
    onnx.checker.check_model(again, full_check=True)
    x = np.ones(3, np.float32)
    assert run(again, x=x, c=np.array(True))[0].tolist() == [1, 2, 3]
    assert run(again, x=x, c=np.array(False))[0].tolist() == [-1, -1, -1]


def test_loop_keeps_the_shape_that_its_body_returns() -> None:
    model = model_of("""g (float[2,3] x, int64 n) => (y, ys) { go = Constant<value = bool {1}>()
        y, ys = Loop(n, go, x) <body = b (int64 i, bool c, float[A,B] h) => (bool d, float[A,B] k, float[A,B] s) {
            d = Identity(c) k = Add(h, x) s = Neg(k) }> }""")
    graph = load(model)
    assert graph.types["y"].shape == (2, 3)
    assert graph.types["ys"].shape == ("?", 2, 3)
    assert_same(model, graph, x=np.ones((2, 3), np.float32), n=np.array(4))


def test_loop_that_grows_has_an_open_shape() -> None:
    model = model_of("""g (float[1,3] x, int64 n) => (y) {
        y = Loop(n, , x) <body = b (int64 i, bool c, float[A,B] h) => (bool d, float[C,B] k) {
            d = Identity(c) k = Concat<axis=0>(h, x) }> }""")
    graph = load(model)
    assert graph.types["y"].shape == ("?", 3)
    assert_same(model, graph, x=np.ones((1, 3), np.float32), n=np.array(4))
