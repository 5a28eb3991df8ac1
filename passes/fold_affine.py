"""Affine layers: y = x * scale + shift with constants, and what operators compute it.

    Add, Sub, Mul, Div with a constant; Neg; BatchNormalization at inference:
    y = (x - mean) / sqrt(variance + epsilon) * gamma + beta      (Ioffe and Szegedy, arXiv:1502.03167)

Scale and shift are computed in float64, and broadcast to x as ONNX broadcasts.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphc.ir.graph import Node
from graphc.passes.fold_sweep import Sweep

Floats = npt.NDArray[np.float64]

OPERATORS = ("Add", "Sub", "Mul", "Div", "Neg", "BatchNormalization")


@dataclass(frozen=True)
class Affine:
    """y = x * scale + shift, elementwise; `x` is a value's name, the arrays broadcast to its shape."""

    x: str
    scale: Floats
    shift: Floats

    @property
    def scales(self) -> bool:
        return not bool(np.all(self.scale == 1))

    @property
    def shifts(self) -> bool:
        return not bool(np.all(self.shift == 0))


def affine(sweep: Sweep, node: Node | None) -> Affine | None:
    """`node` as an affine layer of one operand. None for all else: no constant, integers, a result wider than x."""
    if node is None or node.op not in OPERATORS or not sweep.is_float(node.outputs[0]):
        return None
    with np.errstate(all="ignore"):
        found = _batch_norm(sweep, node) if node.op == "BatchNormalization" else _arithmetic(sweep, node)
    if found is None or not (np.isfinite(found.scale).all() and np.isfinite(found.shift).all()):
        return None
    return found


def _batch_norm(sweep: Sweep, node: Node) -> Affine | None:
    rank = sweep.rank(node.inputs[0])
    arrays = [sweep.constant(name) for name in node.inputs[1:5]]
    if node.get_int("training_mode", 0) or any(node.outputs[1:]) or rank is None or rank < 2:
        return None
    gamma, beta, mean, variance = (None if array is None else array.astype(np.float64) for array in arrays)
    if gamma is None or beta is None or mean is None or variance is None:
        return None
    scale = gamma / np.sqrt(variance + node.get_float("epsilon", 1e-5))
    channels = (-1, *(1,) * (rank - 2))
    return Affine(node.inputs[0], scale.reshape(channels), (beta - mean * scale).reshape(channels))


def _arithmetic(sweep: Sweep, node: Node) -> Affine | None:
    if node.op == "Neg":
        return Affine(node.inputs[0], -np.ones(()), np.zeros(()))
    left, right = (sweep.constant(name) for name in node.inputs)
    if (left is None) == (right is None):
        return None
    x = node.inputs[0] if left is None else node.inputs[1]
    array = right if left is None else left
    assert array is not None
    constant = array.astype(np.float64)
    if not _fits(sweep, x, array.shape, node.outputs[0]):
        return None
    pair = _scale_and_shift(node.op, constant, constant_left=left is not None)
    return None if pair is None else Affine(x, *pair)


def _scale_and_shift(op: str, constant: Floats, constant_left: bool) -> tuple[Floats, Floats] | None:
    one, zero = np.ones(()), np.zeros(())
    if op == "Div":
        return None if constant_left else (1 / constant, zero)
    if op == "Mul":
        return constant, zero
    if op == "Sub":
        return (-one, constant) if constant_left else (one, -constant)
    return one, constant


def _fits(sweep: Sweep, x: str, shape: tuple[int, ...], result: str) -> bool:
    """Whether a constant of `shape` leaves x's shape as it is."""
    dims = sweep.type(x).shape
    if dims is None or len(shape) > len(dims):
        return False
    return all(d in {1, dims[len(dims) - len(shape) + i]} for i, d in enumerate(shape)) and (
        sweep.rank(result) == len(dims)
    )


def per_channel(array: Floats, rank: int, axis: int, channels: int) -> Floats | None:
    """`array` as a vector over dimension `axis` of a value of `rank` dimensions. None where it varies along others."""
    shape = (1,) * (rank - array.ndim) + array.shape
    if any(d != 1 for i, d in enumerate(shape) if i != axis) or shape[axis] not in {1, channels}:
        return None
    return np.broadcast_to(array.reshape(-1), (channels,))
