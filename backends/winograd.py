"""Winograd's minimal filtering F(m x m, 3 x 3): a 3x3 convolution of stride 1 with fewer multiplications (no TVM).

    Y = A' [(G g G') * (B' d B)] A        for each tile of m x m outputs, d its (m + 2) x (m + 2) inputs

`*` multiplies element by element; summed over input channels it becomes one matrix product per element ("point").
A, G and B follow from m + 1 distinct numbers and infinity (Toom-Cook). Per output, F(2) multiplies 4 times, F(4) 2.25
times, the direct sum 9 times.

Sources: S. Winograd, Arithmetic Complexity of Computations, 1980; A. Lavin and S. Gray, Fast Algorithms for
Convolutional Neural Networks, CVPR 2016; B. Barabasz et al., Error Analysis and Improving the Accuracy of Winograd
Convolution for Deep Neural Networks, ACM TOMS 46(4), 2020 (the choice of points decides the rounding error).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from graphc.backends.cycles import STREAM, Contraction, direct
from graphc.backends.targets import Target
from graphc.backends.tiles import tile_cycles, winograd_block
from graphc.ir import Array

KERNEL = 3
POINTS: dict[int, tuple[float, ...]] = {2: (0, 1, -1), 4: (0, 0.75, -0.75, 1.5, -1.5)}
"""Outputs of a tile along one axis -> where the polynomials are evaluated, infinity aside.

0, +-3/4, +-3/2 keep every coefficient of A and B exact in float32, and err a quarter as much as 0, +-1, +-2.
"""
ERROR: dict[int, float] = {2: 2e-6, 4: 6e-6}
"""The bound on the largest error of one convolution in float32, relative to its largest result, for at most
`MOST_CHANNELS` input channels, normally distributed inputs (rectified or not) and weights. (The direct sum: 4e-6.)
"""
MOST_CHANNELS = 1024


@dataclass(frozen=True)
class Filtering:
    """F(m x m, 3 x 3): `m` outputs of a tile along each axis."""

    m: int

    @property
    def size(self) -> int:
        """Inputs of a tile along one axis."""
        return self.m + KERNEL - 1

    @property
    def points(self) -> int:
        """Elements of a transformed tile: products per tile and pair of channels."""
        return self.size**2

    @cached_property
    def inputs(self) -> Array:
        """B' (size, size): row j holds the coefficients of the product of (x - p) over all points p but the j-th."""
        points = POINTS[self.m]
        rows = [[*np.poly(points[:j] + points[j + 1 :])[::-1], 0.0] for j in range(len(points))]
        return np.array([*rows, np.poly(points)[::-1]])

    @cached_property
    def weights(self) -> Array:
        """G (size, 3): powers of the j-th point over the product of its distances to the others."""
        points = POINTS[self.m]
        rows = []
        for j, point in enumerate(points):
            distances = np.prod([point - other for other in points[:j] + points[j + 1 :]])
            rows.append([point**k / distances for k in range(KERNEL)])
        return np.array([*rows, [0.0] * (KERNEL - 1) + [1.0]])

    @cached_property
    def outputs(self) -> Array:
        """A' (m, size): column j holds the powers of the j-th point."""
        columns = [[point**i for i in range(self.m)] for point in POINTS[self.m]]
        return np.array([*columns, [0.0] * (self.m - 1) + [1.0]]).T

    def transformed(self, weights: Array) -> Array:
        """ONNX weights (O, I, 3, 3) as (points, I, O): G g G', computed in float64, rounded once."""
        wide = np.matmul(np.matmul(self.weights, weights.astype(np.float64)), self.weights.T)
        return np.ascontiguousarray(wide.reshape(*wide.shape[:2], self.points).transpose(2, 1, 0), weights.dtype)

    def tiles(self, output: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of tiles that cover an output."""
        return -(-output[0] // self.m), -(-output[1] // self.m)


TRANSFORM = 4.0
"""Cycles per point, tile and vector of channels for B' d B or A' u A: arithmetic, and v through the caches."""


def choose(
    target: Target, batch: int, output: Sequence[int], channels: int, filters: int, chosen: int | None = None
) -> Filtering | None:
    """The filtering that should be fastest for a 3x3 convolution of stride 1, None where the direct sum is.

    A model of cycles: register tiles (`tiles.tile_cycles`), the stream of weights beside them, the transforms. Or
    what was `chosen`: outputs of a tile along one axis, 0 for the direct sum.
    """
    if not target.winograd or channels > MOST_CHANNELS or chosen == 0:
        return None
    if chosen is not None:
        return Filtering(chosen)
    layer = (target, batch, output, channels, filters)
    best = min(map(Filtering, POINTS), key=lambda filtering: cycles(filtering, *layer))
    sums = Contraction(batch * output[0], output[1], KERNEL**2 * channels, filters)
    return best if cycles(best, *layer) < direct(sums, target) else None


def cycles(
    filtering: Filtering, target: Target, batch: int, output: Sequence[int], channels: int, filters: int
) -> float:
    """Of a filtering: its products, its transforms."""
    down, across = filtering.tiles(output)
    tiles, block, lanes = batch * down * across, winograd_block(target, filters), max(1, target.lanes(32))
    depth = filtering.points * channels * -(-filters // block)
    products = max(tile_cycles(target, tiles, block)[0] * depth, 4 * depth * block / STREAM)
    vectors = -(-channels // lanes) + -(-filters // lanes)
    return products + TRANSFORM * filtering.points * tiles * vectors
