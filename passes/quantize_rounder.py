"""Rounds the weights of a graph's nodes as their options say, with what calibration found of their inputs."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from graphc.ir.graph import Graph, Node
from graphc.passes.layers import Layer, layer_of
from graphc.passes.protocol import Context
from graphc.passes.quantize_rounding import Doubles, Method, Rounding, WeightRange
from graphc.passes.quantize_schemes import Integers, Parameters, Scheme, weight_parameters

Memory = dict[tuple[Node, Method, Scheme, bytes], tuple[Integers, Parameters]]
"""What rounding by statistics came to, by all that decides it but the statistics."""


class Options(Protocol):
    """What rounding asks of a node's options."""

    @property
    def weight_range(self) -> WeightRange: ...
    @property
    def rounding(self) -> Rounding: ...
    @property
    def bias_correction(self) -> bool: ...


class Rounder:
    """One graph's weights. Layers whose input is not known as rows are rounded to nearest, and the report says so.

    Rounders of one graph and the same statistics may share a `memory`: ways to find ranges leave most weights alike.
    """

    def __init__(self, graph: Graph, options: Mapping[Node, Options], context: Context, memory: Memory) -> None:
        self._graph, self._options, self._context, self._memory = graph, options, context, memory
        self._done = 0

    def rounded(self, node: Node, rows: Doubles, scheme: Scheme, least: Doubles | float) -> tuple[Integers, Parameters]:
        """Weights [channels, depth] of `node` as integers, with scales of `least` up."""
        own = self._options[node]
        method, gram, layer = Method(own.weight_range, own.rounding), None, self._layer(node)
        if method.needs_gram and layer is None:
            asked = own.weight_range if own.rounding == "nearest" else own.rounding
            self._context.skip(node, f"its weights are rounded to nearest: {asked} does not know {node.op} so")
        elif method.needs_gram and layer is not None:
            gram = self._context.statistics[layer.gram]["gram"].astype(np.float64)
            self._context.progress(node.name, self._done / len(self._graph.nodes))
        self._done += 1
        if gram is None:
            return method.apply(rows, scheme, least)
        full = method.weight_range == "minmax"  # other ranges meet `least` on their way down
        start = weight_parameters(rows, scheme, least).scale if full else np.asarray(least)
        key = node, method, scheme, start.tobytes()
        if key not in self._memory:
            self._memory[key] = method.apply(rows, scheme, least, gram)
        return self._memory[key]

    def drift(self, node: Node, change: Doubles) -> Doubles | None:
        """The mean of each channel's results that `change` [channels, depth] of the weights makes; None: not asked.

        M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), eq. 16-17,
        with the mean of the inputs measured.
        """
        layer = self._layer(node)
        if layer is None or not self._options[node].bias_correction:
            return None
        found = self._context.statistics[layer.total]
        mean = found["total"].astype(np.float64) / int(found["count"].astype(np.int64))
        grouped = change.reshape(len(mean), -1, change.shape[1])
        drift: Doubles = np.einsum("gnk,gk->gn", grouped, mean).ravel()
        return drift

    def _layer(self, node: Node) -> Layer | None:
        return layer_of(self._graph, node)
