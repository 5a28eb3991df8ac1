"""Static memory plan: where every buffer of a Program lives, in which order its calls run, and how good that is.

    Program -> order of calls (low peak) -> liveness -> buffers that share memory (views, in place) -> offsets

Inputs, outputs and constants live outside the arena (the caller's pointers, the weights) unless `io_in_arena` asks
otherwise: a microcontroller has one memory, and an input that is dead makes room there.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from math import lcm
from typing import Literal

from graphc.backends.order import low_peak_order
from graphc.backends.pack import Interval, Overlapping, live_bytes, pack
from graphc.backends.program import ALIGNMENT, Call, Overlap, Program
from graphc.errors import InternalError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a buffer is: `at` bytes into the arena, at the caller's pointer to input or output number `at`, or at the
    constant `name`; `offset` bytes behind that where it is a part. `name` is the buffer that owns the bytes."""

    space: Literal["arena", "input", "output", "constant"]
    at: int
    name: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Copy:
    """Output number `output` has the bytes of an input, a constant or another output: they are copied at the end."""

    source: Place
    output: int
    bytes: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The calls in the order they run, then the copies; a place for every buffer and view that one of them names.

    `bytes` is the arena without the runtime's own state. `lower_bound` is the largest set of bytes alive at once in
    this order, without alignment, bytes that a call's result and operand share counted once: no plan for the order and
    these overlaps is smaller. `peak` is the call where that happens (-1: none).
    `input_offsets` and `output_offsets` say where in the arena the caller may put them, None: nowhere.
    """

    calls: tuple[Call, ...]
    copies: tuple[Copy, ...]
    places: Mapping[str, Place]
    bytes: int
    lower_bound: int
    peak: int
    alignment: int
    input_offsets: tuple[int | None, ...]
    output_offsets: tuple[int | None, ...]


def plan(
    program: Program, *, alignment: int = ALIGNMENT, io_in_arena: bool = False, overlap: bool = False
) -> MemoryPlan:
    """The smallest arena found for a program. Deterministic.

    Another order of the calls is taken only where its arena is smaller. With `io_in_arena` inputs and outputs get an
    offset as well, and an input's bytes are reused after its last reader (so the caller's input is spoiled). With
    `overlap` the calls at the peak write over what they read, by kernels that only `overlapped(program, plan)` has: for
    one thread, and with `io_in_arena`.
    Raises InternalError for a program that contradicts itself (a bug in lowering).
    """
    check(program)
    original = _Layout(program, program.calls, alignment, io_in_arena)
    best = original.plan()
    kept = {root for root, (_, last) in original.spans.items() if last == original.end}
    calls = low_peak_order(program.calls, original.roots, original.costs(), present=original.present, kept=kept)
    if calls != program.calls and (other := _Layout(program, calls, alignment, io_in_arena).plan()).bytes < best.bytes:
        best = other
    return _with_overlaps(program, best, alignment) if overlap and io_in_arena else best


def _with_overlaps(program: Program, best: MemoryPlan, alignment: int) -> MemoryPlan:
    """The plan after overlapping what makes its peak, again and again, as long as that leads to a smaller arena."""
    found, chosen = best, frozenset[int]()
    while found.peak >= 0 and found.peak not in chosen:
        chosen |= {found.peak}
        layout = _Layout(program, best.calls, alignment, True, chosen)
        if chosen - layout.overlaps.keys():
            break
        found = layout.plan()
        best = found if found.bytes < best.bytes else best
    return best


def overlapped(program: Program, memory: MemoryPlan) -> Program:
    """The program with the plan's calls, and those kernels alone that they name, the overlapping ones among them."""
    ours = {call.overlap.kernel.symbol: call.overlap.kernel for call in program.calls if call.overlap}
    used = {call.kernel for call in (*program.setup, *memory.calls)}
    kernels = {name: each for name, each in {**program.kernels, **ours}.items() if name in used}
    return replace(program, calls=memory.calls, kernels=kernels)


def roots(program: Program) -> Mapping[str, str]:
    """Every buffer and view -> the buffer that owns its bytes. Raises InternalError for views in a circle."""
    found = {}
    for name in {**program.buffers, **program.aliases}:
        root, seen = name, {name}
        while (above := _above(program, root)) is not None:
            root = above
            if root in seen:
                raise InternalError(f"program '{program.name}'", f"'{name}' is a view of itself.")
            seen.add(root)
        found[name] = root
    return found


def _above(program: Program, name: str) -> str | None:
    """The buffer that a view or a part lies in."""
    return program.aliases.get(name) or program.parts.get(name, (None, 0))[0]


def offset_of(program: Program, name: str) -> int:
    """Bytes from the start of the buffer that owns its memory to a buffer, view or part."""
    found, at = 0, name
    while (above := _above(program, at)) is not None:
        found += program.parts[at][1] if at not in program.aliases else 0
        at = above
    return found


def check(program: Program) -> None:
    """Raise InternalError where a program contradicts itself."""
    for name, problem in _problems(program):
        raise InternalError(f"program '{program.name}'", f"'{name}' {problem}.")


