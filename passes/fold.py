"""Fold: everything that can be computed, merged or dropped before the model runs.

    before: Conv -> BatchNormalization -> Identity -> Relu        after: Conv -> Relu

Results stay equal to float rounding; NaN and infinity are not hidden. Decoder expressions (compressed weights) are
never evaluated. The rules live in fold_*.py, one file per kind; they are swept over the graph until nothing changes.
"""

from collections.abc import Callable
from typing import Literal

from graphc.errors import InternalError
from graphc.ir.graph import Graph, Node
from graphc.passes import (
    fold_chains,
    fold_control,
    fold_identities,
    fold_linear,
    fold_pads,
    fold_patterns,
    fold_pieces,
    fold_quantized,
    fold_reshapes,
    fold_transposes,
    fold_views,
)
from graphc.passes.fold_constants import fold_constants
from graphc.passes.fold_duplicates import Digests, remove_duplicates
from graphc.passes.fold_shapes import fold_shapes
from graphc.passes.fold_sweep import Refuse, Rules, Sweep, merge
from graphc.passes.protocol import Context, Pass

_CLEAN = merge(
    fold_control.RULES,
    fold_identities.RULES,
    fold_reshapes.RULES,
    fold_transposes.RULES,
    fold_pieces.RULES,
    fold_quantized.RULES,
    fold_views.RULES,
)
_PATTERNS = merge(fold_patterns.RULES, _CLEAN)
_MERGE = merge(_PATTERNS, fold_pads.RULES, fold_linear.RULES, fold_chains.RULES)
STAGES: tuple[Rules, ...] = (_CLEAN, _PATTERNS, _MERGE)
"""Rules that join stage after stage, each stage run to a fixpoint."""

ROUNDS = 10_000
"""Sweeps after which rules are taken to undo each other: a bug, not a large model."""


class Fold(Pass):
    """Computes constants, merges layers, drops what does nothing.

    before: x -> Conv(w) -> BatchNormalization -> Reshape -> Reshape -> y
    after:  x -> Conv(w') -> Reshape -> y
    """

    kind: Literal["fold"] = "fold"

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The folded graph; the very same object where there was nothing to fold."""
        return fold(graph, context.skip)


def _quiet(_node: Node, _reason: str) -> None:
    """A refusal nobody asked about."""


def fold(graph: Graph, refuse: Refuse = _quiet) -> Graph:
    """Fold `graph` to a fixpoint. `refuse` hears of nodes that were left alone, and why.

    Raises InternalError where rules do not come to an end.
    """
    digests = Digests()
    refusals: list[tuple[Node, str]] = []
    for rules in STAGES:
        graph = _fixpoint(graph, rules, digests, refusals)
    for node, reason in refusals:
        refuse(node, reason)
    return graph


def _fixpoint(graph: Graph, rules: Rules, digests: Digests, refusals: list[tuple[Node, str]]) -> Graph:
    """Sweep until a round changes nothing; what that last round refused is left in `refusals`."""

    def refuse(node: Node, reason: str) -> None:
        refusals.append((node, reason))

    steps: tuple[Callable[[Graph], Graph], ...] = (
        lambda g: remove_duplicates(g, digests),
        lambda g: fold_constants(g, refuse),
        fold_shapes,
        lambda g: Sweep(g, refuse).run(rules),
        lambda g: fold_control.fold_bodies(g, lambda body: fold(body, refuse)),
    )
    for _ in range(ROUNDS):
        before = graph
        refusals.clear()
        for step in steps:
            graph = step(graph)
        if graph is before:
            return graph
    raise InternalError(graph.name or "graph", f"folding has not come to an end after {ROUNDS} rounds.")
