"""Bits per layer: from each layer's sensitivity to formats that together keep within a limit.

The noise of layers adds up at the output, nearly: sum of noise / signal, each measured alone. So layers start at their
finest candidate, and the step to a coarser one that adds the least noise per byte saved is taken next (the greedy
solution of the multiple-choice knapsack problem, P. Sinha, A. Zoltners, 1979). A limit on size or average bits ends the
walk as soon as it holds; for a limit on the metric's drop, or on latency, the walk is searched by halves, measuring.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphc.errors import InputError
from graphc.ir.cost import cost
from graphc.passes.quantize import Quantize
from graphc.passes.quantize_schemes import FORMATS
from graphc.sensitivity import Row, Sensitivity, Subject, literal

Choice = Mapping[str, Row]
"""Layer -> the row of the format it gets."""


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


def walk(found: Sensitivity) -> Walk:
    """All choices worth taking, by noise added per byte saved."""
    candidates: dict[str, list[Row]] = {}
    for row in found.rows:
        candidates.setdefault(row.layer, []).append(row)
    ladders = {layer: _ladder(rows) for layer, rows in candidates.items()}
    place = dict.fromkeys(ladders, 0)
    choices = [{layer: rows[0] for layer, rows in ladders.items()}]
    while steps := [
        (_price(ladders[layer], place[layer]), layer) for layer in ladders if place[layer] + 1 < len(ladders[layer])
    ]:
        _, layer = min(steps)
        place[layer] += 1
        choices.append({**choices[-1], layer: ladders[layer][place[layer]]})
    return Walk(tuple(choices))


def _ladder(rows: Sequence[Row]) -> list[Row]:
    """The candidates of one layer that are worth taking, each smaller than the last: the lower convex hull."""
    ordered = sorted(rows, key=lambda row: (row.saved, row.noise))
    hull: list[Row] = []
    for row in ordered:
        while hull and row.noise <= hull[-1].noise:
            hull.pop()
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], row):
            hull.pop()
        if not hull or row.saved > hull[-1].saved:
            hull.append(row)
    return hull


def _price(ladder: Sequence[Row], place: int) -> float:
    return _slope(ladder[place], ladder[place + 1])


def _slope(one: Row, two: Row) -> float:
    return (two.noise - one.noise) / max(two.saved - one.saved, 1)


def average_bits(choice: Choice) -> float:
    """Bits per weight, scales not counted."""
    bits = [(FORMATS[row.weights].high - FORMATS[row.weights].low).bit_length() for row in choice.values()]
    elements = [row.elements for row in choice.values()]
    return sum(b * n for b, n in zip(bits, elements, strict=True)) / sum(elements)


def step_of(subject: Subject, choice: Choice) -> Quantize:
    """The spec's `quantize` step with a rule for each layer that gets another format than the step would give it."""
    rules: list[Any] = [rule.model_dump(exclude_none=True) for rule in subject.step.where]
    options = {node.name: own for node, own in subject.step.options(subject.graph).items()}
    for layer, row in choice.items():
        if options[layer].weights != row.weights:
            rules.append({"name": literal(layer), "weights": row.weights})
    original = next(step for step in subject.job.spec.passes if isinstance(step, Quantize))
    return Quantize.model_validate({**original.model_dump(exclude_unset=True), "where": rules})


def within_size(subject: Subject, found: Sensitivity, limit: int) -> Choice:
    """The finest choice whose stored weights take `limit` bytes at most. Raises InputError where none does."""

    def bytes_of(choice: Choice) -> int:
        return cost(subject.quantized(_inner(subject, choice))).bytes

    choices = walk(found).choices
    reached = Walk(choices[::-1]).last(lambda choice: bytes_of(choice) <= limit)
    return _or_refuse(reached, f"{bytes_of(choices[-1])} bytes", f"{limit} bytes")


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
        value = subject.judge({"": subject.quantized(_inner(subject, choice))})[""].value
        assert value is not None
        return metric.drop(before, value)

    path = walk(found)
    reached = path.last(lambda choice: drop(choice) <= limit)
    return _or_refuse(reached, f"a drop of {drop(path.choices[0]):.2f}", f"{limit}")


def within_latency(choices: Walk, limit: float, latency: Callable[[Choice], float]) -> Choice:
    """The finest choice that runs in `limit` seconds; `latency` builds and measures. Raises InputError for none."""
    reached = Walk(choices.choices[::-1]).last(lambda choice: latency(choice) <= limit)
    return _or_refuse(reached, "the coarsest formats' latency", f"{limit * 1e3:.3g} ms")


def _inner(subject: Subject, choice: Choice) -> Quantize:
    return step_of(subject, choice).model_copy(update={"io": "float"})


def _or_refuse(choice: Choice | None, best: str, limit: str) -> Choice:
    if choice is None:
        raise InputError(
            "limit", f"cannot be met: {best} is the best there is, asked was {limit}.", "Give more formats."
        )
    return choice
