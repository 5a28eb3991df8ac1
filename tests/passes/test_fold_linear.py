"""Affine layers, padding and batch norm merge into linear layers where that is exact, and nowhere else."""

import numpy as np
import pytest

from graphc.importer import load
from graphc.passes.fold import Fold, fold
from graphc.passes.protocol import Context
from tests.golden import Golden
from tests.passes.folding import folded, model, operators, shown

BN = "float[4] cp_g, float[4] c_b, float[4] c_m, float[4] cp_v"

MERGED = {
    "batch_norm_after_conv": f"""g (float[1,3,8,8] x, float[4,3,3,3] c_w, {BN}) => (float[1,4,6,6] y)
        {{ z = Conv(x, c_w)  y = BatchNormalization(z, cp_g, c_b, c_m, cp_v) }}""",
    "batch_norm_after_grouped_conv": f"""
        g (float[1,4,8,8] x, float[4,2,3,3] c_w, float[4] c_o, {BN}) => (float[1,4,8,8] y)
        {{ z = Conv<group=2, pads=[1,1,1,1]>(x, c_w, c_o)
           y = BatchNormalization<epsilon=0.01>(z, cp_g, c_b, c_m, cp_v) }}""",
    "batch_norm_after_conv_transpose": f"""g (float[1,6,5,5] x, float[6,2,3,3] c_w, {BN}) => (float[1,4,11,11] y)
        {{ z = ConvTranspose<group=2, strides=[2,2]>(x, c_w)  y = BatchNormalization(z, cp_g, c_b, c_m, cp_v) }}""",
    "batch_norm_after_gemm": f"""g (float[2,5] x, float[4,5] c_w, float[4] c_o, {BN}) => (float[2,4] y)
        {{ z = Gemm<alpha=0.5, beta=2.0, transB=1>(x, c_w, c_o)  y = BatchNormalization(z, cp_g, c_b, c_m, cp_v) }}""",
    "batch_norm_before_conv": f"""g (float[1,4,8,8] x, float[6,2,3,3] c_w, {BN}) => (float[1,6,6,6] y)
        {{ z = BatchNormalization(x, cp_g, c_b, c_m, cp_v)  y = Conv<group=2>(z, c_w) }}""",
    "batch_norm_before_gemm": f"""g (float[2,4] x, float[4,5] c_w, {BN}) => (float[2,5] y)
        {{ z = BatchNormalization(x, cp_g, c_b, c_m, cp_v)  y = MatMul(z, c_w) }}""",
    "bias_and_scale_after_matmul": """
        g (float[2,5] x, float[5,3] c_w, float[3] c_a, float[1,3] c_s, float[3] c_t) => (float[2,3] y)
        { a = MatMul(x, c_w)  b = Add(c_a, a)  d = Mul(b, c_s)  y = Sub(d, c_t) }""",
    "scale_after_batched_matmul": """g (float[2,7,5] x, float[5,3] c_w, float[3] c_a, float[3] c_s) => (float[2,7,3] y)
        { a = MatMul(x, c_w)  b = Add(a, c_a)  y = Mul(b, c_s) }""",
    "channel_bias_after_conv": """g (float[1,3,8] x, float[4,3,3] c_w, float[4,1] c_a) => (float[1,4,6] y)
        { a = Conv(x, c_w)  y = Add(a, c_a) }""",
    "preprocessing_before_conv": """
        g (float[1,8,8,3] x, float[3] c_mean, float[3] cp_std, float[4,3,3,3] c_w) => (float[1,4,6,6] y)
        { a = Sub(x, c_mean)  b = Div(a, cp_std)  t = Transpose<perm=[0,3,1,2]>(b)  y = Conv(t, c_w) }""",
    "input_scale_past_its_shift": """
        g (float[1,8,8,3] x, float[3] cp_s, float[3] c_mean, float[3] cp_std, float[4,3,3,3] c_w) => (float[1,4,8,8] y)
        { a = Mul(x, cp_s)  b = Sub(a, c_mean)  d = Div(b, cp_std)  t = Transpose<perm=[0,3,1,2]>(d)
          y = Conv<pads=[1,1,1,1]>(t, c_w) }""",
    "single_numbers_past_a_reshape": """
        g (float[1,8,8,1] x, float cp_scale, float c_mean, float[4,1,3,3] c_w) => (float[1,4,8,8] y)
        { a = Mul(x, cp_scale)  b = Sub(a, c_mean)  s = Constant<value_ints=[1,1,8,8]>()  t = Reshape(b, s)
          y = Conv<pads=[1,1,1,1]>(t, c_w) }""",
    "pad_into_conv": """g (float[1,3,8,8] x, float[4,3,3,3] c_w) => (float[1,4,5,5] y)
        { p = Constant<value_ints=[0,0,0,1,0,0,1,2]>()  z = Pad(x, p)
          y = Conv<strides=[2,2], pads=[1,0,0,0]>(z, c_w) }""",
    "pad_into_average_pool": """g (float[1,3,8,8] x) => (float[1,3,9,8] y)
        { p = Constant<value_ints=[0,0,1,1,0,0,2,1]>()  z = Pad(x, p)  y = AveragePool<kernel_shape=[3,3]>(z) }""",
    "pad_into_max_pool_of_relu": """g (float[1,3,8,8] x) => (float[1,3,9,9] y)
        { p = Constant<value_ints=[0,0,1,1,0,0,1,1]>()  r = Relu(x)  z = Pad(r, p)
          y = MaxPool<kernel_shape=[2,2]>(z) }""",
    "same_padding_becomes_numbers": """g (float[1,3,7,8] x, float[4,3,3,2] c_w) => (float[1,4,4,4] y)
        { y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, c_w) }""",
    "chain_of_scales_and_shifts": """g (float[2,3] x, float[3] c_a, float[3] cp_s, float[3] cp_t) => (float[2,3] y)
        { a = Mul(x, cp_s)  b = Add(a, c_a)  d = Div(b, cp_t)  y = Neg(d) }""",
    "lonely_batch_norm": f"""g (float[1,4,3] x, {BN}) => (float[1,4,3] y)
        {{ r = Relu(x)  y = BatchNormalization(r, cp_g, c_b, c_m, cp_v) }}""",
}


