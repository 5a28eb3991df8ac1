"""Which dot-product instruction a target multiplies 8-bit integers with, and how it wants weights packed (no TVM).

amx     16 x 64 bytes times 64 x 16: tiles of uint8 or int8 activations and int8 weights, packed as for vnni
vnni    4 x uint8 * int8 -> int32 in one instruction; int8 activations are shifted by 128 first
madd    2 x int16 * int16 -> int32; 8-bit operands are widened, so nothing saturates (`vpmaddubsw` would)
sdot    4 x int8 * int8 -> int32 (Arm); uint8 activations are shifted by -128 first
usdot   4 x uint8 or int8 * int8 -> int32 (Arm with FEAT_I8MM)
mlal    1 x int16 * int16 -> int32 (Arm): 8-bit operands are widened
plain   one product at a time in int32

Where products of bfloat16 are asked for (`narrow_bf16`), operands are its codes, 16 bits each:

amx_bf16  16 x 32 times 32 x 16 into 16 x 16 float32, in tiles (tdpbf16ps)
dpbf16    2 x bfloat16 * bfloat16 -> float32 (vdpbf16ps)

Where products of float16 are asked for (`narrow_fp16`):

half    1 x float16 * float16 -> float16 (Arm with FEAT_FP16): short sums, which are added up in float32

Microcontrollers gather all that an output sums into one run of bytes first (`columns`), so that one loop adds it up:

smlad     2 x int16 * int16 -> int32 per instruction; four bytes of weights are widened by two more
vmladava  16 x int8 * int8 -> int32 in one instruction (Helium)
mla       one product at a time, of bytes as they lie in memory
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from graphc.backends.targets import Target
from graphc.backends.tiles import AMX_CHANNELS, amx_depth, channel_block, columns_tile

Kind = Literal[
    "amx", "amx_bf16", "dpbf16", "vnni", "madd", "sdot", "usdot", "mlal", "plain", "half", "smlad", "vmladava", "mla"
]

FEWEST_BYTES, FEWEST_COLUMNS = 24, 4
"""Tiles with less depth or fewer output columns than this waste more of the unit than vectors would."""


@dataclass(frozen=True)
class Dot:
    """A way to multiply: `step` terms at once, of operands of type `weights`."""

    kind: Kind
    step: int
    weights: np.dtype[Any]
    columns: bool = False
    """Whether the taps and channels of a sum are one depth, gathered for each output position."""

    @property
    def tiled(self) -> bool:
        """Whether matrix tiles multiply."""
        return self.kind in ("amx", "amx_bf16")

    @staticmethod
    def of(kind: str) -> "Dot":
        """By its name. Raises KeyError for none."""
        return DOTS[cast(Kind, kind)]

    def stored(self, weights: np.dtype[Any], x: np.dtype[Any]) -> np.dtype[Any]:
        """What weights of this type lie in memory as, beside activations of type `x`.

        madd takes 8 bits too, for half the memory; widening them as it goes makes convolutions of 8-bit activations 3
        to 8 % slower (DS-CNN, ResNet-8, ResNet-20; v2 and v3), so there they are widened before. Activations of 16
        bits are for precision, and mostly meet weights that are read once.
        """
        return weights if self.kind == "plain" or (self.kind == "madd" and x == np.int16) else self.weights

    def shift(self, x: np.dtype[Any], zero_point: int) -> int:
        """What is added to activations of type `x` so that the instruction takes them, or for nothing as it does."""
        if self.kind == "smlad":
            return -zero_point
        wanted = {"vnni": np.uint8, "sdot": np.int8, "vmladava": np.int8}.get(self.kind, x)
        return 0 if x == wanted else 128 if x == np.int8 else -128

    def block(self, target: Target, channels: int, positions: int) -> int:
        """Output channels that lie next to each other in packed weights; a matrix tile lies in one piece."""
        if self.columns:
            return columns_tile(self.kind, positions, channels)[1]
        if self.tiled:
            return AMX_CHANNELS
        return channel_block(target, channels, bits=16 if self.kind == "half" else 32)


DOTS: dict[Kind, Dot] = {
    "amx": Dot("amx", 4, np.dtype(np.int8)),
    "amx_bf16": Dot("amx_bf16", 2, np.dtype(np.uint16)),
    "dpbf16": Dot("dpbf16", 2, np.dtype(np.uint16)),
    "vnni": Dot("vnni", 4, np.dtype(np.int8)),
    "madd": Dot("madd", 2, np.dtype(np.int16)),
    "sdot": Dot("sdot", 4, np.dtype(np.int8)),
    "usdot": Dot("usdot", 4, np.dtype(np.int8)),
    "mlal": Dot("mlal", 1, np.dtype(np.int16)),
    "plain": Dot("plain", 1, np.dtype(np.int16)),
    "half": Dot("half", 1, np.dtype(np.float16)),
    "smlad": Dot("smlad", 4, np.dtype(np.int8), columns=True),
    "vmladava": Dot("vmladava", 16, np.dtype(np.int8), columns=True),
    "mla": Dot("mla", 1, np.dtype(np.int8), columns=True),
}

VECTORS: dict[Kind, Kind] = {"amx": "vnni", "vnni": "vnni", "madd": "madd"}
"""The way to multiply with vectors that takes weights in steps as this one does."""


def dot_product(target: Target, weights: np.dtype[Any], depth: int, columns: int, chosen: Kind | None = None) -> Dot:
    """The instruction for weights of this type (int16 where zero points left eight bits).

    `depth` is the number of bytes of input that lie next to each other and are summed, `columns` how many output
    positions lie in a row. `chosen` decides among those that the target has for such weights.
    """
    if weights == np.dtype(np.int8) and has_vnni(target):
        fits = amx_depth(depth) > 0 if chosen == "amx" else tiles_fit(depth, columns) and chosen != "vnni"
        return DOTS["amx"] if target.has("amx_int8") and fits else DOTS["vnni"]
    if weights == np.dtype(np.int8) and not target.hosted:
        return DOTS["vmladava" if target.has("mve") else "smlad" if target.has("dsp") else "mla"]
    if weights == np.dtype(np.int8) and target.has("dotprod"):
        return DOTS["usdot"] if target.has("i8mm") else DOTS["sdot"]
    return wide_product(target)


def has_vnni(target: Target) -> bool:
    """Whether vpdpbusd works on the widest vectors that kernels use; AVX-VNNI's are of 256 bits."""
    return target.has("avx512_vnni") or (target.has("avx_vnni") and not target.has("avx512"))


