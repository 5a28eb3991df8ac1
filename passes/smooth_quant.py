"""SmoothQuant: outliers of activations move into weights, where one scale per channel holds them.

    Norm(x; g) -> MatMul(y, W)   ->   Norm(x; g / s) -> MatMul(y / s, s W)

G. Xiao et al., "SmoothQuant" (2023), eq. 4: s_j = max|Y_j|^a / max|W_j|^(1 - a) for input channel j, with a the
`strength`. The factors go into what computes y (a normalization, a Mul by constants, a layer): see channel_scales.py.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from graphc.ir.graph import Graph
from graphc.passes.channel_scales import Doubles, Factors, Link, links
from graphc.passes.protocol import Context, Observation, Pass
from graphc.passes.quantize import Quantize


class SmoothQuant(Pass):
    """Outliers of activations move into weights: Norm(x; g) -> MatMul(y, W)  ->  g / s, s W."""

    requires: ClassVar[frozenset[str]] = frozenset({"fold"})
    before: ClassVar[frozenset[str]] = frozenset({"quantize"})

    kind: Literal["smooth_quant"] = "smooth_quant"
    strength: Annotated[float, Field(ge=0, le=1, description="0: weights get alike; 1: activations do")] = 0.5

    def misfits(self, later: Sequence[Pass]) -> Sequence[str]:
        """Weights alone get harder to round, and nothing is gained."""
        alone = any(isinstance(step, Quantize) and set(step.named("activations")) == {"none"} for step in later)
        return ("moves outliers into weights, and quantize leaves activations in floating point",) if alone else ()

    def observes(self, graph: Graph) -> tuple[Observation, ...]:
        """The limits of every channel that a layer reads."""
        return tuple(dict.fromkeys(wish for link in smoothable(graph) for wish in wishes(link)))

    def apply(self, graph: Graph, context: Context) -> Graph:
        """Every producer whose readers are layers, each once; of the others the report says why not."""
        for each in links(graph):
            if not isinstance(each, Link):
                context.skip(*each)
        factors = Factors(graph)
        for link in smoothable(graph):
            largest = np.zeros(link.channels)
            for wish in wishes(link):
                found = context.statistics[wish]
                ends = np.maximum(-found["low"].astype(np.float64), found["high"].astype(np.float64))
                largest = np.maximum(largest, ends.reshape(link.channels, -1).max(axis=1))
            weights = np.max([np.abs(factors.incoming(link, reader)).max(axis=1) for reader in link.readers], axis=0)
            factors.scale(link, 1 / smoothing(largest, weights, self.strength))
        return factors.graph()


def smoothing(activations: Doubles, weights: Doubles, strength: float) -> Doubles:
    """s of eq. 4, [channels]; 1 for channels that are zero on either side."""
    alive = (activations > 0) & (weights > 0)
    a, w = np.where(alive, activations, 1.0), np.where(alive, weights, 1.0)
    return np.where(alive, a**strength / w ** (1 - strength), 1.0)


def smoothable(graph: Graph) -> tuple[Link, ...]:
    """Links that have no other producer between them and their readers: of two in a row, the last."""
    found = [each for each in links(graph) if isinstance(each, Link)]
    inner = {link.value for link in found}
    return tuple(link for link in found if inner.isdisjoint(link.passed[1:]))


def wishes(link: Link) -> tuple[Observation, ...]:
    """What a link's readers read, by channel."""
    return tuple(dict.fromkeys(reader.layer.moments for reader in link.readers))
