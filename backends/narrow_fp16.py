"""Products of float16 in place of float32, where a target asks for that arithmetic.

    y = Conv(x, w, b)   ->   y = graphc.fp16.Conv(graphc.fp16.Narrow(x), w', b)        x', w': float16 (narrow.py)

Each operand is rounded once, to nearest, by at most u = 2^-11 of itself. At most L = `MOST_TERMS` products are added in
float16, each step rounded once, and those sums in float32. Of a result, with g = L u / (1 - L u),
    |error| <= (2u + u^2 + (1 + u)^2 (g + (n / L + 1) 2^-23)) sum |x| |w|              n terms
as long as operands and sums stay within float16's range (magnitudes to 65504; below 2^-14 the steps are 2^-24).
Source: N. Higham, Accuracy and Stability of Numerical Algorithms, 2002, sections 3.1 and 4.2 (blocked summation).
Constant weights are rounded at compile time. What fills no vectors of eight stays in float32: convolutions with groups
or of three dimensions, products of vectors, layers with few channels; so does what has weights that are computed.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from graphc.backends.narrow import Narrowing, unfit_convolution, unfit_product
from graphc.ir.graph import Array, Node

DOMAIN = "graphc.fp16"
HALF = np.dtype(np.float16)
MOST_TERMS = 32
"""L: products in one sum of float16. Fewer err less, and cost more additions in float32."""
ROUNDING, WIDE_ROUNDING = 2.0**-11, 2.0**-24
LARGEST = float(np.finfo(HALF).max)
FEWEST = 8
"""Channels in and out below which vectors of eight would be mostly empty."""


def bound(terms: int) -> float:
    """What a result may err, of the sum of the absolute values of its products."""
    together = min(terms, MOST_TERMS) * ROUNDING
    grown = together / (1 - together) + (terms / MOST_TERMS + 1) * 2 * WIDE_ROUNDING
    return 2 * ROUNDING + ROUNDING**2 + (1 + ROUNDING) ** 2 * grown


class Float16(Narrowing):
    """Layers with constant weights that fill vectors of eight."""

    domain = DOMAIN
    narrow_type = HALF
    instructions: ClassVar[Mapping[str, str]] = {"half": "fmla.8h"}

    def narrowed(self, array: Array) -> Array:
        return array.astype(HALF)

    def chosen(self, node: Node) -> tuple[str, str]:
        x, w = self.dims(node)
        reason = unfit_convolution(node, w) if node.domain else unfit_product(node, x, w)
        if reason:
            return "", reason
        weights = self.constants.get(node.inputs[1])
        if weights is None:
            return "", "its weights are computed"
        if np.abs(weights).max(initial=0) > LARGEST:
            return "", f"its weights go beyond {LARGEST:.0f}"
        fewest = min(w[:2]) if node.domain else min(x[-1], *w[-2:])
        if fewest < FEWEST:
            return "", f"its channels, {fewest}, do not fill a vector of {FEWEST}"
        return "half", f"{FEWEST} products at once"
