"""`best`: of several ways to quantize, the one that changes the model's outputs least.

Which way suits a model depends on how its values are spread and on what its later layers make of them: clipping rare
values of the first layer of a keyword network is right, and wrong for a transformer's; rounding that learns from few
samples may fit them alone. So each is tried on the whole graph, on feeds of the calibration data; output_error.py is
the measure.

Feeds that judge do not teach: their rows are taken out of the sums that rounding and bias correction learn from (Gram
matrices add up over rows), for as long as ways are tried.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from graphc.ir.graph import Array, Graph
from graphc.passes.layers import Floats, unfold
from graphc.passes.output_error import distance, outputs
from graphc.passes.protocol import Gram, Observation, Statistics, Total, Whole
from graphc.passes.quantize_ranges import Method

BEST = "best"
Way = Mapping[str, Any]
"""Options of the pass."""

CANDIDATES: tuple[Method, ...] = ("minmax", "mse", "entropy")
RANGES: tuple[Way, ...] = tuple({"calibrate": method} for method in CANDIDATES)
ROUNDINGS: tuple[Way, ...] = (
    {"rounding": "nearest", "bias_correction": False},
    {"rounding": "gptq", "bias_correction": False},
    {"rounding": "gptq", "bias_correction": True},
)
"""What `calibrate: best` and `rounding: best` try, in that order."""

SUMS = Gram | Total
"""Statistics that rounding and bias correction learn from."""

HELD = 4
"""One feed in so many judges, at most, where something learns from the others."""

Feed = Mapping[str, Array]


def feeds_wanted(graph: Graph) -> tuple[Observation, ...]:
    """The wish for whole feeds of the graph's inputs."""
    return tuple(Observation(name, Whole()) for name in graph.inputs)


class Trials:
    """Feeds that judge, what the model itself gives for them, and `statistics` that have not seen them."""

    def __init__(self, graph: Graph, statistics: Statistics) -> None:
        self._graph = graph
        stored = {wish.value: statistics[wish] for wish in feeds_wanted(graph)}
        first = next(iter(stored.values()))
        count = len(first["values"])
        if any(isinstance(wish.statistic, SUMS) for wish in statistics):
            count = min(count, max(int(first["seen"].astype(np.int64)) // HELD, 1))
        self._feeds = [{name: found["values"][i] for name, found in stored.items()} for i in range(count)]
        self._expected = outputs(graph, graph, self._feeds)
        self.statistics = _without(statistics, graph, self._feeds)

    def best(self, ways: Sequence[Way], quantized: Callable[[Way], Graph]) -> Way:
        """The way whose `quantized` graph is closest to the model; the earlier one among equals."""
        return min(ways, key=lambda way: self.error(quantized(way)))

    def error(self, graph: Graph) -> float:
        """How far a graph is from the model."""
        return distance(self._expected, outputs(graph, self._graph, self._feeds))


def _without(statistics: Statistics, graph: Graph, feeds: Sequence[Feed]) -> Statistics:
    """`statistics` without the rows of these feeds in sums of rows; sums of no other rows stay as they are."""
    sums = {wish: _Sum(wish.statistic) for wish in statistics if isinstance(wish.statistic, SUMS)}
    values = tuple(dict.fromkeys(wish.value for wish in sums))
    if not sums:
        return statistics
    from graphc.execute import Session  # onnxruntime is not needed where nothing is tried

    for found in map(Session(graph, taps=values).run, feeds):
        for wish, each in sums.items():
            each.add(cast(Floats, found[wish.value]))
    return {**statistics, **{wish: each.taken_from(statistics[wish]) for wish, each in sums.items()}}


class _Sum:
    """The sum of rows, or of their products, over a few feeds."""

    def __init__(self, statistic: Gram | Total) -> None:
        self._statistic = statistic
        self._count, self._total = 0, np.zeros(())

    def add(self, values: Floats) -> None:
        for piece in unfold(values, self._statistic.rows):
            rows = piece.astype(np.float64)
            gram = isinstance(self._statistic, Gram)
            self._total = self._total + (rows.transpose(0, 2, 1) @ rows if gram else rows.sum(axis=1))
            self._count += rows.shape[1]

    def taken_from(self, found: Mapping[str, Array]) -> Mapping[str, Array]:
        name = "gram" if isinstance(self._statistic, Gram) else "total"
        count = found["count"].astype(np.int64) - self._count
        return {name: found[name].astype(np.float64) - self._total, "count": count} if count > 0 else found
