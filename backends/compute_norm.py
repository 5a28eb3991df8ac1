"""Softmax along the last axis, and normalizations: a task is a row, its statistics stay in registers.

for task = row:
  most  = max over k of x[row, k]                       Softmax
  y[row, k] = e^(x[row, k] - most); total += y[row, k]
  y[row, k] = y[row, k] / total                         (LogSoftmax: x[row, k] - most - log(total))
for task = row:
  mean = sum over k of x[row, k] / n                    LayerNormalization and its like (Ba et al., arXiv:1607.06450;
  variance = sum over k of (x[row, k] - mean)^2 / n     Ulyanov et al., 1607.08022; Wu and He, 1803.08494; without the
  y[row, k] = (x[row, k] - mean)                        mean Zhang and Sennrich, 1910.07467), scheduled by
              * (gamma[k] / sqrt(variance + epsilon))   `schedule_rows`
              + beta[k]
"""

import json
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import tvm
from tvm import te, tirx

from graphc.backends import vector_math
from graphc.backends.layout import DOMAIN as CHANNELS_LAST
from graphc.backends.layout import POINTWISE
from graphc.backends.relax_module import OUT_FUSIBLE, REDUCTION, Lowering, computes, convert
from graphc.backends.row import Row, folded
from graphc.backends.statements import const, function, sequence, spread, tasks, vector
from graphc.ir import Node


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
    row = Row(length, lanes)

    def body(task: Any) -> Any:
        start = task * length
        most = tirx.decl_buffer((row.run * lanes,), "float32", "most", scope="local")
        total = tirx.decl_buffer((lanes,), "float32", "total", scope="local")

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
            *folded(total, operator.add, lanes),
            tirx.BufferStore(total, ending, [const(0)]),
            row.each(finished),
        ]
        return sequence([tirx.AllocBuffer(most), tirx.AllocBuffer(total), *statements])

    kernel = function([x, y], _attributes(), [tasks(kind.size // length, body)])
    return [state.emit_function(kernel, [state.flat(node.inputs[0])], state.type(node.outputs[0]), "softmax")]


@dataclass(frozen=True)
class _Statistics:
    """How elements are grouped that share a mean and a variance.

    `members` are the extents over which a group goes; `element(group, member)` is the index of one of its elements of
    x, `group(index)` the other way round.
    """

    groups: tuple[int, ...]
    members: tuple[int, ...]
    element: Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]]
    group: Callable[[Sequence[Any]], Sequence[Any]]


def _trailing(dims: Sequence[int], first: int) -> _Statistics:
    """All elements along the axes from `first` on."""
    groups = tuple(dims[:first]) or (1,)
    return _Statistics(
        groups,
        tuple(dims[first:]),
        lambda group, member: (*group[:first], *member),
        lambda index: tuple(index[:first]) or (0,),
    )


def _of_channels(dims: Sequence[int], groups: int) -> _Statistics:
    """All positions of neighbouring channels, x being (N, C, *spatial)."""
    width = dims[1] // groups
    return _Statistics(
        (dims[0], groups),
        (width, *dims[2:]),
        lambda group, member: (group[0], group[1] * width + member[0], *member[1:]),
        lambda index: (index[0], index[1] // width),
    )


def _of_last_channels(dims: Sequence[int], groups: int) -> _Statistics:
    """The same, x being (N, *spatial, C)."""
    width = dims[-1] // groups
    return _Statistics(
        (dims[0], groups),
        (*dims[1:-1], width),
        lambda group, member: (group[0], *member[:-1], group[1] * width + member[-1]),
        lambda index: (index[0], index[-1] // width),
    )


def _normalized(
    state: Lowering, node: Node, shared: _Statistics, place: slice, anchor: str = "", *, centred: bool = True
) -> Any:
    """(x - mean) * (gamma / sqrt(variance + epsilon)) + beta; not `centred`: without the mean, as if it were 0.

    gamma and beta have the axes `place` of x. What follows element by element is computed with it, in registers; what
    comes before where nothing follows. `anchor` describes it to a rule of its own.
    """
    share = 1.0 / prod(shared.members)
    epsilon, size = node.get_float("epsilon", 1e-5), state.type(node.inputs[0]).dims

    def define(x: te.Tensor, *weights: te.Tensor) -> te.Tensor:
        def total(term: Callable[[Sequence[Any], Any], Any], name: str) -> te.Tensor:
            steps = [te.reduce_axis((0, extent), f"m{axis}") for axis, extent in enumerate(shared.members)]
            return te.compute(
                shared.groups,
                lambda *g: te.sum(term(g, x[tuple(shared.element(g, steps))]), axis=steps),
                name=name,
                attrs={"graphc.role": name} if anchor else None,
            )

        sums = total(lambda _, element: element, "sums") if centred else None

        def away(group: Sequence[Any], element: Any) -> Any:
            return element if sums is None else element - sums[tuple(group)] * _real(share)

        squares = total(lambda g, element: away(g, element) * away(g, element), "squares")

        def inverse(*group: Any) -> Any:
            return _real(1.0) / tirx.sqrt(squares[group] * _real(share) + _real(epsilon))

        scales = te.compute(shared.groups, inverse, name="scales", attrs={"graphc.role": "statistic"})

        def value(*i: Any) -> Any:
            group = shared.group(i)
            scale = scales[tuple(group)] * weights[0][i[place]] if weights else scales[tuple(group)]
            scaled = away(group, x[i]) * scale
            return scaled + weights[1][i[place]] if len(weights) > 1 else scaled

        if not anchor:
            return te.compute(size, value, name="normalized")
        made = te.compute(size, value, name="normalized", attrs={"graphc.anchor": anchor})
        return te.compute(size, lambda *i: made[i], name="out")

    operands = [state.value(name) for name in node.inputs if name]
    pattern = OUT_FUSIBLE if anchor or _is_followed(state, node) else REDUCTION
    return state.emit(define, *operands, name=node.op.lower(), pattern=pattern)


def _real(value: float) -> Any:
    return const(value, "float32")


def _is_followed(state: Lowering, node: Node) -> bool:
    """Whether all that reads a result works element by element."""
    name = node.outputs[0]
    readers = state.graph.users.get(name, ())
    return bool(readers) and name not in state.graph.outputs and all(each.op in POINTWISE for each in readers)


@computes("", "LayerNormalization", "RMSNormalization")
def layer_normalization(state: Lowering, node: Node) -> Sequence[Any]:
    """Over the last axes, in float32, with one result and weights of the shape of those axes; others as elsewhere."""
    kind = state.type(node.inputs[0])
    first = node.get_int("axis", -1) % max(len(kind.dims), 1)
    whole = all(state.type(name).dims == kind.dims[first:] for name in node.inputs[1:] if name)
    if kind.dtype != np.float32 or len(node.results) > 1 or not whole or not kind.size:
        return convert(state, node)
    centred = node.op == "LayerNormalization"
    return [_normalized(state, node, _trailing(kind.dims, first), slice(first, None), centred=centred)]


@computes("", "InstanceNormalization", "GroupNormalization")
def channel_normalization(state: Lowering, node: Node) -> Sequence[Any]:
    """Over all positions of each channel, or of neighbouring ones, in float32; others as elsewhere."""
    kind = state.type(node.inputs[0])
    if kind.dtype != np.float32 or not kind.size:
        return convert(state, node)
    groups = node.get_int("num_groups", kind.dims[1])
    return [_normalized(state, node, _of_channels(kind.dims, groups), slice(1, 2))]


@computes(CHANNELS_LAST, "InstanceNormalization", "GroupNormalization")
def channel_normalization_last(state: Lowering, node: Node) -> Sequence[Any]:
    """The same, channels last, scheduled by `schedule_channel_norm`."""
    dims = state.type(node.inputs[0]).dims
    groups = node.get_int("num_groups", dims[-1])
    info = {"kind": "channel_norm", "input": dims, "output": dims[1:-1], "groups": groups}
    described = json.dumps({**info, "epsilon": node.get_float("epsilon", 1e-5)})
    return [_normalized(state, node, _of_last_channels(dims, groups), slice(len(dims) - 1, None), described)]
