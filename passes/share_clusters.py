"""Centers that stand for many numbers: k-means with a weight per point, on a line (exact where asked) and for vectors.

Minimizes sum_i h_i |x_i - c(i)|^2 over `count` centers (S. Lloyd, "Least squares quantization in PCM", 1982). On a line
clusters are runs of sorted points, so that prefix sums of h, h x and h x^2 make a turn cost as much as finding the
borders between runs. More than MOST points are first gathered in fine bins; then memory does not grow with them.

Starts, as S. Han et al., "Deep Compression" (2016), section 3.1, compares them: `linear` (even steps from end to end),
`density` (equal shares of the points' weight), `kmeans++` (D. Arthur, S. Vassilvitskii, 2007; seeded); and `optimal`:
the best clusters of BINS bins by dynamic programming (H. Wang, M. Song, "Ckmeans.1d.dp", 2011), then Lloyd's turns.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]
Start = Literal["linear", "density", "kmeans++", "optimal"]

MOST = 1 << 22
"""Points of a line that are kept one by one; more are gathered in FINE bins between their ends."""
FINE = 1 << 16
BINS = 512
TURNS = 200
CHUNK = 1 << 20
VECTORS, VECTOR_TURNS = 1 << 15, 25
"""Vectors that centers are fitted to: an even sample where there are more."""


@dataclass(frozen=True, slots=True)
class Line:
    """Sorted points x [n] with their weights summed up: `mass`, `moment` and `energy` are prefix sums of h, h x, h x^2
    with 0 in front, [n + 1]."""

    x: Doubles
    mass: Doubles
    moment: Doubles
    energy: Doubles

    @classmethod
    def of(cls, values: Floats, weights: Floats | None) -> "Line":
        """Points from an array of finite numbers, with weights >= 0 (broadcast to it) that are not all 0."""
        if values.size > MOST:
            x, h = _binned(values, weights)
        else:
            order = np.argsort(values, axis=None, kind="stable")
            x = values.reshape(-1)[order].astype(np.float64)
            h = np.ones(len(x))
            if weights is not None:
                h = np.broadcast_to(weights, values.shape).reshape(-1)[order].astype(np.float64)
        sums = (np.concatenate([[0.0], np.cumsum(part, dtype=np.float64)]) for part in (h, h * x, h * x * x))
        return cls(x, *sums)

    def means(self, borders: npt.NDArray[np.int64], otherwise: Doubles) -> Doubles:
        """The weighted mean of each run between `borders`; `otherwise` where a run has no weight."""
        mass, moment = np.diff(self.mass[borders]), np.diff(self.moment[borders])
        return np.where(mass > 0, moment / np.where(mass > 0, mass, 1), otherwise)

    def lloyd(self, centers: Doubles) -> Doubles:
        """Sorted centers after turns of assigning points to the nearest and taking means, until nothing moves."""
        for _ in range(TURNS):
            inner = np.searchsorted(self.x, (centers[1:] + centers[:-1]) / 2)
            moved = np.sort(self.means(np.concatenate([[0], inner, [len(self.x)]]), centers))
            if np.array_equal(moved, centers):
                break
            centers = moved
        return centers


def centers(values: Floats, weights: Floats | None, count: int, start: Start) -> Doubles:
    """At most `count` sorted centers for an array of numbers: fewer where it has fewer different ones."""
    line = Line.of(values, weights)
    distinct: Doubles = line.x[np.concatenate([[True], np.diff(line.x) > 0])]
    if len(distinct) <= count:
        return distinct
    first = {"linear": _linear, "density": _density, "kmeans++": _plus_plus, "optimal": _optimal}[start]
    return line.lloyd(np.sort(first(line, count)))


def nearest(values: Floats, sorted_centers: Doubles) -> npt.NDArray[np.uint8]:
    """The index of the nearest center for every number; at most 256 centers."""
    borders = ((sorted_centers[1:] + sorted_centers[:-1]) / 2).astype(values.dtype)
    found = np.empty(values.shape, np.uint8)
    flat, source = found.reshape(-1), values.reshape(-1)
    for part in _chunks(len(flat)):
        flat[part] = np.searchsorted(borders, source[part])
    return found


def vector_centers(vectors: Floats, weights: Floats | None, count: int, start: Start) -> Doubles:
    """Centers [count, D] for vectors [n, D] whose elements have weights [n, D].

    `kmeans++` draws the first ones; every other start takes them along the vectors' sums, evenly or by density.
    """
    taken = np.linspace(0, len(vectors) - 1, min(len(vectors), VECTORS)).astype(np.int64)
    x = vectors[taken].astype(np.float64)
    h = np.ones_like(x) if weights is None else np.maximum(weights[taken].astype(np.float64), 1e-12)
    found = _spread_vectors(x, count) if start == "kmeans++" else _along_sums(x, count, start)
    for _ in range(VECTOR_TURNS):
        codes = nearest_vectors(x, h, found)
        mass = np.zeros_like(found)
        moment = np.zeros_like(found)
        np.add.at(mass, codes, h)
        np.add.at(moment, codes, h * x)
        moved = np.where(mass > 0, moment / np.where(mass > 0, mass, 1), found)
        if np.array_equal(moved, found):
            break
        found = moved
    return found


def nearest_vectors(vectors: Floats, weights: Floats | None, found: Doubles) -> npt.NDArray[np.uint8]:
    """The index of the center with the smallest sum_d h_d (x_d - c_d)^2 for every vector [n, D]."""
    codes = np.empty(len(vectors), np.uint8)
    for part in _chunks(len(vectors), max(CHUNK // len(found), 1)):
        x = vectors[part].astype(np.float64)
        h = np.ones_like(x) if weights is None else weights[part].astype(np.float64)
        codes[part] = (h @ np.square(found).T - 2 * (h * x) @ found.T).argmin(axis=1)
    return codes


def _binned(values: Floats, weights: Floats | None) -> tuple[Doubles, Doubles]:
    """(weighted means, weights) of the bins that hold something, chunk by chunk."""
    flat = values.reshape(-1)
    h = None if weights is None else np.broadcast_to(weights, values.shape)
    low, high = float(flat.min()), float(flat.max())
    step = (high - low) / (FINE - 1) or 1.0
    mass, moment = np.zeros(FINE), np.zeros(FINE)
    for part in _chunks(len(flat)):
        x = flat[part].astype(np.float64)
        own = np.ones(len(x)) if h is None else h.reshape(-1)[part].astype(np.float64)
        index = ((x - low) / step).astype(np.int64)
        mass += np.bincount(index, own, FINE)
        moment += np.bincount(index, own * x, FINE)
    held = mass > 0
    return moment[held] / mass[held], mass[held]


def _chunks(length: int, size: int = CHUNK) -> Iterator[slice]:
    return (slice(at, at + size) for at in range(0, length, size))


def _linear(line: Line, count: int) -> Doubles:
    return np.linspace(line.x[0], line.x[-1], count)


def _density(line: Line, count: int) -> Doubles:
    shares = (np.arange(count) + 0.5) / count * line.mass[-1]
    found: Doubles = line.x[np.minimum(np.searchsorted(line.mass[1:], shares), len(line.x) - 1)]
    return found


def _plus_plus(line: Line, count: int) -> Doubles:
    """Each next center is drawn with a probability of h times the squared distance to those before."""
    rng, h = np.random.default_rng(0), np.diff(line.mass)
    found = [line.x[np.searchsorted(line.mass[1:], rng.random() * line.mass[-1])]]
    distance = np.square(line.x - found[0])
    for _ in range(count - 1):
        sums = np.cumsum(h * distance)
        found.append(line.x[min(int(np.searchsorted(sums, rng.random() * sums[-1], "right")), len(line.x) - 1)])
        distance = np.minimum(distance, np.square(line.x - found[-1]))
    return np.array(found)


def _optimal(line: Line, count: int) -> Doubles:
    """least[j] = min_i least[i] + error(bins i..j), one more cluster at a time; bins by value and by weight alike."""
    half = max(BINS, 2 * count) // 2
    values, shares = np.linspace(line.x[0], line.x[-1], half), np.linspace(0, line.mass[-1], half)
    cuts = np.concatenate([np.searchsorted(line.x, values), np.searchsorted(line.mass, shares), [0, len(line.x)]])
    cuts = np.unique(np.clip(cuts, 0, len(line.x)))
    mass, moment, energy = line.mass[cuts], line.moment[cuts], line.energy[cuts]
    inside = mass[None] - mass[:, None]  # [first cut, last cut]
    mean = (moment[None] - moment[:, None]) / np.where(inside > 0, inside, 1)
    error = energy[None] - energy[:, None] - mean * (moment[None] - moment[:, None])
    error[np.tril_indices(len(cuts), -1)] = np.inf
    least, choices = error[0], []
    for _ in range(count - 1):
        total = least[:, None] + error
        choices.append(total.argmin(axis=0))
        least = total[choices[-1], np.arange(len(cuts))]
    borders = [len(cuts) - 1]
    for choice in reversed(choices):
        borders.append(int(choice[borders[-1]]))
    runs = cuts[np.array([0, *borders[::-1]])]
    return line.means(runs, line.x[np.minimum(runs[1:], len(line.x) - 1)])


def _spread_vectors(x: Doubles, count: int) -> Doubles:
    rng = np.random.default_rng(0)
    found = [x[rng.integers(len(x))]]
    distance = np.square(x - found[0]).sum(axis=1)
    for _ in range(count - 1):
        sums = np.cumsum(distance)
        found.append(x[min(int(np.searchsorted(sums, rng.random() * sums[-1], "right")), len(x) - 1)])
        distance = np.minimum(distance, np.square(x - found[-1]).sum(axis=1))
    return np.array(found)


def _along_sums(x: Doubles, count: int, start: Start) -> Doubles:
    sums = x.sum(axis=1)
    order = np.argsort(sums, kind="stable")
    if start == "linear":
        places = np.searchsorted(sums[order], np.linspace(sums.min(), sums.max(), count))
    else:
        places = ((np.arange(count) + 0.5) / count * len(x)).astype(np.int64)
    return x[order[np.minimum(places, len(x) - 1)]]
