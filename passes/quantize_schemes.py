"""Number formats and the mathematics between floats and integers; nothing here knows of graphs.

    q = saturate(rint(x / scale) + zero_point)        x ~ (q - zero_point) * scale

as ONNX defines QuantizeLinear and DequantizeLinear (fp32 division, round half to even). Scales follow B. Jacob et al.,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (2018): the range always
holds zero, and zero is always exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

from graphc.errors import InputError
from graphc.ir.graph import Array

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.signedinteger | np.unsignedinteger]

SMALLEST_SCALE, LARGEST_SCALE = 2.0**-62, 2.0**62
"""Scales stay between these, so that the product of two (a bias' scale) is a normal fp32 number."""

BIAS_LIMIT = 2**30
"""The largest |bias| in steps: half of int32, the other half is left to the sum of products."""


@dataclass(frozen=True, slots=True)
class Format:
    """Integers low..high, stored as `dtype`."""

    name: str
    dtype: np.dtype[np.generic]
    low: int
    high: int

    @property
    def middle(self) -> int:
        """The integer that stands for zero where both signs get the same room."""
        return (self.low + self.high + 1) // 2


def _format(name: str, dtype: npt.DTypeLike) -> Format:
    bounds = ml_dtypes.iinfo(np.dtype(dtype))
    return Format(name, np.dtype(dtype), int(bounds.min), int(bounds.max))


FORMATS: Mapping[str, Format] = {
    "int16": _format("int16", np.int16),
    "int8": _format("int8", np.int8),
    "uint8": _format("uint8", np.uint8),
    "int4": _format("int4", ml_dtypes.int4),
    "uint4": _format("uint4", ml_dtypes.uint4),
    "int2": _format("int2", ml_dtypes.int2),
    "uint2": _format("uint2", ml_dtypes.uint2),
}
"""The integer formats a spec can name, as ONNX stores them; those of fewer than 8 bits are packed in a model's file."""

FLOATS: Mapping[str, np.dtype[np.generic]] = {
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}
"""The floating-point formats that weights can be stored in; a Cast makes float32 of them."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How constant weights, as a matrix [channels, depth], become integers of `format`.

    There is one scale for all of them, one for each row (`per_channel`), or one for each `group` elements of a row; the
    last group of a row is shorter where `group` does not divide its length. `symmetric` puts zero in the middle.
    """

    format: Format
    per_channel: bool = True
    symmetric: bool = True
    group: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Parameters:
    """How integers stand for floats.

    `scale` (fp32) and `zero_point` have shape [] or, along `axis`, [channels]; with `group`, the shape of the tensor
    but for `axis`, along which there is one of each for every `group` elements. As in ONNX's DequantizeLinear.
    """

    format: Format
    scale: npt.NDArray[np.float32]
    zero_point: Array
    axis: int | None = None
    group: int | None = None

    def spread(self, shape: Sequence[int]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Scale and zero point (as int64) shaped to broadcast against a tensor of `shape`."""
        zero_point = self.zero_point.astype(np.int64)
        if self.axis is None:
            return self.scale, zero_point
        axis, rank = self.axis % len(shape), len(shape)
        if self.group is not None:
            place = np.arange(shape[axis]) // self.group
            return self.scale.take(place, axis), zero_point.take(place, axis)
        ones = [-1 if i == axis else 1 for i in range(rank)]
        return self.scale.reshape(ones), zero_point.reshape(ones)


def affine(low: float, high: float, form: Format, symmetric: bool, subject: str) -> Parameters:
    """Parameters for values in low..high, one scale for all of them.

    The range is first extended to hold zero. `symmetric` gives both signs the same room, with the zero point in the
    middle of the format (at its lower end where an unsigned format meets values of one sign). A range of zeros only
    gets scale 1. Raises InputError, naming `subject`, for a range that is not finite or not a range.
    """
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise InputError(subject, f"has the range {low} to {high}, which cannot be quantized.", "Check the data.")
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric and (form.low < 0 or low < 0):
        steps = form.high - form.middle
        scale = _scale(max(-low, high) / steps, subject)
        return _parameters(form, scale, form.middle)
    scale = _scale((high - low) / (form.high - form.low), subject)
    zero_point = int(np.clip(np.rint(form.low - low / float(scale)), form.low, form.high))
    return _parameters(form, scale, zero_point)


def unit_interval(form: Format) -> Parameters:
    """Parameters for probabilities: scale 1/2^bits, zero at the lower end, as TFLite fixes it for Softmax."""
    return _parameters(form, np.float32(1.0 / (form.high - form.low + 1)), form.low)


def weight_parameters(rows: Floats, scheme: Scheme, least: Floats | float = 0.0) -> Parameters:
    """Parameters that cover constant weights [channels, depth] from end to end, with scales of `least` ([channels]) up.

    Where all that shares a scale is zero, it takes the largest scale among the others: any is exact there, and the bias
    keeps a fine step.
    """
    low, high = _ends(rows.astype(np.float64), scheme)
    form = scheme.format
    magnitude, steps = np.maximum(-low, high), float(form.high - form.middle)
    if not scheme.symmetric:
        magnitude, steps = high - low, float(form.high - form.low)
    substitute = float(magnitude.max(initial=0.0)) or steps
    wanted = np.where(magnitude > 0, magnitude, substitute) / steps
    floor = np.asarray(least, np.float64) if scheme.per_channel else np.max(least, initial=0.0)
    scale = np.clip(np.maximum(wanted, floor), SMALLEST_SCALE, LARGEST_SCALE).astype(np.float32)
    zero_point = np.full(scale.shape, form.middle)
    if not scheme.symmetric:
        zero_point = np.clip(np.rint(form.low - low / scale.astype(np.float64)), form.low, form.high).astype(np.int64)
    axis = None if not scheme.per_channel else 0 if scheme.group is None else 1
    return Parameters(form, scale, zero_point.astype(form.dtype), axis, scheme.group)


def _ends(rows: npt.NDArray[np.float64], scheme: Scheme) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The smallest and the largest of the weights that share a scale, zero included: shape [], [channels] or
    [channels, groups].
    """
    if not scheme.per_channel:
        return rows.min(initial=0.0), rows.max(initial=0.0)
    if scheme.group is None:
        return rows.min(1, initial=0.0), rows.max(1, initial=0.0)
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % scheme.group)))
    groups = padded.reshape(rows.shape[0], -1, scheme.group)
    return groups.min(2, initial=0.0), groups.max(2, initial=0.0)


