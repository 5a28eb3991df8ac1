"""Integer kernels on every level of x86-64 and for any number of threads: the reference's results, bit for bit."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from graphc.backends import targets
from graphc.backends.build import build_target
from graphc.backends.cache import Cache
from graphc.backends.integer import explain
from graphc.backends.reference import run
from graphc.backends.targets import Target
from graphc.backends.worker import Server
from graphc.runner import Runner
from tests.backends.kernel_calls import host_runs
from tests.backends.qdq import Qdq, feeds

LEVELS = ("x86-64-v2", "x86-64-v3", "alderlake", "x86-64-v4", "no tiles", "native")


def target_of(level: str) -> Target:
    """A target by its name; "no tiles" is this machine's vectors alone."""
    native = targets.resolve({"cpu": "native"})
    return without_tiles(native) if level == "no tiles" else targets.resolve({"cpu": level})


def without_tiles(target: Target) -> Target:
    instructions = {name for name in target.instructions if not name.startswith("amx")}
    features = tuple(name for name in target.features if not name.startswith("+amx"))
    return replace(target, instructions=frozenset(instructions), features=features)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Cache]]:
    with Server(2) as server:
        yield server, Cache(tmp_path_factory.mktemp("cache"))


def float_results(m: Qdq) -> None:
    """Products that nothing rounds: one multiply after the integer sum."""
    m.output(m.node("Gemm", [m.input((4, 300)), m.weights((10, 300), 0), m.floats((10,))], transB=1))
    m.output(m.node("MatMul", [m.input((2, 3, 40), "uint8", 0.02, 7), m.weights((40, 7), 1, "uint8", (100, 150))]))
    m.output(m.node("MatMul", [m.input((2, 3, 4, 8)), m.input((2, 3, 8, 5), "uint8", 0.02, 100)]))
    x = m.input((1, 6, 9, 8))
    m.output(m.node("Relu", [m.node("Conv", [x, m.weights((17, 6, 3, 3)), m.floats((17,))], pads=[1, 1, 1, 1])]))
    m.output(m.node("Conv", [x, m.weights((6, 1, 3, 3))], group=6, strides=[2, 2]))
    m.output(m.node("ConvTranspose", [x, m.weights((6, 4, 3, 3), 1), m.floats((4,))], strides=[2, 2]))


def zero_points_of_groups(m: Qdq) -> None:
    """Weights of a transposed convolution in groups: a zero point for all, one per channel of a group."""
    x = m.input((1, 6, 5, 4), "uint8", 0.02, 7)
    for axis in (None, 1):
        w = m.weights((6, 4, 3, 2), axis, "uint8", (100, 150))
        m.result(m.node("ConvTranspose", [x, w, m.floats((12,))], group=3, strides=[2, 1]))


def products_of_activations(m: Qdq) -> None:
    """Zero points on either side, batches that broadcast, and a batch of constant matrices."""
    m.result(m.node("MatMul", [m.input((2, 3, 7, 8)), m.input((3, 8, 19), "uint8", 0.02, 100)]))
    m.result(m.node("MatMul", [m.input((5, 9), "uint8", 0.02, 30), m.input((2, 9, 4))]), "uint8")
    m.result(m.node("MatMul", [m.input((2, 3, 16)), m.weights((2, 16, 33), None, "uint8", (100, 150))]))
    c = m.floats((6,))
    m.result(m.node("Gemm", [m.input((8, 4)), m.input((6, 8), "int8", 0.01, 0), c], transA=1, transB=1))


def sums(m: Qdq) -> None:
    """Products whose int32 sums are the result, with zero points that only a run knows."""
    q, scale, zero = m.dynamic((3, 40))
    sums = m.node("MatMulInteger", [q, m.integers((40, 19), "int8"), zero, m.integers((19,), "int8")])
    m.output(m.node("Mul", [m.node("Cast", [sums], to=1), scale]))
    q, _, zero = m.dynamic((1, 6, 9, 8))
    m.output(
        m.node("ConvInteger", [q, m.integers((17, 6, 3, 3), "uint8"), zero, m.integers((), "uint8")], pads=[1] * 4)
    )
    m.output(m.node("ConvInteger", [q, m.integers((6, 1, 3, 3), "int8"), zero], group=6))


