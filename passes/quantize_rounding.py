"""From constant weights to integers: which grid (`weight_range`), and which of its points (`rounding`).

Weights are rows [channels, depth] that multiply inputs X; with the Gram matrix G = X^T X the squared error at the
layer's output, |X (W' - W)^T|^2 = trace((W' - W) G (W' - W)^T), is known without data, and that is what rounding makes
small. Rows of grouped convolutions meet one G per group, in order.

Weights of exactly 0, such as pruned ones, stay 0.

Grids:
- minmax: from end to end.
- mse: ends pulled in to where sum (w' - w)^2 is smallest, of 40 shares from 1 down to 0.5.
- output: as mse, but smallest is the error at the layer's output that the weights of one scale make: J. Lin et al.,
  "AWQ" (2024), its search for clipping, with each scale's block of G instead of samples. Needs calibration data.
- hqq: half-quadratic quantization (H. Badri, A. Shaji, 2023): splits off outliers e = shrink_p(w - w'), then fits the
  grid to w - e in closed form, in turns. p = 0.7, 20 turns as in the paper. The paper moves the zero point alone, which
  in ONNX is an integer: here scale and zero point are fitted together (symmetric grids: the scale), and the turn with
  the smallest sum |w - w'|^p stays.

Points:
- nearest: of each weight alone.
- gptq: E. Frantar et al., "GPTQ" (2023), algorithm 1: weights one column after another, each column's error made up for
  by those that follow; G damped by 1 % of its mean diagonal. Columns of large G_ii go first; scales are fixed before.
- adaround: M. Nagel et al., "Up or Down?" (2020), eq. 21-24: up or down for all weights of a layer together, relaxed to
  h(V) in 0..1 and annealed. The loss is the exact quadratic form of G instead of samples of it.
- best: nearest, or gptq with or without bias correction, whichever changes the model's outputs least; quantize_best.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from graphc.passes.quantize_schemes import (
    SMALLEST_SCALE,
    Integers,
    Parameters,
    Scheme,
    dequantize,
    quantize,
    weight_parameters,
)

Doubles = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
WeightRange = Literal["minmax", "mse", "output", "hqq"]
Rounding = Literal["nearest", "gptq", "adaround", "best"]

SHARES = np.linspace(1.0, 0.5, 40)
TURNS, NORM = 20, 0.7
DAMPING = 0.01
STEPS, RATE, PENALTY, WARM_UP = 600, 0.03, 5.0, 0.2
ZETA, GAMMA = 1.1, -0.1


@dataclass(frozen=True, slots=True)
class Method:
    """How weights become integers."""

    weight_range: WeightRange = "minmax"
    rounding: Rounding = "nearest"

    def apply(
        self, rows: Doubles, scheme: Scheme, least: Doubles | float = 0.0, gram: Doubles | None = None
    ) -> tuple[Integers, Parameters]:
        """Weights [channels, depth] as integers of `scheme`, with scales of `least` up, and how to read them back.

        `gram` [groups, depth, depth] is what gptq and adaround need; without it they round to nearest.
        """
        parameters = weight_parameters(rows, scheme, least)
        if self.weight_range == "mse" or (self.weight_range == "output" and gram is None):
            parameters = _narrowed(parameters, least, lambda tried: _cost(rows, tried, 2.0))
        elif self.weight_range == "output" and gram is not None:
            parameters = _narrowed(parameters, least, lambda tried: _output_cost(rows, tried, gram))
        elif self.weight_range == "hqq":
            parameters = _half_quadratic(rows, parameters, least)
        if self.rounding == "nearest" or gram is None:
            return quantize(rows, parameters), parameters
        layer = _Layer.of(rows, parameters, gram)
        points = gptq(layer) if self.rounding == "gptq" else adaround(layer)
        return points.reshape(rows.shape).astype(np.int32).astype(parameters.format.dtype), parameters

    @property
    def needs_gram(self) -> bool:
        return self.rounding != "nearest" or self.weight_range == "output"


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights [groups, channels, depth] in steps of their grid, zero point included; `scale` of each of them; G; which
    of them are 0."""

    steps: Doubles
    scale: Doubles
    gram: Doubles
    zero: Mask
    low: int
    high: int

    @classmethod
    def of(cls, rows: Doubles, parameters: Parameters, gram: Doubles) -> "_Layer":
        scale, zero_point = parameters.spread(rows.shape)
        shape = (len(gram), len(rows) // len(gram), rows.shape[1])
        steps = rows / scale.astype(np.float64) + zero_point
        wide = np.broadcast_to(scale.astype(np.float64), rows.shape)
        form, zero = parameters.format, (rows == 0).reshape(shape)
        return cls(steps.reshape(shape), wide.reshape(shape), gram, zero, form.low, form.high)

    def error(self, points: Doubles) -> float:
        """The squared error at the layer's output with these integers."""
        change = (points - self.steps) * self.scale
        return float(np.einsum("gnk,gnk->", change @ self.gram, change))

    def nearest(self) -> Doubles:
        return np.clip(np.rint(self.steps), self.low, self.high)


def compensated(values: Doubles, gram: Doubles, nearest: Callable[[Doubles, int], Doubles]) -> Doubles:
    """GPTQ's loop over weights [channels, depth] with one Gram matrix: what `nearest(column, index)` makes of each
    column, after the errors of those before it were made up for. Unchanged where the Gram matrix is zero.
    """
    depth, diagonal = values.shape[1], np.arange(values.shape[1])
    mean = gram[diagonal, diagonal].mean()
    if mean == 0:
        return values
    damped = gram.copy()
    damped[diagonal, diagonal] += DAMPING * mean
    order = np.argsort(-damped[diagonal, diagonal], kind="stable")
    factor = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    left, found = values[:, order].copy(), np.empty_like(values)
    for column in range(depth):
        rounded = nearest(left[:, column], int(order[column]))
        found[:, order[column]] = rounded
        error = (left[:, column] - rounded) / factor[column, column]
        left[:, column + 1 :] -= np.outer(error, factor[column, column + 1 :])
    return found


def gptq(layer: _Layer) -> Doubles:
    """Integers [groups, channels, depth], column by column."""
    found = layer.nearest()
    for group, (steps, scale) in enumerate(zip(layer.steps, layer.scale, strict=True)):
        points, moving = found[group], ~layer.zero[group]

        def nearest(
            column: Doubles, index: int, scale: Doubles = scale, points: Doubles = points, moving: Mask = moving
        ) -> Doubles:  # the zero points' part is the same on both sides
            rounds = np.clip(np.rint(column / scale[:, index]), layer.low, layer.high)
            np.copyto(points[:, index], rounds, where=moving[:, index])
            rounded: Doubles = points[:, index] * scale[:, index]
            return rounded

        compensated(steps * scale, layer.gram[group], nearest)
    return found if layer.error(found) < layer.error(layer.nearest()) else layer.nearest()


def adaround(layer: _Layer) -> Doubles:
    """Integers [groups, channels, depth]: each weight rounded down or up."""
    held, nearest = layer.zero, layer.nearest()
    base = np.floor(layer.steps)
    rest = layer.steps - base
    start = max(layer.error(layer.nearest()), 1e-300)
    weight = layer.steps.size / start  # the error of rounding to nearest counts as 1 per weight
    v = -np.log((ZETA - GAMMA) / (rest - GAMMA) - 1)
    first, second = np.zeros_like(v), np.zeros_like(v)
    for step in range(1, STEPS + 1):
        sigmoid = 1 / (1 + np.exp(-v))
        soft = np.clip(sigmoid * (ZETA - GAMMA) + GAMMA, 0, 1)
        points = np.where(held, nearest, np.clip(base + soft, layer.low, layer.high))
        slope = 2 * weight * layer.scale * (((points - layer.steps) * layer.scale) @ layer.gram)
        slope += _annealing(soft, step / STEPS)
        slope *= (ZETA - GAMMA) * sigmoid * (1 - sigmoid) * ((soft > 0) & (soft < 1))
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        v -= RATE * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    soft = np.clip((ZETA - GAMMA) / (1 + np.exp(-v)) + GAMMA, 0, 1)
    found = np.where(held, nearest, np.clip(base + (soft >= 0.5), layer.low, layer.high))
    return found if layer.error(found) < start else nearest


def _annealing(soft: Doubles, done: float) -> Doubles:
    """The slope of PENALTY * (1 - |2 h - 1|^beta): nothing at first, then beta from 20 down to 2 (eq. 24)."""
    if done < WARM_UP:
        return np.zeros_like(soft)
    beta = 2 + 18 * (1 + np.cos(np.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2
    centred = 2 * soft - 1
    slope: Doubles = -PENALTY * 2 * beta * np.sign(centred) * np.abs(centred) ** (beta - 1)
    return slope


def _narrowed(full: Parameters, least: Doubles | float, cost: Callable[[Parameters], Doubles]) -> Parameters:
    """The grid among those that `SHARES` make of `full` that costs least, each scale for itself."""
    best, lowest = full, cost(full)
    for share in SHARES[1:]:
        tried = _scaled(full, full.scale * np.float32(share), least)
        found = cost(tried)
        better = found < lowest
        best = replace(best, scale=np.where(better, tried.scale, best.scale))
        lowest = np.where(better, found, lowest)
    return best


def _output_cost(rows: Doubles, parameters: Parameters, gram: Doubles) -> Doubles:
    """The squared error at the layer's output that each scale's weights make by themselves, in the scales' shape."""
    change = (dequantize(quantize(rows, parameters), parameters) - rows).reshape(len(gram), -1, rows.shape[1])
    size = parameters.group or rows.shape[1]
    blocks = [slice(start, start + size) for start in range(0, rows.shape[1], size)]
    costs = [np.einsum("gnk,gnk->gn", change[..., b] @ gram[:, b, b], change[..., b]).ravel() for b in blocks]
    found = np.stack(costs, axis=1)
    return np.asarray(found.sum()) if parameters.axis is None else found[:, 0] if parameters.group is None else found


def _half_quadratic(rows: Doubles, full: Parameters, least: Doubles | float) -> Parameters:
    form, beta = full.format, 10.0
    symmetric = bool((full.zero_point.astype(np.int64) == form.middle).all())
    best, cost, now = full, _cost(rows, full, NORM), full
    for _ in range(TURNS):
        points = quantize(rows, now).astype(np.float64)
        apart = rows - dequantize(quantize(rows, now), now)
        size = np.abs(apart)
        outliers = np.sign(apart) * np.maximum(size - np.maximum(size, 1e-12) ** (NORM - 1) / beta, 0)
        if symmetric:
            centred = points - form.middle
            energy = _over(centred**2, full, np.sum)
            wanted = np.where(energy > 0, _over(centred * (rows - outliers), full, np.sum), 1) / np.maximum(energy, 1)
            now = _scaled(full, np.where(wanted > 0, wanted, full.scale).astype(np.float32), least)
        else:
            means = _over(points, full, np.mean), _over(rows - outliers, full, np.mean)
            moments = _over(points * (rows - outliers), full, np.mean), _over(points**2, full, np.mean)
            spread = moments[1] - means[0] ** 2
            slope = np.where(spread > 0, (moments[0] - means[0] * means[1]) / np.where(spread > 0, spread, 1), 0)
            now = _scaled(full, np.where(slope > 0, slope, full.scale).astype(np.float32), least)
            whole = np.clip(np.rint(means[0] - means[1] / now.scale), form.low, form.high).astype(np.int64)
            now = replace(now, zero_point=whole.astype(form.dtype))
        found = _cost(rows, now, NORM)
        better = found < cost
        kept = np.where(better, now.zero_point.astype(np.int64), best.zero_point.astype(np.int64))
        best = replace(best, scale=np.where(better, now.scale, best.scale), zero_point=kept.astype(form.dtype))
        cost, beta = np.where(better, found, cost), beta * 1.01
    return best


def _scaled(parameters: Parameters, scale: npt.NDArray[np.float32], least: Doubles | float) -> Parameters:
    """Other scales, not below what the bias needs. The place of zero stays at the same share of the range."""
    floor = np.maximum(np.asarray(least, np.float64), SMALLEST_SCALE)
    if parameters.axis is None:
        floor = floor.max()
    elif parameters.group is not None:
        floor = np.broadcast_to(floor, (len(scale),))[:, None]
    return replace(parameters, scale=np.maximum(scale, floor.astype(np.float32)))


def _cost(rows: Doubles, parameters: Parameters, power: float) -> Doubles:
    """sum |w - w'|^power over the weights that share a scale, in the scales' shape."""
    apart = np.abs(rows - dequantize(quantize(rows, parameters), parameters))
    return _over(apart**power, parameters, np.sum)


def _over(values: Doubles, parameters: Parameters, reduce: Callable[..., Doubles]) -> Doubles:
    """Reduce a figure per weight to one per scale."""
    if parameters.axis is None:
        return np.asarray(reduce(values))
    if parameters.group is None:
        return reduce(values, axis=1)
    starts = range(0, values.shape[1], parameters.group)
    return np.stack([reduce(values[:, start : start + parameters.group], axis=1) for start in starts], axis=1)
