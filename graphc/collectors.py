"""What calibration keeps of an observed value: one collector per kind of statistic, in memory that does not grow.

A collector's state is plain arrays, so that a run can be kept half way and taken up again. Sums of rows are taken over
blocks of a fixed number of rows, wherever the feeds begin and end: batching changes no bit of them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from graphc.ir.graph import Array
from graphc.passes.layers import Floats, unfold
from graphc.passes.protocol import AverageRange, Gram, Histogram, Moments, Range, Sample, Statistic, Total, Whole

State = dict[str, npt.NDArray[Any]]

BLOCK = 1 << 17
"""Elements of a block of rows, of which there is one for each layer: it holds 16 to 4096 rows, more where rows are so
long that the Gram matrix, which every block is added to, is far larger.
"""


class Collector:
    """Takes the values of one observation, feed by feed. All that it knows is in `state`."""

    def __init__(self) -> None:
        self.state: State = {}

    def add(self, values: Floats) -> None:
        """Take the values of one feed: a finite array, not empty."""
        raise NotImplementedError

    def arrays(self) -> dict[str, Array]:
        """What was found, under the names that the statistic states; asked for after the first feed."""
        return {name: array.copy() for name, array in self.state.items()}


class RangeCollector(Collector):
    """Smallest and largest value so far."""

    def add(self, values: Floats) -> None:
        low, high = np.float64(values.min()), np.float64(values.max())
        seen = self.state
        self.state = {
            "low": np.asarray(min(low, seen.get("low", low))),
            "high": np.asarray(max(high, seen.get("high", high))),
        }


class AverageRangeCollector(Collector):
    """Sums of each feed's smallest and largest value."""

    def add(self, values: Floats) -> None:
        seen = self.state
        self.state = {
            "low": np.asarray(seen.get("low", 0.0) + np.float64(values.min())),
            "high": np.asarray(seen.get("high", 0.0) + np.float64(values.max())),
            "feeds": np.asarray(seen.get("feeds", 0) + 1),
        }

    def arrays(self) -> dict[str, Array]:
        return {name: np.asarray(self.state[name] / self.state["feeds"]) for name in ("low", "high")}


class HistogramCollector(Collector):
    """Counts in bins around zero; when a value falls outside, bins are merged in pairs until it fits.

    Widths are powers of two and merging is exact, so the result is that of one pass that knew the largest magnitude
    beforehand. While all values are zero, there is no exponent.
    """

    def __init__(self, statistic: Histogram) -> None:
        super().__init__()
        self._half = statistic.bins // 2
        self._range = RangeCollector()

    def add(self, values: Floats) -> None:
        self._range.state = {key: self.state[key] for key in ("low", "high") if key in self.state}
        self._range.add(values)
        self.state.update(self._range.state)
        self.state.setdefault("counts", np.zeros(2 * self._half, np.int64))
        flat = values.ravel().astype(np.float64)
        self._grow(float(np.abs(flat).max()))
        if "exponent" not in self.state:
            self.state["counts"][self._half] += flat.size
            return
        index = np.floor(np.ldexp(flat, -int(self.state["exponent"]))).astype(np.int64) + self._half
        self.state["counts"] += np.bincount(index, minlength=len(self.state["counts"]))

    def arrays(self) -> dict[str, Array]:
        width = np.ldexp(1.0, int(self.state.get("exponent", 0)))
        return {**{key: self.state[key].copy() for key in ("counts", "low", "high")}, "width": np.array(width)}

    def _grow(self, magnitude: float) -> None:
        """Make room for `magnitude`: half * width must exceed it."""
        if magnitude == 0:
            return
        needed = int(np.frexp(magnitude)[1]) - (self._half.bit_length() - 1)
        now = int(self.state.get("exponent", needed))
        if needed > now:
            counts = self.state["counts"]
            filled = np.flatnonzero(counts)
            merged = ((filled - self._half) >> min(needed - now, 63)) + self._half
            self.state["counts"] = np.bincount(merged, counts[filled], len(counts)).astype(np.int64)
        self.state["exponent"] = np.asarray(max(needed, now))