def sixteen_bits(m: Qdq) -> None:
    """int16 activations: products with weights of 8 bits, sums in 64 bits, averages."""
    x = m.input((1, 6, 9, 8), "int16", 0.001, 0)
    c = m.requantize(m.node("Conv", [x, m.weights((6, 6, 3, 3)), m.floats((6,))], pads=[1, 1, 1, 1]), "int16")
    d = m.requantize(m.node("Conv", [x, m.weights((6, 1, 3, 3))], pads=[1, 1, 1, 1], group=6), "int16")
    y = m.node("Relu", [m.node("Add", [c, d])])
    m.result(y, "int16")
    m.result(m.node("GlobalAveragePool", [c]), "int16")
    m.result(m.node("Mul", [m.input((2, 6), "int16", 0.001, 0), m.input((6,), "int16", 0.0003, 0)]), "int16")
    m.output(m.node("MatMul", [m.input((2, 3, 40), "int16", 0.002, 100), m.weights((40, 7), 1)]))


def wide_terms(m: Qdq) -> None:
    """Residual sums that take a product as it is, and those that take it rounded."""
    x = m.input((1, 32, 9, 8))
    r = m.requantize(m.node("Relu", [m.node("Conv", [x, m.weights((40, 32, 1, 1)), m.floats((40,))])]), "uint8")
    c = m.node("Conv", [r, m.weights((40, 40, 3, 3)), m.floats((40,))], pads=[1, 1, 1, 1])
    s = m.requantize(m.node("Relu", [m.node("Add", [c, r])]), "uint8")
    d = m.requantize(m.node("Conv", [s, m.weights((40, 1, 3, 3))], pads=[1, 1, 1, 1], group=40), "uint8")
    m.result(m.node("Add", [s, d]))
    a = m.input((2, 7, 64))
    m.result(m.node("Sub", [m.node("MatMul", [a, m.weights((64, 64), 1)]), a]))


MODELS: dict[str, Callable[[Qdq], None]] = {
    "float_results": float_results,
    "zero_points_of_groups": zero_points_of_groups,
    "products_of_activations": products_of_activations,
    "sums": sums,
    "sixteen_bits": sixteen_bits,
    "wide_terms": wide_terms,
}


@pytest.mark.parametrize("name", MODELS)
def test_artifacts_equal_the_reference(name: str, machine: tuple[Server, Cache], tmp_path: Path) -> None:
    model = Qdq()
    MODELS[name](model)
    graph = model.graph()
    integers = explain(graph)
    assert integers.skipped == ()
    given = feeds(graph, np.random.default_rng(3))
    expected = run(integers.graph, given)
    for level in (name for name in LEVELS if host_runs(target_of(name))):
        build_target(graph, target_of(level), tmp_path / level, *machine)
        for threads in (1, 2):
            with Runner(tmp_path / level, threads) as runner:
                found = runner(**given)
            for output in graph.outputs:
                np.testing.assert_array_equal(found[output], expected[output], err_msg=f"{output} on {level}")


@pytest.mark.parametrize(("axis", "scales"), [(1, 64), (None, 1)])
def test_weights_and_scales_are_stored_as_small_as_they_are(
    axis: int | None, scales: int, machine: tuple[Server, Cache], tmp_path: Path
) -> None:
    """Beside 16-bit activations too: the instruction's operands of 16 bits are made of bytes as it goes."""
    model = Qdq()
    model.output(model.node("MatMul", [model.input((2, 128), "int16", 0.001, 0), model.weights((128, 64), axis)]))
    build_target(model.graph(), targets.resolve({"cpu": "x86-64-v3"}), tmp_path / "built", *machine)
    with Runner(tmp_path / "built") as runner:
        assert 128 * 64 + 4 * scales <= runner.manifest.weights.bytes < 128 * 64 + 4 * scales + 4 * 64


def test_residual_sums_are_epilogues(machine: tuple[Server, Cache], tmp_path: Path) -> None:
    """No kernel of their own, and no bytes in memory for what they add."""
    model = Qdq()
    wide_terms(model)
    build_target(model.graph(), targets.resolve({"cpu": "x86-64-v3"}), tmp_path / "built", *machine)
    with Runner(tmp_path / "built") as runner:
        kernels = {step.kernel.rpartition("_")[0] for step in runner.manifest.steps if "add_int8" in step.kernel}
    assert len(kernels) == 3
    assert all(name.startswith(("conv_int8", "matmul_int8")) for name in kernels), kernels
