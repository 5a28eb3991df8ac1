"""A graph as one Relax function: graphc's compute definitions where there are some, TVM's ONNX converters elsewhere.

Weights enter as parameters, never as Relax constants, so that nothing decodes or folds them; only small constants
(axes, shapes, scalars) are visible to the converters, which read their values. Runs inside the compile server.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from tvm import relax, topi

from graphc.artifact import Decision
from graphc.backends.choices import BY_MODEL, NO_CHOICES, Choice, Choices
from graphc.backends.coded import slices
from graphc.backends.program import stored_dtype
from graphc.backends.targets import Target
from graphc.backends.widen import NARROW
from graphc.errors import InternalError, UnsupportedError
from graphc.ir import Array, Graph, Node, TensorType
from graphc.ir.graph import OPSET, bits_of
from graphc.ir.protobuf import node_to_proto
from graphc.passes.fold_decoders import MOVES

INLINE_ELEMENTS = 8
"""Float constants up to this size, and any integer one up to `INLINE_INTEGERS`, are shown to TVM's converters."""
INLINE_INTEGERS = 1024

OUT_FUSIBLE = 4
"""TVM's kOutEWiseFusable: an anchor that takes elementwise operators as its epilogue."""
REDUCTION = 3
"""TVM's kCommReduce: takes elementwise operators as its prologue."""
BROADCAST = 1
"""TVM's kBroadcast: joins what follows it, and no anchor before it."""
INJECTIVE = 2
OPAQUE = 8
"""TVM's kOpaque: never fused."""
READY = "graphc.scheduled"
"""Attribute of a PrimFunc that needs no schedule."""
ALIAS = "graphc_alias"
"""Name of the kernel that stands for a view; it is never compiled."""
PART = "graphc_part"
"""Name of the kernel that stands for rows of its operand; it is never compiled."""
WHOLE = "graphc_whole"
"""Name of the kernel that stands for a buffer whose parts are its operands; it is never compiled."""
MARK = "graphc_node_"
"""Relax variables are named MARK + the index of the graph's node, so that fused kernels know what they compute."""

Compute = Callable[["Lowering", Node], Sequence[Any]]
COMPUTES: dict[tuple[str, str], Compute] = {}
"""(domain, operator) -> how graphc computes it: returns one Relax expression per result."""

_ROOMS = (
    "compute_conv",
    "compute_conv_transpose",
    "compute_matmul",
    "compute_narrow",
    "compute_pool",
    "compute_integer",
    "compute_shape",
    "compute_pad",
    "compute_dynamic",
    "compute_elementwise",
    "compute_decode",
    "compute_scatter",
    "compute_order",
    "compute_arithmetic",
    "compute_cast",
    "compute_reduce",
    "compute_recurrent",
    "compute_norm",
    "compute_roi",
)


def computes(domain: str, *ops: str) -> Callable[[Compute], Compute]:
    """Register a compute definition."""

    def register(function: Compute) -> Compute:
        COMPUTES.update({(domain, op): function for op in ops})
        return function

    return register


