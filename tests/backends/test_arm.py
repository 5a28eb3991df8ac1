"""Arm's A profile: integers equal to the reference on every kind of core, inner loops of the instructions they should
have, float functions within their bounds and without calls. Artifacts run under QEMU's user mode."""

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from graphc.backends import objects
from graphc.backends.build import build_target
from graphc.backends.cache import Cache
from graphc.backends.elf import undefined_symbols
from graphc.backends.emit_cpu_arm import capabilities
from graphc.backends.integer import explain
from graphc.backends.lower import lower
from graphc.backends.reference import run
from graphc.backends.targets import resolve
from graphc.backends.worker import Server
from graphc.emulator import EmulatedLinux
from graphc.execute import Session
from graphc.importer import load
from graphc.ir import Graph
from tests.backends.qdq import Qdq, feeds
from tests.backends.test_compute_integer import MODELS
from tests.onnx_text import model_of

CORES = {"cortex-a72": "smlal", "cortex-a76": "sdot", "neoverse-v1": "sudot", "cortex-a9": "vmlal"}
"""A core of each kind, and what it multiplies 8-bit integers with."""

emulated = pytest.mark.skipif(
    not (shutil.which("qemu-aarch64-static") and shutil.which("qemu-arm-static")),
    reason="no QEMU user mode (apt install qemu-user-static)",
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Cache]]:
    with Server(2) as server:
        yield server, Cache(tmp_path_factory.mktemp("cache"))


def convolutions(m: Qdq) -> None:
    """1x1 and 3x3 on depths that are no multiple of a step, a vector, or what one load brings."""
    x = m.input((1, 23, 9, 8), "uint8", 0.02, 110)
    y = m.requantize(m.node("Conv", [x, m.weights((21, 23, 1, 1)), m.floats((21,))]))
    z = m.requantize(m.node("Conv", [y, m.weights((16, 21, 3, 3)), m.floats((16,))], pads=[1, 1, 1, 1]))
    m.result(m.node("Conv", [z, m.weights((16, 1, 3, 3))], group=16, pads=[1, 1, 1, 1]))
    m.result(m.node("Conv", [m.input((1, 3, 9, 8), "int8", 0.02, 5), m.weights((8, 3, 3, 3))], strides=[2, 2]))


@emulated
@pytest.mark.parametrize(
    ("name", "cores"), [("convolutions", tuple(CORES)), *((name, ("cortex-a76", "cortex-a9")) for name in MODELS)]
)
def test_integers_equal_the_reference(
    name: str, cores: Sequence[str], machine: tuple[Server, Cache], tmp_path: Path
) -> None:
    model = Qdq()
    {"convolutions": convolutions, **MODELS}[name](model)
    graph = model.graph()
    given = feeds(graph, np.random.default_rng(3))
    expected = run(explain(graph).graph, given)
    for core in cores:
        build_target(graph, resolve({"cpu": core}), tmp_path / core, *machine)
        with EmulatedLinux(tmp_path / core, threads=2) as emulator:
            found = emulator(**given)
        for output in graph.outputs:
            np.testing.assert_array_equal(found[output], expected[output], err_msg=f"{output} on {core}")


def pointwise() -> Graph:
    """A 1x1 convolution of 8-bit integers, as most of MobileNet's time goes to."""
    model = Qdq()
    x = model.input((1, 256, 14, 14), "uint8", 0.02, 120)
    model.result(model.node("Conv", [x, model.weights((64, 256, 1, 1)), model.floats((64,))]), "uint8")
    return explain(model.graph()).graph


def code_of(graph: Graph, core: str, kernel: str) -> str:
    """The assembly of the one kernel whose name starts so."""
    target = resolve({"cpu": core})
    (found,) = (k for name, k in lower(graph, target).kernels.items() if name.startswith(kernel))
    text = objects.assembly(found.tir, "kernel", target)
    return text[text.index("kernel:") : text.index(".size\tkernel")]


def innermost(code: str, instruction: str) -> str:
    """The shortest loop with at least 16 of `instruction` in it: from a label to a branch back to it."""
    labels = {match[1]: match.end() for match in re.finditer(r"^(\.LBB\w+):", code, re.MULTILINE)}
    branches = re.finditer(r"^\tb\S*\t(\.LBB\w+)$", code, re.MULTILINE)
    loops = [code[labels[branch[1]] : branch.start()] for branch in branches if labels[branch[1]] < branch.start()]
    return min((loop for loop in loops if loop.count(f"\t{instruction}") >= 16), key=len)


@pytest.mark.parametrize("core", [core for core in CORES if core != "cortex-a9"])
def test_the_inner_loop_is_built_of_the_products_of_the_core(core: str) -> None:
    """Products, loads and address arithmetic: no sum or weight leaves its register, and nothing is widened twice."""
    loop = innermost(code_of(pointwise(), core, "conv"), CORES[core])
    instructions = re.findall(r"^\t([a-z]\S*)", loop, re.MULTILINE)
    products = [each for each in instructions if each.startswith(CORES[core])]
    loads = [each for each in instructions if each.startswith("ld")]
    assert len(products) >= 40 and len(products) >= 0.6 * len(instructions)
    assert len(loads) <= 0.5 * len(products)
    assert "[sp" not in loop and not re.search(r"\tst[rp]\t", loop)


def test_armv7_multiplies_by_lanes_too() -> None:
    assert re.search(r"vmlal\.s16\tq\d+, d\d+, d\d\[\d\]", code_of(pointwise(), "cortex-a9", "conv"))


