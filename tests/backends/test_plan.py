"""The memory plan, proven by running programs on symbolic bytes: whatever is read must still be what was written."""

from dataclasses import replace
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphc.backends.order import low_peak_order
from graphc.backends.pack import Interval, pack
from graphc.backends.plan import MemoryPlan, Place, plan, roots
from graphc.backends.program import Buffer, Call, Kernel, Program
from graphc.errors import InternalError


def program(
    sizes: dict[str, int],
    calls: list[Call],
    *,
    inputs: tuple[str, ...] = ("x",),
    outputs: tuple[str, ...] = ("y",),
    constants: tuple[str, ...] = (),
    aliases: dict[str, str] | None = None,
) -> Program:
    """A program of byte buffers; a view that `sizes` lacks has the size of what it views."""
    kernels = {}
    for call in calls:
        constant = tuple(name not in call.writes for name in call.arguments)
        kernels[call.kernel] = Kernel(call.kernel, "", ("uint8",) * len(call.arguments), constant)
    buffers = {name: Buffer(name, "uint8", (size,), "scratch") for name, size in sizes.items()}
    data = {name: np.zeros(sizes[name], np.uint8) for name in constants}
    return Program("test", buffers, kernels, tuple(calls), inputs, outputs, data, aliases or {})


def call(name: str, reads: str, writes: str, **in_place: str) -> Call:
    written = tuple(writes.split())
    return Call(name, (*reads.split(), *written), 1, (name,), written, in_place)


