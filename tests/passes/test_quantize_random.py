"""Random graphs: whatever is quantized stays valid, keeps its names, explains every float node and becomes integers."""

from collections.abc import Callable

import numpy as np
import pytest

from graphc.backends.integer import explain
from graphc.calibrate import calibrate
from graphc.execute import Session
from graphc.ir.check import check
from graphc.ir.graph import Array, Graph
from graphc.passes.protocol import Context
from graphc.passes.quantize import Quantize
from tests.passes.random_graphs import FLOAT, SHAPE, Builder


def image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and min(shape[2:]) > 1


def anything(shape: tuple[int, ...]) -> bool:
    return True


def conv(b: Builder, v: str) -> None:
    out = int(b.rng.integers(1, 6))
    weights = b.normal(out, b.types[v].dims[1], 3, 3)
    bias = [b.normal(out)] if b.rng.random() < 0.6 else []
    b.add("Conv", [v, weights, *bias], pads=(1, 1, 1, 1))


STEPS: list[tuple[Callable[[tuple[int, ...]], bool], Callable[[Builder, str], None]]] = [
    (image, conv), (image, conv), (image, conv),
    (anything, lambda b, v: b.add("Relu", [v])),
    (anything, lambda b, v: b.add("Clip", [v, b.constant(np.float32(-1)), b.constant(np.float32(2))])),
    (anything, lambda b, v: b.add(b.one_of("Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Elu", "Neg", "Exp"), [v])),
    (anything, lambda b, v: b.add(b.one_of("Add", "Mul", "Sub"), [v, b.like(v)])),
    (anything, lambda b, v: b.add("Add", [v, b.like(v)])),
    (anything, lambda b, v: b.add(b.one_of("Add", "Sub", "Mul"), [v, b.normal(b.types[v].dims[-1])])),
    (anything, lambda b, v: b.add(b.one_of("Add", "Mul", "Div", "Max"), [v, b.constant(np.float32(1.5))])),
    (image, lambda b, v: b.add("Concat", [v, b.like(v)], axis=1)),
    (image, lambda b, v: b.add("Transpose", [v], perm=(0, 1, 3, 2))),
    (image, lambda b, v: b.add(b.one_of("MaxPool", "AveragePool"), [v], kernel_shape=(2, 2))),
    (image, lambda b, v: b.add("GlobalAveragePool", [v])),
    (anything, lambda b, v: b.add("Softmax", [v], axis=-1)),
    (lambda s: len(s) == 4 and s[1] % 2 == 0, lambda b, v: b.add("Split", [v], 2, axis=1, num_outputs=2)),
    (anything, lambda b, v: b.add("MatMul", [v, b.normal(b.types[v].dims[-1], 5)])),
    (anything, lambda b, v: b.add("InstanceNormalization", [v, b.normal(n := b.types[v].dims[1]), b.normal(n)])),
]  # fmt: skip


def random_graph(seed: int) -> Graph:
    builder = Builder(np.random.default_rng(seed))
    for _ in range(int(builder.rng.integers(4, 16))):
        fits, step = STEPS[int(builder.rng.integers(len(STEPS)))]
        step(builder, builder.pick(fits))
    return builder.graph()


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs(seed: int) -> None:
    before, rng = random_graph(seed), np.random.default_rng(seed)
    options = {
        "weights": rng.choice(["int8", "uint8"]), "activations": rng.choice(["int8", "uint8"]), "calibrate": "minmax",
        "io": rng.choice(["float", "int8", "uint8"]), "per_channel": bool(rng.integers(2)),
    }  # fmt: skip
    step = Quantize.model_validate(options)
    feeds = [{name: rng.normal(size=SHAPE).astype(np.float32) for name in before.inputs} for _ in range(3)]
    context = Context(calibrate(before, step.observes(before), feeds))
    after = step.apply(before, context)
    check(after)
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    assert {node.name for node in before.nodes} <= {node.name for node in after.nodes}
    expected, found = Session(before).run(feeds[0]), Session(after).run(given(after, feeds[0]))
    for name in before.outputs:
        noise = np.square(expected[name] - floats(after, name, found[name])).mean()
        assert noise <= 0.05 * np.square(expected[name]).mean() + 1e-4, name
    integers = explain(after).graph
    skipped = {skip.node for skip in context.skips}
    left = [node for node in integers.nodes if integers.types[node.outputs[0]].dtype == FLOAT]
    unexplained = {node.name for node in left} & {node.name for node in before.nodes} - skipped
    assert not unexplained


def given(graph: Graph, feeds: dict[str, Array]) -> dict[str, Array]:
    """Feeds as the inputs of `graph` take them: integer ones on the grid that their DequantizeLinear states."""
    result = {}
    for name, array in feeds.items():
        dtype, readers = graph.types[name].dtype, graph.users.get(name, ())
        if dtype == FLOAT or not readers:
            result[name] = array.astype(dtype)
            continue
        scale, offset = (graph.constants[x] for x in readers[0].inputs[1:])
        info = np.iinfo(str(dtype))
        result[name] = np.clip(np.rint(array / scale) + int(offset), info.min, info.max).astype(dtype)
    return result


def floats(graph: Graph, name: str, array: Array) -> Array:
    if array.dtype == FLOAT:
        return array
    scale, offset = (graph.constants[x] for x in graph.producers[name].inputs[1:])
    return (array.astype(np.int64) - int(offset)) * scale
