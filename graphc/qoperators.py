"""Quantized operators as the expressions they stand for, so that every quantized model is one of integers and decoders.

    QLinearConv(x, w, b)           ->  Q(Conv(DQ(x), DQ(w), DQ(b))), and so for Add, Mul, Concat, Gemm, pools, ...
    MatMulNBits(a, packed)         ->  MatMul(a, DQ(q[K, N]; axis=0, block_size))
    DynamicQuantizeMatMul(a, w)    ->  Cast(MatMulInteger(DynamicQuantizeLinear(a), w)) * scale + bias
    FusedConv(x, w, b, z)          ->  Relu(Conv(x, w, b) + z)

These are ONNX's QOperator nodes and those of the domain com.microsoft that onnxruntime's quantizers write. Their
meaning: onnxruntime, docs/ContribOperators.md. MatMulInteger, ConvInteger and DynamicQuantizeLinear stay: they say as
much. So does a node whose scales are computed at run time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx

from graphc.ir.graph import Array, Attribute, Graph, Node
from graphc.weights import free_name

CONTRIB = "com.microsoft"
FLOAT = int(onnx.TensorProto.FLOAT)

UNSIGNED: Mapping[int, np.dtype[np.generic]] = {
    2: np.dtype(ml_dtypes.uint2), 4: np.dtype(ml_dtypes.uint4), 8: np.dtype(np.uint8),
}  # fmt: skip


class Leave(Exception):  # noqa: N818 (an answer, not an error)
    """This node stays as it is."""


def spelled_out(graph: Graph) -> Graph:
    """`graph`, which needs no types yet, without the operators of RULES; the same object where it has none."""
    writer = _Writer(graph)
    for node in graph.nodes:
        rule = RULES.get((node.domain, node.op))
        if rule is None:
            writer.nodes.append(node)
            continue
        before = len(writer.nodes)
        writer.node = node
        try:
            rule(writer)
        except Leave:
            writer.nodes[before:] = [node]
    return writer.graph()


class _Writer:
    """The graph under construction; `node` is the one that is being written anew."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.nodes: list[Node] = []
        self.node = Node("", (), ())
        self._constants: dict[str, Array] = {}
        self._taken = {*graph.types, *graph.inputs, *graph.constants}
        self._taken |= {name for node in graph.nodes for name in (*node.outputs, node.name)}

    def graph(self) -> Graph:
        if all(a is b for a, b in zip(self.nodes, self._graph.nodes, strict=False)):
            return self._graph
        constants = {**self._graph.constants, **self._constants}
        used = {name for node in self.nodes for name in node.reads} | {*self._graph.outputs}
        kept = {name: array for name, array in constants.items() if name in used}
        types = {name: kind for name, kind in self._graph.types.items() if name in used or name not in constants}
        return replace(self._graph, nodes=tuple(self.nodes), constants=kept, types=types)

    def input(self, index: int) -> str:
        """An operand of the node; the empty string where it is absent."""
        return self.node.inputs[index] if index < len(self.node.inputs) else ""

    def known(self, index: int) -> Array:
        """An operand that must be constant."""
        found = self.array(self.input(index))
        if found is None:
            raise Leave
        return found

    def floats(self, index: int) -> npt.NDArray[np.float32]:
        """A constant operand as a list of float32."""
        return self.known(index).astype(np.float32).ravel()

    def array(self, name: str) -> Array | None:
        return self._constants.get(name, self._graph.constants.get(name))

    def constant(self, array: Array, hint: str) -> str:
        name = self._fresh(f"{self.node.name}_{hint}")
        self._constants[name] = array
        return name

    def op(self, op: str, *inputs: str, **attributes: Attribute) -> str:
        name = self._fresh(f"{self.node.name}_{op.lower()}")
        self.nodes.append(Node(op, inputs, (name,), attributes, name))
        return name

    def finish(self, name: str) -> None:
        """The node that was written last, and gives `name`, takes the place of the old one."""
        last = self.nodes.pop()
        self.nodes.append(replace(last, outputs=self.node.outputs, name=self.node.name))

    def dequantize(self, value: int, scale: int, zero_point: int, axis: int | None = None) -> str:
        """The float value of an operand, given the positions of its scale and zero point; `axis` if it has several."""
        attributes, operands = self._grid(scale, zero_point, axis)
        return self.op("DequantizeLinear", self.input(value), *operands, **attributes)

    def quantize(self, value: str, scale: int, zero_point: int) -> None:
        """The result of the node: `value` on the grid at these positions."""
        attributes, operands = self._grid(scale, zero_point, None)
        self.finish(self.op("QuantizeLinear", value, *operands, **attributes))

    def _grid(self, scale: int, zero_point: int, axis: int | None) -> tuple[dict[str, Attribute], list[str]]:
        """A scale is a scalar or, where there are several, a list along `axis`, and so is its zero point."""
        scales = self.known(scale).astype(np.float32)
        if scales.ndim > 1 or (scales.size > 1 and axis is None):
            raise Leave
        arrays = {"scale": scales}
        if self.input(zero_point):
            arrays["zero_point"] = np.broadcast_to(self.known(zero_point).ravel(), scales.size)
        shape = () if scales.size == 1 else (-1,)
        operands = [self.constant(np.ascontiguousarray(array.reshape(shape)), hint) for hint, array in arrays.items()]
        return ({"axis": axis} if shape and axis is not None else {}), operands

    def bias(self, value: int, scale: npt.NDArray[np.float32]) -> str:
        """An int32 bias in steps of `scale`."""
        attributes: dict[str, Attribute] = {} if scale.size == 1 else {"axis": 0}
        name = self.constant(scale.reshape(() if scale.size == 1 else (-1,)), "bias_scale")
        return self.op("DequantizeLinear", self.input(value), name, **attributes)

    def _fresh(self, name: str) -> str:
        found = free_name(name, self._taken)
        self._taken.add(found)
        return found


