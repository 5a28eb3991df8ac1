"""AWQ: weights that meet large activations get finer steps, by factors that the layer before takes back.

    Norm(x; g) -> MatMul(y, W)   ->   Norm(x; g / s) -> MatMul(y / s, s W)        s_j = mean|Y_j|^a

J. Lin et al., "AWQ: Activation-aware Weight Quantization" (2024), eq. 4-5: for each link the a in 0..1 (20 steps) whose
rounded weights disturb the layers' outputs least; the error is the quadratic form of the inputs' Gram matrix. Put it
before `quantize` with the same `weights`, `group` and `symmetric_weights`. Where factors can go: channel_scales.py.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from graphc.ir.graph import Graph
from graphc.passes.channel_scales import Doubles, Factors, Link, Reader, links
from graphc.passes.layers import output_error
from graphc.passes.protocol import Context, Observation, Pass, Statistics
from graphc.passes.quantize import Quantize
from graphc.passes.quantize_schemes import FORMATS, Scheme, dequantize, quantize, weight_parameters
from graphc.passes.smooth_quant import smoothable, wishes

EXPONENTS = np.linspace(0, 1, 21)


class Awq(Pass):
    """Finer steps for weights that meet large activations: Norm(x; g) -> MatMul(y, W)  ->  g / s, s W."""

    requires: ClassVar[frozenset[str]] = frozenset({"fold"})
    before: ClassVar[frozenset[str]] = frozenset({"quantize"})

    kind: Literal["awq"] = "awq"
    weights: Annotated[
        Literal["int8", "uint8", "int4", "uint4", "int2", "uint2"], Field(description="what quantize will make of them")
    ]
    group: Annotated[int | None, Field(ge=2, description="as in quantize")] = None
    symmetric_weights: Annotated[bool, Field(description="as in quantize")] = True

    def misfits(self, later: Sequence[Pass]) -> Sequence[str]:
        """Factors that suit one grid do not suit another."""
        found: list[str] = []
        for step in (step for step in later if isinstance(step, Quantize)):
            for option in ("weights", "group", "symmetric_weights"):
                own, named = getattr(self, option), step.named(option)
                if own not in named:
                    found.append(f"has {option} {own}, and quantize {' or '.join(map(str, dict.fromkeys(named)))}")
        return found

    def observes(self, graph: Graph) -> tuple[Observation, ...]:
        """Magnitudes of channels, and second moments of what layers read."""
        found = smoothable(graph)
        grams = [reader.layer.gram for link in found for reader in link.readers]
        return tuple(dict.fromkeys((*(wish for link in found for wish in wishes(link)), *grams)))

    def apply(self, graph: Graph, context: Context) -> Graph:
        """Every producer whose readers are layers; of the others the report says why not."""
        for each in links(graph):
            if not isinstance(each, Link):
                context.skip(*each)
        factors, found = Factors(graph), smoothable(graph)
        scheme = Scheme(FORMATS[self.weights], True, self.symmetric_weights, self.group)
        for done, link in enumerate(found):
            context.progress(link.producer.name, done / len(found))
            factors.scale(link, 1 / _best(factors, link, scheme, context.statistics))
        return factors.graph()


def _best(factors: Factors, link: Link, scheme: Scheme, statistics: Statistics) -> Doubles:
    """The factors [channels] that cost least, those of exponent 0 (all 1) first."""
    magnitude = np.max([_magnitude(link, wish, statistics) for wish in wishes(link)], axis=0)
    floor = magnitude[magnitude > 0].min(initial=1.0)
    magnitude = np.maximum(magnitude, floor)

    def candidate(exponent: float) -> Doubles:
        powers: Doubles = magnitude**exponent
        middle: Doubles = powers / np.sqrt(powers.max() * powers.min())
        return middle

    def cost(s: Doubles) -> float:
        return sum(_cost(factors, link, reader, s, scheme, statistics) for reader in link.readers)

    best: Doubles = min((candidate(float(exponent)) for exponent in EXPONENTS), key=cost)
    return best


def _magnitude(link: Link, wish: Observation, statistics: Statistics) -> Doubles:
    found: Doubles = statistics[wish]["magnitude"].astype(np.float64).reshape(link.channels, -1).mean(axis=1)
    return found


def _cost(factors: Factors, link: Link, reader: Reader, s: Doubles, scheme: Scheme, statistics: Statistics) -> float:
    """The squared error at a reader's output with weights s W rounded, inputs divided by s."""
    blocks = factors.blocks(link, reader)
    spread = s.reshape(blocks.shape[0], 1, blocks.shape[2], 1)
    rows = (blocks * spread).reshape(-1, blocks.shape[2] * blocks.shape[3])
    fitted = (
        scheme
        if scheme.group is not None and scheme.group < rows.shape[1]
        else Scheme(scheme.format, True, scheme.symmetric)
    )
    parameters = weight_parameters(rows, fitted)
    change = (dequantize(quantize(rows, parameters), parameters) - rows).reshape(blocks.shape) / spread
    gram = statistics[reader.layer.gram]["gram"].astype(np.float64)
    return output_error(change.reshape(*blocks.shape[:2], -1), gram)
