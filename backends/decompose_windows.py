"""Pooling that remembers where its maxima lay, its inverse, and convolution at displaced positions."""

from collections.abc import Sequence

import numpy as np

from graphc.backends.arithmetic import Numbers, Window
from graphc.backends.decompose_rewrite import Decline, Rewrite

LARGEST = 64
"""Elements of a window that are compared one by one at most."""


def max_pool(rewrite: Rewrite) -> None:
    """The values as they were; positions by comparing the taps of the window in order, the first maximum wins.

    Positions count through the whole tensor, [N, C, *spatial], row by row (column by column with `storage_order`).
    """
    node, x = rewrite.node, rewrite.node.inputs[0]
    if not rewrite.wants(1):
        raise Decline
    shape, wanted = rewrite.dims(x), rewrite.dims(node.outputs[0])
    window = _window(rewrite, shape[2:], wanted[2:])
    if int(np.prod(window.kernel)) > LARGEST:
        raise Decline
    kind = rewrite.type(x).dtype
    lowest = -np.inf if kind.kind == "f" else np.iinfo(str(kind)).min
    rank = len(window.kernel)
    widths = rewrite.ints(0, 0, *window.pads[:rank], 0, 0, *window.pads[rank:])
    padded = rewrite.op("Pad", x, widths, rewrite.constant(np.array(lowest, kind)))
    places = _places(shape[2:], window, bool(node.get_int("storage_order", 0)))
    best = at = ""
    for _, place in window.taps(wanted[2:]):
        starts, stops, steps = ([getattr(s, key) for s in place[1:]] for key in ("start", "stop", "step"))
        axes = rewrite.ints(*range(2, rank + 2))
        value = rewrite.op("Slice", padded, rewrite.ints(*starts), rewrite.ints(*stops), axes, rewrite.ints(*steps))
        here = rewrite.constant(places[place][None, None])
        if best:
            higher = rewrite.op("Greater", value, best)
            at = rewrite.op("Where", higher, here, at)
            best = rewrite.op("Where", higher, value, best)
        else:
            best, at = value, rewrite.op("Expand", here, rewrite.ints(*wanted))
    planes = np.arange(shape[0] * shape[1], dtype=np.int64) * int(np.prod(shape[2:]))
    offset = rewrite.constant(planes.reshape(shape[0], shape[1], *(1,) * rank))
    rewrite.finish(best, rewrite.op("Add", at, offset))


