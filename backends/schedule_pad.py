"""The rule for a value with padding around it, and whatever is computed element by element on the way: one pass.

for task = row of the result:
  y[row, :begin] = padding
  y[row, begin + k] = f(x[..., k])                           channels dense in x as in y: the row is one run of vectors
  y[row, begin + j, :] = f(x[..., 0, j]), f(x[..., 1, j]), padding     few channels, each a plane of x: a vector of
  y[row, begin + columns:] = padding                                   columns of each, shuffled into one
and rows outside are padding alone. Nothing is compared for single elements.
"""

import json
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import tvm.ir
import tvm_ffi
from tvm import s_tir, sym, tirx

from graphc.backends.expressions import flat_buffer, flat_place, loads, substituted
from graphc.backends.schedule_generic import inline_all
from graphc.backends.statements import const, function, loop, sequence, spread, tasks, vector, vectorized
from graphc.backends.targets import Target

BORDER = "graphc.border"
"""Annotation of a block that pads: JSON of where the operand `begin`s along each axis, and its extents `inside`."""
BITS = {"float32": 32, **{f"{sign}int{bits}": bits for sign in ("", "u") for bits in (8, 16, 32)}}
"""Element types that are moved in vectors."""
PLANES = 4
"""Most channels that are shuffled together."""


def schedule(fused: Any, target: Target) -> Any:
    """The PrimFunc as one loop over rows; None where it is more than padding."""
    sch = s_tir.Schedule(fused, debug_mask="none")
    inline_all(sch)
    blocks = [sch.get(block) for block in sch.get_child_blocks(sch.get_sblock("root"))]
    if len(blocks) != 1 or BORDER not in blocks[0].annotations or target.lanes(32) < 2:
        return None
    kinds = [str(blocks[0].body.buffer.dtype), *(str(load.source.dtype) for load in loads(blocks[0].body.value))]
    return _Rows(fused, blocks[0], target).build() if set(kinds) <= BITS.keys() else None


