"""Zeros in weights: which layers, by which worth, and how they are written.

    Conv(x, w)  ->  Conv(x, SparseToDense(mask, values; shape))       mask: one bit per weight, values: what stays

- magnitude: |w|.
- wanda: |w| |X_j|_2, in each output: M. Sun et al., "A Simple and Effective Pruning Approach for Large Language Models"
  (2023), eq. 1. The norm is that of an input channel.
- sparsegpt: prune_solver.py; what stays is updated.

Every repair takes the mean of the change at the output, E[X] dW^T, out of the bias of a Conv or Gemm (M. Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, eq. 16-17). What is left of the error
then is that of centred inputs, G - n E[X]^T E[X]. `least_squares` also fits the weights that stay, row by row, to where
that is least (prune_solver.py), which sparsegpt does of itself.

A worth is squared, so that those of a block add up. Masks: prune_masks.py; shares: prune_allocation.py.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from graphc.ir.edit import Edit
from graphc.ir.graph import Array, Graph, Node
from graphc.ir.sparse import Mask, dense_of, pruned_values, sparse
from graphc.passes.channel_repair import Repair
from graphc.passes.layers import Layer, layer_of, output_error
from graphc.passes.protocol import Context, Observation, Statistics, has_weights
from graphc.passes.prune_allocation import Allocation, Candidate, allocated
from graphc.passes.prune_masks import Shape, blocked, pruned
from graphc.passes.prune_solver import refit, solve

Doubles = npt.NDArray[np.float64]

DOT = 4
"""Inputs that an integer dot product adds up: the depth of an automatic block."""


class Options(Protocol):
    """What pruning weights asks of a node's options."""

    @property
    def method(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def share(self) -> float: ...
    @property
    def kept_of(self) -> tuple[int, int] | None: ...
    @property
    def block(self) -> Literal["auto"] | tuple[int, int] | None: ...
    @property
    def repair(self) -> Repair: ...


def observes(graph: Graph, options: Mapping[Node, Options], allocation: Allocation) -> tuple[Observation, ...]:
    """Statistics of the inputs of every layer that is to be pruned."""
    wishes = [
        wish
        for each in _tensors(graph, options, 1)
        if isinstance(each, _Tensor)
        for layer in each.layers
        for wish in _wishes(layer, each.options, allocation)
    ]
    return tuple(dict.fromkeys(wishes))


def _wishes(layer: Layer, options: Options, allocation: Allocation) -> Iterator[Observation]:
    if options.method == "sparsegpt" or options.repair == "least_squares" or allocation == "sensitivity":
        yield layer.gram
    elif options.method == "wanda":
        yield layer.moments
    if options.repair != "none":
        yield layer.total


def layers(graph: Graph, options: Mapping[Node, Options]) -> tuple[Node, ...]:
    """The layers whose weights can be pruned; of those that share them, the first."""
    return tuple(each.layers[0].node for each in _tensors(graph, options, 1) if isinstance(each, _Tensor))


def apply(graph: Graph, options: Mapping[Node, Options], allocation: Allocation, context: Context) -> Graph:
    """`graph` with every tensor of weights pruned that can be; the others are skipped with a reason."""
    found: list[_Tensor] = []
    for each in _tensors(graph, options, context.lanes):
        if isinstance(each, _Tensor):
            found.append(each)
        else:
            context.skip(*each)
    candidates = [each.candidate(context.statistics) for each in found]
    edit = Edit(graph)
    for done, (each, share) in enumerate(zip(found, allocated(candidates, allocation), strict=True)):
        context.progress(each.layers[0].node.name, done / len(found))
        weights, gone = each.pruned(share, context.statistics)
        _write(edit, each, weights, gone, context)
    return edit.apply()


def _write(edit: Edit, tensor: "_Tensor", weights: Doubles, gone: Mask, context: Context) -> None:
    layer = tensor.layers[0]
    dense = np.asarray(tensor.restored(weights)).astype(tensor.stored.dtype)
    kept = ~np.asarray(tensor.restored(gone))
    before = edit.graph.producers.get(tensor.name)
    name = tensor.name.removesuffix("_pruned")
    made = sparse(edit, dense, kept, name, before or layer.node)
    for each in tensor.layers:
        operands = [each.node.inputs[0], made, *each.node.inputs[2:]]
        if tensor.options.repair != "none":
            why = _correct_bias(edit, each, operands, tensor.drift(each, weights, context.statistics))
            if why:
                context.skip(each.node, f"its bias is not corrected: {why}")
        edit.replace(each.node, inputs=operands)
    if before is not None:
        edit.remove(before)


def _correct_bias(edit: Edit, layer: Layer, operands: list[str], drift: Doubles) -> str:
    """Take `drift` [outputs] out of the bias in `operands`; why not, where that cannot be."""
    node = layer.node
    if node.op == "MatMul":
        return "a MatMul has none"
    bias = edit.graph.constant(operands[2]) if len(operands) > 2 and operands[2] else np.zeros(drift.shape, np.float32)
    if bias is None:
        return "it is computed at run time"
    factor = node.get_float("alpha", 1.0) / node.get_float("beta", 1.0)
    corrected = (bias.astype(np.float64) - drift * factor).astype(bias.dtype)
    operands[2:] = [edit.constant(corrected, f"{layer.weight}_bias")]
    return ""


@dataclass(frozen=True, eq=False)
class _Tensor:
    """One tensor of weights and the layers that multiply by it; `inputs` of a tap."""

    name: str
    layers: tuple[Layer, ...]
    stored: Array
    options: Options
    shape: Shape

    @property
    def outputs(self) -> int:
        """Of a group."""
        layer = self.layers[0]
        return layer.shape[1 if layer.transposed else 0] // layer.rows.groups

    @property
    def depth(self) -> int:
        layer = self.layers[0]
        return layer.shape[0] if layer.transposed else prod(layer.shape[1:])

    @property
    def inputs(self) -> int:
        layer = self.layers[0]
        return layer.shape[1] if layer.rows.kernel else self.depth

    @property
    def weights(self) -> Doubles:
        """[groups, outputs, taps * inputs]. Made each time: those of all layers take twice the model's room."""
        return self.by_tap(np.asarray(self.layers[0].matrix(self.stored)).astype(np.float64))

    @cached_property
    def _taps_first(self) -> npt.NDArray[np.int64]:
        """Columns of `Layer.matrix`, which has the inputs' taps side by side, in the order of masks."""
        return np.arange(self.depth).reshape(self.inputs, -1).T.ravel()

    @property
    def _is_in_order(self) -> bool:
        """Whether `Layer.matrix` and masks have columns in the same order: there is one tap, or one input."""
        return self.inputs in (1, self.depth)

    def by_tap(self, matrix: Doubles) -> Doubles:
        return matrix if self._is_in_order else matrix[..., self._taps_first]

    def restored(self, matrix: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """An array of the shape of `weights` as the tensor lies."""
        if self._is_in_order:
            return self.layers[0].restore(matrix)
        back = np.empty_like(matrix)
        back[..., self._taps_first] = matrix
        return self.layers[0].restore(back)

    def gram(self, statistics: Statistics) -> Doubles:
        """Second moments of the inputs [groups, K, K]; where biases are repaired around their mean."""
        total = np.asarray(sum(self._gram(layer, statistics) for layer in self.layers))
        columns = self._taps_first
        return total[:, columns[:, None], columns[None]]

    def _gram(self, layer: Layer, statistics: Statistics) -> Doubles:
        gram = statistics[layer.gram]["gram"].astype(np.float64)
        if self.options.repair == "none":
            return gram
        total, count = (
            statistics[layer.total]["total"].astype(np.float64),
            float(statistics[layer.total]["count"].astype(np.float64)),
        )
        centred: Doubles = gram - total[:, :, None] * total[:, None, :] / count
        return centred

    def drift(self, layer: Layer, weights: Doubles, statistics: Statistics) -> Doubles:
        """What other `weights` add to each output of a layer on average: [outputs]."""
        found = statistics[layer.total]
        mean = self.by_tap(found["total"].astype(np.float64) / float(found["count"].astype(np.float64)))
        drift: Doubles = np.einsum("gnk,gk->gn", weights - self.weights, mean).ravel()
        return drift

    def energy(self, statistics: Statistics) -> Doubles:
        """|X_j|^2 of each column, up to a factor: [groups, 1, taps * inputs]."""
        if all(layer.gram in statistics for layer in self.layers):
            return self.gram(statistics).diagonal(axis1=1, axis2=2)[:, None]
        means = [statistics[layer.moments] for layer in self.layers]
        channels = sum(m["energy"].astype(np.float64) * float(m["count"].astype(np.float64)) for m in means)
        groups, _, depth = self.weights.shape
        return np.tile(np.asarray(channels).reshape(groups, 1, -1), depth // self.inputs)

    def worth(self, statistics: Statistics) -> Doubles:
        """Of each weight, as the method sees it before anything is pruned."""
        squares = self.weights**2
        return squares if self.options.method == "magnitude" else squares * self.energy(statistics)

    def pruned(self, share: float, statistics: Statistics) -> tuple[Doubles, Mask]:
        """(weights that stay and zeros, what went)"""
        if self.options.method == "sparsegpt":
            return solve(self.weights, self.gram(statistics), self.inputs, self.shape, share)
        by_output = self.options.method == "wanda" and self.shape.outputs == 1
        gone = pruned(self.worth(statistics), self.inputs, self.shape, share, by_output)
        left = np.where(gone, 0.0, self.weights)
        if self.options.repair == "least_squares":
            left = refit(self.weights, left, gone, self.gram(statistics))
        return left, gone

    def candidate(self, statistics: Statistics) -> Candidate:
        return Candidate(
            self.stored.shape, self.options.share, partial(self._magnitudes), partial(self._error, statistics)
        )

    def _magnitudes(self) -> Doubles:
        """Root mean squares of what goes together, sorted."""
        squares = blocked(self.weights**2, self.inputs, self.shape) / (self.shape.outputs * self.shape.inputs)
        return np.sort(np.sqrt(squares), axis=None)

    def _error(self, statistics: Statistics, share: float) -> float:
        gram = self.gram(statistics)
        gone = pruned(self.weights**2 * self.energy(statistics), self.inputs, self.shape, share)
        signal = output_error(self.weights, gram)
        return output_error(np.where(gone, self.weights, 0.0), gram) / signal if signal else 0.0


def _tensors(graph: Graph, options: Mapping[Node, Options], lanes: int) -> Iterator["_Tensor | tuple[Node, str]"]:
    """Every tensor of weights that can be pruned, and every node with weights that can not, with the reason."""
    before = pruned_values(graph)
    by_weights: dict[str, list[Layer]] = {}
    for node in graph.nodes:
        if not has_weights(graph, node):
            continue
        layer = layer_of(graph, node)
        if layer is None:
            yield node, f"pruning knows the weights of Conv, Gemm and MatMul by a matrix, not those of this {node.op}"
        elif layer.weight not in graph.constants and layer.weight not in before:
            yield node, f"its weights are already stored by {graph.producers[layer.weight].label}"
        else:
            by_weights.setdefault(layer.weight, []).append(layer)
    for name, found in by_weights.items():
        own = options[found[0].node]
        alike = all(options[layer.node] == own for layer in found)
        made = _tensor(graph, name, found, own, lanes) if alike else _differing(found)
        if isinstance(made, str):
            yield found[0].node, made
        else:
            yield made


def _differing(found: list[Layer]) -> str:
    return f"its weights are shared with {found[1].node.label}, which the options treat in another way"


def _tensor(graph: Graph, name: str, found: list[Layer], options: Options, lanes: int) -> "_Tensor | str":
    others = [node.label for node in graph.users[name] if all(node is not layer.node for layer in found)]
    if others or name in graph.outputs:
        return f"its weights are also read by {others[0] if others else 'the outputs'}"
    first = found[0]
    if any(
        (layer.shape, layer.rows.groups, layer.transposed) != (first.shape, first.rows.groups, first.transposed)
        for layer in found
    ):
        return f"its weights are shared with {found[1].node.label}, which multiplies by them in another way"
    if options.share == 0:
        return "the options give it a share of 0"
    made = pruned_values(graph).get(name)
    stored = graph.constants[name] if made is None else dense_of(graph, made)
    return _shaped(_Tensor(name, tuple(found), stored, options, Shape(kept_of=options.kept_of)), lanes)


def _shaped(tensor: _Tensor, lanes: int) -> _Tensor | str:
    """With the shape of what goes together; why not, where that is larger than the layer."""
    options, outputs = tensor.options, tensor.outputs
    shape = tensor.shape
    if options.family == "block":
        block = options.block if isinstance(options.block, tuple) else (lanes, DOT)
        shape = Shape(*block)
    if outputs < shape.outputs or tensor.inputs < shape.run:
        return (
            f"{shape.outputs} x {shape.run} weights go together, and it has {outputs} outputs x {tensor.inputs} inputs"
        )
    return replace(tensor, shape=shape)
