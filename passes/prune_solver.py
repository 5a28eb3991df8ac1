"""SparseGPT: which weights go, and what the others become so that the layer's output changes least.

E. Frantar, D. Alistarh, "SparseGPT" (2023), algorithm 1: for rows w of W and the damped Gram matrix G of the inputs,
with U the upper Cholesky factor of G^-1, a weight j that goes costs w_j^2 / U_jj^2 and moves those after it by
-w_j U_j,: / U_jj. Columns run in the order of the layer; a mask is chosen for `BATCH` columns at a time, from weights
as the columns before have left them. N:M is chosen row by row of M columns; blocks cost the sum of their weights.
"""

import numpy as np
import numpy.typing as npt

from graphc.ir.sparse import Mask
from graphc.passes.prune_masks import Shape, pruned

Doubles = npt.NDArray[np.float64]

DAMPING = 0.01
"""Of the mean of G's diagonal."""
BATCH = 128


def solve(weights: Doubles, gram: Doubles, inputs: int, shape: Shape, share: float) -> tuple[Doubles, Mask]:
    """W [groups, outputs, taps * inputs] after pruning, and what went. `gram` [groups, K, K], its columns as W's."""
    parts = [
        _group(w[None], g, inputs, shape, share) if g.diagonal().any() else _unused(w[None], inputs, shape, share)
        for w, g in zip(weights, gram, strict=True)
    ]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _unused(weights: Doubles, inputs: int, shape: Shape, share: float) -> tuple[Doubles, Mask]:
    """Inputs that are always zero: any weights will do."""
    gone = pruned(weights**2, inputs, shape, share)
    return np.where(gone, 0.0, weights), gone


def _group(weights: Doubles, gram: Doubles, inputs: int, shape: Shape, share: float) -> tuple[Doubles, Mask]:
    depth = weights.shape[2]
    factor = _factor(gram)
    left, gone = weights.copy(), np.zeros(weights.shape, bool)
    for start, stop, width in _batches(depth, inputs, shape):
        part = left[:, :, start:stop]
        if shape.kept_of is None:
            gone[:, :, start:stop] = pruned((part / factor.diagonal()[start:stop]) ** 2, width, shape, share)
        moved = np.zeros((weights.shape[1], stop - start))
        for j in range(start, stop):
            ahead = (j - start) % width % shape.run == 0
            if shape.kept_of is not None and ahead:
                end = min(j + shape.run, start + ((j - start) // width + 1) * width)
                row = (left[:, :, j:end] / factor.diagonal()[j:end]) ** 2
                gone[:, :, j:end] = pruned(row, end - j, shape, share)
            error = np.where(gone[0, :, j], left[0, :, j], 0.0) / factor[j, j]
            left[0, :, j:stop] -= np.outer(error, factor[j, j:stop])
            moved[:, j - start] = error
        left[0, :, stop:] -= moved @ factor[start:stop, stop:]
    return np.where(gone, 0.0, left), gone


def _factor(gram: Doubles) -> Doubles:
    """The upper Cholesky factor U of G^-1 = U^T U, G damped."""
    damped = gram + DAMPING * gram.diagonal().mean() * np.eye(len(gram))
    return np.linalg.cholesky(np.linalg.inv(damped)).T


def _batches(depth: int, inputs: int, shape: Shape) -> list[tuple[int, int, int]]:
    """(start, stop, columns of a tap in it): whole taps together, or parts of one tap at whole runs."""
    if inputs >= BATCH:
        step = max(BATCH // shape.run, 1) * shape.run
        parts = [(s, min(s + step, inputs)) for s in range(0, inputs, step)]
        return [(tap + s, tap + e, e - s) for tap in range(0, depth, inputs) for s, e in parts]
    step = BATCH // inputs * inputs
    return [(s, min(s + step, depth), inputs) for s in range(0, depth, step)]
