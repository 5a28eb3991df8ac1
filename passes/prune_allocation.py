"""How a share of weights to prune is spread over layers; all keep the sum over layers of share times size.

- uniform: every layer its own.
- global: one threshold for the magnitudes of all weights.
- erk: what stays is proportional to (sum of the dimensions) / (their product), at most everything: U. Evci et al.,
  "Rigging the Lottery" (2020), section 3.1, with the kernel's dimensions.
- sensitivity: the least sum over layers of the relative squared error at the output, |X dW^T|^2 / |X W^T|^2, each layer
  alone: where its error curve has the same slope everywhere (the Lagrangian condition; Y. Shoham, A. Gersho, 1988).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Allocation = Literal["uniform", "global", "erk", "sensitivity"]

SHARES = np.linspace(0.0, 0.95, 20)
"""Where error curves are sampled."""


@dataclass(frozen=True)
class Candidate:
    """A layer as allocation sees it: `share` is what its own options ask for.

    `worth`: sorted magnitudes of what goes together, each of `size / len(worth)` weights. `error(share)`: its relative
    squared error.
    """

    shape: tuple[int, ...]
    share: float
    worth: Callable[[], Doubles]
    error: Callable[[float], float]

    @property
    def size(self) -> int:
        return prod(self.shape)


def allocated(candidates: Sequence[Candidate], allocation: Allocation) -> list[float]:
    """The share of each layer."""
    if allocation == "uniform" or not candidates:
        return [each.share for each in candidates]
    if allocation == "global":
        return _by_threshold(candidates)
    return _erk(candidates) if allocation == "erk" else _by_slope(candidates)


def _wanted(candidates: Sequence[Candidate]) -> float:
    """How many weights go."""
    return sum(each.share * each.size for each in candidates)


def _by_threshold(candidates: Sequence[Candidate]) -> list[float]:
    worths = [each.worth() for each in candidates]
    sizes = np.concatenate([np.full(len(w), c.size / len(w)) for w, c in zip(worths, candidates, strict=True)])
    together = np.concatenate(worths)
    order = np.argsort(together, kind="stable")
    last = int(np.searchsorted(np.cumsum(sizes[order]), _wanted(candidates)))
    threshold = together[order[min(last, len(order) - 1)]]
    return [float(np.searchsorted(worth, threshold)) / len(worth) for worth in worths]


def _erk(candidates: Sequence[Candidate]) -> list[float]:
    """Layers whose density would be over 1 keep all, and the rest is spread over the others."""
    density = np.array([sum(each.shape) / each.size for each in candidates])
    sizes = np.array([each.size for each in candidates], np.float64)
    kept = sizes.sum() - _wanted(candidates)
    full = np.zeros(len(sizes), bool)
    while True:
        factor = (kept - sizes[full].sum()) / (density * sizes)[~full].sum()
        over = ~full & (factor * density > 1)
        if not over.any():
            return [0.0 if whole else float(1 - factor * d) for whole, d in zip(full, density, strict=True)]
        full |= over


def _by_slope(candidates: Sequence[Candidate]) -> list[float]:
    """For a price per weight, each layer's cheapest share; the price that makes the sum right is found by halves."""
    curves = [np.array([each.error(float(share)) for share in SHARES]) for each in candidates]
    sizes = [each.size for each in candidates]
    fine = np.linspace(0.0, SHARES[-1], 20 * (len(SHARES) - 1) + 1)
    smooth = [np.interp(fine, SHARES, curve) for curve in curves]

    def at(price: float) -> list[float]:
        return [float(fine[np.argmin(s - price * n * fine)]) for s, n in zip(smooth, sizes, strict=True)]

    low, high, wanted = -20.0, 5.0, _wanted(candidates)
    for _ in range(60):
        middle = (low + high) / 2
        gone = sum(share * size for share, size in zip(at(10.0**middle), sizes, strict=True))
        low, high = (middle, high) if gone < wanted else (low, middle)
    return at(10.0**high)