def least_scales(bias: Floats, input_scale: float) -> npt.NDArray[np.float64]:
    """The smallest weight scales with which `bias` [channels], in steps of input scale * weight scale, fits int32.

    Weights so small beside their bias hardly matter; the bias does.
    """
    needed = (np.abs(bias.astype(np.float64)) / (float(input_scale) * BIAS_LIMIT)).astype(np.float32)
    return np.where(needed > 0, np.nextafter(needed, np.float32(np.inf)), 0.0)


def quantize(values: Floats, parameters: Parameters) -> Integers:
    """Integers of the format, exactly as ONNX QuantizeLinear rounds and saturates."""
    scale, zero_point = parameters.spread(values.shape)
    steps = np.rint(values.astype(np.float32) / scale).astype(np.float64) + zero_point
    form = parameters.format
    found: Integers = np.clip(steps, form.low, form.high).astype(np.int32).astype(form.dtype)
    return found


def dequantize(integers: Array, parameters: Parameters) -> npt.NDArray[np.float32]:
    """Floats that the integers stand for, exactly as ONNX DequantizeLinear computes them."""
    scale, zero_point = parameters.spread(integers.shape)
    found: npt.NDArray[np.float32] = (integers.astype(np.int64) - zero_point).astype(np.float32) * scale
    return found


def quantize_bias(bias: Floats, scale: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """A bias [channels] in steps of `scale` ([channels] or []): int32, zero point 0."""
    steps = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    limits = np.iinfo(np.int32)
    return np.clip(steps, limits.min, limits.max).astype(np.int32)


def _scale(wanted: float, subject: str) -> np.float32:
    """A scale as fp32, not under what `Parameters` allow; 1 for a range of zeros."""
    if wanted > LARGEST_SCALE:
        raise InputError(subject, f"has values so large that one step would be {wanted:g}.", "Check the data.")
    return np.float32(max(wanted, SMALLEST_SCALE)) if wanted > 0 else np.float32(1.0)


def _parameters(form: Format, scale: np.float32, zero_point: int) -> Parameters:
    return Parameters(form, np.asarray(scale, np.float32), np.asarray(zero_point, form.dtype))
