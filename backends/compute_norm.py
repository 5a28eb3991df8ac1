"""Softmax and layer normalization along the last axis: a task is a row, its statistics stay in registers.

for task = row:
  most  = max over k of x[row, k]                       Softmax
  y[row, k] = e^(x[row, k] - most); total += y[row, k]
  y[row, k] = y[row, k] / total                         (LogSoftmax: x[row, k] - most - log(total))
for task = row:
  mean = sum over k of x[row, k] / n                    LayerNormalization
  variance = sum over k of (x[row, k] - mean)^2 / n
  y[row, k] = (x[row, k] - mean) / sqrt(variance + epsilon) * gamma[k] + beta[k]
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import tirx, topi

from graphc.backends import vector_math
from graphc.backends.relax_module import ALIAS, OPAQUE, Lowering, computes, convert
from graphc.backends.statements import const, function, loop, sequence, spread, tasks, vector
from graphc.ir import Node

Combine = Callable[[Any, Any], Any]


class _Row:
    """Loops over one row of `length` elements, `lanes` at a time, what is left over in one shorter vector."""

    def __init__(self, length: int, lanes: int) -> None:
        self.length, self.lanes = length, lanes

    def each(self, body: Callable[[Any, int], Any]) -> Any:
        """body(first element, elements) for every vector."""
        whole, left = divmod(self.length, self.lanes)
        parts = [loop("k", 0, whole, lambda k: body(k * self.lanes, self.lanes))] if whole else []
        return sequence([*parts, *([body(const(whole * self.lanes), left)] if left else [])])

    def reduced(self, into: Any, first: Any, combine: Combine, term: Callable[[Any, int], Any]) -> Any:
        """into[0] = the combination of term(first element, elements) over the row."""

        def add(k: Any, count: int) -> Any:
            place = vector(const(0), count)
            return tirx.BufferStore(into, combine(into[place], term(k, count)), [place])

        return sequence([self.filled(into, first), self.each(add), *self.folded(into, combine)])

    def filled(self, into: Any, value: Any) -> Any:
        return tirx.BufferStore(into, spread(value, self.lanes), [vector(const(0), self.lanes)])

    def folded(self, into: Any, combine: Combine) -> list[Any]:
        """into[0] = the combination of all lanes, halves first."""
        halves = [self.lanes >> step for step in range(1, self.lanes.bit_length())]
        pairs = [(vector(const(0), half), vector(const(half), half)) for half in halves]
        return [tirx.BufferStore(into, combine(into[low], into[high]), [low]) for low, high in pairs]


def _flat(state: Lowering, name: str) -> Any:
    size = state.type(name).size
    return state.emit(lambda x: topi.reshape(x, (size,)), state.value(name), name=ALIAS, pattern=OPAQUE)


def _attributes() -> Any:
    return tvm.ir.make_node("ir.DictAttrs", **{"tirx.noalias": True})


@computes("", "Softmax", "LogSoftmax")
def softmax(state: Lowering, node: Node) -> Sequence[Any]:
    """e^x over its sum along the last axis, or its logarithm, in float32; other axes and types as elsewhere."""
    kind = state.type(node.inputs[0])
    rank = len(kind.dims)
    lanes = state.target.lanes(32)
    if kind.dtype != np.float32 or node.get_int("axis", -1) % max(rank, 1) != rank - 1 or not kind.size or lanes < 2:
        return convert(state, node)
    length, logarithm = kind.dims[-1], node.op == "LogSoftmax"
    x, y = (tirx.decl_buffer((kind.size,), "float32", name) for name in "xy")
    row = _Row(length, lanes)

    def body(task: Any) -> Any:
        start = task * length
        most, total = (tirx.decl_buffer((lanes,), "float32", name, scope="local") for name in ("most", "total"))

        def element(k: Any, count: int) -> Any:
            return x[vector(start + k, count)]

        def shifted(k: Any, count: int) -> Any:
            return element(k, count) - spread(most[const(0)], count)

        def exponential(k: Any, count: int) -> Any:
            place, sums = vector(start + k, count), vector(const(0), count)
            power = vector_math.call(vector_math.exp_flushed, shifted(k, count), count)
            add = tirx.BufferStore(total, total[sums] + (power if logarithm else y[place]), [sums])
            return add if logarithm else sequence([tirx.BufferStore(y, power, [place]), add])

        def finished(k: Any, count: int) -> Any:
            place, factor = vector(start + k, count), spread(total[const(0)], count)
            return tirx.BufferStore(y, shifted(k, count) - factor if logarithm else y[place] * factor, [place])

        ending = tirx.log(total[const(0)]) if logarithm else const(1.0, "float32") / total[const(0)]
        statements = [
            row.reduced(most, tirx.min_value("float32"), tirx.max, element),
            row.filled(total, const(0.0, "float32")),
            row.each(exponential),
            *row.folded(total, operator.add),
            tirx.BufferStore(total, ending, [const(0)]),
            row.each(finished),
        ]
        return sequence([tirx.AllocBuffer(most), tirx.AllocBuffer(total), *statements])

    kernel = function([x, y], _attributes(), [tasks(kind.size // length, body)])
    return [state.emit_function(kernel, [_flat(state, node.inputs[0])], state.type(node.outputs[0]), "softmax")]


@computes("", "LayerNormalization")
def layer_normalization(state: Lowering, node: Node) -> Sequence[Any]:
    """Over the last axis, in float32, with one result; others as elsewhere."""
    kind = state.type(node.inputs[0])
    rank, lanes = len(kind.dims), state.target.lanes(32)
    last = rank > 0 and node.get_int("axis", -1) % rank == rank - 1
    vectors = [name for name in node.inputs[1:] if name]
    plain = last and len(node.results) == 1 and all(state.type(name).dims == kind.dims[-1:] for name in vectors)
    if not plain or kind.dtype != np.float32 or not kind.size or lanes < 2:
        return convert(state, node)
    length, epsilon = kind.dims[-1], node.get_float("epsilon", 1e-5)
    x, y = (tirx.decl_buffer((kind.size,), "float32", name) for name in "xy")
    weights = [tirx.decl_buffer((length,), "float32", name) for name in ("gamma", "beta")[: len(vectors)]]
    row = _Row(length, lanes)

    def body(task: Any) -> Any:
        mean, scale = (tirx.decl_buffer((lanes,), "float32", name, scope="local") for name in ("mean", "scale"))
        first, share, zero = const(0), const(1.0 / length, "float32"), const(0.0, "float32")

        def element(k: Any, count: int) -> Any:
            return x[vector(task * length + k, count)]

        def centred(k: Any, count: int) -> Any:
            return element(k, count) - spread(mean[first], count)

        def normal(k: Any, count: int) -> Any:
            value = centred(k, count) * spread(scale[first], count) * weights[0][vector(k, count)]
            value = value + weights[1][vector(k, count)] if len(weights) > 1 else value
            return tirx.BufferStore(y, value, [vector(task * length + k, count)])

        deviation = tirx.sqrt(scale[first] * share + const(epsilon, "float32"))
        return sequence(
            [
                tirx.AllocBuffer(mean),
                tirx.AllocBuffer(scale),
                row.reduced(mean, zero, operator.add, element),
                tirx.BufferStore(mean, mean[first] * share, [first]),
                row.reduced(scale, zero, operator.add, lambda k, count: centred(k, count) * centred(k, count)),
                tirx.BufferStore(scale, const(1.0, "float32") / deviation, [first]),
                row.each(normal),
            ]
        )

    kernel = function([x, *weights, y], _attributes(), [tasks(kind.size // length, body)])
    operands = [_flat(state, node.inputs[0]), *(state.value(name) for name in vectors)]
    return [state.emit_function(kernel, operands, state.type(node.outputs[0]), "layer_normalization")]