Rule = Callable[[_Writer], None]


def _without(attributes: Mapping[str, Attribute], *names: str) -> dict[str, Attribute]:
    return {key: value for key, value in attributes.items() if key not in names}


def _qlinear_conv(w: _Writer) -> None:
    operands = [w.dequantize(0, 1, 2), w.dequantize(3, 4, 5, 0)]
    if w.input(8):
        operands.append(w.bias(8, w.floats(1) * w.floats(4)))
    w.quantize(w.op("Conv", *operands, **w.node.attributes), 6, 7)


def _qlinear_matmul(w: _Writer) -> None:
    columns = w.known(4).size > 1
    axis = w.known(3).ndim - 1 if columns else None
    w.quantize(w.op("MatMul", w.dequantize(0, 1, 2), w.dequantize(3, 4, 5, axis)), 6, 7)


def _qgemm(w: _Writer) -> None:
    alpha, transposed = w.node.get_float("alpha", 1.0), w.node.get_int("transB", 0)
    operands = [w.dequantize(0, 1, 2), w.dequantize(3, 4, 5, 0 if transposed else 1)]
    if w.input(6):
        operands.append(w.bias(6, np.float32(alpha) * w.floats(1) * w.floats(4)))
    y = w.op("Gemm", *operands, **w.node.attributes)
    w.quantize(y, 7, 8) if w.input(7) else w.finish(y)


def _binary(op: str) -> Rule:
    return lambda w: w.quantize(w.op(op, w.dequantize(0, 1, 2), w.dequantize(3, 4, 5)), 6, 7)


def _unary(op: str) -> Rule:
    return lambda w: w.quantize(w.op(op, w.dequantize(0, 1, 2), **w.node.attributes), 3, 4)


def _pool(op: str) -> Rule:
    def rule(w: _Writer) -> None:
        if w.node.get_int("channels_last", 0):
            raise Leave
        w.quantize(w.op(op, w.dequantize(0, 1, 2), **_without(w.node.attributes, "channels_last")), 3, 4)

    return rule


