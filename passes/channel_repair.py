"""Repair without training: what stays after a cut makes up for what went, on calibration data, layer by layer.

The cut graph runs beside the dense one, node by node, with all that was repaired so far. At a layer with rows X of the
cut graph and results Y of the dense one (its channels that stay):

- least_squares: W', b' = argmin |Y - X W'^T - b'|^2 + r |W' - W|^2, from the normal equations; r is RIDGE of the mean
  diagonal of X^T X. Y. He et al., "Channel Pruning for Accelerating Very Deep Neural Networks" (2017), section 3.1, for
  every layer instead of the next one alone. Where only an Add reads the result, Y is what the Add came to in the dense
  graph less its other operand in the cut one (section 3.3), which takes back the error of all layers before.
- bias: b' = b + mean(Y - X W^T) alone.
- batch_norm: the mean and variance of each BatchNormalization are those of its input in the cut graph.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from graphc.ir.edit import with_constants
from graphc.ir.graph import Array, Graph, Node
from graphc.passes.channel_cut import select
from graphc.passes.channel_groups import Elements
from graphc.passes.channel_walk import Walk, drawn, flat
from graphc.passes.layers import Floats, Layer, layer_of, some_rows
from graphc.passes.protocol import Context

Doubles = npt.NDArray[np.float64]
Repair = Literal["none", "bias", "batch_norm", "least_squares"]

RIDGE = 1e-4
ROWS = 1 << 17
"""Rows of a layer that enter its equations, spread evenly over feeds, drawn within each."""


@dataclass
class Equations:
    """X^T X and X^T Y of rows X [groups, n, K], extended by a one for the bias, and Y [groups, n, outputs]."""

    gram: Doubles | None = None
    product: Doubles | None = None

    def add(self, rows: npt.NDArray[np.floating], targets: npt.NDArray[np.floating]) -> None:
        ones = np.ones((*rows.shape[:2], 1), np.float32)
        x = np.concatenate([rows.astype(np.float32), ones], axis=2)
        gram, product = x.transpose(0, 2, 1) @ x, x.transpose(0, 2, 1) @ targets.astype(np.float32)
        self.gram = gram.astype(np.float64) + (0.0 if self.gram is None else self.gram)
        self.product = product.astype(np.float64) + (0.0 if self.product is None else self.product)

    def solve(self, weights: Doubles, has_bias: bool) -> Doubles:
        """`weights` [groups, outputs, K + 1] moved to where the error is least; without bias its column stays."""
        assert self.gram is not None and self.product is not None
        depth = weights.shape[2] if has_bias else weights.shape[2] - 1
        gram = self.gram[:, :depth, :depth]
        wrong = self.product[:, :depth] - self.gram[:, :depth] @ weights.transpose(0, 2, 1)
        ridge = RIDGE * np.trace(gram, axis1=1, axis2=2)[:, None, None] / depth + 1e-12
        change = np.linalg.solve(gram + ridge * np.eye(depth), wrong)
        found = weights.copy()
        found[:, :, :depth] += change.transpose(0, 2, 1)
        return found

    def shift(self, weights: Doubles) -> Doubles:
        """`weights` with the bias moved by the mean error."""
        assert self.gram is not None and self.product is not None
        found = weights.copy()
        wrong = self.product[:, -1] - np.einsum("gk,gok->go", self.gram[:, -1], weights)
        found[:, :, -1] += wrong / self.gram[:, -1, -1, None]
        return found


def repaired(
    dense: Graph, after: Graph, removed: Elements, feeds: Sequence[Mapping[str, Array]], how: Repair, context: Context
) -> Graph:
    """`after`, which is `dense` without `removed`, with other weights; the same object for `none`."""
    if how == "none":
        return after
    return _Repair(dense, after, removed, feeds, how, context).run()


class _Repair:
    def __init__(
        self,
        dense: Graph,
        after: Graph,
        removed: Elements,
        feeds: Sequence[Mapping[str, Array]],
        how: Repair,
        context: Context,
    ) -> None:
        self._dense, self._after, self._removed, self._how = dense, after, removed, how
        self._context, self._count = context, len(feeds)
        self._layers = {node: layer for node in after.nodes if (layer := self._layer(node)) is not None}
        self._sums = {node: self._sum(node) for node in self._layers}
        wanted = [name for node in self._layers for name in self._goals(node)]
        self._before, self._now = Walk(dense, feeds, wanted), Walk(after, feeds)
        self._touched = {name for name, _ in removed}
        self._same = {node.name: node.inputs for node in dense.nodes}
        self._changed: dict[str, Array] = {}

    def run(self) -> Graph:
        for place, node in enumerate(self._after.nodes):
            self._context.progress(f"repair {node.name}", place / len(self._after.nodes))
            is_touched = self._same.get(node.name) != node.inputs or not self._touched.isdisjoint(node.reads)
            if is_touched and node in self._layers:
                self._fit(node, self._layers[node])
            elif is_touched and node.op == "BatchNormalization" and self._how == "batch_norm":
                self._estimate(node)
            if is_touched:
                self._touched.update(node.results)
            self._now.through(node)
            for name in self._goals(node) if node in self._layers else ():
                self._before.release(name)
        return with_constants(self._after, self._changed)

    def _layer(self, node: Node) -> Layer | None:
        """A layer whose weights can change: constants of its own, in a node that the dense graph has too."""
        layer = layer_of(self._after, node) if self._how in ("least_squares", "bias") else None
        if layer is None or node.outputs[0] not in self._dense.types:
            return None
        if node.op == "Gemm" and (node.get_float("alpha", 1.0), node.get_float("beta", 1.0)) != (1.0, 1.0):
            reason = "its alpha or beta is not 1"
        elif layer.weight not in self._after.constants:
            reason = "its weights are no plain constant"
        elif len(self._after.users[layer.weight]) > 1:
            reason = "its weights are shared"
        else:
            return layer
        self._refuse(node, reason)
        return None

    def _refuse(self, node: Node, reason: str) -> None:
        self._context.skip(node, f"not repaired: {reason}")

    def _bias(self, node: Node) -> str:
        """The bias of a layer, a constant vector of its own; empty where there is none."""
        name = node.inputs[2] if len(node.inputs) > 2 else ""
        array = self._after.constant(name)
        return name if array is not None and array.ndim == 1 and len(self._after.users[name]) == 1 else ""

    def _sum(self, node: Node) -> tuple[Node, str] | None:
        """The Add that alone reads the result, and its other operand."""
        reader = self._after.sole_user(node.outputs[0])
        if reader is None or reader.op != "Add" or reader.inputs[0] == reader.inputs[1]:
            return None
        other = reader.inputs[1 - reader.inputs.index(node.outputs[0])]
        shapes = {self._after.types[name] for name in (other, reader.outputs[0], node.outputs[0])}
        return (reader, other) if other not in self._after.constants and len(shapes) == 1 else None

    def _goals(self, node: Node) -> tuple[str, ...]:
        """Values of the dense graph that a layer may be fitted to: its own result, and the Add's behind it."""
        joined = self._sums[node]
        return (node.outputs[0],) if joined is None else (node.outputs[0], joined[0].outputs[0])

    def _targets(self, node: Node) -> Iterator[Array]:
        """What the layer should come to, feed by feed."""
        joined = self._sums[node]
        if joined is not None and not self._now.is_ready(joined[1]):
            joined = None
        name = node.outputs[0] if joined is None else joined[0].outputs[0]
        for i, values in enumerate(self._before.through_value(name)):
            wanted = select(self._dense, self._removed, name, values)
            yield wanted if joined is None else wanted - self._now.values[joined[1]][i]  # type: ignore[operator]

    def _fit(self, node: Node, layer: Layer) -> None:
        bias = self._bias(node)
        if self._how == "bias" and not bias:
            return self._refuse(node, "it has no bias of its own")
        self._now.through_value(layer.value)
        equations = self._equations(layer, node)
        stored = self._now.constants[layer.weight]
        matrix = np.asarray(layer.matrix(stored)).astype(np.float64)
        column = self._now.constants[bias].astype(np.float64) if bias else np.zeros(prod(matrix.shape[:2]))
        whole = np.concatenate([matrix, column.reshape(*matrix.shape[:2], 1)], axis=2)
        found = equations.shift(whole) if self._how == "bias" else equations.solve(whole, bool(bias))
        if not np.isfinite(found).all():
            return self._refuse(node, "its equations have no finite solution")
        self._set(layer.weight, np.asarray(layer.restore(found[:, :, :-1])).astype(stored.dtype))
        if bias:
            self._set(bias, found[:, :, -1].reshape(-1).astype(self._now.constants[bias].dtype))
        return None

    def _equations(self, layer: Layer, node: Node) -> Equations:
        equations, random = Equations(), np.random.default_rng(0)
        for values, wanted in zip(self._now.values[layer.value], self._targets(node), strict=True):
            goal = flat(wanted) if layer.rows.kernel else wanted.reshape(-1, wanted.shape[-1])
            chosen = drawn(len(goal), max(ROWS // self._count, 1), random)
            rows = some_rows(cast(Floats, values), layer.rows, chosen)
            targets = goal[chosen].reshape(len(chosen), layer.rows.groups, -1).transpose(1, 0, 2)
            equations.add(rows, cast(Floats, targets))
        return equations

    def _estimate(self, node: Node) -> None:
        """Mean and variance over feeds and places."""
        self._now.through_value(node.inputs[0])
        rows = np.concatenate([flat(values) for values in self._now.values[node.inputs[0]]]).astype(np.float64)
        names = node.inputs[3:5]
        if any(name not in self._after.constants or len(self._after.users[name]) > 1 for name in names):
            return self._refuse(node, "its mean and variance are not constants of its own")
        for name, array in zip(names, (rows.mean(axis=0), rows.var(axis=0)), strict=True):
            self._set(name, array.astype(self._after.constants[name].dtype))
        return None

    def _set(self, name: str, array: Array) -> None:
        self._now.constants[name] = array
        self._changed[name] = array
