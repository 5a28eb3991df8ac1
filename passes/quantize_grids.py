"""Which grid each quantized value is on: formats and methods from the options, ranges from statistics and constants."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import numpy as np

from graphc.errors import InputError
from graphc.ir.graph import Graph, Node
from graphc.passes import quantize_schemes as schemes
from graphc.passes.protocol import Histogram, Observation, Statistics
from graphc.passes.quantize_casts import given_grid, integers_of
from graphc.passes.quantize_logarithms import MOST, before_logarithms, lost
from graphc.passes.quantize_operators import OPERATORS, Role
from graphc.passes.quantize_plan import Plan, Share, data_operands
from graphc.passes.quantize_ranges import STATISTICS, Choice, Method, Span, choose
from graphc.passes.quantize_schemes import FORMATS, Format, Parameters

WIDE, HEADROOM = "int16", 2.0
"""16 bits have one to spare for values that calibration did not meet: saturating them costs far more than steps of
twice the size."""
LARGEST_SPREAD = 16
"""An operand whose range is this many times smaller than another's would keep 4 of 8 bits on the grid of both."""


class Options(Protocol):
    """What grids need to know of a node's options."""

    @property
    def activations(self) -> str: ...
    @property
    def calibrate(self) -> Method | Literal["dynamic"] | None: ...
    @property
    def percentile(self) -> float | None: ...
    @property
    def symmetric(self) -> bool: ...