def _window(rewrite: Rewrite, size: Sequence[int], wanted: Sequence[int]) -> Window:
    """The window with pads that give `wanted` positions, whatever way the node states them."""
    node = rewrite.node
    kernel = node.get_ints("kernel_shape")
    rank = len(kernel)
    strides, dilations = (node.get_ints(key, (1,) * rank) for key in ("strides", "dilations"))
    pads = list(node.get_ints("pads", (0,) * 2 * rank))
    axes = zip(size, wanted, kernel, strides, dilations, strict=True)
    needed = [(w - 1) * s + (k - 1) * d + 1 - n for n, w, k, s, d in axes]
    if node.get_str("auto_pad", "NOTSET").startswith("SAME"):
        lower = node.get_str("auto_pad", "NOTSET") == "SAME_LOWER"
        pads[:rank] = [(max(n, 0) + lower) // 2 for n in needed]
    # Past the end, only what the last window reaches counts (ceil_mode asks for more, floor for less).
    pads[rank:] = [max(n - p, 0) for n, p in zip(needed, pads[:rank], strict=True)]
    return Window(kernel, strides, tuple(pads), dilations)


def _places(size: Sequence[int], window: Window, by_column: bool) -> Numbers:
    """The position in a plane of every element of the padded plane (of padding: the nearest element's)."""
    order = np.arange(int(np.prod(size)), dtype=np.int64)
    plane = order.reshape(tuple(size)[::-1]).T if by_column else order.reshape(tuple(size))
    rank = len(size)
    widths = [(window.pads[i], window.pads[i + rank]) for i in range(rank)]
    return np.pad(plane, widths, mode="edge")


def max_unpool(rewrite: Rewrite) -> None:
    """Values written to their places among zeros; a larger output shape adds zeros at the end of each axis."""
    node, (x, places) = rewrite.node, rewrite.node.inputs[:2]
    shape, asked = rewrite.dims(x), rewrite.value(2)
    kernel = node.get_ints("kernel_shape")
    rank = len(kernel)
    strides, pads = node.get_ints("strides", (1,) * rank), node.get_ints("pads", (0,) * 2 * rank)
    if rewrite.input(2) and asked is None:
        raise Decline
    spatial = [(shape[i + 2] - 1) * strides[i] - pads[i] - pads[i + rank] + kernel[i] for i in range(rank)]
    own = (*shape[:2], *spatial)
    zeros = rewrite.constant(np.zeros(int(np.prod(own)), rewrite.type(x).dtype))
    written = rewrite.op("ScatterElements", zeros, rewrite.reshape(places, -1), rewrite.reshape(x, -1), axis=0)
    result = rewrite.reshape(written, *own)
    if asked is not None:
        beyond = [int(n) - m for n, m in zip(asked.astype(np.int64), own, strict=True)]
        if min(beyond) < 0:
            raise Decline
        result = rewrite.op("Pad", result, rewrite.ints(*(0,) * len(own), *beyond))
    rewrite.finish(result)


def deform_conv(rewrite: Rewrite) -> None:
    """Every tap sampled where its offset says (linear, zeros outside), then one product with the weights."""
    node, (x, w, offset) = rewrite.node, rewrite.node.inputs[:3]
    shape, (outputs, depth, *kernel) = rewrite.dims(x), rewrite.dims(w)
    if len(shape) != 4 or min(shape[2:]) < 2:
        raise Decline
    batch, channels, *size = shape
    rows, columns = rewrite.dims(offset)[2:]
    groups, regions, taps = node.get_int("group", 1), node.get_int("offset_group", 1), kernel[0] * kernel[1]
    grid = _displaced(rewrite, size, kernel, (batch * regions, rows, columns))
    apart = rewrite.reshape(x, batch * regions, channels // regions, *size)
    sampled = rewrite.op("GridSample", apart, grid, mode="linear", padding_mode="zeros", align_corners=1)
    found = rewrite.reshape(sampled, batch, regions, channels // regions, taps, rows * columns)
    if rewrite.input(4):
        found = rewrite.op("Mul", found, rewrite.reshape(rewrite.input(4), batch, regions, 1, taps, rows * columns))
    blocks = rewrite.reshape(found, batch, groups, depth * taps, rows * columns)
    product = rewrite.op("MatMul", rewrite.reshape(w, 1, groups, outputs // groups, depth * taps), blocks)
    result = rewrite.reshape(product, batch, outputs, rows, columns)
    if rewrite.input(3):
        result = rewrite.op("Add", result, rewrite.reshape(rewrite.input(3), 1, outputs, 1, 1))
    rewrite.finish(result)


def _displaced(rewrite: Rewrite, size: Sequence[int], kernel: Sequence[int], dims: tuple[int, int, int]) -> str:
    """Sampling positions [planes, taps * rows, columns, (x, y)] in -1..1, from offsets [N, regions * taps * 2, ...]."""
    node, (planes, rows, columns) = rewrite.node, dims
    strides, dilations, pads = (
        node.get_ints(key, (d,) * n) for key, d, n in (("strides", 1, 2), ("dilations", 1, 2), ("pads", 0, 4))
    )
    taps = kernel[0] * kernel[1]
    kind = rewrite.type(node.inputs[0]).dtype
    down, across = np.meshgrid(*(np.arange(k) * d for k, d in zip(kernel, dilations, strict=True)), indexing="ij")
    start = [np.arange(n) * s - p for n, s, p in zip((rows, columns), strides, pads, strict=False)]
    lines = np.broadcast_to(down.reshape(-1, 1, 1) + start[0].reshape(1, -1, 1), (taps, rows, columns))
    places = np.broadcast_to(across.reshape(-1, 1, 1) + start[1].reshape(1, 1, -1), (taps, rows, columns))
    base = np.stack([lines, places], axis=1)[None]
    moved = rewrite.op(
        "Add", rewrite.reshape(node.inputs[2], planes, taps, 2, rows, columns), rewrite.constant(base.astype(kind))
    )
    factor = np.array([2 / (size[0] - 1), 2 / (size[1] - 1)]).reshape(1, 1, 2, 1, 1).astype(kind)
    scaled = rewrite.op("Sub", rewrite.op("Mul", moved, rewrite.constant(factor)), rewrite.number(1, kind))
    turned = rewrite.op("Transpose", scaled, perm=(0, 1, 3, 4, 2))
    swapped = rewrite.op("Gather", turned, rewrite.ints(1, 0), axis=4)
    return rewrite.reshape(swapped, planes, taps * rows, columns, 2)
