"""Calibration: one streamed run over the data that collects what the passes of a step want to know.

Memory does not grow with the number of samples: a collector keeps a few numbers per observed value. The same data in
the same order gives the same statistics, bit for bit. What was found is plain arrays, so that it can be cached.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from graphc.errors import InputError
from graphc.execute import Session
from graphc.ir.graph import Array, Graph
from graphc.passes.protocol import AverageRange, Histogram, Observation, Range, Statistic, Statistics


class Collector(Protocol):
    """Takes the values of one observation, feed by feed, and keeps what its statistic needs and no more."""

    def add(self, values: Array) -> None:
        """Take the values of one feed: a finite array, not empty."""

    def arrays(self) -> dict[str, Array]:
        """What was found, under the names that the statistic states."""


class RangeCollector:
    """Smallest and largest value so far."""

    def __init__(self, statistic: Range) -> None:
        del statistic
        self._low, self._high = np.inf, -np.inf

    def add(self, values: Array) -> None:
        self._low = min(self._low, float(values.min()))
        self._high = max(self._high, float(values.max()))

    def arrays(self) -> dict[str, Array]:
        return {"low": np.array(self._low), "high": np.array(self._high)}


class AverageRangeCollector:
    """Sums of each feed's smallest and largest value."""

    def __init__(self, statistic: AverageRange) -> None:
        del statistic
        self._low, self._high, self._feeds = 0.0, 0.0, 0

    def add(self, values: Array) -> None:
        self._low += float(values.min())
        self._high += float(values.max())
        self._feeds += 1

    def arrays(self) -> dict[str, Array]:
        feeds = self._feeds or np.nan
        return {"low": np.array(self._low / feeds), "high": np.array(self._high / feeds)}


class HistogramCollector:
    """Counts in bins around zero; when a value falls outside, bins are merged in pairs until it fits.

    Memory is fixed. Widths are powers of two and merging is exact, so the result is that of one pass that knew the
    largest magnitude beforehand.
    """

    def __init__(self, statistic: Histogram) -> None:
        self._half = statistic.bins // 2
        self._counts = np.zeros(statistic.bins, np.int64)
        self._exponent: int | None = None
        self._range = RangeCollector(Range())

    def add(self, values: Array) -> None:
        self._range.add(values)
        flat = values.ravel().astype(np.float64)
        self._grow(float(np.abs(flat).max()))
        if self._exponent is None:
            self._counts[self._half] += flat.size
            return
        index = np.floor(np.ldexp(flat, -self._exponent)).astype(np.int64) + self._half
        self._counts += np.bincount(index, minlength=len(self._counts))

    def arrays(self) -> dict[str, Array]:
        width = np.ldexp(1.0, self._exponent or 0)
        return {"counts": self._counts.copy(), "width": np.array(width), **self._range.arrays()}

    def _grow(self, magnitude: float) -> None:
        """Make room for `magnitude`: half * width must exceed it. While all is zero, no width is set."""
        if magnitude == 0:
            return
        needed = int(np.frexp(magnitude)[1]) - (self._half.bit_length() - 1)
        if self._exponent is None:
            self._exponent = needed
        elif needed > self._exponent:
            filled = np.flatnonzero(self._counts)
            merged = ((filled - self._half) >> min(needed - self._exponent, 63)) + self._half
            self._counts = np.bincount(merged, self._counts[filled], len(self._counts)).astype(np.int64)
            self._exponent = needed


def _collector(statistic: Statistic) -> Collector:
    match statistic:
        case Range():
            return RangeCollector(statistic)
        case AverageRange():
            return AverageRangeCollector(statistic)
        case Histogram():
            return HistogramCollector(statistic)


def calibrate(
    graph: Graph,
    observations: Sequence[Observation],
    feeds: Iterable[Mapping[str, Array]],
    *,
    threads: int | None = 1,
    progress: Callable[[int], None] = lambda _done: None,
) -> dict[Observation, dict[str, Array]]:
    """Run `graph` on every feed and return observation -> its arrays; `progress(n)` follows each feed.

    A feed is one run's inputs by name. Raises InputError when there is none, when one does not fit the graph's inputs,
    when data or an observed value holds NaN or infinity, when an observed value is unknown or not floating-point.
    """
    if not observations:
        return {}
    values = tuple(dict.fromkeys(observation.value for observation in observations))
    _check_observable(graph, values)
    collectors = {each: _collector(each.statistic) for each in observations}
    session = Session(graph, taps=values, threads=threads)
    done = 0
    for feed in feeds:
        _check_finite(feed, f"calibration data, feed {done + 1}, input", "Remove or repair that sample.")
        found = session.run(feed)
        observed = {name: found[name] for name in values}
        _check_finite(observed, f"calibration feed {done + 1}, value", "The model overflows on this sample.")
        for observation, collector in collectors.items():
            if observed[observation.value].size:
                collector.add(observed[observation.value])
        done += 1
        progress(done)
    if not done:
        raise InputError("calibration data", "is empty; statistics need at least one sample.", "Give more data.")
    _check_seen(collectors)
    return {observation: collector.arrays() for observation, collector in collectors.items()}


def to_arrays(statistics: Statistics) -> dict[str, Array]:
    """Statistics as one flat mapping, for a cache file: 'value|Range()|low' -> array."""
    return {
        f"{observation.value}|{observation.statistic}|{name}": array
        for observation, arrays in statistics.items()
        for name, array in arrays.items()
    }


def from_arrays(
    observations: Sequence[Observation], arrays: Mapping[str, Array]
) -> dict[Observation, dict[str, Array]] | None:
    """The statistics that `to_arrays` flattened; None where one of `observations` is missing."""
    found: dict[Observation, dict[str, Array]] = {}
    for observation in observations:
        prefix = f"{observation.value}|{observation.statistic}|"
        found[observation] = {key.removeprefix(prefix): arrays[key] for key in arrays if key.startswith(prefix)}
        if not found[observation]:
            return None
    return found


def _check_observable(graph: Graph, values: Sequence[str]) -> None:
    for name in values:
        if name not in graph.types:
            raise InputError(f"value '{name}'", "is not in the graph, so it cannot be observed.", "Check its name.")
        kind = graph.types[name]
        if not np.issubdtype(kind.dtype, np.floating):
            raise InputError(f"value '{name}'", f"is {kind}; statistics need floating-point values.")


def _check_finite(arrays: Mapping[str, Array], what: str, remedy: str) -> None:
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            count = int(array.size - np.isfinite(array).sum())
            problem = f"holds NaN or infinity ({count} of {array.size} elements)."
            raise InputError(f"{what} '{name}'", problem, remedy)


def _check_seen(collectors: Mapping[Observation, Collector]) -> None:
    """A value that never had an element has no statistics."""
    for observation, collector in collectors.items():
        for array in collector.arrays().values():
            if not np.isfinite(array).all():
                raise InputError(f"value '{observation.value}'", "had no element in any sample.", "Check the data.")