def _qlinear_softmax(w: _Writer) -> None:
    """Before opset 13 all axes from `axis` on are one."""
    x, axis = w.dequantize(0, 1, 2), w.node.get_int("axis", -1)
    if w.node.get_int("opset", 13) >= 13 or axis == -1:
        return w.quantize(w.op("Softmax", x, axis=axis), 3, 4)
    flat = w.op("Softmax", w.op("Flatten", x, axis=axis), axis=-1)
    return w.quantize(w.op("Reshape", flat, w.op("Shape", x)), 3, 4)


def _qlinear_concat(w: _Writer) -> None:
    operands = [w.dequantize(i, i + 1, i + 2) for i in range(2, len(w.node.inputs), 3)]
    w.quantize(w.op("Concat", *operands, **w.node.attributes), 0, 1)


def _qlinear_where(w: _Writer) -> None:
    w.quantize(w.op("Where", w.input(0), w.dequantize(1, 2, 3), w.dequantize(4, 5, 6)), 7, 8)


def _rounding(op: str) -> Rule:
    return lambda w: w.finish(w.op(op, *w.node.inputs, **w.node.attributes))


def _dynamic_quantize_matmul(w: _Writer) -> None:
    name = w.op("DynamicQuantizeLinear", w.input(0))
    names = (name, f"{name}_scale", f"{name}_zero_point")
    w.nodes[-1] = replace(w.nodes[-1], outputs=names)
    _integers_to_float(w, names[0], w.input(1), (names[1], w.input(2)), (names[2], w.input(3)), w.input(4))


def _matmul_integer_to_float(w: _Writer) -> None:
    scales, zero_points = (w.input(2), w.input(3)), (w.input(4), w.input(5))
    static = all(w.array(name) is not None for name in (*scales, *filter(None, zero_points)))
    if not static:
        return _integers_to_float(w, w.input(0), w.input(1), scales, zero_points, w.input(6))
    weights = w.array(w.input(1))
    axis = None if weights is None or w.known(3).size == 1 else weights.ndim - 1
    y = w.op("MatMul", w.dequantize(0, 2, 4), w.dequantize(1, 3, 5, axis))
    return w.finish(w.op("Add", y, w.input(6)) if w.input(6) else y)


def _integers_to_float(
    w: _Writer, a: str, b: str, scales: tuple[str, str], zero_points: tuple[str, str], bias: str
) -> None:
    """float(MatMulInteger(a, b)) * (a's scale * b's scale) + bias"""
    sums = w.op("Cast", w.op("MatMulInteger", a, b, *zero_points), to=FLOAT)
    y = w.op("Mul", sums, w.op("Mul", *scales))
    w.finish(w.op("Add", y, bias) if bias else y)


