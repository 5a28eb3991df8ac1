"""Calibration: one streamed run over the data that collects what the passes of a step want to know.

Memory does not grow with the number of samples: a collector keeps a few numbers per observed value. The same data in
the same order gives the same statistics, bit for bit. What was found is plain arrays, so that it can be cached.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from time import monotonic
from typing import Protocol, cast

import numpy as np

from graphc.collectors import Collector, collector
from graphc.errors import InputError
from graphc.execute import Session
from graphc.ir.graph import Array, Graph
from graphc.passes.layers import Floats
from graphc.passes.protocol import Observation, Statistics, Whole

KEEP_EVERY = 20.0
"""Seconds between two states that are kept."""


class Kept(Protocol):
    """Where a run keeps its state, so that one that was cut short goes on from there."""

    def load(self) -> Mapping[str, Array] | None:
        """The arrays that were saved last; None where there are none."""

    def save(self, state: Mapping[str, Array]) -> None: ...


class Nowhere:
    """Keeps nothing."""

    def load(self) -> None:
        return None

    def save(self, state: Mapping[str, Array]) -> None:
        del state


def calibrate(
    graph: Graph,
    observations: Sequence[Observation],
    feeds: Iterable[Mapping[str, Array]],
    *,
    threads: int | None = 1,
    progress: Callable[[int], None] = lambda _done: None,
    kept: Kept | None = None,
) -> dict[Observation, dict[str, Array]]:
    """Run `graph` on every feed and return observation -> its arrays; `progress(n)` follows each feed.

    A feed is one run's inputs by name. `kept` gets the state of the run from time to time; where it has one (of the
    same feeds and observations), what it has seen is not run again, and the result is the same.
    Raises InputError when there is no feed, when one does not fit the graph's inputs, when data or an observed value
    holds NaN or infinity, when an observed value is unknown or not floating-point.
    """
    if not observations:
        return {}
    values = tuple(dict.fromkeys(observation.value for observation in observations))
    _check_observable(graph, observations)
    collectors = {each: collector(each.statistic) for each in observations}
    kept = kept or Nowhere()
    done = _restore(collectors, kept.load())
    session = Session(graph, taps=values, threads=threads)
    saved = monotonic()
    for feed in islice(feeds, done, None):
        _observe(session, feed, collectors, values, done + 1)
        done += 1
        progress(done)
        if monotonic() - saved > KEEP_EVERY:
            kept.save(_state(collectors, done))
            saved = monotonic()
    if not done:
        raise InputError("calibration data", "is empty; statistics need at least one sample.", "Give more data.")
    for observation, found in collectors.items():
        if not found.state:
            raise InputError(f"value '{observation.value}'", "had no element in any sample.", "Check the data.")
    return {observation: found.arrays() for observation, found in collectors.items()}


def _observe(
    session: Session,
    feed: Mapping[str, Array],
    collectors: Mapping[Observation, Collector],
    values: Sequence[str],
    number: int,
) -> None:
    """Run one feed, the `number`-th, and hand its values to the collectors."""
    _check_finite(feed, f"calibration data, feed {number}, input", "Remove or repair that sample.")
    found = session.run(feed)
    observed = {name: found[name] for name in values}
    _check_finite(observed, f"calibration feed {number}, value", "The model overflows on this sample.")
    for observation, each in collectors.items():
        if observed[observation.value].size:
            each.add(cast(Floats, observed[observation.value]))


def _state(collectors: Mapping[Observation, Collector], done: int) -> dict[str, Array]:
    """All that a run knows after `done` feeds, as one flat mapping."""
    states = {
        f"{index}|{name}": array for index, each in enumerate(collectors.values()) for name, array in each.state.items()
    }
    return {"done": np.array(done), **states}


def _restore(collectors: Mapping[Observation, Collector], state: Mapping[str, Array] | None) -> int:
    """Put the collectors into a state that was kept; returns how many feeds it has seen."""
    if state is None:
        return 0
    for index, each in enumerate(collectors.values()):
        prefix = f"{index}|"
        each.state = {key.removeprefix(prefix): state[key].copy() for key in state if key.startswith(prefix)}
    return int(state["done"].astype(np.int64))


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


def _check_observable(graph: Graph, observations: Sequence[Observation]) -> None:
    """Figures are those of floating-point values; whole values may be anything."""
    for observation in observations:
        name = observation.value
        if name not in graph.types:
            raise InputError(f"value '{name}'", "is not in the graph, so it cannot be observed.", "Check its name.")
        kind = graph.types[name]
        if not np.issubdtype(kind.dtype, np.floating) and not isinstance(observation.statistic, Whole):
            raise InputError(f"value '{name}'", f"is {kind}; statistics need floating-point values.")


def _check_finite(arrays: Mapping[str, Array], what: str, remedy: str) -> None:
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            count = int(array.size - np.isfinite(array).sum())
            problem = f"holds NaN or infinity ({count} of {array.size} elements)."
            raise InputError(f"{what} '{name}'", problem, remedy)
