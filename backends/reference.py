"""Running an integerized graph in numpy: what an artifact's integers must equal, element for element.

Integer nodes are computed by `arithmetic.py`; every other node alone, in onnxruntime (onnx's own evaluator where
onnxruntime has no kernel for the types), so that nothing is fused across a node and nothing rounds differently.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from graphc.backends import arithmetic
from graphc.backends.arithmetic import Numbers, Result, Window
from graphc.backends.integer_region import DOMAIN
from graphc.backends.reference_node import Evaluate, evaluator
from graphc.errors import InternalError
from graphc.execute import check_feeds
from graphc.ir.graph import Array, Graph, Node

Operator: TypeAlias = Callable[[Node, Sequence[Numbers | None], Result], Numbers]


class Reference:
    """An integerized graph that can be run many times; sessions of its ONNX nodes are kept."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._last = _last_uses(graph)
        self._evaluators: dict[Node, Evaluate] = {}

    def run(self, feeds: Mapping[str, Array], keep: Sequence[str] = ()) -> dict[str, Array]:
        """Outputs by name, and the values named in `keep`. Feeds have the shapes that the graph states.

        Raises InputError where feeds do not fit, UnsupportedError for a node that neither runtime can evaluate.
        """
        check_feeds(self.graph, feeds)
        wanted = {*self.graph.outputs, *keep}
        values: dict[str, Array] = {**self.graph.constants, **feeds}
        for position, node in enumerate(self.graph.nodes):
            values.update(zip(node.results, self._evaluate(node, values), strict=True))
            for name in node.reads:
                if self._last[name] == position and name not in wanted:
                    del values[name]
        return {name: values[name] for name in (*self.graph.outputs, *keep)}

    def _evaluate(self, node: Node, values: Mapping[str, Array]) -> Sequence[Array]:
        if node.domain == DOMAIN:
            return [_integer(self.graph, node, [values[name] if name else None for name in node.inputs])]
        if node not in self._evaluators:
            self._evaluators[node] = evaluator(self.graph, node)
        return self._evaluators[node](values)


def run(graph: Graph, feeds: Mapping[str, Array], keep: Sequence[str] = ()) -> dict[str, Array]:
    """One run of an integerized graph: outputs by name, and the values named in `keep`."""
    return Reference(graph).run(feeds, keep)


def _last_uses(graph: Graph) -> dict[str, int]:
    """Value -> position of the last node that reads it."""
    return {name: position for position, node in enumerate(graph.nodes) for name in node.reads}


def _integer(graph: Graph, node: Node, operands: Sequence[Numbers | None]) -> Numbers:
    """The result of a node of the integer domain."""
    if node.op not in OPERATORS:
        raise InternalError(node.label, f"the integer domain has {', '.join(OPERATORS)} only.")
    dtype = graph.types[node.outputs[0]].dtype
    result = Result(dtype, *(node.get_int(key, 0) for key in ("y_zero_point", "y_min", "y_max")))
    return OPERATORS[node.op](node, operands, result)


def _window(node: Node) -> Window:
    return Window(*(node.get_ints(key) for key in ("kernel_shape", "strides", "pads", "dilations")))


def _given(operands: Sequence[Numbers | None], index: int) -> Numbers:
    """An operand, or zero in its place where it is absent."""
    found = operands[index] if index < len(operands) else None
    return np.zeros(1, np.int32) if found is None else found


def _per_channel(values: Numbers, rank: int) -> Numbers:
    """Values per output channel, to broadcast over [N, O, *spatial]."""
    return values.reshape(1, -1, *(1,) * (rank - 2))


def _conv(node: Node, operands: Sequence[Numbers | None], result: Result) -> Numbers:
    x, w, bias, scale, zero_points = (_given(operands, i) for i in range(5))
    group, x_zero_point = node.get_int("group", 1), node.get_int("x_zero_point", 0)
    if node.op == "Conv":
        sums = arithmetic.convolve(
            x, w, _window(node), group=group, x_zero_point=x_zero_point, w_zero_points=zero_points
        )
    else:
        sums = arithmetic.convolve_transposed(
            x, w, _window(node), group=group, output_padding=node.get_ints("output_padding"),
            x_zero_point=x_zero_point, w_zero_points=zero_points,
        )  # fmt: skip
    return arithmetic.requantize(sums + _per_channel(bias, x.ndim), _per_channel(scale, x.ndim), result)


def _matmul(node: Node, operands: Sequence[Numbers | None], result: Result) -> Numbers:
    a, b, bias, scale, zero_points = (_given(operands, i) for i in range(5))
    offsets = zero_points + np.int32(node.get_int("b_zero_point", 0))
    a_zero_point = int(_given(operands, 5).reshape(())) if len(operands) > 5 else node.get_int("a_zero_point", 0)
    sums = arithmetic.multiply_matrices(a, b, a_zero_point=a_zero_point, b_zero_points=offsets)
    return arithmetic.requantize(sums + bias, scale, result)


def _add(node: Node, operands: Sequence[Numbers | None], result: Result) -> Numbers:
    pair = (_given(operands, 0), _given(operands, 1))
    zero_points = node.get_int("a_zero_point", 0), node.get_int("b_zero_point", 0)
    multipliers = node.get_int("a_multiplier", 1), node.get_int("b_multiplier", 1)
    return arithmetic.add(pair, zero_points, multipliers, node.get_int("shift", 1), result=result)


def _multiply(node: Node, operands: Sequence[Numbers | None], result: Result) -> Numbers:
    a, b, scale = (_given(operands, i) for i in range(3))
    zero_points = node.get_int("a_zero_point", 0), node.get_int("b_zero_point", 0)
    return arithmetic.multiply((a, b), zero_points, scale, result)


def _average_pool(node: Node, operands: Sequence[Numbers | None], result: Result) -> Numbers:
    return arithmetic.average_pool(
        _given(operands, 0), _given(operands, 1), _window(node), x_zero_point=node.get_int("x_zero_point", 0),
        count_include_pad=bool(node.get_int("count_include_pad", 0)), result=result,
    )  # fmt: skip


def _mean(node: Node, operands: Sequence[Numbers | None], result: Result) -> Numbers:
    x, scale = _given(operands, 0), _given(operands, 1)
    axes, keepdims = node.get_ints("axes"), bool(node.get_int("keepdims", 1))
    return arithmetic.mean(x, scale, axes, keepdims, x_zero_point=node.get_int("x_zero_point", 0), result=result)


def _softmax(node: Node, operands: Sequence[Numbers | None], result: Result) -> Numbers:
    x, table, scale = (_given(operands, i) for i in range(3))
    return arithmetic.softmax(x, table, scale, node.get_int("axis", -1), result)


def _table(node: Node, operands: Sequence[Numbers | None], result: Result) -> Numbers:
    return arithmetic.lookup(_given(operands, 0), _given(operands, 1))


OPERATORS: Mapping[str, Operator] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "MatMul": _matmul,
    "Add": _add,
    "Multiply": _multiply,
    "AveragePool": _average_pool,
    "Mean": _mean,
    "Softmax": _softmax,
    "Table": _table,
}
