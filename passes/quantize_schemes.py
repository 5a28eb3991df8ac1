"""Number formats and the mathematics between floats and integers; nothing here knows of graphs.

    q = saturate(rint(x / scale) + zero_point)        x ~ (q - zero_point) * scale

as ONNX defines QuantizeLinear and DequantizeLinear (fp32 division, round half to even). Scales follow B. Jacob et al.,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (2018): the range always
holds zero, and zero is always exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass

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


FORMATS: Mapping[str, Format] = {
    "int8": Format("int8", np.dtype(np.int8), -128, 127),
    "uint8": Format("uint8", np.dtype(np.uint8), 0, 255),
}
"""The formats a spec can name."""


@dataclass(frozen=True, slots=True, eq=False)
class Parameters:
    """How integers stand for floats. `scale` (fp32) and `zero_point` have shape [] or, along `axis`, [channels]."""

    format: Format
    scale: npt.NDArray[np.float32]
    zero_point: Array
    axis: int | None = None

    def spread(self, rank: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Scale and zero point (as int64) shaped to broadcast against a tensor of `rank` dimensions."""
        if self.axis is None:
            return self.scale, self.zero_point.astype(np.int64)
        shape = [-1 if axis == self.axis % rank else 1 for axis in range(rank)]
        return self.scale.reshape(shape), self.zero_point.astype(np.int64).reshape(shape)


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


def symmetric_weights(weights: Floats, form: Format, axis: int | None) -> Parameters:
    """Parameters for constant weights: zero in the middle, the largest magnitude (of each channel) at the end.

    Channels of zeros take the largest scale among the others: any is exact for them, and their bias keeps a fine step.
    """
    magnitude = np.abs(weights.astype(np.float64))
    axes = None if axis is None else tuple(a for a in range(weights.ndim) if a != axis % weights.ndim)
    largest = np.asarray(magnitude.max(axis=axes, initial=0.0))
    steps = form.high - form.middle
    substitute = float(largest.max(initial=0.0)) or float(steps)
    scale = np.where(largest > 0, largest, substitute) / steps
    scale32 = np.clip(scale, SMALLEST_SCALE, LARGEST_SCALE).astype(np.float32)
    return Parameters(form, scale32, np.full(scale32.shape, form.middle, form.dtype), axis)


def fit_bias(parameters: Parameters, bias: Floats, input_scale: float) -> Parameters:
    """Weight scales raised where the bias, in steps of input scale * weight scale, would not fit int32.

    `bias` is [channels]. Weights so small beside their bias hardly matter; the bias does.
    """
    needed = np.abs(bias.astype(np.float64)) / (float(input_scale) * BIAS_LIMIT)
    if parameters.axis is None:
        needed = needed.max(initial=0.0)
    scale = np.maximum(parameters.scale.astype(np.float64), needed)
    if scale.shape != parameters.scale.shape:
        raise ValueError(f"bias of {bias.shape} beside scales of {parameters.scale.shape}")
    rounded = np.nextafter(scale.astype(np.float32), np.float32(np.inf))
    raised = np.where(scale > parameters.scale, rounded, parameters.scale)
    return Parameters(parameters.format, raised, parameters.zero_point, parameters.axis)


def quantize(values: Floats, parameters: Parameters) -> Integers:
    """Integers of the format, exactly as ONNX QuantizeLinear rounds and saturates."""
    scale, zero_point = parameters.spread(values.ndim)
    steps = np.rint(values.astype(np.float32) / scale).astype(np.float64) + zero_point
    form = parameters.format
    found: Integers = np.clip(steps, form.low, form.high).astype(form.dtype)
    return found


def dequantize(integers: Array, parameters: Parameters) -> npt.NDArray[np.float32]:
    """Floats that the integers stand for, exactly as ONNX DequantizeLinear computes them."""
    scale, zero_point = parameters.spread(integers.ndim)
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
