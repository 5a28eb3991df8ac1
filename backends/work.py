"""What each call of a program has to do at least: the place of a layer under a machine's roofline (no TVM)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from graphc.artifact import Work
from graphc.backends.integer_region import DOMAIN as INTEGER
from graphc.backends.narrow_bf16 import DOMAIN as BF16
from graphc.backends.narrow_fp16 import DOMAIN as FP16
from graphc.backends.program import Call, Program
from graphc.ir.cost import macs
from graphc.ir.graph import Graph

PICKS = frozenset({"Gather", "GatherElements", "GatherND", "Slice", "Split"})
"""Operators that may read a small part of their operand: no more of it is counted than they write."""

ARITHMETIC = {INTEGER: "int8", BF16: "bf16", FP16: "fp16"}
"""What is multiplied, by a node's domain; elsewhere the type of the first operand."""


@dataclass(frozen=True)
class Share:
    """The nodes of the graph that a call belongs to, and how many products its kernels execute, None for all."""

    nodes: tuple[int, ...]
    products: int | None = None


def with_work(program: Program, graph: Graph, shares: Sequence[Share]) -> Program:
    """The program with the work of its calls, given the share of each in `graph`.

    A node that several calls compute (Winograd's two stages, an operand that is packed first) counts in the last.
    """
    counted: set[int] = set()
    calls = []
    for call, share in zip(reversed(program.calls), reversed(shares), strict=True):
        new = [index for index in share.nodes if index < len(graph.nodes) and index not in counted]
        counted.update(new)
        calls.append(replace(call, work=_work(program, graph, call, share, new)))
    return replace(program, calls=tuple(reversed(calls)))


def _work(program: Program, graph: Graph, call: Call, share: Share, new: Sequence[int]) -> Work:
    known = [(graph.nodes[index], macs(graph, graph.nodes[index]) or 0) for index in new]
    total = sum(count for _, count in known)
    types = [ARITHMETIC.get(node.domain) or graph.types[node.inputs[0]].dtype.name for node, n in known if n]
    products = share.products if total and share.products is not None else total
    weights, data = _bytes(program, call, any(graph.nodes[i].op in PICKS for i in share.nodes if i < len(graph.nodes)))
    return Work(products, types[0] if types else "", weights, data)


def _bytes(program: Program, call: Call, picks: bool) -> tuple[int, int]:
    """Bytes of constants, and of other buffers, that a call touches; each buffer once, however many views it has."""
    written = sum(program.buffers[name].bytes for name in call.writes)
    weights = data = 0
    seen: set[str] = set()
    for name in call.arguments:
        root = _root(program, name)
        if root in seen:
            continue
        seen.add(root)
        size = program.buffers[root].bytes
        size = min(size, written) if picks else size
        if root in program.constants:
            weights += size
        else:
            data += size
    return weights, data


def _root(program: Program, name: str) -> str:
    """What owns a buffer's bytes; a part counts as itself: no more of it is touched."""
    while name in program.aliases:
        name = program.aliases[name]
    return name
