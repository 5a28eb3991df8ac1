"""Operators that exporters took apart are put together again, however the products and sums were written."""

import pytest

from graphc.importer import load
from graphc.passes.fold import fold
from tests.golden import Golden
from tests.passes.folding import difference, feeds, folded, model, operators, shown

NUMBERS = """<float half = {0.5}, float[1] one = {1.0}, float root = {0.70710678}, float sqrt2 = {1.41421356},
    float slope = {0.79788456}, float cubic = {0.044715}, float three = {3.0}, float six = {6.0}, float zero = {0.0},
    float sixth = {0.16666667}, float[1] eps = {1e-5}, int64[1] last = {-1}, int64[1] first = {0}, float two = {2.0},
    float low = {0.25}>"""

GELU = {
    "erf": "a = Div(x, sqrt2)  e = Erf(a)  s = Add(e, one)  m = Mul(x, s)  y = Mul(m, half)",
    "erf_of_a_product": "a = Mul(root, x)  e = Erf(a)  s = Add(one, e)  h = Mul(half, x)  y = Mul(s, h)",
    "tanh": """p = Pow(x, three)  k = Mul(p, cubic)  a = Add(x, k)  t = Mul(a, slope)  e = Tanh(t)  s = Add(e, one)
        h = Mul(x, half)  y = Mul(h, s)""",
    "tanh_of_products": """p = Mul(x, x)  q = Mul(p, x)  k = Mul(cubic, q)  a = Add(k, x)  t = Mul(slope, a)
        e = Tanh(t)  s = Add(one, e)  h = Mul(s, half)  y = Mul(x, h)""",
    "tanh_of_a_square": """p = Pow(x, two)  k = Mul(p, cubic)  a = Add(k, one)  t = Mul(x, slope)  u = Mul(t, a)
        e = Tanh(u)  s = Add(one, e)  h = Mul(s, x)  y = Mul(h, half)""",
}


@pytest.mark.parametrize("name", GELU)
def test_gelu(name: str) -> None:
    graph = folded(f"g (float[2,3] x) => (float[2,3] y) {NUMBERS} {{ {GELU[name]} }}")
    assert operators(graph) == ["Gelu"]
    assert graph.nodes[0].get_str("approximate", "none") == name[:4].replace("erf_", "none").replace("erf", "none")


NORMS = {
    "layer_norm": """m = ReduceMean(x, last)  d = Sub(x, m)  q = Pow(d, two)  v = ReduceMean(q, last)  e = Add(v, eps)
        s = Sqrt(e)  n = Div(d, s)  k = Mul(n, c_g)  y = Add(k, c_b)""",
    "layer_norm_by_reciprocal": """m = ReduceMean(x, last)  d = Sub(x, m)  q = Mul(d, d)  v = ReduceMean(q, last)
        e = Add(v, eps)  s = Sqrt(e)  r = Reciprocal(s)  y = Mul(d, r)""",
    "layer_norm_of_tensorflow": """m = ReduceMean(x, last)  d = Sub(x, m)  q = Mul(d, d)  v = ReduceMean(q, last)
        e = Add(v, eps)  s = Sqrt(e)  r = Reciprocal(s)  k = Mul(r, c_g)  a = Mul(x, k)  b = Mul(m, k)
        f = Sub(c_b, b)  y = Add(a, f)""",
    "rms_norm": """q = Pow(x, two)  v = ReduceMean(q, last)  e = Add(v, eps)  s = Sqrt(e)  n = Div(x, s)
        y = Mul(c_g, n)""",
    "softmax": """w = ReduceMax(x, last)  d = Sub(x, w)  e = Exp(d)  s = ReduceSum(e, last)  y = Div(e, s)""",
    "softmax_without_kept_axes": """w = ReduceMax<keepdims=0>(x, last)  u = Unsqueeze(w, last)  d = Sub(x, u)
        e = Exp(d)  s = ReduceSum<keepdims=0>(e, last)  t = Unsqueeze(s, last)  y = Div(e, t)""",
    "hard_swish": "a = Add(x, three)  r = Clip(a, zero, six)  m = Mul(x, r)  y = Div(m, six)",
    "mish": "a = Softplus(x)  r = Tanh(a)  y = Mul(x, r)",
}


@pytest.mark.parametrize("name", NORMS)
def test_recognised(name: str, golden: Golden) -> None:
    graph = folded(f"g (float[2,3,4] x, float[4] c_g, float[4] c_b) => (float[2,3,4] y) {NUMBERS} {{ {NORMS[name]} }}")
    assert len(graph.nodes) == 1
    golden.check(name, shown(graph))


ALMOST = {
    "another_axis": """m = ReduceMean(x, first)  d = Sub(x, m)  q = Mul(d, d)  v = ReduceMean(q, first)  e = Add(v, eps)
        s = Sqrt(e)  y = Div(d, s)""",
    "another_number": "a = Mul(low, x)  e = Erf(a)  s = Add(one, e)  h = Mul(half, x)  y = Mul(s, h)",
    "another_value": "z = Sin(x)  a = Mul(root, z)  e = Erf(a)  s = Add(one, e)  h = Mul(half, x)  y = Mul(s, h)",
    "two_centres": """m = ReduceMean(x, last)  d = Sub(x, m)  w = Sin(x)  q = Mul(d, w)  v = ReduceMean(q, last)
        f = Abs(v)  e = Add(f, eps)  s = Sqrt(e)  y = Div(d, s)""",
}


@pytest.mark.parametrize("name", ALMOST)
def test_what_is_almost_a_pattern_is_none(name: str) -> None:
    before = load(model(f"g (float[2,3,4] x) => (float[2,3,4] y) {NUMBERS} {{ {ALMOST[name]} }}"))
    after = fold(before)
    assert not {"Gelu", "LayerNormalization"} & set(operators(after))
    assert difference(before, after, feeds(before)) <= 1e-5
