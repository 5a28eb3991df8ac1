"""16-bit floats: arithmetic in float32, large constants stored in 16 bits and widened by the kernel that reads them."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import numpy_helper, parser

from graphc import execute
from graphc.artifact import Manifest
from graphc.backends.build import build_target
from graphc.backends.cache import Cache
from graphc.backends.widen import NARROW, widened
from graphc.backends.worker import Server
from graphc.importer import load
from graphc.ir import Array, Graph
from graphc.runner import Runner
from tests.backends.kernel_calls import LEVELS, runnable

KINDS = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
RNG = np.random.default_rng(7)
X = RNG.standard_normal((1, 16, 6, 6)).astype(np.float32)
CONV = (RNG.standard_normal((64, 16, 3, 3)) / 12).astype(np.float32)
PRODUCT = (RNG.standard_normal((80, 64)) / 8).astype(np.float32)

BODY = """{
  c = Conv <pads = [1,1,1,1]> (x, conv)
  s = Sigmoid (c)
  p = GlobalAveragePool (s)
  f = Reshape (p, shape)
  m = Gemm <transB = 1> (f, product)
  y = Softmax (m)
}"""
STORED = """{
  conv = Cast <to = 1> (conv16)
  turned = Transpose <perm = [1,0]> (product16)
  product = Cast <to = 1> (turned)
  c = Conv <pads = [1,1,1,1]> (x, conv)
  p = GlobalAveragePool (c)
  f = Reshape (p, shape)
  y = MatMul (f, product)
}"""
HEAD = '<ir_version: 10, opset_import: ["" : 22]> g (KIND[1,16,6,6] x) => (KIND[1,80] y) '


def graph(kind: str, body: str, constants: dict[str, Array]) -> Graph:
    model = parser.parse_model(HEAD.replace("KIND", kind) + body)
    given = {**constants, "shape": np.array([1, 64], np.int64)}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in given.items())
    return load(model)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Cache]]:
    with Server(1) as server:
        yield server, Cache(tmp_path_factory.mktemp("cache"))


def built(
    graph: Graph, cpu: str, folder: Path, machine: tuple[Server, Cache], x: Array, threads: int = 1
) -> tuple[Manifest, Array]:
    manifest = build_target(graph, runnable(cpu), folder, *machine)
    with Runner(folder, threads) as runner:
        found: Array = runner(x)
    return manifest, found


@pytest.mark.parametrize("kind", KINDS)
def test_no_arithmetic_stays_narrow(kind: str) -> None:
    narrow = graph(kind, BODY, {"conv": CONV.astype(KINDS[kind]), "product": PRODUCT.astype(KINDS[kind])})
    wide = widened(narrow)
    assert widened(wide) is wide
    assert wide.types["y"] == narrow.types["y"] and wide.types["x"] == narrow.types["x"]
    counts = Counter(node.op for node in wide.nodes if any(wide.types[n].dtype in NARROW for n in node.reads))
    assert counts == {"Cast": 3}  # x and the two weights; what is in between is never rounded
    assert {wide.constants[name].dtype for name in ("conv", "product")} == {KINDS[kind]}


def test_float32_is_left_alone() -> None:
    plain = graph("float", BODY, {"conv": CONV, "product": PRODUCT})
    assert widened(plain) is plain


@pytest.mark.parametrize("cpu", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_results_are_those_of_float32_rounded_once(
    kind: str, cpu: str, machine: tuple[Server, Cache], tmp_path: Path
) -> None:
    dtype = KINDS[kind]
    conv, product, x = (array.astype(dtype) for array in (CONV, PRODUCT, X))
    manifest, found = built(graph(kind, BODY, {"conv": conv, "product": product}), cpu, tmp_path / "out", machine, x)
    exact = graph("float", BODY, {"conv": conv.astype(np.float32), "product": product.astype(np.float32)})
    expected = execute.run(exact, {"x": x.astype(np.float32)})["y"].astype(np.float64)
    assert found.dtype == dtype
    ulp = np.spacing(expected.astype(dtype)).astype(np.float64)
    assert (np.abs(found.astype(np.float64) - expected) <= 0.51 * ulp).all()
    assert manifest.weights.bytes < 1.1 * (conv.nbytes + product.nbytes)


@pytest.mark.parametrize("cpu", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_a_way_to_store_weights(
    kind: str, cpu: str, machine: tuple[Server, Cache], tmp_path: Path
) -> None:
    dtype = KINDS[kind]
    conv, product = CONV.astype(dtype), PRODUCT.astype(dtype)
    stored = graph("float", STORED, {"conv16": conv, "product16": product})
    for threads in (1, 2):
        manifest, found = built(stored, cpu, tmp_path / "out", machine, X, threads)
        expected = execute.run(stored, {"x": X})["y"]
        assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
        assert manifest.weights.bytes < 1.1 * (conv.nbytes + product.nbytes)
