"""How many groups of each family go, in the order of their ladders, under a share of channels or of MACs.

- uniform: every family gives the same share, or the one that its own options ask for.
- global: one threshold for what a group is worth over the mean of its family, so that layers compare.
- sensitivity: the least sum of errors at the model's outputs for what is saved: at a price per MAC, each family goes as
  far as it pays; the price is found by halves (the Lagrangian condition; Y. Shoham, A. Gersho, 1988). A ladder's
  errors are scaled to what taking half of the family alone does to the outputs.

`round_to`: what stays is a multiple of it, so that vectors are full.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from graphc.ir.cost import cost
from graphc.ir.graph import Graph
from graphc.passes.channel_cut import merged, types_after
from graphc.passes.channel_groups import Family
from graphc.passes.channel_ties import Axis, Indices
from graphc.passes.channel_worth import Doubles, Ladder

HALVINGS = 24


@dataclass(frozen=True, eq=False)
class Rung:
    """A family with its ladder. `share`: what its own options ask for. `scale`: errors at the outputs over its own."""

    family: Family
    ladder: Ladder
    share: float
    scale: float = 1.0

    @property
    def size(self) -> int:
        return len(self.family.groups)


def allowed(size: int, round_to: int) -> Indices:
    """Numbers of groups that may go, one at least staying."""
    numbers = np.arange(size)
    fits: Indices = numbers[(numbers == 0) | ((size - numbers) % round_to == 0)]
    return fits


def removed_by(rungs: Sequence[Rung], counts: Sequence[int]) -> dict[Axis, Indices]:
    """The indices that go when the first `counts` groups of each ladder go."""
    return merged(
        rung.family.groups[group]
        for rung, count in zip(rungs, counts, strict=True)
        for group in rung.ladder.order[:count]
    )


def macs_after(graph: Graph, rungs: Sequence[Rung], counts: Sequence[int]) -> int:
    """Multiply-accumulates of the graph then."""
    found = cost(replace(graph, types=types_after(graph, removed_by(rungs, counts)))).macs
    assert found is not None  # shapes are static where there are families
    return found


@dataclass(frozen=True, eq=False)
class Choice:
    """What decides the counts: the graph, its rungs, and the options of the pass."""

    graph: Graph
    rungs: tuple[Rung, ...]
    allocation: str
    round_to: int

    def by_share(self, sparsity: float) -> list[int]:
        """`sparsity` of all groups go."""
        if self.allocation == "uniform":
            return [self._nearest(rung, rung.share * rung.size) for rung in self.rungs]
        wanted = sparsity * sum(rung.size for rung in self.rungs)
        return self._search(lambda counts: sum(counts) >= wanted)

    def by_macs(self, remaining: float) -> list[int]:
        """As few groups as bring the MACs to `remaining` of what they are, or as near as can be."""
        limit = remaining * macs_after(self.graph, self.rungs, [0] * len(self.rungs))
        return self._search(lambda counts: macs_after(self.graph, self.rungs, counts) <= limit)

    def _search(self, suffices: Callable[[list[int]], bool]) -> list[int]:
        """The least level at which it suffices, between nothing and everything that may go."""
        at = self._levels()
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if suffices(at(middle)) else (middle, high)
        return at(high)

    def _levels(self) -> Callable[[float], list[int]]:
        """Level 0 to 1 -> counts, which grow with it. Families whose own share is 0 stay."""
        if self.allocation == "uniform":
            return lambda level: [self._nearest(r, level * r.size) if r.share else 0 for r in self.rungs]
        if self.allocation == "global":
            return self._by_threshold()
        return self._by_price()

    def _by_threshold(self) -> Callable[[float], list[int]]:
        steps = [np.diff(rung.ladder.errors) * rung.size / max(rung.ladder.errors[-1], 1e-30) for rung in self.rungs]
        every = np.sort(np.concatenate([np.maximum.accumulate(step) for step in steps]))

        def at(level: float) -> list[int]:
            threshold = every[min(int(level * len(every)), len(every) - 1)]
            below = [int((np.maximum.accumulate(step) <= threshold).sum()) if level else 0 for step in steps]
            return [self._nearest(r, n) if r.share else 0 for r, n in zip(self.rungs, below, strict=True)]

        return at

    def _by_price(self) -> Callable[[float], list[int]]:
        none = [0] * len(self.rungs)
        whole = macs_after(self.graph, self.rungs, none)
        counts = [allowed(rung.size, self.round_to) for rung in self.rungs]
        errors = [rung.ladder.errors[n] * rung.scale for rung, n in zip(self.rungs, counts, strict=True)]
        saved = [self._saved(place, n, whole) for place, n in enumerate(counts)]

        def at(level: float) -> list[int]:
            price = 10.0 ** (-12 + 18 * level)
            return [
                int(n[np.argmin(error - price * gain)]) if rung.share else 0
                for rung, n, error, gain in zip(self.rungs, counts, errors, saved, strict=True)
            ]

        return at

    def _saved(self, place: int, counts: Indices, whole: int) -> Doubles:
        """The share of MACs that each count of one family saves, the others untouched."""
        alone = [0] * len(self.rungs)
        alone[place] = int(counts[-1])
        if not counts[-1]:
            return np.zeros(1)
        most = 1 - macs_after(self.graph, self.rungs, alone) / whole
        gains: Doubles = most * counts / counts[-1]
        return gains

    def _nearest(self, rung: Rung, wanted: float) -> int:
        numbers = allowed(rung.size, self.round_to)
        return int(numbers[np.argmin(np.abs(numbers - wanted))])
