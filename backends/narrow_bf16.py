"""Products of bfloat16 in place of float32, where a target asks for that arithmetic: sums stay float32.

    y = Conv(x, w, b)   ->   y = graphc.bf16.Conv(graphc.bf16.Narrow(x), w', b)        x', w': uint16, the codes

Each operand is rounded once, to nearest, ties to even: by at most u = 2^-8 of itself, so that of a result
    |error| <= (2u + u^2 + (n + 1) 2^-24) sum |x| |w|        n terms, added in float32 in some order
Source: N. Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1. Both instructions (tdpbf16ps on
matrix tiles, vdpbf16ps) take operands and give results below 2^-126 as 0, which adds at most 2^-126 (1 + |x| + |w|) a
term. Constant weights are rounded at compile time.

    r = Relu(...)   y = Conv(r, w)   z = Add(y, r)   ->   n = Narrow(r)   y = Conv(n, w')   z = Add(y, Widen(n))

What a product reads is kept as its codes alone where sums and products of elements are all that read it beside: half
the bytes of a residual, each rounded by u once more.

A product whose form neither instruction takes stays in float32, and so does one that is expected to be no faster
(`graphc.backends.bf16_speed`); `Narrowed.told` says of each what multiplies it and why, as the build's report does.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import ClassVar

import ml_dtypes
import numpy as np

from graphc.backends.bf16_speed import LEAST_GAIN, Layer, fastest
from graphc.backends.narrow import FLOAT, Narrowing, unfit_convolution, unfit_product
from graphc.backends.widen import NARROW
from graphc.ir.graph import Array, Node

DOMAIN = "graphc.bf16"
CODE = np.dtype(np.uint16)
ELEMENTWISE = frozenset({"Add", "Mul", "Sub"})
"""Operators whose kernels widen an operand where they read it."""
ROUNDING = 2.0**-8
"""u: the largest relative error of rounding a normal number to bfloat16."""
SMALLEST = 2.0**-126
"""What is nearer to 0 than this counts as 0."""


def codes(array: Array) -> Array:
    """float32 rounded to bfloat16, as the 16 bits that store it."""
    return array.astype(ml_dtypes.bfloat16).view(CODE)


class Bfloat16(Narrowing):
    """Layers whose products matrix tiles or vectors of bfloat16 should make faster."""

    domain = DOMAIN
    narrow_type = CODE
    instructions: ClassVar[Mapping[str, str]] = {"amx_bf16": "tdpbf16ps", "dpbf16": "vdpbf16ps"}

    def narrowed(self, array: Array) -> Array:
        return codes(array)

    def finished(self) -> list[Node]:
        """Let elementwise readers of a value that was narrowed read its codes, where nothing else reads the value."""
        borders = {*self.graph.inputs, *self.graph.outputs}
        readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.reads:
                readers.setdefault(name, []).append(node)
        wide: dict[str, str] = {}
        for name, made in self.narrow.items():
            others = [node for node in readers.get(name, []) if node.op != "Narrow"]
            if name not in borders and others and all(not n.domain and n.op in ELEMENTWISE for n in others):
                wide[name] = made
        return [each for node in self.nodes for each in self._reading(node, wide)]

    def _reading(self, node: Node, wide: Mapping[str, str]) -> list[Node]:
        """The node with operands of `wide` widened from their codes, each just before it."""
        if node.op == "Narrow" or wide.keys().isdisjoint(node.reads):
            return [node]
        operands = {name: f"{name}@wide@{node.outputs[0]}" for name in node.inputs if name in wide}
        for name, made in operands.items():
            self.types[made] = self.types[name]
        widened = [Node("Widen", (wide[name],), (made,), {}, made, DOMAIN) for name, made in operands.items()]
        return [*widened, replace(node, inputs=tuple(operands.get(name, name) for name in node.inputs))]

    def chosen(self, node: Node) -> tuple[str, str]:
        """(the kind of dot product, empty for float32; why)."""
        reason = self._unfit_convolution(node) if node.domain else self._unfit_product(node)
        if not reason and self.stored(node.inputs[1]) is None and self._is_decoded(node.inputs[1]):
            reason = "a decoder computes its weights where they are multiplied"
        if reason:
            return "", reason
        new = {name for name in node.inputs[:2] if name not in self.constants and name not in self.narrow}
        elements = sum(self.types[name].size for name in new)
        elements += self.types[node.inputs[0]].size if any(node.get_ints("pads")) else 0  # a copy with zeros around it
        dot, speed = fastest(self._layer(node), self.target, elements)
        if dot is None:
            return "", "too few columns or too little depth for matrix tiles, and no vdpbf16ps"
        expected = f"expected at {speed:.2g}x the speed of float32"
        return (dot.kind if speed >= LEAST_GAIN else ""), f"{self.instructions[dot.kind]} is {expected}"

    def _unfit_convolution(self, node: Node) -> str:
        fixed = node.inputs[1] in self.constants or self._is_decoded(node.inputs[1])
        return unfit_convolution(node, self.dims(node)[1]) or ("" if fixed else "its weights are computed at run time")

    def _unfit_product(self, node: Node) -> str:
        x, w = self.dims(node)
        return unfit_product(node, x, w) or ("it sums an odd number of products" if x[-1] % 2 else "")

    def _layer(self, node: Node) -> Layer:
        x, w, y = (self.types[name].dims for name in (*node.inputs[:2], node.outputs[0]))
        if node.op != "Conv":
            return Layer(prod(y[:-2]), y[-2:-1], x[-1], y[-1])
        strides, dilations = (prod(node.get_ints(name, (1, 1))) for name in ("strides", "dilations"))
        across = w[3] if node.get_ints("dilations", (1, 1))[-1] == 1 else 1
        square = strides == dilations == 1 and w[2:] == (3, 3)
        return Layer(y[0], y[1:-1], w[1], w[0], w[2] * w[3], across, strides, square)

    def _is_decoded(self, name: str) -> bool:
        """Whether constants alone decide a value, but a node computes it."""
        fixed: Mapping[str, Array] = self.constants
        producer = self.graph.producers.get(name)
        return producer is not None and all(each in fixed or self._is_decoded(each) for each in producer.reads)

    def stored(self, name: str) -> Array | None:
        """A constant as float32, stored in 16 bits or not; None for what is computed."""
        producer = self.graph.producers.get(name)
        if producer is None or (producer.domain, producer.op) != ("", "Cast"):
            return self.constants.get(name)
        array = self.constants.get(producer.inputs[0])
        return array.astype(FLOAT) if array is not None and array.dtype in NARROW else None


def bound(terms: int) -> float:
    """What a result may err, of the sum of the absolute values of its products."""
    return 2 * ROUNDING + ROUNDING**2 + (terms + 1) * 2.0**-24
