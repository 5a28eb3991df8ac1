"""The integer arithmetic against formulas worked out element by element in Python's exact integers and fractions."""

from fractions import Fraction
from itertools import product
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphc.backends import arithmetic
from graphc.backends.arithmetic import MAX_SUM, Numbers, Result, Window

INT8 = np.dtype(np.int8)
UINT8 = np.dtype(np.uint8)


def nearest_even(value: Fraction) -> int:
    below = floor(value)
    rest = value - below
    return below + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and below % 2 == 1))


def random_integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Numbers:
    info = np.iinfo(str(dtype))
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


@given(
    total=st.integers(-MAX_SUM, MAX_SUM),
    scale=st.floats(2.0**-40, 2.0**40, width=32),
    zero_point=st.integers(-128, 127),
    ends=st.tuples(st.integers(-128, 127), st.integers(-128, 127)),
)
def test_requantize_is_one_rounded_product(total: int, scale: float, zero_point: int, ends: tuple[int, int]) -> None:
    low, high = min(ends), max(ends)
    found = arithmetic.requantize(np.array([total]), np.array([scale], np.float32), Result(INT8, zero_point, low, high))
    rounded = np.float32(np.float32(total) * np.float32(scale))
    expected = min(max(nearest_even(Fraction(float(rounded))) + zero_point, low), high)
    assert int(found[0]) == expected


def test_requantize_saturates_where_the_product_overflows_float() -> None:
    sums = np.array([MAX_SUM, -MAX_SUM])
    scale = np.array([3e38], np.float32)
    with np.errstate(over="ignore"):
        assert arithmetic.requantize(sums, scale, Result(INT8, 5, -128, 127)).tolist() == [127, -128]


def test_requantize_rounds_half_to_even() -> None:
    sums = np.array([-5, -3, -1, 1, 3, 5])
    found = arithmetic.requantize(sums, np.array([0.5], np.float32), Result(INT8, 0, -128, 127))
    assert found.tolist() == [-2, -2, 0, 0, 2, 2]


ratios = st.floats(1e-6, 100, allow_nan=False)


@given(ratio=st.tuples(ratios, ratios), a=st.integers(-128, 127), b=st.integers(0, 255), zero_point=st.integers(-9, 9))
def test_add_is_within_half_a_step_of_the_real_sum(ratio: tuple[float, float], a: int, b: int, zero_point: int) -> None:
    am, bm, shift = arithmetic.add_multipliers(ratio, (140, 200))
    result = Result(np.dtype(np.int32), zero_point, -(2**30), 2**30)
    operands = (np.array([a], np.int8), np.array([b], np.uint8))
    found = int(arithmetic.add(operands, (12, 55), (am, bm), shift, result=result)[0])
    assert found == ((a - 12) * am + (b - 55) * bm + 2 ** (shift - 1)) // 2**shift + zero_point
    real = (a - 12) * Fraction(ratio[0]) + (b - 55) * Fraction(ratio[1]) + zero_point
    assert abs(found - real) <= Fraction(1, 2) + Fraction(340, 2 ** (shift + 1))


@given(ratio=st.tuples(ratios, ratios), reaches=st.tuples(st.integers(1, 255), st.integers(1, 255)))
def test_add_multipliers_take_the_largest_shift_that_fits(ratio: tuple[float, float], reaches: tuple[int, int]) -> None:
    def largest(shift: int) -> int:
        terms = (reach * round(r * 2**shift) for reach, r in zip(reaches, ratio, strict=True))
        return sum(terms) + 2 ** (shift - 1)

    am, bm, shift = arithmetic.add_multipliers(ratio, reaches)
    assert (am, bm) == tuple(round(r * 2**shift) for r in ratio)
    assert largest(shift) <= MAX_SUM
    assert shift == 30 or largest(shift + 1) > MAX_SUM


def test_add_multipliers_refuse_what_overflows() -> None:
    with pytest.raises(OverflowError, match="overflow int32"):
        arithmetic.add_multipliers((1e8, 1.0), (255, 255))


