"""Which channels go together. The property: whole groups of zeros can be cut, and the outputs stay what they were."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from graphc.execute import run
from graphc.ir.check import check
from graphc.ir.graph import Array, Graph
from graphc.passes.channel_cut import apart, cut, merged
from graphc.passes.channel_groups import Elements, channel_groups
from graphc.passes.channel_rules import RULES
from tests.passes.random_graphs import SHAPE, Builder

Shape = tuple[int, ...]


def image(shape: Shape) -> bool:
    return len(shape) == 4 and min(shape[2:]) > 3


def even(shape: Shape) -> bool:
    return image(shape) and shape[1] % 4 == 0


def conv(b: Builder, v: str, out: int = 0, kernel: int = 3, **more: int) -> str:
    out = out or 4 * int(b.rng.integers(1, 4))
    inputs = b.types[v].dims[1] // more.get("group", 1)
    bias = [b.normal(out)] if b.rng.random() < 0.6 else []
    pads = (kernel // 2,) * 4
    return b.add("Conv", [v, b.normal(out, inputs, kernel, kernel), *bias], pads=pads, **more)


def depthwise(b: Builder, v: str) -> None:
    channels = b.types[v].dims[1]
    conv(b, v, channels * int(b.rng.integers(1, 3)), group=channels)


def upwards(b: Builder, v: str) -> None:
    """Transposed: plain, in groups, depthwise."""
    channels = b.types[v].dims[1]
    group = int(b.rng.choice([1, 2, channels]))
    w, bias = b.normal(channels, 2, 3, 3), b.normal(2 * group)
    b.add("ConvTranspose", [v, w, bias], group=group, pads=(1, 1, 1, 1))


def normalize(b: Builder, v: str) -> None:
    channels = b.types[v].dims[1]
    scale, bias, mean = (b.normal(channels) for _ in range(3))
    variance = b.constant(np.abs(b.constants[b.normal(channels)]))
    match b.one_of("batch", "instance", "group", "layer", "rms", "lp"):
        case "batch":
            b.add("BatchNormalization", [v, scale, bias, mean, variance])
        case "instance":
            b.add("InstanceNormalization", [v, scale, bias])
        case "group":
            b.add("GroupNormalization", [v, scale, bias], num_groups=4)
        case "layer":
            b.add("LayerNormalization", [v, b.normal(*b.types[v].dims[-2:])], axis=-2)
        case "rms":
            b.add("RMSNormalization", [v, b.normal(b.types[v].dims[-1])])
        case _:
            b.add("LpNormalization", [v], axis=1)


def squeeze_excite(b: Builder, v: str) -> None:
    channels = b.types[v].dims[1]
    small = conv(b, b.add("GlobalAveragePool", [v]), 4, 1)
    b.add("Mul", [v, b.add("Sigmoid", [conv(b, b.add("Relu", [small]), channels, 1)])])


def residual(b: Builder, v: str) -> None:
    inner = b.add("Relu", [conv(b, v)])
    b.add("Add", [v, conv(b, inner, b.types[v].dims[1])])


def padded_shortcut(b: Builder, v: str) -> None:
    """A residual network's: every second place, channels padded with zeros."""
    channels, height, width = b.types[v].dims[1:]
    ends = b.constant(np.array([height, width]))
    taken = b.add("Slice", [v, b.constant(np.array([0, 0])), ends, b.constant(np.array([2, 3])), two_twos(b)])
    pads = np.zeros(8, np.int64)
    pads[[1, 5]] = channels // 4, channels - channels // 4
    wide = b.add("Pad", [taken, b.constant(pads)])
    other = conv(b, v, 2 * channels, strides=(2, 2))  # type: ignore[arg-type]
    b.add("Add", [wide, other])


def two_twos(b: Builder) -> str:
    return b.constant(np.array([2, 2]))