@pytest.mark.parametrize("name", MERGED)
def test_merged(name: str, golden: Golden) -> None:
    golden.check(name, shown(folded(MERGED[name])))


KEPT = {
    "shift_before_padded_conv": """g (float[1,3,8,8] x, float[3,1,1] c_a, float[4,3,3,3] c_w) => (float[1,4,8,8] y)
        { z = Add(x, c_a)  y = Conv<pads=[1,1,1,1]>(z, c_w) }""",
    "scale_and_shift_inside_a_model": """
        g (float[1,3,8,8] x, float[3,1,1] cp_s, float[3,1,1] c_a, float[4,3,3,3] c_w) => (float[1,4,8,8] y)
        { r = Relu(x)  m = Mul(r, cp_s)  z = Add(m, c_a)  y = Conv<pads=[1,1,1,1]>(z, c_w) }""",
    "numbers_per_channel_before_a_reshape": """
        g (float[1,4,4,2] x, float[2] cp_s, float[4,1,3,3] c_w) => (float[1,4,6,3] y)
        { a = Mul(x, cp_s)  s = Constant<value_ints=[1,1,8,4]>()  t = Reshape(a, s)
          y = Conv<pads=[0,0,0,1]>(t, c_w) }""",
    "scale_along_another_axis": """g (float[2,5] x, float[5,3] c_w, float[2,1] c_s) => (float[2,3] y)
        { z = MatMul(x, c_w)  y = Mul(z, c_s) }""",
    "conv_with_two_readers": """g (float[1,3,8] x, float[4,3,3] c_w, float[4,1] c_s) => (float[1,4,6] y, float[1,4,6] z)
        { z = Conv(x, c_w)  y = Mul(z, c_s) }""",
    "reflected_padding": """g (float[1,3,8] x, float[4,3,3] c_w) => (float[1,4,8] y)
        { p = Constant<value_ints=[0,0,1,0,0,1]>()  z = Pad<mode="reflect">(x, p)  y = Conv(z, c_w) }""",
    "zeros_into_max_pool": """g (float[1,3,8] x) => (float[1,3,9] y)
        { p = Constant<value_ints=[0,0,1,0,0,1]>()  z = Pad(x, p)  y = MaxPool<kernel_shape=[2]>(z) }""",
    "magic_rounding": """g (float[3] x) => (float[3] y)
        { m = Constant<value_float=8388608.0>()  a = Add(x, m)  y = Sub(a, m) }""",
    "constant_on_the_wide_side": """g (float[1,3] x, float[2,3] c_a) => (float[2,3] y) { y = Add(x, c_a) }""",
}


@pytest.mark.parametrize("name", KEPT)
def test_kept(name: str) -> None:
    before = load(model(KEPT[name]))
    assert len(folded(KEPT[name]).nodes) == len(before.nodes)


def test_shared_weights_are_refused_with_a_reason() -> None:
    source = """g (float[1,3,8] x, float[1,3,8] u, float[4,3,3] c_w, float[4,1] c_s) => (float[1,4,6] y, float[1,4,6] z)
        { z = Conv(u, c_w)  a = Conv(x, c_w)  y = Mul(a, c_s) }"""
    context = Context()
    graph = Fold().apply(load(model(source)), context)
    assert operators(graph) == ["Conv", "Conv", "Mul"]
    assert [(skip.operator, skip.reason.split(" '")[0]) for skip in context.skips] == [("Mul", "the weights of Conv")]
    assert "are shared with Conv" in context.skips[0].reason


def test_batch_norm_is_computed_in_float64() -> None:
    """Mean and scale so large that float32 would lose what is left of the bias."""
    source = """g (float[1,1] x, float[1,1] c_w, float[1] c_o) => (float[1,1] y)
        <float[1] g = {3.0}, float[1] b = {0.1}, float[1] m = {16777216.0}, float[1] v = {1.0}>
        { z = Gemm(x, c_w, c_o)  y = BatchNormalization<epsilon=0.0>(z, g, b, m, v) }"""
    graph = fold(load(model(source)))
    bias = next(a for n, a in graph.constants.items() if a.shape == (1,))
    offset = np.float64(load(model(source)).constants["c_o"][0])
    assert bias[0] == np.float32((offset - 16777216.0) * 3.0 + np.float64(np.float32(0.1)))


def test_overflow_is_refused() -> None:
    source = """g (float[1,1] x, float[1,1] c_w) => (float[1,1] y)
        <float s = {3e38}, float t = {1e30}>
        { a = MatMul(x, c_w)  b = Mul(a, t)  y = Mul(b, s) }"""
    graph = fold(load(model(source)))
    assert all(np.isfinite(array).all() for array in graph.constants.values())
