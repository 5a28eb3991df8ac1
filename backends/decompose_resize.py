"""Resize in any of ONNX's modes: along each axis, a product with the constant matrix of its weights [out, in].

Nearest takes elements by constant positions instead. Only what code generation lacks comes here (antialiasing, cubic,
crops, odd axes and ratios): plain nearest and linear resizing of images is left alone. Formulas: ONNX's specification.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor

import numpy as np

from graphc.backends.arithmetic import Numbers
from graphc.backends.decompose_rewrite import Decline, Rewrite

PLAIN = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: its lengths, the scale, and the part of the input that a crop keeps (0 to 1)."""

    given: int
    wanted: int
    scale: float
    start: float = 0.0
    end: float = 1.0


def resize(rewrite: Rewrite) -> None:
    """Axis after axis; a crop that reaches outside is filled with the extrapolation value."""
    node = rewrite.node
    x, wanted = node.inputs[0], rewrite.dims(node.outputs[0])
    mode = node.get_str("coordinate_transformation_mode", "half_pixel")
    axes = _axes(rewrite, wanted)
    if _plain(rewrite, mode, axes):
        raise Decline
    outside = np.zeros(wanted, bool)
    current, kind = x, rewrite.type(x).dtype
    nearest = node.get_str("mode", "nearest") == "nearest"
    if kind.kind != "f" and not nearest:
        raise Decline
    for i, axis in axes.items():
        places = positions(axis, mode)
        if mode == "tf_crop_and_resize":
            beyond = (places < 0) | (places > axis.given - 1)
            outside |= beyond.reshape([-1 if k == i else 1 for k in range(len(wanted))])
        elif axis.given == axis.wanted and np.allclose(places, np.arange(axis.wanted)):
            continue
        if nearest:
            current = rewrite.op("Gather", current, rewrite.constant(_nearest(rewrite, axis, places)), axis=i)
        else:
            current = _along(rewrite, current, i, len(wanted), _matrix(rewrite, axis, places).astype(kind))
    if outside.any():
        filler = rewrite.number(node.get_float("extrapolation_value", 0.0), kind)
        current = rewrite.op("Where", rewrite.constant(outside), filler, current)
    rewrite.finish(current)


def _plain(rewrite: Rewrite, mode: str, axes: Mapping[int, Axis]) -> bool:
    """Whether code generation has this kind: two axes of images, linear, or nearest to whole multiples."""
    node, shape, wanted = rewrite.node, rewrite.dims(rewrite.node.inputs[0]), rewrite.dims(rewrite.node.outputs[0])
    special, nearest = ("antialias", "exclude_outside"), node.get_str("mode", "nearest") == "nearest"
    return (
        len(shape) == 4 and shape[:2] == wanted[:2] and mode in PLAIN and node.get_str("mode", "nearest") != "cubic"
        and not any(node.get_int(key, 0) for key in special) and "axes" not in node.attributes
        and node.get_str("keep_aspect_ratio_policy", "stretch") == "stretch"
        and all(axis.wanted == axis.scale * axis.given for axis in axes.values())
        and (mode != "align_corners" or min(wanted[2:]) > 1)
        and not (nearest and any(axis.wanted % axis.given for axis in axes.values()))
    )  # fmt: skip


