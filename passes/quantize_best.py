"""`calibrate: best`: of several ways to find ranges, the one that changes the model's outputs least.

Which way suits a model depends on how its values are spread and on what its later layers make of them: clipping rare
values of the first layer of a keyword network is right, and wrong for a transformer's. So each is tried on the whole
graph, on feeds of the calibration data; output_error.py is the measure.
"""

from collections.abc import Callable

from graphc.ir.graph import Graph
from graphc.passes.output_error import distance, outputs
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
    expected = outputs(graph, graph, feeds)
    return min(CANDIDATES, key=lambda method: distance(expected, outputs(quantized(method), graph, feeds)))