@dataclass
class Lowering:
    """What a compute definition sees: operands as Relax expressions, constants as arrays, and where to emit."""

    graph: Graph
    target: Target
    builder: Any
    choices: Choices = field(default_factory=dict)
    node: Node | None = None
    index: int = 0
    values: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, tuple[Any, Array]] = field(default_factory=dict)
    placeholders: list[Any] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    waiting: dict[str, int] = field(default_factory=dict)
    """Result -> index of a node that depends on constants alone, such as a decoder: lowered where a kernel reads it."""

    def type(self, name: str) -> TensorType:
        return self.graph.types[name]

    def choice(self, node: Node) -> Choice:
        """How to compute a node; the cost model's way unless something else was measured to be faster."""
        return self.choices.get(node.outputs[0], BY_MODEL)

    def constant(self, name: str) -> Array | None:
        return self.graph.constants.get(name) if name else None

    def weights(self, name: str) -> Array | None:
        """A constant as it is stored: in 16 bits where the graph widens it to float32, which its kernel then does."""
        node = self.graph.producers.get(name)
        if node is None or node.domain:
            return self.constant(name)
        if node.op == "Cast":
            array = self.constant(node.inputs[0])
            return array if array is not None and array.dtype in NARROW else None
        array = self.weights(node.inputs[0]) if node.op in {*MOVES, "Slice"} else None
        if array is None:
            return None
        if node.op == "Slice":
            places = slices(self.graph, node)
            return None if places is None else array[places]
        if node.op == "Transpose":
            return array.transpose(node.get_ints("perm", tuple(reversed(range(array.ndim)))))
        return array.reshape(self.type(name).dims)

    def parameter(self, array: Array, hint: str) -> Any:
        """A constant of the program that the kernel reads through a pointer."""
        name = f"{hint}.{len(self.parameters)}"
        array = np.ascontiguousarray(array)
        var = relax.Var(name, relax.TensorType(array.shape, array.dtype.name))
        self.parameters[name] = (var, array)
        self.placeholders.append(var)
        return var

    def value(self, name: str) -> Any:
        """The Relax expression for an operand, None for an absent one."""
        if not name:
            return None
        if name in self.waiting:
            self._lower_waiting(self.waiting[name])
        if name not in self.values:
            array = _whole_bytes(self.graph.constants[name])
            self.values[name] = relax.const(array, array.dtype.name) if _inlined(array) else self.parameter(array, name)
        return self.values[name]

    def _lower_waiting(self, index: int) -> None:
        node, current = self.graph.nodes[index], (self.node, self.index)
        for name in node.results:
            self.waiting.pop(name)
        self.node, self.index = node, index
        _lower_node(self, node)
        self.node, self.index = current

    def emit(self, function: Callable[..., Any], *arguments: Any, name: str, pattern: int | None = None) -> Any:
        """Emit a te.compute definition as a kernel of its own that TVM may fuse according to `pattern`."""
        attributes = {} if pattern is None else {"op_pattern": pattern}
        call = self.builder.call_te(function, *arguments, primfunc_name_hint=name, primfunc_attrs=attributes)
        return self.builder.emit(call, name_hint=f"{MARK}{self.index}_")

    def flat(self, name: str) -> Any:
        """An operand as an array of one dimension, which costs nothing."""
        size = self.type(name).size
        return self.emit(lambda x: topi.reshape(x, (size,)), self.value(name), name=ALIAS, pattern=OPAQUE)

    def emit_function(self, function: Any, arguments: Sequence[Any], result: TensorType, name: str) -> Any:
        """Emit a PrimFunc that is scheduled already and never fused; its flat result is given `result`'s shape."""
        function = function.with_attr("op_pattern", OPAQUE).with_attr(READY, True)
        variable = self.builder.add_func(function, name)
        flat = relax.TensorType((result.size,), result.dtype.name)
        call = relax.call_tir(variable, relax.Tuple(list(arguments)), flat)
        value = self.builder.emit(call, name_hint=f"{MARK}{self.index}_")
        return self.emit(lambda x: topi.reshape(x, result.dims), value, name=ALIAS, pattern=OPAQUE)


def _whole_bytes(array: Array) -> Array:
    """Elements of fewer than 8 bits as the bytes that hold their codes."""
    bits = bits_of(array.dtype)
    return array if bits >= 8 else array.view(np.uint8) & np.uint8((1 << bits) - 1)


def _inlined(array: Array) -> bool:
    limit = (
        INLINE_INTEGERS
        if (array.dtype.kind in "iub" and array.dtype.itemsize > 1) or array.dtype == np.bool_
        else INLINE_ELEMENTS
    )
    return array.size <= limit


def relax_module(
    graph: Graph, target: Target, note: Callable[[str], None], choices: Choices = NO_CHOICES
) -> tuple[Any, dict[str, Array], tuple[Decision, ...]]:
    """One Relax module with a function `main(inputs..., parameters...)`, the parameters' data by name, and how weights
    with zeros are multiplied.

    `note` is told each node before it is lowered. Raises UnsupportedError for an operator that nobody here can lower.
    """
    for room in _ROOMS:
        importlib.import_module(f"graphc.backends.{room}")
    builder = relax.BlockBuilder()
    state = Lowering(graph, target, builder, choices)
    inputs = []
    for name in graph.inputs:
        kind = graph.types[name]
        var = relax.Var(name, relax.TensorType(kind.dims, stored_dtype(kind.dtype)))
        state.values[name] = var
        inputs.append(var)
    main = builder.function("main", inputs)
    with main:
        with builder.dataflow():
            for index, node in enumerate(graph.nodes):
                note(node.label)
                state.node, state.index = node, index
                if _of_constants(state, node):
                    state.waiting.update(dict.fromkeys(node.results, index))
                else:
                    _lower_node(state, node)
            results = builder.emit_output(relax.Tuple([_materialised(state, i) for i in range(len(graph.outputs))]))
        builder.emit_func_output(results)
    module = builder.get()
    function = module["main"]
    module["main"] = relax.Function(
        [*inputs, *state.placeholders], function.body, function.ret_ty, function.is_pure, function.attrs
    )
    return module, {name: array for name, (_, array) in state.parameters.items()}, tuple(state.decisions)


