"""Weights as decoder expressions: their codes become parameters, and the anchor that multiplies by them decodes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from graphc.backends.coded import coded
from graphc.backends.coded_layout import Layout, arrays, layout
from graphc.backends.decode import Decoder
from graphc.backends.relax_module import Lowering
from graphc.backends.targets import Target
from graphc.ir import Array


@dataclass(frozen=True)
class CodedOperand:
    """What an anchor takes in place of one tensor of weights."""

    layout: Layout
    operands: tuple[Any, ...]
    """Relax expressions, in the order of `Layout.operands`."""
    target: Target

    def decoder(self, tensors: Sequence[Any]) -> Decoder:
        return Decoder(self.layout, tensors, self.target)


def coded_operand(
    state: Lowering, name: str, matrix: Callable[[Array], Array], block: int, taps: int = 1
) -> CodedOperand | None:
    """The weights `name` as codes that are decoded where they are read, None where they are no such expression.

    `matrix` rearranges an array of their shape to (outputs, input channels * taps).
    """
    weights = coded(state.graph, name, matrix)
    if weights is None:
        return None
    plan = layout(weights, taps, state.target)
    stored = arrays(weights, plan, block)
    operands = tuple(state.parameter(stored[each], f"{name}.{each}") for each in plan.operands)
    return CodedOperand(plan, operands, state.target)
