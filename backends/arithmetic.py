"""The one integer arithmetic, in numpy: what every integer kernel on every target must compute, bit for bit.

Sums are exact in int32 (whoever builds a node proves that they fit, with `MAX_SUM`); only a bias may need int64, and
then the sum with it is int64 too. What follows a sum is one of

    requantize   t = rint(float32(sum) * scale); t = min(max(t, low - zp), high - zp); y = int(t) + zp
                 float32(sum) and rint round half to even; one float32 multiply. `low - zp` and `high - zp` are small
                 integers, exact in float32: clamping before the conversion equals clamping after it for every sum
                 and scale, and the conversion never overflows.
    rescale      y = float32(sum) * scale: a product whose result stays in floating point, its bias in the sum
    add          y = clamp((((a - az) * am + (b - bz) * bm + (1 << (shift - 1))) >> shift) + zp, low, high)
                 an exact sum, with an arithmetic shift: rounds half up. `add_multipliers` chooses am, bm and shift so
                 that int32 holds it, or int64 where 16 bits meet a multiplier of 15 that would cost a step.
    table        y = table[x - smallest value of x's type]
    softmax      e = table[max(x) - x]; r = scale / float32(sum(e)); y = requantize(e, r)
                 table[d] = rint(exp(-d * x_scale) * T), T = min(2^23, (2^31 - 1) // n):
                 e is exact in float32, and n of them fit in int32.

Nothing here has a multiply that feeds an add in floating point, so no compiler can contract it to an FMA.
Padding contributes zero to every sum. Arrays are NCHW (any number of spatial axes), weights OIHW, as in ONNX.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Numbers: TypeAlias = npt.NDArray[Any]
"""Integers as stored, or exact integers held in floats (sums on their way to `requantize`)."""

Index: TypeAlias = tuple[Any, ...]

MAX_SUM = 2**31 - 1
"""The largest magnitude that a sum may reach, partial sums included."""

MAX_WIDE_SUM = 2**53
"""The same for sums in int64 (a bias that int32 cannot add, an operand of 16 bits); they are exact in float64."""

MAX_SHIFT = 30


@dataclass(frozen=True, slots=True)
class Result:
    """How a result is stored: its type, the integer that stands for 0.0, and the smallest and largest value."""

    dtype: np.dtype[np.generic]
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Window:
    """Where a kernel meets its input, one entry per spatial axis; `pads` are all the begins, then all the ends."""

    kernel: Sequence[int]
    strides: Sequence[int]
    pads: Sequence[int]
    dilations: Sequence[int]

    def positions(self, size: Sequence[int]) -> tuple[int, ...]:
        """Number of windows along each axis of an input of `size`, padding not counted in."""
        rank = len(self.kernel)
        padded = [n + self.pads[i] + self.pads[i + rank] for i, n in enumerate(size)]
        axes = zip(padded, self.kernel, self.strides, self.dilations, strict=True)
        return tuple((n - (k - 1) * d - 1) // s + 1 for n, k, s, d in axes)

    def taps(self, positions: Sequence[int]) -> Iterator[tuple[Index, Index]]:
        """Each place in the kernel, as an index of the weights and one of the padded input's elements that it meets."""
        axes = list(zip(self.dilations, positions, self.strides, strict=True))
        for tap in product(*map(range, self.kernel)):
            places = (slice(t * d, t * d + (n - 1) * s + 1, s) for t, (d, n, s) in zip(tap, axes, strict=True))
            yield (..., *tap), (..., *places)

    def pad(self, x: Numbers, value: int = 0) -> Numbers:
        """`x` with its spatial (last) axes padded."""
        rank = len(self.kernel)
        widths = [(0, 0)] * (x.ndim - rank) + [(self.pads[i], self.pads[i + rank]) for i in range(rank)]
        return np.pad(x, widths, constant_values=value)


def requantize(sums: Numbers, scale: Numbers, result: Result) -> Numbers:
    """Sums to stored integers, or to the floats that they stand for where the result is float32; an int32 result is
    the sum itself.

    `scale` (float32) broadcasts against them.
    """
    if result.dtype == np.int32:
        return sums.astype(np.int32)
    scaled = np.asarray(sums.astype(np.float32) * scale.astype(np.float32))
    if result.dtype == np.float32:
        return scaled
    clamped = np.clip(
        np.rint(scaled), np.float32(result.low - result.zero_point), np.float32(result.high - result.zero_point)
    )
    return np.asarray(clamped.astype(np.int32) + np.int32(result.zero_point)).astype(result.dtype)


