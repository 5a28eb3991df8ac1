"""How far a changed graph's outputs are from the original's, on feeds: the mean, over feeds, of |y' - y|^2 / |y|^2.

A mean of ratios: every feed counts alike, loud or quiet. Taken before a final Softmax, which hides differences.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from graphc.ir.graph import Array, Graph

TRIED = 64
Feeds = Sequence[Mapping[str, Array]]


def outputs(graph: Graph, original: Graph, feeds: Feeds) -> list[list[Array]]:
    """The values at the end of `graph`, feed by feed; borders that are integers are refused before this."""
    from graphc.execute import Session  # onnxruntime is not needed where nothing is tried

    names = _ends(original, graph)
    session = Session(graph, taps=names, optimize=False)
    return [[found[name] for name in names] for found in map(session.run, feeds)]


def few(feeds: Feeds) -> Feeds:
    """Some of the feeds, spread evenly: TRIED rows, so that many changes can be tried."""
    rows = max((array.shape[0] for array in feeds[0].values() if array.ndim), default=1)
    return feeds[:: max(len(feeds) * rows // TRIED, 1)]


def distance(expected: list[list[Array]], found: list[list[Array]]) -> float:
    """The error of `found`."""
    ratios = [
        np.square(one.astype(np.float64) - two.astype(np.float64)).sum()
        / max(np.square(one.astype(np.float64)).sum(), 1e-30)
        for left, right in zip(expected, found, strict=True)
        for one, two in zip(left, right, strict=True)
    ]
    return float(np.mean(ratios))


def _ends(original: Graph, graph: Graph) -> tuple[str, ...]:
    """The outputs, or what a final Softmax reads."""
    found = []
    for name in original.outputs:
        node = original.producers.get(name)
        before = node.inputs[0] if node is not None and node.op in ("Softmax", "LogSoftmax") else name
        found.append(before if before in graph.types else name)
    return tuple(found)
