"""Results that are read with padding around them: written where they lie in that, by the kernel that makes them.

    for task in n: v[position] = f         for task in n + images: if task < n: p[position + begin] = f
    p = v with padding around it     ->                            else: the padding of image task - n

So padding reads nothing and is no call of its own. Where something else reads v as well, f is stored twice.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx

from graphc.backends.expressions import loads, variables
from graphc.backends.schedule_pad import BORDER
from graphc.backends.stages import Stage
from graphc.backends.statements import PARALLEL, const, loop, sequence, spread, vector
from graphc.backends.targets import Target


@dataclass(frozen=True)
class Border:
    """An operand lies from `begin` on, along each axis, in a result of `shape`; around it is `padding`."""

    begin: Sequence[int]
    inside: Sequence[int]
    shape: Sequence[int]
    padding: Any

    @property
    def bands(self) -> Iterator[list[tuple[int, int]]]:
        """(first, how many) along each axis after the first, of boxes that cover the padding once."""
        for axis in range(1, len(self.shape) - 1):
            after = self.begin[axis] + self.inside[axis]
            for first, count in ((0, self.begin[axis]), (after, self.shape[axis] - after)):
                if count:
                    inside = zip(self.begin[1:axis], self.inside[1:axis], strict=True)
                    yield [*inside, (first, count), *((0, extent) for extent in self.shape[axis + 1 :])]


def border(function: Any) -> Border | None:
    """What a PrimFunc puts around its operand, None where it does anything else. Channels must not become more."""
    body = getattr(function, "body", None)
    blocks: list[Any] = []
    if body is not None:
        tvm_ffi.structural_walk(body, (s_tir.SBlock, blocks.append))
    padding = [block for block in blocks if BORDER in block.annotations]
    if len(padding) != 1 or len(blocks) != 2:  # the root and it
        return None
    store, info = padding[0].body, json.loads(str(padding[0].annotations[BORDER]))
    shape = [int(extent) for extent in store.buffer.shape]
    _, value, around = store.value.args
    plain = len(loads(value)) == 1 and value.same_as(loads(value)[0]) and loads(value)[0].source in function.params
    return Border(info["begin"], info["inside"], shape, around) if plain and info["inside"][-1] == shape[-1] else None


def written_padded(stages: Sequence[Stage], around: Border, target: Target, *, keep: bool) -> list[Stage] | None:
    """The stages of a function with a padded result in place of its only one, or (`keep`) behind it.

    None where the last stage does not store each element of the result at its own place.
    """
    *before, last = stages
    result = last.parameters[-1]
    nest = _nest(last, result)
    if nest is None or any(len(each.indices) != len(around.begin) for each in _stores(nest, result)):
        return None
    padded = tirx.decl_buffer(around.shape, result.dtype, "padded")
    body = _stored(nest.body, result, padded, around, keep)
    if any(_mentions(stage.function.body, result) for stage in before) or (not keep and _mentions(body, result)):
        return None
    count = int(nest.extent)
    edge = _edge(around, padded, nest.loop_var - count, target)
    body = tirx.IfThenElse(nest.loop_var < count, body, edge)
    nest = tirx.For(nest.loop_var, 0, count + around.shape[0], nest.kind, body, annotations=nest.annotations)
    whole = [*before, _rewritten(last, nest, result, padded, keep)]
    return [replace(stage, parameters=_with(stage.parameters, result, padded, keep)) for stage in whole]


def _stored(body: Any, result: Any, padded: Any, around: Border, keep: bool) -> Any:
    """The statement with what it stores in `result` stored in `padded`, or there first."""

    def store(statement: Any) -> Any:
        if not statement.buffer.same_as(result):
            return statement
        places = [place + begin for place, begin in zip(statement.indices, around.begin, strict=True)]
        inside = tirx.BufferStore(padded, statement.value, places)
        return (
            sequence([inside, tirx.BufferStore(result, padded[tuple(places)], statement.indices)]) if keep else inside
        )

    return tvm_ffi.structural_map(body, (tirx.BufferStore, store))


def _rewritten(stage: Stage, nest: Any, result: Any, padded: Any, keep: bool) -> Stage:
    """The stage with another loop over its tasks, which writes `padded`."""
    root = s_tir.SBlock([], [], [], "root", nest, alloc_buffers=stage.function.body.block.alloc_buffers)
    in_place = stage.in_place if keep else {}
    attributes = {**(stage.function.attrs or {}), "tirx.noalias": not in_place}
    buffers = _with(stage.buffers, result, padded, keep)
    function = tirx.PrimFunc(
        list(buffers),
        s_tir.SBlockRealize([], tirx.const(True, "bool"), root),
        attrs=tvm.ir.make_node("ir.DictAttrs", **attributes),
    )
    written = _with(stage.written, result, padded, keep)
    return replace(stage, function=function, buffers=buffers, written=written, in_place=in_place)


def _nest(stage: Stage, result: Any) -> Any:
    """The loop over tasks that writes `result`; None where it is another form, or has blocks of TVM's inside."""
    nest = stage.function.body.block.body
    if not isinstance(nest, tirx.For) or PARALLEL not in nest.annotations or not isinstance(nest.extent, tirx.IntImm):
        return None
    blocks: list[Any] = []
    tvm_ffi.structural_walk(nest, (s_tir.SBlock, blocks.append))
    only = len(stage.written) == 1 and stage.written[0].same_as(result)
    return nest if only and not blocks and int(nest.min) == 0 else None


def _stores(part: Any, buffer: Any) -> list[Any]:
    found: list[Any] = []
    tvm_ffi.structural_walk(part, (tirx.BufferStore, found.append))
    return [store for store in found if store.buffer.same_as(buffer)]


def _mentions(part: Any, buffer: Any) -> bool:
    return any(variable.same_as(buffer) for variable in variables(part)) or bool(_stores(part, buffer))


def _edge(around: Border, padded: Any, image: Any, target: Target) -> Any:
    """The padding of one image."""
    lanes = 1 if target.emit == "c" else max(1, target.lanes(tvm.DataType(str(padded.dtype)).bits))
    return sequence([_band(around, padded, [image], band, lanes) for band in around.bands])


def _band(around: Border, padded: Any, outer: list[Any], band: list[tuple[int, int]], lanes: int) -> Any:
    """Padding in one box: `outer` are the places along the axes before those of `band`."""
    (first, count), *inner = band
    if inner:
        return loop("edge", 0, count, lambda n: _band(around, padded, [*outer, n + first], inner, lanes))

    def fill(at: Any, width: int) -> Any:
        return tirx.BufferStore(padded, spread(around.padding, width), [*outer, vector(at, width)])

    whole, left = divmod(count, lanes)
    parts = [loop("run", 0, whole, lambda n: fill(n * lanes, lanes))] if whole else []
    return sequence([*parts, *([fill(const(whole * lanes), left)] if left else [])])


def _with(buffers: Sequence[Any], result: Any, padded: Any, keep: bool) -> tuple[Any, ...]:
    """The buffers with the padded result behind or in the place of the plain one."""
    kept = tuple(each for each in buffers if keep or not each.same_as(result))
    return (*kept, padded)
