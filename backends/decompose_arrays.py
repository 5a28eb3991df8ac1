"""Reductions, scans and rearrangements over axes of static length, in terms of elementwise operators and products."""

import numpy as np

from graphc.backends.decompose_rewrite import Decline, Rewrite
from graphc.ir.graph import Attribute

LONGEST = 256
"""Elements of an axis that are unrolled at most."""


def lp_normalization(rewrite: Rewrite) -> None:
    """x / ||x||_p along an axis; a norm of zero gives zeros."""
    x, axis = rewrite.node.inputs[0], rewrite.node.get_int("axis", -1)
    order = "ReduceL1" if rewrite.node.get_int("p", 2) == 1 else "ReduceL2"
    norm = rewrite.op(order, x, rewrite.ints(axis), keepdims=1)
    zero = rewrite.number(0, x)
    safe = rewrite.op("Where", rewrite.op("Equal", norm, zero), rewrite.number(1, x), norm)
    rewrite.finish(rewrite.op("Div", x, safe))


def reverse_sequence(rewrite: Rewrite) -> None:
    """The first `lengths[b]` elements of each row in reverse order: a gather along time with computed positions."""
    x, lengths = rewrite.node.inputs
    time, batch = rewrite.node.get_int("time_axis", 0), rewrite.node.get_int("batch_axis", 1)
    shape = rewrite.dims(x)
    steps, rows = shape[time], shape[batch]
    place = [1, 1]
    place[batch] = rows
    column = rewrite.reshape(lengths, *place)
    at = rewrite.constant(np.arange(steps, dtype=np.int64).reshape([steps if i == time else 1 for i in (0, 1)]))
    back = rewrite.op("Sub", rewrite.op("Sub", column, at), rewrite.number(1, np.dtype(np.int64)))
    index = rewrite.op("Where", rewrite.op("Less", at, column), back, at)
    if len(shape) > 2:
        spread = rewrite.reshape(index, *(steps if i == time else rows for i in (0, 1)), *(1,) * (len(shape) - 2))
        index = rewrite.op("Expand", spread, rewrite.ints(*shape))
    rewrite.finish(rewrite.op("GatherElements", x, index, axis=time))


def cumulative_product(rewrite: Rewrite) -> None:
    """Products of all elements up to each one, element by element along the axis."""
    x, axes = rewrite.node.inputs[0], rewrite.value(1)
    shape = rewrite.dims(x)
    if axes is None:
        raise Decline
    axis = int(axes.astype(np.int64).reshape(())) % len(shape)
    length = shape[axis]
    if not 0 < length <= LONGEST:
        raise Decline
    order = range(length - 1, -1, -1) if rewrite.node.get_int("reverse", 0) else range(length)
    parts = [""] * length
    ones = tuple(1 if i == axis else n for i, n in enumerate(shape))
    total = rewrite.constant(np.ones(ones, rewrite.type(x).dtype))
    for i in order:
        grown = rewrite.op("Mul", total, rewrite.slice(x, axis, i, i + 1))
        parts[i] = total if rewrite.node.get_int("exclusive", 0) else grown
        total = grown
    rewrite.finish(parts[0] if length == 1 else rewrite.op("Concat", *parts, axis=axis))


def determinant(rewrite: Rewrite) -> None:
    """Matrices up to 4 x 4, by the Laplace expansion (larger ones would need pivots)."""
    x = rewrite.node.inputs[0]
    *batch, size, _ = rewrite.dims(x)
    if not 0 < size <= 4:
        raise Decline
    flat = rewrite.reshape(x, *batch, size * size)
    last = len(batch)
    cells = [rewrite.slice(flat, last, i, i + 1) for i in range(size * size)]
    rows = [cells[i * size : (i + 1) * size] for i in range(size)]
    rewrite.finish(rewrite.reshape(_expansion(rewrite, rows), *batch))


