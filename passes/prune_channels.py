"""Channels and heads that matter least leave the graph.

    Conv(x, w1[16, 3, 3, 3]) -> Relu -> Conv(., w2[32, 16, 3, 3])
    Conv(x, w1[11, 3, 3, 3]) -> Relu -> Conv(., w2[32, 11, 3, 3])

What must go together: channel_groups.py; what it is worth: channel_worth.py; how much of each family goes:
channel_choice.py; what makes up for it: channel_repair.py. Several sparsities are taken one after another, each with
its own statistics and repair.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol
from zipfile import BadZipFile

import numpy as np

from graphc.errors import InputError
from graphc.ir.cost import cost
from graphc.ir.graph import Array, Graph, Node
from graphc.passes.channel_choice import Choice, Rung, removed_by
from graphc.passes.channel_cut import apart, cut
from graphc.passes.channel_groups import ChannelGroups, Elements, Family, channel_groups
from graphc.passes.channel_repair import Repair, repaired
from graphc.passes.channel_walk import feeds_of, feeds_wanted
from graphc.passes.channel_worth import BY_DATA, Worth
from graphc.passes.output_error import distance, few, outputs
from graphc.passes.protocol import Context, Observation, has_weights


class Options(Protocol):
    """What cutting channels asks of a node's options."""

    @property
    def method(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def allocation(self) -> str: ...
    @property
    def stages(self) -> tuple[float, ...]: ...
    @property
    def macs(self) -> float | tuple[float, ...] | None: ...
    @property
    def repair(self) -> Repair: ...
    @property
    def round_to(self) -> int | str: ...
    @property
    def gradients(self) -> Path | None: ...


def needs_feeds(options: Options) -> bool:
    """Whether calibration data is run through the graph."""
    return options.method in BY_DATA or options.repair != "none" or options.allocation == "sensitivity"


def observes(graph: Graph, options: Options) -> tuple[Observation, ...]:
    """Whole feeds, where something is to be learned from data."""
    return feeds_wanted(graph) if needs_feeds(options) else ()


def apply(graph: Graph, options: Options, by_node: Mapping[Node, Options], context: Context) -> Graph:
    """`graph` with the channels cut that its options say; why others stay is in the context."""
    feeds = feeds_of(graph, context) if needs_feeds(options) else []
    after = bare = graph
    for stage in range(len(options.stages)):
        before = apart(after)
        shares = {node.name: _wanted(own, stage) for node, own in by_node.items()}
        cutting = _Cutting(before, options, shares, feeds, context)
        removed = cutting.removed(_macs_left(graph, before, options, stage), _step(options.stages, stage))
        after = repaired(before, cut(before, removed), removed, feeds, options.repair, context)
        bare = cut(apart(bare), removed) if options.repair != "none" else after
    if after is not bare:
        context.compare("without repair", bare)
    _note(graph, after, context)
    return after


def _note(before: Graph, after: Graph, context: Context) -> None:
    """How many numbers the results of layers have, before and after."""
    for node in before.nodes:
        result = node.outputs[0]
        if has_weights(before, node) and result in after.types and before.types[result] != after.types[result]:
            context.note(node, before=before.types[result].size, after=after.types[result].size)


def _wanted(own: Options, stage: int) -> float:
    """The share that a node's own options ask for; where MACs decide, whether it may lose any."""
    return float(any(own.stages)) if own.macs is not None else _step(own.stages, stage)


def _step(stages: Sequence[float], stage: int) -> float:
    """The share of what a stage finds that it takes, so that `stages` are shares of what was there at first.

    One share alone is that of every stage together, taken in the first.
    """
    if stage >= len(stages):
        return 0.0
    before = stages[stage - 1] if stage else 0.0
    return max(1 - (1 - stages[stage]) / (1 - before), 0.0)


def _macs_left(first: Graph, now: Graph, options: Options, stage: int) -> float | None:
    """The share of a stage's MACs that it should leave; None where shares of channels decide."""
    if options.macs is None:
        return None
    return min(options.stages[stage] * (cost(first).macs or 0) / max(cost(now).macs or 0, 1), 1.0)


class _Cutting:
    """One cut of one graph."""

    def __init__(
        self,
        graph: Graph,
        options: Options,
        shares: Mapping[str, float],
        feeds: Sequence[Mapping[str, Array]],
        context: Context,
    ) -> None:
        self._graph, self._options, self._shares = graph, options, shares
        self._feeds, self._context = feeds, context
        found = channel_groups(graph, heads=options.family == "heads")
        self._explain(found)
        self._families = [family for family in found.families if _is_taken(graph, family, options)]

    def removed(self, macs: float | None, sparsity: float) -> Elements:
        """What goes, to leave `macs` of the MACs, or to take `sparsity` of the groups."""
        options, gradients = self._options, _gradients(self._options)
        worth = Worth(self._graph, self._families, options.method, self._feeds, gradients, self._context)
        rungs = tuple(Rung(family, worth.ladder(family), self._share(family)) for family in self._families)
        if options.allocation == "sensitivity":
            rungs = self._scaled(rungs)
        round_to = self._context.lanes if options.round_to == "auto" else int(options.round_to)
        choice = Choice(self._graph, rungs, options.allocation, round_to)
        counts = choice.by_macs(macs) if macs is not None else choice.by_share(sparsity)
        return removed_by(rungs, counts)

    def _scaled(self, rungs: Sequence[Rung]) -> tuple[Rung, ...]:
        """Errors as the outputs feel them: half of each family goes, alone, on some of the feeds."""
        feeds = few(self._feeds)
        expected = outputs(self._graph, self._graph, feeds)
        found = []
        for place, rung in enumerate(rungs):
            self._context.progress("sensitivity", place / len(rungs))
            half = rung.size // 2
            tried = cut(self._graph, removed_by([rung], [half])) if half else self._graph
            error = distance(expected, outputs(tried, self._graph, feeds))
            found.append(replace(rung, scale=error / max(float(rung.ladder.errors[half]), 1e-12)))
        return tuple(found)

    def _share(self, family: Family) -> float:
        """What the node that makes these channels asks for."""
        maker = _maker(self._graph, family)
        return self._shares[maker.name] if maker is not None else max(self._shares.values())

    def _explain(self, found: ChannelGroups) -> None:
        """A reason for each layer none of whose results can go."""
        open_ = {name for family in found.families for name, _ in family.axes}
        for node in self._graph.nodes:
            if has_weights(self._graph, node) and node.outputs[0] not in open_:
                reasons = [why for (name, _), why in found.reasons.items() if name == node.outputs[0]]
                self._context.skip(node, f"its channels stay: {reasons[-1] if reasons else 'it has one'}")


def layers(graph: Graph, options: Options) -> tuple[Node, ...]:
    """The nodes whose options decide how much of each family goes."""
    single = apart(graph)
    families = channel_groups(single, heads=options.family == "heads").families
    makers = {_maker(single, family) for family in families if _is_taken(single, family, options)}
    names = {node.name for node in makers if node is not None}
    return tuple(node for node in graph.nodes if node.name in names)


def _maker(graph: Graph, family: Family) -> Node | None:
    """The first node with weights through which these channels come."""
    names = {name for name, _ in family.axes}
    for node in graph.nodes:
        if not names.isdisjoint(node.inputs) and not names.isdisjoint(node.results) and has_weights(graph, node):
            return node
    return None


def _is_taken(graph: Graph, family: Family, options: Options) -> bool:
    """Whether there are weights among what goes, and heads where heads are asked for."""
    weights = [name for name, _ in family.axes if len(graph.types[name].dims) > 1]
    constants = any(name in graph.constants for name in weights)
    return constants and len(family.groups) > 1 and (family.heads or options.family != "heads")


def _gradients(options: Options) -> Mapping[str, Array]:
    if options.gradients is None:
        return {}
    try:
        with np.load(options.gradients, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, TypeError, BadZipFile) as error:
        raise InputError(str(options.gradients), "expected an .npz of arrays by name of weights.") from error
