"""Which products of integers could leave int32, where every kernel on every target adds up (backends/arithmetic.py).

    |sum over k of (x - x_zero_point) * (w - w_zero_point)|  <=  reach of x * sum over k of |w - w_zero_point|

Products of 8 bits need over 33,000 terms for that; those of 16 by 8 bits a few hundred of the largest, and those of
16 by 16 bits two.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from graphc.ir.graph import Graph, Node
from graphc.passes.quantize_operators import Role
from graphc.passes.quantize_plan import Plan, Unit
from graphc.passes.quantize_schemes import FORMATS, Scheme, quantize, weight_parameters
from graphc.passes.quantize_weights import weights_of

MAX_SUM = 2**31 - 1


class Options(Protocol):
    """What sums depend on."""

    @property
    def activations(self) -> str: ...
    @property
    def scheme(self) -> Scheme: ...


def overflowing(graph: Graph, plan: Plan, options: Mapping[Node, Options]) -> dict[Node, str]:
    """Nodes of products whose sums int32 might not hold, with that reason to keep them float."""
    found: dict[Node, str] = {}
    for unit in plan.units:
        if unit.operator.role is Role.PRODUCT and (worst := _largest(graph, plan, unit, options)) > MAX_SUM:
            reason = f"the int32 accumulator could overflow: its sums may reach {worst:.3g} in steps of the integers"
            found.update(dict.fromkeys(unit.nodes, reason))
    return found


def _largest(graph: Graph, plan: Plan, unit: Unit, options: Mapping[Node, Options]) -> float:
    """The largest magnitude that a sum can reach, its bias left out (which may make it 64 bits wide)."""
    node, reaches = unit.anchor, [_reach(plan, name, options, unit) for name in unit.data]
    if len(reaches) > 1:
        return float(graph.types[node.inputs[0]].dims[-1] * reaches[0] * reaches[1])
    weights = weights_of(graph, node)
    scheme = weights.fitted(options[node].scheme)
    if weights.rows.shape[1] * reaches[0] * (scheme.format.high - scheme.format.low) <= MAX_SUM:
        return 0.0
    parameters = weight_parameters(weights.rows, scheme)
    integers = quantize(weights.rows, parameters).astype(np.int64)
    apart = np.abs(integers - parameters.spread(weights.rows.shape)[1]).sum(axis=1)
    return float(apart.max(initial=0)) * reaches[0]


def _reach(plan: Plan, name: str, options: Mapping[Node, Options], unit: Unit) -> int:
    """The largest |q - zero_point| on the grid of a value: zero is in the middle of int16, anywhere in 8 bits."""
    owner = plan.shares[name].owner
    form = FORMATS[options[owner or unit.anchor].activations]
    return -form.low if form.name == "int16" else form.high - form.low
