"""Convolutions and matrix products of bfloat16 codes or float16: see `graphc.backends.narrow`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import te, tirx

from graphc.backends import compute_conv, compute_matmul, llvm_bf16
from graphc.backends.dot import Dot
from graphc.backends.narrow_bf16 import DOMAIN as BF16
from graphc.backends.narrow_fp16 import DOMAIN as FP16
from graphc.backends.relax_module import OPAQUE, OUT_FUSIBLE, Lowering, computes
from graphc.backends.statements import wide
from graphc.ir import Node

ROUND, HALF = 0x7FFF, 16


def rounded(value: Any) -> Any:
    """The code nearest to a float32, ties to even; a NaN stays one."""
    bits = tirx.reinterpret("uint32", value)
    tie = (bits >> tirx.const(HALF, "uint32")) & tirx.const(1, "uint32")
    nearest = (bits + tie + tirx.const(ROUND, "uint32")) >> tirx.const(HALF, "uint32")
    quiet = (bits >> tirx.const(HALF, "uint32")) | tirx.const(0x40, "uint32")
    return tirx.Select(value == value, nearest, quiet).astype("uint16")  # noqa: PLR0124 - false for a NaN


@computes(BF16, "Narrow")
def narrow(state: Lowering, node: Node) -> Sequence[Any]:
    """float32 -> codes; fused into what computes the operand where nothing else reads it."""
    code = llvm_bf16.code if state.target.has("avx512_bf16") else rounded

    def define(x: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *i: code(x[i]), name="narrow")

    return [state.emit(define, state.value(node.inputs[0]), name="narrow")]


@computes(FP16, "Narrow")
def half(state: Lowering, node: Node) -> Sequence[Any]:
    """float32 -> float16; fused as above."""

    def define(x: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *i: x[i].astype("float16"), name="narrow")

    return [state.emit(define, state.value(node.inputs[0]), name="narrow")]


@computes(BF16, "Widen")
def widen(state: Lowering, node: Node) -> Sequence[Any]:
    """Codes -> float32, exactly."""

    def define(x: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *i: wide(x[i], "float32"), name="widen")

    return [state.emit(define, state.value(node.inputs[0]), name="widen")]


@computes(BF16, "Conv")
@computes(FP16, "Conv")
def conv(state: Lowering, node: Node) -> Sequence[Any]:
    """y = conv(x, w) + bias, channels last, with constant weights."""
    kind = state.type(node.inputs[0]).dtype
    shape = compute_conv.convolution(state, node, kind)
    weights = state.parameter(compute_conv.pack(shape, state.graph.constants[node.inputs[1]]), node.inputs[1])
    biased = len(node.inputs) > 2 and bool(node.inputs[2])
    x, shape = compute_conv.with_padding(state, node.inputs[0], shape, tirx.const(0, kind.name), "float32")
    operands = [x, weights, *([state.value(node.inputs[2])] if biased else [])]
    output = state.type(node.outputs[0]).dims

    def define(x: te.Tensor, w: te.Tensor, *bias: te.Tensor) -> te.Tensor:
        acc = compute_conv.accumulate(shape, x, w, "float32", tirx.const(0, kind.name))

        def element(*i: Any) -> Any:
            total = compute_conv.sum_at(shape, acc, i)
            return total + bias[0][i[-1]] if bias else total

        return te.compute(output, element, name="out")

    return [state.emit(define, *operands, name=f"conv_{shape.dot}", pattern=OUT_FUSIBLE)]


@computes(BF16, "MatMul")
@computes(FP16, "MatMul")
def matmul(state: Lowering, node: Node) -> Sequence[Any]:
    """numpy.matmul of matrices; batches broadcast, b may be computed at run time."""
    a, b = (state.type(name).dims for name in node.inputs[:2])
    batch = tuple(np.broadcast_shapes(a[:-2], b[:-2]))
    product, right = _right(state, node, batch, a[-2], b[-1])
    output = state.type(node.outputs[0]).dims

    def define(x: te.Tensor, w: te.Tensor) -> te.Tensor:
        acc = compute_matmul.accumulate(product, x, w, "float32")
        return te.compute(output, lambda *i: compute_matmul.sum_at(product, acc, i), name="out")

    return [state.emit(define, state.value(node.inputs[0]), right, name=f"matmul_{product.dot}", pattern=OUT_FUSIBLE)]


@computes(BF16, "Gemm")
@computes(FP16, "Gemm")
def gemm(state: Lowering, node: Node) -> Sequence[Any]:
    """y = alpha * a b' + beta * c; b' is b, transposed where asked."""
    a, b = (state.type(name).dims for name in node.inputs[:2])
    product, right = _right(state, node, (), a[0], b[0] if node.get_int("transB", 0) else b[1])
    added = [state.value(name) for name in node.inputs[2:3] if name]

    def define(x: te.Tensor, w: te.Tensor, *c: te.Tensor) -> te.Tensor:
        acc = compute_matmul.accumulate(product, x, w, "float32")
        return compute_matmul.scaled_sum(node, product, acc, c)

    operands = [state.value(node.inputs[0]), right, *added]
    return [state.emit(define, *operands, name=f"gemm_{product.dot}", pattern=OUT_FUSIBLE)]


def _right(
    state: Lowering, node: Node, batch: tuple[int, ...], rows: int, columns: int
) -> tuple[compute_matmul.Product, Any]:
    """The product, and its packed right operand: at compile time where it is constant, else by a kernel."""
    inner = state.type(node.inputs[0]).dims[-1]
    array, transposed = state.constant(node.inputs[1]), bool(node.get_int("transB", 0))
    dot = Dot.of(node.get_str("dot", ""))
    block = dot.block(state.target, columns, rows)
    vectors = state.choice(node).vectors
    product = compute_matmul.Product(batch, rows, inner, columns, block, dot.step, dot.kind, vectors=vectors)
    if array is not None:
        packed = compute_matmul.pack(product, np.swapaxes(array, -1, -2) if transposed else array)
        return product, state.parameter(packed, node.inputs[1])

    def define(b: te.Tensor) -> te.Tensor:
        return compute_matmul.packed_on_the_fly(product, b, transposed)

    return product, state.emit(define, state.value(node.inputs[1]), name="pack", pattern=OPAQUE)
