"""How far a model's scores are from the original's, as distributions over classes.

    KL(p || q) = sum p log(p / q), in nats        (S. Kullback, R. Leibler, "On Information and Sufficiency", 1951)

p are the original's, the mean is over samples (and places, where each has scores of its own). Scores that are
probabilities are taken as they are, others through softmax. It weighs what decides for a class, where the ratio of
signal to noise weighs all scores alike.
"""

import numpy as np
import numpy.typing as npt

from graphc.ir import Array

FLOOR = 1e-6
"""The least probability that is told from none: a grid of 1/256 rounds small ones to 0."""

Numbers = npt.NDArray[np.float64]


class RelativeEntropy:
    """Takes in one output, run by run; sums only."""

    def __init__(self) -> None:
        self._total, self._number = 0.0, 0

    def add(self, actual: Array, expected: Array) -> None:
        """Scores [batch, ..., classes], classes on axis 1 from rank 4 on; others have no distribution and add none."""
        shape = expected.shape[:1] + tuple(dim for dim in expected.shape[1:] if dim != 1)
        if len(shape) < 2 or expected.dtype.kind != "f":
            return
        axis = 1 if len(shape) >= 4 else -1
        given, wanted = (np.moveaxis(array.reshape(shape), axis, -1).astype(np.float64) for array in (actual, expected))
        probable = _are_probabilities(wanted)
        p, q = (_floored(array if probable else _softmax(array)) for array in (wanted, given))
        self._total += float((p * np.log(p / q)).sum())
        self._number += p.size // p.shape[-1]

    @property
    def value(self) -> float | None:
        """The mean so far; None where nothing was a distribution."""
        return self._total / self._number if self._number else None


def _are_probabilities(scores: Numbers) -> bool:
    return bool((scores >= 0).all() and (np.abs(scores.sum(axis=-1) - 1) < 1e-3).all())


def _softmax(scores: Numbers) -> Numbers:
    found: Numbers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return found


def _floored(weights: Numbers) -> Numbers:
    """Weights as probabilities that are `FLOOR` at least; what is no number counts as nothing."""
    known = np.nan_to_num(weights, nan=0.0, posinf=0.0, neginf=0.0).clip(0.0)
    total = known.sum(axis=-1, keepdims=True)
    found: Numbers = np.maximum(known / np.where(total > 0, total, 1.0), FLOOR)
    found /= found.sum(axis=-1, keepdims=True)
    return found
