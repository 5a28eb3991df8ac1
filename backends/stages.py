"""Cutting a scheduled PrimFunc into stages: one loop nest each, so that a barrier between them is a call's end.

    root: alloc p; for i: p[i] = ...; for j: y[j] = ... p[j] ...
        ->  stage 1 (x, p), stage 2 (p, w, y)      p becomes a buffer of the memory plan

A local buffer that a single nest uses stays inside it, on the stack; one that crosses nests becomes a parameter.
"""

from dataclasses import dataclass, field
from typing import Any

import tvm_ffi
from tvm import s_tir, tirx
from tvm.tirx.buffer import is_buffer_var

from graphc.backends.schedule_generic import PARALLEL

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
    parameters = list(function.params)
    result = []
    for position, nest in enumerate(nests):
        touched, written = used[position]
        private, shared = [], []
        for buffer in root.alloc_buffers:
            if _holds(touched, buffer):
                alone = not any(_holds(other, buffer) for n, (other, _) in enumerate(used) if n != position)
                (private if alone else shared).append(buffer)
        arguments = [*(b for b in parameters if _holds(touched, b)), *shared]
        result.append(Stage(_standalone(nest, arguments, private, function.attrs), tuple(parameters), tuple(arguments), tuple(b for b in arguments if _holds(written, b))))
    return result


def _holds(buffers: list[Any], buffer: Any) -> bool:
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


def _standalone(nest: Any, arguments: list[Any], private: list[Any], attributes: Any) -> Any:
    """A PrimFunc of one nest, whose outermost loop is what may be divided among threads."""
    if not (isinstance(nest, tirx.For) and PARALLEL in nest.annotations):
        nest = tirx.For(tirx.Var(TASK, "int32"), 0, 1, tirx.ForKind.SERIAL, nest)
    root = s_tir.SBlock([], [], [], "root", nest, alloc_buffers=private)
    body = s_tir.SBlockRealize([], tirx.const(True, "bool"), root)
    return tirx.PrimFunc(arguments, body, attrs=attributes)
