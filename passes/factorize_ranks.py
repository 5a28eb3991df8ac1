"""Which layers become factors of which ranks: candidates of every layer, and one choice over all of them.

A candidate has a cost (multiply-accumulates or parameters) and an error: what it changes of the layer's output,
squared, as a part of the output. The dense layer is a candidate of error 0. For one price per unit of cost, every layer
takes the candidate with the least error + price * cost; the price is the smallest one with which the whole model meets
its target (a Lagrangian relaxation: Y. Shoham, A. Gersho, 1988).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf

from graphc.passes.factorize_forms import Factors

HALVINGS = 60


@dataclass(frozen=True, eq=False)
class Candidate:
    """Ranks of a form, what they cost and err; `make` computes the factors. The dense layer has no ranks.

    `speed`: how many times as fast as the dense layer they should be on `slowest`, the target that gains least.
    """

    ranks: tuple[int, ...]
    macs: int
    parameters: int
    lost: Callable[[], float]
    make: Callable[[], Factors] | None
    speed: float = inf
    slowest: str = ""

    @cached_property
    def error(self) -> float:
        """Computed where it is asked for: some forms must be made for it."""
        return self.lost()

    @property
    def is_dense(self) -> bool:
        return self.make is None


def by_energy(candidates: Sequence[Candidate], energy: float) -> Candidate:
    """The cheapest that keeps so much of the output's energy."""
    return min((each for each in candidates if each.error <= 1 - energy), key=lambda each: (each.macs, each.error))


def by_ratio(candidates: Sequence[Candidate], ratio: float, cost: Callable[[Candidate], int]) -> Candidate:
    """The best of those that cost at most so much of the dense layer; that one where none does."""
    dense = next(each for each in candidates if each.is_dense)
    cheap = [each for each in candidates if cost(each) <= ratio * cost(dense)]
    return min(cheap, key=lambda each: each.error) if cheap else dense


def by_total(
    layers: Sequence[Sequence[Candidate]], target: float, cost: Callable[[Candidate], int]
) -> list[Candidate] | None:
    """A candidate per layer, so that their costs add up to at most `target`; None where the cheapest do not."""

    def at(price: float) -> list[Candidate]:
        return [min(each, key=lambda c: (c.error + price * cost(c), cost(c))) for each in layers]

    def total(chosen: Sequence[Candidate]) -> int:
        return sum(map(cost, chosen))

    if total([min(each, key=cost) for each in layers]) > target:
        return None
    high = 1.0 / max(max(cost(c) for c in each) for each in layers)
    while total(at(high)) > target:
        high *= 4
    low = 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if total(at(middle)) <= target else (middle, high)
    return at(high)
