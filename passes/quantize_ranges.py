"""From statistics to the range that an activation's integers cover: the methods that `calibrate` names.

- minmax: all that was seen. Nothing saturates; an outlier costs everyone else precision.
- average: the mean over feeds of the smallest and largest value (a cumulative moving average).
- percentile: cut an equal share of the values off both ends.
- mse: the range with the smallest mean squared error of rounding and saturating together.
- best: that of minmax, mse and entropy with which the model's outputs change least; quantize_best.py.
- entropy: the range whose rounded distribution loses the least information, D(P || Q); S. Migacz, "8-bit Inference with
  TensorRT" (2017), here for ranges that need not be symmetric.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from graphc.ir.graph import Array
from graphc.passes.protocol import AverageRange, Histogram, Range, Statistic
from graphc.passes.quantize_schemes import Format, Parameters, affine, dequantize, quantize

Method = Literal["minmax", "average", "percentile", "mse", "entropy", "best"]
Span = tuple[float, float]
Floats = npt.NDArray[np.float64]

STATISTICS: Mapping[str, Statistic] = {
    "minmax": Range(),
    "average": AverageRange(),
    "percentile": Histogram(),
    "mse": Histogram(),
    "entropy": Histogram(),
    "best": Histogram(),
}
"""What each method needs to be observed."""

_STEPS = 32
"""How finely the search divides what is left of a range, in each of its rounds."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How to choose: the method, its `percentile` where it has one, and the integers that the range is for."""

    method: Method
    percentile: float | None
    form: Format
    symmetric: bool


def choose(arrays: Mapping[str, Array], choice: Choice) -> Span:
    """The range to cover, given the arrays of the method's statistic; it lies within the values seen."""
    seen = float(arrays["low"]), float(arrays["high"])
    if choice.method in ("minmax", "average"):
        return seen
    places, weights = _occupied(arrays)
    if choice.percentile is not None:
        return _percentile(places, weights, choice.percentile, seen)
    cost = _squared_error if choice.method == "mse" else _divergence
    return _search(seen, lambda span: cost(places, weights, affine(*span, choice.form, choice.symmetric, "range")))


def _occupied(arrays: Mapping[str, Array]) -> tuple[Floats, Floats]:
    """Centres of the bins that hold anything (a bin of zeros alone is told apart by no one), and their counts."""
    counts = arrays["counts"]
    filled = np.flatnonzero(counts)
    width, low, high = (float(arrays[key]) for key in ("width", "low", "high"))
    places = (filled - len(counts) // 2 + 0.5) * width
    return np.clip(places, low, high), counts[filled].astype(np.float64)


def _percentile(places: Floats, weights: Floats, percentile: float, seen: Span) -> Span:
    """Bounds that leave out at most (100 - percentile) / 2 per cent of the values at each end."""
    below = np.cumsum(weights) / weights.sum()
    tail = (1 - percentile / 100) / 2
    low = places[np.searchsorted(below, tail, "right").clip(0, len(places) - 1)] if tail else seen[0]
    high = places[np.searchsorted(below, 1 - tail, "left").clip(0, len(places) - 1)] if tail else seen[1]
    return float(low), float(high)


def _search(seen: Span, cost: Callable[[Span], float]) -> Span:
    """The cheapest range that holds zero: both ends together first, then each end alone; the widest among equals."""
    low, high = min(seen[0], 0.0), max(seen[1], 0.0)
    shares = np.arange(_STEPS, 0, -1) / _STEPS
    best = min(((low * s, high * s) for s in shares), key=cost)
    for _ in range(2):
        best = min(((low * s, best[1]) for s in _around(best[0] / low if low else 0.0)), key=cost)
        best = min(((best[0], high * s) for s in _around(best[1] / high if high else 0.0)), key=cost)
    return best


def _around(share: float) -> list[float]:
    """Shares of the full range to try beside `share`: the widest first."""
    if share == 0.0:
        return [0.0]
    coarse = np.arange(_STEPS, 0, -1) / _STEPS
    fine = share + np.arange(4, -5, -1) / (4 * _STEPS)
    return sorted({float(s) for s in (*coarse, *fine) if 0 < s <= 1}, reverse=True)


def _squared_error(places: Floats, weights: Floats, parameters: Parameters) -> float:
    rounded = dequantize(quantize(places, parameters), parameters)
    return float(weights @ (rounded - places) ** 2)


def _divergence(places: Floats, weights: Floats, parameters: Parameters) -> float:
    """D(P || Q): P counts saturated values at the ends; Q spreads the count of each integer evenly over its bins.

    Bins beyond the range have no mass in Q before saturation, so what saturates makes Q's ends too light: that is the
    price of a narrow range. Bins that hold zero are left out: zero is exact on every grid.
    """
    zero = np.argmin(np.abs(places))
    kept = np.arange(len(places)) != zero if len(places) > 1 else np.ones(1, bool)
    places, weights = places[kept], weights[kept]
    form = parameters.format
    integers = quantize(places, parameters).astype(np.int64) - form.low
    ends = dequantize(np.array([form.low, form.high], form.dtype), parameters).astype(np.float64)
    inside = (places >= ends[0] - parameters.scale / 2) & (places <= ends[1] + parameters.scale / 2)
    if not inside.any():
        return float("inf")
    reference = np.where(inside, weights, 0.0)
    first, last = np.flatnonzero(inside)[[0, -1]]
    reference[first] += weights[:first].sum()
    reference[last] += weights[last + 1 :].sum()
    levels = form.high - form.low + 1
    mass = np.bincount(integers[inside], weights[inside], levels)
    bins = np.bincount(integers[inside], minlength=levels)
    model = mass[integers[inside]] / bins[integers[inside]]
    p, q = reference[inside] / reference.sum(), model / model.sum()
    return float((p * np.log(p / q)).sum())
