"""The rule for PrimFuncs that go row by row: sums and extrema over dense axes, and what is made of them.

for task = row i:
  a[0:run] = first                                   vectors of partial results, side by side
  for k / run: a[0:run] = a[0:run] + f(x[i, k + 0:run])
  r = sum of a, halves first
  ...                                                further reductions, which may read r
  for k: y[i, k] = g(x[i, k], r)                     or y[i] = g(r)

A row is what is left of a block's axes after those that tasks are counted by; dense axes of it are one loop over k.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import tvm.ir
import tvm_ffi
from tvm import s_tir, sym, tirx

from graphc.backends.expressions import flat_buffer, flat_place, loads, reads, substituted
from graphc.backends.row import RUN, Combine, folded
from graphc.backends.schedule_generic import inline_all
from graphc.backends.schedule_reduction import REDUCTION, SPATIAL
from graphc.backends.statements import const, function, loop, sequence, spread, tasks, vector, vectorized
from graphc.backends.targets import Target

BITS = {"float32": 32, "float64": 64, **{f"{sign}int{bits}": bits for sign in ("", "u") for bits in (8, 16, 32, 64)}}
"""Element types that partial results may have."""

ANCHOR = "graphc.anchor"
"""Annotation of blocks that other rules know."""

COMBINES: Mapping[type, Combine] = {
    tirx.Add: operator.add,
    tirx.Mul: operator.mul,
    tirx.Max: lambda known, new: tirx.max(new, known),  # of two unordered numbers the second: NaN is passed over
    tirx.Min: lambda known, new: tirx.min(new, known),
}


@dataclass(frozen=True)
class Block:
    """y[spatial] = value; with `combine`, y[spatial] = first, then combine(y[spatial], value) over `reduced`."""

    buffer: Any
    indices: Sequence[Any]
    spatial: Mapping[Any, int]
    """Variable -> extent, in order; `reduced` likewise."""
    reduced: Mapping[Any, int]
    value: Any
    combine: Combine | None = None
    first: Any = None


@dataclass(frozen=True)
class Axis:
    """A variable of a block during one task: it begins at `begin` and takes so many `steps`."""

    variable: Any
    begin: Any
    steps: int = 1


@dataclass(frozen=True)
class Lines:
    """A row as loops over `outer`, each step of which reads and writes `length` dense elements, those at `k`.

    `value` and the place `at` it is for, in a flat buffer, are in terms of the task, those loops and `k`.
    """

    outer: Mapping[Any, int]
    k: Any
    length: int
    value: Any
    at: Any

    def element(self, k: Any) -> tuple[Any, Any]:
        """(value, place) at one `k`."""
        return substituted(self.value, {self.k: k}), substituted(self.at, {self.k: k})


def schedule(fused: Any, target: Target) -> Any:
    """The PrimFunc as one loop over rows; None where it is none, or where rows are shorter than a vector."""
    sch = s_tir.Schedule(fused, debug_mask="none")
    inline_all(sch)
    found = [_block(sch.get(block)) for block in sch.get_child_blocks(sch.get_sblock("root"))]
    blocks = [block for block in found if block is not None]
    counts = {prod(block.spatial.values()) for block in blocks if block.combine}
    if len(blocks) < len(found) or len(counts) != 1 or target.lanes(32) < 2:
        return None
    count = counts.pop()
    rows = _Rows(count, {p: flat_buffer(p) for p in fused.params}, target)
    statements = [rows.statement(block) for block in blocks]
    if any(statement is None for statement in statements):
        return None

    def body(task: Any) -> Any:
        inside = sequence([*map(tirx.AllocBuffer, rows.partial.values()), *statements])
        return substituted(inside, {rows.task: task})

    return function(list(rows.flat.values()), fused.attrs, [tasks(count, body)])


def _block(block: Any) -> Block | None:
    """What a block computes; None where that has another form."""
    store, init = block.body, block.init
    if not isinstance(store, tirx.BufferStore) or ANCHOR in block.annotations:
        return None
    axes = [(axis.var, int(axis.dom.extent), axis.iter_type) for axis in block.iter_vars]
    spatial, reduced = ({var: n for var, n, kind in axes if kind == wanted} for wanted in (SPATIAL, REDUCTION))
    if len(spatial) + len(reduced) < len(axes):
        return None
    if _compares_places(store.value):
        return None  # rows count in int32, and a comparison does not mix
    whole = Block(store.buffer, store.indices, spatial, reduced, store.value)
    if init is None:
        return whole if not reduced else None
    combine = COMBINES.get(type(store.value))
    terms = [term for term in (store.value.a, store.value.b) if not reads(term, store.buffer)] if combine else []
    plain = isinstance(init, tirx.BufferStore) and str(store.buffer.dtype) in BITS and len(terms) == 1
    return Block(store.buffer, store.indices, spatial, reduced, terms[0], combine, init.value) if plain else None


@dataclass
class _Rows:
    """The statements of one task, which work on one row each."""

    count: int
    flat: Mapping[Any, Any]
    """The PrimFunc's buffers as ones of a single dimension."""
    target: Target
    task: Any = field(default_factory=lambda: tirx.Var("task", "int32"))
    partial: dict[Any, Any] = field(default_factory=dict)
    """Buffer of one element per task -> what holds this task's as its element 0, or the vectors it is made in."""

    def statement(self, block: Block) -> Any:
        """A block's loops; None where it is not row by row."""
        axes = self._axes(block)
        if axes is None or not self._own_row_alone(block, axes):
            return None
        inner = [axis for axis in axes if axis.steps > 1]
        if not inner:
            return None if block.combine else self._single(block, self._lines(block, axes, []))
        for number in range(len(inner)):  # as many of the last axes as lie dense together
            lines = self._lines(block, axes, inner[:number])
            if lines.length >= self._lanes(block) and self._is_dense(lines):
                return self._reduced(block, lines) if block.combine else self._each(block, lines)
        return None

    def _axes(self, block: Block) -> list[Axis] | None:
        """Tasks are counted by the first spatial axes, or parts of them; the rest is the row."""
        left, parts = self.count, []
        for variable, extent in block.spatial.items():
            outer = extent if left % extent == 0 else left
            if extent % outer:
                return None
            parts.append((variable, outer, extent // outer))
            left //= outer
        axes, inside = [], self.count
        for variable, outer, steps in parts:
            inside //= outer
            axes.append(Axis(variable, self.task // inside % outer * steps, steps))
        return [*axes, *(Axis(variable, const(0), extent) for variable, extent in block.reduced.items())]

    def _own_row_alone(self, block: Block, axes: Sequence[Axis]) -> bool:
        """Whether of all results for rows a block reads only those of its own task."""
        steps = {axis.variable: tirx.Var("step", "int32") for axis in axes}
        analyzer = self._analyzer({steps[axis.variable]: axis.steps for axis in axes})
        places = {axis.variable: axis.begin + steps[axis.variable] for axis in axes}
        made = [load for load in loads(substituted(block.value, places)) if load.source not in self.flat]
        own = [load for load in made if load.source in self.partial]
        return len(made) == len(own) and all(analyzer.can_prove_equal(flat_place(load), self.task) for load in own)

    def _analyzer(self, loops: Mapping[Any, int]) -> Any:
        analyzer = sym.Analyzer()
        for variable, extent in {self.task: self.count, **loops}.items():
            analyzer.bind(variable, tvm.ir.Range(0, extent))
        return analyzer

    def _lines(self, block: Block, axes: Sequence[Axis], outer: Sequence[Axis]) -> Lines:
        """The row with loops over the axes `outer` around those that are gone through together."""
        loops = {axis.variable: tirx.Var("step", "int32") for axis in outer}
        k, places = tirx.Var("k", "int32"), {}
        length = inside = prod(axis.steps for axis in axes if axis.variable not in loops)
        for axis in axes:
            step = loops.get(axis.variable)
            if step is None:
                inside //= axis.steps
                step = k // inside % axis.steps
            places[axis.variable] = axis.begin + step
        extents = {loops[axis.variable]: axis.steps for axis in outer}
        analyzer = self._analyzer({**extents, k: length})

        def load(found: Any) -> Any:
            if found.source in self.partial:
                return self.partial[found.source][const(0)]
            return self.flat[found.source][analyzer.simplify(flat_place(found))]

        value = tvm_ffi.structural_map(substituted(block.value, places), (tvm.ir.TensorLoad, load))
        stored = tirx.BufferLoad(block.buffer, [substituted(index, places) for index in block.indices])
        return Lines(extents, k, length, value, analyzer.simplify(flat_place(stored)))

    def _is_dense(self, lines: Lines) -> bool:
        """Whether every access is at the element after that of k - 1, or at the same one."""
        analyzer = self._analyzer({**lines.outer, lines.k: lines.length - 1})
        read = [load for load in loads(lines.value) if any(load.source.same_as(b) for b in self.flat.values())]
        places = [*(load.indices[0] for load in read), lines.at]
        steps = [analyzer.simplify(substituted(place, {lines.k: lines.k + 1}) - place) for place in places]
        return all(isinstance(step, tirx.IntImm) and int(step.value) in (0, 1) for step in steps)

    def _lanes(self, block: Block) -> int:
        """Of the widest type that a block reads or makes."""
        kinds = [str(block.buffer.dtype), *(str(load.source.dtype) for load in loads(block.value))]
        return self.target.lanes(max(BITS.get(kind, 32) for kind in kinds))

    def _store(self, block: Block, element: tuple[Any, Any]) -> Any:
        value, at = element
        return tirx.BufferStore(self.flat[block.buffer], value, [at])

    def _single(self, block: Block, lines: Lines) -> Any:
        """One element per row."""
        if block.buffer in self.flat:
            return self._store(block, lines.element(const(0)))
        self.partial[block.buffer] = made = tirx.decl_buffer((1,), block.buffer.dtype, "single", scope="local")
        return tirx.BufferStore(made, lines.element(const(0))[0], [const(0)])

    def _each(self, block: Block, lines: Lines) -> Any:
        """Every element of the row, a vector at a time."""
        lanes = self._lanes(block)

        def body(first: Any, count: int) -> Any:
            return vectorized(count, lambda v: self._store(block, lines.element(first + v)))

        whole, left = divmod(lines.length, lanes)
        parts = [loop("vector", 0, whole, lambda n: body(n * lanes, lanes))]
        return _around(lines, sequence([*parts, *([body(const(whole * lanes), left)] if left else [])]))

    def _reduced(self, block: Block, lines: Lines) -> Any:
        """All elements of the row combined: in vectors side by side, then their lanes."""
        lanes = self._lanes(block)
        vectors, left = divmod(lines.length, lanes)
        run = min(RUN, vectors)
        made = tirx.decl_buffer((run * lanes,), block.buffer.dtype, "partial", scope="local")
        combine = block.combine or operator.add

        def add(number: Any, place: int, count: int) -> Any:
            def element(v: Any) -> Any:
                at = place * lanes + v
                return tirx.BufferStore(made, combine(made[at], lines.element(number * lanes + v)[0]), [at])

            return vectorized(count, element)

        def step(n: Any) -> Any:
            return sequence([add(n * run + place, place, lanes) for place in range(run)])

        places = [vector(const(place * lanes), lanes) for place in range(run)]
        clear = [tirx.BufferStore(made, spread(block.first, lanes), [place]) for place in places]
        rest = [add(const(n), n % run, lanes) for n in range(vectors - vectors % run, vectors)]
        tail = [add(const(vectors), vectors % run, left)] if left else []
        body = _around(lines, sequence([loop("n", 0, vectors // run, step), *rest, *tail]))
        self.partial[block.buffer] = made
        result = [self._store(block, (made[const(0)], lines.at))] if block.buffer in self.flat else []
        return sequence([*clear, body, *folded(made, combine, lanes, run), *result])


def _around(lines: Lines, body: Any) -> Any:
    """The loops over what is outside the dense axes."""
    for variable, extent in reversed([*lines.outer.items()]):
        body = tirx.For(variable, 0, extent, tirx.ForKind.SERIAL, body)
    return body


def _compares_places(expression: Any) -> bool:
    """Whether something depends on a comparison of 64-bit indices."""
    found: list[Any] = []
    for kind in (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE):
        tvm_ffi.structural_walk(expression, (kind, found.append))
    return any(str(comparison.a.ty.dtype) == "int64" for comparison in found)
