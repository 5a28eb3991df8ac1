"""An order of the calls in which few bytes are alive at once.

A beam search over sets of calls that have run. The bytes alive depend on the set alone, not on the order that led to
it, so of two ways to the same set the one with the lower peak stays (Ahn et al., "Ordering Chaos: Memory-Aware
Scheduling of Irregularly Wired Neural Networks for Edge Devices", MLSys 2020, does this exactly; the beam bounds it).
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from graphc.backends.program import Call

BEAM_WORK = 50_000
"""States kept, over all steps: bounds the search's time, not by a clock."""


def low_peak_order(
    calls: tuple[Call, ...],
    roots: Mapping[str, str],
    bytes_of: Mapping[str, int],
    *,
    present: Set[str],
    kept: Set[str],
) -> tuple[Call, ...]:
    """The calls in an order with a lower peak, or the same tuple where none was found.

    `roots` maps arguments to the buffers that own their bytes; `bytes_of` holds the bytes a root takes in the arena (0
    or absent: it lives elsewhere); roots in `present` are alive from the start, those in `kept` to the end.
    """
    if not calls:
        return calls
    tasks = _tasks(calls, roots, bytes_of, present, kept)
    start = _State(1, sum(bytes_of.get(root, 0) for root in present), 0, _ready(tasks))
    original = start
    for index in range(1, len(tasks)):
        original = _step(original, index, tasks, bytes_of)
    if original.peak <= max(task.working_set for task in tasks):
        return calls
    order = _search(start, tasks, bytes_of, original.peak)
    return tuple(calls[index - 1] for index in order) if order else calls


@dataclass(slots=True)
class _Task:
    """A call as seen by the search: number 1 is the first call, sets of calls are bit masks.

    Bit 0 stands for the time before the first call, and the bit after the last call for the time after it.
    """

    before: int
    """Calls that must have run."""
    after: list[int]
    """Calls that wait for this one."""
    touched: list[tuple[str, int]]
    """Its roots that cost bytes, each with all calls that touch it."""
    takes_over: list[tuple[str, str]]
    """Pairs (written, read) of roots that may share memory."""
    working_set: int
    """Bytes that this call alone needs: no order has a lower peak."""


def _tasks(
    calls: Sequence[Call],
    roots: Mapping[str, str],
    bytes_of: Mapping[str, int],
    present: Set[str],
    kept: Set[str],
) -> list[_Task]:
    touching = dict.fromkeys(present, 1)
    for index, call in enumerate(calls, 1):
        for root in {roots[name] for name in call.arguments}:
            touching[root] = touching.get(root, 0) | 1 << index
    for root in kept:
        touching[root] = touching.get(root, 0) | 1 << len(calls) + 1
    tasks = [_Task(0, [], [], [], 0)]
    for call, before in zip(calls, _dependencies(calls, roots), strict=True):
        own = sorted({roots[name] for name in call.arguments if bytes_of.get(roots[name], 0)})
        pairs = {roots[old]: roots[new] for new, old in reversed(tuple(call.in_place.items()))}
        shared = [(new, old) for old, new in pairs.items() if new in own and old in own]
        shared = [(new, old) for new, old in shared if bytes_of[new] == bytes_of[old] and new != old]
        working_set = sum(bytes_of[root] for root in own) - sum(bytes_of[new] for new, _ in shared)
        tasks.append(_Task(before, [], [(root, touching[root]) for root in own], shared, working_set))
    for index, task in enumerate(tasks):
        for other in _bits(task.before):
            tasks[other].after.append(index)
    return tasks


def _dependencies(calls: Sequence[Call], roots: Mapping[str, str]) -> list[int]:
    """For each call the calls that must run before it: writers of what it reads, users of what it writes."""
    writers: dict[str, int] = {}
    users: dict[str, int] = {}
    before = []
    for index, call in enumerate(calls, 1):
        touched, written = {roots[name] for name in call.arguments}, {roots[name] for name in call.writes}
        mask = 0
        for root in touched:
            mask |= (users if root in written else writers).get(root, 0)
        before.append(mask)
        for root in touched:
            users[root] = users.get(root, 0) | 1 << index
        for root in written:
            writers[root] = writers.get(root, 0) | 1 << index
    return before


def _bits(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def _ready(tasks: Sequence[_Task]) -> tuple[int, ...]:
    return tuple(index for index, task in enumerate(tasks) if index and not task.before)


@dataclass(frozen=True, slots=True)
class _State:
    """Calls that have run, bytes alive now, most bytes alive so far, calls that may run next, and how it came here."""

    done: int
    alive: int
    peak: int
    ready: tuple[int, ...]
    last: int = 0
    previous: "_State | None" = None

    def order(self) -> list[int]:
        found: list[int] = []
        state = self
        while state.previous is not None:
            found.append(state.last)
            state = state.previous
        return found[::-1]


def _step(state: _State, index: int, tasks: Sequence[_Task], bytes_of: Mapping[str, int]) -> _State:
    task, done = tasks[index], state.done | 1 << index
    born = {root for root, users in task.touched if not users & state.done}
    dead = {root for root, users in task.touched if not users & ~done}
    shared = sum(bytes_of[new] for new, old in task.takes_over if new in born and old in dead - born)
    during = state.alive + sum(bytes_of[root] for root in born) - shared
    alive = during + shared - sum(bytes_of[root] for root in dead)
    freed = tuple(other for other in task.after if not tasks[other].before & ~done)
    ready = tuple(other for other in state.ready if other != index) + freed
    return _State(done, alive, max(state.peak, during), ready, index, state)


def _search(start: _State, tasks: Sequence[_Task], bytes_of: Mapping[str, int], limit: int) -> list[int]:
    """An order whose peak is below `limit`, the lowest found; empty where none was."""
    width = max(4, min(256, BEAM_WORK // len(tasks)))
    states = [start]
    for _ in range(len(tasks) - 1):
        reached: dict[int, _State] = {}
        for state in states:
            for following in _followers(state, tasks, bytes_of):
                known = reached.get(following.done)
                if following.peak < limit and (known is None or following.peak < known.peak):
                    reached[following.done] = following
        states = sorted(reached.values(), key=lambda state: (state.peak, state.alive, state.last))[:width]
    return states[0].order() if states else []


def _followers(state: _State, tasks: Sequence[_Task], bytes_of: Mapping[str, int]) -> list[_State]:
    """What may come next; a call that raises no peak and leaves no more bytes alive is as good as any."""
    found = []
    for index in sorted(state.ready):
        following = _step(state, index, tasks, bytes_of)
        if following.peak <= state.peak and following.alive <= state.alive:
            return [following]
        found.append(following)
    return found