def bf16_products(target: Target, depth: int, columns: int) -> list[Dot]:
    """The instructions for bfloat16 that a target has, for so many bytes of depth and output columns in a row."""
    tiles = [DOTS["amx_bf16"]] if target.has("amx_bf16") and tiles_fit(depth, columns) else []
    return tiles + ([DOTS["dpbf16"]] if target.has("avx512_bf16") else [])


def wide_product(target: Target) -> Dot:
    """The instruction for weights of 16 bits."""
    return {"x86": DOTS["madd"], "arm": DOTS["mlal"]}.get(target.family, DOTS["plain"])


def steps_in_load(target: Target, dot: Dot) -> int:
    """How many steps' inputs one load brings into a register, where the processor multiplies by a lane of it.

    Their weights wait in registers too: with 16 of them, the fewer.
    """
    if target.family != "arm":
        return 1
    few = target.vector_registers < 32
    return {"plain": 2 if few else 4, "mlal": 4 if few else 8}.get(dot.kind, 4)


def weight_registers(target: Target, dot: Dot, block: int) -> int:
    """Registers that the weights of those steps take, for a block of output channels."""
    bits = 32 if dot.kind == "plain" else dot.step * dot.weights.itemsize * 8
    return max(1, steps_in_load(target, dot) * block * bits // target.vector_bits)


def tiles_fit(depth: int, columns: int) -> bool:
    """Whether matrix tiles pay for so many bytes of depth and output columns in a row."""
    return amx_depth(depth) >= FEWEST_BYTES and columns >= FEWEST_COLUMNS
