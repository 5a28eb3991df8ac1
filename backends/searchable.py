"""Kernels that no schedule rule takes: the loops of their sums, and how those may be cut (no TVM).

    for s in spatial: for r in reduced: acc[s] += x[...] * w[...]

Each spatial loop is cut in three and each reduced one in two, nested as `STRUCTURE` says (see `schedule_searched`).
Tiles are numbers that multiply to the loops they cut. Whatever passes `Loops.fits` computes the same sums and bounds
code and stack, so a database that somebody else wrote can make a kernel slow, but not wrong.
"""

import json
from dataclasses import dataclass
from math import prod

from graphc.backends.choices import Choice, Tiles
from graphc.backends.integer_region import DOMAIN as INTEGER
from graphc.backends.layout import DOMAIN as CHANNELS_LAST
from graphc.backends.targets import Target
from graphc.ir.graph import Graph, Node

STRUCTURE = "SRSRS"
"""Spatial and reduced parts from the outermost inwards, in MetaSchedule's notation."""
SPATIAL, REDUCED = STRUCTURE.count("S"), STRUCTURE.count("R")
ATTRIBUTE = "graphc.tiles"
"""Annotation of a sum that was searched: its tiles as JSON."""
WIDEST = 64
"""Most elements of a vector."""
MOST_SUMS = 4096
"""Most sums that a task has at once: they lie on the stack."""


@dataclass(frozen=True)
class Loops:
    """Steps of the loops of a sum, in the order of its definition."""

    spatial: tuple[int, ...]
    reduced: tuple[int, ...]
    run: int
    """Neighbours on the last spatial axis that read the same inputs, or neighbouring ones: vectors stay in a run."""

    def fits(self, tiles: Tiles) -> bool:
        """Whether the loops can be cut so."""
        parts = [SPATIAL] * len(self.spatial) + [REDUCED] * len(self.reduced)
        if [len(tile) for tile in tiles] != parts or any(part < 1 for tile in tiles for part in tile):
            return False
        if tuple(map(prod, tiles)) != (*self.spatial, *self.reduced):
            return False
        spatial = tiles[: len(self.spatial)]
        vector = spatial[-1][-1]
        return self.run % vector == 0 and vector <= WIDEST and prod(prod(tile[1:]) for tile in spatial) <= MOST_SUMS

    def score(self, tiles: Tiles, target: Target) -> float:
        """Products in a cycle, about, with the tiles; 0 for those that do not fit.

        A pair of units multiplies two vectors a cycle and two loads feed it; fewer than eight sums wait for each other.
        Sums that do not fit the registers are loaded and stored at each product.
        """
        if not self.fits(tiles):
            return 0.0
        lanes, spatial, reduced = max(1, target.lanes(32)), tiles[: len(self.spatial)], tiles[len(self.spatial) :]
        level = 1 if prod(tile[-1] for tile in reduced) == 1 else 2  # the rows are inside of all reductions, or outside
        parts = [prod(tile[level:]) for tile in spatial]
        vector = spatial[-1][-1]
        registers = -(-vector // lanes)
        across, others = parts[-1] // vector * registers, prod(parts[:-1])
        sums, loads = across * others, across + others * -(-parts[-1] // self.run)
        loads += 2 * sums if sums > target.vector_registers - across else 0
        return prod(parts) / max(sums / 2, loads / 2, 4.0)


def loops(graph: Graph, node: Node, target: Target) -> Loops | None:
    """The loops of a node of a laid-out graph if it may be searched, None for those that have a rule, and all others.

    Searched are transposed convolutions, grouped ones of integers, and depthwise ones with several filters a channel.
    """
    if not target.hosted or node.op not in ("Conv", "ConvTranspose") or node.domain not in (CHANNELS_LAST, INTEGER):
        return None
    taps, channels = graph.types[node.inputs[1]].dims[2:], graph.types[node.inputs[0]].dims[-1]
    result, groups = graph.types[node.outputs[0]].dims, node.get_int("group", 1)
    inner, outer = channels // groups, result[-1] // groups
    if node.op == "ConvTranspose" or (node.domain == INTEGER and 1 < groups < channels):
        return Loops(result, (*taps, inner), outer)
    return Loops(result, taps, outer) if 1 < groups == channels != result[-1] else None


def usable(graph: Graph, node: Node, target: Target, choice: Choice) -> bool:
    """Whether the tiles of a choice, if it has any, are some for this node."""
    if choice.tiles is None:
        return True
    found = loops(graph, node, target)
    return found is not None and found.fits(choice.tiles)


def attributes(tiles: Tiles | None) -> dict[str, str]:
    """What the definition of a sum says of its tiles."""
    return {} if tiles is None else {ATTRIBUTE: json.dumps(tiles)}