class _Rows:
    """The last two axes are columns and channels, those before count the rows."""

    def __init__(self, fused: Any, block: Any, target: Target) -> None:
        store, info = block.body, json.loads(str(block.annotations[BORDER]))
        self.attributes, self.target = fused.attrs, target
        self.flat = {p: flat_buffer(p) for p in fused.params}
        self.y = self.flat[store.buffer]
        self.shape = [int(extent) for extent in store.buffer.shape]
        self.begin, self.inside = info["begin"], info["inside"]
        self.variables = [axis.var for axis in block.iter_vars]
        _, self.value, self.padding = store.value.args
        self.wide, self.channels = self.shape[-1], self.inside[-1]
        self.columns = self.inside[-2]
        self.task = tirx.Var("row", "int32")

    def build(self) -> Any:
        count = prod(self.shape[:-2])

        def row(task: Any) -> Any:
            return substituted(self._row(), {self.task: task})

        return function(list(self.flat.values()), self.attributes, [tasks(count, row)])

    def _row(self) -> Any:
        length = self.shape[-2] * self.wide
        start, first = self.task * length, self.begin[-2] * self.wide
        after = first + self.columns * self.wide
        parts = [self._fill(start, first), self._interior(start + first), self._fill(start + after, length - after)]
        within = sequence([part for part in parts if part is not None])
        outer = zip(self._outer(), self.begin, self.inside, self.shape, strict=False)
        tests = [
            test
            for place, begin, inside, extent in outer
            for test in (
                *([place >= begin] if begin else []),
                *([place < begin + inside] if begin + inside < extent else []),
            )
        ]
        return tirx.IfThenElse(tirx.all(*tests), within, self._fill(start, length)) if tests else within

    def _outer(self) -> list[Any]:
        """Where a row lies along the axes before columns."""
        places, row = [], self.task
        for extent in reversed(self.shape[:-2]):
            places.append(row % extent)
            row = row // extent
        return places[::-1]

    def _fill(self, start: Any, count: int) -> Any:
        """Padding for so many elements; None for none."""
        if not count:
            return None
        lanes = self.target.lanes(BITS[str(self.y.dtype)])

        def store(at: Any, width: int) -> Any:
            return tirx.BufferStore(self.y, spread(self.padding, width), [vector(at, width)])

        return self._vectors(count, lanes, lambda first, width: store(start + first, width))

    def _vectors(self, count: int, lanes: int, body: Callable[[Any, int], Any]) -> Any:
        """body(first, how many) for `count` elements, `lanes` at a time, what is left over in one shorter vector."""
        whole, left = divmod(count, lanes)
        parts = [loop("vector", 0, whole, lambda n: body(n * lanes, lanes))] if whole else []
        return sequence([*parts, *([body(const(whole * lanes), left)] if left else [])])

    def _interior(self, start: Any) -> Any:
        """The elements that are not padding, from place `start` of y on."""
        k = tirx.Var("k", "int32")
        run = self._element(k // self.channels, k % self.channels, {k: self.columns * self.channels})
        if self.wide == self.channels and self._is_dense(run, k):
            return self._run(start, run, k)
        planes = [self._element(k, const(c), {k: self.columns}) for c in range(min(self.channels, PLANES + 1))]
        if self.wide <= PLANES and all(self._is_dense(plane, k) for plane in planes):
            return self._planes(start, planes, k)
        return self._pixels(start)

    def _element(self, column: Any, channel: Any, extents: dict[Any, int]) -> Any:
        """What stands at a column and channel inside, loads of flat buffers simplified for variables so bounded."""
        places = [*self._outer(), column + self.begin[-2], channel]
        analyzer = self._analyzer(extents)

        def load(found: Any) -> Any:
            return self.flat[found.source][analyzer.simplify(flat_place(found))]

        value = substituted(self.value, dict(zip(self.variables, places, strict=True)))
        return tvm_ffi.structural_map(value, (tvm.ir.TensorLoad, load))

    def _analyzer(self, extents: dict[Any, int]) -> Any:
        analyzer = sym.Analyzer()
        for variable, extent in {self.task: prod(self.shape[:-2]), **extents}.items():
            analyzer.bind(variable, tvm.ir.Range(0, extent))
        return analyzer

    def _is_dense(self, element: Any, k: Any) -> bool:
        """Whether every load is of the element after that for k - 1, or of the same one; of a table it may be any."""
        analyzer = self._analyzer({k: prod(self.inside) - 1})
        places = [load.indices[0] for load in loads(element) if not loads(load.indices[0])]
        steps = [analyzer.simplify(substituted(place, {k: k + 1}) - place) for place in places]
        return all(isinstance(step, tirx.IntImm) and int(step.value) in (0, 1) for step in steps)

    def _lanes(self, element: Any) -> int:
        """Of the widest type that is loaded or stored."""
        kinds = [str(self.y.dtype), *(str(load.source.dtype) for load in loads(element))]
        return self.target.lanes(max(BITS[kind] for kind in kinds))

    def _run(self, start: Any, element: Any, k: Any) -> Any:
        def body(first: Any, count: int) -> Any:
            def one(lane: Any) -> Any:
                return tirx.BufferStore(self.y, substituted(element, {k: first + lane}), [start + first + lane])

            return vectorized(count, one)

        return self._vectors(self.columns * self.channels, self._lanes(element), body)

    def _planes(self, start: Any, planes: Sequence[Any], k: Any) -> Any:
        kind = str(self.y.dtype)

        def body(first: Any, count: int) -> Any:
            part = tirx.decl_buffer((self.channels * count,), kind, "part", scope="local")

            def gather(c: int) -> Any:
                def one(lane: Any) -> Any:
                    return tirx.BufferStore(part, substituted(planes[c], {k: first + lane}), [c * count + lane])

                return vectorized(count, one)

            vectors = [part[vector(const(c * count), count)] for c in range(self.channels)]
            vectors += [spread(self.padding, count)] * (self.wide - self.channels)
            order = [const(c * count + j) for j in range(count) for c in range(self.wide)]
            together = tirx.Shuffle(vectors, order) if len(order) > 1 else vectors[0]
            at = vector(start + first * self.wide, len(order))
            gathered = [gather(c) for c in range(self.channels)]
            return sequence([tirx.AllocBuffer(part), *gathered, tirx.BufferStore(self.y, together, [at])])

        return self._vectors(self.columns, self.target.lanes(32), body)

    def _pixels(self, start: Any) -> Any:
        """One element after the other."""

        def pixel(j: Any) -> Any:
            def channel(c: Any) -> Any:
                value = self._element(j, c, {j: self.columns, c: self.channels})
                return tirx.BufferStore(self.y, value, [start + j * self.wide + c])

            rest = self._fill(start + j * self.wide + self.channels, self.wide - self.channels)
            inner = loop("channel", 0, self.channels, channel)
            return inner if rest is None else sequence([inner, rest])

        return loop("column", 0, self.columns, pixel)