def simulate(program: Program, plan: MemoryPlan, inside: bool) -> None:
    """Run the plan with one tag for all bytes of a buffer; fail where anything is read but what was written last.

    `inside`: the caller's inputs and outputs lie in the arena, where the plan allows them.
    """
    root = roots(program)
    memory = {space: {} for space in ("input", "output", "constant")}
    arena = np.full(plan.bytes, -1)
    tags = {}

    def block(place: Place, size: int) -> np.ndarray:
        offsets = {"input": plan.input_offsets, "output": plan.output_offsets} if inside else {}
        at = offsets[place.space][place.at] if place.space in offsets else place.at
        if place.space == "arena" or place.space in offsets:
            assert at % plan.alignment == 0
            assert at + size <= plan.bytes
            return arena[at : at + size]
        key = place.name if place.space == "constant" else place.at
        return memory[place.space].setdefault(key, np.full(size, -1))

    def own(name: str) -> np.ndarray:
        return block(plan.places[name], program.buffers[root[name]].bytes)

    sources = [Place("input", index, name) for index, name in enumerate(program.inputs)]
    sources += [Place("constant", 0, name) for name in program.constants]
    for tag, place in enumerate(sources):
        tags[place.name] = tag
        block(place, program.buffers[place.name].bytes)[:] = tag
    for position, call in enumerate(plan.calls, 1000):
        for name in call.arguments:
            if name not in call.writes or root[name] in tags:
                assert (own(name) == tags[root[name]]).all(), f"{call.nodes} reads spoiled '{name}'"
        for number, name in enumerate(call.writes):
            tags[root[name]] = position * 100 + number
            own(name)[:] = tags[root[name]]
    for copy in plan.copies:
        block(Place("output", copy.output, ""), copy.bytes)[:] = block(copy.source, copy.bytes)
    for index, name in enumerate(program.outputs):
        result = block(Place("output", index, ""), program.buffers[name].bytes)
        assert (result == tags[root[name]]).all(), f"output '{name}' is spoiled"


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Random programs: branches, several writers, views, workspaces, accumulation, in-place permits, odd outputs."""
    size = st.sampled_from([0, 1, 64, 64, 100, 128, 256])
    inputs = tuple(f"x{i}" for i in range(draw(st.integers(0, 2))))
    constants = tuple(f"w{i}" for i in range(draw(st.integers(0 if inputs else 1, 2))))
    sizes = {name: draw(size) for name in (*inputs, *constants)}
    aliases: dict[str, str] = {}
    readable = [*inputs, *constants]
    written: list[str] = []
    calls = []
    for index in range(draw(st.integers(0, 9))):
        reads = draw(st.lists(st.sampled_from(readable), max_size=3, unique=True))
        new = [f"t{index}_{i}" for i in range(draw(st.integers(1, 2)))]
        sizes |= {name: draw(size) for name in new}
        if draw(st.booleans()) and written:
            accumulated = draw(st.sampled_from(written))
            reads = [name for name in reads if name != accumulated]
            new_writes = [*new, accumulated]
        else:
            new_writes = new
        in_place = {}
        if reads and draw(st.booleans()):
            in_place = {new[0]: reads[0]}
            sizes[new[0]] = sizes[reads[0]]
        calls.append(Call(f"k{index}", (*reads, *new_writes), 1, (f"n{index}",), tuple(new_writes), in_place))
        kept = new if draw(st.booleans()) else new[:1]
        readable += kept
        written += kept
        if draw(st.booleans()):
            view = f"v{index}"
            aliases[view] = draw(st.sampled_from(readable))
            sizes[view] = sizes[aliases[view]]
            readable.append(view)
    outputs = tuple(draw(st.lists(st.sampled_from(readable), min_size=1, max_size=4)))
    return program(sizes, calls, inputs=inputs, outputs=outputs, constants=constants, aliases=aliases)


@settings(max_examples=200, deadline=None)
@given(programs(), st.sampled_from([1, 8, 64]), st.booleans())
def test_nothing_alive_is_overwritten(program: Program, alignment: int, io_in_arena: bool) -> None:
    result = plan(program, alignment=alignment, io_in_arena=io_in_arena)
    simulate(program, result, inside=False)
    if io_in_arena:
        simulate(program, result, inside=True)
    assert result.bytes >= result.lower_bound
    assert sorted(call.kernel for call in result.calls) == sorted(call.kernel for call in program.calls)
    assert plan(program, alignment=alignment, io_in_arena=io_in_arena) == result


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.builds(lambda a, b, s: Interval(min(a, b), max(a, b), s), *[st.integers(0, 20)] * 2, st.integers(0, 500)),
        max_size=25,
    )
)
def test_packing_keeps_live_blocks_apart(intervals: list[Interval]) -> None:
    offsets, size = pack(intervals, 16)
    conflicts = nx.Graph()
    conflicts.add_nodes_from((i, {"weight": -(-block.size // 16) * 16}) for i, block in enumerate(intervals))
    for i, one in enumerate(intervals):
        for j, other in enumerate(intervals[:i]):
            if one.first <= other.last and other.first <= one.last:
                conflicts.add_edge(i, j)
                assert offsets[i] + one.size <= offsets[j] or offsets[j] + other.size <= offsets[i]
    assert size >= (nx.max_weight_clique(conflicts)[1] if intervals else 0)
    assert size == max((o + conflicts.nodes[i]["weight"] for i, o in enumerate(offsets)), default=0)


def test_packing_reaches_the_bound_where_greedy_by_size_does_not() -> None:
    # Large first puts 4 over 3 and leaves a hole; placed by time they fit.
    blocks = [Interval(0, 1, 3), Interval(1, 2, 4), Interval(2, 3, 3), Interval(0, 0, 4), Interval(3, 3, 4)]
    assert pack(blocks, 1)[1] == 7


def peak(program: Program, order: tuple[Call, ...]) -> int:
    root = {**{name: name for name in program.buffers}, **program.aliases}
    users = {
        name: [i for i, c in enumerate(order) if name in {root[a] for a in c.arguments}] for name in program.buffers
    }
    outside = {*program.inputs, *program.outputs, *program.constants}
    alive = [
        sum(program.buffers[n].bytes for n, at in users.items() if at and n not in outside and at[0] <= i <= at[-1])
        for i in range(len(order))
    ]
    return max(alive, default=0)


@st.composite
def branching(draw: st.DrawFn) -> Program:
    """Calls that write one buffer each and read some of those before: every order is defined by the reads."""
    sizes, calls = {"x": 8}, []
    for index in range(draw(st.integers(2, 7))):
        reads = draw(st.lists(st.sampled_from(sorted(sizes)), max_size=2, unique=True))
        sizes[f"t{index}"] = draw(st.integers(1, 9))
        calls.append(call(f"k{index}", " ".join(reads), f"t{index}"))
    return program(sizes, calls, outputs=(f"t{len(calls) - 1}",))


@settings(max_examples=100, deadline=None)
@given(branching())
def test_small_programs_get_the_best_order(program: Program) -> None:
    cost = {n: 0 if n in {"x", *program.outputs} else b.bytes for n, b in program.buffers.items()}
    identity = {name: name for name in program.buffers}
    order = low_peak_order(program.calls, identity, cost, present=frozenset("x"), kept=frozenset(program.outputs))
    producer = {call.writes[0]: index for index, call in enumerate(program.calls)}
    edges = nx.DiGraph()
    edges.add_nodes_from(range(len(program.calls)))
    edges.add_edges_from(
        (producer[n], i) for i, c in enumerate(program.calls) for n in c.arguments[:-1] if n in producer
    )
    best = min(peak(program, tuple(program.calls[i] for i in ids)) for ids in nx.all_topological_sorts(edges))
    assert peak(program, order) == best


def test_a_branch_runs_to_its_end_before_the_next() -> None:
    sizes = {"x": 8, "a": 100, "b": 100, "c": 100, "a1": 1, "b1": 1, "c1": 1, "y": 3}
    wide = [call(f"grow_{n}", "x", n) for n in "abc"]
    narrow = [call(f"shrink_{n}", n, f"{n}1") for n in "abc"]
    result = plan(program(sizes, [*wide, *narrow, call("join", "a1 b1 c1", "y")]), alignment=1)
    assert result.bytes == result.lower_bound == 103
    names = [c.kernel for c in result.calls]
    assert all(names.index(f"grow_{n}") < names.index(f"shrink_{n}") for n in "abc")


def test_the_order_stays_where_nothing_is_gained() -> None:
    chain = ["x", "a", "b", "c", "y"]
    calls = [call(f"k{i}", old, new) for i, (old, new) in enumerate(pairwise(chain))]
    original = program(dict.fromkeys(chain, 64), calls)
    assert plan(original).calls == original.calls


def test_a_chain_in_place_takes_one_buffer() -> None:
    chain = ["x", "a", "b", "c", "y"]
    calls = [call("k0", "x", "a"), call("k1", "a", "b", b="a"), call("k2", "b", "c", c="b"), call("k3", "c", "y")]
    assert plan(program(dict.fromkeys(chain, 64), calls)).bytes == 64


def test_in_place_up_to_an_output_needs_no_arena() -> None:
    calls = [call("k0", "x", "a"), call("k1", "a", "y", y="a")]
    result = plan(program(dict.fromkeys("xay", 64), calls))
    assert result.bytes == 0
    assert result.places["a"] == result.places["y"] == Place("output", 0, "y")


@pytest.mark.parametrize("inside", [False, True])
def test_the_callers_input_is_kept_unless_it_lies_in_the_arena(inside: bool) -> None:
    calls = [call("k0", "x", "a", a="x"), call("k1", "a", "y")]
    result = plan(program(dict.fromkeys("xay", 64), calls), io_in_arena=inside)
    assert result.bytes == (128 if inside else 64)
    assert result.places["x"] == Place("input", 0, "x")


def test_in_place_is_refused_while_the_source_is_needed() -> None:
    calls = [call("k0", "x", "a"), call("k1", "a", "b", b="a"), call("k2", "a b", "y")]
    result = plan(program(dict.fromkeys("xaby", 64), calls))
    assert result.bytes == 128


def test_one_buffer_is_taken_over_once() -> None:
    calls = [call("k0", "x", "a"), call("k1", "a", "b c", b="a", c="a"), call("k2", "b c", "y")]
    split = program(dict.fromkeys("xabcy", 64), calls)
    result = plan(split)
    assert result.bytes == 128
    simulate(split, result, inside=False)


def test_outputs_that_are_views_are_copied() -> None:
    calls = [call("k0", "x", "y")]
    aliases = {"same": "y", "passed": "x", "weights": "w"}
    sizes = dict.fromkeys(["x", "y", "w", *aliases], 64)
    outputs = ("y", "same", "passed", "weights", "x")
    result = plan(program(sizes, calls, outputs=outputs, constants=("w",), aliases=aliases))
    assert [(copy.source.space, copy.source.name, copy.output) for copy in result.copies] == [
        ("output", "y", 1),
        ("input", "x", 2),
        ("constant", "w", 3),
        ("input", "x", 4),
    ]


def test_the_peak_names_its_call() -> None:
    calls = [call("k0", "x", "a"), call("k1", "a", "b"), call("k2", "b", "y")]
    result = plan(program({"x": 1, "a": 100, "b": 200, "y": 1}, calls), alignment=64)
    assert (result.lower_bound, result.bytes) == (300, 128 + 256)
    assert result.calls[result.peak].nodes == ("k1",)


GOOD = program({"x": 8, "y": 8}, [call("k", "x", "y")])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (replace(GOOD, aliases={"y": "z", "z": "y"}), "is a view of itself"),
        (replace(GOOD, aliases={"z": "nowhere"}), "which is no buffer"),
        (replace(GOOD, calls=()), "is an output that no call writes"),
        (replace(GOOD, outputs=()), "has no output"),
        (replace(GOOD, kernels={}), "calls a kernel that the program lacks"),
        (replace(GOOD, kernels={"k": Kernel("k", "", ("uint8",) * 2, (True, True))}), "which its kernel only reads"),
        (program({"x": 8, "y": 8}, [call("k", "y", "x")]), "which is an input or constant"),
        (replace(GOOD, inputs=()), "before anything is written there"),
        (replace(GOOD, calls=(Call("k", ("x", "y"), -1, ("k",), ("y",)),)), "has -1 tasks"),
        (replace(GOOD, calls=(Call("k", ("x", "q"), 1, ("k",), ("q",)),)), "names 'q', which is no buffer"),
    ],
)
def test_a_program_that_contradicts_itself_is_refused(broken: Program, message: str) -> None:
    with pytest.raises(InternalError, match=message):
        plan(broken)