def _matmul_nbits(w: _Writer) -> None:
    """B [N, groups, bytes] holds `bits`-bit fields, the first in the lowest bits; integers become [K, N].

    Rows in an order of their own (g_idx, from quantizers that take the largest activations first) are sorted by their
    groups, and so are the columns of A.
    """
    bits, block = w.node.get_int("bits", 4), w.node.get_int("block_size", 0)
    columns, depth = w.node.get_int("N", 0), w.node.get_int("K", 0)
    groups = -(-depth // block)
    if bits not in UNSIGNED:
        raise Leave
    order = _by_groups(w.known(4), depth, block) if w.input(4) else None
    integers = _fields(w.known(1).reshape(columns, -1), bits)[:, :depth]
    scales = w.known(2).reshape(columns, groups)
    zero_points: Array = np.full((columns, groups), 1 << (bits - 1), np.uint8)
    if w.input(3):
        if w.known(3).dtype != np.uint8:
            raise Leave
        zero_points = _fields(w.known(3).reshape(columns, -1), bits)[:, :groups]
    kind, a = UNSIGNED[bits], w.input(0)
    if order is not None:
        integers = integers[:, order]
        a = w.op("Gather", a, w.constant(order, "order"), axis=-1)
    operands = [
        w.constant(np.ascontiguousarray(array.T), hint)
        for hint, array in (
            ("quantized", integers.astype(kind)), ("scale", scales), ("zero_point", zero_points.astype(kind)),
        )
    ]  # fmt: skip
    y = w.op("MatMul", a, w.op("DequantizeLinear", *operands, axis=0, block_size=block))
    w.finish(w.op("Add", y, w.input(5)) if w.input(5) else y)


def _by_groups(group_of: Array, depth: int, block: int) -> npt.NDArray[np.int64] | None:
    """The order in which rows lie group by group; None where they do. A group must be a block of rows."""
    blocks = np.arange(depth) // block
    if np.array_equal(group_of.ravel(), blocks):
        return None
    order = np.argsort(group_of.ravel(), kind="stable")
    if not np.array_equal(group_of.ravel()[order], blocks):
        raise Leave
    return order.astype(np.int64)


def _fields(packed: Array, bits: int) -> Array:
    """Rows of bytes -> rows of their `bits`-bit fields, lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    fields: Array = (packed.astype(np.uint8)[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return fields.reshape(len(packed), -1)


def _fused(op: str) -> Rule:
    """A convolution or Gemm, what is added to it, and the function of the sum."""

    def rule(w: _Writer) -> None:
        stated = w.node.attributes
        own = {key: value for key, value in stated.items() if not key.startswith("activation")}
        y = w.op(op, *w.node.inputs[:3], **own)
        if w.input(3):
            y = w.op("Add", y, w.input(3))
        name = w.node.get_str("activation", "")
        given = stated.get("activation_params")
        numbers = given if isinstance(given, tuple) else _numbers(stated)
        w.finish(_activation(w, name, y, numbers) if name else y)

    return rule


def _numbers(attributes: Mapping[str, Attribute]) -> tuple[float, ...]:
    """FusedGemm's activation_alpha, activation_beta."""
    found = (attributes.get(f"activation_{key}") for key in ("alpha", "beta", "gamma"))
    return tuple(value for value in found if isinstance(value, float))


def _activation(w: _Writer, name: str, y: str, numbers: Sequence[float | str]) -> str:
    if name == "Clip":
        return w.op("Clip", y, *(w.constant(np.array(x, np.float32), "limit") for x in numbers))
    if name in ("Relu", "Sigmoid", "Tanh"):
        return w.op(name, y)
    if name in ("LeakyRelu", "HardSigmoid"):
        return w.op(name, y, **{key: float(value) for key, value in zip(("alpha", "beta"), numbers, strict=False)})
    raise Leave


RULES: Mapping[tuple[str, str], Rule] = {
    ("", "QLinearConv"): _qlinear_conv,
    ("", "QLinearMatMul"): _qlinear_matmul,
    (CONTRIB, "DequantizeLinear"): _rounding("DequantizeLinear"),
    (CONTRIB, "DynamicQuantizeMatMul"): _dynamic_quantize_matmul,
    (CONTRIB, "FusedConv"): _fused("Conv"),
    (CONTRIB, "FusedGemm"): _fused("Gemm"),
    (CONTRIB, "MatMulIntegerToFloat"): _matmul_integer_to_float,
    (CONTRIB, "MatMulNBits"): _matmul_nbits,
    (CONTRIB, "QGemm"): _qgemm,
    (CONTRIB, "QLinearAdd"): _binary("Add"),
    (CONTRIB, "QLinearAveragePool"): _pool("AveragePool"),
    (CONTRIB, "QLinearConcat"): _qlinear_concat,
    (CONTRIB, "QLinearConv"): _qlinear_conv,
    (CONTRIB, "QLinearGlobalAveragePool"): _pool("GlobalAveragePool"),
    (CONTRIB, "QLinearLeakyRelu"): _unary("LeakyRelu"),
    (CONTRIB, "QLinearMul"): _binary("Mul"),
    (CONTRIB, "QLinearSigmoid"): _unary("Sigmoid"),
    (CONTRIB, "QLinearSoftmax"): _qlinear_softmax,
    (CONTRIB, "QLinearWhere"): _qlinear_where,
    (CONTRIB, "QuantizeLinear"): _rounding("QuantizeLinear"),
}
"""(domain, operator) -> how it is written."""
