"""Which weights of a matrix a pattern lets go, given what each is worth.

A layer's weights are W [groups, outputs, taps * inputs], the inputs of one tap of the kernel side by side: an N:M row
and a block run along input channels, as kernels read them.

    unstructured   the least worth of a whole layer, or of each output (Wanda)
    N:M            of every M inputs of an output the N with the largest worth stay
    block          squares of r outputs x k inputs of one tap; a block is worth the sum of its weights' worths

The last row or block of a tap is shorter where inputs do not divide: what is missing counts as gone.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphc.ir.sparse import Mask

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shape:
    """What goes together: blocks of `outputs` x `inputs`; with `kept_of` = (N, M), single weights, N of M inputs."""

    outputs: int = 1
    inputs: int = 1
    kept_of: tuple[int, int] | None = None

    @property
    def run(self) -> int:
        """Inputs of a tap that are decided on together."""
        return self.kept_of[1] if self.kept_of else self.inputs


def pruned(worth: Doubles, inputs: int, shape: Shape, share: float, by_output: bool = False) -> Mask:
    """What goes: True where `worth` [groups, outputs, taps * inputs] is least; `share` is left to N:M where that says.

    `by_output`: each output gives the same share. Ties go to the first.
    """
    if shape.kept_of is not None:
        return _n_of_m(worth, inputs, *shape.kept_of)
    of_blocks = blocked(worth, inputs, shape)
    flat = of_blocks.reshape(of_blocks.shape[0] * of_blocks.shape[1] if by_output else 1, -1)
    gone = least(flat, round(share * flat.shape[1]))
    return spread(gone.reshape(of_blocks.shape), worth.shape, inputs, shape)


def least(rows: Doubles, count: int) -> Mask:
    """The `count` least of each row [n, m]; ties go to the first. Layers have 1e8 weights: nothing is sorted."""
    if count == 0:
        return np.zeros(rows.shape, bool)
    border = np.partition(rows, count - 1, axis=1)[:, count - 1 : count]
    gone: Mask = rows < border
    for row, line in enumerate(gone):
        tied = np.flatnonzero(rows[row] == border[row])
        line[tied[: count - np.count_nonzero(line)]] = True
    return gone


def blocked(worth: Doubles, inputs: int, shape: Shape) -> Doubles:
    """The worth of each block: [groups, blocks of outputs, taps, blocks of inputs]."""
    groups, outputs, depth = worth.shape
    taps, r, k = depth // inputs, shape.outputs, shape.inputs
    if (r, k) == (1, 1):
        return worth.reshape(groups, outputs, taps, inputs)
    by_tap = worth.reshape(groups, outputs, taps, inputs)
    padded = np.pad(by_tap, ((0, 0), (0, -outputs % r), (0, 0), (0, -inputs % k)))
    found: Doubles = padded.reshape(groups, -1, r, taps, (inputs + k - 1) // k, k).sum(axis=(2, 5))
    return found


def spread(of_blocks: Mask, whole: tuple[int, ...], inputs: int, shape: Shape) -> Mask:
    """The inverse of `blocked` for a decision per block: one per weight, in the shape `whole`."""
    groups, outputs, depth = whole
    if (shape.outputs, shape.inputs) == (1, 1):
        return of_blocks.reshape(whole)
    each = of_blocks.repeat(shape.outputs, axis=1).repeat(shape.inputs, axis=3)
    return np.ascontiguousarray(each[:, :outputs, :, :inputs]).reshape(groups, outputs, depth)


def _n_of_m(worth: Doubles, inputs: int, kept: int, of: int) -> Mask:
    groups, outputs, depth = worth.shape
    by_tap = worth.reshape(groups, outputs, depth // inputs, inputs)
    padded = np.pad(by_tap, ((0, 0), (0, 0), (0, 0), (0, -inputs % of)), constant_values=-1.0)
    rows = padded.reshape(*padded.shape[:3], -1, of)
    ranks = np.argsort(np.argsort(rows, axis=-1, kind="stable"), axis=-1, kind="stable")
    gone = (ranks < of - kept).reshape(padded.shape)[..., :inputs]
    return np.ascontiguousarray(gone).reshape(worth.shape)
