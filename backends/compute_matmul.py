"""Matrix products: y[..., m, n] = sum over k of a[..., m, k] * b[..., k, n] (+ bias), b packed in runs of n.

packed b[*batch, N / block, K, block], or b[*batch, N / block, K / step, block, step] for integer dot products
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from tvm import te, tirx

from graphc.backends.compute_coded import coded_operand
from graphc.backends.compute_sparse import Skipping, SparseOperand, Weights, described, sparse_operand
from graphc.backends.cycles import Contraction
from graphc.backends.decode import Decoder
from graphc.backends.dot import Kind as DotKind
from graphc.backends.geometry import matrix_number
from graphc.backends.relax_module import OPAQUE, OUT_FUSIBLE, Lowering, computes
from graphc.backends.statements import wide
from graphc.ir import Array, Node


@dataclass(frozen=True)
class Product:
    """One matrix product: `batch` of the result, rows, inner and columns; `block` columns in a run."""

    batch: tuple[int, ...]
    rows: int
    inner: int
    columns: int
    block: int
    step: int = 1
    """Terms that one dot-product instruction adds up."""
    dot: DotKind = "plain"
    tile: int | None = None
    """Rows in a register tile; None: the cost model's."""
    vectors: int | None = None
    """Groups of 16 output channels that a task of matrix tiles takes at most; None: the cost model\'s."""
    matrices: tuple[int, ...] = ()
    """The batch of coded weights, which broadcasts to `batch`."""

    @property
    def depth(self) -> int:
        """`inner`, rounded up to whole steps."""
        return -(-self.inner // self.step) * self.step

    @property
    def blocks(self) -> int:
        return -(-self.columns // self.block)

    def description(self, transposed: bool, shift: int, weights: Mapping[str, Any]) -> str:
        """What the schedule rules read from the anchor's annotation; `weights` describes those that are not plain."""
        return json.dumps(
            {
                "kind": "matmul",
                "batch": self.batch,
                "rows": self.rows,
                "inner": self.inner,
                "columns": self.columns,
                "block": self.block,
                "step": self.step,
                "dot": self.dot,
                "depth": self.depth,
                "shift": shift,
                "tile": self.tile,
                "vectors": self.vectors,
                "transposed": transposed,
                "matrices": self.matrices,
                **weights,
            }
        )


def pack(product: Product, b: Array) -> Array:
    """Constant b (*batch, K, N) in runs of `block` columns; missing columns are zero."""
    missing = product.blocks * product.block - product.columns
    padded = np.pad(b, [(0, 0)] * (b.ndim - 2) + [(0, product.depth - product.inner), (0, missing)])
    blocked = padded.reshape(*padded.shape[:-1], product.blocks, product.block)
    runs = np.moveaxis(blocked, -2, -3)
    if product.step > 1:
        runs = np.swapaxes(
            runs.reshape(*runs.shape[:-2], product.depth // product.step, product.step, product.block), -1, -2
        )
    return np.ascontiguousarray(runs)


def by_output(product: Product, b: Array) -> Array:
    """b (*batch, K, N) as (N, K); of several matrices, each with as many rows as its blocks have columns."""
    across = np.swapaxes(b, -1, -2)
    if len(product.matrices) == 0:
        return across
    missing = product.blocks * product.block - product.columns
    padded = np.pad(across, [(0, 0)] * (b.ndim - 2) + [(0, missing), (0, 0)], mode="edge")
    return padded.reshape(-1, product.inner)


def packed_on_the_fly(
    product: Product, b: te.Tensor, transposed: bool = False, centered: tuple[str, int] | None = None
) -> te.Tensor:
    """The same packing as a kernel, for an operand that is computed at run time.

    `centered` is the type that integers are stored in, and the zero point that is subtracted from them.
    """
    *batch, _, _ = b.shape
    rank = len(batch)
    dtype, zero_point = centered or (b.dtype, 0)

    def element(*i: Any) -> Any:
        column = i[rank] * product.block + i[rank + 2]
        inner = i[rank + 1] if product.step == 1 else i[rank + 1] * product.step + i[rank + 3]
        value = b[(*i[:rank], column, inner)] if transposed else b[(*i[:rank], inner, column)]
        if centered is not None:
            value = value.astype(dtype) - tirx.const(zero_point, dtype)
        return (
            value
            if product.columns % product.block == 0
            else tirx.if_then_else(column < product.columns, value, tirx.const(0, dtype))
        )

    runs = (product.inner // product.step, product.block, *((product.step,) if product.step > 1 else ()))
    return te.compute((*batch, product.blocks, *runs), element, name="pack")


def accumulate(
    product: Product, a: te.Tensor, b: Weights, dtype: str, transposed_a: bool = False, shift: int = 0
) -> te.Tensor:
    """The sums (*batch, M, blocks, block) in `dtype`; a (*, M, K) and packed b broadcast over the batch as numpy does.

    A decoder in place of b gives the elements of float matrices; one with blocks of zeros skips them. `shift` is what
    the dot-product instruction wants added to a's elements.
    """
    k = te.reduce_axis((0, product.inner), "k")
    rank = len(product.batch)

    def batch_of(tensor: te.Tensor, kept: int, i: Sequence[Any]) -> list[Any]:
        own = len(tensor.shape) - kept
        return [0 if int(tensor.shape[axis]) == 1 else i[rank - own + axis] for axis in range(own)]

    inner = b.axes() if isinstance(b, Skipping) else []

    def term(*i: Any) -> Any:
        if isinstance(b, Skipping):
            at = b.input(i[rank + 1], tirx.const(0), inner)
            row = (at, i[rank]) if transposed_a else (i[rank], at)
            left = a[(*batch_of(a, 2, i), *row)].astype(dtype)
            left = left + tirx.const(shift, dtype) if shift else left
            return te.sum(left * b.weight(i[rank + 1], tirx.const(0), inner, i[rank + 2], dtype), axis=inner)
        row = (k, i[rank]) if transposed_a else (i[rank], k)
        left = wide(a[(*batch_of(a, 2, i), *row)], dtype)
        if isinstance(b, Decoder):
            block = matrix_number(product.matrices, i[:rank]) * product.blocks + i[rank + 1]
            return te.sum(left * b(block, tirx.const(0), k, i[rank + 2]), axis=k)
        place = (k, i[rank + 2]) if product.step == 1 else (k // product.step, i[rank + 2], k % product.step)
        right = wide(b[(*batch_of(b, 3 if product.step == 1 else 4, i), i[rank + 1], *place)], dtype)
        left = left + tirx.const(shift, dtype) if shift else left
        return te.sum(left * right, axis=k)

    return te.compute(
        (*product.batch, product.rows, product.blocks, product.block),
        term,
        name="matmul",
        attrs={"graphc.anchor": product.description(transposed_a, shift, described(b))},
    )


def sum_at(product: Product, acc: te.Tensor, i: Sequence[Any]) -> Any:
    """The accumulator of output position i = (*batch, m, n)."""
    return acc[(*i[:-1], i[-1] // product.block, i[-1] % product.block)]


Reader = Callable[[Sequence[te.Tensor]], Weights]
"""What `accumulate` takes as b, given the tensors that a kernel gets for it."""


def plain(tensors: Sequence[te.Tensor]) -> te.Tensor:
    """The reader of one packed tensor."""
    return tensors[0]


def skipping(state: Lowering, node: Node, product: Product, weights: Array) -> SparseOperand | None:
    """Constant weights (N, K) without their blocks of zeros, None where that is no faster."""
    size = 1 if product.step > 1 else 4
    rows, columns = prod(product.batch), product.rows
    work = Contraction(rows, columns, product.inner, product.columns, product.step, size, product.dot == "amx")
    return sparse_operand(state, node, weights[:, :, None], work)


def right_operand(
    state: Lowering, node: Node, product: Product, transposed: bool = False
) -> tuple[Product, list[Any], Reader]:
    """(product, what to pass for b, how to read it): without its zeros, coded, or packed at compile time where it is
    constant, else by a kernel.
    """
    name = node.inputs[1]
    array = state.weights(name)
    if array is not None:
        across = np.swapaxes(array, -1, -2) if transposed else array
        if array.dtype == np.float32 and array.ndim == 2:
            sparse = skipping(state, node, product, across.T)
            if sparse is not None:
                return replace(product, block=state.target.lanes(32)), list(sparse.operands), sparse.skipping
        return product, [state.parameter(pack(product, across), name)], plain
    decoding = replace(product, matrices=state.type(name).dims[:-2])
    coded = coded_operand(
        state, name, lambda w: by_output(decoding, np.swapaxes(w, -1, -2) if transposed else w), product.block
    )
    if coded is not None:
        return decoding, list(coded.operands), coded.decoder
    packed = state.emit(
        lambda b: packed_on_the_fly(product, b, transposed), state.value(name), name="pack", pattern=OPAQUE
    )
    return product, [packed], plain


@computes("", "MatMul")
def matmul(state: Lowering, node: Node) -> Sequence[Any]:
    """numpy.matmul on floats: vectors on either side are promoted, batches broadcast."""
    a, b = (state.type(name).dims for name in node.inputs)
    dtype = state.type(node.outputs[0]).dtype.name
    rows_given, columns_given = len(a) > 1, len(b) > 1
    batch = np.broadcast_shapes(a[:-2], b[:-2])
    columns = b[-1] if columns_given else 1
    choice = state.choice(node)
    block = choice.block(state.target, columns)
    product = Product(tuple(batch), a[-2] if rows_given else 1, a[-1], columns, block, tile=choice.tile)
    left = _matrix(state, node.inputs[0], (1, a[0])) if not rows_given else state.value(node.inputs[0])
    array = state.weights(node.inputs[1])
    if columns_given:
        product, right, reader = right_operand(state, node, product)
    else:
        column = (
            state.parameter(pack(product, array[:, None]), node.inputs[1])
            if array is not None
            else state.emit(
                lambda t: packed_on_the_fly(product, t),
                _matrix(state, node.inputs[1], (b[0], 1)),
                name="pack",
                pattern=OPAQUE,
            )
        )
        right, reader = [column], plain
    output = state.type(node.outputs[0]).dims

    def define(x: te.Tensor, *w: te.Tensor) -> te.Tensor:
        acc = accumulate(product, x, reader(w), dtype)

        def element(*i: Any) -> Any:
            rest = list(i)
            column = rest.pop() if columns_given else 0
            row = rest.pop() if rows_given else 0
            return sum_at(product, acc, (*rest, row, column))

        return te.compute(output, element, name="out")

    return [state.emit(define, left, *right, name="matmul", pattern=OUT_FUSIBLE)]


def _matrix(state: Lowering, name: str, shape: tuple[int, int]) -> Any:
    """A vector as a matrix (a small copy)."""
    along = 1 if shape[0] == 1 else 0
    return state.emit(
        lambda x: te.compute(shape, lambda *i: x[i[along]], name="matrix"),
        state.value(name),
        name="matrix",
        pattern=OPAQUE,
    )


@computes("", "Gemm")
def gemm(state: Lowering, node: Node) -> Sequence[Any]:
    """y = alpha * a' b' + beta * c; a' and b' are a and b, transposed where asked."""
    a, b = (state.type(name).dims for name in node.inputs[:2])
    transposed_a, transposed_b = bool(node.get_int("transA", 0)), bool(node.get_int("transB", 0))
    rows, inner = reversed(a) if transposed_a else a
    columns = b[0] if transposed_b else b[1]
    choice = state.choice(node)
    product = Product((), rows, inner, columns, choice.block(state.target, columns), tile=choice.tile)
    dtype = state.type(node.outputs[0]).dtype.name
    product, right, reader = right_operand(state, node, product, transposed_b)
    operands = [state.value(node.inputs[0]), *right]
    if len(node.inputs) > 2 and node.inputs[2]:
        operands.append(state.value(node.inputs[2]))

    def define(x: te.Tensor, *rest: te.Tensor) -> te.Tensor:
        w, c = rest[: len(right)], rest[len(right) :]
        return scaled_sum(node, product, accumulate(product, x, reader(w), dtype, transposed_a), c)

    return [state.emit(define, *operands, name="gemm", pattern=OUT_FUSIBLE)]


def scaled_sum(node: Node, product: Product, acc: te.Tensor, c: Sequence[te.Tensor]) -> te.Tensor:
    """alpha * acc + beta * c of a Gemm; c broadcasts, where there is one."""
    alpha, beta, dtype = node.get_float("alpha", 1.0), node.get_float("beta", 1.0), acc.dtype

    def element(*i: Any) -> Any:
        value = sum_at(product, acc, i)
        value = value if alpha == 1.0 else value * tirx.const(alpha, dtype)
        if not c:
            return value
        own = i[2 - len(c[0].shape) :]
        bias = c[0][tuple(0 if int(d) == 1 else p for d, p in zip(c[0].shape, own, strict=True))]
        return value + (bias if beta == 1.0 else bias * tirx.const(beta, dtype))

    return te.compute((product.rows, product.columns), element, name="out")
