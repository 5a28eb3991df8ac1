"""What groups of channels are worth: an order in which to take them away, and the error that this makes.

By weights, of the layers that make the channels (w_c: what of them belongs to group c):

- magnitude: |w_c|_2; l1: |w_c|_1, as in H. Li et al., "Pruning Filters for Efficient ConvNets" (2017).
- fpgm: the sum of distances to all other filters of the layer: Y. He et al., "Filter Pruning via Geometric Median"
  (2019), eq. 4.
- taylor: |sum g w| over w_c and its gradients g; fisher: (sum g w)^2, averaged where gradients of several samples are
  given: P. Molchanov et al., "Importance Estimation for Neural Network Pruning" (2019), eq. 8 and 10.

By data, at the layers that read the channels, with G = X^T X of their rows:

- energy: the mean square of the channel, tr G_cc.
- hessian: tr(W_c G_cc W_c^T), the squared error at the layer's output when the channel goes: half the second-order
  term of the loss there, whose Hessian is G for every output (Y. LeCun et al., "Optimal Brain Damage", 1990).
- reconstruction: tr(W_c (G^-1_cc)^-1 W_c^T), the error that is left when the other weights make up for it, which they
  then do, before the next one is taken (B. Hassibi, D. Stork, "Second Order Derivatives for Network Pruning", 1993).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from graphc.errors import InputError
from graphc.ir.graph import Array, Graph, Node
from graphc.passes.channel_groups import Elements, Family
from graphc.passes.channel_ties import Axis, Indices
from graphc.passes.channel_walk import Walk, drawn
from graphc.passes.layers import Floats, Layer, layer_of, row_count, some_rows
from graphc.passes.protocol import Context, Rows

Doubles = npt.NDArray[np.float64]

BY_WEIGHTS = ("magnitude", "l1", "fpgm")
BY_GRADIENTS = ("taylor", "fisher")
BY_DATA = ("energy", "hessian", "reconstruction")

RIDGE = 1e-4
ROWS = 1 << 16
"""Rows of a layer that enter its Gram matrix."""
STEPS = 64
"""Times that the remaining weights make up for what went, per family."""


@dataclass(frozen=True, eq=False)
class Ladder:
    """`order`: groups by number, the least worth first. `errors[k]`: the relative error of taking k of them away."""

    order: Indices
    errors: Doubles


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads channels along axis `axis` of its weights."""

    layer: Layer
    axis: Axis


