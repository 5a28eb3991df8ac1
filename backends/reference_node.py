"""One ONNX node by itself, as a function of the values it reads."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from onnx.reference import ReferenceEvaluator

from graphc.errors import UnsupportedError
from graphc.execute import Session
from graphc.exporter import to_model
from graphc.ir.graph import Array, Graph, Node, TensorType

Evaluate: TypeAlias = Callable[[Mapping[str, Array]], Sequence[Array]]
"""All values by name -> the node's results, in order."""


def evaluator(graph: Graph, node: Node) -> Evaluate:
    """`node` of `graph` in onnxruntime, or in onnx's own evaluator where onnxruntime has no kernel for its types."""
    alone = isolated(graph, node)
    try:
        session = Session(alone)
    except UnsupportedError:
        return _in_onnx(alone)
    return lambda values: list(session.run({name: values[name] for name in alone.inputs}).values())


def isolated(graph: Graph, node: Node) -> Graph:
    """A graph of `node` alone: its constants inside, everything else it reads as inputs whose shapes are open."""
    constants = {name: graph.constants[name] for name in node.reads if name in graph.constants}
    inputs = tuple(name for name in node.reads if name not in constants)
    types = {name: _opened(graph.types[name]) for name in (*inputs, *node.results)}
    types.update({name: graph.types[name] for name in constants})
    return Graph(node.op, inputs, node.results, (node,), types, constants)


def _opened(kind: TensorType) -> TensorType:
    return TensorType(kind.dtype, None if kind.shape is None else ("?",) * len(kind.shape))


def _in_onnx(alone: Graph) -> Evaluate:
    runtime = ReferenceEvaluator(to_model(alone))
    return lambda values: [np.asarray(x) for x in runtime.run(None, {name: values[name] for name in alone.inputs})]
