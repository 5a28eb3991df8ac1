"""The steps of a recurrent layer as one kernel: the state stays on the stack, each row of the batch is a task.

    LSTM  g = x_t + h R; i, o, f = s(g..); c = f c + i tanh(g_c); h = o tanh(c)
    GRU   z, r = s(x_t + h R); n = tanh(x_n + (r h) R_n), or tanh(x_n + r (h R_n + b)); h = n + z (h - n)
    RNN   h = tanh(x_t + h R)

x_t is the input's share of the gates, computed for all steps before. s is the sigmoid.

R may be coded, or 16-bit floats: it stays so in memory, and each step decodes it in registers. With int8 that takes
1.14 times as long as with floats, a quarter of the bytes; with int4 no longer (LSTM of 128 units, 50 steps, AVX-512).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from tvm import tirx

from graphc.backends import vector_math
from graphc.backends.compute_coded import CodedOperand, coded_operand
from graphc.backends.decompose_recurrent import GATES, KERNELS
from graphc.backends.relax_module import Lowering, computes
from graphc.backends.statements import const, function, loop, sequence, spread, tasks, vector
from graphc.ir import Array, Node

BLOCK = 4
"""Elements of the state that one sweep over the sums takes in."""
VECTORS = 4
"""Most vectors of sums in registers beside what their weights are decoded from."""

FLOAT = "float32"


@computes(KERNELS, *GATES)
def recurrent(state: Lowering, node: Node) -> Sequence[Any]:
    """(x [T * B, G * H], R [H, G * H], h [B, H], c [B, H] or absent, b [G * H] or absent) -> [(T or T + 1) * B, H].

    Rows are the outputs in order of time; for LSTM the last c follows.
    """
    x, r, *rest = node.inputs
    batch, hidden = state.type(rest[0]).dims
    kind, stored = state.type(node.outputs[0]), state.weights(r)
    lanes = max(1, state.target.lanes(32))
    coded = coded_operand(state, r, partial(_by_gate, GATES[node.op], lanes), lanes) if stored is None else None
    if coded is not None:
        weights = list(coded.operands)
    else:
        weights = [state.value(r) if stored is None else state.parameter(stored, r)]
    steps = _Steps(node, batch, state.type(x).dims[0] // batch, hidden, kind.size, weights, coded)
    operands = [state.value(x), *weights, *(state.value(name) for name in rest if name)]
    return [state.emit_function(steps.nest(), operands, kind, name=f"{node.op.lower()}_steps")]


def _by_gate(gates: int, lanes: int, r: Array) -> Array:
    """R (H, G * H) as (outputs, H), where each gate has whole vectors of outputs."""
    hidden = len(r)
    rows = r.T.reshape(gates, hidden, hidden)
    return np.pad(rows, [(0, 0), (0, -hidden % lanes), (0, 0)], mode="edge").reshape(-1, hidden)


class _Steps:
    """The loop nest under construction, and its buffers."""

    def __init__(
        self,
        node: Node,
        batch: int,
        steps: int,
        hidden: int,
        size: int,
        weights: Sequence[Any],
        coded: CodedOperand | None,
    ) -> None:
        self.node, self.batch, self.steps, self.hidden = node, batch, steps, hidden
        self.gates = GATES[node.op]
        self.width = self.gates * hidden
        self.x = tirx.decl_buffer((steps * batch, self.width), FLOAT, "x")
        given = [([int(d) for d in each.ty.shape], str(each.ty.dtype)) for each in weights]
        self.weights = [tirx.decl_buffer(shape, dtype, f"weights{n}") for n, (shape, dtype) in enumerate(given)]
        self.decoder = coded.decoder(self.weights) if coded else None
        self.room = -(-hidden // self.decoder.width) * self.decoder.width if self.decoder else hidden
        """Sums of one gate: whole vectors of them where weights are decoded."""
        self.first = tirx.decl_buffer((batch, hidden), FLOAT, "first")
        self.cell = tirx.decl_buffer((batch, hidden), FLOAT, "cell") if self._has(3) else None
        self.bias = tirx.decl_buffer((self.width,), FLOAT, "bias") if self._has(4) else None
        self.y = tirx.decl_buffer((size,), FLOAT, "y")
        self.h, self.c, self.part = (tirx.decl_buffer((hidden,), FLOAT, n, scope="local") for n in ("h", "c", "part"))
        self.sums = tirx.decl_buffer((self.gates * self.room,), FLOAT, "sums", scope="local")

    def _has(self, index: int) -> bool:
        return len(self.node.inputs) > index and bool(self.node.inputs[index])

    def nest(self) -> Any:
        given = [b for b in (self.x, *self.weights, self.first, self.cell, self.bias, self.y) if b is not None]
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

    def _products(self, begin: Callable[[Any], Any], state: Any, first: int, last: int) -> Any:
        """The sums of gates first .. last - 1: begin(j) + state R[:, j]."""
        return (self._dense if self.decoder is None else self._decoded)(begin, state, first, last)

    def _dense(self, begin: Callable[[Any], Any], state: Any, first: int, last: int) -> Any:
        """A few rows of R at a time, for all of these gates."""
        start, count = first * self.hidden, (last - first) * self.hidden
        whole = self.hidden // BLOCK * BLOCK

        def rows(k: Any, number: int) -> Any:
            def column(i: Any) -> Any:
                j = start + i
                value = self.sums[j]
                for d in range(number):
                    value = value + state[k + d] * self.weights[0][k + d, j].astype(FLOAT)
                return self._store(self.sums, j, value)

            return loop("i", 0, count, column)

        body = [loop("i", 0, count, lambda i: self._store(self.sums, start + i, begin(start + i)))]
        if whole:
            body.append(loop("k", 0, whole // BLOCK, lambda k: rows(k * BLOCK, BLOCK)))
        body.extend(rows(const(k), 1) for k in range(whole, self.hidden))
        return sequence(body)

    def _decoded(self, begin: Callable[[Any], Any], state: Any, first: int, last: int) -> Any:
        """All rows of R at a time, for a few vectors of outputs whose sums stay in registers."""
        decoder = self.decoder
        assert decoder is not None
        lanes, blocks = decoder.width, self.room // decoder.width
        count = (last - first) * blocks
        together = max(n for n in range(1, VECTORS + 1) if count % n == 0)
        acc = tirx.decl_buffer((together * lanes,), FLOAT, "acc", scope="local")
        places = [vector(const(v * lanes), lanes) for v in range(together)]

        def run(n: Any) -> Any:
            block = first * blocks + n * together

            def row(k: Any) -> Any:
                own = [block + v for v in range(together)]
                weights = [decoder(each, const(0), k, const(0), lanes, not decoder.scaled_once) for each in own]
                added = [acc[at] + spread(state[k], lanes) * w for at, w in zip(places, weights, strict=True)]
                return sequence([tirx.BufferStore(acc, each, [at]) for each, at in zip(added, places, strict=True)])

            zero = [tirx.BufferStore(acc, spread(const(0, FLOAT), lanes), [at]) for at in places]
            sums = [acc[at] for at in places]
            if decoder.scaled_once:
                sums = [each * decoder.scale(block + v, lanes) for v, each in enumerate(sums)]
            kept = [
                tirx.BufferStore(self.sums, each, [vector((block + v) * lanes, lanes)]) for v, each in enumerate(sums)
            ]
            return sequence([tirx.AllocBuffer(acc), *zero, decoder.over_depth(self.hidden, row), *kept])

        def gate(number: int) -> Any:
            def element(j: Any) -> Any:
                at = number * self.room + j
                return self._store(self.sums, at, self.sums[at] + begin(number * self.hidden + j))

            return self._each(element)

        return sequence([loop("run", 0, count // together, run), *(gate(number) for number in range(first, last))])

    def _lstm(self, place: Any) -> Any:
        def element(j: Any) -> Any:
            i, o, f = (vector_math.sigmoid(self.sums[k * self.room + j]) for k in range(3))
            kept = f * self.c[j] + i * vector_math.tanh(self.sums[3 * self.room + j])
            cell = self._store(self.c, j, kept)
            return sequence([cell, *self._output(place, j, o * vector_math.tanh(self.c[j]))])

        return sequence([self._products(lambda j: self.x[place, j], self.h, 0, self.gates), self._each(element)])

    def _gru(self, place: Any) -> Any:
        if not self._apart():
            bias = self.bias
            products = self._products(lambda j: const(0.0, FLOAT) if bias is None else bias[j], self.h, 0, self.gates)

            def whole(j: Any) -> Any:
                x = [self.x[place, k * self.hidden + j] for k in range(3)]
                at = [k * self.room + j for k in range(3)]
                z, r = (self._store(self.sums, at[k], vector_math.sigmoid(x[k] + self.sums[at[k]])) for k in range(2))
                new = x[2] + self.sums[at[1]] * self.sums[at[2]]
                return sequence([z, r, self._store(self.sums, at[2], new), *self._mixed(place, j)])

            return sequence([products, self._each(whole)])

        def reset(j: Any) -> Any:
            return self._store(self.part, j, vector_math.sigmoid(self.sums[self.room + j]) * self.h[j])

        def rest(j: Any) -> Any:
            return sequence([self._store(self.sums, j, vector_math.sigmoid(self.sums[j])), *self._mixed(place, j)])

        gates = self._products(lambda j: self.x[place, j], self.h, 0, 2)
        new = self._products(lambda j: self.x[place, j], self.part, 2, 3)
        return sequence([gates, self._each(reset), new, self._each(rest)])

    def _mixed(self, place: Any, j: Any) -> list[Any]:
        """h = n + z (h - n): z and the argument of n = tanh(..) are in the sums."""
        two = 2 * self.room
        n = self._store(self.sums, two + j, vector_math.tanh(self.sums[two + j]))
        kept = self.sums[two + j]
        return [n, *self._output(place, j, kept + self.sums[j] * (self.h[j] - kept))]

    def _rnn(self, place: Any) -> Any:
        def element(j: Any) -> Any:
            return sequence(self._output(place, j, vector_math.tanh(self.sums[j])))

        return sequence([self._products(lambda j: self.x[place, j], self.h, 0, self.gates), self._each(element)])
