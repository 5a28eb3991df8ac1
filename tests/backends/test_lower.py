"""Lowered graphs against onnxruntime: many small operators in one graph, on every x86-64 level."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from graphc.backends import targets
from graphc.backends.build import build_target
from graphc.backends.cache import Cache
from graphc.backends.integer import integerize
from graphc.backends.lower import lower
from graphc.backends.reference import Reference
from graphc.backends.worker import Server
from graphc.errors import InputError
from graphc.execute import Session
from graphc.importer import load
from graphc.ir import Array, Graph
from graphc.runner import Runner

LEVELS = ("x86-64-v2", "x86-64-v3", "x86-64-v4", "native")

# (operator with attributes, shape of x, shape of weights or None, bias or not)
WINDOWS: tuple[tuple[str, tuple[int, ...], tuple[int, ...] | None, int], ...] = (
    ("Conv<pads=[1,1,1,1]>", (1, 5, 9, 11), (19, 5, 3, 3), 19),
    ("Conv<pads=[1,1,1,1], strides=[2,2]>", (2, 16, 13, 15), (32, 16, 3, 3), 32),
    ("Conv<pads=[3,3,3,3], strides=[2,2]>", (1, 3, 23, 21), (24, 3, 7, 7), 0),
    ("Conv<pads=[2,4,2,4], dilations=[2,4]>", (1, 8, 17, 19), (16, 8, 3, 3), 16),
    ('Conv<auto_pad="SAME_LOWER", strides=[3,2]>', (1, 4, 10, 12), (7, 4, 4, 2), 7),
    ("Conv<pads=[0,2,1,0]>", (1, 6, 6, 40), (40, 6, 2, 5), 0),
    ("Conv", (1, 40, 7, 7), (50, 40, 1, 1), 50),
    ("Conv<strides=[2,2]>", (1, 24, 9, 9), (33, 24, 1, 1), 0),
    ("Conv<pads=[1,1,1,1], group=37>", (1, 37, 8, 13), (37, 1, 3, 3), 37),
    ("Conv<pads=[2,2,2,2], group=16, strides=[2,1]>", (2, 16, 9, 7), (16, 1, 5, 5), 0),
    ("Conv<group=4, pads=[1,1,1,1]>", (1, 8, 6, 6), (16, 2, 3, 3), 16),
    ("Conv<group=4>", (1, 4, 6, 6), (8, 1, 3, 3), 0),
    ("Conv<pads=[1,1]>", (1, 6, 20), (12, 6, 3), 12),
    ("Conv<pads=[1,1,1,1,1,1]>", (1, 3, 5, 6, 7), (5, 3, 3, 3, 3), 5),
    ("ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,0]>", (1, 6, 5, 6), (6, 7, 3, 3), 7),
    ("ConvTranspose<group=2, dilations=[2,1]>", (1, 4, 5, 6), (4, 3, 2, 3), 0),
    ("MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>", (1, 18, 11, 13), None, 0),
    ("MaxPool<kernel_shape=[2,3], strides=[2,2], ceil_mode=1>", (1, 16, 7, 8), None, 0),
    ("AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>", (1, 20, 9, 9), None, 0),
    (
        "AveragePool<kernel_shape=[3,2], pads=[1,0,1,1], count_include_pad=1, ceil_mode=1, strides=[2,2]>",
        (1, 4, 8, 8),
        None,
        0,
    ),
    ("MaxPool<kernel_shape=[3], dilations=[2]>", (1, 5, 12), None, 0),
    ("GlobalAveragePool", (1, 21, 6, 5), None, 0),
    ("GlobalMaxPool", (1, 16, 6, 5), None, 0),
)

PRODUCTS = (
    ("MatMul", (7, 13), (13, 21)),
    ("MatMul", (3, 5, 16), (16, 33)),
    ("MatMul", (2, 1, 4, 8), (3, 8, 17)),
    ("MatMul", (9,), (9, 5)),
    ("MatMul", (4, 9), (9,)),
    ("MatMul", (1, 300), (300, 70)),
    ("Gemm<transB=1, alpha=0.5>", (6, 11), (18, 11)),
    ("Gemm<transA=1>", (11, 6), (11, 20)),
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Cache]]:
    with Server(2) as server:
        yield server, Cache(tmp_path_factory.mktemp("cache"))


def dims(shape: tuple[int, ...]) -> str:
    return ",".join(str(d) for d in shape)


def graph_of(inputs: list[str], weights: dict[str, Array], lines: list[str], dtype: int = TensorProto.FLOAT) -> Graph:
    """The lines as a graph whose outputs are its y0, y1, ...; `weights` are constants."""
    proto = parser.parse_graph(f"g ({', '.join(inputs)}) => () {{ {' '.join(lines)} }}")
    made = sorted(
        {name for node in proto.node for name in node.output if name[0] == "y"}, key=lambda name: int(name[1:])
    )
    proto.output.extend(helper.make_value_info(name, helper.make_tensor_type_proto(dtype, None)) for name in made)
    proto.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items())
    return load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 22)], ir_version=10))


def run_everywhere(
    graph: Graph, feeds: dict[str, Array], expected: dict[str, Array], machine: tuple[Server, Cache], folder: Path
) -> Iterator[tuple[str, Array, Array]]:
    """(what, found, expected) of each output on each level, with one thread and with three."""
    for level in LEVELS:
        build_target(graph, targets.resolve({"cpu": level}), folder / level, *machine)
        for threads in (1, 3):
            with Runner(folder / level, threads) as runner:
                found = runner(**feeds)
            named = found if isinstance(found, dict) else {graph.outputs[0]: found}
            for name, value in expected.items():
                yield f"{name} on {level}, {threads} threads", named[name], value


def check_floats(graph: Graph, feeds: dict[str, Array], machine: tuple[Server, Cache], folder: Path) -> None:
    for what, found, expected in run_everywhere(graph, feeds, Session(graph).run(feeds), machine, folder):
        difference = np.abs(found.astype(np.float64) - expected).max(initial=0)
        assert difference <= 1e-5 * np.abs(expected).max(initial=0), what


def test_windows(machine: tuple[Server, Cache], tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    inputs: list[str] = []
    lines: list[str] = []
    weights: dict[str, Array] = {}
    feeds: dict[str, Array] = {}
    for i, (operator, shape, kernel, bias) in enumerate(WINDOWS):
        inputs.append(f"float[{dims(shape)}] x{i}")
        feeds[f"x{i}"] = rng.standard_normal(shape).astype(np.float32)
        given = {f"w{i}": kernel, f"b{i}": (bias,) if bias else None}
        weights.update({name: rng.standard_normal(size).astype(np.float32) for name, size in given.items() if size})
        lines.append(f"y{i} = {operator}({', '.join([f'x{i}', *(name for name, size in given.items() if size)])})")
    check_floats(graph_of(inputs, weights, lines), feeds, machine, tmp_path)


def test_products(machine: tuple[Server, Cache], tmp_path: Path) -> None:
    """Each with a constant and with a computed right operand."""
    rng = np.random.default_rng(2)
    inputs: list[str] = []
    lines: list[str] = []
    weights: dict[str, Array] = {}
    feeds: dict[str, Array] = {}
    for i, (operator, left, right) in enumerate(PRODUCTS):
        inputs += [f"float[{dims(left)}] a{i}", f"float[{dims(right)}] b{i}"]
        feeds[f"a{i}"], feeds[f"b{i}"] = (rng.standard_normal(shape).astype(np.float32) for shape in (left, right))
        weights[f"w{i}"] = rng.standard_normal(right).astype(np.float32)
        lines += [f"y{2 * i} = {operator}(a{i}, w{i})", f"y{2 * i + 1} = {operator}(a{i}, b{i})"]
    check_floats(graph_of(inputs, weights, lines), feeds, machine, tmp_path)


def test_layouts_and_views(machine: tuple[Server, Cache], tmp_path: Path) -> None:
    """What lies between convolutions follows their layout; outputs may be inputs, constants, views or each other."""
    rng = np.random.default_rng(3)
    sizes = {"w": (6, 4, 1, 1), "c": (6, 1, 1), "v": (3, 6, 1, 1), "u": (6, 6, 1, 1)}
    weights: dict[str, Array] = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    weights |= {
        "axes": np.array([2]),
        "spatial": np.array([2, -1]),
        "channels": np.array([1]),
        "starts": np.array([1]),
        "ends": np.array([4]),
        "pads": np.array([0, 1, 0, 2, 0, 0, 1, 0]),
    }
    lines = [
        "h = Conv(x, w)",
        "t = Add(h, c)",
        "s0, s1 = Split<axis=1, num_outputs=2>(t)",
        "j = Concat<axis=1>(s1, s0)",
        "y0 = ReduceMean(j, axes)",
        "y1 = Slice(j, starts, ends, axes)",
        "y2 = Pad(j, pads)",
        "y3 = Transpose<perm=[0,2,3,1]>(j)",
        "y4 = Softmax<axis=1>(j)",
        "y5 = Flatten(j)",
        "y6 = Identity(x)",
        "y7 = Identity(c)",
        "y8 = Identity(y5)",
        "m = Mul(j, z)",
        "y9 = Conv(m, v)",
        "p = GlobalAveragePool(j)",
        "e = Conv(p, u)",
        "g = HardSigmoid(e)",
        "y10 = Mul(j, g)",
        "y11 = ReduceMean<keepdims=0>(j, spatial)",
        "y12 = ReduceMax<keepdims=0>(j, channels)",
        "y13 = ReduceSum<keepdims=0>(j, axes)",
    ]
    shapes = {"x": (1, 4, 5, 5), "z": (1, 6, 5, 5)}
    feeds: dict[str, Array] = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    inputs = [f"float[{dims(shape)}] {name}" for name, shape in shapes.items()]
    check_floats(graph_of(inputs, weights, lines), feeds, machine, tmp_path)


# (operator, shape of x, shape of weights); the weights' channels are axis 0 of Conv, axis 1 of MatMul
INTEGERS = (
    ("Conv<pads=[1,1,1,1]>", (1, 3, 9, 7), (20, 3, 3, 3)),
    ("Conv<pads=[1,0,2,1], strides=[2,2]>", (1, 64, 8, 9), (48, 64, 3, 3)),
    ("Conv", (1, 30, 5, 5), (16, 30, 1, 1)),
    ("Conv<group=18, pads=[1,1,1,1]>", (1, 18, 7, 7), (18, 1, 3, 3)),
    ("Conv<group=2>", (1, 6, 5, 5), (8, 3, 3, 3)),
    ("Conv", (1, 96, 12, 12), (24, 96, 1, 1)),
    ("Conv<pads=[1,1,1,1]>", (2, 32, 9, 21), (72, 32, 3, 3)),
    ("Conv<pads=[1,1,1,1], strides=[2,2]>", (2, 64, 13, 13), (64, 64, 3, 3)),
    ("Conv<pads=[2,2,2,2], dilations=[2,2]>", (1, 32, 15, 15), (32, 32, 3, 3)),
    ("MatMul", (70, 64), (64, 24)),
    ("MatMul", (5, 64), (64, 37)),
    ("MatMul", (2, 3, 30), (30, 8)),
)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_integers_equal_the_reference(kind: str, machine: tuple[Server, Cache], tmp_path: Path) -> None:
    """Dequantize, the operator with a bias, Relu, quantize: one integer kernel each, equal on every level."""
    rng = np.random.default_rng(5)
    limits = np.iinfo(kind)
    zero = np.array(3 if kind == "int8" else 121, kind)
    inputs: list[str] = []
    lines: list[str] = []
    weights: dict[str, Array] = {"xs": np.array(0.04, np.float32), "z": zero, "ys": np.array(0.11, np.float32)}
    feeds: dict[str, Array] = {}
    for i, (operator, shape, kernel) in enumerate(INTEGERS):
        axis = 0 if "Conv" in operator else 1
        channels = kernel[axis]
        scales = rng.uniform(0.01, 0.02, channels).astype(np.float32)
        feeds[f"x{i}"] = rng.integers(limits.min, limits.max + 1, shape).astype(kind)
        inputs.append(f"{kind}[{dims(shape)}] x{i}")
        weights |= {f"w{i}": rng.integers(-127, 128, kernel).astype(np.int8), f"ws{i}": scales}
        weights |= {f"b{i}": rng.integers(-500, 500, channels).astype(np.int32), f"bs{i}": scales * np.float32(0.04)}
        biased = (
            f"p{i} = {operator}(dx{i}, dw{i}, db{i})"
            if axis == 0
            else f"q{i} = MatMul(dx{i}, dw{i}) p{i} = Add(q{i}, db{i})"
        )
        lines.append(f"""
            dx{i} = DequantizeLinear(x{i}, xs, z)
            dw{i} = DequantizeLinear<axis={axis}>(w{i}, ws{i})
            db{i} = DequantizeLinear<axis=0>(b{i}, bs{i})
            {biased}
            r{i} = Relu(p{i})
            y{i} = QuantizeLinear(r{i}, ys, z)""")
    graph = graph_of(inputs, weights, lines, helper.np_dtype_to_tensor_dtype(np.dtype(kind)))
    lowered = integerize(graph)
    assert sum(node.domain == "graphc.integer" for node in lowered.nodes) == len(INTEGERS)
    for what, found, expected in run_everywhere(graph, feeds, Reference(lowered).run(feeds), machine, tmp_path):
        np.testing.assert_array_equal(found, expected, err_msg=what)


def test_biases_that_int32_sums_cannot_take(machine: tuple[Server, Cache], tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    scale, limit = np.float32(0.04 * 0.015), 2**31 - 1
    weights: dict[str, Array] = {
        "xs": np.array(0.04, np.float32), "xz": np.array(7, np.uint8),
        "w": rng.integers(-127, 128, (20, 32, 1, 1)).astype(np.int8), "ws": np.full(20, 0.015, np.float32),
        "v": rng.integers(-127, 128, (32, 20)).astype(np.int8),
        "b": np.where(np.arange(20) % 2, limit, -limit).astype(np.int32), "bs": np.full(20, scale),
        "ys": np.array(limit * scale / 100, np.float32), "yz": np.array(128, np.uint8),
    }  # fmt: skip
    lines = [
        "dx = DequantizeLinear(x, xs, xz) da = DequantizeLinear(a, xs, xz)",
        "dw = DequantizeLinear<axis=0>(w, ws) dv = DequantizeLinear<axis=1>(v, ws)",
        "db = DequantizeLinear<axis=0>(b, bs)",
        "c = Conv(dx, dw, db) y0 = QuantizeLinear(c, ys, yz)",
        "m = MatMul(da, dv) n = Add(m, db) y1 = QuantizeLinear(n, ys, yz)",
    ]
    graph = graph_of(["uint8[1,32,5,5] x", "uint8[6,32] a"], weights, lines, TensorProto.UINT8)
    lowered = integerize(graph)
    assert [node.op for node in lowered.nodes] == ["Conv", "MatMul"]
    assert all(lowered.constants[node.inputs[2]].dtype == np.int64 for node in lowered.nodes)
    feeds: dict[str, Array] = {
        name: rng.integers(0, 256, graph.types[name].dims).astype(np.uint8) for name in graph.inputs
    }
    for what, found, expected in run_everywhere(graph, feeds, Reference(lowered).run(feeds), machine, tmp_path):
        np.testing.assert_array_equal(found, expected, err_msg=what)
        assert set(np.unique(found)) <= {27, 28, 29, 227, 228, 229}, what


def test_sums_that_saturate(machine: tuple[Server, Cache], tmp_path: Path) -> None:
    """An operand times its multiplier, before its zero point is taken off, does not fit int32."""
    rng = np.random.default_rng(7)
    weights: dict[str, Array] = {
        "s": np.array(0.061, np.float32), "z": np.array(133, np.uint8),
        "t": np.array(0.18, np.float32), "u": np.array(123, np.uint8),
        "ys": np.array(0.1, np.float32), "yz": np.array(0, np.uint8),
    }  # fmt: skip
    lines = [
        "da = DequantizeLinear(a, s, z) db = DequantizeLinear(b, t, u)",
        "c = Add(da, db) y0 = QuantizeLinear(c, ys, yz) m = Mul(da, db) y1 = QuantizeLinear(m, ys, yz)",
    ]
    graph = graph_of(["uint8[70,90] a", "uint8[70,90] b"], weights, lines, TensorProto.UINT8)
    lowered = integerize(graph)
    assert [node.op for node in lowered.nodes] == ["Add", "Multiply"]
    feeds: dict[str, Array] = {name: rng.integers(0, 256, (70, 90)).astype(np.uint8) for name in graph.inputs}
    for what, found, expected in run_everywhere(graph, feeds, Reference(lowered).run(feeds), machine, tmp_path):
        assert expected.max() == 255
        np.testing.assert_array_equal(found, expected, err_msg=what)


def test_open_shapes_are_refused() -> None:
    target = targets.resolve({"cpu": "x86-64-v3"})
    with pytest.raises(InputError, match=r"input 'x'.*open shape.*model: inputs"):
        lower(graph_of(["float[N,4] x"], {}, ["y0 = Relu(x)"]), target)
    with pytest.raises(InputError, match=r"Compress.*open shape"):
        lower(graph_of(["float[4] x", "bool[4] c"], {}, ["y0 = Compress(x, c)"]), target)
