"""Forms of two or more thin layers that stand for one, as arrays: W ~ the product of their weights.

A form is F [r, K], the first stages as one matrix on the rows X that the layer multiplies (im2col of a convolution),
and U [N, r], the last stage. With G = X^T X the error at the layer's output is known without data,

    |Y - X (U F)^T|^2 = tr(P) - 2 tr(U F C^T) + tr(U F G F^T U^T)        P = Y^T Y, C = Y^T X

and the best last stage for given first ones is closed form: U = C F^T (F G F^T)^-1. Without data G is the identity and
C = W, which is the plain decomposition of the weights. With the dense layer's own rows, C = W G.

- svd: rank r by reduced-rank regression: C G^-1 C^T = E L E^T, U = E_r, F = E_r^T C G^-1 (A. Izenman, 1975). With C = W
  G this is the truncation of the SVD of W chol(G): SVD-LLM (X. Wang et al., 2024); with G = 1 it is the SVD of W. For
  convolutions: k x k to r channels, then 1 x 1 ("channel": X. Zhang et al., "Accelerating Very Deep Convolutional
  Networks", 2015).
- tucker: 1x1, k x k, 1x1 (Y.-D. Kim et al., 2016): factors by HOSVD, improved by HOOI (L. De Lathauwer et al., 2000).
- spatial: k x 1, then 1 x k (M. Jaderberg et al., 2014): SVD of W as [C k, k N].
- depthwise: k x k for each channel alone, then 1x1 (J. Guo et al., "Network Decoupling", 2018): SVD per input channel.
- cp: 1x1, k x 1 and 1 x k for each of r channels alone, 1x1 (V. Lebedev et al., 2015), by alternating least squares.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Form = Literal["channel", "tucker", "spatial", "depthwise", "cp"]

DAMPING = 1e-4
"""Of the mean diagonal of a Gram matrix, added before it is inverted."""
TURNS = 10


@dataclass(frozen=True, slots=True)
class Moments:
    """What is known of a layer: G = X^T X [K, K] (None: the identity), C = Y^T X [N, K], tr(Y^T Y)."""

    gram: Doubles | None
    cross: Doubles
    power: float

    @classmethod
    def of(cls, weights: Doubles, gram: Doubles | None) -> "Moments":
        """Of the layer's own results on rows with this Gram matrix; None: of the weights alone."""
        whole = None if gram is None else damped(gram)
        cross: Doubles = weights if whole is None else weights @ whole
        return cls(whole, cross, float(np.einsum("nk,nk->", cross, weights)))

    def through(self, rows: Doubles) -> Doubles:
        """rows G."""
        return rows if self.gram is None else rows @ self.gram

    @property
    def regression(self) -> Doubles:
        """C G^-1: the best weights [N, K] of any rank."""
        if self.gram is None:
            return self.cross
        return np.asarray(np.linalg.solve(self.gram, self.cross.T).T, np.float64)

    def error(self, weights: Doubles) -> float:
        """The squared error of X weights^T, as a part of that of nothing at all."""
        products = np.einsum("nk,nk->", weights, self.cross), np.einsum("nk,nk->", self.through(weights), weights)
        return max(self.power - 2 * float(products[0]) + float(products[1]), 0.0) / self.power if self.power else 0.0

    def last(self, first: Doubles) -> Doubles:
        """The best last stage U [N, r] behind first stages F [r, K]."""
        inner = damped(np.asarray(self.through(first) @ first.T, np.float64))
        return np.asarray(np.linalg.solve(inner, first @ self.cross.T).T, np.float64)


@dataclass(frozen=True, slots=True)
class Factors:
    """Weights of each stage in order (as ONNX holds those of Conv: [out, in / group, *kernel]); `matrix` ~ W [N, K]."""

    form: Form
    stages: tuple[Doubles, ...]
    matrix: Doubles


def damped(gram: Doubles) -> Doubles:
    """A Gram matrix that can be inverted."""
    mean = float(np.trace(gram)) / len(gram)
    return gram + np.eye(len(gram)) * (DAMPING * mean or 1.0)


def spectrum(moments: Moments) -> tuple[Doubles, Doubles]:
    """(what each direction of the output explains of it, falling; the directions, one per column [N, min(N, K)])."""
    explained = moments.regression @ moments.cross.T
    values, vectors = np.linalg.eigh((explained + explained.T) / 2)
    return np.maximum(values[::-1], 0), vectors[:, ::-1]


def channel(shape: tuple[int, ...], moments: Moments, rank: int) -> Factors:
    """k x k to `rank` channels, then 1 x 1 (of a matrix: two matrices)."""
    _, directions = spectrum(moments)
    last = np.ascontiguousarray(directions[:, :rank])
    first = last.T @ moments.regression
    stages = first.reshape(rank, *shape[1:]), last.reshape(shape[0], rank, *(1 for _ in shape[2:]))
    return Factors("channel", stages, last @ first)


