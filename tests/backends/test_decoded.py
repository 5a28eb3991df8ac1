"""Contractions that decode their weights equal onnxruntime's on the decoded ones, on every x86-64 level."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphc.backends import targets
from graphc.backends.build import build_target
from graphc.backends.cache import Cache
from graphc.backends.coded import coded, values
from graphc.backends.decompose import decompose
from graphc.backends.lower import lower
from graphc.backends.worker import Server
from graphc.emulator import EmulatedLinux, open_anywhere
from graphc.execute import Session
from graphc.importer import load
from graphc.ir import Array, Graph
from graphc.runner import Runner
from tests.backends.kernel_calls import LEVELS, runnable
from tests.passes.test_quantize_weights import looked_up, stored

emulated = pytest.mark.skipif(
    not shutil.which("qemu-aarch64-static"), reason="no QEMU user mode (apt install qemu-user-static)"
)
RANDOM = np.random.default_rng(11)


class Model:
    """A graph under construction: every anchor has an input and an output of its own."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.feeds: dict[str, Array] = {}

    def constant(self, array: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name

    def node(self, op: str, inputs: list[str], domain: str = "", **attributes: object) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name, domain=domain, **attributes))
        return name

    def anchor(self, op: str, x: tuple[int, ...], weights: str, bias: int = 0, **attributes: object) -> None:
        """op(input of shape x, weights) with a bias of that size, and a Relu behind every second one."""
        name = f"x{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, 1, x))
        self.feeds[name] = RANDOM.standard_normal(x).astype(np.float32)
        rest = [self.constant(RANDOM.standard_normal(bias).astype(np.float32))] if bias else []
        y = self.node(op, [name, weights, *rest], **attributes)
        y = self.node("Relu", [y]) if len(self.outputs) % 2 else y
        self.outputs.append(helper.make_tensor_value_info(y, 1, None))

    def recurrent(self, op: str, hidden: int, w: str, r: str, bias: int, **attributes: object) -> None:
        """All outputs of op over 7 steps of 2 sequences of 12 inputs."""
        x = f"x{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(x, 1, (7, 2, 12)))
        self.feeds[x] = RANDOM.standard_normal((7, 2, 12)).astype(np.float32)
        b = self.constant(RANDOM.standard_normal((1 if bias > 0 else 2, abs(bias))).astype(np.float32))
        y = self.node(op, [x, w, r, b], hidden_size=hidden, **attributes)
        self.outputs.append(helper.make_tensor_value_info(y, 1, None))

    def dequantized(
        self, shape: tuple[int, ...], dtype: str, axis: int | None, block: int = 0, zero: bool = False, size: float = 1
    ) -> str:
        """Weights of random integers, a scale for all, per index of an axis, or per block of it."""
        kind = ml_dtypes.iinfo(getattr(ml_dtypes, dtype, dtype))
        q = RANDOM.integers(kind.min, kind.max, shape, endpoint=True).astype(kind.dtype)
        if axis is None:
            spread: tuple[int, ...] = ()
        else:
            spread = tuple(-(-n // block) if a == axis else n for a, n in enumerate(shape)) if block else (shape[axis],)
        operands = [self.constant(q), self.constant((size * RANDOM.uniform(0.01, 0.1, spread)).astype(np.float32))]
        if zero:
            operands.append(
                self.constant(RANDOM.integers(kind.min, kind.max, spread, endpoint=True).astype(kind.dtype))
            )
        attributes = {} if axis is None else {"axis": axis, **({"block_size": block} if block else {})}
        return self.node("DequantizeLinear", operands, **attributes)

    def shared(self, shape: tuple[int, ...], bits: int, codebook: str = "", books: int = 1) -> str:
        """Weights that are random entries of a codebook, or of one for each of `books` runs of outputs."""
        codes = RANDOM.integers(0, 1 << bits, shape).astype(np.uint8)
        stream = np.unpackbits(codes.reshape(-1, 1), axis=1, count=bits, bitorder="little")
        packed = self.constant(np.packbits(stream.reshape(-1), bitorder="little"))
        dims = (1 << bits,) if books == 1 else (books, 1 << bits, 1)
        codebook = codebook or self.constant(RANDOM.standard_normal(dims).astype(np.float32))
        return self.node("Lookup", [codebook, packed], "graphc", bits=bits, shape=shape)

    def masked(self, shape: tuple[int, ...], codebook: Array) -> str:
        """Weights of which a third are random entries of a codebook, and the others zero."""
        held = RANDOM.random(shape) < 0.3
        bits = (len(codebook) - 1).bit_length()
        values = self.shared((int(held.sum()),), bits, self.constant(codebook))
        mask = self.constant(np.packbits(held.reshape(-1), bitorder="little"))
        return self.node("SparseToDense", [mask, values], "graphc", shape=shape)

    def graph(self) -> Graph:
        initializers = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        graph = helper.make_graph(self.nodes, "decoded", self.inputs, self.outputs, initializers)
        imports = [helper.make_opsetid("", 26), helper.make_opsetid("graphc", 1)]
        return load(helper.make_model(graph, opset_imports=imports, ir_version=13))


def vector_times_integers(m: Model) -> None:
    m.anchor("MatMul", (1, 70), m.dequantized((70, 50), "int8", 1))
    m.anchor("MatMul", (1, 64), m.dequantized((64, 96), "int4", 0, 32))
    m.anchor("MatMul", (3, 67), m.dequantized((67, 130), "uint4", 0, 16, zero=True))
    m.anchor("MatMul", (40,), m.dequantized((40, 33), "int4", None))
    m.anchor("Gemm", (1, 65), m.dequantized((48, 65), "int2", 1, 13), 48, transB=1)
    m.anchor("Gemm", (2, 64), m.dequantized((64, 64), "uint2", 1, zero=True), alpha=0.5)
    m.anchor("MatMul", (1, 33), m.dequantized((33, 20), "uint8", 1, zero=True))
    m.anchor("MatMul", (1, 16), m.dequantized((16, 16), "int16", None))


def rows_times_integers(m: Model) -> None:
    m.anchor("MatMul", (20, 130), m.dequantized((130, 70), "int4", 0, 32, zero=True))
    m.anchor("MatMul", (2, 3, 13, 96), m.dequantized((96, 33), "int8", 1))
    m.anchor("MatMul", (137, 70), m.dequantized((70, 64), "uint4", 0, 7))
    m.anchor("Gemm", (31, 90), m.dequantized((31, 40), "int2", None), 40, transA=1)
    m.anchor("Gemm", (31, 50), m.dequantized((18, 50), "uint8", 0, zero=True), 18, transB=1)
    m.anchor("MatMul", (19, 300), m.dequantized((300, 128), "int8", 1))
    m.anchor("MatMul", (33, 300), m.dequantized((300, 64), "int4", 0, 32))
    m.anchor("MatMul", (300, 40), m.node("Transpose", [m.dequantized((70, 40), "int4", 1, 8)], perm=[1, 0]))


def vector_and_rows_times_shared(m: Model) -> None:
    for bits in range(1, 9):
        m.anchor("MatMul", (1, 61), m.shared((61, 70), bits))
        m.anchor("Gemm", (30, 40), m.shared((50, 40), bits), 50, transB=1)


def nested(m: Model) -> None:
    small = m.node(
        "DequantizeLinear", [m.constant(RANDOM.integers(-127, 128, 16).astype(np.int8)), m.constant(np.float32(0.1))]
    )
    m.anchor("MatMul", (2, 40), m.shared((40, 32), 4, small))
    inner = m.shared((40, 32), 4, m.constant(RANDOM.integers(-127, 128, 16).astype(np.int8)))
    scale = m.constant(RANDOM.uniform(0.01, 0.1, 32).astype(np.float32))
    m.anchor("MatMul", (9, 40), m.node("DequantizeLinear", [inner, scale], axis=1))


def convolutions(m: Model) -> None:
    m.anchor("Conv", (1, 16, 9, 9), m.dequantized((40, 16, 3, 3), "int4", 0), 40, pads=[1, 1, 1, 1])
    blocked = m.dequantized((40, 16 * 9), "int4", 1, 32, zero=True)
    shape = m.constant(np.array([40, 16, 3, 3]))
    m.anchor("Conv", (2, 16, 20, 7), m.node("Reshape", [blocked, shape]), pads=[1, 1, 1, 1], strides=[2, 1])
    m.anchor("Conv", (1, 3, 23, 40), m.dequantized((24, 3, 5, 7), "int2", 0), pads=[2, 3, 2, 3], strides=[2, 2])
    m.anchor("Conv", (1, 40, 14, 14), m.dequantized((70, 40, 1, 1), "int8", 0, zero=True), 70)
    m.anchor("Conv", (1, 70, 8, 9), m.shared((33, 70, 3, 3), 3), dilations=[2, 2])
    m.anchor("Conv", (1, 150, 6, 5), m.shared((64, 150, 3, 3), 4), pads=[1, 1, 1, 1])
    m.anchor("Conv", (1, 32, 1, 1), m.shared((33, 32, 1, 1), 5))
    m.anchor("Conv", (1, 8, 3, 300), m.shared((64, 8, 1, 3), 4), pads=[0, 1, 0, 1])
    m.anchor("Conv", (1, 12, 50), m.dequantized((20, 12, 3), "int4", 0), 20, pads=[1, 1])


def several_codebooks(m: Model) -> None:
    m.anchor("Gemm", (1, 40), m.shared((64, 40), 4, books=4), 64, transB=1)
    m.anchor("Gemm", (30, 33), m.shared((70, 33), 3, books=7), transB=1)
    m.anchor("MatMul", (3, 61), m.node("Transpose", [m.shared((96, 61), 5, books=3)], perm=[1, 0]))
    m.anchor("MatMul", (1, 20), m.node("Transpose", [m.shared((32, 20), 8, books=2)], perm=[1, 0]))
    m.anchor("Conv", (1, 16, 9, 9), m.shared((40, 16, 3, 3), 2, books=10), 40, pads=[1, 1, 1, 1])
    m.anchor("Conv", (1, 20, 6, 5), m.shared((64, 20, 1, 1), 4, books=2))


def pruned_and_shared(m: Model) -> None:
    entries = RANDOM.standard_normal(256).astype(np.float32)
    m.anchor("Gemm", (2, 50), m.masked((40, 50), np.append(np.float32(0), entries[:15])), 40, transB=1)
    m.anchor("MatMul", (20, 50), m.masked((50, 40), np.append(entries[:7], np.float32(0))))
    m.anchor("MatMul", (1, 50), m.masked((50, 40), entries[:16]))
    m.anchor("Conv", (1, 20, 6, 5), m.masked((24, 20, 3, 3), entries[:8]), pads=[1, 1, 1, 1])


def several_matrices(m: Model) -> None:
    m.anchor("MatMul", (3, 1, 40), m.dequantized((3, 40, 50), "int4", 1, 8))
    m.anchor("MatMul", (3, 30, 40), m.dequantized((3, 40, 70), "int8", 2, zero=True))
    m.anchor("MatMul", (2, 1, 20, 33), m.dequantized((3, 33, 20), "uint4", 1, 11, zero=True))
    m.anchor("MatMul", (130, 24), m.dequantized((2, 24, 48), "int2", None))
    m.anchor("MatMul", (9, 24), m.dequantized((1, 24, 17), "int4", 2))
    m.anchor("MatMul", (4, 9, 24), m.dequantized((1, 24, 17), "int4", 2))
    m.anchor("MatMul", (2, 30, 40), m.shared((2, 40, 32), 3))


def depthwise(m: Model) -> None:
    m.anchor("Conv", (1, 40, 9, 20), m.dequantized((40, 1, 3, 3), "int8", 0), 40, group=40, pads=[1, 1, 1, 1])
    m.anchor("Conv", (2, 37, 9, 9), m.dequantized((37, 1, 3, 5), "int4", 0, zero=True), group=37, strides=[2, 2])
    m.anchor("Conv", (1, 16, 12, 7), m.dequantized((16, 1, 5, 5), "uint2", None), 16, group=16, dilations=[2, 1])
    m.anchor("Conv", (1, 33, 6, 6), m.shared((33, 1, 3, 3), 5), group=33, pads=[0, 1, 2, 1])
    m.anchor("Conv", (1, 19, 50), m.dequantized((19, 1, 7), "int8", 0, zero=True), 19, group=19, pads=[6, 0])
    m.anchor("Conv", (1, 5, 4, 4), m.dequantized((5, 1, 3, 3), "int8", 0), 5, group=5)
    blocked = m.node("Reshape", [m.dequantized((32, 9), "int4", 1, 3, zero=True), m.constant(np.array([32, 1, 3, 3]))])
    m.anchor("Conv", (1, 32, 8, 30), blocked, group=32)


def grouped(m: Model) -> None:
    m.anchor("Conv", (1, 32, 9, 20), m.dequantized((64, 16, 3, 3), "int8", 0), 64, group=2, pads=[1, 1, 1, 1])
    m.anchor("Conv", (2, 12, 9, 9), m.dequantized((18, 4, 3, 5), "int4", 0, zero=True), group=3, strides=[2, 2])
    m.anchor("Conv", (1, 16, 12, 7), m.dequantized((16, 4, 1, 1), "uint4", None), 16, group=4)
    m.anchor("Conv", (1, 40, 6, 6), m.shared((40, 20, 3, 3), 5), group=2, dilations=[2, 1])
    m.anchor("Conv", (1, 10, 50), m.dequantized((25, 2, 7), "int2", 0, zero=True), 25, group=5, pads=[3, 3])
    m.anchor("Conv", (1, 8, 7, 30), m.constant(RANDOM.standard_normal((8, 4, 3, 3)).astype(np.float32)), group=2)


def three_dimensional(m: Model) -> None:
    m.anchor("Conv", (1, 8, 5, 6, 20), m.dequantized((24, 8, 3, 3, 3), "int8", 0), 24, pads=[1] * 6)
    m.anchor("Conv", (2, 6, 5, 6, 7), m.dequantized((17, 6, 2, 3, 1), "int4", 0, zero=True), strides=[2, 1, 2])
    m.anchor("Conv", (1, 16, 4, 9, 9), m.shared((33, 16, 1, 1, 1), 4), 33)
    m.anchor("Conv", (1, 12, 5, 9, 12), m.dequantized((24, 6, 3, 2, 3), "uint2", None), 24, group=2, pads=[0, 1] * 3)
    m.anchor("Conv", (1, 3, 5, 6, 20), m.constant(RANDOM.standard_normal((8, 3, 3, 3, 3)).astype(np.float32)))


def recurrent(m: Model) -> None:
    """R is small enough that rounding does not grow from step to step."""
    both = {"direction": "bidirectional"}
    m.recurrent("LSTM", 21, m.dequantized((1, 84, 12), "int8", 1), m.dequantized((1, 84, 21), "int8", 1, size=0.1), 168)
    m.recurrent("GRU", 16, m.shared((1, 48, 12), 4), m.dequantized((1, 48, 16), "int4", 2, 8, zero=True), 96)
    r = m.dequantized((2, 30, 10), "uint8", 1, zero=True, size=0.02)
    m.recurrent("GRU", 10, m.dequantized((2, 30, 12), "int4", 1), r, -60, linear_before_reset=1, **both)
    small = m.constant((0.1 * RANDOM.standard_normal(8)).astype(np.float32))
    m.recurrent("RNN", 33, m.shared((1, 33, 12), 3), m.shared((1, 33, 33), 3, small), 66)
    half = m.constant((0.1 * RANDOM.standard_normal((2, 36, 9))).astype(np.float16))
    m.recurrent("LSTM", 9, m.dequantized((2, 36, 12), "int8", 1), m.node("Cast", [half], to=1), -72, **both)


CASES: tuple[Callable[[Model], None], ...] = (
    vector_times_integers,
    rows_times_integers,
    vector_and_rows_times_shared,
    nested,
    convolutions,
    several_codebooks,
    pruned_and_shared,
    several_matrices,
    depthwise,
    grouped,
    three_dimensional,
    recurrent,
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Cache]]:
    with Server(2) as server:
        yield server, Cache(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("level", LEVELS)
def test_equals_onnxruntime(
    case: Callable[[Model], None], level: str, machine: tuple[Server, Cache], tmp_path: Path
) -> None:
    model = Model()
    case(model)
    graph = model.graph()
    expected = Session(graph).run(model.feeds)
    build_target(graph, runnable(level), tmp_path, *machine)
    for threads in (1, 3):
        with Runner(tmp_path, threads) as runner:
            found = runner(**model.feeds)
        for name, value in expected.items():
            difference = np.abs(found[name].astype(np.float64) - value).max()
            assert difference <= 1e-5 * np.abs(value).max(), (name, threads)


@emulated
@pytest.mark.parametrize(
    "case", (depthwise, grouped, three_dimensional, several_matrices, recurrent), ids=lambda case: case.__name__
)
def test_equals_onnxruntime_on_arm(
    case: Callable[[Model], None], machine: tuple[Server, Cache], tmp_path: Path
) -> None:
    model = Model()
    case(model)
    graph = model.graph()
    build_target(graph, targets.resolve({"cpu": "cortex-a72"}), tmp_path, *machine)
    with EmulatedLinux(tmp_path, threads=2) as emulator:
        found = emulator(**model.feeds)
    for name, value in Session(graph).run(model.feeds).items():
        assert np.abs(found[name] - value).max() <= 1e-5 * np.abs(value).max(), name


def small_anchors(m: Model) -> None:
    m.anchor("Conv", (1, 8, 7, 6), m.dequantized((8, 1, 3, 3), "int4", 0, zero=True), 8, group=8, pads=[1] * 4)
    m.anchor("Conv", (1, 8, 7, 6), m.dequantized((12, 4, 3, 3), "int8", 0), 12, group=2)
    m.anchor("MatMul", (2, 3, 10), m.dequantized((2, 10, 7), "uint4", 1, 5, zero=True))
    m.anchor("Conv", (1, 4, 3, 4, 6), m.shared((6, 4, 2, 2, 2), 3), 6)
    m.recurrent("LSTM", 5, m.dequantized((1, 20, 12), "int8", 1), m.dequantized((1, 20, 5), "int4", 1, size=0.1), 40)


@pytest.mark.skipif(not shutil.which("qemu-system-arm"), reason="no qemu-system-arm on PATH")
@pytest.mark.parametrize("emit", ("objects", "c"))
def test_equals_onnxruntime_on_a_microcontroller(emit: str, machine: tuple[Server, Cache], tmp_path: Path) -> None:
    model = Model()
    small_anchors(model)
    graph = model.graph()
    target = {"board": "mps2-an386", **({"emit": "c"} if emit == "c" else {})}
    build_target(graph, targets.resolve(target), tmp_path, *machine)
    with open_anywhere(tmp_path) as emulator:
        found = emulator(**model.feeds)
    for name, value in Session(graph).run(model.feeds).items():
        assert np.abs(found[name] - value).max() <= 1e-5 * np.abs(value).max(), name


def random_convolution(m: Model, rng: np.random.Generator) -> None:
    """Of one to three axes, in groups of any size, whose weights are integers of any width."""
    axes, groups = int(rng.integers(1, 4)), int(rng.choice([1, 1, 2, 3, 7]))
    inner, outer = (1, 1) if groups == 7 else (int(n) for n in rng.integers(1, 20, 2))
    kernel = [int(n) for n in rng.integers(1, 4, axes)]
    size = [int(n) for n in rng.integers(6, 11, axes)]
    weights = (groups * outer, inner, *kernel)
    kind = str(rng.choice(["int8", "uint8", "int4", "uint4", "int2", "uint2"]))
    m.anchor(
        "Conv",
        (int(rng.integers(1, 3)), groups * inner, *size),
        m.dequantized(weights, kind, 0 if rng.random() < 0.7 else None, zero=bool(rng.random() < 0.5)),
        groups * outer,
        group=groups,
        strides=[int(n) for n in rng.integers(1, 3, axes)],
        pads=[int(n) for n in rng.integers(0, 2, 2 * axes)],
    )


@pytest.mark.parametrize("level", LEVELS)
def test_convolutions_of_random_shapes(level: str, machine: tuple[Server, Cache], tmp_path: Path) -> None:
    rng, model = np.random.default_rng(5), Model()
    for _ in range(12):
        random_convolution(model, rng)
    graph = model.graph()
    build_target(graph, runnable(level), tmp_path, *machine)
    with Runner(tmp_path) as runner:
        found = runner(**model.feeds)
    for name, value in Session(graph).run(model.feeds).items():
        assert np.abs(found[name] - value).max() <= 1e-5 * np.abs(value).max(), name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_no_kernel_writes_dense_weights(case: Callable[[Model], None]) -> None:
    model = Model()
    case(model)
    program = lower(decompose(model.graph(), kernels=True), targets.resolve({"cpu": "x86-64-v4"}))
    assert not [
        symbol
        for symbol in program.kernels
        if any(decoder in symbol for decoder in ("dequantize", "lookup", "sparse_to_dense", "pack"))
    ]
    words = sum(array.nbytes for name, array in program.constants.items() if ".plane" in name)
    assert words > 0
    assert all(array.dtype != np.float32 for name, array in program.constants.items() if ".plane" in name)


@pytest.mark.parametrize("group", [None, 4])
def test_tables_and_recurrent_weights_are_decoded_where_they_are_read(
    group: int | None, machine: tuple[Server, Cache], tmp_path: Path
) -> None:
    graph, _ = stored(looked_up(), weights="int4", embeddings="int4", group=group)
    feeds = {
        "i": np.array([[0, 49, -1, -50, 7, 7]]),
        "x": np.random.default_rng(0).normal(size=(5, 2, 12)).astype(np.float32),
    }
    program = build_target(graph, runnable("x86-64-v3"), tmp_path, *machine)
    (lookup,) = (step for step in program.steps if "y" in step.nodes)
    assert lookup.kernel.startswith("gather")
    assert not any("table_dequantize" in step.nodes for step in program.steps)
    with Runner(tmp_path) as runner:
        found = runner(**feeds)
    for name, value in Session(graph).run(feeds).items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5 * np.abs(value).max(), err_msg=name)


def gathered(m: Model, table: str, axis: int = 0) -> None:
    """y = Gather(table, indices) * x; tables are 60 x 33, some of whose rows or columns are read."""
    x, i = f"x{len(m.inputs)}", m.constant(np.array([[3, -1, 7]]))
    shape = (1, 3, 33) if axis == 0 else (60, 1, 3)
    m.inputs.append(helper.make_tensor_value_info(x, 1, shape))
    m.feeds[x] = RANDOM.standard_normal(shape).astype(np.float32)
    m.outputs.append(
        helper.make_tensor_value_info(m.node("Mul", [m.node("Gather", [table, i], axis=axis), x]), 1, None)
    )


TABLES: dict[str, Callable[[Model], str]] = {
    "float16": lambda m: m.node("Cast", [m.constant(RANDOM.standard_normal((60, 33)).astype(np.float16))], to=1),
    "bfloat16": lambda m: m.node(
        "Cast", [m.constant(RANDOM.standard_normal((60, 33)).astype(ml_dtypes.bfloat16))], to=1
    ),
    "int2": lambda m: m.dequantized((60, 33), "int2", 0, 12),
    "lookup": lambda m: m.shared((60, 33), 3),
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("level", ("x86-64-v2", "x86-64-v4"))
def test_only_rows_that_are_read_are_decoded(
    table: str, level: str, machine: tuple[Server, Cache], tmp_path: Path
) -> None:
    model = Model()
    weights = TABLES[table](model)
    for axis in (0, 1):
        gathered(model, weights, axis)
    model.anchor("MatMul", (2, 60), weights)  # tied: the same table as a matrix
    graph = model.graph()
    program = lower(graph, runnable(level))
    made = [buffer for name, buffer in program.buffers.items() if name not in program.constants]
    assert max(buffer.bytes for buffer in made) < 60 * 33 * 4
    build_target(graph, runnable(level), tmp_path, *machine)
    with Runner(tmp_path) as runner:
        found = runner(**model.feeds)
    for name, value in Session(graph).run(model.feeds).items():
        assert np.abs(found[name] - value).max() <= 1e-5 * np.abs(value).max(), name


def test_the_matrix_is_what_onnxruntime_decodes() -> None:
    model = Model()
    weights = model.dequantized((24, 40), "uint4", 0, 8, zero=True)
    model.anchor("MatMul", (1, 24), weights)
    graph = model.graph()
    found = coded(graph, weights, lambda array: array.T)
    assert found is not None
    assert (found.codes.shape, found.group) == ((40, 24), 8)
    q, scale, zero = (graph.constants[name] for name in graph.producers[weights].inputs)
    spread = [np.repeat(part.astype(np.float32), 8, axis=0) for part in (scale, zero)]
    np.testing.assert_array_equal(values(found), ((q.astype(np.float32) - spread[1]) * spread[0]).T)


def test_scales_per_input_channel_stay_a_kernel_of_their_own() -> None:
    model = Model()
    weights = model.dequantized((24, 40), "int8", 0)
    model.anchor("MatMul", (1, 24), weights)
    assert coded(model.graph(), weights, lambda array: array.T) is None