@pytest.mark.parametrize("core", ["cortex-a72", "cortex-a9"])
def test_float_products_are_by_lane(core: str) -> None:
    graph = load(model_of("g (float[1,64,14,14] x, float[64,64,1,1] w) => (float[1,64,14,14] y) { y = Conv(x, w) }"))
    product = (
        r"fmla\tv\d+\.4s, v\d+\.4s, v\d+\.s\[\d\]"
        if core == "cortex-a72"
        else r"vm(la|ul)\.f32\tq\d+, q\d+, d\d+\[\d\]"
    )
    assert len(re.findall(product, code_of(graph, core, "conv"))) >= 8


@emulated
@pytest.mark.parametrize("core", ["cortex-a53", "cortex-a7"])
@pytest.mark.parametrize("kind", ["uint8", "int16"])
def test_floats_become_integers_in_vectors(core: str, kind: str, machine: tuple[Server, Cache], tmp_path: Path) -> None:
    """Ties go to even, what is past the range to its ends, and no element costs a call."""
    constants = f"<float s = {{0.5}}, {kind} z = {{100}}>"
    text = f"g (float[4099] x) => ({kind}[4099] y) {constants} {{ y = QuantizeLinear(x, s, z) }}"
    graph, target = load(model_of(text)), resolve({"cpu": core})
    (kernel,) = lower(graph, target).kernels.values()
    assert undefined_symbols(objects.object_code(kernel.tir, "kernel", target)) == frozenset()
    build_target(graph, target, tmp_path / core, *machine)
    x = np.arange(-2049, 2050, dtype=np.float32) / 8
    x[:8] = [np.inf, -np.inf, 3e38, -3e38, 1e6, -1e6, 20000.25, -20000.25]
    with EmulatedLinux(tmp_path / core) as emulator:
        found = emulator(x)
    np.testing.assert_array_equal(found, Session(graph).run({"x": x})["y"])


@emulated
def test_a_wide_kernel_is_a_loop_at_the_edges_too(machine: tuple[Server, Cache], tmp_path: Path) -> None:
    """39 taps, written out for each tile at the edges, would be more than LLVM compiles in ten minutes."""
    shapes = {"x": (1, 8, 6, 64), "w": (8, 8, 3, 39)}
    given = ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, shape in shapes.items())
    graph = load(model_of(f"g ({given}) => (float[1,8,6,64] y) {{ y = Conv <pads = [1, 19, 1, 19]> (x, w) }}"))
    target = resolve({"cpu": "cortex-a76"})
    for kernel in lower(graph, target).kernels.values():
        assert len(objects.object_code(kernel.tir, "kernel", target)) < 8192
    build_target(graph, target, tmp_path, *machine)
    rng = np.random.default_rng(5)
    values = {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    with EmulatedLinux(tmp_path) as emulator:
        found = emulator(**values)
    np.testing.assert_allclose(found, Session(graph).run(values)["y"], rtol=1e-5, atol=1e-3)


FUNCTIONS = ("Exp", "Tanh", "Sigmoid", "Erf", "Softplus", "Log", "Gelu", "Mish")


@emulated
@pytest.mark.parametrize("core", ["cortex-a53", "cortex-a7"])
def test_functions_need_no_library_and_keep_their_bounds(
    core: str, machine: tuple[Server, Cache], tmp_path: Path
) -> None:
    """Without libm, on 4 lanes; armv7's vectors flush denormal numbers to zero, which the absolute part allows."""
    lines = "\n".join(f"y{i} = {op}(x)" for i, op in enumerate(FUNCTIONS))
    outputs = ", ".join(f"float[4099] y{i}" for i in range(len(FUNCTIONS)))
    graph = load(model_of(f"g (float[4099] x) => ({outputs}) {{ {lines} }}"))
    target = resolve({"cpu": core})
    for name, kernel in lower(graph, target).kernels.items():
        assert undefined_symbols(objects.object_code(kernel.tir, "kernel", target)) == frozenset(), name
    build_target(graph, target, tmp_path / core, *machine)
    x = np.abs(np.linspace(-30, 30, 4099, dtype=np.float32)) + np.float32(1e-3)
    x[1::2] *= np.where(np.arange(2049) % 2, -1, 1).astype(np.float32)
    with EmulatedLinux(tmp_path / core) as emulator:
        found = emulator(x)
    expected = Session(graph).run({"x": x})
    for i, op in enumerate(FUNCTIONS):
        np.testing.assert_allclose(
            found[f"y{i}"], expected[f"y{i}"], rtol=4e-6, atol=2e-6, equal_nan=True, err_msg=f"{op} on {core}"
        )


@pytest.mark.parametrize(
    ("core", "expected"),
    [
        ("cortex-a53", (1 << 1, 0)),
        ("cortex-a76", (1 << 1 | 1 << 9 | 1 << 10 | 1 << 12 | 1 << 20, 0)),
        ("neoverse-v1", (1 << 1 | 1 << 9 | 1 << 10 | 1 << 12 | 1 << 20, 1 << 13 | 1 << 14)),
        ("cortex-a9", (1 << 12, 0)),
        ("cortex-a7", (1 << 12 | 1 << 16, 0)),
    ],
)
def test_what_linux_must_say_of_the_processor(core: str, expected: tuple[int, int]) -> None:
    assert capabilities(resolve({"cpu": core})) == expected
