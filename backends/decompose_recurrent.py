"""LSTM, GRU and RNN step by step: the input's projection once for all steps, then one small product per step.

    X W^T + b for all steps    ->  [T, B, gates]
    step t: h R^T + that       ->  gates -> new h (and c)

Where code generation has one node for all steps of a direction (KERNELS), that stands in their place.

For sequences shorter than T a step keeps the old state, and its output is zero; the reverse direction runs t from the
end. Equations and defaults: the ONNX operator specification.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from graphc.backends.decompose_rewrite import Decline, Rewrite
from graphc.ir.graph import Node, TensorType

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
LONGEST = 512
"""Steps that are unrolled at most; more would compile for minutes."""

KERNELS = "graphc.kernel"
"""Domain of the nodes that stand for all steps of one direction; only code generation knows it."""
WIDEST = 4096
"""Gates times hidden size that such a kernel keeps on the stack."""

Activation = Callable[[str], str]

DEFAULTS = {
    "Affine": (1.0, 0.0), "LeakyRelu": (0.01, None), "ThresholdedRelu": (1.0, None), "ScaledTanh": (1.0, 1.0),
    "HardSigmoid": (0.2, 0.5), "Elu": (1.0, None),
}  # fmt: skip
"""alpha and beta of the activations that have them."""

FUNCTIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


@dataclass(frozen=True)
class _Direction:
    """What the steps of one direction share."""

    rewrite: Rewrite
    projected: str
    """[T * B, gates * H]: the input's share of the gates."""
    recurrent: Sequence[str]
    """[H, gates * H], in one or in two parts."""
    functions: Sequence[Activation]
    bias: str
    """The recurrent bias [gates * H] where it is not part of `projected`, else empty."""
    peepholes: Sequence[str]
    """[H] for input, output and forget gates, or none."""
    sizes: tuple[int, int, int]
    """T, B and H."""

    def share(self, t: int, first: int, last: int) -> str:
        """The input's share of the gates first..last-1 at step t: [B, gates * H]."""
        steps, batch, hidden = self.sizes
        if steps == 1:
            return self.gates(self.projected, first, last)
        stop, start = ((t + 1) * batch, last * hidden), (t * batch, first * hidden)
        rewrite = self.rewrite
        return rewrite.op("Slice", self.projected, *(rewrite.ints(*ends) for ends in (start, stop, (0, 1))))

    def gates(self, values: str, first: int, last: int) -> str:
        """Gates first..last-1 of [B, gates * H]."""
        hidden = self.sizes[2]
        return self.rewrite.slice(values, 1, first * hidden, last * hidden)


def recurrent(rewrite: Rewrite) -> None:
    """Unroll one node. Leaves open shapes and sequences of more than LONGEST steps alone."""
    node, batch_first = rewrite.node, bool(rewrite.node.get_int("layout", 0))
    shape = rewrite.dims(node.inputs[0])
    batch, steps = (shape[0], shape[1]) if batch_first else (shape[1], shape[0])
    hidden = rewrite.dims(node.inputs[2])[2]
    if not (0 < steps <= LONGEST or _is_kernel(rewrite, steps)):
        raise Decline
    x = rewrite.op("Transpose", node.inputs[0], perm=(1, 0, 2)) if batch_first else node.inputs[0]
    masks = _masks(rewrite, steps, batch)
    sizes = (steps, batch, hidden)
    found = [_run(rewrite, x, masks, number, sizes) for number in range(len(_directions(node)))]
    _finish(rewrite, found, sizes, batch_first)