class Grids:
    """Grids of one graph. What a unit computes follows the options of that unit; anything else those of the pass."""

    def __init__(self, graph: Graph, base: Options, options: Mapping[Node, Options], statistics: Statistics) -> None:
        self._graph, self._base, self._options, self._statistics = graph, base, options, statistics
        self._spans: dict[tuple[str, Choice], Span] = {}
        self._casts = integers_of(graph)

    def observations(self, plan: Plan) -> tuple[Observation, ...]:
        """What must be known of the calibration data: the roots of every share."""
        makers = _makers(plan)
        return tuple(
            self._observation(name, self._own(name, share, makers))
            for share in dict.fromkeys(plan.shares.values())
            if not share.probability
            for name in share.roots
            if name not in self._graph.constants
        )

    def of(
        self, plan: Plan, io: str, borders: Sequence[str], progress: Callable[[str, float], None]
    ) -> dict[str, Parameters]:
        """Value -> its grid, one object for all values of a share. Shares that reach a border have the format `io`."""
        makers, at_border = _makers(plan), set(borders)
        grids: dict[str, Parameters] = {}
        shares = list(dict.fromkeys(plan.shares.values()))
        for index, share in enumerate(shares):
            progress("ranges", index / len(shares))
            own = self._options[share.owner] if share.owner is not None else self._base
            form = FORMATS[own.activations if at_border.isdisjoint(share.members) else io]
            given = next((name for name in share.members if name in at_border and name in self._graph.inputs), None)
            if given is not None and (found := self._rangeless(share, form.name, makers)):
                problem = f"has one value in {found} of the calibration data, so its integers have no scale."
                raise InputError(f"input '{given}'", problem, "Give data as the model will see it, or `io: float`.")
            grids.update(dict.fromkeys(share.members, self._grid(share, form, own, makers)))
        return grids

    def _grid(self, share: Share, form: Format, own: Options, makers: Mapping[str, Node]) -> Parameters:
        if share.probability:
            return schemes.unit_interval(form)
        if (given := given_grid(self._graph, self._casts, share.roots)) is not None and form.name != WIDE:
            return given
        room = HEADROOM if form.name == WIDE else 1.0
        low, high = (room * end for end in self._span(share, form.name, makers))
        return schemes.affine(low, high, form, _symmetric(own, form), f"value '{share.roots[0]}'")

    def crushed(self, plan: Plan) -> dict[Node, str]:
        """Nodes whose result would crush an operand, with that reason to keep them float.

        A Concat puts operands of different ranges on one grid; adding a constant (the -1e9 of an attention mask, say)
        may give a range in which the other operand is a few steps wide.
        """
        found: dict[Node, str] = {}
        makers = _makers(plan)
        for unit in plan.units:
            node = unit.anchor
            constants = [name for name in node.inputs if name in self._graph.constants]
            if node.op != "Concat" and not (constants and unit.operator.float_constants):
                continue
            share, form = plan.shares[unit.results[0]], self._options[node].activations
            small = min(filter(None, (self._width(name, share, form, makers) for name in unit.data)), default=0.0)
            rivals = unit.data if node.op == "Concat" else constants
            large = max(self._width(name, share, form, makers) for name in rivals)
            if large > LARGEST_SPREAD * small:
                found[node] = f"its operands span {small:.3g} and {large:.3g}: one grid would crush the smaller"
        return found

    def constant(self, plan: Plan) -> dict[Node, str]:
        """Nodes that read or give one number (nearly) throughout the data, with that reason to keep them float.

        Such a value has no range: any grid would be made up, and wrong for the first input that differs.
        """
        found: dict[Node, str] = {}
        makers = _makers(plan)
        for unit in plan.units:
            if unit.operator.role is Role.MOVE:
                continue  # moves whatever is there
            for name in (*unit.data, *unit.results):
                share = plan.shares[name]
                form = self._options[unit.anchor].activations
                if not share.probability and (part := self._rangeless(share, form, makers)):
                    reason = f"'{name}' has one value in {part} of the calibration data, and so no range"
                    found.update(dict.fromkeys(unit.nodes, reason))
        return found

    def _rangeless(self, share: Share, form: str, makers: Mapping[str, Node]) -> str:
        """In how much of the data the share has one value: all; nearly all, where the rest is cut off; or nothing.

        What was seen decides, not the range to cover: a method that searches one reaches from such a value to zero.
        """
        if given_grid(self._graph, self._casts, share.roots) is not None:
            return ""
        arrays = [self._statistics.get(self._observation(name, self._own(name, share, makers))) for name in share.roots]
        seen = [(float(found["low"]), float(found["high"])) for found in arrays if found is not None]
        if len(seen) == len(arrays) and min(low for low, _ in seen) == max(high for _, high in seen):
            return "all"
        low, high = self._span(share, form, makers)
        return "" if low < high else "nearly all" if len(seen) == len(arrays) else "all"

    def wide(self, plan: Plan) -> dict[Node, str]:
        """Nodes whose result goes to a logarithm and is too small for its grid, with that reason to keep them float."""
        found: dict[Node, str] = {}
        makers = _makers(plan)
        for name in before_logarithms(self._graph):
            arrays = self._statistics.get(Observation(name, Histogram()))
            if name not in makers or arrays is None:
                continue
            share = plan.shares[name]
            own = self._own(name, share, makers)
            part = lost(arrays, self._grid(share, FORMATS[own.activations], own, makers))
            if part > MOST:
                reason = f"a logarithm follows, and {part:.0%} of its elements are under half a step of 8 bits"
                found[makers[name]] = reason
        return found

    def _width(self, name: str, share: Share, form: str, makers: Mapping[str, Node]) -> float:
        """How much a value's range covers, zero included."""
        low, high = self._value_span(name, share, form, makers)
        return max(high, 0.0) - min(low, 0.0)

    def _span(self, share: Share, form: str, makers: Mapping[str, Node]) -> Span:
        """The range of a share: the union of its roots'."""
        spans = [self._value_span(name, share, form, makers) for name in share.roots]
        return min(low for low, _ in spans), max(high for _, high in spans)

    def _value_span(self, name: str, share: Share, form: str, makers: Mapping[str, Node]) -> Span:
        """The range of one value: all of a constant, what its method chooses from statistics, or that of what it moves.

        Raises InputError for a value that nothing is known of.
        """
        constant = self._graph.constant(name)
        if constant is not None:
            values = constant.astype(np.float64)
            return float(values.min(initial=0.0)), float(values.max(initial=0.0))
        own = self._own(name, share, makers)
        found = self._statistics.get(self._observation(name, own))
        if found is not None:
            choice = Choice(_method(own), own.percentile, FORMATS[form], _symmetric(own, FORMATS[form]))
            key = (name, choice)
            if key not in self._spans:
                self._spans[key] = choose(found, choice)
            return self._spans[key]
        node = self._graph.producers.get(name)
        operator = OPERATORS.get(node.op) if node is not None else None
        if operator is not None and operator.probability:
            return 0.0, 1.0
        if node is not None and operator is not None and operator.role is Role.MOVE:
            moved = [self._value_span(x, share, form, makers) for x in data_operands(node, operator)]
            return min(low for low, _ in moved), max(high for _, high in moved)
        remedy = "Give calibration data (`data: {calibration: ...}`)."
        raise InputError(f"value '{name}'", "has no statistics, so it cannot be quantized.", remedy)

    def _own(self, name: str, share: Share, makers: Mapping[str, Node]) -> Options:
        """The options that say how a value's range is found."""
        if name in makers:
            return self._options[makers[name]]
        if self._base.calibrate in (None, "dynamic") and share.owner is not None:
            return self._options[share.owner]
        return self._base

    def _observation(self, name: str, own: Options) -> Observation:
        return Observation(name, STATISTICS[_method(own)])


def _makers(plan: Plan) -> dict[str, Node]:
    return {name: unit.anchor for unit in plan.units for name in unit.results}


def _method(own: Options) -> Method:
    """Integer activations always come with a method: the pass refuses options without one."""
    if own.calibrate is None or own.calibrate == "dynamic":
        raise ValueError("a grid without a way to find its range")
    return own.calibrate


def _symmetric(own: Options, form: Format) -> bool:
    """Zero is in the middle of int16 always: 16 bits have room, and sums of products stay half as large."""
    return own.symmetric or form.name == WIDE
