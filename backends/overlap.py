"""How far a kernel's result must lie before an operand whose bytes it may overwrite (runs in the compile server).

    in:            [ row 0 | row 1 | row 2 | ... ]            out[r] is written after in[<= r] was last read:
    out: [ row 0 | row 1 | row 2 | ... ]                      the two overlap, `distance` apart, and nothing is copied

Depthwise convolutions in place (Lin et al., "MCUNet", NeurIPS 2020, section 3.2) without the buffer of one channel, and
for any kernel that walks its operand and its result in the same direction: the accesses of the lowered loop nest are
enumerated, and a distance d is taken if for every byte a of the operand

    when byte a + d of the result is first written  >=  when byte a is last read.

That is a proof for the order that one thread takes; whoever divides the tasks among threads must not use it.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from numpy.typing import NDArray
from tvm import sym, tirx

from graphc.backends.expressions import loads, variables
from graphc.backends.objects import BLOCKS_TO_LOOPS

MOST_ITERATIONS = 1 << 22
"""Of a kernel's loops: one that has more is not looked into, which would take seconds and hundreds of megabytes."""

MOST_STEPS = 64
"""How coarse a step is tried: a kernel that walks channel by channel overlaps at whole positions alone."""

MOST_TICKS = 1 << 60
"""Times are 64-bit integers."""

Integers = NDArray[np.int64]
Values = dict[Any, Integers]
_BINARY = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "FloorDiv": np.floor_divide,
    "FloorMod": np.mod,
    "Min": np.minimum,
    "Max": np.maximum,
}


@dataclass(frozen=True, slots=True)
class Distance:
    """The result may begin `least` bytes or more before the operand, at any multiple of `step` bytes."""

    least: int
    step: int


class _UnknownError(Exception):
    """An access whose address or time the enumeration cannot tell."""


def distance(function: Any, written: int, read: int, alignment: int) -> Distance | None:
    """How parameter `written` of a stage may overlap parameter `read`; None where nothing is saved or proven.

    `step` is a multiple of `alignment`.
    """
    try:
        walk = _Walk(function, written, read)
    except _UnknownError:
        return None
    size, operand = walk.first_write.size, walk.last_read.size
    found = [Distance(_least(walk, step), step) for step in range(alignment, MOST_STEPS * alignment + 1, alignment)]
    best = min(found, key=lambda each: max(size, each.least + operand))
    return best if max(size, best.least + operand) < size + operand else None


