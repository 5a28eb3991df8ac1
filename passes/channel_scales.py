"""Factors per channel that move from one layer to the next: the network stays the same function.

    y = f(W1 x + b1),  z = W2 y      ->      y' = f(s W1 x + s b1) = s y,  z = (W2 / s) y'        s > 0, one per channel

holds where f is positively homogeneous, f(s y) = s f(y) (Relu and its kin, pooling, data movement, the product with
another value: the gate of a feed-forward layer), and where everybody
who reads y, or a function of it, is a layer that can take 1 / s into its weights. What y is computed by must take s: a
layer's weights and bias, the scale and bias of a normalization, or a Mul by constants per channel.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from graphc.ir.edit import Edit
from graphc.ir.graph import Graph, Node
from graphc.passes.layers import Layer, layer_of

Doubles = npt.NDArray[np.float64]

ELEMENTWISE = frozenset(("Relu", "LeakyRelu", "Identity"))
HOMOGENEOUS = ELEMENTWISE | {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
"""Operators with f(s y) = s f(y) for one s > 0 per channel (their second axis, as in a Conv's results)."""

Scaled = tuple[tuple[Node, int, int], ...]
"""(node, operand, axis) of constants that get factors."""

FLATTENING = frozenset(("Flatten", "Reshape", "Squeeze"))


@dataclass(frozen=True, slots=True)
class Reader:
    """A layer whose input channels carry the factors, each `repeat` times in a row (behind a Flatten)."""

    layer: Layer
    repeat: int


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """A producer of `channels` channels, the layers that read them, and what must be multiplied on the way.

    `scaled`: (node, operand, axis) of constants that get the factors; `value` is what the producer computes. `passed`:
    the values between them.
    """

    producer: Node
    value: str
    channels: int
    scaled: Scaled
    readers: tuple[Reader, ...]
    passed: tuple[str, ...]


def links(graph: Graph) -> Iterator[Link | tuple[Node, str]]:
    """Every producer with readers that are layers: the link, or the producer and why there is none."""
    for node in graph.nodes:
        made = _scaled_by(graph, node)
        if made is not None:
            found = _Walk(graph, node, *made).link()
            if found is not None:
                yield found if isinstance(found, Link) else (node, found)


class Factors:
    """A graph's constants while factors move through them; the graph itself is rewritten once, at the end."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._arrays: dict[tuple[Node, int], Doubles] = {}

    def outgoing(self, link: Link) -> Doubles:
        """Weights of the producer, [channels, everything else]."""
        node, operand, axis = link.scaled[0]
        return np.moveaxis(self._array(node, operand), axis, 0).reshape(link.channels, -1)

    def incoming(self, link: Link, reader: Reader) -> Doubles:
        """Weights of a reader, [channels, everything else]."""
        blocks = self.blocks(link, reader)
        return np.moveaxis(blocks, 2, 1).reshape(link.channels, -1)

    def scale(self, link: Link, s: Doubles) -> None:
        """Multiply what the link's producer computes by `s` [channels], and divide its readers' weights by it."""
        for node, operand, axis in link.scaled:
            array = self._array(node, operand)
            self._arrays[node, operand] = array * s.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
        for reader in link.readers:
            blocks = self.blocks(link, reader)
            blocks = blocks / s.reshape(blocks.shape[0], 1, blocks.shape[2], 1)
            flat = blocks.reshape(*blocks.shape[:2], -1)
            self._arrays[reader.layer.node, 1] = np.asarray(reader.layer.restore(flat)).astype(np.float64)

    def graph(self) -> Graph:
        """The graph with its constants as they are now; the same object where nothing was scaled."""
        edit = Edit(self._graph)
        changed: dict[Node, list[str]] = {}
        for (node, operand), array in self._arrays.items():
            name = node.inputs[operand]
            dtype = self._graph.constants[name].dtype
            changed.setdefault(node, list(node.inputs))[operand] = edit.constant(array.astype(dtype), f"{name}_scaled")
        for node, operands in changed.items():
            edit.replace(node, inputs=operands)
        return edit.apply()

    def _array(self, node: Node, operand: int) -> Doubles:
        return self._arrays.get((node, operand), self._graph.constants[node.inputs[operand]].astype(np.float64))

    def blocks(self, link: Link, reader: Reader) -> Doubles:
        """Weights of a reader as [groups, N, channels / groups, elements of one channel]."""
        matrix = np.asarray(reader.layer.matrix(self._array(reader.layer.node, 1))).astype(np.float64)
        groups, outputs, _ = matrix.shape
        return matrix.reshape(groups, outputs, link.channels // groups, -1)


def _scaled_by(graph: Graph, node: Node) -> tuple[int, int, Scaled] | None:
    """(channel axis of the result, channels, constants that get the factors) of a producer; None for other nodes."""
    kind = graph.types.get(node.outputs[0]) if node.outputs and not node.domain else None
    if kind is None or not kind.is_static or not kind.dims:
        return None
    last = len(kind.dims) - 1
    axis, scaled = last, None
    if (layer := layer_of(graph, node)) is not None:
        axis = 1 if node.op == "Conv" else last
        scaled = _of_layer(graph, layer, kind.dims[axis])
    elif node.op in ("LayerNormalization", "RMSNormalization") and node.get_int("axis", -1) in (-1, last):
        constants = range(1, len(node.inputs))
        if constants and all(node.inputs[i] in graph.constants for i in constants):
            scaled = tuple((node, i, 0) for i in constants)
    elif node.op == "Mul" and (operand := _per_channel(graph, node, last)) is not None:
        scaled = ((node, operand, graph.constants[node.inputs[operand]].ndim - 1),)
    return None if scaled is None else (axis, kind.dims[axis], scaled)


def _of_layer(graph: Graph, layer: Layer, channels: int) -> Scaled | None:
    """The weights of a layer and its bias; None where these are no plain constants, one number per channel."""
    if layer.weight not in graph.constants:
        return None
    weights = (layer.node, 1, 1 if layer.transposed else 0)
    bias = layer.node.inputs[2] if len(layer.node.inputs) > 2 else ""
    if not bias:
        return (weights,)
    array = graph.constant(bias)
    return (weights, (layer.node, 2, 0)) if array is not None and array.shape == (channels,) else None


def _per_channel(graph: Graph, node: Node, axis: int) -> int | None:
    """The operand of an Add or Mul that is a constant with one number per index of the result's `axis`."""
    dims = graph.types[node.outputs[0]].dims
    for operand, name in enumerate(node.inputs):
        array = graph.constant(name)
        if array is None or array.size != dims[axis] or array.size < 2:
            continue
        shape = (1,) * (len(dims) - array.ndim) + array.shape
        if shape[axis] == dims[axis]:
            return operand
    return None


class _Walk:
    """Follows a producer's result to the layers that read it."""

    def __init__(self, graph: Graph, producer: Node, axis: int, channels: int, scaled: Scaled) -> None:
        self._graph, self._producer, self._channels = graph, producer, channels
        self._scaled = list(scaled)
        self._readers: list[Reader] = []
        self._passed: list[str] = []
        self._open = [(producer.outputs[0], axis, 1)]
        self._gates: set[Node] = set()

    def link(self) -> Link | str | None:
        """The link; why there is none; or None where no layer reads the result at all."""
        problem = ""
        while self._open and not problem:
            name, axis, repeat = self._open.pop()
            self._passed.append(name)
            if name in self._graph.outputs:
                problem = f"its result is the model's output '{name}'"
            for user in self._graph.users.get(name, ()):
                problem = problem or self._step(user, name, axis, repeat)
        if problem:
            return problem
        if not self._readers:
            return None
        value = self._producer.outputs[0]
        readers = tuple(self._readers)
        return Link(self._producer, value, self._channels, tuple(self._scaled), readers, tuple(self._passed))

    def _step(self, user: Node, name: str, axis: int, repeat: int) -> str:
        """Take in one reader; a reason where it ends the walk for good."""
        layer = layer_of(self._graph, user)
        if layer is not None and layer.value == name:
            return self._read(layer, name, axis, repeat)
        if user.op in FLATTENING and not user.domain:
            return self._flattened(user, name, axis, repeat)
        operand = _per_channel(self._graph, user, axis) if user.op == "Add" else None
        if operand is not None:
            rank = len(self._graph.types[user.outputs[0]].dims)
            array = self._graph.constants[user.inputs[operand]]
            self._scaled.append((user, operand, axis - (rank - array.ndim)))
        elif self._is_gate(user, name):
            if user in self._gates:
                return f"{user.label} multiplies it by itself"
            self._gates.add(user)
        elif user.domain or len(user.results) > 1 or user.op not in (HOMOGENEOUS if axis == 1 else ELEMENTWISE):
            return f"{user.label} reads it, which does not pass factors on"
        self._open.append((user.outputs[0], axis, repeat))
        return ""

    def _is_gate(self, user: Node, name: str) -> bool:
        """A product with what something else computes: (s a) b = s (a b), as in a gated feed-forward layer."""
        other = [operand for operand in user.inputs if operand != name]
        same = self._graph.types[name].shape == self._graph.types[user.outputs[0]].shape
        return (
            user.op == "Mul" and not user.domain and len(other) == 1 and other[0] not in self._graph.constants and same
        )

    def _read(self, layer: Layer, name: str, axis: int, repeat: int) -> str:
        user = layer.node
        if layer.weight not in self._graph.constants or user.inputs.count(name) > 1:
            return f"{user.label} cannot take factors into its weights"
        if axis != (1 if user.op == "Conv" else len(self._graph.types[name].dims) - 1):
            return f"{user.label} reads its channels along another axis"
        self._readers.append(Reader(layer, repeat))
        return ""

    def _flattened(self, user: Node, name: str, axis: int, repeat: int) -> str:
        """[N, C, ...] -> [N, C * ...]: each factor counts for a run of elements."""
        before, after = self._graph.types[name], self._graph.types[user.outputs[0]]
        if not (before.is_static and after.is_static) or axis != 1 or len(after.dims) != 2:
            return f"{user.label} moves its channels"
        if after.dims != (before.dims[0], prod(before.dims[1:])):
            return f"{user.label} moves its channels"
        self._open.append((user.outputs[0], 1, repeat * prod(before.dims[2:])))
        return ""
