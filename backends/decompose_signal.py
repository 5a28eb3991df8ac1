"""Fourier transforms of static length as products with constant matrices.

    forward: y[k] = sum_n x[n] e^(-2 pi i k n / N)        inverse: x[n] = 1/N sum_k y[k] e^(2 pi i k n / N)

A complex number is a pair on the last axis. A one-sided forward transform gives N/2 + 1 values; the inverse of one
gives N real numbers, every value but the first (and the middle one of an even N) counted twice.
"""

import numpy as np

from graphc.backends.arithmetic import Numbers
from graphc.backends.decompose_rewrite import Decline, Rewrite

LONGEST = 4096
"""Points of a transform at most: its matrix grows with the square."""


def dft(rewrite: Rewrite) -> None:
    """One axis goes before the last one, then a single product transforms it."""
    x, shape = rewrite.node.inputs[0], rewrite.dims(rewrite.node.inputs[0])
    axis = _integer(rewrite, 2, -2) % len(shape)
    inverse, onesided = bool(rewrite.node.get_int("inverse", 0)), bool(rewrite.node.get_int("onesided", 0))
    whole = 2 * (shape[axis] - 1) if inverse and onesided else shape[axis]
    length = _integer(rewrite, 1, whole)
    order = [i for i in range(len(shape)) if i not in (axis, len(shape) - 1)] + [axis, len(shape) - 1]
    moved = rewrite.op("Transpose", x, perm=tuple(order))
    rest = [shape[i] for i in order[:-2]]
    matrix = transform(shape[axis], shape[-1], length, inverse, onesided)
    flat = rewrite.reshape(moved, *rest, shape[axis] * shape[-1])
    product = rewrite.op(
        "MatMul", flat, rewrite.constant(matrix.reshape(-1, matrix[0, 0].size).astype(rewrite.type(x).dtype))
    )
    result = rewrite.reshape(product, *rest, *matrix.shape[2:])
    rewrite.finish(rewrite.op("Transpose", result, perm=tuple(int(i) for i in np.argsort(order))))


def stft(rewrite: Rewrite) -> None:
    """Frames times a window, transformed: a convolution whose kernels are the rows of the matrix."""
    signal, window = rewrite.node.inputs[0], rewrite.input(2)
    batch, length, parts = (*rewrite.dims(signal), 1)[:3]
    step = _integer(rewrite, 1, 0)
    size = _integer(rewrite, 3, rewrite.dims(window)[0] if window else length)
    if not 0 < size <= LONGEST or step < 1:
        raise Decline
    onesided = bool(rewrite.node.get_int("onesided", 1))
    matrix = transform(size, parts, size, False, onesided)
    count = matrix.shape[2]
    rows = matrix.transpose(2, 3, 1, 0).reshape(count * 2, parts, size).astype(rewrite.type(signal).dtype)
    kernels = rewrite.op("Mul", rewrite.constant(rows), window) if window else rewrite.constant(rows)
    across = rewrite.op("Transpose", rewrite.reshape(signal, batch, length, parts), perm=(0, 2, 1))
    frames = (length - size) // step + 1
    found = rewrite.op("Conv", across, kernels, strides=(step,), kernel_shape=(size,))
    apart = rewrite.reshape(found, batch, count, 2, frames)
    rewrite.finish(rewrite.op("Transpose", apart, perm=(0, 3, 1, 2)))


def transform(given: int, parts: int, length: int, inverse: bool, onesided: bool) -> Numbers:
    """[given, parts, results, 2 (1 for a real result)]: what each part of each input adds to each part of each result.

    Inputs past `length` count for nothing, missing ones are zeros. Raises Decline for transforms past LONGEST.
    """
    if not 0 < length <= LONGEST:
        raise Decline
    half = length // 2 + 1
    results = half if onesided and not inverse else length
    angle = 2 * np.pi * np.outer(np.arange(given), np.arange(results)) / length
    angle = angle if inverse else -angle
    turn = np.stack([np.cos(angle), np.sin(angle)], -1)
    # (a + ib)(cos + i sin): a gives (cos, sin), b gives (-sin, cos).
    both = np.stack([turn, np.stack([-turn[..., 1], turn[..., 0]], -1)], 1)
    if inverse:
        both = both / length
    if inverse and onesided:
        weights = np.full(given, 2.0)
        weights[0] = 1.0
        if length % 2 == 0 and given >= half:
            weights[half - 1] = 1.0
        weights[half:] = 0.0
        both = (both * weights.reshape(-1, 1, 1, 1))[..., :1]
    both[length:] = 0.0
    return np.asarray(both[:, :parts])


def _integer(rewrite: Rewrite, index: int, default: int) -> int:
    if not rewrite.input(index):
        return default
    value = rewrite.value(index)
    if value is None:
        raise Decline
    return int(value.astype(np.int64).reshape(()))