def tucker(weights: Doubles, moments: Moments, ranks: tuple[int, int]) -> Factors:
    """1x1 to ranks[0] channels, k x k to ranks[1], 1x1; the last one is the best for the data."""
    outputs, inputs = weights.shape[:2]
    core = weights.reshape(outputs, inputs, -1)
    into, out = _leading(_unfolded(core, 1), ranks[0]), _leading(_unfolded(core, 0), ranks[1])
    for _ in range(TURNS):
        into = _leading(_unfolded(np.einsum("nck,nr->rck", core, out), 1), ranks[0])
        out = _leading(_unfolded(np.einsum("nck,cr->nrk", core, into), 0), ranks[1])
    middle = np.einsum("nck,cp,nq->qpk", core, into, out)
    first = np.einsum("qpk,cp->qck", middle, into).reshape(ranks[1], -1)
    last = moments.last(first)
    ones = tuple(1 for _ in weights.shape[2:])
    stages = (
        into.T.reshape(ranks[0], inputs, *ones),
        middle.reshape(ranks[1], ranks[0], *weights.shape[2:]),
        last.reshape(outputs, ranks[1], *ones),
    )
    return Factors("tucker", stages, last @ first)


def spatial(weights: Doubles, rank: int) -> Factors:
    """k x 1 to `rank` channels, then 1 x k. Only the weights decide."""
    outputs, inputs, down, across = weights.shape
    matrix = weights.transpose(1, 2, 0, 3).reshape(inputs * down, outputs * across)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    root = np.sqrt(values[:rank])
    first = (left[:, :rank] * root).T.reshape(rank, inputs, down, 1)
    last = (right[:rank] * root[:, None]).reshape(rank, outputs, across).transpose(1, 0, 2)[:, :, None, :]
    whole = np.einsum("rcy,nrx->ncyx", first[..., 0], last[:, :, 0])
    return Factors("spatial", (first, np.ascontiguousarray(last)), whole.reshape(outputs, -1))


def depthwise(weights: Doubles, moments: Moments, multiplier: int) -> Factors:
    """`multiplier` windows for each input channel alone, then 1x1; the 1x1 is the best for the data."""
    outputs, inputs = weights.shape[:2]
    taps = weights.reshape(outputs, inputs, -1)
    windows = np.stack([np.linalg.svd(taps[:, c], full_matrices=False)[2][:multiplier] for c in range(inputs)])
    first = np.zeros((inputs, multiplier, inputs, taps.shape[2]))
    first[np.arange(inputs), :, np.arange(inputs)] = windows
    flat = first.reshape(inputs * multiplier, -1)
    last = moments.last(flat)
    ones = tuple(1 for _ in weights.shape[2:])
    stages = (
        windows.reshape(inputs * multiplier, 1, *weights.shape[2:]),
        last.reshape(outputs, inputs * multiplier, *ones),
    )
    return Factors("depthwise", stages, last @ flat)


def cp(weights: Doubles, moments: Moments, rank: int) -> Factors:
    """1x1 to `rank` channels, k x 1 and 1 x k for each of them alone, 1x1; the last one is the best for the data."""
    outputs, inputs = weights.shape[:2]
    factors = [_start(_unfolded(weights, axis), rank) for axis in range(4)]
    for _ in range(3 * TURNS):
        for axis in range(4):
            others = [factor for a, factor in enumerate(factors) if a != axis]
            inner = np.prod([factor.T @ factor for factor in others], axis=0)
            letters = "".join("ncyx"[a] + "r," for a in range(4) if a != axis)[:-1]
            product = np.einsum(f"ncyx,{letters}->{'ncyx'[axis]}r", weights, *others, optimize=True)
            factors[axis] = np.linalg.solve(damped(inner), product.T).T
        factors = [factors[0], *(factor / np.maximum(np.linalg.norm(factor, axis=0), 1e-12) for factor in factors[1:])]
    _, into, down, across = factors
    first = np.einsum("cr,yr,xr->rcyx", into, down, across).reshape(rank, -1)
    last = moments.last(first)
    stages = (
        into.T.reshape(rank, inputs, 1, 1),
        down.T.reshape(rank, 1, -1, 1),
        across.T.reshape(rank, 1, 1, -1),
        last.reshape(outputs, rank, 1, 1),
    )
    return Factors("cp", stages, last @ first)


def _unfolded(array: Doubles, axis: int) -> Doubles:
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def _leading(matrix: Doubles, count: int) -> Doubles:
    """The `count` leading left singular vectors of a wide matrix."""
    _, vectors = np.linalg.eigh(matrix @ matrix.T)
    return np.ascontiguousarray(vectors[:, ::-1][:, :count])


def _start(matrix: Doubles, rank: int) -> Doubles:
    """Leading singular vectors, seeded noise where there are too few."""
    found = _leading(matrix, min(rank, len(matrix)))
    noise = np.random.default_rng(0).normal(size=(len(matrix), rank - found.shape[1])) / len(matrix) ** 0.5
    return np.concatenate([found, noise], axis=1)
