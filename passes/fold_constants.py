"""Constants: what depends on constants alone is computed once, here.

    Add(3, 4)  ->  7          Transpose(w)  ->  w'          Shape(x: [1, 3, 8, 8])  ->  [1, 3, 8, 8]

Decoder expressions are never evaluated, random operators neither. A result may be larger than SMALL only where it
takes no more than GROWTH times the constants that it frees, and never larger than LARGEST: `ConstantOfShape`, `Expand`,
`Tile` and casts to wide types stay operators where they would swell the model.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from graphc import ort
from graphc.exporter import to_model
from graphc.ir.edit import Edit
from graphc.ir.graph import Array, Graph, Node, TensorType
from graphc.ir.infer import infer
from graphc.passes.fold_decoders import is_decoder
from graphc.passes.fold_sweep import Refuse

SMALL = 64 * 1024
"""Bytes below which a result may replace any operands."""
GROWTH = 2
"""How many times the bytes of the constants it frees a larger result may take."""
LARGEST = 1 << 30
"""Bytes that no result may exceed."""

RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


def fold_constants(graph: Graph, refuse: Refuse) -> Graph:
    """Evaluate every node whose operands are all constant."""
    return _Evaluation(graph, refuse).run()


class _Evaluation:
    """One walk over a graph in order: constants known so far, and the nodes that they replace."""

    def __init__(self, graph: Graph, refuse: Refuse) -> None:
        self.graph = graph
        self.refuse = refuse
        self.decoded: set[str] = set()
        self.values: dict[str, Array] = dict(graph.constants)
        self.types: dict[str, TensorType] = dict(graph.types)
        self.folded: set[Node] = set()

    def run(self) -> Graph:
        for node in self.graph.nodes:
            if self._ready(node):
                self._fold(node)
            elif is_decoder(node, self.types, self.values, self.decoded):
                self.decoded.update(node.results)
        if not self.folded:
            return self.graph
        edit = Edit(self.graph)
        edit.remove(*self.folded)
        for node in self.folded:
            for name in node.results:
                if name in self.graph.outputs:
                    edit.add(
                        "Identity", [edit.constant(self.values[name], f"{name}_value")], name=node.name, outputs=[name]
                    )
                elif any(user not in self.folded for user in self.graph.users.get(name, ())):
                    edit.define(name, self.values[name])
        return edit.apply()

    def _ready(self, node: Node) -> bool:
        """All operands constant, and a node that may be evaluated at all."""
        if node.domain or node.op in RANDOM or node.subgraphs:
            return False
        if is_decoder(node, self.types, self.values, self.decoded):
            return False
        if node.op == "Identity" and node.outputs[0] in self.graph.outputs:
            return False
        if node.op == "Shape" and self.types[node.inputs[0]].is_static:
            return True
        return all(name in self.values for name in node.reads)

    def _fold(self, node: Node) -> None:
        if node.op == "Shape":
            dims = self.types[node.inputs[0]].dims
            start, end = node.get_int("start", 0), node.get_int("end", len(dims))
            self._accept(node, {node.outputs[0]: np.array(dims[slice(start, end)], np.int64)})
            return
        if any(self.values[name].dtype == np.dtype(object) for name in node.reads):
            return
        if any(not self.types[name].is_static for name in node.results):
            self.types.update(infer(node, self.types, self.values))
        if not self._fits(node):
            self.refuse(node, "its constant result would be much larger than what it is computed from")
            return
        operands = {name: self.values[name] for name in node.reads}
        results = evaluate(node, operands, {name: self.types[name] for name in node.results})
        if results is None:
            self.refuse(node, "no evaluator has this operator for these types")
            return
        self._accept(node, results)

    def _accept(self, node: Node, results: Mapping[str, Array]) -> None:
        self.values.update(results)
        self.types.update({name: TensorType(array.dtype, tuple(array.shape)) for name, array in results.items()})
        self.folded.add(node)

    def _fits(self, node: Node) -> bool:
        """Whether the results are small, or as large as what they free allows; of open shapes, the operands are."""
        read = sum(self.types[name].bytes for name in node.reads)
        if any(not self.types[name].is_static for name in node.results):
            return read <= SMALL
        size = sum(self.types[name].bytes for name in node.results)
        return size <= SMALL or (size <= GROWTH * sum(map(self._freed, node.reads)) and size <= LARGEST)

    def _freed(self, name: str) -> float:
        """Bytes that go with this reader of `name`: its share, where all readers are evaluated."""
        users = self.graph.users[name]
        if name in self.graph.outputs or not all(user in self.folded or self._ready(user) for user in users):
            return 0
        return self.types[name].bytes / len(users)


def evaluate(node: Node, operands: Mapping[str, Array], types: Mapping[str, TensorType]) -> dict[str, Array] | None:
    """Results of one node on given operands: by onnxruntime, or by onnx's reference where that has no kernel.

    `types` are those of the results. None where neither can.
    """
    model = _model(node, operands, types)
    wanted = list(node.results)
    dtypes = [*(array.dtype for array in operands.values()), *(kind.dtype for kind in types.values())]
    found = _onnxruntime(model, wanted, operands) if all(dtype.isbuiltin == 1 for dtype in dtypes) else None
    if found is None:
        found = _reference(model, wanted, operands)
    if found is None:
        return None
    results = {name: np.asarray(value) for name, value in zip(wanted, found, strict=True)}
    for name, array in results.items():
        if array.dtype != types[name].dtype:
            return None
        array.setflags(write=False)
    return results


def _onnxruntime(model: bytes, wanted: list[str], operands: Mapping[str, Array]) -> list[Array] | None:
    """It speaks numpy's own types only: no bfloat16, no integers of 4 bits."""
    try:
        session = ort.onnxruntime().InferenceSession(model, _options(), providers=["CPUExecutionProvider"])
        found: list[Array] = session.run(wanted, dict(operands))
    except ort.refusals():
        return None
    return found


def _reference(model: bytes, wanted: list[str], operands: Mapping[str, Array]) -> list[Array] | None:
    from onnx.reference import ReferenceEvaluator

    try:
        found: list[Array] = ReferenceEvaluator(model).run(wanted, dict(operands))
    except (NotImplementedError, TypeError, ValueError, IndexError, KeyError, AttributeError, RuntimeError):
        return None
    return found


def _model(node: Node, operands: Mapping[str, Array], types: Mapping[str, TensorType]) -> bytes:
    """A serialized model of one node, its operands as inputs."""
    known = {name: TensorType(array.dtype, tuple(array.shape)) for name, array in operands.items()}
    graph = Graph("node", tuple(operands), node.results, (node,), {**known, **types}, {})
    data: bytes = to_model(graph).SerializeToString()
    return data


@cache
def _options() -> Any:
    """One thread, no rewriting, no messages: a kernel that is missing is not the user's concern."""
    onnxruntime = ort.onnxruntime()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options
