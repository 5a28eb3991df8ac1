"""Patterns over expressions: what an exporter spelled in some order of products and sums, matched in any order.

    Product(0.5, X, Sum(1, Op("Erf", Product(SQRT_HALF, X))))        0.5 * x * (1 + erf(x / sqrt 2))

A product is flattened over Mul, Div, Neg, Reciprocal and small powers into a coefficient and factors; a sum over Add
and Sub into an offset and terms. A value that several nodes read is never taken apart: a variable stands for it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from graphc.ir.graph import Node
from graphc.passes.fold_sweep import Sweep

TOLERANCE = 1e-5
"""Relative difference between a number of a pattern and the float32 constant that stands for it in a model."""

Bindings = Mapping[str, str]
"""Variable of a pattern -> value of the graph."""


@dataclass(frozen=True)
class Var:
    """Any value; the same value wherever the variable occurs."""

    name: str


@dataclass(frozen=True)
class Op:
    """The result of an operator. Numbers among the operands are scalar constants."""

    op: str
    operands: tuple["Pattern | float", ...]

    def __init__(self, op: str, *operands: "Pattern | float") -> None:
        object.__setattr__(self, "op", op)
        object.__setattr__(self, "operands", operands)


@dataclass(frozen=True)
class Product:
    """coefficient * factor * ...; a factor `Inverse(p)` divides."""

    coefficient: float
    parts: tuple["Pattern", ...]

    def __init__(self, coefficient: float, *parts: "Pattern") -> None:
        object.__setattr__(self, "coefficient", coefficient)
        object.__setattr__(self, "parts", parts)


@dataclass(frozen=True)
class Sum:
    """offset + term + ...; a term `Inverse(p)` is subtracted. An offset given as a name is any scalar, bound to it."""

    offset: float | str
    parts: tuple["Pattern", ...]

    def __init__(self, offset: float | str, *parts: "Pattern") -> None:
        object.__setattr__(self, "offset", offset)
        object.__setattr__(self, "parts", parts)


@dataclass(frozen=True)
class Inverse:
    """A factor that divides, or a term that is subtracted."""

    part: "Pattern"


@dataclass(frozen=True)
class Named:
    """A part that is also a variable: it is the same value everywhere."""

    name: str
    part: "Pattern"


Pattern = Var | Op | Product | Sum | Inverse | Named


@dataclass(frozen=True)
class _Flat:
    """A flattened product or sum: the number in it, and its parts, each with whether it is inverted."""

    number: float
    parts: tuple[tuple[str, bool], ...]


class Matcher:
    """Matches patterns in one sweep; remembers flattened expressions and the nodes that a match took apart."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self._products: dict[str, _Flat] = {}
        self._sums: dict[str, _Flat] = {}

    def match(self, pattern: Pattern, name: str) -> Bindings | None:
        """The first way in which `name` is an instance of `pattern`."""
        return next(self._match(pattern, name, {}), None)

    def _match(self, pattern: Pattern, name: str, bound: Bindings) -> Iterator[Bindings]:
        match pattern:
            case Var(variable):
                if bound.get(variable, name) == name:
                    yield {**bound, variable: name}
            case Named(variable, part):
                if bound.get(variable, name) == name:
                    for inner in self._match(part, name, bound):
                        yield {**inner, variable: name}
            case Op(op, operands):
                yield from self._match_node(op, operands, name, bound)
            case Product(coefficient, parts):
                flat = self._product(name)
                if _close(flat.number, coefficient):
                    yield from self._match_parts(parts, flat.parts, bound)
            case Sum(offset, parts):
                flat = self._sum(name)
                if isinstance(offset, str):
                    yield from self._match_parts(parts, flat.parts, {**bound, offset: repr(flat.number)})
                elif _close(flat.number, offset):
                    yield from self._match_parts(parts, flat.parts, bound)

    def _match_node(
        self, op: str, operands: tuple[Pattern | float, ...], name: str, bound: Bindings
    ) -> Iterator[Bindings]:
        node = self.sweep.producer(name, op)
        if node is None or any(node.outputs[1:]) or len([n for n in node.inputs if n]) < len(operands):
            return
        yield from self._match_operands(node, operands, 0, bound)

    def _match_operands(
        self, node: Node, operands: tuple[Pattern | float, ...], index: int, bound: Bindings
    ) -> Iterator[Bindings]:
        if index == len(operands):
            yield bound
            return
        wanted = operands[index]
        if isinstance(wanted, int | float):
            value = self.sweep.scalar(node.inputs[index])
            if value is not None and _close(value, wanted):
                yield from self._match_operands(node, operands, index + 1, bound)
            return
        for inner in self._match(wanted, node.inputs[index], bound):
            yield from self._match_operands(node, operands, index + 1, inner)

    def _match_parts(
        self, parts: tuple[Pattern, ...], found: tuple[tuple[str, bool], ...], bound: Bindings
    ) -> Iterator[Bindings]:
        """Every assignment of pattern parts to found ones, one to one."""
        if len(parts) != len(found):
            return
        if not parts:
            yield bound
            return
        first, inverted = parts[0], isinstance(parts[0], Inverse)
        inner = first.part if isinstance(first, Inverse) else first
        for i, (name, is_inverted) in enumerate(found):
            if is_inverted != inverted:
                continue
            for bindings in self._match(inner, name, bound):
                yield from self._match_parts(parts[1:], found[:i] + found[i + 1 :], bindings)

    def _product(self, name: str) -> _Flat:
        if name not in self._products:
            self._products[name] = self._flatten_product(name)
        return self._products[name]

    def _flatten_product(self, name: str) -> _Flat:
        """A value as coefficient and factors; taken apart as far as its own nodes go."""
        node = self.sweep.producer(name)
        match node.op if node is not None else "":
            case "Mul":
                assert node is not None
                return _times(self._factor(node.inputs[0]), self._factor(node.inputs[1]))
            case "Div":
                assert node is not None
                return _times(self._factor(node.inputs[0]), _inverse(self._factor(node.inputs[1])))
            case "Reciprocal":
                assert node is not None
                return _inverse(self._factor(node.inputs[0]))
            case "Neg":
                assert node is not None
                return _times(_Flat(-1.0, ()), self._factor(node.inputs[0]))
            case "Pow":
                assert node is not None
                return self._power(node, name)
        return _Flat(1.0, ((name, False),))

    def _power(self, node: Node, name: str) -> _Flat:
        exponent = self.sweep.scalar(node.inputs[1])
        if exponent in {2.0, 3.0}:
            base = self._factor(node.inputs[0])
            return _times(base, base) if exponent == 2 else _times(base, _times(base, base))
        return _Flat(1.0, ((name, False),))

    def _factor(self, name: str) -> _Flat:
        """An operand of a product: a number, a product of its own, or one factor."""
        value = self.sweep.scalar(name)
        if value is not None:
            return _Flat(value, ())
        return self._product(name) if self.sweep.sole(name) else _Flat(1.0, ((name, False),))

    def _sum(self, name: str) -> _Flat:
        if name not in self._sums:
            self._sums[name] = self._flatten_sum(name)
        return self._sums[name]

    def _flatten_sum(self, name: str) -> _Flat:
        node = self.sweep.producer(name, "Add", "Sub")
        if node is None:
            return _Flat(0.0, ((name, False),))
        left, right = self._term(node.inputs[0]), self._term(node.inputs[1])
        if node.op == "Sub":
            right = _Flat(-right.number, tuple((n, not inverted) for n, inverted in right.parts))
        return _Flat(left.number + right.number, left.parts + right.parts)

    def _term(self, name: str) -> _Flat:
        value = self.sweep.scalar(name)
        if value is not None:
            return _Flat(value, ())
        return self._sum(name) if self.sweep.sole(name) else _Flat(0.0, ((name, False),))


def _times(a: _Flat, b: _Flat) -> _Flat:
    return _Flat(a.number * b.number, a.parts + b.parts)


def _inverse(a: _Flat) -> _Flat:
    number = np.divide(1.0, a.number) if a.number else np.inf
    return _Flat(float(number), tuple((name, not inverted) for name, inverted in a.parts))


def _close(value: float, wanted: float) -> bool:
    return abs(value - wanted) <= TOLERANCE * abs(wanted)
