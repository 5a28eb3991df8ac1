"""SparseGPT: which weights go, and what the others become so that the layer's output changes least.

E. Frantar, D. Alistarh, "SparseGPT" (2023), algorithm 1: for rows w of W and the damped Gram matrix G of the inputs,
with U the upper Cholesky factor of G^-1, a weight j that goes costs w_j^2 / U_jj^2 and moves those after it by
-w_j U_j,: / U_jj. Columns run in the order of the layer; a mask is chosen for `BATCH` columns at a time, from weights
as the columns before have left them. N:M is chosen row by row of M columns; blocks cost the sum of their weights.

That leaves a weight as those after it were when its turn came. So at the end all that stay are fitted together, every
row to the least (w - w0) G (w - w0)^T with its zeros held: conjugate gradients with G's diagonal as preconditioner (M.
Hestenes, E. Stiefel, 1952), for all rows at once.
"""

import numpy as np
import numpy.typing as npt

from graphc.ir.sparse import Mask
from graphc.passes.prune_masks import Shape, pruned

Doubles = npt.NDArray[np.float64]

DAMPING = 0.01
"""Of the mean of G's diagonal."""
BATCH = 128
STEPS = 40
"""Of the conjugate gradients; each is one product with G."""


def solve(weights: Doubles, gram: Doubles, inputs: int, shape: Shape, share: float) -> tuple[Doubles, Mask]:
    """W [groups, outputs, taps * inputs] after pruning, and what went. `gram` [groups, K, K], its columns as W's."""
    parts = [
        _group(w[None], g, inputs, shape, share) if g.diagonal().any() else _unused(w[None], inputs, shape, share)
        for w, g in zip(weights, gram, strict=True)
    ]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def refit(wanted: Doubles, start: Doubles, gone: Mask, gram: Doubles) -> Doubles:
    """`start` [groups, outputs, K] with the weights that are not `gone` fitted to `wanted`; `gram` [groups, K, K]."""
    return np.stack(
        [
            fitted(w, s, ~zero, _damped(g)) if g.diagonal().any() else s
            for w, s, zero, g in zip(wanted, start, gone, gram, strict=True)
        ]
    )


def _damped(gram: Doubles) -> Doubles:
    damped: Doubles = gram + DAMPING * gram.diagonal().mean() * np.eye(len(gram))
    return damped


def _unused(weights: Doubles, inputs: int, shape: Shape, share: float) -> tuple[Doubles, Mask]:
    """Inputs that are always zero: any weights will do."""
    gone = pruned(weights**2, inputs, shape, share)
    return np.where(gone, 0.0, weights), gone


def _group(weights: Doubles, gram: Doubles, inputs: int, shape: Shape, share: float) -> tuple[Doubles, Mask]:
    depth = weights.shape[2]
    damped = _damped(gram)
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
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
    return fitted(weights[0], np.where(gone, 0.0, left)[0], ~gone[0], damped)[None], gone


def fitted(wanted: Doubles, start: Doubles, kept: Mask, gram: Doubles) -> Doubles:
    """Rows [N, K] with zeros where nothing is kept, from `start` on nearer to `wanted` in the norm of `gram` [K, K]."""
    diagonal = gram.diagonal()
    found = start
    residual = np.where(kept, (wanted - found) @ gram, 0.0)
    direction = residual / diagonal
    slope = (residual * direction).sum(axis=1)
    for _ in range(STEPS):
        along = np.where(kept, direction @ gram, 0.0)
        curvature = (direction * along).sum(axis=1)
        step = np.divide(slope, curvature, out=np.zeros_like(slope), where=curvature > 0)[:, None]
        found, residual = found + step * direction, residual - step * along
        ahead = residual / diagonal
        before, slope = slope, (residual * ahead).sum(axis=1)
        direction = ahead + np.divide(slope, before, out=np.zeros_like(slope), where=before > 0)[:, None] * direction
    return found


def _batches(depth: int, inputs: int, shape: Shape) -> list[tuple[int, int, int]]:
    """(start, stop, columns of a tap in it): whole taps together, or parts of one tap at whole runs."""
    if inputs >= BATCH:
        step = max(BATCH // shape.run, 1) * shape.run
        parts = [(s, min(s + step, inputs)) for s in range(0, inputs, step)]
        return [(tap + s, tap + e, e - s) for tap in range(0, depth, inputs) for s, e in parts]
    step = BATCH // inputs * inputs
    return [(s, min(s + step, depth), inputs) for s in range(0, depth, step)]
