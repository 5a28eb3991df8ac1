"""Residual blocks that change their input least leave the graph.

    y = x + f(x)  ->  y = x + mean(f(x))        per channel, with repair; y = x without

A block is an Add, one operand of which is all that the other depends on (besides constants), with nothing inside read
from outside. What it is worth: its outputs' distance from its inputs, |y - x|^2 / |y|^2 on calibration data, or, with
`allocation: sensitivity`, the distance of the model's outputs when it goes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np

from graphc.ir.cost import cost
from graphc.ir.edit import Edit
from graphc.ir.graph import Array, Graph, Node
from graphc.ir.views import nodes_view
from graphc.passes.channel_repair import repaired
from graphc.passes.channel_walk import Walk, feeds_of, feeds_wanted
from graphc.passes.output_error import Feeds, distance, few, outputs
from graphc.passes.protocol import Context, Observation
from graphc.passes.prune_channels import Options


@dataclass(frozen=True, eq=False)
class Block:
    """`join` adds what `inside` makes of `value` to it."""

    join: Node
    value: str
    inside: frozenset[Node]


def blocks(graph: Graph) -> tuple[Block, ...]:
    """Every residual block, in order."""
    view = nodes_view(graph)
    return tuple(
        block
        for node in graph.nodes
        if node.op == "Add" and not node.domain
        for value, other in (node.inputs, node.inputs[::-1])
        if (block := _block(graph, view, node, value, other)) is not None
    )


def _block(graph: Graph, view: "nx.DiGraph[Node]", join: Node, value: str, other: str) -> Block | None:
    last = graph.producers.get(other)
    if last is None or value in graph.constants or graph.types[value] != graph.types[join.outputs[0]]:
        return None
    source = graph.producers.get(value)
    before = {source, *nx.ancestors(view, source)} if source is not None else set[Node]()
    inside = frozenset({last, *nx.ancestors(view, last)} - before)
    results = {name for node in inside for name in node.results}
    reads = {name for node in inside for name in node.reads} - results - graph.constants.keys()
    readers = {user for name in results for user in graph.users.get(name, ())}
    if reads != {value} or readers - inside != {join} or not results.isdisjoint(graph.outputs):
        return None
    return Block(join, value, inside)


def observes(graph: Graph, options: Options) -> tuple[Observation, ...]:
    """Whole feeds: what a block does is seen on data."""
    del options
    return feeds_wanted(graph)


def apply(graph: Graph, options: Options, by_node: Mapping[Node, Options], context: Context) -> Graph:
    """`graph` without some of its blocks. A rule with sparsity 0 for a block's Add keeps that block."""
    feeds = feeds_of(graph, context)
    free = {node.name for node, own in by_node.items() if max(own.stages)}
    every = [block for block in blocks(graph) if block.join.name in free]
    if not every:
        context.skip(graph.nodes[-1], "the graph has no residual block that may go")
        return graph
    after, gone = graph, set[str]()
    for target in options.stages:
        found = [block for block in blocks(after) if block.join.name in free - gone]
        changes = _means(after, found, feeds)
        worth = [changes[block][0] for block in found]
        if options.allocation == "sensitivity":
            worth = list(_felt(after, found, feeds, context))
        ordered = [found[i] for i in np.argsort(worth, kind="stable")]
        left = target * (cost(graph).macs or 0) if options.macs is not None else None
        chosen = _enough(after, ordered, round(target * len(every)) - len(gone), left)
        shifts = {block: changes[block][1] for block in chosen} if options.repair != "none" else {}
        after = repaired(after, without(after, chosen, shifts), {}, feeds, options.repair, context)
        gone |= {block.join.name for block in chosen}
    if options.repair != "none" and gone:
        context.compare("without repair", without(graph, [b for b in every if b.join.name in gone], {}))
    return after


def without(graph: Graph, chosen: Sequence[Block], shifts: Mapping[Block, Array]) -> Graph:
    """The graph without blocks; their mean in their place where it is given."""
    edit = Edit(graph)
    for block in chosen:
        edit.remove(*block.inside)
        if block in shifts:
            shift = edit.constant(shifts[block], f"{block.join.name}_mean")
            edit.replace(block.join, inputs=[block.value, shift])
        else:
            edit.remove(block.join)
            edit.redirect(block.join.outputs[0], block.value)
    return edit.apply()


def _means(graph: Graph, found: Sequence[Block], feeds: Feeds) -> dict[Block, tuple[float, Array]]:
    """Of each block: how far its output is from its input, and the mean of the difference per channel."""
    names = [name for block in found for name in (block.value, block.join.outputs[0])]
    walk = Walk(graph, feeds, names)
    made: dict[Block, tuple[float, Array]] = {}
    for block in found:
        after = walk.through_value(block.join.outputs[0])
        before = walk.through_value(block.value)
        rank = after[0].ndim
        channel = 1 if any(node.op == "Conv" for node in block.inside) else rank - 1
        axes = tuple(axis for axis in range(rank) if axis != channel)
        total, error, energy = 0.0, 0.0, 0.0
        for one, two in zip(before, after, strict=True):
            apart = two.astype(np.float64) - one.astype(np.float64)
            total = total + apart.mean(axis=axes, keepdims=True) / len(feeds)
            error += float(np.square(apart).sum())
            energy += float(np.square(two.astype(np.float64)).sum())
        made[block] = error / max(energy, 1e-30), np.asarray(total, graph.types[block.value].dtype)
        walk.release(block.value)
        walk.release(block.join.outputs[0])
    return made


def _felt(graph: Graph, found: Sequence[Block], feeds: Feeds, context: Context) -> Iterator[float]:
    """How far the model's outputs are when each block goes alone."""
    some = few(feeds)
    expected = outputs(graph, graph, some)
    for done, block in enumerate(found):
        context.progress("sensitivity", done / len(found))
        yield distance(expected, outputs(without(graph, [block], {}), graph, some))


def _enough(graph: Graph, ordered: Sequence[Block], count: int, macs: float | None) -> list[Block]:
    """The first blocks: `count` of them, or until no more than `macs` are left. None lies in another."""
    chosen: list[Block] = []
    left = cost(graph).macs or 0
    for block in ordered:
        if (len(chosen) >= count) if macs is None else (left <= macs):
            break
        if all(block.inside.isdisjoint({*other.inside, other.join}) and block.join not in other.inside
               for other in chosen):  # fmt: skip
            chosen.append(block)
            left = cost(without(graph, chosen, {})).macs or 0
    return chosen
