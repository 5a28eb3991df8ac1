"""Constants are computed, shapes too; decoders, random numbers and swelling constants are not."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from graphc.importer import load
from graphc.passes.fold import Fold, fold
from graphc.passes.fold_constants import SMALL
from graphc.passes.protocol import Context
from tests.golden import Golden
from tests.passes.folding import difference, feeds, folded, model, operators, shown

FOLDED = {
    "arithmetic_on_constants": """g (float[2,3] x, float[3,2] c_w, float[3] cp_s) => (float[2,3] y)
        { t = Transpose(c_w)  n = Neg(t)  s = Sqrt(cp_s)  a = Mul(n, s)  y = Add(x, a) }""",
    "shape_of_a_static_value": """g (float[2,3,4] x) => (float[2,12] y)
        { s = Shape(x)  i = Constant<value_ints=[0]>()  n = Gather(s, i)  m = Constant<value_ints=[-1]>()
          d = Concat<axis=0>(n, m)  y = Reshape(x, d) }""",
    "shape_with_an_open_batch": """g (float[N,3,4] x) => (float[N,12] y)
        { s = Shape(x)  i = Constant<value_int=0>()  n = Gather<axis=0>(s, i)  z = Constant<value_ints=[0]>()
          u = Unsqueeze(n, z)  m = Constant<value_ints=[12]>()  d = Concat<axis=0>(u, m)  y = Reshape(x, d) }""",
    "open_batch_and_the_rest": """g (float[N,3,4] x) => (float[N,12] y)
        { s = Shape<end=1>(x)  m = Constant<value_ints=[-1]>()  d = Concat<axis=0>(s, m)  y = Reshape(x, d) }""",
    "part_of_an_open_shape": """g (float[N,3,4] x, float[K] u) => (float[P] y)
        { s = Shape<start=1, end=2>(x)  z = Constant<value_ints=[0]>()  y = Slice(u, z, s) }""",
    "constant_of_shape": """g (float[2,3] x) => (float[2,3] y)
        { s = Shape(x)  o = ConstantOfShape<value = float[1] {2.0}>(s)  y = Mul(x, o) }""",
    "constant_output": """g (float[2] x, float[2] c_k) => (float[2] y, float[2] z)
        { y = Relu(x)  z = Neg(c_k) }""",
}


@pytest.mark.parametrize("name", FOLDED)
def test_folded(name: str, golden: Golden) -> None:
    golden.check(name, shown(folded(FOLDED[name])))


DECODERS = {
    "dequantized": "q = Cast<to=3>(c_w)  w = DequantizeLinear(q, cp_s)  y = MatMul(x, w)",
    "moved": """q = Cast<to=3>(c_w)  w = DequantizeLinear(q, cp_s)  f = Flatten(w)  t = Transpose<perm=[1,0]>(w)
        m = MatMul(t, f)  y = MatMul(x, m)""",
    "half_precision": "q = Cast<to=10>(c_w)  w = Cast<to=1>(q)  y = MatMul(x, w)",
    "bfloat16": "q = Cast<to=16>(c_w)  w = Cast<to=1>(q)  y = MatMul(x, w)",
}


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_survive(name: str) -> None:
    source = f"g (float[3,4] x, float[4,4] c_w, float cp_s) => (float[3,4] y) {{ {DECODERS[name]} }}"
    graph = folded(source)
    expected = {"dequantized": ["DequantizeLinear"], "half_precision": ["Cast"], "bfloat16": ["Cast"]}
    kept = expected.get(name, ["DequantizeLinear", "Transpose", "MatMul"])
    assert operators(graph) == [*kept, "MatMul"]
    assert all(array.dtype != np.float32 or array.ndim == 0 for array in graph.constants.values())


def test_lookup_survives() -> None:
    source = """<ir_version: 10, opset_import: ["": 26, "graphc": 1]>
        g (float[2,4] x) => (float[2,2] y) <float[2] book = {0.5, -1.0}, uint8[1] codes = {90}>
        { w = graphc.Lookup<bits: int = 1, shape: ints = [4, 2]>(book, codes)  y = MatMul(x, w) }"""
    before = load(parser.parse_model(source))
    after = fold(before)
    assert operators(after) == ["Lookup", "MatMul"]
    assert difference(before, after, feeds(before)) == 0


def test_random_numbers_stay_random() -> None:
    source = """g (float[2,3] x) => (float[2,3] y)
        { s = Constant<value_ints=[2,3]>()  o = ConstantOfShape(s)  r = RandomNormalLike(o)  y = Add(x, r) }"""
    assert operators(fold(load(model(source)))) == ["RandomNormalLike", "Add"]


@pytest.mark.parametrize("maker", ["ConstantOfShape(s)", "Expand(k, s)", "Tile(k1, t)"])
def test_bombs_are_refused(maker: str) -> None:
    source = f"""g (float[1,64,1024] x) => (float[2,64,1024] y) <float k = {{1.0}}, float[1,1,1] k1 = {{1.0}},
        int64[3] s = {{1, 64, 1024}}, int64[3] t = {{1, 64, 1024}}> {{ b = {maker}  y = Concat<axis=0>(x, b) }}"""
    context = Context()
    graph = Fold().apply(load(model(source)), context)
    assert len(graph.nodes) == 2
    assert sum(array.nbytes for array in graph.constants.values()) < SMALL
    assert "much larger" in context.skips[0].reason


def test_a_tied_weight_is_not_stored_twice() -> None:
    """The embedding is read as it is and transposed; folding the Transpose would store it a second time."""
    table = np.random.default_rng(0).normal(size=(256, 128)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["h"]),
        helper.make_node("Transpose", ["table"], ["t"]),
        helper.make_node("MatMul", ["h", "t"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tied",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5, 256])],
        [numpy_helper.from_array(table, "table")],
    )
    after = folded(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    assert sum(array.nbytes for array in after.constants.values()) == table.nbytes


def test_equal_large_constants_are_stored_once() -> None:
    source = """g (float[2,40] x, float[40,40] c_u, float[40,40] c_v) => (float[2,40] y)
        { a = MatMul(x, c_u)  b = MatMul(a, c_v)  y = Relu(b) }"""
    proto = model(source)
    proto.graph.initializer[1].raw_data = proto.graph.initializer[0].raw_data
    assert len(folded(proto).constants) == 1


def test_common_subexpressions_and_dead_code(golden: Golden) -> None:
    source = """g (float[2,3] x, float[3] c_a) => (float[2,3] y, float[2,3] z)
        { a = Relu(x)  b = Relu(x)  d = Exp(b)  e = Exp(a)  unused = Tanh(d)  y = Mul(d, e)  s = Sigmoid(x)
          t = Sigmoid(x)  y2 = Add(s, c_a)  z = Add(t, c_a) }"""
    golden.check("common_subexpressions", shown(folded(source)))


def test_two_equal_outputs_keep_their_names() -> None:
    graph = folded(
        "g (float[2] x) => (float[2] y, float[2] z, float[2] x2) { y = Relu(x) z = Relu(x) x2 = Identity(x) }"
    )
    assert graph.outputs == ("y", "z", "x2")
    assert operators(graph) == ["Relu", "Identity", "Identity"]
