"""Convolutions, channels last, as te definitions: float and integer ones share the accumulator.

    acc[n, *p, o] = sum over k, c of x[n, *(p * stride + k * dilation - begin), c] * w[o, c, *k]

Weights are packed at compile time so that the innermost axis is a run of output channels (a multiple of the vector):
    dense      w[O / block, *K, I, block], for integer dot products w[O / block, *K, I / step, block, step]
               of floats in groups: the blocks of one group after those of the one before, w[.., I / groups, block]
    depthwise  w[*K, O]                      (groups = I; each output reads one input channel)
    grouped    w[*K, I / groups, O]          (integers)

Coded weights stay codes in memory: dense kernels decode them in registers, depthwise ones on the stack, once a row.
Those of depthwise ones with several outputs for an input are decoded once, by init (prepared.py), which the report
counts: their kernels add one product at a time and would decode a weight for each.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import numpy as np
from tvm import te, tirx

from graphc.backends.choices import Tiles
from graphc.backends.compute_coded import coded_operand
from graphc.backends.compute_sparse import Skipping, SparseOperand, Weights, described, sparse_operand
from graphc.backends.compute_winograd import WinogradConvolution
from graphc.backends.cycles import Contraction
from graphc.backends.decode import Decoder
from graphc.backends.dot import DOTS, Dot, dot_product
from graphc.backends.dot import Kind as DotKind
from graphc.backends.relax_module import INJECTIVE, OPAQUE, OUT_FUSIBLE, Lowering, computes
from graphc.backends.schedule_pad import BORDER
from graphc.backends.searchable import attributes
from graphc.backends.statements import wide
from graphc.backends.tiles import SMALL, WIDEST_AT_EDGES, winograd_block
from graphc.backends.window import Window, window
from graphc.backends.winograd import KERNEL, choose, cycles
from graphc.ir import Array, Node

Kind = Literal["dense", "depthwise", "grouped"]


@dataclass(frozen=True)
class Convolution:
    """One convolution's geometry: `channels` in, `filters` out, `block` filters in a run (dense only)."""

    kind: Kind
    window: Window
    size: tuple[int, ...]
    channels: int
    filters: int
    groups: int
    block: int
    step: int = 1
    """Input channels that one dot-product instruction adds up."""
    dot: DotKind = "plain"
    """The instruction, as `graphc.backends.dot` names it."""
    tile: int | None = None
    """Output columns in a register tile; None: the cost model's."""
    vectors: int | None = None
    """Groups of 16 output channels that a task of matrix tiles takes at most; None: the cost model\'s."""
    tiles: Tiles | None = None
    """How the loops of the sum are cut where no rule takes it; None: as the generic rule does."""

    @property
    def depth(self) -> int:
        """Input channels of one group, of all taps where they are gathered as columns; rounded up to whole steps."""
        terms = self.channels // self.groups * (prod(self.window.kernel) if self.columns else 1)
        return -(-terms // self.step) * self.step

    @property
    def columns(self) -> bool:
        """Whether the taps are part of the depth."""
        return DOTS[self.dot].columns

    def is_small(self, dtype: str, coded: bool) -> bool:
        """Whether the output is one run of columns over the padded input; sums are of type `dtype`."""
        flat = prod(self.window.kernel) == prod(self.window.strides) == 1 and tuple(self.window.output) == self.size
        plain = self.kind == "dense" and self.step == 1 and dtype.startswith("float")
        return plain and not flat and not coded and prod(self.window.output) <= SMALL

    def is_padded_before(self, dtype: str, coded: bool) -> bool:
        """Whether the kernel of sums of type `dtype` reads its input with the padding around it.

        Others leave out what lies outside: of two axes, and where one channel is taken at a time.
        """
        if self.kind != "dense" or self.columns:
            return False
        dotted = self.step > 1 or not dtype.startswith("float") or len(self.size) > 2
        wide = self.window.kernel[-1] > WIDEST_AT_EDGES and not coded
        return dotted or wide or self.is_small(dtype, coded)

    @property
    def outer(self) -> int:
        """Filters of one group."""
        return self.filters // self.groups

    @property
    def group_blocks(self) -> int:
        """Blocks of one group."""
        return -(-self.outer // self.block)

    @property
    def blocks(self) -> int:
        return self.groups * self.group_blocks

    def by_output(self, weights: Array) -> Array:
        """Weights (O, I / groups, *K) as (outputs, depth * taps); of several groups, whole blocks of outputs each."""
        rows = weights.reshape(self.groups, self.outer, -1)
        missing = self.group_blocks * self.block - self.outer if self.kind == "dense" and self.groups > 1 else 0
        return np.pad(rows, [(0, 0), (0, missing), (0, 0)], mode="edge").reshape(-1, rows.shape[-1])

    @property
    def decodes(self) -> bool:
        """Whether a rule schedules kernels of this form that decode weights."""
        alone = self.kind == "depthwise" and self.filters == self.channels
        return self.kind == "dense" or (alone and len(self.window.kernel) == 2)

    def work(self, batch: int) -> Contraction:
        """What a kernel of this has to do."""
        span = self.window
        rows, columns = batch * prod(span.output[:-1]), span.output[-1]
        if prod(span.output) <= SMALL or (prod(span.kernel), prod(span.strides)) == (1, 1):
            rows, columns = 1, rows * columns
        size = 1 if self.step > 1 else 4
        depth = self.depth * prod(span.kernel)
        return Contraction(rows, columns, depth, self.filters, self.step, size, self.dot == "amx")

    def description(self, batch: int, dtype: str, shift: int, padding: int, weights: Mapping[str, Any]) -> str:
        """What the schedule rules read from the anchor's annotation; `weights` describes those that are not plain.

        `shift` is added to inputs, those of value `padding` around them too.
        """
        span = self.window
        return json.dumps(
            {
                "kind": f"conv_{self.kind}",
                "input": [batch, *self.size, self.channels],
                "output": span.output,
                "kernel": span.kernel,
                "strides": span.strides,
                "dilations": span.dilations,
                "begin": span.begin,
                "filters": self.filters,
                "groups": self.groups,
                "block": self.block,
                "step": self.step,
                "dot": self.dot,
                "tile": self.tile,
                "vectors": self.vectors,
                "small": self.is_small(dtype, "coded" in weights),
                "depth": self.depth,
                "shift": shift,
                "padding": padding,
                **weights,
                "multiplier": self.filters // self.groups if self.kind == "depthwise" else 0,
            }
        )


def convolution(state: Lowering, node: Node, weights: np.dtype[Any] | None = None) -> Convolution:
    """The geometry of a channels-last Conv node with weights (O, I / groups, *K), of type `weights` if no float32."""
    _, *size, channels = state.type(node.inputs[0]).dims
    _, *output, filters = state.type(node.outputs[0]).dims
    kernel = state.type(node.inputs[1]).dims[2:]
    groups = node.get_int("group", 1)
    kind: Kind = "dense" if groups == 1 else "depthwise" if groups == channels else "grouped"
    kind = "dense" if kind == "grouped" and weights is None else kind
    span = window(node, size, output, kernel)
    dot, choice = DOTS["plain"], state.choice(node)
    if weights is not None and kind == "dense":
        inputs = -(-channels // 4) * 4
        depth = inputs * kernel[-1] if span.dilations[-1] == 1 else inputs
        together = prod(output) if prod(span.strides) == 1 else output[-1]
        narrow = "half" if weights == np.dtype(np.float16) else node.get_str("dot", "")
        dot = Dot.of(narrow) if narrow else dot_product(state.target, weights, depth, together, choice.dot)
    return Convolution(
        kind,
        span,
        tuple(size),
        channels,
        filters,
        groups,
        _block(state, node, filters // groups if kind == "dense" else filters, dot),
        dot.step,
        dot.kind,
        choice.tile,
        choice.vectors,
        choice.tiles,
    )


def _block(state: Lowering, node: Node, filters: int, dot: Dot) -> int:
    """Output channels in a run; of groups with fewer than a vector of them, the next power of two."""
    positions = prod(state.type(node.outputs[0]).dims[:-1])
    block = state.choice(node).block(state.target, filters, dot, positions)
    return min(block, 1 << (filters - 1).bit_length()) if node.get_int("group", 1) > 1 else block


def pack(conv: Convolution, weights: Array) -> Array:
    """ONNX weights (O, I / groups, *K) in the order the kernel reads them; the last block is filled with zeros."""
    spatial = tuple(range(2, weights.ndim))
    if conv.kind == "depthwise":
        return np.ascontiguousarray(weights[:, 0].transpose(*(s - 1 for s in spatial), 0))
    if conv.kind == "grouped":
        return np.ascontiguousarray(weights.transpose(*spatial, 1, 0))
    if conv.columns:
        missing = conv.blocks * conv.block - conv.filters
        rows = weights.transpose(0, *spatial, 1).reshape(conv.filters, -1)
        whole = np.pad(rows, [(0, missing), (0, conv.depth - rows.shape[1])])
        runs = whole.reshape(conv.blocks, conv.block, conv.depth // conv.step, conv.step).swapaxes(1, 2)
        return np.ascontiguousarray(runs if conv.step > 1 else runs[..., 0])
    apart = weights.reshape(conv.groups, conv.outer, *weights.shape[1:])
    missing = conv.group_blocks * conv.block - conv.outer
    padded = np.pad(apart, [(0, 0), (0, missing), (0, conv.depth - weights.shape[1])] + [(0, 0)] * len(spatial))
    blocked = padded.reshape(conv.blocks, conv.block, conv.depth // conv.step, conv.step, *weights.shape[2:])
    ordered = blocked.transpose(0, *(s + 2 for s in spatial), 2, 1, 3)
    return np.ascontiguousarray(ordered if conv.step > 1 else ordered[..., 0])


def packed_on_the_fly(conv: Convolution, weights: te.Tensor) -> te.Tensor:
    """The same packing as a kernel, for weights that are computed at run time (or decoded)."""
    rank = len(conv.window.kernel)
    zero = tirx.const(0, weights.dtype)
    if conv.kind == "depthwise":
        return te.compute((*conv.window.kernel, conv.filters), lambda *i: weights[(i[rank], 0, *i[:rank])], name="pack")
    if conv.kind == "grouped":
        shape = (*conv.window.kernel, conv.channels // conv.groups, conv.filters)
        return te.compute(shape, lambda *i: weights[(i[rank + 1], i[rank], *i[:rank])], name="pack")

    def element(*i: Any) -> Any:
        o = i[0] % conv.group_blocks * conv.block + i[rank + 2]
        value = weights[(i[0] // conv.group_blocks * conv.outer + o, i[rank + 1], *i[1 : rank + 1])]
        return value if conv.outer % conv.block == 0 else tirx.if_then_else(o < conv.outer, value, zero)

    shape = (conv.blocks, *conv.window.kernel, conv.channels // conv.groups, conv.block)
    return te.compute(shape, element, name="pack")


def padded(x: te.Tensor, span: Window, value: Any, depth: int = 0) -> te.Tensor:
    """x (N, *spatial, C) with `value` around it, just as far as the windows reach, and up to `depth` channels."""
    n, *size, c = (int(d) for d in x.shape)
    if not span.reaches_out and c >= depth:
        return x

    def element(*i: Any) -> Any:
        at = [p - b for p, b in zip(i[1:-1], span.begin, strict=True)]
        inside = [
            test
            for p, s, b, e in zip(at, size, span.begin, span.end, strict=True)
            for test in (*([p >= 0] if b > 0 else []), *([p < s] if e > 0 else []))
        ]
        inside += [i[-1] < c] if c < depth else []
        return tirx.if_then_else(tirx.all(*inside), x[(i[0], *at, i[-1])], value)

    border = json.dumps({"begin": [0, *span.begin, 0], "inside": [n, *size, c]})
    shape = (n, *span.padded_size(size), max(c, depth))
    return te.compute(shape, element, name="pad", attrs={"graphc.role": "pad", BORDER: border})


def with_padding(
    state: Lowering, name: str, conv: Convolution, value: Any, dtype: str, *, coded: bool = False
) -> tuple[Any, Convolution]:
    """(the input `name` as the kernel of `conv` reads it, the convolution of that).

    Where that has its padding in memory, whatever makes the input writes it there, or what moves it on the way: see
    `schedule_pad` and `graphc.backends.padded_results`. Convolutions of one input that pad it alike share it.
    """
    kind, span, x = state.type(name), conv.window, state.value(name)
    depth = 0 if conv.columns else conv.depth
    if not conv.is_padded_before(dtype, coded) or not (span.reaches_out or kind.dims[-1] < depth):
        return x, conv
    key = f"{name}@{span.begin}{span.end}{depth}{value}"
    if key not in state.values:
        state.values[key] = state.emit(lambda t: padded(t, span, value, depth), x, name="pad", pattern=INJECTIVE)
    return state.values[key], replace(conv, size=span.padded_size(conv.size), window=span.without_padding())


@dataclass(frozen=True)
class _Sum:
    """sum of (x + shift) * w over the window around an output position i = (n, *p, ...), and over what is given."""

    x: te.Tensor
    conv: Convolution
    taps: tuple[Any, ...]
    dtype: str
    shift: int

    def input(self, i: Sequence[Any], channel: Any) -> Any:
        """x + shift in the type of the sum."""
        span = self.conv.window
        steps = zip(i[1 : len(self.taps) + 1], span.strides, self.taps, span.dilations, strict=True)
        value = wide(self.x[(i[0], *(p * s + t * d for p, s, t, d in steps), channel)], self.dtype)
        return value + tirx.const(self.shift, self.dtype) if self.shift else value

    def __call__(self, i: Sequence[Any], channel: Any, weight: Any, over: Sequence[Any] = ()) -> Any:
        return te.sum(self.input(i, channel) * weight, axis=[*self.taps, *over])


def accumulate(
    conv: Convolution, x: te.Tensor, weights: Weights, dtype: str, pad_value: Any, shift: int = 0
) -> te.Tensor:
    """Sums of (x + shift) * w in `dtype`: (N, *output, blocks, block) when dense, else (N, *output, O).

    A decoder gives the weights of dense convolutions of floats; those with blocks of zeros skip them.
    """
    span, (n, *_) = conv.window, x.shape
    source = padded(x, span, pad_value, conv.depth if conv.kind == "dense" and not conv.columns else 0)
    taps = tuple(te.reduce_axis((0, k), f"k{axis}") for axis, k in enumerate(span.kernel))
    added = _Sum(source, conv, taps, dtype, shift)
    last = (conv.blocks, conv.block) if conv.kind == "dense" else (conv.filters,)
    return te.compute(
        (n, *span.output, *last),
        _TERMS[conv.kind](added, weights),
        name="conv",
        attrs={
            "graphc.anchor": conv.description(int(n), dtype, shift, int(pad_value.value), described(weights)),
            **attributes(conv.tiles),
        },
    )


def _depthwise(added: _Sum, weights: Any) -> Callable[..., Any]:
    multiplier = added.conv.filters // added.conv.channels
    if isinstance(weights, Decoder):
        tap, width = _tap_number(added), weights.width
        return lambda *i: added(i, i[-1] // multiplier, weights(i[-1] // width, tap, tirx.const(0), i[-1] % width))
    return lambda *i: added(i, i[-1] // multiplier, weights[(*added.taps, i[-1])].astype(added.dtype))


def _grouped(added: _Sum, weights: Any) -> Callable[..., Any]:
    conv = added.conv
    inner, outer = conv.channels // conv.groups, conv.filters // conv.groups
    c = te.reduce_axis((0, inner), "c")
    return lambda *i: added(i, i[-1] // outer * inner + c, weights[(*added.taps, c, i[-1])].astype(added.dtype), [c])


def _tap_number(added: _Sum) -> Any:
    """The tap of a sum, counted row by row."""
    tap: Any = tirx.const(0)
    for position, extent in zip(added.taps, added.conv.window.kernel, strict=True):
        tap = tap * extent + position
    return tap


def _dense(added: _Sum, weights: Weights) -> Callable[..., Any]:
    conv, taps, dtype = added.conv, added.taps, added.dtype
    tap = _tap_number(added)
    if isinstance(weights, Skipping):
        blocks = weights.axes()
        return lambda *i: added(
            i, weights.input(i[-2], tap, blocks), weights.weight(i[-2], tap, blocks, i[-1], dtype), blocks
        )
    inner = conv.channels // conv.groups
    c = te.reduce_axis((0, inner), "c")

    def channel(i: Sequence[Any]) -> Any:
        return i[-2] // conv.group_blocks * inner + c if conv.groups > 1 else c

    if isinstance(weights, Decoder):
        return lambda *i: added(i, channel(i), weights(i[-2], tap, c, i[-1]), [c])
    depth, outer = c, taps
    if conv.columns:
        for each, stride in zip(taps, _column_strides(conv), strict=True):
            depth = depth + each * stride
        outer = ()

    def weight(*i: Any) -> Any:
        place = (depth, i[-1]) if conv.step == 1 else (depth // conv.step, i[-1], depth % conv.step)
        return weights[(i[-2], *outer, *place)].astype(dtype)

    return lambda *i: added(i, channel(i), weight(*i), [c])


_TERMS: Mapping[str, Callable[[_Sum, Any], Callable[..., Any]]] = {
    "depthwise": _depthwise,
    "grouped": _grouped,
    "dense": _dense,
}


def _column_strides(conv: Convolution) -> list[int]:
    """How far apart neighbouring taps lie in a column, by spatial axis."""
    kernel = conv.window.kernel
    return [prod(kernel[axis + 1 :]) * conv.channels for axis in range(len(kernel))]


def sum_at(conv: Convolution, acc: te.Tensor, i: Sequence[Any]) -> Any:
    """The accumulator of output position i = (n, *p, o)."""
    if conv.kind != "dense":
        return acc[tuple(i)]
    own = i[-1] % conv.outer if conv.groups > 1 else i[-1]
    first = i[-1] // conv.outer * conv.group_blocks if conv.groups > 1 else 0
    return acc[(*i[:-1], first + own // conv.block, own % conv.block)]


Reader = Callable[[Sequence[te.Tensor]], Weights]
"""What `accumulate` takes as weights, given the tensors that a kernel gets for them."""


def plain(tensors: Sequence[te.Tensor]) -> te.Tensor:
    """The reader of one packed tensor."""
    return tensors[0]


def packed_weights(state: Lowering, conv: Convolution, name: str) -> tuple[list[Any], Reader]:
    """(what to pass for weights, how to read it): packed at compile time, coded, or packed by a kernel."""
    weights = state.weights(name)
    if weights is not None:
        return [state.parameter(pack(conv, weights), name)], plain
    if conv.decodes:
        block = conv.block if conv.kind == "dense" else max(1, state.target.lanes(32))
        coded = coded_operand(state, name, conv.by_output, block, prod(conv.window.kernel))
        if coded is not None:
            return list(coded.operands), coded.decoder
    packed = state.emit(lambda w: packed_on_the_fly(conv, w), state.value(name), name="pack", pattern=OPAQUE)
    return [packed], plain


def winograd(state: Lowering, node: Node, conv: Convolution) -> WinogradConvolution | None:
    """By Winograd's filtering where that should be faster, None for the direct sum."""
    kind, span = state.type(node.inputs[0]), conv.window
    plain = (span.kernel, span.strides, span.dilations) == ((KERNEL,) * 2, (1, 1), (1, 1)) and conv.groups == 1
    if not plain or kind.dtype != np.float32 or state.constant(node.inputs[1]) is None:
        return None
    filtering = choose(
        state.target, kind.dims[0], span.output, conv.channels, conv.filters, state.choice(node).winograd
    )
    if filtering is None:
        return None
    block = winograd_block(state.target, conv.filters)
    return WinogradConvolution(filtering, span, kind.dims[0], conv.size, conv.channels, conv.filters, block)


def _filtering_cycles(state: Lowering, conv: Convolution, fast: WinogradConvolution) -> float:
    return cycles(fast.filtering, state.target, fast.batch, conv.window.output, conv.channels, conv.filters)


def skipping(
    state: Lowering, node: Node, conv: Convolution, weights: Array, filtering: float | None = None
) -> SparseOperand | None:
    """Constant weights (O, I, *K) without their blocks of zeros, None where that is no faster than the direct sum, or
    `filtering` cycles.
    """
    if conv.kind != "dense" or conv.groups > 1 or len(conv.window.kernel) != 2:
        return None
    by_tap = weights.reshape(*weights.shape[:2], -1)
    return sparse_operand(state, node, by_tap, conv.work(state.type(node.inputs[0]).dims[0]), filtering)


@computes("graphc.nhwc", "Conv")
def conv(state: Lowering, node: Node) -> Sequence[Any]:
    """y = conv(x, w) + bias in the operands' floating type."""
    shape = convolution(state, node)
    dtype = state.type(node.inputs[0]).dtype.name
    fast, array = winograd(state, node, shape), state.constant(node.inputs[1])
    sparse: SparseOperand | None = None
    reader: Reader = plain
    if array is not None and array.dtype == np.float32:
        sparse = skipping(state, node, shape, array, _filtering_cycles(state, shape, fast) if fast else None)
    if sparse is not None:
        fast, weights, reader = None, list(sparse.operands), sparse.skipping
        shape = replace(shape, block=state.target.lanes(32))
    elif fast is None:
        weights, reader = packed_weights(state, shape, node.inputs[1])
    else:
        weights = fast.operands(state, state.graph.constants[node.inputs[1]], node.inputs[1])
        shape = replace(shape, block=fast.block)
    x = state.value(node.inputs[0])
    if fast is None:
        coded = sparse is None and reader is not plain
        x, shape = with_padding(state, node.inputs[0], shape, tirx.const(0, dtype), dtype, coded=coded)
    operands = [x, *weights]
    biased = len(node.inputs) > 2 and bool(node.inputs[2])
    if biased:
        bias = state.constant(node.inputs[2])
        operands.append(state.parameter(bias, node.inputs[2]) if bias is not None else state.value(node.inputs[2]))
    output = state.type(node.outputs[0]).dims

    def define(x: te.Tensor, *rest: te.Tensor) -> te.Tensor:
        given, bias = rest[: len(weights)], rest[len(weights) :]
        acc = fast.accumulate(x, *given) if fast else accumulate(shape, x, reader(given), dtype, tirx.const(0, dtype))
        return te.compute(
            output, lambda *i: sum_at(shape, acc, i) + bias[0][i[-1]] if bias else sum_at(shape, acc, i), name="out"
        )

    return [state.emit(define, *operands, name="conv", pattern=OUT_FUSIBLE)]
