"""Reshapes and transposes: one spelling, pushed down, merged and cancelled; other no-ops dropped."""

import pytest

from tests.golden import Golden
from tests.passes.folding import folded, operators, shown

REWRITTEN = {
    "reshape_chain": """g (float[2,3,4] x) => (float[4,6] y)
        { f = Flatten(x)  a = Constant<value_ints=[1]>()  u = Unsqueeze(f, a)  q = Squeeze(u, a)
          s = Constant<value_ints=[4,-1]>()  y = Reshape(q, s) }""",
    "reshape_below_elementwise": """g (float[2,12] x, float[4] c_b) => (float[6,4] y)
        { s = Constant<value_ints=[6,4]>()  r = Reshape(x, s)  a = Relu(r)  two = Constant<value_float=2.0>()
          m = Mul(a, two)  y = Sqrt(m) }""",
    "reshape_past_matmul": """g (float[1,5,4] x, float[4,3] c_w, float[3] c_b) => (float[1,5,3] y)
        { s = Constant<value_ints=[5,4]>()  r = Reshape(x, s)  m = MatMul(r, c_w)  b = Add(m, c_b)
          t = Constant<value_ints=[1,5,3]>()  u = Reshape(b, t)  y = Softmax<axis=2>(u) }""",
    "reshapes_of_two_operands": """g (float[2,6] x, float[2,6] u) => (float[3,4] y)
        { s = Constant<value_ints=[3,4]>()  a = Reshape(x, s)  b = Reshape(u, s)  y = Add(a, b) }""",
    "transposes_cancel": """g (float[1,3,4,5] x, float[3] c_b) => (float[1,3,4,5] y)
        { a = Transpose<perm=[0,2,3,1]>(x)  b = Relu(a)  d = Add(b, c_b)  y = Transpose<perm=[0,3,1,2]>(d) }""",
    "transpose_past_reductions": """g (float[2,3,4,5] x) => (float[2,3] y)
        { t = Transpose<perm=[0,2,3,1]>(x)  axes = Constant<value_ints=[1,2]>()
          y = ReduceMean<keepdims=0>(t, axes) }""",
    "transpose_past_concat_pad_slice": """g (float[1,3,4] x, float[1,2,4] u) => (float[1,5,5] y)
        { a = Transpose<perm=[0,2,1]>(x)  b = Transpose<perm=[0,2,1]>(u)  c = Concat<axis=-1>(a, b)
          p = Constant<value_ints=[0,1,0,0,1,1]>()  d = Pad(c, p)  i = Constant<value_ints=[1,1]>()
          j = Constant<value_ints=[6,6]>()  k = Constant<value_ints=[1,2]>()  e = Slice(d, i, j, k)
          y = Transpose<perm=[0,2,1]>(e) }""",
    "transpose_past_softmax_and_argmax": """g (float[2,3,4] x) => (int64[2,4] y)
        { t = Transpose<perm=[0,2,1]>(x)  s = Softmax<axis=-1>(t)  y = ArgMax<axis=2, keepdims=0>(s) }""",
    "transpose_across_an_addition": """g (float[2,3,4] x, float[2,4,3] u) => (float[2,3,4] y)
        { t = Transpose<perm=[0,2,1]>(x)  a = Add(t, u)  y = Transpose<perm=[0,2,1]>(a) }""",
    "transpose_of_ones_is_a_reshape": """g (float[1,3,4,1] x) => (float[1,1,3,4] y)
        { t = Transpose<perm=[0,3,1,2]>(x)  y = Neg(t) }""",
    "transpose_between_reshapes": """g (float[5,4] x, float[5,3] u) => (float[4,3] y)
        { s = Constant<value_ints=[1,1,5,4]>()  r = Reshape(x, s)  t = Transpose<perm=[0,1,3,2]>(r)
          q = Constant<value_ints=[4,5]>()  w = Reshape(t, q)  y = MatMul(w, u) }""",
    "transpose_into_gemm": """g (float[3,2] x, float[3,4] c_w, float[4] c_b) => (float[2,4] y)
        { t = Transpose(x)  y = Gemm(t, c_w, c_b) }""",
    "concat_of_concat": """g (float[1,2] x, float[1,3] u, float[1,4] v) => (float[1,9] y)
        { a = Concat<axis=1>(x, u)  y = Concat<axis=-1>(a, v) }""",
    "expand_before_broadcasting": """g (float[1,4] x, float[3,4] u) => (float[3,4] y)
        { s = Constant<value_ints=[3,4]>()  e = Expand(x, s)  y = Add(u, e) }""",
    "expand_that_is_needed": """g (float[1,4] x, float[4] u) => (float[3,4] y)
        { s = Constant<value_ints=[3,4]>()  e = Expand(x, s)  y = Add(u, e) }""",
    "casts": """g (int32[3] x) => (int32[3] y, float[3] z)
        { a = Cast<to=7>(x)  b = Cast<to=6>(a)  y = Abs(b)  d = Cast<to=11>(x)  z = Cast<to=1>(d) }""",
    "squares_and_clips": """g (float[3] x) => (float[3] y)
        { two = Constant<value_float=2.0>()  z = Constant<value_float=0.0>()  six = Constant<value_float=6.0>()
          a = Pow(x, two)  b = Clip(a, z)  d = Relu(x)  e = Clip(d, , six)  y = Sub(b, e) }""",
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_rewritten(name: str, golden: Golden) -> None:
    golden.check(name, shown(folded(REWRITTEN[name])))


NOTHING = {
    "identity": "a = Identity(x)",
    "dropout": "a, m = Dropout(x)",
    "cast": "a = Cast<to=1>(x)",
    "add": "a = Add(zero, x)",
    "subtract": "a = Sub(x, zeros)",
    "multiply": "a = Mul(x, one)",
    "divide": "a = Div(x, one)",
    "power": "a = Pow(x, one)",
    "maximum": "a = Max(x, low)",
    "sum": "a = Sum(x)",
    "mean": "a = Mean(x)",
    "concat": "a = Concat<axis=1>(x)",
    "split": "a = Split<axis=1, num_outputs=1>(x)",
    "slice": "a = Slice(x, starts, ends)",
    "pad": "a = Pad(x, pads)",
    "tile": "a = Tile(x, ones)",
    "expand": "a = Expand(x, ones)",
    "reshape": "a = Reshape(x, same)",
    "transpose": "a = Transpose<perm=[0,1,2]>(x)",
    "resize": 'a = Resize<mode="linear">(x, , scales)',
    "resize_to_size": 'a = Resize<mode="nearest">(x, , , same)',
    "pool": "a = MaxPool<kernel_shape=[1]>(x)",
    "clip": "a = Clip(x)",
    "twice_negated": "n = Neg(x)  a = Neg(n)",
    "where": "a = Where(yes, x, zeros)",
    "reduction": "u = Unsqueeze(x, third)  a = ReduceSum<keepdims=0>(u, third)",
    "empty_concat": "a = Concat<axis=1>(x, nothing)",
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_does_nothing_is_dropped(name: str) -> None:
    constants = """<float zero = {0.0}, float[1,4] zeros = {0,0,0,0}, float[1] one = {1.0}, float low = {-inf},
        int64[3] starts = {0,0,0}, int64[3] ends = {9,9,9}, int64[6] pads = {0,0,0,0,0,0}, int64[3] ones = {1,1,1},
        int64[3] same = {2,3,4}, float[3] scales = {1.0,1.0,1.0}, bool[1,1,1] yes = {1}, int64[1] third = {3},
        float[2,0,4] nothing = {}>"""
    source = f"g (float[2,3,4] x) => (float[2,3,4] y) {constants} {{ {NOTHING[name]}  y = Tanh(a) }}"
    assert operators(folded(source.replace("float low = {-inf},", "") if name != "maximum" else source)) == ["Tanh"]


SOMETHING = {
    "zero_times_x": "zero = Constant<value_float=0.0>()  y = Mul(x, zero)",
    "resize_that_rounds_down": 's = Constant<value_floats=[1.0,1.2]>()  y = Resize<mode="linear">(x, , s)',
    "narrowing_cast": "a = Cast<to=10>(x)  y = Cast<to=1>(a)",
    "absolute_reduction": "a = Constant<value_ints=[0]>()  u = Unsqueeze(x, a)  y = ReduceL1<keepdims=0>(u, a)",
}


@pytest.mark.parametrize("name", SOMETHING)
def test_what_does_something_stays(name: str) -> None:
    shape = "[2,3]" if "resize" in name else "[2,4]"
    assert operators(folded(f"g (float{shape} x) => (float{shape} y) {{ {SOMETHING[name]} }}")) != ["Identity"]


VIEWS = {
    "gather_one": """g (float[4,6] x) => (float[6] y) { i = Constant<value_int=2>()  y = Gather<axis=0>(x, i) }""",
    "gather_every_second": """g (float[4,6] x) => (float[4,3] y)
        { i = Constant<value_ints=[1,3,5]>()  y = Gather<axis=1>(x, i) }""",
    "slice_of_slice": """g (float[4,9] x) => (float[2,3] y)
        { a = Constant<value_ints=[1,1]>()  b = Constant<value_ints=[4,8]>()  s = Slice(x, a, b)
          e = Constant<value_ints=[2,7]>()  z = Constant<value_ints=[0,1]>()  w = Constant<value_ints=[1,2]>()
          y = Slice(s, z, e, z, w) }""",
    "channel_shuffle": """g (float[1,6,2,2] x) => (float[1,3,2,2] y, float[1,3,2,2] z)
        { s = Constant<value_ints=[3,2,4]>()  a = Reshape(x, s)  t = Transpose<perm=[1,0,2]>(a)
          w = Constant<value_ints=[2,1,3,2,2]>()  b = Reshape(t, w)  i = Constant<value_int=0>()
          j = Constant<value_int=1>()  y = Gather(b, i)  z = Gather(b, j) }""",
    "slice_across_merged_axes": """g (float[2,3,4] x) => (float[3,4] y)
        { s = Constant<value_ints=[6,4]>()  a = Reshape(x, s)  i = Constant<value_ints=[3]>()
          j = Constant<value_ints=[6]>()  y = Slice(a, i, j) }""",
    "a_transpose_that_is_needed": """g (float[2,3,4] x) => (float[4,3] y)
        { t = Transpose<perm=[2,0,1]>(x)  i = Constant<value_int=1>()  y = Gather<axis=1>(t, i) }""",
    "write_a_block": """g (float[2,5,3] x, float[2,2,3] u) => (float[2,5,3] y)
        <int64[2,2,2] i = {0,1, 0,2, 1,1, 1,2}> { y = ScatterND(x, i, u) }""",
    "write_everything": """g (float[2,3] x, float[2,3] u) => (float[2,3] y)
        <int64[2,1] i = {0, 1}> { y = ScatterND(x, i, u) }""",
    "write_in_another_order": """g (float[2,3] x, float[2,3] u) => (float[2,3] y)
        <int64[2,1] i = {1, 0}> { y = ScatterND(x, i, u) }""",
    "slice_of_one_part": """g (float[2,3] x, float[2,4] u) => (float[2,2] y)
        { c = Concat<axis=1>(x, u)  i = Constant<value_ints=[4]>()  j = Constant<value_ints=[6]>()
          k = Constant<value_ints=[1]>()  y = Slice(c, i, j, k) }""",
    "slice_of_whole_parts": """g (float[2,3] x, float[2,4] u, float[2,1] v) => (float[2,5] y)
        { c = Concat<axis=1>(x, u, v)  i = Constant<value_ints=[3]>()  j = Constant<value_ints=[99]>()
          k = Constant<value_ints=[1]>()  y = Slice(c, i, j, k) }""",
}


@pytest.mark.parametrize("name", VIEWS)
def test_views(name: str, golden: Golden) -> None:
    golden.check(name, shown(folded(VIEWS[name])))
