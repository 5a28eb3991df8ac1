"""Integer kernels of every kind of Cortex-M on emulated boards: the reference's results, bit for bit."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from graphc.backends import targets
from graphc.backends.build import build_target
from graphc.backends.cache import Cache
from graphc.backends.integer import explain
from graphc.backends.reference import run
from graphc.backends.worker import Server
from graphc.emulated_board import EMULATOR, EmulatedBoard
from tests.backends.qdq import Qdq, feeds

TARGETS: dict[str, dict[str, str]] = {
    **{cpu: {"cpu": cpu} for cpu in ("cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m55")},
    "portable C": {"cpu": "cortex-m4", "emit": "c"},
}
"""Nothing for it, long multiplies, the DSP extension and a floating-point unit, Helium; and C for any of them."""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Cache]]:
    if shutil.which(EMULATOR) is None:
        pytest.skip(f"no {EMULATOR} on PATH: apt install qemu-system-arm")
    with Server(1) as server:
        yield server, Cache(tmp_path_factory.mktemp("cache"))


def layers() -> Qdq:
    """Runs of channels that fill words and vectors, and that do not; both signs; windows that reach past the input."""
    m = Qdq()
    x = m.input((1, 8, 5, 7))
    m.result(m.node("Conv", [x, m.weights((6, 8, 3, 3)), m.floats((6,))], pads=[1, 1, 1, 1]))
    m.result(m.node("Conv", [x, m.weights((8, 1, 3, 3))], group=8, pads=[1, 1, 1, 1], strides=[2, 2]))
    x = m.input((1, 3, 6, 5), "uint8", 0.02, 100)
    m.result(m.node("Conv", [x, m.weights((9, 3, 3, 2)), m.floats((9,))], pads=[1, 0, 2, 1], dilations=[2, 1]), "uint8")
    m.result(m.node("Conv", [x, m.weights((3, 1, 3, 3))], group=3), "uint8")
    x = m.input((1, 16, 3, 3), "uint8", 0.02, 7)
    m.result(m.node("Relu", [m.node("Conv", [x, m.weights((5, 16, 1, 1)), m.floats((5,))])]))
    m.result(m.node("Conv", [x, m.weights((16, 1, 3, 3))], group=16, pads=[1, 1, 1, 1]), "uint8")
    m.result(m.node("Gemm", [m.input((1, 37)), m.weights((10, 37), 0), m.floats((10,))], transB=1))
    m.result(m.node("MatMul", [m.input((3, 16)), m.weights((16, 6), 1)]))
    return m


@pytest.mark.parametrize("name", TARGETS)
def test_kernels_equal_the_reference(name: str, machine: tuple[Server, Cache], tmp_path: Path) -> None:
    graph = layers().graph()
    integers = explain(graph)
    assert integers.skipped == ()
    given = feeds(graph, np.random.default_rng(3))
    expected = run(integers.graph, given)
    build_target(graph, targets.resolve(TARGETS[name]), tmp_path, *machine)
    with EmulatedBoard(tmp_path) as board:
        found = board(**given)
    for output in graph.outputs:
        np.testing.assert_array_equal(found[output], expected[output], err_msg=f"{output} on {name}")