class Worth:
    """The worth of groups by one method. Statistics are collected once, for all families."""

    def __init__(
        self,
        graph: Graph,
        families: Sequence[Family],
        method: str,
        feeds: Sequence[Mapping[str, Array]],
        gradients: Mapping[str, Array],
        context: Context,
    ) -> None:
        self._graph, self._method, self._gradients = graph, method, gradients
        makers, readers = _sides(graph)
        self._arrays = _weights(graph, [name for name, _ in (*makers, *readers)])
        self._makers = {axis for axis in makers if axis[0] in self._arrays}
        self._readers = {axis: reader for axis, reader in readers.items() if axis[0] in self._arrays}
        self._grams: dict[tuple[str, Rows], Doubles] = {}
        if method in BY_DATA:
            axes = {axis for family in families for axis in family.axes}
            wanted = [reader for axis, reader in self._readers.items() if axis in axes and reader is not None]
            self._grams = grams(graph, [reader.layer for reader in wanted], feeds, context)

    def ladder(self, family: Family) -> Ladder:
        """The order of one family, with errors relative to what its layers come to."""
        readers = [reader for axis in family.axes if (reader := self._readers.get(axis)) is not None]
        if self._method == "reconstruction" and readers:
            return self._reconstructed(family, readers)
        scores = self.scores(family)
        order = np.argsort(scores, kind="stable")
        total = scores.sum() or 1.0
        return Ladder(order, np.concatenate([[0.0], np.cumsum(scores[order]) / total]))

    def scores(self, family: Family) -> Doubles:
        """A number >= 0 for each group: what it adds to the error, or how large it is."""
        readers = [reader for axis in family.axes if (reader := self._readers.get(axis)) is not None]
        if self._method in BY_DATA and readers:
            return sum((self._of_data(family, reader) for reader in readers), np.zeros(len(family.groups)))
        axes = [axis for axis in family.axes if axis in self._makers] or [a for a in family.axes if a in self._readers]
        found = np.zeros(len(family.groups))
        for name, number in axes:
            values = self._of_weights(name, number)
            found += [values[group[name, number]].sum() for group in family.groups]
        return np.sqrt(found) if self._method == "magnitude" else np.abs(found)

    def _of_weights(self, name: str, number: int) -> Doubles:
        """A number for each index of an axis of some weights; those of a group add up."""
        rows = np.moveaxis(self._arrays[name], number, 0).reshape(self._arrays[name].shape[number], -1)
        if self._method in BY_GRADIENTS:
            return self._of_gradients(name, number, rows)
        if self._method == "l1":
            return np.asarray(np.abs(rows).sum(axis=1))
        squares = np.asarray(np.square(rows).sum(axis=1))
        if self._method == "fpgm":
            apart = np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0)
            return np.asarray(np.sqrt(apart).sum(axis=1))
        return squares

    def _of_gradients(self, name: str, number: int, rows: Doubles) -> Doubles:
        """`gradients[name]` has the weights' shape, or that of several samples of them."""
        given = self._gradients.get(name)
        shape = self._arrays[name].shape
        if given is None or given.shape[-len(shape) :] != shape or given.ndim > len(shape) + 1:
            got = "nothing" if given is None else str(list(given.shape))
            problem = f"expected gradients {list(shape)} (or one more axis, for samples) of '{name}', got {got}."
            raise InputError("gradients", problem, f"It holds: {', '.join(self._gradients) or 'nothing'}.")
        each = given.reshape(-1, *shape).astype(np.float64)
        products = np.moveaxis(each, number + 1, 1).reshape(len(each), len(rows), -1) * rows
        sums = products.sum(axis=2)
        return np.square(sums).mean(axis=0) if self._method == "fisher" else np.asarray(sums.mean(axis=0))

    def _of_data(self, family: Family, reader: Reader) -> Doubles:
        found = np.zeros(len(family.groups))
        matrix, gram = self._matrix(reader), self._grams[reader.layer.value, reader.layer.rows]
        signal = max(float(np.einsum("gnk,gnk->", matrix @ gram, matrix)), 1e-30)
        for number, columns in enumerate(_columns(family.groups, reader, matrix.shape[2])):
            block = gram[:, columns[:, None], columns]
            if self._method == "energy":
                found[number] = np.trace(block, axis1=1, axis2=2).sum() / np.trace(gram, axis1=1, axis2=2).sum()
            else:
                found[number] = np.einsum("gnk,gnk->", matrix[:, :, columns] @ block, matrix[:, :, columns]) / signal
        return found

    def _reconstructed(self, family: Family, readers: Sequence[Reader]) -> Ladder:
        surgeries = [
            Surgery(matrix[g], self._grams[reader.layer.value, reader.layer.rows][g], columns)
            for reader in readers
            for matrix in (self._matrix(reader),)
            for columns in (_columns(family.groups, reader, matrix.shape[2]),)
            for g in range(len(matrix))
        ]
        count = len(family.groups)
        left, order, errors = np.ones(count, bool), [], [0.0]
        at_once = -(-count // STEPS)
        while left.any():
            costs = sum((surgery.costs() for surgery in surgeries), np.zeros(count))
            costs[~left] = np.inf
            chosen = np.argsort(costs, kind="stable")[: min(at_once, int(left.sum()))]
            for group in chosen:
                errors.append(errors[-1] + float(costs[group]))
                order.append(int(group))
            left[chosen] = False
            for surgery in surgeries:
                surgery.remove(chosen)
        return Ladder(np.array(order), np.array(errors))

    def _matrix(self, reader: Reader) -> Doubles:
        return np.asarray(reader.layer.matrix(self._arrays[reader.layer.weight])).astype(np.float64)


class Surgery:
    """One layer's weights [outputs, K] while columns are taken away and the others make up for it."""

    def __init__(self, weights: Doubles, gram: Doubles, columns: Sequence[Indices]) -> None:
        ridge = RIDGE * np.trace(gram) / len(gram) + 1e-12
        self._signal = max(float(np.einsum("nk,nk->", weights @ gram, weights)), 1e-30)
        self._inverse = np.linalg.inv(gram + ridge * np.eye(len(gram)))
        self._weights, self._columns = weights.copy(), columns
        self._gone = np.zeros(len(columns), bool)

    def costs(self) -> Doubles:
        """The relative error that each group's going adds."""
        found = np.zeros(len(self._columns))
        for number, columns in enumerate(self._columns):
            if not self._gone[number]:
                part = self._weights[:, columns]
                inner = np.linalg.solve(self._inverse[columns[:, None], columns], part.T)
                found[number] = float(np.einsum("nk,kn->", part, inner)) / self._signal
        return found

    def remove(self, groups: npt.NDArray[np.integer]) -> None:
        """Take groups away: w' = w - w_c (G^-1_cc)^-1 G^-1_c, and G^-1 of what remains."""
        columns = np.concatenate([self._columns[group] for group in groups])
        across = self._inverse[columns]
        solved = np.linalg.solve(across[:, columns], across)
        self._weights -= self._weights[:, columns] @ solved
        self._inverse -= across.T @ solved
        self._weights[:, columns] = 0.0
        self._gone[groups] = True


def grams(
    graph: Graph, layers: Sequence[Layer], feeds: Sequence[Mapping[str, Array]], context: Context
) -> dict[tuple[str, Rows], Doubles]:
    """X^T X of the rows of layers, [groups, K, K], from one walk."""
    wanted = {(layer.value, layer.rows): layer for layer in layers}
    walk, random = Walk(graph, feeds, [name for name, _ in wanted]), np.random.default_rng(0)
    order = {name: place for place, node in enumerate(graph.nodes) for name in node.results}
    found: dict[tuple[str, Rows], Doubles] = {}
    for done, (key, layer) in enumerate(sorted(wanted.items(), key=lambda each: order.get(each[0][0], -1))):
        context.progress("statistics", done / len(wanted))
        for values in cast(list[Floats], walk.through_value(layer.value)):
            chosen = drawn(row_count(values, layer.rows), max(ROWS // len(feeds), 1), random)
            rows = some_rows(values, layer.rows, chosen).astype(np.float32)
            found[key] = (rows.transpose(0, 2, 1) @ rows).astype(np.float64) + found.get(key, 0.0)
        walk.release(layer.value)
    return found


def _columns(groups: Sequence[Elements], reader: Reader, depth: int) -> list[Indices]:
    """The columns of a layer's matrix that belong to each group."""
    size = reader.layer.shape[reader.axis[1]]
    return [np.sort(np.add.outer(group[reader.axis] * (depth // size), np.arange(depth // size)).ravel())
            for group in groups]  # fmt: skip


def _sides(graph: Graph) -> tuple[set[Axis], dict[Axis, Reader | None]]:
    """Axes of weights whose indices are channels that a layer makes, and that it reads (None: by no matrix product)."""
    makers: set[Axis] = set()
    readers: dict[Axis, Reader | None] = {}
    for node in graph.nodes:
        for name, out, inner in _axes(graph, node):
            makers.update((name, axis) for axis in out)
            layer = layer_of(graph, node)
            for axis in inner:
                readers[name, axis] = Reader(layer, (name, axis)) if layer is not None else None
    return makers, readers


def _axes(graph: Graph, node: Node) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """(weights, the axes that it makes channels of, those that it reads with) of a node."""
    if node.domain or len(node.inputs) < 2:
        return []
    left, right = node.inputs[:2]
    turned = node.get_int("transB", 0) if node.op == "Gemm" else 0
    sides: Mapping[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
        "Conv": (right, (0,), (1,)),
        "ConvTranspose": (right, (1,), (0,)),
        **dict.fromkeys(("LSTM", "GRU", "RNN"), (right, (), (2,))),
        "Gather": (left, (1,), ()),
        "Gemm": (right, (1 - turned,), (turned,)),
    }
    if node.op != "MatMul":
        return [sides[node.op]] if node.op in sides else []
    wide, rank = (len(graph.types[name].shape or ()) for name in (left, right))
    both = ((right, (rank - 1,), (rank - 2,)), (left, (wide - 2,), (wide - 1,)))
    return list(both) if min(rank, wide) > 1 else []


def _weights(graph: Graph, names: Sequence[str]) -> dict[str, Doubles]:
    """Those that are constants or what decoders make of constants, as float64."""
    fixed = set(graph.constants)
    nodes = []
    for node in graph.nodes:
        if all(name in fixed for name in node.reads):
            fixed.update(node.results)
            nodes.append(node)
    wanted = [name for name in dict.fromkeys(names) if name in fixed]
    walk = Walk(Graph("weights", (), tuple(wanted), tuple(nodes), graph.types, graph.constants), [{}], wanted)
    for node in nodes:
        walk.through(node)
    return {name: walk.constants[name].astype(np.float64) for name in wanted}