def add(
    operands: tuple[Numbers, Numbers], zero_points: tuple[int, int], multipliers: tuple[int, int], shift: int,
    *, result: Result,
) -> Numbers:  # fmt: skip
    """The fixed-point sum of two integer tensors on different grids, broadcast as numpy does."""
    terms = zip(operands, zero_points, multipliers, strict=True)
    left, right = ((x.astype(np.int64) - np.int64(z)) * np.int64(m) for x, z, m in terms)
    shifted = (left + right + np.int64(1 << (shift - 1))) >> np.int64(shift)
    return np.asarray(np.clip(shifted + np.int64(result.zero_point), result.low, result.high)).astype(result.dtype)


def largest_sum(
    dtypes: tuple[np.dtype[np.generic], np.dtype[np.generic]], zero_points: tuple[int, int],
    multipliers: tuple[int, int], shift: int,
) -> int:  # fmt: skip
    """The largest magnitude that `add` can reach before it shifts, whatever the operands hold."""
    terms = zip(dtypes, zero_points, multipliers, strict=True)
    return sum(reach(dtype, z) * abs(m) for dtype, z, m in terms) + (1 << (shift - 1))


def reach(dtype: np.dtype[np.generic], zero_point: int) -> int:
    """The largest |q - zero_point| of any q of the type."""
    info = np.iinfo(str(dtype))
    return max(int(info.max) - zero_point, zero_point - int(info.min))


def add_multipliers(
    ratios: tuple[float, float], reaches: tuple[int, int], limit: int = MAX_SUM
) -> tuple[int, int, int]:
    """`(am, bm, shift)` for operands whose scales are `ratios` times the result's, of magnitude at most `reaches`.

    am = rint(ratio_a * 2^shift), bm alike, with the largest shift in 1..30 for which
    reach_a * |am| + reach_b * |bm| + 2^(shift-1) <= limit. Raises OverflowError where no shift fits.
    """
    for shift in range(MAX_SHIFT, 0, -1):
        am, bm = round(ratios[0] * 2**shift), round(ratios[1] * 2**shift)
        if reaches[0] * abs(am) + reaches[1] * abs(bm) + 2 ** (shift - 1) <= limit:
            return am, bm, shift
    raise OverflowError(f"operands {ratios} times as coarse as the result overflow int{limit.bit_length() + 1 & ~31}")


def lookup(x: Numbers, table: Numbers) -> Numbers:
    """`table[x - smallest value of x's type]`, for an 8-bit `x` and its 256 results."""
    return np.asarray(table[x.astype(np.int32) - np.iinfo(x.dtype).min])


