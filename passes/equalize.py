"""Equalize: channels of neighbouring layers get weights of like ranges, so that one scale per layer fits them all.

    Conv(x, W1) -> Relu -> Conv(y, W2)   ->   Conv(x, s W1) -> Relu -> Conv(s y, W2 / s)

M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), eq. 11: with r1, r2
the largest magnitudes of a channel in W1 and W2, s = sqrt(r1 r2) / r1 makes both sqrt(r1 r2). Pairs are swept until
no factor changes by more than a thousandth. What lies between must be positively homogeneous: see channel_scales.py.
"""

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from graphc.ir.graph import Graph
from graphc.passes.channel_scales import Factors, Link, links
from graphc.passes.layers import layer_of
from graphc.passes.protocol import Context, Pass

SETTLED = 1.001


class Equalize(Pass):
    """Like ranges of weights across layers: Conv(x, W1) -> Relu -> Conv(y, W2)  ->  s W1, W2 / s."""

    requires: ClassVar[frozenset[str]] = frozenset({"fold"})
    before: ClassVar[frozenset[str]] = frozenset({"quantize"})

    kind: Literal["equalize"] = "equalize"
    sweeps: Annotated[int, Field(ge=1, description="how often all pairs are gone through, at most")] = 20

    def apply(self, graph: Graph, context: Context) -> Graph:
        """Every producer of channels whose readers can take the factors; of the others the report says why not."""
        pairs: list[Link] = []
        for each in links(graph):
            if not isinstance(each, Link):
                context.skip(*each)
            elif layer_of(graph, each.producer) is not None:
                pairs.append(each)
        factors = Factors(graph)
        for sweep in range(self.sweeps):
            context.progress("", sweep / self.sweeps)
            if max((_equalize(factors, link) for link in pairs), default=1.0) < SETTLED:
                break
        return factors.graph()


def _equalize(factors: Factors, link: Link) -> float:
    """Make the ranges of one pair alike; returns the largest factor, or its inverse, that this took."""
    first = np.abs(factors.outgoing(link)).max(axis=1)
    second = np.max([np.abs(factors.incoming(link, reader)).max(axis=1) for reader in link.readers], axis=0)
    alive = (first > 0) & (second > 0)  # a channel of zeros on either side has no range to make alike
    s = np.where(alive, np.sqrt(np.where(alive, second, 1) / np.where(alive, first, 1)), 1.0)
    factors.scale(link, s)
    return float(np.max(np.maximum(s, 1 / s), initial=1.0))