def _of_constants(state: Lowering, node: Node) -> bool:
    """Whether all that a node reads is constant, or waits for being read because it is made of constants."""
    return bool(node.reads) and all(name in state.graph.constants or name in state.waiting for name in node.reads)


def _materialised(state: Lowering, position: int) -> Any:
    """A graph output as a buffer of its own, also where it is an input, a constant, a view or another output."""
    name = state.graph.outputs[position]
    producer = state.graph.producers.get(name)
    earlier = name in state.graph.outputs[:position]
    viewed = producer is not None and (producer.domain, producer.op) in COMPUTES and _is_view(producer)
    if producer is not None and not viewed and not earlier:
        return state.value(name)
    from tvm import te

    state.index = len(state.graph.nodes)
    return state.emit(
        lambda x: te.compute(x.shape, lambda *i: x[i], name="copy"), state.value(name), name="copy", pattern=OPAQUE
    )


VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "OptionalGetElement")
"""Operators whose result has the bytes of their first operand."""


def _is_view(node: Node) -> bool:
    return node.domain == "" and node.op in VIEWS


def _lower_node(state: Lowering, node: Node) -> None:
    compute = COMPUTES.get((node.domain, node.op), convert)
    results = compute(state, node)
    for name, result in zip(node.outputs, results, strict=False):
        if not name:
            continue
        expected, got = state.type(name), result.ty
        shape = (
            [int(d) for d in got.shape]
            if isinstance(got, relax.TensorType) and got.shape is not None and _static(got.shape)
            else None
        )
        if shape is None:
            raise UnsupportedError(
                node.label,
                f"the shape of its result '{name}' depends on data.",
                "Give constant shapes, or replace this operator.",
            )
        if tuple(shape) != expected.dims or str(got.dtype) != stored_dtype(expected.dtype):
            raise InternalError(node.label, f"lowered to {got.dtype}{shape}, expected {expected}.")
        state.values[name] = result


def _static(shape: Any) -> bool:
    return all(isinstance(d, int | tvm.tirx.IntImm) for d in shape)


def convert(state: Lowering, node: Node) -> Sequence[Any]:
    """One node through TVM's own ONNX converter."""
    from tvm.relax.frontend.onnx import onnx_frontend

    if node.domain or node.op not in onnx_frontend._get_convert_map():
        raise UnsupportedError(
            node.label,
            f"neither graphc nor TVM has a kernel for operator {node.op!r}.",
            "Replace it in the model, or keep it outside the compiled part.",
        )
    importer = onnx_frontend.ONNXGraphImporter({}, {})
    importer.bb, importer.opset = state.builder, OPSET
    proto = node_to_proto(node)
    attributes = importer._parse_attr(
        a for a in proto.attribute if a.ints or a.floats or a.strings or a.type not in (6, 7, 8)
    )
    attributes["tvm_custom"] = {"name": node.name, "num_outputs": len(node.outputs)}
    operands = onnx_frontend.onnx_input()
    operands.extend(state.value(name) for name in node.inputs)
    try:
        result = importer._convert_operator(node.op, operands, attributes, OPSET)
    except (
        ValueError,
        TypeError,
        NotImplementedError,
        AssertionError,
        AttributeError,
        KeyError,
        IndexError,
        RuntimeError,
    ) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UnsupportedError(
            node.label,
            f"TVM's converter refuses it: {reason}.",
            "Give its shape-deciding operands as constants, or replace the operator.",
        ) from error
    if isinstance(result, relax.Tuple):
        return [_emitted(state, item) for item in result.fields]
    result = _emitted(state, result)
    if isinstance(result.ty, relax.TupleType):
        return [state.builder.emit(relax.TupleGetItem(result, i)) for i in range(len(result.ty.fields))]
    return [result]


def _emitted(state: Lowering, expression: Any) -> Any:
    """Bind an expression to a variable that carries the node's mark."""
    if isinstance(expression, relax.ShapeExpr):
        raise UnsupportedError(
            state.node.label if state.node else "?", "its result is a shape, not a tensor.", "Run the fold pass first."
        )
    return state.builder.emit(expression, name_hint=f"{MARK}{state.index}_")
