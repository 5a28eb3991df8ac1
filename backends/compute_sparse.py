"""Sums over the blocks of weights that are not zero, as te definitions (imports TVM)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tvm import te, tirx

from graphc.artifact import Decision
from graphc.backends.cycles import Contraction
from graphc.backends.decode import Decoder
from graphc.backends.relax_module import Lowering
from graphc.backends.sparse import Layout, best_run, is_pruned, sparse, speed
from graphc.ir import Array, Node


@dataclass(frozen=True)
class Skipping:
    """Sparse weights that a kernel was given: `values`, `index` and `starts` as in sparse.py."""

    layout: Layout
    values: te.Tensor
    index: te.Tensor
    starts: te.Tensor

    def axes(self) -> list[Any]:
        """What a sum runs over beside the taps: the blocks of a tap, and the inputs of a block."""
        return [te.reduce_axis((0, self.layout.longest), "block"), te.reduce_axis((0, self.layout.run), "input")]

    def input(self, vector: Any, tap: Any, axes: Sequence[Any]) -> Any:
        """The input channel that a step of the sum reads."""
        return self.index[self.starts[vector, tap] + axes[0]] * self.layout.run + axes[1]

    def weight(self, vector: Any, tap: Any, axes: Sequence[Any], lane: Any, dtype: str) -> Any:
        """The weight that it is multiplied by: nothing past the last block of the tap."""
        row = self.starts[vector, tap] + axes[0]
        inner = (lane, axes[1]) if self.layout.integer else (axes[1], lane)
        stored = self.values[(tirx.min(row, self.layout.count), *inner)].astype(dtype)
        return tirx.Select(row < self.starts[vector, tap + 1], stored, tirx.const(0, dtype))


Weights: TypeAlias = te.Tensor | Decoder | Skipping
"""What a contraction multiplies by: packed, decoded where they are read, or stored without their zeros."""


def described(weights: Weights) -> dict[str, Any]:
    """What schedule rules must know of weights that are not plain."""
    return {
        "coded": weights.layout.description() if isinstance(weights, Decoder) else None,
        "sparse": weights.layout.description() if isinstance(weights, Skipping) else None,
    }


@dataclass(frozen=True)
class SparseOperand:
    """What an anchor takes in place of one tensor of weights: Relax expressions for `values`, `index` and `starts`."""

    layout: Layout
    operands: tuple[Any, ...]

    def skipping(self, tensors: Sequence[te.Tensor]) -> Skipping:
        return Skipping(self.layout, *tensors)


def sparse_operand(
    state: Lowering, node: Node, weights: Array, work: Contraction, filtering: float | None = None
) -> SparseOperand | None:
    """Constant `weights` [outputs, inputs, taps] of `node` without their blocks of zeros, None where that is no faster
    than the direct sum, or `filtering` cycles. What is decided of weights that somebody pruned is told.
    """
    lanes = state.target.lanes(32)
    if state.target.family != "x86" or not is_pruned(weights):
        return None  # what skipping costs elsewhere was not measured
    run = work.step if work.step > 1 else best_run(weights, lanes)
    found = sparse(weights, lanes, run, integer=work.step > 1)
    faster = speed(found, work, state.target, filtering)
    kernel = "sparse" if faster > 1 else "dense"
    state.decisions.append(Decision(node.name or node.outputs[0], kernel, round(faster, 2)))
    if kernel == "dense":
        return None
    arrays = {"values": found.values, "index": found.index, "starts": found.starts}
    operands = tuple(state.parameter(array, f"{node.inputs[1]}.{key}") for key, array in arrays.items())
    return SparseOperand(found.layout, operands)
