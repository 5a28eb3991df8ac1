"""Constant weights as a matrix with a row for each output channel, and the decoders that stand for them in a graph.

    Conv w[O, I, kh, kw]           rows [O, I*kh*kw]       MatMul w[.., K, N]    rows [.. N, K]
    ConvTranspose w[I, O/g, ..]    rows [O/g, I*kh*kw]     Gemm w[K, N], w[N, K] (transB)    rows [N, K]
    LSTM, GRU, RNN w[D, G*H, K]    rows [D*G*H, K]         Gather w[V, K]        rows [V, K], one for each index

Integers are stored as the weights lie; ONNX blocks one axis, so groups that run across several are stored as rows:

    w  ->  DequantizeLinear(q, scale, zero_point)                                one scale, or one per channel
    w  ->  DequantizeLinear(q, scale, zero_point; axis, block_size)              groups along one axis of w
    w  ->  Reshape(DequantizeLinear(q[O, I*kh*kw], ...; axis=1, block_size))     groups of convolutions
    w  ->  Cast(w16)                                                             16-bit floats
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from graphc.ir.edit import Edit
from graphc.ir.graph import Array, Attribute, Graph, Node
from graphc.ir.protobuf import type_to_proto
from graphc.passes.quantize_operators import weight_position
from graphc.passes.quantize_schemes import Integers, Parameters, Scheme

Rows = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Weights:
    """Constant weights of a product, times `factor` (Gemm's alpha).

    `order` brings the axes of its output channels, `lead` of them, to the front. A grouped ConvTranspose has `groups`
    times as many channels as the matrix has rows.
    """

    name: str
    shape: tuple[int, ...]
    rows: Rows
    order: tuple[int, ...]
    lead: int
    groups: int
    factor: float

    @property
    def channels(self) -> int:
        """How many channels the results of the product have (a batch of matrices has as many as each of them)."""
        return self.shape[self.order[self.lead - 1]] * self.groups

    def fitted(self, scheme: Scheme, blocks: bool = False) -> Scheme:
        """`scheme` as these weights can hold it.

        A batch of matrices has no one axis of channels: one scale, where there are no groups; with `blocks`, a scale
        for each row as that of a group. A group that a row fits in is that row.
        """
        depth = self.rows.shape[1]
        if scheme.group is not None and scheme.group < depth:
            return scheme
        if blocks and scheme.per_channel and self.lead > 1 and depth > 1:
            return replace(scheme, group=depth)
        return replace(scheme, group=None, per_channel=scheme.per_channel and self.lead == 1)

    def per_scale(self, bias: Rows) -> Rows:
        """A number per channel -> the largest magnitude among channels that share a row."""
        return np.asarray(np.abs(bias).reshape(self.groups, -1).max(axis=0))

    def per_channel(self, scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """A number per row -> one per channel (a single one stays single)."""
        return np.tile(scale, self.groups) if scale.ndim else scale

    def laid_out(self, rows: Array) -> Array:
        """An array [rows, n] as the weights lie, n in the place of the axes that rows run along (as they are if n is
        their size).
        """
        lead = [self.shape[axis] for axis in self.order[: self.lead]]
        inner = [self.shape[axis] for axis in self.order[self.lead :]]
        depth = inner if rows.shape[1] == int(np.prod(inner)) else [rows.shape[1]]
        return np.ascontiguousarray(rows.reshape(*lead, *depth).transpose(_inverse(self.order)))


def weights_of(graph: Graph, node: Node, factor: float = 1.0, position: int | None = None) -> Weights:
    """The constant weights of a product, or what another operand holds, as a matrix."""
    name = node.inputs[weight_position(node) if position is None else position]
    values = graph.constants[name].astype(np.float64) * factor
    order, lead = _order(node, values.ndim)
    moved = values.transpose(order)
    rows = moved.reshape(int(np.prod(moved.shape[:lead])), -1)
    groups = node.get_int("group", 1) if node.op == "ConvTranspose" else 1
    return Weights(name, values.shape, rows, order, lead, groups, factor)


def _order(node: Node, rank: int) -> tuple[tuple[int, ...], int]:
    """The axes of weights with those of output channels first, and how many these are."""
    axes = tuple(range(rank))
    match node.op:
        case "Conv":
            return axes, 1
        case "ConvTranspose":
            return (1, 0, *axes[2:]), 1
        case "Gemm" if node.get_int("transB", 0):
            return axes, 1
        case "LSTM" | "GRU" | "RNN":
            return axes, rank - 1
        case "Gather":
            axis = node.get_int("axis", 0) % rank
            return (axis, *axes[:axis], *axes[axis + 1 :]), 1
    return (*axes[:-2], *axes[:-3:-1]), rank - 1


def _inverse(order: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(axis) for axis in np.argsort(order))


class Decoders:
    """Adds decoders to an edit; nodes that share weights and how they are stored share one."""

    def __init__(self, edit: Edit) -> None:
        self._edit = edit
        self._made: dict[tuple[object, ...], str] = {}

    def integers(self, weights: Weights, integers: Integers, parameters: Parameters) -> str:
        """The decoder of `integers` [rows, depth]; returns the name of the float weights."""
        arrays = (array.tobytes() for array in (integers, parameters.scale, parameters.zero_point))
        key = (weights.name, weights.order, weights.factor, parameters.format.name, parameters.group, *arrays)
        if key not in self._made:
            blocked = parameters.group is not None and len(weights.shape) - weights.lead > 1
            self._made[key] = (self._as_rows if blocked else self._as_they_lie)(weights, integers, parameters)
        return self._made[key]

    def floats(self, weights: Weights, array: Array) -> str:
        """The decoder of weights stored in a narrower floating-point type; returns the name of the float32 weights."""
        key = (weights.name, array.dtype.name)
        if key not in self._made:
            stored = self._edit.constant(array, f"{weights.name}_{array.dtype.name}")
            element = type_to_proto(self._edit.graph.types[weights.name]).tensor_type.elem_type
            self._made[key] = self._add("Cast", weights.name, [stored], {"to": element})
        return self._made[key]

    def dequantize(
        self, name: str, stored: Array, parameters: Sequence[Array], attributes: Mapping[str, Attribute]
    ) -> str:
        """DequantizeLinear over a constant; `parameters` are its scale and, where it has one, its zero point."""
        operands = [self._edit.constant(stored, f"{name}_quantized")]
        for array, what in zip(parameters, ("scale", "zero_point"), strict=False):
            operands.append(self._edit.constant(array, f"{name}_{what}"))
        return self._add("DequantizeLinear", name, operands, attributes)

    def _as_they_lie(self, weights: Weights, integers: Integers, parameters: Parameters) -> str:
        # Zero points even where all are 0: onnxruntime 1.31 fuses a per-channel decoder without them into a node that
        # it then refuses.
        state: tuple[Array, Array] = parameters.scale, parameters.zero_point
        attributes: dict[str, Attribute] = {}
        if parameters.group is not None:
            state = weights.laid_out(parameters.scale), weights.laid_out(parameters.zero_point)
            attributes = {"axis": weights.order[-1], "block_size": parameters.group}
        elif parameters.axis is not None:
            attributes = {"axis": weights.order[0]}
        return self.dequantize(weights.name, weights.laid_out(integers), state, attributes)

    def _as_rows(self, weights: Weights, integers: Integers, parameters: Parameters) -> str:
        attributes: dict[str, Attribute] = {"axis": 1, "block_size": parameters.group or 0}
        state = parameters.scale, parameters.zero_point
        found = self.dequantize(weights.name, integers, state, attributes)
        moved = np.array([weights.shape[axis] for axis in weights.order])
        shape = self._edit.constant(moved, f"{weights.name}_shape")
        found = self._add("Reshape", weights.name, [found, shape], {})
        if weights.order != tuple(sorted(weights.order)):
            found = self._add("Transpose", weights.name, [found], {"perm": _inverse(weights.order)})
        return found

    def _add(self, op: str, name: str, operands: Sequence[str], attributes: Mapping[str, Attribute]) -> str:
        verb = "dequantize" if op == "DequantizeLinear" else op.lower()
        outputs = [self._edit.fresh(f"{name}_dequantized" if op == "DequantizeLinear" else f"{name}_decoded")]
        near = self._edit.graph.users[name][0]
        return self._edit.add(op, operands, attributes, name=f"{name}_{verb}", outputs=outputs, near=near)
