"""Results that are written over operands: the same bits in a smaller arena, where the order of accesses allows it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import s_tir, tirx

from graphc.artifact import read
from graphc.backends import objects, targets
from graphc.backends.build import build_target, integerized
from graphc.backends.cache import Cache
from graphc.backends.integer import explain
from graphc.backends.lower import lower
from graphc.backends.overlap import distance
from graphc.backends.plan import plan
from graphc.backends.program import Program
from graphc.backends.reference import run
from graphc.backends.worker import Server
from graphc.emulated_board import EmulatedBoard
from graphc.ir import Graph
from tests.backends.qdq import Qdq, feeds
from tests.backends.test_cortex_m_integers import machine as machine  # noqa: PLC0414 (a fixture)

M4 = {"cpu": "cortex-m4"}


def stack() -> Graph:
    """A window that strides, one channel of a window at a time, and products with more and with fewer channels."""
    m = Qdq()
    x = m.node("Conv", [m.input((1, 3, 24, 24)), m.weights((8, 3, 3, 3)), m.floats((8,))], pads=[1, 1, 1, 1])
    x = m.node("Conv", [m.requantize(x), m.weights((8, 1, 3, 3))], group=8, pads=[1, 1, 1, 1])
    x = m.node("Conv", [m.requantize(x), m.weights((16, 8, 1, 1)), m.floats((16,))])
    x = m.node("Conv", [m.requantize(x), m.weights((16, 1, 3, 3))], group=16, pads=[1, 1, 1, 1], strides=[2, 2])
    m.result(m.node("Conv", [m.requantize(x), m.weights((12, 16, 1, 1)), m.floats((12,))]))
    return m.graph()


def nest(loops: dict[str, int], index: Any, *, shape: tuple[int, int] = (64, 64), kind: Any = None) -> Any:
    """y[write] = x[read] in loops; `index` gives (write, read) for their variables."""
    x, y = (tirx.decl_buffer((size,), "int8", name) for size, name in zip(shape, "xy", strict=True))
    variables = [tirx.Var(name, "int32") for name in loops]
    write, read = index(*variables)
    body: Any = tirx.BufferStore(y, x[read], [write])
    for variable, extent in reversed(list(zip(variables, loops.values(), strict=True))):
        body = tirx.For(variable, 0, extent, kind or tirx.ForKind.SERIAL, body)
    root = s_tir.SBlockRealize([], tirx.const(True, "bool"), s_tir.SBlock([], [], [], "root", body))
    return tirx.PrimFunc([x, y], root)


def least(function: Any, alignment: int = 1) -> tuple[int, int] | None:
    found = distance(function, 1, 0, alignment)
    return (found.least, found.step) if found else None


def test_distances_follow_from_the_order_of_accesses() -> None:
    assert least(nest({"i": 64}, lambda i: (i, i))) == (0, 1)
    assert least(nest({"i": 60}, lambda i: (i, i + 4))) == (0, 1)
    assert least(nest({"i": 60}, lambda i: (i + 4, i))) == (4, 1)
    assert least(nest({"i": 32}, lambda i: (i * 2, i), shape=(32, 64))) == (30, 1)  # odd bytes are never written
    assert least(nest({"i": 62, "k": 3}, lambda i, k: (i + 2, i + k))) == (2, 1)
    assert least(nest({"c": 4, "i": 16}, lambda c, i: (i * 4 + c, i * 4 + c))) == (0, 4)
    assert least(nest({"i": 64}, lambda i: (i, i), kind=tirx.ForKind.VECTORIZED)) is None


def test_other_orders_are_refused() -> None:
    assert least(nest({"i": 64}, lambda i: (i, 63 - i)), alignment=2) is None
    assert least(nest({"k": 2, "i": 64}, lambda _, i: (i, i))) is None  # twice: the second time it is gone
    assert least(nest({"i": 64}, lambda i: (i, i & 7))) is None  # an index that is not looked into


def planned(graph: Graph, target: dict[str, str]) -> tuple[Program, Any, Any]:
    found = targets.resolve(target)
    program = lower(integerized(graph), found)
    options: dict[str, Any] = {"alignment": found.alignment, "io_in_arena": True}
    return program, plan(program, **options), plan(program, **options, overlap=True)


def test_the_peak_is_lower_where_one_thread_runs() -> None:
    _, before, after = planned(stack(), M4)
    assert after.bytes < 0.75 * before.bytes and after.lower_bound < before.lower_bound
    assert after.lower_bound <= after.bytes
    assert any(one.kernel != other.kernel for one, other in zip(before.calls, after.calls, strict=True))
    hosted, *plans = planned(stack(), {"cpu": "cortex-a53"})
    assert all(call.overlap is None for call in hosted.calls) and plans[0] == plans[1]


def test_every_call_keeps_its_distance() -> None:
    program, _, after = planned(stack(), M4)
    shared = 0
    for call, original in zip(after.calls, program.calls, strict=True):
        inside = [(after.places[name].at, program.buffers[name].bytes, name) for name in call.arguments]
        inside = [each for each in inside if each[2] not in program.constants]
        for at, size, name in inside:
            for other_at, other_size, other in inside:
                if name == other or at + size <= other_at or other_at + other_size <= at:
                    continue
                overlap = original.overlap
                assert overlap is not None and {name, other} == {overlap.target, overlap.source}
                apart = after.places[overlap.source].at - after.places[overlap.target].at
                assert apart >= overlap.least and apart % overlap.step == 0
                assert call.kernel == overlap.kernel.symbol
                shared += 1
    assert shared


@pytest.mark.parametrize("target", [M4, {"cpu": "cortex-m4", "emit": "c"}, {"cpu": "cortex-m55"}])
def test_every_bit_is_the_reference_s(
    target: dict[str, str],
    machine: tuple[Server, Cache],
    tmp_path: Path,
) -> None:
    graph = stack()
    given = feeds(graph, np.random.default_rng(3))
    expected = run(explain(graph).graph, given)
    build_target(graph, targets.resolve(target), tmp_path, *machine)
    _, before, _ = planned(graph, target)
    arena = read(tmp_path).arena
    assert arena.bytes - arena.state < before.bytes
    with EmulatedBoard(tmp_path) as board:
        found = board(**given)
    np.testing.assert_array_equal(found, expected[graph.outputs[0]])


def test_llvm_takes_the_pointers_to_overlap() -> None:
    target = targets.resolve(M4)
    plain = nest({"i": 60, "k": 2}, lambda i, k: (i + k, 0)).with_attr("tirx.noalias", False)
    overlapping = plain.with_attr(objects.OVERLAPPING, True)
    loads = [objects.assembly(objects.tir_json(each), "kernel", target).count("\tldr") for each in (plain, overlapping)]
    assert loads[0] < loads[1]