def _problems(program: Program) -> Iterator[tuple[str, str]]:
    root = roots(program)
    yield from _view_problems(program, root)
    for name in program.constants:
        if name not in program.buffers:
            yield name, "is a constant without a buffer"
        elif program.constants[name].nbytes != program.buffers[name].bytes:
            yield name, f"has {program.constants[name].nbytes} bytes, its buffer {program.buffers[name].bytes}"
    for name in (*program.inputs, *program.outputs):
        if name not in program.buffers:
            yield name, "is an input or output without a buffer"
    if not program.outputs:
        yield program.name, "has no output"
    filled = {*program.inputs, *program.constants}
    for call in (*program.setup, *program.calls):
        yield from _call_problems(program, call, root, filled)
        filled.update(root[name] for name in call.writes if name in root)
    for name in program.outputs:
        if root[name] not in filled:
            yield name, "is an output that no call writes"


def _view_problems(program: Program, root: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    sizes = {name: buffer.bytes for name, buffer in program.buffers.items()}
    for name, owner in root.items():
        if owner not in sizes:
            yield name, f"is a view of '{owner}', which is no buffer"
        elif name not in program.parts and name in sizes and sizes[name] != sizes[program.aliases.get(name, name)]:
            yield name, f"is a view of '{program.aliases[name]}' with another number of bytes"
    for name, (whole, offset) in program.parts.items():
        if not 0 <= offset <= sizes[whole] - sizes[name]:
            yield name, f"is no part of '{whole}'"


def _call_problems(
    program: Program, call: Call, root: Mapping[str, str], filled: set[str]
) -> Iterator[tuple[str, str]]:
    kernel = program.kernels.get(call.kernel)
    label = f"{call.kernel}({', '.join(call.nodes)})"
    if kernel is None:
        yield label, "calls a kernel that the program lacks"
    elif not len(call.arguments) == len(kernel.dtypes) == len(kernel.constant):
        yield label, f"has {len(call.arguments)} arguments, its kernel {len(kernel.dtypes)}"
    else:
        read_only = {name for name, constant in zip(call.arguments, kernel.constant, strict=True) if constant}
        if wrong := read_only.intersection(call.writes):
            yield label, f"writes {sorted(wrong)}, which its kernel only reads"
    if call.tasks < 0:
        yield label, f"has {call.tasks} tasks"
    for name in (*call.arguments, *call.writes, *call.in_place, *call.in_place.values()):
        if name not in root:
            yield label, f"names '{name}', which is no buffer"
            return
    if not {*call.writes, *call.in_place, *call.in_place.values()} <= {*call.arguments}:
        yield label, "writes or shares what is no argument"
    written = {root[name] for name in call.writes}
    if wrong := written.intersection((*program.inputs, *program.constants)):
        yield label, f"writes {sorted(wrong)}, which is an input or constant"
    if missing := {root[name] for name in call.arguments} - written - filled:
        yield label, f"reads {sorted(missing)} before anything is written there"


class _Layout:
    """Liveness and sharing for one order of the calls. Positions count calls; the caller writes inputs at -1."""

    def __init__(
        self,
        program: Program,
        calls: tuple[Call, ...],
        alignment: int,
        io_in_arena: bool,
        chosen: Set[int] = frozenset(),
    ) -> None:
        self.program, self.calls, self.alignment, self.io_in_arena = program, calls, alignment, io_in_arena
        self.end = len(calls)
        self.roots = roots(program)
        self.inputs = {name: index for index, name in enumerate(program.inputs)}
        self.lasting = {self.roots[name] for call in program.setup for name in call.writes}
        self.present = {**self.inputs, **dict.fromkeys(sorted(self.lasting))}.keys()
        self.outputs: dict[str, int] = {}
        """Root -> the number of the output whose memory it is."""
        self.copied: dict[int, str] = {}
        """Number of an output that needs a copy -> the root it is copied from."""
        for index, name in enumerate(program.outputs):
            root = self.roots[name]
            if root in self.inputs or root in program.constants or root in self.outputs:
                self.copied[index] = root
            else:
                self.outputs[root] = index
        self.spans = self._spans()
        self.owner = self._share()
        possible = {at: call.overlap for at, call in enumerate(calls) if call.overlap and at in chosen}
        self.overlaps = {at: each for at, each in possible.items() if self._may_overlap(each, at)}
        """Position -> what overlaps there."""

    def _spans(self) -> dict[str, tuple[int, int]]:
        """Root -> first and last position at which its bytes matter, for all but constants.

        What the setup writes is there before the first call; if one reads it, all runs do.
        """
        spans = dict.fromkeys(self.present, (-1, -1))
        for position, call in enumerate(self.calls):
            for name in call.arguments:
                root = self.roots[name]
                spans[root] = (spans.get(root, (position, position))[0], self.end if root in self.lasting else position)
        for root in (*self.outputs, *self.copied.values()):
            if root in spans:
                spans[root] = (spans[root][0], self.end)
        return {root: span for root, span in spans.items() if root not in self.program.constants}

    def _share(self) -> dict[str, str]:
        """Root -> the first of those whose memory it takes over; it is born in the call where that one dies."""
        owner = {root: root for root in self.spans}
        for position, call in enumerate(self.calls):
            taken = set()
            for written, read in call.in_place.items():
                if written in self.program.parts or read in self.program.parts:
                    continue
                new, old = self.roots[written], self.roots[read]
                written_too = old in {self.roots[name] for name in call.writes}
                if old not in taken and not written_too and self._may_take_over(new, old, position):
                    taken.add(old)
                    owner[new] = owner[old]
        return owner

    def _may_take_over(self, new: str, old: str, position: int) -> bool:
        if old not in self.spans or (old in self.inputs and not self.io_in_arena):
            return False
        starts, dies = self.spans[new][0] == position, self.spans[old][1] == position
        return new != old and starts and dies and self._size(new) == self._size(old)

    def _may_overlap(self, overlap: Overlap, position: int) -> bool:
        """Whether both are whole buffers, of which one is born and the other dies there; no third may share them."""
        new, old = self.roots[overlap.target], self.roots[overlap.source]
        used = [self.roots[name] for name in self.calls[position].arguments]
        whole = all(
            self._size(self.roots[name]) == self.program.buffers[name].bytes
            for name in (overlap.target, overlap.source)
        )
        if not whole or old not in self.owner or used.count(old) != 1 or used.count(new) != 1:
            return False
        return self.owner[new] == new and self.spans[new][0] == position == self.spans[old][1]

    def _size(self, root: str) -> int:
        return self.program.buffers[root].bytes

    def costs(self) -> dict[str, int]:
        """Root -> the bytes it takes in the arena, 0 for what lives outside."""
        outside = {} if self.io_in_arena else {**self.inputs, **self.outputs}
        return {root: 0 if root in outside else self._size(root) for root in self.spans}

    def plan(self) -> MemoryPlan:
        groups: dict[str, list[str]] = {}
        for root, first in self.owner.items():
            groups.setdefault(first, []).append(root)
        lent = {} if self.io_in_arena else {first: at for first, group in groups.items() for at in self._caller(group)}
        inside = [first for first in groups if first not in lent]
        intervals = [self._interval(groups[first]) for first in inside]
        if self.io_in_arena:
            intervals += [Interval(self.end, self.end, self._size(root)) for root in self.copied.values()]
        pairs = [
            Overlapping(
                inside.index(self.roots[each.target]), inside.index(self.owner[self.roots[each.source]]), each.least
            )
            for each in self.overlaps.values()
        ]
        offsets, size = pack(intervals, lcm(self.alignment, *(each.step for each in self.overlaps.values())), pairs)
        offset = dict(zip(inside, offsets, strict=False))
        where = lent | {first: Place("arena", at, first) for first, at in offset.items()}
        copies = tuple(Copy(self._place(root, where), index, self._size(root)) for index, root in self.copied.items())
        bound, peak = _peak(intervals, pairs, self.end)
        outputs: list[int | None] = [None] * len(self.program.outputs)
        inputs: list[int | None] = [None] * len(self.program.inputs)
        if self.io_in_arena:
            inputs = [offset[self.owner[name]] for name in self.program.inputs]
            found = {index: offset[self.owner[root]] for root, index in self.outputs.items()}
            found |= dict(zip(self.copied, offsets[len(inside) :], strict=True))
            outputs = [found[index] for index in range(len(outputs))]
        places = {
            name: replace(self._place(root, where), offset=offset_of(self.program, name))
            for name, root in self.roots.items()
            if self._is_placed(root)
        }
        calls = tuple(
            replace(call, kernel=self.overlaps[at].kernel.symbol) if at in self.overlaps else call
            for at, call in enumerate(self.calls)
        )
        return MemoryPlan(calls, copies, places, size, bound, peak, self.alignment, tuple(inputs), tuple(outputs))

    def _caller(self, group: list[str]) -> list[Place]:
        """The input or output whose memory a group shares, if any: an output's comes last in the group."""
        inputs = [Place("input", self.inputs[root], root) for root in group if root in self.inputs]
        return inputs + [Place("output", self.outputs[root], root) for root in group if root in self.outputs]

    def _is_placed(self, root: str) -> bool:
        return root in self.owner or root in self.program.constants

    def _place(self, root: str, where: Mapping[str, Place]) -> Place:
        """The caller's pointers are used wherever they may point; what shares memory with them may lie in the arena."""
        if root in self.program.constants:
            return Place("constant", 0, root)
        return next(iter(self._caller([root])), where[self.owner[root]])

    def _interval(self, group: list[str]) -> Interval:
        spans = [self.spans[root] for root in group]
        return Interval(min(first for first, _ in spans), max(last for _, last in spans), self._size(group[0]))


def _peak(intervals: Sequence[Interval], overlapping: Sequence[Overlapping], end: int) -> tuple[int, int]:
    """The largest number of bytes alive at once, and the first call where that is so."""
    alive = live_bytes(intervals, overlapping)
    most = max(alive)
    first = min((interval.first for interval in intervals), default=0)
    return most, min(max(alive.index(most) + first, 0), end - 1) if most else -1
