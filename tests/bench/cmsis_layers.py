"""Instructions of int8 layers on emulated Cortex-M boards, beside CMSIS-NN's.

    python -m tests.bench.cmsis_layers [--board mps2-an386 ...] [LAYER ...]

Each layer is built as in a whole model and run in QEMU with `-icount shift=0`, where the board's clock counts
instructions. What it computes must equal `graphc.backends.reference` in every byte. Activations lie channels last in
memory, as CMSIS-NN has them: the layer's own kernel is counted, not the transpositions from and to ONNX's layout.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from graphc.backends import reference, targets, toolchain
from graphc.backends.build import build_integerized
from graphc.backends.cache import Cache
from graphc.backends.targets import Target
from graphc.backends.worker import Server
from graphc.emulated_board import EmulatedBoard
from graphc.ir import Array, Attribute, Graph, Node, TensorType

BOARDS: Mapping[str, int] = {"mps2-an386": 0, "mps2-an500": 0, "mps3-an547": 1}
"""Board (Cortex-M4, M7, M55) -> which of `Layer.published` it is compared with."""
X_ZERO_POINT, Y_ZERO_POINT = -5, -3
"""CMSIS-NN's input offset 5 and output offset -3."""


@dataclass(frozen=True)
class Layer:
    """An input (H, W, C), filters of a square kernel of stride 1 that keeps H and W; `groups` is C or 1.

    `published`: instructions of CMSIS-NN (main of 2026, -Ofast, arm-none-eabi-gcc 12.2), the same way of counting, on a
    Cortex-M4 (an M7 is within 2 %) and a Cortex-M55.
    """

    x: tuple[int, int, int]
    filters: int
    kernel: int
    published: tuple[int, int]
    groups: int = 1

    @property
    def macs(self) -> int:
        return prod(self.x) // self.groups * self.filters * self.kernel**2


LAYERS: Mapping[str, Layer] = {
    "conv 3x3, 32x32, 16 -> 16": Layer((32, 32, 16), 16, 3, (5_487_480, 914_843)),
    "conv 3x3, 8x8, 64 -> 64": Layer((8, 8, 64), 64, 3, (4_155_280, 485_375)),
    "conv 3x3, 32x32, 3 -> 16": Layer((32, 32, 3), 16, 3, (2_134_120, 599_437)),
    "conv 1x1, 25x5, 64 -> 64": Layer((25, 5, 64), 64, 1, (1_068_920, 202_875)),
    "depthwise 3x3, 25x5, 64": Layer((25, 5, 64), 64, 3, (599_600, 166_843), 64),
    "conv 1x1, 48x48, 8 -> 16": Layer((48, 48, 8), 16, 1, (1_954_920, 641_812)),
    "conv 1x1, 6x6, 128 -> 128": Layer((6, 6, 128), 128, 1, (1_079_160, 166_406)),
    "depthwise 3x3, 48x48, 8": Layer((48, 48, 8), 8, 3, (1_651_080, 863_812), 8),
    "depthwise 3x3, 6x6, 128": Layer((6, 6, 128), 128, 3, (334_960, 96_093), 128),
    "fully connected 128 -> 128": Layer((1, 1, 128), 128, 1, (37_120, 9_437)),
}


def graph(layer: Layer, rng: np.random.Generator) -> Graph:
    """One node of the integer domain, with weights of all values and scales that use the whole range of results."""
    height, width, channels = layer.x
    depth = channels // layer.groups * layer.kernel**2
    connected = (height, width) == (1, 1)
    shape = (channels, layer.filters) if connected else (layer.filters, channels // layer.groups, *(layer.kernel,) * 2)
    scale = (rng.uniform(0.5, 2, layer.filters) / (73 * np.sqrt(depth) * 2)).astype(np.float32)
    constants: dict[str, Array] = {
        "w": rng.integers(-127, 127, shape, np.int8, endpoint=True),
        "b": rng.integers(-(2**13), 2**13, layer.filters, np.int32),
        "s": scale,
    }
    pad = layer.kernel // 2
    attributes: dict[str, Attribute] = {"y_zero_point": Y_ZERO_POINT, "y_min": -128, "y_max": 127}
    if connected:
        attributes |= {"a_zero_point": X_ZERO_POINT}
        node = Node("MatMul", ("x", "w", "b", "s"), ("y",), attributes, "layer", "graphc.integer")
        sizes = {"x": (1, channels), "y": (1, layer.filters)}
    else:
        kernel = (layer.kernel,) * 2
        attributes |= {"x_zero_point": X_ZERO_POINT, "group": layer.groups, "kernel_shape": kernel}
        attributes |= {"strides": (1, 1), "dilations": (1, 1), "pads": (pad,) * 4}
        node = Node("Conv", ("x", "w", "b", "s"), ("y",), attributes, "layer", "graphc.integer")
        sizes = {"x": (1, channels, height, width), "y": (1, layer.filters, height, width)}
    types = {name: TensorType(np.dtype(np.int8), dims) for name, dims in sizes.items()}
    types |= {name: TensorType(array.dtype, array.shape) for name, array in constants.items()}
    return Graph("layer", ("x",), ("y",), (node,), types, constants)


@dataclass(frozen=True)
class Measured:
    """Instructions of the layer's kernels, and whether every byte of the result is the reference's."""

    instructions: int
    equal: bool


def measured(layer: Layer, target: Target, folder: Path, server: Server) -> Measured:
    """Build the layer for a board's processor and run it there once."""
    rng = np.random.default_rng(0)
    model, cache = graph(layer, rng), Cache()
    x = rng.integers(-128, 127, model.types["x"].dims, np.int8, endpoint=True)
    manifest = build_integerized(model, target, folder, server, cache, toolchain.find_for(target, cache.folder))
    with EmulatedBoard(folder) as board:
        found, steps = board(x), board.profile(x)
    own = [n for step, n in zip(manifest.steps, steps, strict=True) if not step.kernel.startswith("transpose")]
    return Measured(sum(own), np.array_equal(found, reference.run(model, {"x": x})["y"]))


def report(board: str, layers: Mapping[str, Layer], server: Server) -> None:
    """The table of one board, as RESULTS.md has it."""
    target = targets.resolve({"board": board})
    print(f"\n| {target.cpu} ({board}) | graphc | CMSIS-NN | ratio | MAC/instruction | equal |")
    print("|---|---:|---:|---:|---:|---|")
    total, theirs = 0, 0
    for name, layer in layers.items():
        with TemporaryDirectory() as folder:
            result = measured(layer, target, Path(folder), server)
        published = layer.published[BOARDS[board]]
        total, theirs = total + result.instructions, theirs + published
        ratio, rate = result.instructions / published, layer.macs / result.instructions
        equal = "yes" if result.equal else "NO"
        print(f"| {name} | {result.instructions:,} | {published:,} | {ratio:.2f} | {rate:.2f} | {equal} |", flush=True)
    print(f"| sum | {total:,} | {theirs:,} | {total / theirs:.2f} | | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layers", nargs="*", metavar="LAYER", help="part of a layer's name")
    parser.add_argument("--board", nargs="+", choices=BOARDS, default=list(BOARDS))
    options = parser.parse_args()
    wanted = {n: layer for n, layer in LAYERS.items() if not options.layers or any(p in n for p in options.layers)}
    with Server(1) as server:
        for board in options.board:
            report(board, wanted, server)


if __name__ == "__main__":
    main()
