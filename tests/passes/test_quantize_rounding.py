"""Rounding of weights: each method does what its paper claims, on seeded layers whose inputs are correlated."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphc.execute import run
from graphc.passes.layers import output_error
from graphc.passes.quantize_rounding import Doubles, Method, Rounding, WeightRange
from graphc.passes.quantize_schemes import FORMATS, Scheme, dequantize
from tests.passes.quantized import conv_relu, feeds_of, model, normal, quantized

SYMMETRIC = Scheme(FORMATS["int4"], group=32)
ASYMMETRIC = Scheme(FORMATS["uint4"], symmetric=False, group=32)


def layer(groups: int = 1, seed: int = 0) -> tuple[Doubles, Doubles]:
    """Weights [groups * 16, 64] and the Gram matrices of rows whose elements go together."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(groups, 64, 64)) / 8 + 1
    rows = rng.normal(size=(groups, 500, 64)) @ mixing
    return rng.normal(size=(groups * 16, 64)), rows.transpose(0, 2, 1) @ rows


def error(method: Method, weights: Doubles, gram: Doubles, scheme: Scheme = SYMMETRIC) -> float:
    integers, parameters = method.apply(weights, scheme, 0.0, gram)
    change = dequantize(integers, parameters).astype(np.float64) - weights
    return output_error(change.reshape(len(gram), -1, weights.shape[1]), gram)


@pytest.mark.parametrize("scheme", [SYMMETRIC, ASYMMETRIC], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("rounding", ["gptq", "adaround"])
@pytest.mark.parametrize("groups", [1, 3])
def test_rounding_for_the_output_halves_its_error_at_least(rounding: Rounding, groups: int, scheme: Scheme) -> None:
    weights, gram = layer(groups)
    assert error(Method(rounding=rounding), weights, gram, scheme) < error(Method(), weights, gram, scheme) / 2


def test_adaround_rounds_down_or_up_and_no_further() -> None:
    weights, gram = layer()
    integers, parameters = Method(rounding="adaround").apply(weights, SYMMETRIC, 0.0, gram)
    scale, zero_point = parameters.spread(weights.shape)
    assert (np.abs(integers.astype(int) - zero_point - weights / scale) < 1).all()


def test_gptq_leaves_weights_of_silent_inputs_at_the_nearest_point() -> None:
    weights, gram = layer()
    gram[:, 10, :] = gram[:, :, 10] = 0
    found, _ = Method(rounding="gptq").apply(weights, SYMMETRIC, 0.0, gram)
    nearest, _ = Method().apply(weights, SYMMETRIC)
    np.testing.assert_array_equal(found[:, 10], nearest[:, 10])


@pytest.mark.parametrize("rounding", ["gptq", "adaround"])
def test_a_layer_without_inputs_or_weights_is_rounded_to_nearest(rounding: Rounding) -> None:
    weights, gram = layer()
    for w, g in ((weights, gram * 0), (weights * 0, gram)):
        np.testing.assert_array_equal(
            Method(rounding=rounding).apply(w, SYMMETRIC, 0.0, g)[0], Method().apply(w, SYMMETRIC)[0]
        )


def squares(weights: Doubles, weight_range: WeightRange, scheme: Scheme, power: float) -> float:
    integers, parameters = Method(weight_range).apply(weights, scheme)
    return float((np.abs(dequantize(integers, parameters) - weights) ** power).sum())


@pytest.mark.parametrize("scheme", [SYMMETRIC, ASYMMETRIC, Scheme(FORMATS["int4"]), Scheme(FORMATS["int4"], False)],
                         ids=["symmetric", "asymmetric", "channels", "one"])  # fmt: skip
def test_ranges_are_better_by_their_own_measure(scheme: Scheme) -> None:
    weights = np.random.default_rng(0).standard_t(3, (16, 64))  # heavy tails: outliers
    assert squares(weights, "mse", scheme, 2) < squares(weights, "minmax", scheme, 2)
    assert squares(weights, "hqq", scheme, 0.7) < squares(weights, "minmax", scheme, 0.7)


@pytest.mark.parametrize("scheme", [SYMMETRIC, ASYMMETRIC, Scheme(FORMATS["int4"]), Scheme(FORMATS["int4"], False)],
                         ids=["symmetric", "asymmetric", "channels", "one"])  # fmt: skip
def test_ranges_for_the_output_are_better_there(scheme: Scheme) -> None:
    weights, gram = layer(groups=2)
    weights = weights + np.random.default_rng(1).standard_t(3, weights.shape)
    # Loud and quiet inputs; independent of each other, as scales are chosen one by one.
    diagonal = gram * np.diag(np.logspace(0, 4, gram.shape[1]))
    mine, theirs = (error(Method(each), weights, diagonal, scheme) for each in ("output", "mse"))
    assert mine < theirs if scheme.per_channel else mine <= theirs  # a single scale may be the same


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10_000), st.sampled_from(["minmax", "mse", "output", "hqq"]), st.sampled_from(["nearest", "gptq"])
)
def test_more_bits_are_never_worse(seed: int, weight_range: WeightRange, rounding: Rounding) -> None:
    weights, gram = layer(seed=seed)
    method = Method(weight_range, rounding)
    errors = [error(method, weights, gram, Scheme(FORMATS[name])) for name in ("int2", "int4", "int8")]
    assert errors[0] > errors[1] > errors[2]


def means(y: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    return y.astype(np.float64).mean(axis=(0, 2, 3))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("activations", ["none", "uint8"])
def test_bias_correction_takes_back_the_mean_error_of_each_channel(activations: str, biased: bool) -> None:
    signature = "(float[1,3,8,8] x) => (float[1,4,6,6] y)"
    weights = {"w": normal(4, 3, 3, 3)} | ({"b": normal(4)} if biased else {})
    graph = model(signature, f"y = Conv (x, w{', b' if biased else ''})", **weights)
    options = {"weights": "int4", "activations": activations, "calibrate": "minmax" if activations != "none" else None}
    drifts = []
    for corrected in (False, True):
        after, _ = quantized(graph, **options, bias_correction=corrected)
        apart = [means(run(after, f)["y"] - run(graph, f)["y"]) for f in feeds_of(graph)]
        drifts.append(np.abs(np.mean(apart, axis=0)).max())
    assert drifts[1] < drifts[0] / 2  # what rounding activations adds stays


def test_gptq_serves_a_whole_graph_and_says_where_it_cannot() -> None:
    graph = model(
        "(float[1,4,4,4] x) => (float[1,3,8,8] y)",
        "a = Conv <pads = [1,1,1,1]> (x, w)\ny = ConvTranspose <kernel_shape = [2,2], strides = [2,2]> (a, v)",
        w=normal(4, 4, 3, 3), v=normal(4, 3, 2, 2),
    )  # fmt: skip
    _, context = quantized(graph, weights="int4", rounding="gptq")
    assert [skip.reason for skip in context.skips] == [
        "its weights are rounded to nearest: gptq does not know ConvTranspose so"
    ]


def test_rules_choose_methods_for_single_nodes() -> None:
    graph = conv_relu()
    rule = {"operator": "Conv", "rounding": "gptq", "weight_range": "mse"}
    ruled, _ = quantized(graph, weights="int4", where=[rule])
    stated, _ = quantized(graph, weights="int4", rounding="gptq", weight_range="mse")
    np.testing.assert_array_equal(ruled.constants["w_quantized"], stated.constants["w_quantized"])
