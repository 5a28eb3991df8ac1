"""Bits or sparsity per layer: from each layer's sensitivity to candidates that together keep within a limit.

What layers lose adds up at the output, nearly: sum of noise / signal (or of divergences, or of drops of the metric),
each measured alone. So layers start at their finest candidate, and the step to a coarser one that adds the least loss
per byte saved (per MAC, for a limit on MACs) is taken next (the greedy solution of the multiple-choice knapsack
problem, P. Sinha, A. Zoltners, 1979). A limit on average bits ends the walk as soon as it holds; for the others the
walk is searched by halves, measuring.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graphc.errors import InputError
from graphc.passes.quantize_schemes import FORMATS
from graphc.sensitivity import Choice, Row, Sensitivity, Subject

Saving = Callable[[Row], int]
"""What a row saves: bytes or MACs."""
Loss = Callable[[Row], float]
"""What a row loses."""


def in_bytes(row: Row) -> int:
    return row.saved


def in_macs(row: Row) -> int:
    return row.macs


@dataclass(frozen=True)
class Walk:
    """Choices from the finest to the coarsest, one layer one step coarser each time."""

    choices: tuple[Choice, ...]

    def first(self, fits: Callable[[Choice], bool]) -> Choice | None:
        """The finest choice that fits; what fits must stay so further on."""
        return next((choice for choice in self.choices if fits(choice)), None)

    def last(self, fits: Callable[[Choice], bool]) -> Choice | None:
        """The coarsest choice that fits, found by halves: what does not fit stays so further on."""
        low, high = -1, len(self.choices) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(self.choices[middle]) else (low, middle - 1)
        return self.choices[low] if low >= 0 else None


def walk(found: Sensitivity, saving: Saving = in_bytes) -> Walk:
    """All choices worth taking, by loss added for what is saved."""
    candidates: dict[str, list[Row]] = {}
    for row in found.rows:
        candidates.setdefault(row.layer, []).append(row)
    ladders = {layer: _ladder(rows, saving, found.loss) for layer, rows in candidates.items()}
    place = dict.fromkeys(ladders, 0)
    choices = [{layer: rows[0] for layer, rows in ladders.items()}]
    while steps := [
        (_slope(ladder[place[layer]], ladder[place[layer] + 1], saving, found.loss), layer)
        for layer, ladder in ladders.items()
        if place[layer] + 1 < len(ladder)
    ]:
        _, layer = min(steps)
        place[layer] += 1
        choices.append({**choices[-1], layer: ladders[layer][place[layer]]})
    return Walk(tuple(choices))


def _ladder(rows: Sequence[Row], saving: Saving, loss: Loss) -> list[Row]:
    """The candidates of one layer that are worth taking, each smaller than the last: the lower convex hull."""
    ordered = sorted(rows, key=lambda row: (saving(row), loss(row)))
    hull: list[Row] = []
    for row in ordered:
        while hull and loss(row) <= loss(hull[-1]):
            hull.pop()
        while len(hull) > 1 and _slope(hull[-2], hull[-1], saving, loss) >= _slope(hull[-2], row, saving, loss):
            hull.pop()
        if not hull or saving(row) > saving(hull[-1]):
            hull.append(row)
    return hull


def _slope(one: Row, two: Row, saving: Saving, loss: Loss) -> float:
    return (loss(two) - loss(one)) / max(saving(two) - saving(one), 1)


def average_bits(choice: Choice) -> float:
    """Bits per weight, scales not counted."""
    bits = [(FORMATS[row.candidate].high - FORMATS[row.candidate].low).bit_length() for row in choice.values()]
    elements = [row.elements for row in choice.values()]
    return sum(b * n for b, n in zip(bits, elements, strict=True)) / sum(elements)


def within_size(subject: Subject, found: Sensitivity, limit: int) -> Choice:
    """The finest choice whose stored weights take `limit` bytes at most. Raises InputError where none does."""
    return _within(walk(found), limit, lambda choice: subject.price(choice).bytes, "bytes")


def within_macs(subject: Subject, found: Sensitivity, limit: int) -> Choice:
    """The finest choice of `limit` multiply-accumulates at most. Raises InputError where there is none."""
    return _within(walk(found, in_macs), limit, lambda choice: subject.price(choice).macs or 0, "MACs")


def _within(path: Walk, limit: int, measure: Callable[[Choice], int], unit: str) -> Choice:
    reached = Walk(path.choices[::-1]).last(lambda choice: measure(choice) <= limit)
    return _or_refuse(reached, f"{measure(path.choices[-1])} {unit}", f"{limit} {unit}")


def within_bits(found: Sensitivity, limit: float) -> Choice:
    """The finest choice of `limit` bits per weight at most. Raises InputError where there is none."""
    path = walk(found)
    least = average_bits(path.choices[-1])
    return _or_refuse(path.first(lambda choice: average_bits(choice) <= limit), f"{least:.2f} bits", f"{limit} bits")


def within_drop(subject: Subject, found: Sensitivity, limit: float) -> Choice:
    """The coarsest choice whose metric is at most `limit` worse than the model's. Raises InputError where none is."""
    metric = subject.samples.metric
    if metric is None or found.before is None:
        raise InputError("data.evaluation", "a limit on the drop needs a metric.", "Add `evaluation` under `data:`.")
    before = found.before

    def drop(choice: Choice) -> float:
        value = subject.judge({"": subject.applied(subject.measured(choice))})[""].value
        assert value is not None
        return metric.drop(before, value)

    path = walk(found)
    reached = path.last(lambda choice: drop(choice) <= limit)
    return _or_refuse(reached, f"a drop of {drop(path.choices[0]):.2f}", f"{limit}")


def within_latency(choices: Walk, limit: float, latency: Callable[[Choice], float]) -> Choice:
    """The finest choice that runs in `limit` seconds; `latency` builds and measures. Raises InputError for none."""
    reached = Walk(choices.choices[::-1]).last(lambda choice: latency(choice) <= limit)
    return _or_refuse(reached, "the coarsest candidates' latency", f"{limit * 1e3:.3g} ms")


def _or_refuse(choice: Choice | None, best: str, limit: str) -> Choice:
    if choice is None:
        raise InputError(
            "limit", f"cannot be met: {best} is the best there is, asked was {limit}.", "Give more candidates."
        )
    return choice