def _directions(node: Node) -> tuple[bool, ...]:
    """Whether each direction runs backwards."""
    return {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[
        node.get_str("direction", "forward")
    ]


def _are_whole(rewrite: Rewrite, steps: int) -> bool:
    """Whether every sequence is known to have all steps."""
    lengths = rewrite.value(4)
    return not rewrite.input(4) or (lengths is not None and bool(np.all(lengths.astype(np.int64) >= steps)))


def _masks(rewrite: Rewrite, steps: int, batch: int) -> list[str]:
    """Per step, which sequences reach it ([B, 1] of bool); none where all are whole."""
    if _are_whole(rewrite, steps):
        return []
    column = rewrite.reshape(rewrite.input(4), batch, 1)
    return [rewrite.op("Less", rewrite.number(t, np.dtype(np.int32)), column) for t in range(steps)]


def _run(
    rewrite: Rewrite, x: str, masks: list[str], number: int, sizes: tuple[int, int, int]
) -> tuple[list[str], str, str]:
    """Direction `number`: the output of every step [B, H] (or of all, one after another), the last h and the last c."""
    steps, batch, hidden = sizes
    direction, reverse = _direction(rewrite, x, number, sizes), _directions(rewrite.node)[number]
    if _is_kernel(rewrite, steps):
        return _kernel(direction, reverse, number)
    h, c = (_state(rewrite, index, number, batch, hidden) for index in (5, 6))
    outputs = [""] * steps
    zero = rewrite.constant(np.zeros((), rewrite.type(rewrite.node.inputs[0]).dtype))
    for t in reversed(range(steps)) if reverse else range(steps):
        new_h, new_c = CELLS[rewrite.node.op](direction, t, h, c)
        outputs[t] = new_h
        if masks:
            outputs[t] = rewrite.op("Where", masks[t], new_h, zero)
            new_h = rewrite.op("Where", masks[t], new_h, h)
            new_c = rewrite.op("Where", masks[t], new_c, c) if new_c else ""
        h, c = new_h, new_c
    return outputs, h, c


def _is_kernel(rewrite: Rewrite, steps: int) -> bool:
    """Whether all steps are one node: several of them, the usual functions, and nothing out of the ordinary."""
    node = rewrite.node
    hidden = rewrite.dims(node.inputs[2])[2]
    usual = FUNCTIONS[node.op] * len(_directions(node))
    return (
        rewrite.kernels and steps > 1 and hidden * GATES[node.op] <= WIDEST
        and rewrite.type(node.inputs[0]).dtype == np.float32
        and node.attributes.get("activations", usual) == usual
        and not node.get_float("clip", 0.0) and not node.get_int("input_forget", 0)
        and not rewrite.input(7) and _are_whole(rewrite, steps)
    )  # fmt: skip


def _kernel(d: _Direction, reverse: bool, number: int) -> tuple[list[str], str, str]:
    """One node of the domain KERNELS for all steps: rows [T * B, H] in order of time, then the last c."""
    rewrite, (steps, batch, hidden) = d.rewrite, d.sizes
    h, c = (_state(rewrite, index, number, batch, hidden) for index in (5, 6))
    rows = steps * batch
    kind = TensorType(np.dtype(np.float32), (rows + (batch if c else 0), hidden))
    attributes = {"reverse": int(reverse), "linear_before_reset": rewrite.node.get_int("linear_before_reset", 0)}
    found = rewrite.kernel(KERNELS, kind, (d.projected, d.recurrent[0], h, c, d.bias), attributes)
    outputs = rewrite.slice(found, 0, 0, rows) if c else found
    last = 0 if reverse else rows - batch
    cell = rewrite.slice(found, 0, rows, rows + batch) if c else ""
    return [outputs], rewrite.slice(found, 0, last, last + batch), cell


def _direction(rewrite: Rewrite, x: str, number: int, sizes: tuple[int, int, int]) -> _Direction:
    steps, batch, hidden = sizes
    node, gates = rewrite.node, GATES[rewrite.node.op]
    inputs = rewrite.dims(node.inputs[1])[2]
    weights = _matrix(rewrite, node.inputs[1], number)
    product = rewrite.op("MatMul", rewrite.reshape(x, steps * batch, inputs), weights)
    apart = node.op == "GRU" and bool(node.get_int("linear_before_reset", 0))
    bias = ""
    if rewrite.input(3):
        own, other = _parts(rewrite, node.inputs[3], number, 2, gates * hidden)
        product = rewrite.op("Add", product, own if apart else rewrite.op("Add", own, other))
        bias = other if apart else ""
    peepholes = []
    if node.op == "LSTM" and rewrite.input(7):
        peepholes = _parts(rewrite, node.inputs[7], number, 3, hidden)
    recurrent = _matrix(rewrite, node.inputs[2], number)
    split = [recurrent]
    if node.op == "GRU" and not apart and not _is_kernel(rewrite, steps):
        split = [rewrite.slice(recurrent, 1, 0, 2 * hidden), rewrite.slice(recurrent, 1, 2 * hidden, 3 * hidden)]
    return _Direction(rewrite, product, split, _functions(rewrite, number), bias, peepholes, sizes)


def _matrix(rewrite: Rewrite, name: str, number: int) -> str:
    """Direction `number` of [D, rows, columns], transposed."""
    constant = rewrite.graph.constant(name)
    if constant is not None:
        return rewrite.constant(constant[number].T)
    _, rows, columns = rewrite.dims(name)
    one = name if rewrite.dims(name)[0] == 1 else rewrite.slice(name, 0, number, number + 1)
    return rewrite.op("Transpose", rewrite.reshape(one, rows, columns), perm=(1, 0))


def _parts(rewrite: Rewrite, name: str, number: int, count: int, length: int) -> list[str]:
    """`count` runs of `length` from direction `number` of [D, count * length]."""
    constant = rewrite.graph.constant(name)
    if constant is not None:
        return [rewrite.constant(part) for part in constant[number].reshape(count, length)]
    row = rewrite.reshape(rewrite.slice(name, 0, number, number + 1), count * length)
    return [rewrite.slice(row, 0, i * length, (i + 1) * length) for i in range(count)]


def _state(rewrite: Rewrite, index: int, number: int, batch: int, hidden: int) -> str:
    """The initial state [B, H] of a direction: an operand, or zeros. (c is only LSTM's.)"""
    if index == 6 and rewrite.node.op != "LSTM":
        return ""
    name = rewrite.input(index)
    if not name:
        return rewrite.constant(np.zeros((batch, hidden), rewrite.type(rewrite.node.inputs[0]).dtype))
    axis = 1 if rewrite.node.get_int("layout", 0) else 0
    one = name if rewrite.dims(name)[axis] == 1 else rewrite.slice(name, axis, number, number + 1)
    return rewrite.reshape(one, batch, hidden)


def _functions(rewrite: Rewrite, number: int) -> list[Activation]:
    """The activations of direction `number`; alphas and betas are handed out in order to those that take them."""
    node, count = rewrite.node, len(FUNCTIONS[rewrite.node.op])
    names = node.attributes.get("activations", FUNCTIONS[node.op] * len(_directions(node)))
    alphas, betas = (iter(_floats(node, key)) for key in ("activation_alpha", "activation_beta"))
    found = []
    for name in names if isinstance(names, tuple) else ():
        spelled = next((known for known in DEFAULTS if known.lower() == str(name).lower()), str(name).capitalize())
        found.append(_activation(rewrite, spelled, alphas, betas))
    return found[number * count : (number + 1) * count]


def _floats(node: Node, key: str) -> tuple[float, ...]:
    values = node.attributes.get(key, ())
    return tuple(float(v) for v in values if isinstance(v, int | float)) if isinstance(values, tuple) else ()


def _activation(rewrite: Rewrite, name: str, alphas: Iterator[float], betas: Iterator[float]) -> Activation:
    if name in ("Relu", "Tanh", "Sigmoid", "Softsign", "Softplus"):
        return lambda x: rewrite.op(name, x)
    if name not in DEFAULTS:
        raise Decline
    alpha, beta = DEFAULTS[name]
    alpha = next(alphas, alpha)
    beta = None if beta is None else next(betas, beta)
    if name in ("LeakyRelu", "ThresholdedRelu", "Elu"):
        return lambda x: rewrite.op(name, x, alpha=float(alpha))
    if name == "HardSigmoid":
        return lambda x: rewrite.op(name, x, alpha=float(alpha), beta=float(beta or 0.0))
    kind = rewrite.node.inputs[0]
    first, second = rewrite.number(alpha, kind), rewrite.number(beta or 0.0, kind)
    if name == "Affine":
        return lambda x: rewrite.op("Add", rewrite.op("Mul", x, first), second)
    return lambda x: rewrite.op("Mul", rewrite.op("Tanh", rewrite.op("Mul", x, second)), first)


def _clipped(d: _Direction, x: str) -> str:
    """The input of an activation, within the node's `clip`."""
    limit = d.rewrite.node.get_float("clip", 0.0)
    if not limit:
        return x
    kind = d.rewrite.node.inputs[0]
    return d.rewrite.op("Clip", x, d.rewrite.number(-limit, kind), d.rewrite.number(limit, kind))


def _lstm(d: _Direction, t: int, h: str, c: str) -> tuple[str, str]:
    """i, f = f(..), o; c' = f c + i g(..); h' = o h(c')."""
    op = d.rewrite.op
    total = op("Add", d.share(t, 0, 4), op("MatMul", h, d.recurrent[0]))
    i, o, f, g = (d.gates(total, k, k + 1) for k in range(4))
    if d.peepholes:
        i, f = (op("Add", gate, op("Mul", c, d.peepholes[p])) for gate, p in ((i, 0), (f, 2)))
    i = d.functions[0](_clipped(d, i))
    if d.rewrite.node.get_int("input_forget", 0):
        f = op("Sub", d.rewrite.number(1, d.rewrite.node.inputs[0]), i)
    else:
        f = d.functions[0](_clipped(d, f))
    g = d.functions[1](_clipped(d, g))
    new_c = op("Add", op("Mul", f, c), op("Mul", i, g))
    if d.peepholes:
        o = op("Add", o, op("Mul", new_c, d.peepholes[1]))
    o = d.functions[0](_clipped(d, o))
    return op("Mul", o, d.functions[2](new_c)), new_c


def _gru(d: _Direction, t: int, h: str, _: str) -> tuple[str, str]:
    """z, r = f(..); n = g(..) with r on h or on its product; h' = (1 - z) n + z h = n + z (h - n)."""
    op = d.rewrite.op
    if len(d.recurrent) == 1:
        product = op("MatMul", h, d.recurrent[0])
        product = op("Add", product, d.bias) if d.bias else product
        both, new = d.gates(product, 0, 2), d.gates(product, 2, 3)
    else:
        both, new = op("MatMul", h, d.recurrent[0]), ""
    both = d.functions[0](_clipped(d, op("Add", d.share(t, 0, 2), both)))
    z, r = d.gates(both, 0, 1), d.gates(both, 1, 2)
    new = op("Mul", r, new) if new else op("MatMul", op("Mul", r, h), d.recurrent[1])
    n = d.functions[1](_clipped(d, op("Add", d.share(t, 2, 3), new)))
    return op("Add", n, op("Mul", z, op("Sub", h, n))), ""


def _rnn(d: _Direction, t: int, h: str, _: str) -> tuple[str, str]:
    """h' = f(..)."""
    op = d.rewrite.op
    return d.functions[0](_clipped(d, op("Add", d.share(t, 0, 1), op("MatMul", h, d.recurrent[0])))), ""


CELLS: dict[str, Callable[[_Direction, int, str, str], tuple[str, str]]] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


def _finish(
    rewrite: Rewrite, found: list[tuple[list[str], str, str]], sizes: tuple[int, int, int], batch_first: bool
) -> None:
    """Y [T, D, B, H], the last h and c [D, B, H]; the batch comes first where the layout says so."""
    steps, batch, hidden = sizes
    results = [""] * 3
    if rewrite.wants(0):
        joined = [
            outputs[0] if len(outputs) == 1 else rewrite.op("Concat", *outputs, axis=0) for outputs, _, _ in found
        ]
        rows = [rewrite.reshape(each, steps, 1, batch, hidden) for each in joined]
        results[0] = rows[0] if len(rows) == 1 else rewrite.op("Concat", *rows, axis=1)
        if batch_first:
            results[0] = rewrite.op("Transpose", results[0], perm=(2, 0, 1, 3))
    for index, states in ((1, [h for _, h, _ in found]), (2, [c for _, _, c in found])):
        if rewrite.wants(index):
            shape = (batch, 1, hidden) if batch_first else (1, batch, hidden)
            parts = [rewrite.reshape(state, *shape) for state in states]
            axis = 1 if batch_first else 0
            results[index] = parts[0] if len(parts) == 1 else rewrite.op("Concat", *parts, axis=axis)
    rewrite.finish(*results)
