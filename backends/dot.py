"""Which dot-product instruction a target multiplies 8-bit integers with, and how it wants weights packed (no TVM).

vnni    4 x uint8 * int8 -> int32 in one instruction; int8 activations are shifted by 128 first
madd    2 x int16 * int16 -> int32; 8-bit operands are widened, so nothing saturates (`vpmaddubsw` would)
plain   one product at a time in int32
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from graphc.backends.targets import Target


@dataclass(frozen=True)
class Dot:
    """A way to multiply: `step` terms at once, of weights stored as `weights`."""

    kind: Literal["vnni", "madd", "plain"]
    step: int
    weights: np.dtype[np.generic]

    def shift(self, x: np.dtype[np.generic]) -> int:
        """What is added to activations of type `x` so that the instruction takes them."""
        return 128 if self.kind == "vnni" and x == np.dtype(np.int8) else 0


def dot_product(target: Target, weights: np.dtype[np.generic]) -> Dot:
    """The instruction for weights of this type: int8, or int16 where zero points left eight bits."""
    if weights == np.dtype(np.int8) and target.has("avx512_vnni"):
        return Dot("vnni", 4, np.dtype(np.int8))
    if target.family == "x86":
        return Dot("madd", 2, np.dtype(np.int16))
    return Dot("plain", 1, weights)