def brute_convolution(x: Numbers, w: Numbers, window: Window, group: int, zeros: tuple[int, Numbers]) -> Numbers:
    xz, wz = zeros
    sizes = window.positions(x.shape[2:])
    outputs, depth = w.shape[:2]
    sums = np.zeros((x.shape[0], outputs, *sizes), np.int64)
    for place in product(*map(range, sums.shape)):
        n, o, *spot = place
        for c, *tap in product(range(depth), *map(range, window.kernel)):
            at = [
                p * s + t * d - b
                for p, s, t, d, b in zip(spot, window.strides, tap, window.dilations, window.pads, strict=False)
            ]
            if all(0 <= i < size for i, size in zip(at, x.shape[2:], strict=True)):
                value = int(x[(n, o // (outputs // group) * depth + c, *at)]) - xz
                sums[place] += value * (int(w[(o, c, *tap)]) - int(wz[o]))
    return sums


CONVOLUTIONS = [
    (Window((3,), (2,), (1, 0), (1,)), 1, (2, 4, 9), 6),
    (Window((3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), 1, (2, 3, 6, 5), 4),
    (Window((3, 2), (2, 1), (0, 1, 1, 0), (1, 2)), 2, (1, 4, 7, 6), 6),
    (Window((3, 3), (1, 2), (1, 0, 2, 1), (2, 1)), 4, (2, 4, 7, 7), 4),
    (Window((1, 1), (2, 2), (0, 0, 0, 0), (1, 1)), 1, (1, 5, 5, 5), 3),
    (Window((2, 2, 2), (1, 2, 1), (0, 1, 0, 1, 0, 1), (1, 1, 1)), 1, (1, 2, 4, 4, 4), 3),
]


@pytest.mark.parametrize("dtype", [INT8, UINT8])
@pytest.mark.parametrize(("window", "group", "shape", "outputs"), CONVOLUTIONS)
def test_convolve(
    window: Window, group: int, shape: tuple[int, ...], outputs: int, dtype: np.dtype[np.generic]
) -> None:
    rng = np.random.default_rng(0)
    x = random_integers(rng, shape, dtype)
    w = random_integers(rng, (outputs, shape[1] // group, *window.kernel), INT8)
    wz = rng.integers(-9, 9, outputs).astype(np.int32)
    found = arithmetic.convolve(x, w, window, group=group, x_zero_point=7, w_zero_points=wz)
    assert np.array_equal(found, brute_convolution(x, w, window, group, (7, wz)))


def brute_transposed(
    operands: tuple[Numbers, Numbers],
    window: Window,
    group: int,
    output_padding: tuple[int, ...],
    zeros: tuple[int, Numbers],
) -> Numbers:
    (x, w), (xz, wz) = operands, zeros
    rank, per_group = len(window.kernel), w.shape[1]
    size = [
        (n - 1) * window.strides[i] + (window.kernel[i] - 1) * window.dilations[i] + 1 + output_padding[i]
        - window.pads[i] - window.pads[i + rank]
        for i, n in enumerate(x.shape[2:])
    ]  # fmt: skip
    sums = np.zeros((x.shape[0], group * per_group, *size), np.int64)
    for n, c, *spot in product(*map(range, x.shape)):
        first = c // (x.shape[1] // group) * per_group
        for o, *tap in product(range(per_group), *map(range, window.kernel)):
            at = [
                p * s + t * d - b
                for p, s, t, d, b in zip(spot, window.strides, tap, window.dilations, window.pads, strict=False)
            ]
            if all(0 <= i < limit for i, limit in zip(at, size, strict=True)):
                sums[(n, first + o, *at)] += (int(x[(n, c, *spot)]) - xz) * (int(w[(c, o, *tap)]) - int(wz[first + o]))
    return sums


TRANSPOSED = [
    (Window((3, 3), (2, 2), (1, 1, 1, 1), (1, 1)), 1, (1, 1), (1, 3, 4, 5), 4),
    (Window((2, 3), (1, 2), (0, 1, 1, 0), (2, 1)), 2, (0, 0), (2, 4, 3, 4), 3),
    (Window((4,), (2,), (1, 1), (1,)), 1, (0,), (1, 2, 6), 3),
]


@pytest.mark.parametrize(("window", "group", "output_padding", "shape", "per_group"), TRANSPOSED)
def test_convolve_transposed(
    window: Window, group: int, output_padding: tuple[int, ...], shape: tuple[int, ...], per_group: int
) -> None:
    rng = np.random.default_rng(1)
    x = random_integers(rng, shape, UINT8)
    w = random_integers(rng, (shape[1], per_group, *window.kernel), INT8)
    wz = rng.integers(-9, 9, per_group * group).astype(np.int32)
    found = arithmetic.convolve_transposed(
        x, w, window, group=group, output_padding=output_padding, x_zero_point=99, w_zero_points=wz
    )
    assert np.array_equal(found, brute_transposed((x, w), window, group, output_padding, (99, wz)))


def test_sums_are_exact_where_float32_is_not() -> None:
    a = np.full((1, 4096), 127, np.int8)
    b = np.full((4096, 1), 127, np.int8)
    b[0] = 126
    found = arithmetic.multiply_matrices(a, b, a_zero_point=-128, b_zero_points=np.array([-128]))
    assert int(found[0, 0]) == 255 * 255 * 4095 + 255 * 254


@pytest.mark.parametrize("shapes", [((3, 5), (5, 4)), ((2, 3, 5), (5, 4)), ((2, 1, 3, 5), (4, 5, 2))])
def test_multiply_matrices(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    rng = np.random.default_rng(2)
    a, b = random_integers(rng, shapes[0], UINT8), random_integers(rng, shapes[1], INT8)
    zero_points = rng.integers(-9, 9, shapes[1][-1]).astype(np.int32)
    found = arithmetic.multiply_matrices(a, b, a_zero_point=3, b_zero_points=zero_points)
    assert np.array_equal(found, (a.astype(np.int64) - 3) @ (b.astype(np.int64) - zero_points))


@pytest.mark.parametrize("include", [False, True])
def test_average_pool_divides_by_what_it_counts(include: bool) -> None:
    rng = np.random.default_rng(3)
    x = random_integers(rng, (1, 2, 5, 6), UINT8)
    window = Window((3, 2), (2, 1), (1, 0, 1, 1), (1, 1))
    scale = (0.75 / np.arange(1, 7)).astype(np.float32)
    found = arithmetic.average_pool(
        x, scale, window, count_include_pad=include, x_zero_point=11, result=Result(INT8, -3, -128, 127)
    )
    for c, i, j in product(*map(range, found.shape[1:])):
        block = x[0, c, max(i * 2 - 1, 0) : i * 2 + 2, j : j + 2].astype(int) - 11
        count = 6 if include else block.size
        rounded = np.float32(block.sum()) * scale[count - 1]
        assert int(found[0, c, i, j]) == max(-128, min(127, nearest_even(Fraction(float(rounded))) - 3))


def test_mean_and_multiply() -> None:
    rng = np.random.default_rng(4)
    x, y = random_integers(rng, (2, 3, 4), INT8), random_integers(rng, (3, 1), UINT8)
    scale, result = np.array([0.01], np.float32), Result(UINT8, 100, 3, 250)
    mean = arithmetic.mean(x, scale, (0, 2), True, x_zero_point=-4, result=result)
    product_ = arithmetic.multiply((x, y), (-4, 9), scale, result)
    for i in range(3):
        total = np.float32(sum(int(v) + 4 for v in x[:, i].ravel())) * np.float32(0.01)
        assert int(mean[0, i, 0]) == max(3, min(250, nearest_even(Fraction(float(total))) + 100))
    for i, j, k in product(range(2), range(3), range(4)):
        value = np.float32((int(x[i, j, k]) + 4) * (int(y[j, 0]) - 9)) * np.float32(0.01)
        assert int(product_[i, j, k]) == max(3, min(250, nearest_even(Fraction(float(value))) + 100))


@given(scale=st.floats(1e-4, 1.0), length=st.integers(1, 4000), seed=st.integers(0, 99))
def test_softmax_is_within_a_step_and_its_sums_fit(scale: float, length: int, seed: int) -> None:
    table = arithmetic.softmax_table(scale, length)
    assert int(table[0]) * length <= MAX_SUM
    assert int(table[0]) <= 2**23
    x = random_integers(np.random.default_rng(seed), (length,), INT8)
    result = Result(UINT8, 0, 0, 255)
    found = arithmetic.softmax(x, table, np.array([256.0], np.float32), -1, result)
    weights = np.exp((x.astype(np.float64) - x.max()) * scale)
    expected = np.clip(weights / weights.sum() * 256, 0, 255)
    assert np.abs(found.astype(np.float64) - expected).max() <= 0.51


def test_lookup_counts_from_the_smallest_value() -> None:
    table = np.arange(256).astype(np.uint8)
    assert arithmetic.lookup(np.array([-128, 0, 127], np.int8), table).tolist() == [0, 128, 255]
    assert arithmetic.lookup(np.array([0, 255], np.uint8), table).tolist() == [0, 255]
