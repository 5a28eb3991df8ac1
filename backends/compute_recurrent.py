"""The steps of a recurrent layer as one kernel: the state stays on the stack, each row of the batch is a task.

    LSTM  g = x_t + h R; i, o, f = s(g..); c = f c + i tanh(g_c); h = o tanh(c)
    GRU   z, r = s(x_t + h R); n = tanh(x_n + (r h) R_n), or tanh(x_n + r (h R_n + b)); h = n + z (h - n)
    RNN   h = tanh(x_t + h R)

x_t is the input's share of the gates, computed for all steps before. s is the sigmoid.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from graphc.backends import vector_math
from graphc.backends.decompose_recurrent import GATES, KERNELS
from graphc.backends.relax_module import Lowering, computes
from graphc.backends.statements import const, function, loop, sequence, tasks
from graphc.ir import Node

BLOCK = 4
"""Elements of the state that one sweep over the sums takes in."""

FLOAT = "float32"


@computes(KERNELS, *GATES)
def recurrent(state: Lowering, node: Node) -> Sequence[Any]:
    """(x [T * B, G * H], R [H, G * H], h [B, H], c [B, H] or absent, b [G * H] or absent) -> [(T or T + 1) * B, H].

    Rows are the outputs in order of time; for LSTM the last c follows.
    """
    names = [name for name in node.inputs if name]
    dims = {name: state.type(name).dims for name in names}
    hidden, batch = dims[node.inputs[2]][1], dims[node.inputs[2]][0]
    kind = state.type(node.outputs[0])
    nest = _Steps(node, batch, dims[node.inputs[0]][0] // batch, hidden, kind.size).nest()
    return [state.emit_function(nest, [state.value(name) for name in names], kind, name=f"{node.op.lower()}_steps")]


class _Steps:
    """The loop nest under construction, and its buffers."""

    def __init__(self, node: Node, batch: int, steps: int, hidden: int, size: int) -> None:
        self.node, self.batch, self.steps, self.hidden = node, batch, steps, hidden
        self.width = GATES[node.op] * hidden
        self.x = tirx.decl_buffer((steps * batch, self.width), FLOAT, "x")
        self.weights = tirx.decl_buffer((hidden, self.width), FLOAT, "weights")
        self.first = tirx.decl_buffer((batch, hidden), FLOAT, "first")
        self.cell = tirx.decl_buffer((batch, hidden), FLOAT, "cell") if self._has(3) else None
        self.bias = tirx.decl_buffer((self.width,), FLOAT, "bias") if self._has(4) else None
        self.y = tirx.decl_buffer((size,), FLOAT, "y")
        self.h, self.c, self.part = (tirx.decl_buffer((hidden,), FLOAT, n, scope="local") for n in ("h", "c", "part"))
        self.sums = tirx.decl_buffer((self.width,), FLOAT, "sums", scope="local")

    def _has(self, index: int) -> bool:
        return len(self.node.inputs) > index and bool(self.node.inputs[index])

    def nest(self) -> Any:
        given = [b for b in (self.x, self.weights, self.first, self.cell, self.bias, self.y) if b is not None]
        return function(given, None, [tasks(self.batch, self._row)])

    def _row(self, row: Any) -> Any:
        step = {"LSTM": self._lstm, "GRU": self._gru, "RNN": self._rnn}[self.node.op]
        reverse = bool(self.node.get_int("reverse", 0))

        def at(s: Any) -> Any:
            return step((self.steps - 1 - s if reverse else s) * self.batch + row)

        cell = self.cell
        local = [self.h, self.sums, *([self.c] if cell is not None else []), *([self.part] if self._apart() else [])]
        body = [*(tirx.AllocBuffer(b) for b in local), self._each(lambda j: self._store(self.h, j, self.first[row, j]))]
        if cell is not None:
            body.append(self._each(lambda j: self._store(self.c, j, cell[row, j])))
        body.append(loop("s", 0, self.steps, at))
        if cell is not None:
            last = (self.steps * self.batch + row) * self.hidden
            body.append(self._each(lambda j: self._store(self.y, last + j, self.c[j])))
        return sequence(body)

    def _apart(self) -> bool:
        """Whether a GRU multiplies its state by r before the product."""
        return self.node.op == "GRU" and not self.node.get_int("linear_before_reset", 0)

    def _each(self, body: Callable[[Any], Any]) -> Any:
        return loop("j", 0, self.hidden, body)

    def _store(self, buffer: Any, index: Any, value: Any) -> Any:
        return tirx.BufferStore(buffer, value, [index])

    def _output(self, place: Any, j: Any, value: Any) -> list[Any]:
        return [self._store(self.h, j, value), self._store(self.y, place * self.hidden + j, self.h[j])]

    def _products(self, begin: Callable[[Any], Any], vector: Any, first: int, last: int) -> Any:
        """sums[j] = begin(j) + vector R[:, j] for the columns first..last-1, a few rows of R at a time."""
        count = last - first
        whole = self.hidden // BLOCK * BLOCK

        def rows(k: Any, number: int) -> Any:
            def column(i: Any) -> Any:
                j = first + i
                value = self.sums[j]
                for d in range(number):
                    value = value + vector[k + d] * self.weights[k + d, j]
                return self._store(self.sums, j, value)

            return loop("i", 0, count, column)

        body = [loop("i", 0, count, lambda i: self._store(self.sums, first + i, begin(first + i)))]
        if whole:
            body.append(loop("k", 0, whole // BLOCK, lambda k: rows(k * BLOCK, BLOCK)))
        body.extend(rows(const(k), 1) for k in range(whole, self.hidden))
        return sequence(body)

    def _lstm(self, place: Any) -> Any:
        def element(j: Any) -> Any:
            i, o, f = (vector_math.sigmoid(self.sums[k * self.hidden + j]) for k in range(3))
            kept = f * self.c[j] + i * vector_math.tanh(self.sums[3 * self.hidden + j])
            cell = self._store(self.c, j, kept)
            return sequence([cell, *self._output(place, j, o * vector_math.tanh(self.c[j]))])

        return sequence([self._products(lambda j: self.x[place, j], self.h, 0, self.width), self._each(element)])

    def _gru(self, place: Any) -> Any:
        two = 2 * self.hidden
        if not self._apart():
            bias = self.bias
            products = self._products(lambda j: const(0.0, FLOAT) if bias is None else bias[j], self.h, 0, self.width)

            def whole(j: Any) -> Any:
                z, r = (
                    self._store(self.sums, k + j, vector_math.sigmoid(self.x[place, k + j] + self.sums[k + j]))
                    for k in (0, self.hidden)
                )
                new = self.x[place, two + j] + self.sums[self.hidden + j] * self.sums[two + j]
                return sequence([z, r, self._store(self.sums, two + j, new), *self._mixed(place, j)])

            return sequence([products, self._each(whole)])

        def reset(j: Any) -> Any:
            return self._store(self.part, j, vector_math.sigmoid(self.sums[self.hidden + j]) * self.h[j])

        def rest(j: Any) -> Any:
            return sequence([self._store(self.sums, j, vector_math.sigmoid(self.sums[j])), *self._mixed(place, j)])

        gates = self._products(lambda j: self.x[place, j], self.h, 0, two)
        new = self._products(lambda j: self.x[place, j], self.part, two, self.width)
        return sequence([gates, self._each(reset), new, self._each(rest)])

    def _mixed(self, place: Any, j: Any) -> list[Any]:
        """h = n + z (h - n): z and the argument of n = tanh(..) are in the sums."""
        two = 2 * self.hidden
        n = self._store(self.sums, two + j, vector_math.tanh(self.sums[two + j]))
        kept = self.sums[two + j]
        return [n, *self._output(place, j, kept + self.sums[j] * (self.h[j] - kept))]

    def _rnn(self, place: Any) -> Any:
        def element(j: Any) -> Any:
            return sequence(self._output(place, j, vector_math.tanh(self.sums[j])))

        return sequence([self._products(lambda j: self.x[place, j], self.h, 0, self.width), self._each(element)])
