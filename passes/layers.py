"""Layers as matrix products: the rows X that a node cuts from its input, times a matrix W of its constant weights.

    Conv(x, w)     rows: the places of the window (im2col)      W [groups, outputs / groups, inputs / groups * kernel]
    Gemm, MatMul   rows: runs of the last axis                  W [1, outputs, inputs]

Y = X W^T. So the mean squared error that other weights W' make at the layer's output needs no data again, only the
Gram matrix G = X^T X of n rows:    E |X (W' - W)^T|^2 = trace((W' - W) G (W' - W)^T) / n
(E. Frantar, D. Alistarh, "Optimal Brain Compression", 2022, eq. 2).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from graphc.ir.graph import Graph, Node
from graphc.passes.protocol import Gram, Moments, Observation, Rows, Sample, Statistics, Total

Floats = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]

CHUNK = 1 << 22
"""Elements that `unfold` makes at a time, or one sample's."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A node whose constant `weight` multiplies rows of `value`. `transposed`: the weights are [inputs, outputs]."""

    node: Node
    value: str
    weight: str
    rows: Rows
    shape: tuple[int, ...]
    transposed: bool = False

    @property
    def gram(self) -> Observation:
        """The wish for second moments of this layer's rows."""
        return Observation(self.value, Gram(self.rows))

    @property
    def total(self) -> Observation:
        """The wish for the sum of this layer's rows."""
        return Observation(self.value, Total(self.rows))

    def sample(self, count: int, seed: int = 0) -> Observation:
        """The wish for `count` of this layer's rows."""
        return Observation(self.value, Sample(self.rows, count, seed))

    @property
    def moments(self) -> Observation:
        """The wish for figures of each channel of this layer's input."""
        return Observation(self.value, Moments(1 if self.rows.kernel else -1))

    def matrix(self, weights: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """W [groups, outputs / groups, K] of an array of the weights' shape: the weights, or one number for each."""
        if self.transposed:
            return np.ascontiguousarray(weights.T)[None]
        return weights.reshape(self.rows.groups, weights.shape[0] // self.rows.groups, -1)

    def restore(self, matrix: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """The inverse of `matrix`."""
        if self.transposed:
            return np.ascontiguousarray(matrix[0].T)
        return matrix.reshape(self.shape)

    def error(self, change: Doubles, statistics: Statistics) -> float:
        """Mean squared change of an element of the layer's output when W changes by `change` (as `matrix` gives it)."""
        found = statistics[self.gram]
        return output_error(change, found["gram"].astype(np.float64)) / (int(found["count"]) * prod(change.shape[:2]))


def layer_of(graph: Graph, node: Node) -> Layer | None:
    """`node` as a matrix product of activations with constant weights; None where it is no such thing.

    Conv (any rank, groups, dilations), Gemm without transA, MatMul by a matrix on the right. Padding must be numbers
    (`fold` makes auto_pad numbers).
    """
    if node.domain or node.op not in ("Conv", "Gemm", "MatMul") or len(node.inputs) < 2:
        return None
    value, weight = node.inputs[:2]
    kind = graph.types.get(weight)
    if value in graph.constants or kind is None or not kind.is_static or not _constant(graph, weight):
        return None
    if node.op == "Conv":
        rows = _windows(node, kind.dims)
        return Layer(node, value, weight, rows, kind.dims) if rows is not None else None
    if len(kind.dims) != 2 or node.get_int("transA", 0):
        return None
    return Layer(node, value, weight, Rows(), kind.dims, not node.get_int("transB", 0))


def layers(graph: Graph) -> tuple[Layer, ...]:
    """All layers of a graph, in order."""
    return tuple(layer for node in graph.nodes if (layer := layer_of(graph, node)) is not None)


def output_error(change: Doubles, gram: Doubles) -> float:
    """trace(change gram change^T), summed over groups: `change` [groups, N, K], `gram` [groups, K, K]."""
    return float(np.einsum("gnk,gnk->", change @ gram, change))


def unfold(values: Floats, rows: Rows) -> Iterator[Floats]:
    """The rows of `values`, in order, as pieces [groups, n, K] of bounded size; the order is that of the elements."""
    if not rows.kernel:
        flat = values.reshape(-1, rows.groups, values.shape[-1] // rows.groups)
        step = max(CHUNK // max(values.shape[-1], 1), 1)
        for start in range(0, len(flat), step):
            yield flat[start : start + step].transpose(1, 0, 2)
        return
    taken = max(CHUNK // max(values[0].size * prod(rows.kernel), 1), 1)
    for start in range(0, len(values), taken):
        yield _unfold(values[start : start + taken], rows)


def row_count(values: Floats, rows: Rows) -> int:
    """How many rows `values` has."""
    if not rows.kernel:
        return int(values.size) // int(values.shape[-1])
    places = tuple(int(size) for size in _windows_of(values, rows).shape[2 : 2 + len(rows.kernel)])
    return len(values) * prod(places)


def some_rows(values: Floats, rows: Rows, chosen: npt.NDArray[np.int64]) -> Floats:
    """The rows of `values` with these numbers, [groups, n, K], in the order of `unfold`."""
    if not rows.kernel:
        flat = values.reshape(-1, rows.groups, values.shape[-1] // rows.groups)
        return flat[chosen].transpose(1, 0, 2)
    windows, rank = _windows_of(values, rows), len(rows.kernel)
    batch, *places = np.unravel_index(chosen, (len(windows), *windows.shape[2 : 2 + rank]))
    picked: Floats = np.moveaxis(windows, 1, 1 + rank)[(batch, *places)]
    return picked.reshape(len(chosen), rows.groups, -1).transpose(1, 0, 2)


def _unfold(values: Floats, rows: Rows) -> Floats:
    """im2col: values [B, C, *S] -> [groups, B * places, C / groups * kernel]."""
    windows, rank = _windows_of(values, rows), len(rows.kernel)
    batch, channels = windows.shape[:2]
    grouped = windows.reshape(batch, rows.groups, channels // rows.groups, *windows.shape[2:])
    order = (1, 0, *range(3, 3 + rank), 2, *range(3 + rank, 3 + 2 * rank))
    return grouped.transpose(order).reshape(rows.groups, batch * prod(windows.shape[2 : 2 + rank]), -1)


def _windows_of(values: Floats, rows: Rows) -> Floats:
    """values [B, C, *S] -> a view [B, C, *places, *kernel] of them, padded."""
    rank = len(rows.kernel)
    begins, ends = rows.pads[:rank], rows.pads[rank:]
    padded = np.pad(values, [(0, 0), (0, 0), *zip(begins, ends, strict=True)])
    reach = tuple((k - 1) * d + 1 for k, d in zip(rows.kernel, rows.dilations, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, tuple(range(2, 2 + rank)))
    places = tuple(slice(None, None, stride) for stride in rows.strides)
    inside = tuple(slice(None, None, dilation) for dilation in rows.dilations)
    return windows[(slice(None), slice(None), *places, *inside)]


def _windows(node: Node, shape: tuple[int, ...]) -> Rows | None:
    rank = len(shape) - 2
    pads = node.get_ints("pads", (0,) * (2 * rank))
    if node.get_str("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    ones = (1,) * rank
    groups, strides = node.get_int("group", 1), node.get_ints("strides", ones)
    return Rows(groups, shape[2:], strides, node.get_ints("dilations", ones), pads)


def _constant(graph: Graph, name: str) -> bool:
    """Whether a value is a constant, or what decoders make of constants."""
    producer = graph.producers.get(name)
    if name in graph.constants or producer is None:
        return name in graph.constants
    return bool(producer.reads) and all(_constant(graph, source) for source in producer.reads)