def shuffle(b: Builder, v: str) -> None:
    batch, channels, *rest = b.types[v].dims
    wide = b.add("Reshape", [v, b.constant(np.array([batch, 2, channels // 2, *rest]))])
    turned = b.add("Transpose", [wide], perm=(0, 2, 1, 3, 4))
    b.add("Reshape", [turned, b.constant(np.array([batch, channels, *rest]))])


def crop(b: Builder, v: str) -> None:
    channels = b.types[v].dims[1]
    bounds = [b.constant(np.array([edge])) for edge in (1, channels - 1, 1)]
    b.add("Slice", [v, *bounds])


def pick(b: Builder, v: str) -> None:
    b.add("Gather", [v, b.constant(b.rng.integers(0, b.types[v].dims[1], 6))], axis=1)


def tied(b: Builder, v: str) -> None:
    """Two convolutions of one weight."""
    weight = b.normal(b.types[v].dims[1], b.types[v].dims[1], 1, 1)
    b.add("Conv", [b.add("Relu", [b.add("Conv", [v, weight])]), weight])


def decoded(b: Builder, v: str) -> None:
    """Weights of 8 bits, activations too."""
    channels = b.types[v].dims[1]
    scale, zero = b.constant(np.float32(0.1)), b.constant(np.uint8(100))
    integers = b.add("QuantizeLinear", [v, scale, zero])
    b.values.remove(integers)
    quantized = b.add("DequantizeLinear", [integers, scale, zero])
    weights = b.constant(b.rng.integers(-9, 9, (8, channels, 1, 1)).astype(np.int8))
    scales = b.constant(np.abs(b.constants[b.normal(8)]))
    b.add("Conv", [quantized, b.add("DequantizeLinear", [weights, scales], axis=0)])


def prelu(b: Builder, v: str) -> None:
    b.add("PRelu", [v, b.normal(b.types[v].dims[1], 1, 1)])


def resized(b: Builder, v: str) -> None:
    dims = b.types[v].dims
    b.add("Resize", [v, "", "", b.constant(np.array([*dims[:2], 5, 5]))], mode="nearest")


def classify(b: Builder, v: str) -> None:
    flat = b.add(b.one_of("Flatten"), [conv(b, v, 4)])
    hidden = b.add("Gemm", [flat, b.normal(12, b.types[flat].dims[1]), b.normal(12)], transB=1)
    b.add("MatMul", [b.add("Relu", [hidden]), b.normal(12, 5)])


def tokens(b: Builder, v: str, features: int = 12) -> str:
    """[N, C, H, W] -> [N, H * W, features]"""
    batch, channels, height, width = b.types[v].dims
    flat = b.add("Reshape", [v, b.constant(np.array([batch, channels, height * width]))])
    return b.add("MatMul", [b.add("Transpose", [flat], perm=(0, 2, 1)), b.normal(channels, features)])


def attention(b: Builder, v: str) -> None:
    """Three heads of four features; the projections fused or apart."""
    x = tokens(b, v)
    batch, length, width = b.types[x].dims
    if b.rng.random() < 0.5:
        shape = b.constant(np.array([batch, length, 3, 3, 4]))
        fused = b.add("Reshape", [b.add("MatMul", [x, b.normal(width, 36)]), shape])
        fused = b.add("Transpose", [fused], perm=(2, 0, 3, 1, 4))
        parts = [b.add("Gather", [fused, b.constant(np.array(i))], axis=0) for i in range(3)]
    else:
        shape = b.constant(np.array([batch, length, 3, 4]))
        parts = [b.add("Reshape", [b.add("MatMul", [x, b.normal(width, 12)]), shape]) for _ in range(3)]
        parts = [b.add("Transpose", [part], perm=(0, 2, 1, 3)) for part in parts]
    if b.rng.random() < 0.3:
        mixed = b.add("Attention", parts)
    else:
        scores = b.add("MatMul", [parts[0], b.add("Transpose", [parts[1]], perm=(0, 1, 3, 2))])
        mixed = b.add("MatMul", [b.add("Softmax", [scores], axis=-1), parts[2]])
    joined = b.add("Transpose", [mixed], perm=(0, 2, 1, 3))
    joined = b.add("Reshape", [joined, b.constant(np.array([batch, length, 12]))])
    b.add("Add", [x, b.add("MatMul", [joined, b.normal(12, width)])])


def attention_of_flat_heads(b: Builder, v: str) -> None:
    x = tokens(b, v)
    parts = [b.add("MatMul", [x, b.normal(12, size)]) for size in (16, 8, 8)]
    b.add("MatMul", [b.add("Attention", parts, q_num_heads=4, kv_num_heads=2), b.normal(16, 12)])


def recurrent(b: Builder, v: str) -> None:
    x = tokens(b, v, 6)
    w, r = b.normal(1, 20, 6), b.normal(1, 20, 5)
    y = b.add("LSTM", [b.add("Transpose", [x], perm=(1, 0, 2)), w, r], hidden_size=5)
    b.add("Squeeze", [y, b.constant(np.array([1]))])


def embedded(b: Builder, v: str) -> None:
    numbers = b.constant(b.rng.integers(0, 7, (2, 3)))
    found = b.add("Gather", [b.normal(7, 8), numbers])
    b.add("MatMul", [found, b.normal(8, 4)])


def summed(b: Builder, v: str) -> None:
    """Sums and means, over channels and over places."""
    inner = conv(b, v)
    axes = b.constant(np.array([int(b.rng.integers(1, 4))]))
    b.add(b.one_of("ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2"), [inner, axes], keepdims=int(b.rng.integers(2)))


def contracted(b: Builder, v: str) -> None:
    b.add("Einsum", [tokens(b, v, 8), b.normal(8, 6)], equation="ntc,cd->ntd")


def repeated(b: Builder, v: str) -> None:
    b.add("Tile", [conv(b, v, 4), b.constant(np.array([1, 2, 1, 1]))])
    b.add("Expand", [b.normal(1, b.types[v].dims[1], 1, 1), b.constant(np.array(b.types[v].dims))])
    b.add("Where", [b.constant(np.array(True)), v, b.values[-1]])


def halves(b: Builder, v: str) -> None:
    b.add("Split", [v], 2, axis=1, num_outputs=2)
    b.add("Mul", [b.values[-2], b.values[-1]])


STEPS: list[tuple[Callable[[Shape], bool], Callable[[Builder, str], object]]] = [
    (image, conv), (image, conv), (image, depthwise), (image, residual), (even, shuffle), (even, upwards),
    (even, lambda b, v: conv(b, v, 8, group=int(b.rng.choice([2, 4])))),
    (even, normalize), (even, normalize), (image, squeeze_excite), (even, padded_shortcut), (even, halves),
    (lambda shape: image(shape) and shape[1] > 2, crop), (image, pick), (image, tied), (image, decoded),
    (image, prelu), (image, resized), (image, classify), (image, attention), (image, attention_of_flat_heads),
    (image, recurrent), (image, embedded), (image, summed), (image, contracted), (image, repeated),
    (lambda shape: image(shape) and shape[1] % 4 == 0, lambda b, v: b.add(
        "DepthToSpace", [v], blocksize=2, mode=b.one_of("DCR", "CRD"))),
    (lambda shape: image(shape) and shape[2] % 2 == shape[3] % 2 == 0, lambda b, v: b.add(
        "SpaceToDepth", [v], blocksize=2)),
    (image, lambda b, v: b.add("Concat", [v, b.like(v)], axis=1)),
    (image, lambda b, v: b.add(b.one_of("Add", "Mul", "Sub", "Max"), [v, b.like(v)])),
    (image, lambda b, v: b.add(b.one_of("Relu", "Tanh", "LeakyRelu", "HardSwish", "Neg"), [v])),
    (image, lambda b, v: b.add(b.one_of("MaxPool", "AveragePool"), [v], kernel_shape=(2, 2))),
    (image, lambda b, v: b.add("Softmax", [v], axis=int(b.rng.integers(1, 4)))),
    (image, lambda b, v: b.add("Mul", [v, b.normal(b.types[v].dims[1], 1, 1)])),
]  # fmt: skip


def random_graph(seed: int) -> Graph:
    """Some steps, then an output behind weights for what nothing reads, so that its channels may go."""
    b = Builder(np.random.default_rng(seed))
    for _ in range(int(b.rng.integers(3, 10))):
        fits, step = STEPS[int(b.rng.integers(len(STEPS)))]
        if any(fits(b.types[name].dims) for name in b.values):
            step(b, b.pick(fits))
    read = {name for node in b.nodes for name in node.inputs}
    ends = []
    for name in [name for name in b.values[2:] if name not in read]:
        dims = b.types[name].dims
        if len(dims) == 4:
            ends.append(b.add("Conv", [name, b.normal(3, dims[1], 1, 1)]))
        else:
            ends.append(b.add("MatMul", [name, b.normal(dims[-1], 3)]))
    return Graph("g", ("x", "z"), tuple(ends), tuple(b.nodes), b.types, b.constants)


def without(graph: Graph, group: Elements) -> Graph:
    """`group` as zeros wherever it lies on floating-point constants."""
    constants: dict[str, Array] = dict(graph.constants)
    for (name, axis), indices in group.items():
        if name in constants and constants[name].dtype.kind == "f":
            array = constants[name].copy()
            np.moveaxis(array, axis, 0)[indices] = 0
            constants[name] = array
    return replace(graph, constants=constants)


def feeds(graph: Graph, rng: np.random.Generator) -> Mapping[str, Array]:
    return {name: rng.normal(size=SHAPE).astype(np.float32) for name in graph.inputs}


@pytest.mark.parametrize("seed", range(100))
def test_groups_of_zeros_can_be_cut(seed: int) -> None:
    graph, rng = apart(random_graph(seed)), np.random.default_rng(seed)
    inputs = feeds(graph, rng)
    families = channel_groups(graph, heads=bool(rng.integers(2))).families
    chosen = []
    for family in families:
        gone = int(rng.integers(1, len(family.groups))) if len(family.groups) > 1 else 0
        chosen += [family.groups[i] for i in rng.permutation(len(family.groups))[:gone]]
    removed = merged(chosen)
    zeroed = without(graph, removed)
    after = cut(zeroed, removed)
    check(after)
    assert {name: after.types[name] for name in (*graph.inputs, *graph.outputs)} == {
        name: graph.types[name] for name in (*graph.inputs, *graph.outputs)
    }
    expected, found = run(zeroed, inputs), run(after, inputs)
    for name in graph.outputs:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-4, atol=2e-4 * np.abs(expected[name]).max())


def test_random_graphs_hold_every_operator_that_is_tied() -> None:
    """What the generator leaves out is elementwise, or a reduction like one that it has."""
    seen = {node.op for seed in range(100) for node in random_graph(seed).nodes}
    structural = {op for op, rule in RULES.items() if rule.__name__ not in ("elementwise", "reduce", "rule")}
    assert structural - seen <= {"Unsqueeze", "GRU", "RNN"}