def _axes(rewrite: Rewrite, wanted: Sequence[int]) -> dict[int, Axis]:
    node, shape = rewrite.node, rewrite.dims(rewrite.node.inputs[0])
    chosen = [i % len(shape) for i in node.get_ints("axes", tuple(range(len(shape))))]
    roi, scales, sizes = (rewrite.value(i) for i in (1, 2, 3))
    if roi is None and node.get_str("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise Decline
    found = {}
    for k, i in enumerate(chosen):
        if scales is not None and scales.size:
            scale = float(scales.astype(np.float64)[k])
        elif sizes is not None:
            scale = _scale(node.get_str("keep_aspect_ratio_policy", "stretch"), shape, chosen, sizes, k)
        else:
            raise Decline
        ends = (0.0, 1.0)
        if roi is not None and roi.size:
            ends = float(roi.astype(np.float64)[k]), float(roi.astype(np.float64)[k + len(chosen)])
        found[i] = Axis(shape[i], wanted[i], scale, *ends)
    return found


def _scale(policy: str, shape: Sequence[int], chosen: Sequence[int], sizes: Numbers, k: int) -> float:
    ratios = [int(n) / shape[i] for n, i in zip(sizes, chosen, strict=True)]
    if policy == "stretch":
        return ratios[k]
    return min(ratios) if policy == "not_larger" else max(ratios)


def positions(axis: Axis, mode: str) -> Numbers:
    """Where in the input each output lies."""
    out, length = np.arange(axis.wanted, dtype=np.float64), axis.scale * axis.given
    half = (out + 0.5) / axis.scale - 0.5
    first, last = axis.start * (axis.given - 1), axis.end * (axis.given - 1)
    found = {
        "half_pixel": half,
        "half_pixel_symmetric": axis.given / 2 * (1 - axis.wanted / length) + half,
        "pytorch_half_pixel": half if axis.wanted > 1 else np.full(1, -0.5),
        "asymmetric": out / axis.scale,
        "align_corners": out * (axis.given - 1) / (length - 1) if length != 1 else np.zeros(axis.wanted),
        "tf_crop_and_resize": np.linspace(first, last, axis.wanted)
        if axis.wanted > 1
        else np.full(1, (first + last) / 2),
    }
    return np.asarray(found[mode])


def _matrix(rewrite: Rewrite, axis: Axis, places: Numbers) -> Numbers:
    """Weights [out, in]; elements past the ends stand for the last one, or for nothing (`exclude_outside`)."""
    node, mode = rewrite.node, rewrite.node.get_str("mode", "nearest")
    matrix = np.zeros((axis.wanted, axis.given))
    for row, place in zip(matrix, places, strict=True):
        narrow = min(1.0, axis.scale) if node.get_int("antialias", 0) else 1.0
        taps = _taps(place, mode, narrow, node.get_float("cubic_coeff_a", -0.75))
        inside = {i: w for i, w in taps.items() if 0 <= i < axis.given}
        if node.get_int("exclude_outside", 0):
            taps = inside
        total = sum(taps.values())
        for i, weight in taps.items():
            row[min(max(i, 0), axis.given - 1)] += weight / total
    return matrix


def _nearest(rewrite: Rewrite, axis: Axis, places: Numbers) -> Numbers:
    """The input index that each output takes."""
    mode = rewrite.node.get_str("nearest_mode", "round_prefer_floor")
    rounded = {
        "floor": np.floor(places),
        "ceil": np.ceil(places),
        "round_prefer_floor": np.ceil(places - 0.5),
        "round_prefer_ceil": np.floor(places + 0.5),
    }
    return np.clip(rounded[mode], 0, axis.given - 1).astype(np.int64)


def _taps(place: float, mode: str, narrow: float, a: float) -> dict[int, float]:
    """Input index -> weight of the linear or cubic kernel, widened by 1 / narrow against aliasing."""
    reach = (1.0 if mode == "linear" else 2.0) / narrow
    kernel = _linear if mode == "linear" else _cubic
    found = {i: kernel(abs(i - place) * narrow, a) for i in range(floor(place - reach) + 1, ceil(place + reach))}
    return {i: w for i, w in found.items() if w} or {round(place): 1.0}


def _linear(distance: float, _: float) -> float:
    return max(0.0, 1.0 - distance)


def _cubic(distance: float, a: float) -> float:
    if distance < 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * (distance**3 - 5 * distance**2 + 8 * distance - 4) if distance < 2 else 0.0


def _along(rewrite: Rewrite, x: str, axis: int, rank: int, matrix: Numbers) -> str:
    """The product with `matrix` along one axis."""
    if axis == rank - 1:
        return rewrite.op("MatMul", x, rewrite.constant(matrix.T))
    if axis == rank - 2:
        return rewrite.op("MatMul", rewrite.constant(matrix), x)
    order = tuple(rank - 1 if i == axis else axis if i == rank - 1 else i for i in range(rank))
    turned = rewrite.op("Transpose", x, perm=order)
    return rewrite.op("Transpose", rewrite.op("MatMul", turned, rewrite.constant(matrix.T)), perm=order)