class BlockCollector(Collector):
    """Sums over rows, block by block. A subclass says how a full block changes its sums."""

    def _fill(self, rows: Floats) -> None:
        """Take in rows [groups, n, K]."""
        groups, count, width = rows.shape
        if "block" not in self.state:
            height = int(np.clip(BLOCK // max(groups * width, 1), max(16, width // 16), 4096))
            self.state["block"] = np.zeros((groups, height, width), np.float32)
            self.state["count"] = np.asarray(0)
        block = self.state["block"]
        done = 0
        while done < count:
            filled = int(self.state["count"]) % block.shape[1]
            taken = min(block.shape[1] - filled, count - done)
            block[:, filled : filled + taken] = rows[:, done : done + taken]
            self.state["count"] = self.state["count"] + taken
            done += taken
            if filled + taken == block.shape[1]:
                self.state.update(self._with(block))

    def _totals(self) -> State:
        """The sums, with what stands in the last block."""
        filled = int(self.state["count"]) % self.state["block"].shape[1]
        sums = self._with(self.state["block"][:, :filled]) if filled else self.state
        return {**{key: value for key, value in sums.items() if key != "block"}, "count": self.state["count"]}

    def _with(self, block: Floats) -> State:
        """The sums after one more block [groups, n, K], n > 0; it must not change those in `state`."""
        raise NotImplementedError


class TotalCollector(BlockCollector):
    """The sum of rows."""

    def __init__(self, statistic: Total | Gram) -> None:
        super().__init__()
        self._rows = statistic.rows

    def add(self, values: Floats) -> None:
        for piece in unfold(values, self._rows):
            self._fill(piece)

    def arrays(self) -> dict[str, Array]:
        return {**self._totals()}

    def _with(self, block: Floats) -> State:
        return {"total": block.sum(axis=1, dtype=np.float64) + self.state.get("total", 0.0)}


class GramCollector(TotalCollector):
    """X^T X."""

    def _with(self, block: Floats) -> State:
        rows = block.astype(np.float64)
        return {"gram": rows.transpose(0, 2, 1) @ rows + self.state.get("gram", 0.0)}


class MomentsCollector(BlockCollector):
    """Sums of x, |x| and x^2 of each channel, and its limits."""

    def __init__(self, statistic: Moments) -> None:
        super().__init__()
        self._axis = statistic.axis

    def add(self, values: Floats) -> None:
        channels = values.shape[self._axis]
        self._fill(np.moveaxis(values, self._axis, -1).reshape(1, -1, channels))

    def arrays(self) -> dict[str, Array]:
        found = self._totals()
        count = found["count"]
        means = {key: found[key] / count for key in ("mean", "magnitude", "energy")}
        return {**means, "low": found["low"], "high": found["high"], "count": count}

    def _with(self, block: Floats) -> State:
        rows, seen = block[0].astype(np.float64), self.state
        return {
            "mean": rows.sum(axis=0) + seen.get("mean", 0.0),
            "magnitude": np.abs(rows).sum(axis=0) + seen.get("magnitude", 0.0),
            "energy": np.square(rows).sum(axis=0) + seen.get("energy", 0.0),
            "low": np.minimum(rows.min(axis=0), seen.get("low", np.inf)),
            "high": np.maximum(rows.max(axis=0), seen.get("high", -np.inf)),
        }


class SampleCollector(Collector):
    """The rows whose numbers have the smallest hashes: every row is as likely as any other to stay."""

    def __init__(self, statistic: Sample) -> None:
        super().__init__()
        self._statistic = statistic

    def add(self, values: Floats) -> None:
        for piece in unfold(values, self._statistic.rows):
            self._take(piece)

    def arrays(self) -> dict[str, Array]:
        return {"sample": self.state["sample"].copy()}

    def _take(self, rows: Floats) -> None:
        seen = int(self.state.get("seen", 0))
        numbers = np.arange(seen, seen + rows.shape[1])
        hashes = scrambled(numbers, self._statistic.seed)
        kept = self.state.get("hashes", np.zeros(0, np.uint64))
        if len(kept) == self._statistic.count:
            numbers, hashes = numbers[hashes < kept.max()], hashes[hashes < kept.max()]
        sample = rows[:, numbers - seen].astype(np.float32)
        if "sample" in self.state:
            sample = np.concatenate([self.state["sample"], sample], axis=1)
        hashes = np.concatenate([kept, hashes])
        chosen = np.sort(np.argsort(hashes, kind="stable")[: self._statistic.count])
        found: State = {"sample": sample[:, chosen], "hashes": hashes[chosen], "seen": np.asarray(seen + rows.shape[1])}
        self.state.update(found)


class WholeCollector(Collector):
    """The values of the feeds whose numbers have the smallest hashes."""

    def __init__(self, statistic: Whole) -> None:
        super().__init__()
        self._statistic = statistic

    def add(self, values: Floats) -> None:
        seen = int(self.state.get("seen", 0))
        hashes = scrambled(np.array([seen]), self._statistic.seed)
        kept = values[None].copy()
        if "values" in self.state:
            hashes = np.concatenate([self.state["hashes"], hashes])
            kept = np.concatenate([self.state["values"], kept])
        chosen = np.sort(np.argsort(hashes, kind="stable")[: self._statistic.count])
        self.state = {"values": kept[chosen], "hashes": hashes[chosen], "seen": np.asarray(seen + 1)}

    def arrays(self) -> dict[str, Array]:
        return {"values": self.state["values"].copy(), "seen": self.state["seen"].copy()}


def scrambled(numbers: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.uint64]:
    """A hash of each number: G. Steele et al., "Fast Splittable Pseudorandom Number Generators" (2014), SplitMix64."""
    z = (numbers.astype(np.uint64) + np.uint64(seed) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


COLLECTORS: Mapping[type[Any], Callable[[Any], Collector]] = {
    Range: lambda _statistic: RangeCollector(),
    AverageRange: lambda _statistic: AverageRangeCollector(),
    Histogram: HistogramCollector,
    Total: TotalCollector,
    Gram: GramCollector,
    Moments: MomentsCollector,
    Sample: SampleCollector,
    Whole: WholeCollector,
}
"""Kind of statistic -> what collects it."""


def collector(statistic: Statistic) -> Collector:
    """An empty collector of a statistic."""
    return COLLECTORS[type(statistic)](statistic)
