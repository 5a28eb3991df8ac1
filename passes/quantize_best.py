"""`calibrate: best`: of several ways to find ranges, the one that changes the model's outputs least.

Which way suits a model depends on how its values are spread and on what its later layers make of them: clipping rare
values of the first layer of a keyword network is right, and wrong for a transformer's. So each is tried on the whole
graph, on feeds of the calibration data; the measure is the mean, over feeds, of |y' - y|^2 / |y|^2 at the outputs,
taken before a final Softmax, which hides differences. A mean of ratios: every feed counts alike, loud or quiet.
"""

from collections.abc import Callable

import numpy as np

from graphc.ir.graph import Array, Graph
from graphc.passes.protocol import Observation, Statistics, Whole
from graphc.passes.quantize_ranges import Method

CANDIDATES: tuple[Method, ...] = ("minmax", "mse", "entropy")


def feeds_wanted(graph: Graph) -> tuple[Observation, ...]:
    """The wish for whole feeds of the graph's inputs."""
    return tuple(Observation(name, Whole()) for name in graph.inputs)


def best(graph: Graph, statistics: Statistics, quantized: Callable[[Method], Graph]) -> Method:
    """The candidate whose `quantized` graph is closest to `graph`; the earlier one among equals."""
    stored = {wish.value: statistics[wish]["values"] for wish in feeds_wanted(graph)}
    count = len(next(iter(stored.values())))
    feeds = [{name: array[i] for name, array in stored.items()} for i in range(count)]
    expected = _outputs(graph, graph, feeds)
    return min(CANDIDATES, key=lambda method: _distance(expected, _outputs(quantized(method), graph, feeds)))


def _outputs(graph: Graph, original: Graph, feeds: list[dict[str, Array]]) -> list[list[Array]]:
    """The values at the end, feed by feed; borders that are integers are refused before this."""
    from graphc.execute import Session  # onnxruntime is not needed where another method is asked for

    session = Session(graph, taps=_ends(original, graph), optimize=False)
    return [[found[name] for name in _ends(original, graph)] for found in map(session.run, feeds)]


def _ends(original: Graph, graph: Graph) -> tuple[str, ...]:
    """The outputs, or what a final Softmax reads."""
    found = []
    for name in original.outputs:
        node = original.producers.get(name)
        before = node.inputs[0] if node is not None and node.op in ("Softmax", "LogSoftmax") else name
        found.append(before if before in graph.types else name)
    return tuple(found)


def _distance(expected: list[list[Array]], found: list[list[Array]]) -> float:
    ratios = [
        np.square(one.astype(np.float64) - two.astype(np.float64)).sum()
        / max(np.square(one.astype(np.float64)).sum(), 1e-30)
        for left, right in zip(expected, found, strict=True)
        for one, two in zip(left, right, strict=True)
    ]
    return float(np.mean(ratios))
