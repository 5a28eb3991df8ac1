"""Offsets for intervals of memory: blocks alive at the same time must not overlap, the whole should be small.

Optimal packing is NP-hard (dynamic storage allocation). First fit in several good orders, then a short deterministic
hill climb from the best of them; both stop at the largest live set, which nothing can beat.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random

CLIMB_STEPS = 1_000
CLIMB_WORK = 400_000
"""Steps of the hill climb times pairs of blocks alive at once: bounds the climb's time, not by a clock."""


@dataclass(frozen=True, slots=True)
class Interval:
    """`size` bytes that are alive from position `first` to position `last`, both included."""

    first: int
    last: int
    size: int


@dataclass(frozen=True, slots=True)
class Overlapping:
    """Interval number `below` may lie on bytes of `above`, in whose last position it begins: `least` bytes before it
    or more."""

    below: int
    above: int
    least: int


def pack(
    intervals: Sequence[Interval], alignment: int, overlapping: Sequence[Overlapping] = ()
) -> tuple[list[int], int]:
    """An offset, a multiple of `alignment`, for each interval, and the bytes that all of them span."""
    if not intervals:
        return [], 0
    reach = {(pair.below, pair.above): pair.least for pair in overlapping}
    blocks = [Interval(i.first, i.last, -(-i.size // alignment) * alignment) for i in intervals]
    neighbours = _neighbours(blocks)
    bound = max(live_bytes(blocks, overlapping))
    best: _Packing | None = None
    for order in _orders(blocks, neighbours):
        packing = _first_fit(order, blocks, neighbours, reach)
        if best is None or packing.size < best.size:
            best = packing
        if best.size == bound:
            break
    assert best is not None
    best = _climb(best, bound, blocks, neighbours, reach)
    return best.offsets, best.size


@dataclass(frozen=True, slots=True)
class _Packing:
    """Where each block lies when they are placed in `order`, and the bytes they span."""

    order: list[int]
    offsets: list[int]
    size: int


def _neighbours(blocks: Sequence[Interval]) -> list[list[int]]:
    """For each block those alive with it, found in one sweep over the positions."""
    neighbours: list[list[int]] = [[] for _ in blocks]
    alive: list[int] = []
    for index in sorted(range(len(blocks)), key=lambda i: (blocks[i].first, i)):
        alive = [other for other in alive if blocks[other].last >= blocks[index].first]
        for other in alive:
            neighbours[other].append(index)
            neighbours[index].append(other)
        alive.append(index)
    return neighbours


def live_bytes(blocks: Sequence[Interval], overlapping: Sequence[Overlapping] = ()) -> list[int]:
    """The bytes that what is alive needs, at each position from the first on."""
    lowest = min((block.first for block in blocks), default=0)
    change = [0] * (max((block.last for block in blocks), default=0) - lowest + 2)
    for block in blocks:
        change[block.first - lowest] += block.size
        change[block.last - lowest + 1] -= block.size
    alive = list(accumulate(change))
    for pair in overlapping:
        below, above = blocks[pair.below], blocks[pair.above]
        shared = below.size + above.size - max(below.size, pair.least + above.size)
        alive[below.first - lowest] -= max(0, shared)
    return alive


def _orders(blocks: Sequence[Interval], neighbours: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Orders to place blocks in: large first, long-lived and large first, most contended first, by time."""
    around = [
        block.size + sum(blocks[other].size for other in near) for block, near in zip(blocks, neighbours, strict=True)
    ]
    length = [block.last - block.first + 1 for block in blocks]
    yield sorted(range(len(blocks)), key=lambda i: (-blocks[i].size, -length[i], i))
    yield sorted(range(len(blocks)), key=lambda i: (-blocks[i].size * length[i], i))
    yield sorted(range(len(blocks)), key=lambda i: (-around[i], -blocks[i].size, i))
    yield sorted(range(len(blocks)), key=lambda i: (-length[i], -blocks[i].size, i))
    yield sorted(range(len(blocks)), key=lambda i: (blocks[i].first, -blocks[i].size, i))
    yield sorted(range(len(blocks)), key=lambda i: (-blocks[i].last, -blocks[i].size, i))


def _first_fit(
    order: list[int],
    blocks: Sequence[Interval],
    neighbours: Sequence[Sequence[int]],
    reach: Mapping[tuple[int, int], int],
) -> _Packing:
    """Each block in turn at the lowest offset that is free for as long as it lives.

    `reach` (below, above) is how many bytes the one must lie below the other, where that is not all of it.
    """
    offsets = [-1] * len(blocks)
    total = 0
    for index in order:
        size, offset = blocks[index].size, 0
        placed = [other for other in neighbours[index] if offsets[other] >= 0]
        taken = [
            (
                offsets[other] - reach.get((index, other), size),
                offsets[other] + reach.get((other, index), blocks[other].size),
            )
            for other in placed
        ]
        for start, end in sorted(taken):
            if start >= offset:
                break
            offset = max(offset, end)
        offsets[index] = offset
        total = max(total, offset + size)
    return _Packing(order, offsets, total)


def _climb(
    best: _Packing,
    bound: int,
    blocks: Sequence[Interval],
    neighbours: Sequence[Sequence[int]],
    reach: Mapping[tuple[int, int], int],
) -> _Packing:
    """Give a block an earlier turn, half of the time one that reaches the top; keep what is no worse."""
    random = Random(0)
    pairs = len(blocks) + sum(map(len, neighbours))
    for _ in range(min(CLIMB_STEPS, CLIMB_WORK // pairs)):
        if best.size == bound:
            break
        ends = [best.offsets[index] + blocks[index].size for index in best.order]
        top = [turn for turn, end in enumerate(ends) if end == best.size]
        turn = random.choice(top) if random.random() < 0.5 else random.randrange(len(ends))
        order = list(best.order)
        order.insert(random.randrange(turn + 1), order.pop(turn))
        trial = _first_fit(order, blocks, neighbours, reach)
        if trial.size <= best.size:
            best = trial
    return best