def softmax_table(scale: float, length: int) -> npt.NDArray[np.uint32]:
    """exp(-d * scale) for d in 0..255 as integers, of which `length` add up to less than 2^31."""
    top = min(2**23, MAX_SUM // length)
    table: npt.NDArray[np.uint32] = np.rint(np.exp(-np.arange(256) * scale) * top).astype(np.uint32)
    return table


def softmax(x: Numbers, table: Numbers, scale: Numbers, axis: int, result: Result) -> Numbers:
    """Softmax of 8-bit integers along `axis`; `scale` (float32) is one over the scale of the result."""
    wide = x.astype(np.int32)
    weights = table[wide.max(axis=axis, keepdims=True) - wide]
    sums = weights.sum(axis=axis, keepdims=True, dtype=np.int64)
    return requantize(weights, scale.astype(np.float32) / sums.astype(np.float32), result)


def convolve(
    x: Numbers, w: Numbers, window: Window, *, group: int, x_zero_point: int, w_zero_points: Numbers
) -> Numbers:
    """Exact sums of (x - x_zero_point) * (w - w_zero_point): [N, O, *spatial]; `w_zero_points` is [O] or [1]."""
    offsets = w_zero_points.reshape(-1, *(1,) * (w.ndim - 1))
    centered, weights = _centered((x, w), (x_zero_point, offsets), terms=prod(w.shape[1:]))
    padded = window.pad(centered)
    positions = window.positions(x.shape[2:])
    batch, outputs, depth = x.shape[0], w.shape[0], w.shape[1]
    sums = np.zeros((batch, group, outputs // group, prod(positions)), weights.dtype)
    for tap, place in window.taps(positions):
        columns = padded[place].reshape(batch, group, depth, -1)
        rows = weights[tap].reshape(group, outputs // group, depth)
        sums += rows * columns if depth == 1 else rows @ columns
    return sums.reshape(batch, outputs, *positions)


def convolve_transposed(
    x: Numbers, w: Numbers, window: Window, *, group: int, output_padding: Sequence[int],
    x_zero_point: int, w_zero_points: Numbers,
) -> Numbers:  # fmt: skip
    """Exact sums of a transposed convolution; `w` is [C, O / group, *kernel], `w_zero_points` [O] or [1]."""
    batch, channels, size = x.shape[0], x.shape[1], x.shape[2:]
    per_group, rank = w.shape[1], len(window.kernel)
    by_group = np.broadcast_to(w_zero_points, (group * per_group,)).reshape(group, per_group)
    offsets = by_group.repeat(channels // group, axis=0).reshape(channels, per_group, *(1,) * rank)
    terms = channels // group * prod(window.kernel)
    centered, weights = _centered((x, w), (x_zero_point, offsets), terms=terms)
    axes = zip(size, window.strides, window.kernel, window.dilations, output_padding, strict=True)
    full = [(n - 1) * s + (k - 1) * d + 1 + o for n, s, k, d, o in axes]
    sums = np.zeros((batch, group, per_group, *full), weights.dtype)
    columns = centered.reshape(batch, group, channels // group, -1)
    for tap, place in window.taps(size):
        rows = weights[tap].reshape(group, channels // group, per_group).swapaxes(1, 2)
        sums[place] += (rows @ columns).reshape(batch, group, per_group, *size)
    crop: Index = (..., *(slice(window.pads[i], full[i] - window.pads[i + rank]) for i in range(rank)))
    return sums.reshape(batch, group * per_group, *full)[crop]


def multiply_matrices(a: Numbers, b: Numbers, *, a_zero_point: int, b_zero_points: Numbers) -> Numbers:
    """Exact sums of (a - a_zero_point) @ (b - b_zero_points); batches broadcast as in ONNX MatMul."""
    left, right = _centered((a, b), (a_zero_point, b_zero_points), terms=a.shape[-1])
    return np.asarray(left @ right)


def average_pool(
    x: Numbers, scale: Numbers, window: Window, *, count_include_pad: bool, x_zero_point: int, result: Result
) -> Numbers:
    """Window averages: the sum over elements that are not padding, requantized with `scale[count - 1]`.

    `count` is the number of those elements, or the whole kernel where `count_include_pad`.
    """
    padded = window.pad(x.astype(np.int32) - np.int32(x_zero_point))
    inside = window.pad(np.ones((1, 1, *x.shape[2:]), np.int32), 1 if count_include_pad else 0)
    positions = window.positions(x.shape[2:])
    places = [place for _, place in window.taps(positions)]
    sums = np.asarray(np.sum([padded[place] for place in places], axis=0, dtype=np.int32))
    counts = np.sum([inside[place] for place in places], axis=0)
    return requantize(sums, scale[counts - 1], result)


def mean(
    x: Numbers, scale: Numbers, axes: Sequence[int], keepdims: bool, *, x_zero_point: int, result: Result
) -> Numbers:
    """The sum of x - x_zero_point over `axes`, requantized: `scale` carries the division by the count."""
    centered = x.astype(np.int32) - np.int32(x_zero_point)
    sums = np.sum(centered, axis=tuple(axes), keepdims=keepdims, dtype=np.int32)
    return requantize(np.asarray(sums), scale, result)


def multiply(
    operands: tuple[Numbers, Numbers], zero_points: tuple[int, int], scale: Numbers, result: Result
) -> Numbers:
    """Elementwise product of two 8-bit tensors, broadcast as numpy does."""
    left, right = (x.astype(np.int32) - np.int32(z) for x, z in zip(operands, zero_points, strict=True))
    return requantize(left * right, scale, result)


def _centered(
    operands: tuple[Numbers, Numbers], zero_points: tuple[int, Numbers], *, terms: int
) -> tuple[Numbers, Numbers]:
    """Both operands less their zero points, in the narrowest float that holds every sum of `terms` products exactly."""
    left = operands[0].astype(np.int32) - np.int32(zero_points[0])
    right = operands[1].astype(np.int32) - zero_points[1].astype(np.int32)
    kind = np.float32 if _magnitude(left) * _magnitude(right) * terms < 2**24 else np.float64
    return left.astype(kind), right.astype(kind)


def _magnitude(x: Numbers) -> int:
    return max(abs(int(x.max())), abs(int(x.min()))) if x.size else 0
