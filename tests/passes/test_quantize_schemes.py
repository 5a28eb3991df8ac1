"""Number formats: the mathematics between floats and integers holds for every range, format and channel."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from graphc.errors import InputError
from graphc.execute import Session
from graphc.ir.graph import Graph, Node, TensorType
from graphc.passes import quantize_schemes as schemes
from graphc.passes.quantize_rounding import Method
from graphc.passes.quantize_schemes import FORMATS, LARGEST_SCALE, SMALLEST_SCALE, Format, Parameters, Scheme

ENDS = st.floats(-1e6, 1e6, width=32)
RANGES = st.tuples(ENDS, ENDS).map(sorted)
FORMS = st.sampled_from([FORMATS["int8"], FORMATS["uint8"]])
EVERY_FORM = st.sampled_from(list(FORMATS.values()))


def ends(parameters: Parameters) -> tuple[float, float]:
    form = parameters.format
    low, high = schemes.dequantize(np.array([form.low, form.high], form.dtype), parameters)
    return float(low), float(high)


@cache
def pair(form: str) -> Session:
    """x, scale, zero point -> its integers q, and y that they stand for."""
    floats, dtype = np.dtype(np.float32), FORMATS[form].dtype
    kinds = {"x": TensorType(floats, (50,)), "s": TensorType(floats, ()), "z": TensorType(dtype, ())}
    kinds |= {"q": TensorType(dtype, (50,)), "y": TensorType(floats, (50,))}
    nodes = (Node("QuantizeLinear", ("x", "s", "z"), ("q",)), Node("DequantizeLinear", ("q", "s", "z"), ("y",)))
    return Session(Graph("g", ("x", "s", "z"), ("q", "y"), nodes, kinds, {}))


@settings(deadline=None)
@given(RANGES, FORMS, st.booleans(), st.floats(0, 1))
def test_values_inside_the_range_come_back_within_half_a_step(
    span: list[float], form: Format, symmetric: bool, share: float
) -> None:
    parameters = schemes.affine(*span, form, symmetric, "x")
    low, high = min(span[0], 0.0), max(span[1], 0.0)
    values = np.float32([low, high, low + share * (high - low)])
    back = schemes.dequantize(schemes.quantize(values, parameters), parameters)
    # Half a step, and what fp32 adds: x / scale may be rounded up to a tie, the product once more.
    bound = 0.5 * float(parameters.scale) * (1 + 1e-4) + 2e-7 * np.abs(values)
    assert (np.abs(back.astype(np.float64) - values) <= bound).all()


@settings(deadline=None)
@given(RANGES, FORMS, st.booleans())
def test_zero_is_exact_and_scales_are_ordinary_numbers(span: list[float], form: Format, symmetric: bool) -> None:
    parameters = schemes.affine(*span, form, symmetric, "x")
    assert schemes.dequantize(schemes.quantize(np.zeros(1), parameters), parameters) == [0.0]
    assert SMALLEST_SCALE <= parameters.scale <= LARGEST_SCALE
    assert form.low <= parameters.zero_point <= form.high


@settings(deadline=None)
@given(arrays(np.float32, 20, elements=ENDS), RANGES, FORMS, st.booleans())
def test_quantizing_keeps_order(
    values: np.ndarray[tuple[int], np.dtype[np.float32]], span: list[float], form: Format, symmetric: bool
) -> None:
    integers = schemes.quantize(np.sort(values), schemes.affine(*span, form, symmetric, "x"))
    assert (np.diff(integers.astype(np.int64)) >= 0).all()


SCHEMES = st.builds(
    Scheme, EVERY_FORM, per_channel=st.just(True), symmetric=st.booleans(), group=st.sampled_from([None, 2, 3, 8, 20])
)


@settings(deadline=None)
@given(arrays(np.float32, (3, 8), elements=ENDS), SCHEMES)
def test_weights_come_back_within_half_a_step(
    weights: np.ndarray[tuple[int, int], np.dtype[np.float32]], scheme: Scheme
) -> None:
    integers, parameters = Method().apply(weights, scheme)
    back = schemes.dequantize(integers, parameters).astype(np.float64)
    scale, _ = parameters.spread(weights.shape)
    # An asymmetric zero point is rounded as well, so that an end may lie half a step beyond the last integer.
    steps = 0.5 if scheme.symmetric else 1.0
    assert (np.abs(back - weights) <= steps * scale * (1 + 1e-3) + 1e-6 * np.abs(weights)).all()
    assert integers.dtype == scheme.format.dtype


@settings(deadline=None)
@given(arrays(np.float32, (3, 8), elements=ENDS), st.booleans(), st.sampled_from([None, 2, 3]))
def test_more_bits_never_make_the_step_of_weights_larger(
    weights: np.ndarray[tuple[int, int], np.dtype[np.float32]], symmetric: bool, group: int | None
) -> None:
    forms = [FORMATS[name] for name in ("int2", "int4", "int8", "int16")]
    coarse = [schemes.weight_parameters(weights, Scheme(form, symmetric=symmetric, group=group)) for form in forms]
    for one, finer in pairwise(coarse):
        # Rows of zeros take a scale that stands for nothing.
        some = np.abs(weights).max() > 0
        assert (finer.scale <= one.scale).all() or not some


@settings(deadline=None)
@given(arrays(np.float32, (4, 24), elements=st.floats(-100, 100, width=32)), st.booleans())
def test_smaller_groups_never_have_a_larger_error_bound(
    weights: np.ndarray[tuple[int, int], np.dtype[np.float32]], symmetric: bool
) -> None:
    found = []
    for group in (None, 12, 6, 3):
        scheme = Scheme(FORMATS["int4"], symmetric=symmetric, group=group)
        scale, _ = schemes.weight_parameters(weights, scheme).spread(weights.shape)
        found.append(np.where(weights == 0, 0, scale))
    for coarse, fine in pairwise(found):
        assert (fine <= coarse).all()


@settings(deadline=None)
@given(arrays(np.float32, 50, elements=ENDS), RANGES, FORMS, st.booleans())
def test_rounding_is_that_of_onnxruntime(
    values: np.ndarray[tuple[int], np.dtype[np.float32]], span: list[float], form: Format, symmetric: bool
) -> None:
    parameters = schemes.affine(*span, form, symmetric, "x")
    found = pair(form.name).run({"x": values, "s": parameters.scale, "z": parameters.zero_point})
    integers = schemes.quantize(values, parameters)
    np.testing.assert_array_equal(integers, found["q"])
    np.testing.assert_array_equal(schemes.dequantize(integers, parameters), found["y"])


def test_signs_get_the_same_room_where_the_scheme_is_symmetric() -> None:
    assert ends(schemes.affine(-1, 2.54, FORMATS["int8"], True, "x")) == pytest.approx((-2.56, 2.54), rel=1e-6)
    assert ends(schemes.affine(-1, 2.54, FORMATS["uint8"], True, "x")) == pytest.approx((-2.56, 2.54), rel=1e-6)
    assert ends(schemes.affine(0.5, 2.55, FORMATS["uint8"], True, "x")) == pytest.approx((0, 2.55), rel=1e-6)
    assert ends(schemes.affine(-1, 1.55, FORMATS["int8"], False, "x")) == pytest.approx((-1, 1.55), rel=1e-6)


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_a_range_of_zeros_has_scale_one(form: Format) -> None:
    parameters = schemes.affine(0.0, 0.0, form, False, "x")
    assert parameters.scale == 1.0
    assert schemes.dequantize(schemes.quantize(np.zeros(3), parameters), parameters).tolist() == [0, 0, 0]


@pytest.mark.parametrize("span", [(np.nan, 1.0), (0.0, np.inf), (2.0, 1.0), (-3e38, 3e38)])
def test_ranges_that_no_grid_covers_are_refused_by_name(span: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="value 'x'"):
        schemes.affine(*span, FORMATS["int8"], False, "value 'x'")


def test_probabilities_have_steps_of_one_256th() -> None:
    assert ends(schemes.unit_interval(FORMATS["int8"])) == (0.0, 255 / 256)
    assert ends(schemes.unit_interval(FORMATS["uint8"])) == (0.0, 255 / 256)


def test_channels_of_zeros_get_the_largest_scale_of_the_others() -> None:
    weights = np.float32([[0, 0], [127, -1], [0.5, 0.25]])
    parameters = schemes.weight_parameters(weights, Scheme(FORMATS["int8"]))
    np.testing.assert_allclose(parameters.scale, [1, 1, 0.5 / 127], rtol=1e-7)
    np.testing.assert_array_equal(schemes.quantize(weights, parameters), [[0, 0], [127, -1], [127, 64]])
    assert schemes.weight_parameters(np.zeros((2, 2)), Scheme(FORMATS["int8"], per_channel=False)).scale == 1.0


def test_unsigned_weights_stand_around_128() -> None:
    integers, _ = Method().apply(np.array([[-1.0, 0, 1]]), Scheme(FORMATS["uint8"], per_channel=False))
    assert integers.tolist() == [[1, 128, 255]]


def test_weight_scales_grow_until_the_bias_fits_int32() -> None:
    weights = np.float32([[1e-9, 0], [1, 1]])
    bias = np.array([100.0, 100.0])
    parameters = schemes.weight_parameters(weights, Scheme(FORMATS["int8"]), schemes.least_scales(bias, 0.1))
    steps = schemes.quantize_bias(bias, np.float32(0.1) * parameters.scale)
    assert np.abs(steps.astype(np.int64)).max() <= schemes.BIAS_LIMIT * 1.0001
    np.testing.assert_allclose(steps * (np.float32(0.1) * parameters.scale), bias, rtol=1e-6)
    assert parameters.scale[1] == np.float32(1 / 127)
