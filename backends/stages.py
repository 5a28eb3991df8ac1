"""Cutting a scheduled PrimFunc into stages: one loop nest each, so that a barrier between them is a call's end.

    root: alloc p; for i: p[i] = ...; for j: y[j] = ... p[j] ...
        ->  stage 1 (x, p), stage 2 (p, w, y)      p becomes a buffer of the memory plan

A local buffer that a single nest uses stays inside it, on the stack; one that crosses nests becomes a parameter, and
so does a workspace.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import tvm.ir
import tvm_ffi
from tvm import s_tir, tirx
from tvm.tirx.buffer import is_buffer_var

from graphc.backends.expressions import loads
from graphc.backends.statements import PARALLEL, WORKSPACE

TASK = "task"


@dataclass(frozen=True)
class Stage:
    """One loop nest as a PrimFunc; `buffers` are its parameters as the whole function names them.

    `parameters` are the whole function's own; `in_place` maps a written buffer to one it may overwrite.
    """

    function: Any
    parameters: tuple[Any, ...]
    buffers: tuple[Any, ...]
    written: tuple[Any, ...]
    in_place: dict[Any, Any] = field(default_factory=dict)


def stages(function: Any) -> list[Stage]:
    """The stages of a scheduled PrimFunc, in order."""
    root = function.body.block
    nests = list(root.body.seq) if isinstance(root.body, tirx.SeqStmt) else [root.body]
    used = [_buffers(nest) for nest in nests]
    parameters = tuple(function.params)
    workspace = [str(name) for name in root.annotations.get(WORKSPACE, ())]
    result = []
    for position, (nest, (touched, written)) in enumerate(zip(nests, used, strict=True)):
        elsewhere = [buffer for n, (other, _) in enumerate(used) if n != position for buffer in other]
        own = [buffer for buffer in root.alloc_buffers if _holds(touched, buffer)]
        private = [b for b in own if not _holds(elsewhere, b) and str(b.name) not in workspace]
        arguments = (*(b for b in parameters if _holds(touched, b)), *(b for b in own if not _holds(private, b)))
        results = tuple(b for b in arguments if _holds(written, b))
        in_place = _in_place(nest, arguments, results)
        attributes = {**(function.attrs or {}), "tirx.noalias": not in_place}
        result.append(
            Stage(_standalone(nest, arguments, private, attributes), parameters, arguments, results, in_place)
        )
    return result


def _in_place(nest: Any, arguments: tuple[Any, ...], results: tuple[Any, ...]) -> dict[Any, Any]:
    """Written buffer -> a read one whose elements are loaded just to be replaced by those of the same index."""
    if len(results) != 1:
        return {}
    target = results[0]
    alike = [
        b
        for b in arguments
        if not b.same_as(target)
        and str(b.dtype) == str(target.dtype)
        and tvm_ffi.structural_equal(b.shape, target.shape)
    ]
    found = loads(nest)
    if _holds([load.source for load in found], target):
        return {}  # an accumulator: it is read before all of it is written
    matching: list[Any] = []

    def store(statement: Any) -> None:
        if statement.buffer.same_as(target):
            matching.extend(
                each.source
                for each in loads(statement.value)
                if tvm_ffi.structural_equal(each.indices, statement.indices)
            )

    tvm_ffi.structural_walk(nest, (tirx.BufferStore, store))
    for source in alike:
        count = sum(load.source.same_as(source) for load in found)
        if count and count == sum(match.same_as(source) for match in matching):
            return {target: source}
    return {}


def _holds(buffers: Sequence[Any], buffer: Any) -> bool:
    return any(b.same_as(buffer) for b in buffers)


def _buffers(stmt: Any) -> tuple[list[Any], list[Any]]:
    """(every buffer that a statement reads or writes, those it writes)."""
    touched: list[Any] = []
    written: list[Any] = []

    def mention(variable: Any) -> None:
        if is_buffer_var(variable):
            touched.append(variable)

    entries = [(tirx.BufferStore, lambda store: written.append(store.buffer)), (tirx.Var, mention)]
    tvm_ffi.structural_walk(stmt, entries, order="post")
    return [*touched, *written], written


def _standalone(nest: Any, arguments: tuple[Any, ...], private: list[Any], attributes: dict[str, Any]) -> Any:
    """A PrimFunc of one nest, whose outermost loop is what may be divided among threads."""
    if not (isinstance(nest, tirx.For) and PARALLEL in nest.annotations):
        nest = tirx.For(tirx.Var(TASK, "int32"), 0, 1, tirx.ForKind.SERIAL, nest)
    root = s_tir.SBlock([], [], [], "root", nest, alloc_buffers=private)
    body = s_tir.SBlockRealize([], tirx.const(True, "bool"), root)
    return tirx.PrimFunc(list(arguments), body, attrs=tvm.ir.make_node("ir.DictAttrs", **attributes))
