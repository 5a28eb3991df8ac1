"""What may be worth measuring for the kernels of each schedule rule, beside what the cost model says (no TVM).

Rules stand in the order of `graphc.backends.schedule`, and the first that takes a layer names its candidates. A layer
that none takes has no candidates: the generic rule computes it, or tiles that were searched (`searchable`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from graphc.backends.choices import BY_MODEL, Choice, decoder
from graphc.backends.dot import has_vnni
from graphc.backends.integer_region import DOMAIN as INTEGER
from graphc.backends.layout import DOMAIN as CHANNELS_LAST
from graphc.backends.narrow_bf16 import DOMAIN as BF16
from graphc.backends.sparse import is_pruned
from graphc.backends.targets import Target
from graphc.backends.tiles import WIDEST_WINDOW, widest_tile
from graphc.backends.winograd import KERNEL, MOST_CHANNELS, POINTS
from graphc.ir.graph import Graph, Node

LAYERS = {
    *((domain, "Conv") for domain in (CHANNELS_LAST, INTEGER, BF16)),
    *((domain, "MatMul") for domain in ("", INTEGER, BF16)),
    *((domain, "Gemm") for domain in ("", BF16)),
}
GROUPS = (1, 2, 4)
"""Vectors of output channels that one register tile, or task of matrix tiles, may span."""


@dataclass(frozen=True)
class Layer:
    """A node of a laid-out graph that multiplies by weights, and how much is tried for it."""

    graph: Graph
    node: Node
    target: Target
    thorough: bool

    @property
    def weights(self) -> str:
        return self.node.inputs[1]

    @property
    def is_dense(self) -> bool:
        """Whether every output channel sums over every input channel, in a form that has a rule of its own."""
        dims = self.graph.types[self.weights].dims
        if self.node.op == "Conv":
            return self.node.get_int("group", 1) == 1 and len(dims) == 4
        return self.graph.types[self.weights].size > 0

    @property
    def is_tiled(self) -> bool:
        """Whether register tiles compute it: dense sums and, of floats, those of groups and along any axes."""
        groups, channels = self.node.get_int("group", 1), self.graph.types[self.node.inputs[0]].dims[-1]
        floats = self.node.op == "Conv" and self.node.domain == CHANNELS_LAST
        return self.is_dense or (floats and (groups == 1 or groups < channels))

    @property
    def is_plain(self) -> bool:
        """Whether weights are packed as they are: those of convolutions and integers when the model is compiled."""
        given = self.node.domain or decoder(self.graph, self.weights)
        return self.weights in self.graph.constants or not given

    def tiles(self, vectors: int) -> list[int]:
        """Widths of register tiles of so many vectors."""
        widest = widest_tile(self.target, vectors)
        parts = (widest, widest - 1, widest * 3 // 4, widest // 2) if self.thorough else (widest, widest * 3 // 4)
        return list(dict.fromkeys(max(1, part) for part in parts))


Rule = Callable[[Layer], Iterator[Choice] | None]
"""The candidates of a layer beside the cost model's, None for a layer that another rule takes."""


def decoded(layer: Layer) -> Iterator[Choice] | None:
    """Codes: how many vectors are decoded together, and how many columns share them."""
    if not layer.is_tiled or layer.node.domain == INTEGER or not decoder(layer.graph, layer.weights):
        return None
    return register_tiles(layer, BY_MODEL)


def pruned(layer: Layer) -> Iterator[Choice] | None:
    """Weights with zeros: one vector of outputs, and as many columns as pay."""
    if not layer.is_dense or layer.weights not in layer.graph.constants:
        return None
    if not is_pruned(layer.graph.constants[layer.weights]):
        return None
    return (Choice(tile=tile) for tile in layer.tiles(1))


def tiled(layer: Layer) -> Iterator[Choice] | None:
    """bfloat16 on matrix tiles: how many groups of channels a task takes."""
    return groups(layer, BY_MODEL) if layer.node.domain == BF16 else None


def contraction(layer: Layer) -> Iterator[Choice] | None:
    """Weights as they are: the instruction, Winograd's filtering or the direct sum, and register tiles."""
    if (
        not layer.is_tiled
        or not layer.is_plain
        or (layer.node.op == "Conv" and layer.weights not in layer.graph.constants)
    ):
        return None
    kind = layer.graph.types[layer.node.inputs[0]].dtype
    if layer.node.domain == INTEGER and kind.itemsize == 1 and has_vnni(layer.target):
        return integers(layer)
    return filtered(layer) if _filters(layer) and kind == np.float32 else register_tiles(layer, BY_MODEL)


def window(layer: Layer) -> Iterator[Choice] | None:
    """Depthwise convolutions: how many columns a tile spans."""
    channels = layer.graph.types[layer.node.inputs[0]].dims[-1]
    dims = layer.graph.types[layer.weights].dims
    if layer.node.op != "Conv" or len(dims) != 4 or not layer.node.get_int("group", 1) == channels == dims[0]:
        return None
    columns = layer.graph.types[layer.node.outputs[0]].dims[-2]
    widths = range(2, 2 * WIDEST_WINDOW + 1, 1 if layer.thorough else 4)
    return (Choice(tile=width) for width in widths if width <= columns)


RULES: tuple[Rule, ...] = (decoded, pruned, tiled, contraction, window)


def candidates(graph: Graph, node: Node, target: Target, thorough: bool) -> list[Choice]:
    """What may be worth measuring for a node of a laid-out graph, the cost model's own first; none without a choice."""
    if not target.hosted or (node.domain, node.op) not in LAYERS:
        return []
    layer = Layer(graph, node, target, thorough)
    found = next((list(made) for rule in RULES if (made := rule(layer)) is not None), [])
    return [BY_MODEL, *found] if found else []


def register_tiles(layer: Layer, base: Choice) -> Iterator[Choice]:
    """The direct sum with register tiles of several shapes."""
    lanes = max(1, layer.target.lanes(32))
    channels = layer.graph.types[layer.node.outputs[0]].dims[-1] // layer.node.get_int("group", 1)
    for vectors in GROUPS:
        if vectors == 1 or lanes * vectors <= -(-channels // lanes) * lanes:
            yield from (replace(base, vectors=vectors, tile=tile) for tile in (None, *layer.tiles(vectors)))


def groups(layer: Layer, base: Choice) -> Iterator[Choice]:
    """Matrix tiles, several groups of channels to a task."""
    yield from (replace(base, vectors=vectors) for vectors in GROUPS)


def integers(layer: Layer) -> Iterator[Choice]:
    """Bytes: on matrix tiles where there are any, in vectors."""
    if layer.target.has("amx_int8"):
        yield from groups(layer, Choice(dot="amx"))
    yield from register_tiles(layer, Choice(dot="vnni"))


def filtered(layer: Layer) -> Iterator[Choice]:
    """Floats of a 3x3 convolution."""
    yield from (Choice(winograd=m) for m in POINTS)
    yield from register_tiles(layer, Choice(winograd=0))


def _filters(layer: Layer) -> bool:
    """Whether Winograd's filtering can compute the node."""
    if not layer.is_dense or layer.node.op != "Conv" or layer.node.domain != CHANNELS_LAST or not layer.target.winograd:
        return False
    dims = layer.graph.types[layer.weights].dims
    steps = all(step == 1 for name in ("strides", "dilations") for step in layer.node.get_ints(name))
    return dims[2:] == (KERNEL, KERNEL) and steps and dims[1] <= MOST_CHANNELS
