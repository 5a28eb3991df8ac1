"""Loops over one row of a kernel that is written by hand: vectors, what is left over, and lanes combined."""

from collections.abc import Callable
from typing import Any

from tvm import tirx

from graphc.backends.statements import const, loop, sequence, spread, vector

Combine = Callable[[Any, Any], Any]


RUN = 4
"""Vectors of partial results: enough that one operation does not wait for the one before it."""


class Row:
    """Loops over one row of `length` elements, `lanes` at a time, what is left over in one shorter vector."""

    def __init__(self, length: int, lanes: int) -> None:
        self.length, self.lanes = length, lanes
        self.run = max(1, min(RUN, length // lanes))

    def each(self, body: Callable[[Any, int], Any]) -> Any:
        """body(first element, elements) for every vector."""
        whole, left = divmod(self.length, self.lanes)
        parts = [loop("k", 0, whole, lambda k: body(k * self.lanes, self.lanes))] if whole else []
        return sequence([*parts, *([body(const(whole * self.lanes), left)] if left else [])])

    def reduced(self, into: Any, first: Any, combine: Combine, term: Callable[[Any, int], Any]) -> Any:
        """into[0] = the combination of term(first element, elements) over the row; it has `run` vectors."""
        whole, left = divmod(self.length, self.lanes)

        def add(number: Any, place: int, count: int) -> Any:
            at = vector(const(place * self.lanes), count)
            return tirx.BufferStore(into, combine(into[at], term(number * self.lanes, count)), [at])

        def step(n: Any) -> Any:
            return sequence([add(n * self.run + place, place, self.lanes) for place in range(self.run)])

        parts = [loop("k", 0, whole // self.run, step)] if whole else []
        parts += [add(const(n), n % self.run, self.lanes) for n in range(whole - whole % self.run, whole)]
        parts += [add(const(whole), 0, left)] if left else []
        return sequence([self.filled(into, first, self.run), *parts, *folded(into, combine, self.lanes, self.run)])

    def filled(self, into: Any, value: Any, run: int = 1) -> Any:
        places = [vector(const(place * self.lanes), self.lanes) for place in range(run)]
        return sequence([tirx.BufferStore(into, spread(value, self.lanes), [place]) for place in places])


def folded(into: Any, combine: Combine, lanes: int, run: int = 1) -> list[Any]:
    """into[0] = the combination of `run` vectors, one with the other first, then halves."""
    pairs = [(lanes, place * lanes) for place in range(1, run)]
    pairs += [(lanes >> step, lanes >> step) for step in range(1, lanes.bit_length())]
    return [
        tirx.BufferStore(into, combine(into[vector(const(0), n)], into[vector(const(at), n)]), [vector(const(0), n)])
        for n, at in pairs
    ]
