"""A graph run node by node over all feeds at once, so that a layer can change before those behind it run.

Values live until their last reader has run; `feeds_that_fit` says how many feeds that allows.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np
import numpy.typing as npt

from graphc.ir.graph import Array, Graph, Node
from graphc.passes.protocol import Context, Observation, Whole

MOST_FEEDS = 1024
MEMORY = 1 << 30
"""Bytes that the values of one walk may take."""


def feeds_wanted(graph: Graph) -> tuple[Observation, ...]:
    """The wish for whole feeds of the graph's inputs."""
    return tuple(Observation(name, Whole(MOST_FEEDS)) for name in graph.inputs)


def feeds_of(graph: Graph, context: Context) -> list[dict[str, Array]]:
    """Those feeds, as many as fit in memory, spread evenly; the report says so where that is not all."""
    stored = {wish.value: context.statistics[wish]["values"] for wish in feeds_wanted(graph)}
    given = len(next(iter(stored.values())))
    count = min(given, feeds_that_fit(graph))
    if count < given:
        context.note(graph.nodes[0], feeds_given=given, feeds_used=count)
    return [{name: array[i * given // count] for name, array in stored.items()} for i in range(count)]


def feeds_that_fit(graph: Graph) -> int:
    """How many feeds a walk has memory for: at least one."""
    left = Counter(name for node in graph.nodes for name in node.reads)
    live = most = sum(_bytes(graph, name) for name in graph.inputs)
    for node in graph.nodes:
        live += sum(_bytes(graph, name) for name in node.results)
        most = max(most, live)
        left.subtract(node.reads)
        ended = [name for name in node.reads if not left[name] and name not in graph.constants]
        live -= sum(_bytes(graph, name) for name in ended)
    return max(MEMORY // max(most, 1), 1)


def _bytes(graph: Graph, name: str) -> int:
    return prod(dim if isinstance(dim, int) else 1 for dim in graph.types[name].shape or ()) * 4


class Walk:
    """`values[name]`: a value in every feed. `constants` may be replaced before their readers have run.

    Values named in `hold` stay until they are released.
    """

    def __init__(self, graph: Graph, feeds: Sequence[Mapping[str, Array]], hold: Iterable[str] = ()) -> None:
        self.graph = graph
        self.constants = dict(graph.constants)
        self.values: dict[str, list[Array]] = {name: [feed[name] for feed in feeds] for name in graph.inputs}
        self._count = len(feeds)
        self._left = Counter(name for node in graph.nodes for name in node.reads)
        self._left.update(hold)
        self._next = 0
        self._done = set(graph.inputs)

    def through(self, node: Node) -> None:
        """Run everything up to `node`, and it."""
        while node.outputs[0] not in self._done:
            self._run(self.graph.nodes[self._next])
            self._done.update(self.graph.nodes[self._next].outputs)
            self._next += 1

    def through_value(self, name: str) -> list[Array]:
        """A held value or one still to be read, in every feed."""
        if name not in self._done:
            self.through(self.graph.producers[name])
        return self.values[name]

    def release(self, name: str) -> None:
        """One reader less waits for it."""
        self._left[name] -= 1
        if self._left[name] <= 0:
            self.values.pop(name, None)

    def is_ready(self, name: str) -> bool:
        return name in self.values

    def _run(self, node: Node) -> None:
        from graphc.execute import Session  # onnxruntime is not needed where nothing is repaired

        reads = [name for name in node.reads if name not in self.constants]
        fixed = {name: self.constants[name] for name in node.reads if name in self.constants}
        types = {name: self.graph.types[name] for name in (*node.reads, *node.results)}
        alone = Graph("node", tuple(reads), node.results, (replace(node),), types, fixed)
        session = Session(alone)
        if reads:
            found = [session.run({name: self.values[name][i] for name in reads}) for i in range(self._count)]
            for name in node.results:
                self.values[name] = [each[name] for each in found]
        else:
            self.constants.update(session.run({}))
            self.values.update({name: [self.constants[name]] * self._count for name in node.results})
        for name in node.results:
            if self._left[name] <= 0:
                del self.values[name]
        for name in node.reads:
            self.release(name)


def drawn(count: int, most: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Numbers below `count`: all, or `most` of them, drawn."""
    return np.arange(count) if count <= most else random.choice(count, most, replace=False)


def flat(values: Array) -> Array:
    """A channels-first value [B, C, *S] as rows [B * places, C]."""
    return np.moveaxis(values, 1, -1).reshape(-1, values.shape[1])