def _expansion(rewrite: Rewrite, rows: list[list[str]]) -> str:
    if len(rows) == 1:
        return rows[0][0]
    total = ""
    for i, cell in enumerate(rows[0]):
        minor = [row[:i] + row[i + 1 :] for row in rows[1:]]
        term = rewrite.op("Mul", cell, _expansion(rewrite, minor))
        total = rewrite.op("Sub" if i % 2 else "Add", total, term) if total else term
    return total


def col2im(rewrite: Rewrite) -> None:
    """Blocks added up in place: a transposed convolution of each channel with the unit kernels."""
    x, size, kernel = rewrite.node.inputs[0], rewrite.value(1), rewrite.value(2)
    if size is None or kernel is None:
        raise Decline
    image, block = ([int(n) for n in array.astype(np.int64)] for array in (size, kernel))
    rank, taps = len(image), int(np.prod(block))
    batch, columns, _ = rewrite.dims(x)
    strides, dilations = (rewrite.node.get_ints(key, (1,) * rank) for key in ("strides", "dilations"))
    pads = rewrite.node.get_ints("pads", (0,) * 2 * rank)
    reach = [(k - 1) * d + 1 for k, d in zip(block, dilations, strict=True)]
    counts = [(n + pads[i] + pads[i + rank] - reach[i]) // strides[i] + 1 for i, n in enumerate(image)]
    # Windows need not reach the end of the padded image: what is left over is cropped (or padded) with it.
    left = [n + pads[i] + pads[i + rank] - ((counts[i] - 1) * strides[i] + reach[i]) for i, n in enumerate(image)]
    channels = columns // taps
    units = np.tile(np.eye(taps, dtype=rewrite.type(x).dtype).reshape(taps, 1, *block), (channels, *(1,) * (rank + 1)))
    attributes: dict[str, Attribute] = {
        "group": channels, "strides": strides, "dilations": dilations, "pads": pads, "output_padding": tuple(left),
        "kernel_shape": tuple(block),
    }  # fmt: skip
    if any(extra >= max(s, d) for extra, s, d in zip(left, strides, dilations, strict=True)):
        raise Decline
    grid = rewrite.reshape(x, batch, columns, *counts)
    rewrite.finish(rewrite.op("ConvTranspose", grid, rewrite.constant(units), **attributes))


def tensor_scatter(rewrite: Rewrite) -> None:
    """Write a run of positions into a cache: every position asks whether, and from where, it is written."""
    cache, update = rewrite.node.inputs[:2]
    shape, given = rewrite.dims(cache), rewrite.dims(update)
    axis = rewrite.node.get_int("axis", -2) % len(shape)
    length, count = shape[axis], given[axis]
    wide = np.dtype(np.int64)
    start = rewrite.input(2) or rewrite.constant(np.zeros(shape[0], np.int64))
    ones = [1] * len(shape)
    first = rewrite.reshape(start, shape[0], *ones[1:])
    positions = rewrite.constant(
        np.arange(length, dtype=np.int64).reshape([length if i == axis else 1 for i in range(len(shape))])
    )
    offset = rewrite.op("Sub", positions, first)
    if rewrite.node.get_str("mode", "linear") == "circular":
        offset = rewrite.op("Mod", offset, rewrite.number(length, wide))
    inside = rewrite.op(
        "And",
        rewrite.op("GreaterOrEqual", offset, rewrite.number(0, wide)),
        rewrite.op("Less", offset, rewrite.number(count, wide)),
    )
    index = rewrite.op("Clip", offset, rewrite.number(0, wide), rewrite.number(count - 1, wide))
    spread = rewrite.op("Expand", index, rewrite.ints(*shape))
    taken = rewrite.op("GatherElements", update, spread, axis=axis)
    rewrite.finish(rewrite.op("Where", inside, taken, cache))


def batch_normalization(rewrite: Rewrite) -> None:
    """Training mode: statistics of this batch, and the running ones moved towards them."""
    if not rewrite.node.get_int("training_mode", 0):
        raise Decline
    x, scale, bias, mean, variance = rewrite.node.inputs
    shape = rewrite.dims(x)
    axes = rewrite.ints(*(i for i in range(len(shape)) if i != 1))
    spread = (1, shape[1], *(1,) * (len(shape) - 2))
    center = rewrite.op("ReduceMean", x, axes, keepdims=1)
    away = rewrite.op("Sub", x, center)
    square = rewrite.op("ReduceMean", rewrite.op("Mul", away, away), axes, keepdims=1)
    epsilon = rewrite.number(rewrite.node.get_float("epsilon", 1e-5), x)
    deviation = rewrite.op("Sqrt", rewrite.op("Add", square, epsilon))
    scaled = rewrite.op("Mul", rewrite.op("Div", away, deviation), rewrite.reshape(scale, *spread))
    y = rewrite.op("Add", scaled, rewrite.reshape(bias, *spread))
    momentum = rewrite.node.get_float("momentum", 0.9)
    running = [
        rewrite.op(
            "Add",
            rewrite.op("Mul", old, rewrite.number(momentum, old)),
            rewrite.op("Mul", rewrite.reshape(new, shape[1]), rewrite.number(1 - momentum, old)),
        )
        for old, new in ((mean, center), (variance, square))
    ]
    rewrite.finish(y, *running)


def layer_normalization(rewrite: Rewrite) -> None:
    """Written out where its mean or deviation is asked for, or its scale has not the shape of the normalized axes."""
    node, x = rewrite.node, rewrite.node.inputs[0]
    shape, kind = rewrite.dims(x), rewrite.type(x).dtype
    first = node.get_int("axis", -1) % len(shape)
    whole = all(rewrite.dims(name) == shape[first:] for name in node.inputs[1:] if name)
    if whole and not rewrite.wants(1) and not rewrite.wants(2):
        raise Decline
    single = np.dtype(np.float32)
    stash = single if node.get_int("stash_type", 1) == 1 else kind
    wide = x if stash == kind else rewrite.op("Cast", x, to=1)
    axes = rewrite.ints(*range(first, len(shape)))
    center = rewrite.op("ReduceMean", wide, axes, keepdims=1)
    away = rewrite.op("Sub", wide, center)
    square = rewrite.op("ReduceMean", rewrite.op("Mul", away, away), axes, keepdims=1)
    epsilon = rewrite.number(node.get_float("epsilon", 1e-5), stash)
    inverse = rewrite.op("Reciprocal", rewrite.op("Sqrt", rewrite.op("Add", square, epsilon)))
    y = rewrite.op("Mul", away, inverse)
    y = rewrite.op("Mul", y if stash == kind else rewrite.op("CastLike", y, x), node.inputs[1])
    if rewrite.input(2):
        y = rewrite.op("Add", y, rewrite.input(2))
    rewrite.finish(y, center, inverse)


def affine_grid(rewrite: Rewrite) -> None:
    """Positions of a regular grid, homogeneous, times theta."""
    theta, size = rewrite.node.inputs[0], rewrite.value(1)
    if size is None:
        raise Decline
    spatial = [int(n) for n in size.astype(np.int64)[2:]]
    aligned = rewrite.node.get_int("align_corners", 0)
    axes = []
    for n in spatial:
        if aligned:
            axes.append(np.linspace(-1.0, 1.0, n) if n > 1 else np.zeros(1))
        else:
            axes.append((2 * np.arange(n) + 1) / n - 1)
    mesh = np.stack([*np.meshgrid(*axes, indexing="ij")][::-1], axis=-1).reshape(-1, len(spatial))
    points = np.concatenate([mesh, np.ones((len(mesh), 1))], axis=1).astype(rewrite.type(theta).dtype)
    turned = rewrite.op("Transpose", theta, perm=(0, 2, 1))
    grid = rewrite.op("MatMul", rewrite.constant(points[None]), turned)
    rewrite.finish(rewrite.reshape(grid, rewrite.dims(theta)[0], *spatial, len(spatial)))
