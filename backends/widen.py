"""Arithmetic on 16-bit floats in float32: what is stored is rounded, once, and not the result of every operator.

    y = Add(Mul(a, b), c)   ->   y = Cast<float16>(Add(Mul(Cast<float32>(a), Cast<float32>(b)), Cast<float32>(c)))

As onnxruntime does it for operators that it has no float16 kernels of. Large constants keep their 16 bits and are
widened in registers by the kernel that reads them (`Lowering.weights`). A Cast that the model itself holds still
rounds.
"""

import ml_dtypes
import numpy as np
from onnx import TensorProto

from graphc.backends.dead_nodes import drop_dead_nodes
from graphc.ir.edit import Edit
from graphc.ir.graph import Graph, Node

NARROW = frozenset({np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)})
FLOAT = np.dtype(np.float32)
SMALL = 4096
"""Elements up to which a constant is widened at once; so are vectors, of any length."""

STORES = frozenset(
    {"BitCast", "Bernoulli", "Cast", "ConstantOfShape", "DequantizeLinear", "EyeLike", "If", "Loop", "OneHot"}
    | {"QuantizeLinear", "RandomNormalLike", "RandomUniformLike", "Range", "Scan"}
)
"""Operators whose type is stated by an attribute, or matters bit by bit: they stay as they are."""

MOVES = frozenset(
    {"Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad"}
    | {"Reshape", "ScatterElements", "ScatterND", "Shape", "Size", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile"}
    | {"Transpose", "Trilu", "Unsqueeze", "Where"}
)
"""Operators that compute nothing: they follow their operands, and move half the bytes where those are stored so."""


def widened(graph: Graph) -> Graph:
    """`graph` with no arithmetic on 16-bit floats; the same object where there is none."""
    if not any(kind.dtype in NARROW for kind in graph.types.values()):
        return graph
    return _Widening(graph).run()


class _Widening:
    """One walk in order: `twins` are the float32 values that stand for narrow ones."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.edit = graph, Edit(graph)
        self.twins: dict[str, str] = {}

    def run(self) -> Graph:
        for node in self.graph.nodes:
            if self._computes(node):
                self._widen(node)
        return drop_dead_nodes(self.edit.apply())

    def _narrow(self, name: str) -> bool:
        return bool(name) and self.graph.types[name].dtype in NARROW

    def _computes(self, node: Node) -> bool:
        if node.domain or node.op in STORES or not any(map(self._narrow, (*node.inputs, *node.outputs))):
            return False
        return node.op not in MOVES or any(name in self.twins for name in node.inputs)

    def _widen(self, node: Node) -> None:
        inputs = [self._twin(name, node) if self._narrow(name) else name for name in node.inputs]
        outputs = [self.edit.fresh(f"{name}_wide") if self._narrow(name) else name for name in node.outputs]
        self.edit.replace(node, inputs=inputs, outputs=outputs)
        for name, wide in zip(node.outputs, outputs, strict=True):
            if name != wide:
                self.twins[name] = wide
                kind = {"to": TensorProto.BFLOAT16 if self._is_bfloat(name) else TensorProto.FLOAT16}
                self.edit.add("Cast", [wide], kind, name=f"{name}_narrow", outputs=[name], near=node)

    def _is_bfloat(self, name: str) -> bool:
        return bool(self.graph.types[name].dtype == ml_dtypes.bfloat16)

    def _twin(self, name: str, reader: Node) -> str:
        """The float32 value of a narrow one."""
        if name not in self.twins:
            array = self.graph.constants.get(name)
            self.twins[name] = (
                self.edit.constant(array.astype(FLOAT), f"{name}_wide")
                if array is not None and (array.size <= SMALL or array.ndim <= 1)
                else self.edit.add("Cast", [name], {"to": TensorProto.FLOAT}, name=f"{name}_wide", near=reader)
            )
        return self.twins[name]
