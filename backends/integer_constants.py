"""What the integer rules read from constants: grids, weights, biases, scalars."""

from dataclasses import dataclass

import numpy as np

from graphc.backends.arithmetic import Numbers
from graphc.backends.integer_region import Grid, Quantized, Refusal, Region
from graphc.ir.graph import Graph, Node


@dataclass(frozen=True, slots=True)
class Decoded:
    """A constant behind a decoder: (q - zero_point) * scale; the three broadcast against each other."""

    q: Numbers
    scale: Numbers
    zero_point: Numbers

    @property
    def values(self) -> Numbers:
        """The floats, in float64."""
        return np.asarray((self.q.astype(np.float64) - self.zero_point) * self.scale)


def grid_of(graph: Graph, node: Node) -> Grid:
    """The grid of an activation's QuantizeLinear or DequantizeLinear. Raises Refusal where it has several scales."""
    stored = node.inputs[0] if node.op == "DequantizeLinear" else node.outputs[0]
    scale, zero_point = _parameters(graph, node, 0)
    return Grid.full(graph.types[stored].dtype, float(scale), int(zero_point))


def read_dequantize(region: Region, node: Node) -> Quantized:
    """The integers that a DequantizeLinear reads."""
    return Quantized(node.inputs[0], grid_of(region.graph, node))


def read_cast(region: Region, node: Node) -> Quantized:
    """The integers that a Cast to floats reads: raw data, say. They are on the grid of whole numbers, exactly."""
    name = node.inputs[0]
    if name in region.graph.constants or region.graph.types[node.outputs[0]].dtype != np.float32:
        raise Refusal(f"{node.label} is no Cast of a run's integers to float32")
    return Quantized(name, Grid.full(region.graph.types[name].dtype, 1.0, 0))


def scalar(region: Region, name: str) -> float | None:
    """The number that a constant of one element holds, however it is stored; None for anything else."""
    kind = region.graph.types[name]
    if not kind.is_static or kind.size != 1:
        return None
    values = floats(region, name)
    return None if values is None else float(values.reshape(()))


def floats(region: Region, name: str) -> Numbers | None:
    """A constant, float or behind a decoder, in float64; None for anything computed at run time."""
    constant = region.graph.constant(name)
    if constant is not None:
        return np.asarray(constant.astype(np.float64))
    try:
        return decoded(region.graph, name).values
    except Refusal:
        return None


def decoded(graph: Graph, name: str) -> Decoded:
    """The integers, scales and zero points behind a weight. Raises Refusal where it is no decoded constant."""
    node = graph.producers.get(name)
    if node is None:
        raise Refusal(f"'{name}' is not quantized")
    if node.op == "Transpose" and not node.domain:
        source = decoded(graph, node.inputs[0])
        perm = node.get_ints("perm", tuple(reversed(range(source.q.ndim))))
        return Decoded(source.q.transpose(perm), source.scale.transpose(perm), source.zero_point.transpose(perm))
    if node.op in ("Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity") and not node.domain:
        return _reshaped(decoded(graph, node.inputs[0]), graph, node)
    if node.op != "DequantizeLinear":
        raise Refusal(f"'{name}' is computed by {node.label}")
    return _dequantized(graph, node)


def _dequantized(graph: Graph, node: Node) -> Decoded:
    q = graph.constant(node.inputs[0])
    if q is None:
        q = _rounded(graph, node.inputs[0])
    scale, zero_point = _parameters(graph, node, q.ndim)
    return Decoded(q, scale, zero_point)


def _rounded(graph: Graph, name: str) -> Numbers:
    """The integers that a QuantizeLinear of a float constant gives."""
    node = graph.producers.get(name)
    values = graph.constant(node.inputs[0]) if node is not None and node.op == "QuantizeLinear" else None
    kind = graph.types[name].dtype
    if node is None or values is None or kind not in (np.int8, np.uint8):
        raise Refusal(f"'{name}' is computed at run time, or decoded further")
    scale, zero_point = _parameters(graph, node, values.ndim)
    info = np.iinfo(str(kind))
    steps = np.rint(values.astype(np.float32) / scale.astype(np.float32))
    return np.asarray(np.clip(steps + zero_point, info.min, info.max)).astype(kind)


def _parameters(graph: Graph, node: Node, rank: int) -> tuple[Numbers, Numbers]:
    """Scale (float64) and zero point (int32) of a QuantizeLinear or DequantizeLinear, to broadcast over `rank` axes."""
    scale = graph.constant(node.inputs[1])
    offset: Numbers | None = np.zeros(1, np.int32)
    if len(node.inputs) > 2 and node.inputs[2]:
        offset = graph.constant(node.inputs[2])
    if scale is None or offset is None:
        raise Refusal(f"the scale or zero point of {node.label} is computed at run time")
    if node.get_int("block_size", 0):
        raise Refusal(f"{node.label} has a scale for each group of {node.get_int('block_size', 0)}")
    shape = [1] * rank
    if scale.size > 1:
        if not rank:
            raise Refusal(f"{node.label} has {scale.size} scales (activations need one)")
        shape[node.get_int("axis", 1)] = scale.size
    offsets = np.broadcast_to(offset.astype(np.int32).ravel(), scale.size)
    return scale.astype(np.float64).reshape(shape), offsets.reshape(shape)


def _reshaped(source: Decoded, graph: Graph, node: Node) -> Decoded:
    """Only the axes of the scales must stay: one scale for all, or one per index of an axis that keeps its place."""
    shape = graph.types[node.outputs[0]].dims
    q = source.q.reshape(shape)
    if source.scale.size == 1:
        ones = (1,) * len(shape)
        return Decoded(q, source.scale.reshape(ones), source.zero_point.reshape(ones))
    axis = next(i for i, n in enumerate(source.scale.shape) if n > 1)
    before = int(np.prod(source.q.shape[:axis]))
    places = [i for i, n in enumerate(shape) if n == source.q.shape[axis] and int(np.prod(shape[:i])) == before]
    if not places:
        raise Refusal(f"{node.label} moves the axis that has a scale per index")
    spread = [1] * len(shape)
    spread[places[-1]] = source.scale.size
    return Decoded(q, source.scale.reshape(spread), source.zero_point.reshape(spread))