def _least(walk: "_Walk", step: int) -> int:
    """The least multiple of `step` from which on every multiple is safe."""
    size = walk.first_write.size
    found = -(-size // step) * step
    while found >= step and _safe(walk, found - step):
        found -= step
    return found


def _safe(walk: "_Walk", apart: int) -> bool:
    count = min(walk.first_write.size - apart, walk.last_read.size)
    return bool((walk.first_write[apart : apart + count] >= walk.last_read[:count]).all())


class _Walk:
    """When each byte of the result is first written and each byte of the operand last read.

    Times count statements; of one statement all loads come before its store. Branches are taken to run both, accesses
    outside the buffer never happen.
    """

    def __init__(self, function: Any, written: int, read: int) -> None:
        flat = tvm.ir.transform.Sequential([make() for make in (*BLOCKS_TO_LOOPS, tirx.transform.FlattenBuffer)])
        lowered = flat(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}))["main"]
        result, operand = lowered.params[written], lowered.params[read]
        self.written, self.read = [result], [operand]
        """The parameter, and its names once it is flat."""
        self.analyzer = sym.Analyzer()
        self.first_write: Integers = np.full(_bytes(result), np.iinfo(np.int64).max)
        self.last_read: Integers = np.full(_bytes(operand), -1)
        self._run(lowered.body, {}, np.zeros(1, np.int64), 0)

    def _run(self, stmt: Any, values: Values, at: Integers, late: int) -> None:
        """Note the accesses of a statement that starts at the times `at`, one for each iteration around it.

        Reads count `late` ticks later: within a vectorized loop, whose iterations have no order, at its end.
        """
        if isinstance(stmt, tirx.SeqStmt):
            for each in stmt.seq:
                self._run(each, values, at, late)
                at = at + self._ticks(each)
        elif isinstance(stmt, tirx.For):
            self._loop(stmt, values, at, late)
        elif isinstance(stmt, tirx.IfThenElse):
            self._loads(stmt.condition, values, at + late)
            self._run(stmt.then_case, values, at + 1, late)
            if stmt.else_case is not None:
                self._run(stmt.else_case, values, at + 1 + self._ticks(stmt.then_case), late)
        elif isinstance(stmt, tirx.AttrStmt):
            self._run(stmt.body, values, at, late)
        elif isinstance(stmt, tirx.BufferStore):
            self._store(stmt, values, at, late)
        elif isinstance(stmt, tirx.Evaluate):
            self._loads(stmt.value, values, at + late)
        elif isinstance(stmt, tirx.DeclBuffer):
            for names in (self.written, self.read):
                if _holds(names, variables(stmt.data)):
                    names.append(stmt.buffer)
        elif not isinstance(stmt, tirx.AllocBuffer):
            raise _UnknownError

    def _ticks(self, stmt: Any) -> int:
        """At most how long a statement takes."""
        if isinstance(stmt, tirx.SeqStmt):
            return sum(map(self._ticks, stmt.seq))
        if isinstance(stmt, tirx.For):
            self._bind(stmt)
            most = int(self.analyzer.const_int_bound(stmt.extent).max_value)
            return max(0, most) * self._ticks(stmt.body)
        if isinstance(stmt, tirx.IfThenElse):
            return 1 + self._ticks(stmt.then_case) + (self._ticks(stmt.else_case) if stmt.else_case is not None else 0)
        return self._ticks(stmt.body) if isinstance(stmt, tirx.AttrStmt) else 2

    def _bind(self, loop: tirx.For) -> None:
        if not isinstance(loop.step, tirx.IntImm | None):
            raise _UnknownError
        self.analyzer.bind(loop.loop_var, tvm.ir.Range.from_min_extent(loop.min, loop.extent), allow_override=True)

    def _loop(self, loop: tirx.For, values: Values, at: Integers, late: int) -> None:
        self._loads(loop.min, values, at + late)
        self._loads(loop.extent, values, at + late)
        start, count = (np.broadcast_to(_value(each, values), at.shape) for each in (loop.min, loop.extent))
        ticks, count = self._ticks(loop), np.maximum(count, 0)
        if ticks > MOST_TICKS or int(count.sum()) > MOST_ITERATIONS:
            raise _UnknownError
        turn = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        inner = {name: np.repeat(np.broadcast_to(each, at.shape), count) for name, each in values.items()}
        inner[loop.loop_var] = np.repeat(start, count) + turn
        begin = np.repeat(at, count)
        if loop.kind == tirx.ForKind.VECTORIZED:
            self._run(loop.body, inner, begin, late + ticks)
        else:
            self._run(loop.body, inner, begin + turn * self._ticks(loop.body), late)

    def _store(self, store: Any, values: Values, at: Integers, late: int) -> None:
        """A vector that is stored piece by piece may be loaded so: then its reads come after its first write."""
        several = any(isinstance(index, tirx.Ramp) for index in store.indices)
        for each in (store.value, *store.indices):
            self._loads(each, values, at + late + several)
        if _holds(self.written, [store.buffer]):
            bytes_, times = _touched(store.buffer, store.indices, values, at, self.first_write.size)
            np.minimum.at(self.first_write, bytes_, times)
        elif _holds(self.read, [store.buffer]):
            raise _UnknownError

    def _loads(self, part: Any, values: Values, at: Integers) -> None:
        found = [load for load in loads(part) if _holds(self.read, [load.source])]
        mentions = sum(_holds(self.read, [each]) for each in variables(part))
        if mentions != len(found) or _takes_address(part):
            raise _UnknownError
        for load in found:
            bytes_, times = _touched(load.source, load.indices, values, at, self.last_read.size)
            np.maximum.at(self.last_read, bytes_, times)


def _holds(names: list[Any], variables: list[Any]) -> bool:
    return any(name.same_as(each) for name in names for each in variables)


def _takes_address(part: Any) -> bool:
    """Whether a pointer goes where its accesses cannot be seen."""
    calls: list[Any] = []
    tvm_ffi.structural_walk(part, (tvm.ir.Call, calls.append))
    names = [str(getattr(call.op, "name", "")) for call in calls]
    return any("address" in name or "access_ptr" in name for name in names)


def _width(buffer: Any) -> int:
    return -(-int(tvm.DataType(str(buffer.dtype)).bits) // 8)


def _bytes(buffer: Any) -> int:
    return prod(int(dim) for dim in buffer.shape) * _width(buffer)


def _touched(buffer: Any, indices: Any, values: Values, at: Integers, size: int) -> tuple[Integers, Integers]:
    """The bytes of a flat buffer that an access touches, and when."""
    if len(indices) != 1:
        raise _UnknownError
    width, index = _width(buffer), indices[0]
    lanes = np.zeros(1, np.int64)
    if isinstance(index, tirx.Ramp):
        lanes = np.arange(int(index.lanes)) * int(index.stride)
        index = index.base
    base = np.broadcast_to(_value(index, values), at.shape)
    bytes_ = ((base[:, None] + lanes)[:, :, None] * width + np.arange(width)).reshape(at.size, -1)
    times = np.broadcast_to(at[:, None], bytes_.shape)
    inside = (bytes_ >= 0) & (bytes_ < size)
    return bytes_[inside], times[inside]


def _value(expression: Any, values: Values) -> Integers:
    """An integer expression for each iteration."""
    if isinstance(expression, tirx.IntImm):
        return np.array([int(expression.value)], np.int64)
    if isinstance(expression, tirx.Var) and expression in values:
        return values[expression]
    if isinstance(expression, tirx.Cast):
        return _value(expression.value, values)
    operation = _BINARY.get(type(expression).__name__)
    if operation is None:
        raise _UnknownError
    found: Integers = operation(_value(expression.a, values), _value(expression.b, values))
    return found
