"""Which instruction multiplies a layer's operands as bfloat16, and how fast that should be beside float32 (no TVM).

Cycles of the model that kernels are chosen by (`cycles.direct`, or Winograd's filtering where float32 has it), and for
an operand that nothing has narrowed yet another call that reads four bytes of an element and writes two. `vdpbf16ps`
adds up two products per lane, and half the bytes of weights arrive; what it takes per instruction differs by maker.

Measured on Sapphire Rapids, one thread, G products a second: 66 by vfmadd, 32 by vdpbf16ps, 1000 by tdpbf16ps (the
units alone). So vectors of bfloat16 gain there only where weights are read once. Other makers' pace is uops.info's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from graphc.backends.cycles import CALL, Contraction, direct
from graphc.backends.dot import Dot, bf16_products
from graphc.backends.targets import Target
from graphc.backends.tiles import SMALL
from graphc.backends.winograd import KERNEL, choose, cycles

WIDTH = 2
"""Bytes of a code."""
LEAST_GAIN = 1.1
"""How many times as fast bfloat16 must be expected to be: the model is not better than that."""
SLOW_PACE = 4.0
"""Cycles of a vdpbf16ps in those of a vfmadd, where the target does not have the instruction "fast_bf16"."""
MOVED = 8.0
"""Elements narrowed or copied per cycle: read from a cache, rounded in a vector of 16, written."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One product or convolution of one group. `output`: positions of one image, all but the last as rows; `batch`
    images or matrices; `across`: taps that lie next to each other in memory; `strides` of both axes.
    """

    batch: int
    output: Sequence[int]
    channels: int
    filters: int
    taps: int = 1
    across: int = 1
    strides: int = 1
    square: bool = False
    """Whether it is a 3x3 convolution of stride and dilation 1."""

    @property
    def depth(self) -> int:
        """Bytes of codes that lie next to each other and are summed."""
        return WIDTH * -(-self.channels // 2) * 2 * self.across

    @property
    def together(self) -> int:
        """Output positions that lie in a row."""
        return prod(self.output) if self.strides == 1 else self.output[-1]


def fastest(layer: Layer, target: Target, moved: int) -> tuple[Dot | None, float]:
    """(the instruction that is fastest, None where there is none; its speed beside float32's).

    `moved` is how many elements of operands are narrowed at run time for this layer alone, or copied to be padded.
    """
    float32 = _float32(layer, target)
    extra = CALL + moved / MOVED if moved else 0.0
    speeds = [
        (float32 / (_bf16(layer, dot, target) + extra), dot)
        for dot in bf16_products(target, layer.depth, layer.together)
    ]
    if not speeds:
        return None, 0.0
    speed, dot = max(speeds, key=lambda each: each[0])
    return dot, speed


def _float32(layer: Layer, target: Target) -> float:
    plain = direct(_work(layer), target)
    if not layer.square:
        return plain
    filtered = target, layer.batch, layer.output, layer.channels, layer.filters
    filtering = choose(*filtered)
    return plain if filtering is None or layer.taps != KERNEL**2 else cycles(filtering, *filtered)


def _bf16(layer: Layer, dot: Dot, target: Target) -> float:
    pace = 1.0 if dot.tiled or target.has("fast_bf16") else SLOW_PACE
    return direct(_work(layer, dot), target, pace)


def _work(layer: Layer, dot: Dot | None = None) -> Contraction:
    rows, columns = layer.batch * prod(layer.output[:-1]), layer.output[-1]
    if prod(layer.output) <= SMALL or (layer.taps, layer.strides) == (1, 1):
        rows, columns = (rows, columns) if len(layer.output) == 1 else (1, rows * columns)
    step, size = (dot.step, WIDTH) if dot else (1, 4)
    return Contraction(rows, columns, layer.taps * layer.channels, layer.filters, step, size, bool(dot and dot.tiled))
