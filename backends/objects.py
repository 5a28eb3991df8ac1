"""A scheduled PrimFunc -> an object file with a plain C ABI (runs in a worker process: imports TVM).

    for t in range(n): ...   ->   void symbol(T0 *p0, T1 *p1, ..., int32_t task_begin, int32_t task_end)

The outermost loop becomes the tasks: a call runs those in [task_begin, task_end), so whoever calls owns the threads.
A PrimFunc without a loop is one task. The object needs nothing of TVM at run time: local buffers live on the stack,
and the only symbols it asks for are the C library's memory and mathematics functions.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm_ffi.serialization import from_json_graph_str

from graphc.backends import freestanding, llvm_bf16, vector_math
from graphc.backends.elf import undefined_symbols, without_debug
from graphc.backends.targets import Target, llvm_target
from graphc.errors import InternalError

STACK_BYTES = 80 << 10
"""The most that a kernel's local buffers may take; what is larger must be a parameter that the memory plan owns."""

# TVM's VectorizeLoop turns a loop around these into scalars, although LLVM has both for vectors.
for _name in ("tirx.nearbyint", "tirx.rsqrt"):
    tvm.ir.register_op_attr(_name, "TVectorizable", True)

OVERLAPPING = "graphc.overlapping"
"""Attribute of a PrimFunc, beside `tirx.noalias` false, whose result may be written over bytes of other elements."""

TASKS = "graphc.tasks"  # the annotation that marks the outermost loop through lowering

_S, _X = s_tir.transform, tirx.transform

# The part of TVM's pipeline that CPU kernels need. Left out: what serves GPUs (thread bindings, shared memory, software
# pipelines, asynchronous copies), and MakePackedAPI and LowerTVMBuiltin, which would call TVM's runtime.
BLOCKS_TO_LOOPS = (
    _S.CanonicalizeLoop,  # loops start at 0 and step by 1
    _S.LowerInitBlock,  # a reduction's first value: an `if` on the reduction's first iteration
    _S.PlanAndUpdateBufferAllocationLocation,  # a local buffer is allocated inside the loops that share it
    _S.ConvertBlocksToOpaque,  # block variables become expressions of loop variables
    _S.CompactBufferAllocation,  # and is as large as the part in use
    _S.LowerMatchBuffer,  # windows of a buffer (operands of tensorized intrinsics) become offsets into it
    _S.StmtSimplify,
    _S.AnnotateIrregularLoop,  # keeps loops with `break` from being unrolled or vectorized
    _S.LowerOpaqueBlock,  # blocks vanish, predicates become `if`
)
LOOPS_TO_SCALARS = (
    _X.FlattenBuffer,  # one dimension each
    _X.BF16ComputeLegalize,  # bfloat16 and float8 arithmetic in float32
    _X.FP8ComputeLegalize,
    lambda: _X.NarrowDataType(32),  # indices that provably fit are int32
    _S.LoopPartition,  # splits loops that carry `pragma_loop_partition_hint`: edges apart from the middle
    _X.VectorizeLoop,
    _S.InjectVirtualThread,
    _X.StorageRewrite,  # local buffers whose lives do not meet share memory
    _S.HoistIfThenElse,  # conditions out of the loops they do not depend on
    _X.UnrollLoop,
    _S.RenormalizeSplitPattern,
    _X.StmtSimplify,
    _X.RemoveNoOp,
    _S.RewriteUnsafeSelect,  # a select whose unused side could read out of bounds becomes a branch
    _X.CommonSubexprElim,
)
POINTERS = (
    _X.FP8StorageLegalize,  # types that C lacks are stored as unsigned integers
    _X.BF16StorageLegalize,
    _X.LowerIntrin,  # floor division, exponentials and the like in what LLVM has
)


def tir_json(func: tirx.PrimFunc) -> str:
    """The text form that cache keys and `object_code` take: the same in every process and wherever graphc is installed.

    TVM's own JSON, less where in which source file each expression was written (TVMScript records it).
    """
    graph = json.loads(tvm.ir.save_json(func))
    for node in graph["nodes"]:
        if node["type"] == "ir.SourceName":
            node["data"] = ""
        elif node["type"] == "ir.Span":
            node["data"].update(dict.fromkeys(("line", "column", "end_line", "end_column"), 0))
    return json.dumps(graph, separators=(",", ":"), sort_keys=True)


def task_count(func: tirx.PrimFunc) -> int:
    """How many tasks `func` has: the extent of its outermost loop, 1 where there is no loop."""
    subject = func_name(func)
    loop = _outermost(func.body, subject)
    if loop is None:
        return 1
    step = 1 if loop.step is None else _constant(loop.step, subject)
    return -(-_constant(loop.extent, subject) // step)


def func_name(func: tirx.PrimFunc) -> str:
    """For messages."""
    return f"kernel {func.attrs['global_symbol']}" if func.attrs and "global_symbol" in func.attrs else "kernel"


def object_code(tir: str, symbol: str, target: Target) -> bytes:
    """The ELF object of `tir` (see `tir_json`): one function `symbol`, deterministic bytes.

    The parameters must be buffers and become pointers, in order (bool as uint8_t, float16 and bfloat16 as uint16_t).
    Pointers are taken not to overlap, unless the PrimFunc's attribute `tirx.noalias` is false: kernels that may run in
    place need it so. A multiply and an add of floats may be contracted to one FMA.

    Raises InternalError when the PrimFunc is not one loop nest, needs more than STACK_BYTES of stack, or when the
    object would need a symbol that is not the C library's.
    """
    module, options = _module(tir, symbol, target)
    code = tvm.get_global_func("target.build.llvm")(module, options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.o"
        code.write_to_file(str(path), "o")
        data = without_debug(path.read_bytes())
    foreign = sorted(name for name in undefined_symbols(data) if not _in_c_library(name, target))
    if foreign:
        raise InternalError(f"kernel {symbol}", f"its code needs {', '.join(foreign)}, which no C library has.")
    return data


def assembly(tir: str, symbol: str, target: Target) -> str:
    """The same code as assembly text, to read."""
    module, options = _module(tir, symbol, target)
    return str(tvm.get_global_func("target.build.llvm")(module, options).inspect_source("asm"))


def scalar_function(tir: str, symbol: str) -> tirx.PrimFunc:
    """The same lowering without vectors, for C: pointers for parameters, one operation per expression."""
    without_vectors = tuple(_serial if make is _X.VectorizeLoop else make for make in LOOPS_TO_SCALARS)
    return _lowered(tir, symbol, tvm.target.Target("c"), without_vectors)


def _serial() -> Any:
    return _X.VectorizeLoop(enable_vectorize=False)


def _module(tir: str, symbol: str, target: Target) -> tuple[tvm.IRModule, tvm.target.Target]:
    options = tvm.target.Target(llvm_target(target))
    function = _lowered(tir, symbol, options, LOOPS_TO_SCALARS)
    if OVERLAPPING in function.attrs:  # TVM's TBAA says of any two buffers that they do not alias
        options = tvm.target.Target({**llvm_target(target), "cl-opt": ["-enable-tbaa:bool=0"]})
        function = function.with_attr("target", options)
    return tvm.IRModule({symbol: function}), options


def _lowered(tir: str, symbol: str, options: tvm.target.Target, to_scalars: tuple[Any, ...]) -> tirx.PrimFunc:
    func = from_json_graph_str(tir)  # tvm.ir.load_json first looks for what older TVMs wrote, which takes half the time
    if not isinstance(func, tirx.PrimFunc):
        raise InternalError(f"kernel {symbol}", f"expected a PrimFunc, got {type(func).__name__}.")
    noalias = bool(func.attrs.get("tirx.noalias", True)) if func.attrs else True
    func = func.with_attr("global_symbol", symbol).with_attr("target", options).with_attr("tirx.noalias", noalias)
    with options:
        marked = tvm.IRModule({symbol: func.with_body(_mark(func.body, symbol))})
        lowered = _apply(BLOCKS_TO_LOOPS + to_scalars, marked)
        plain = vector_math.named(_plain(lowered[symbol], symbol))
        pointed = _apply(POINTERS, tvm.IRModule({symbol: plain}))
        return llvm_bf16.linked(vector_math.expanded(pointed[symbol]))


def _apply(passes: tuple[Any, ...], module: tvm.IRModule) -> tvm.IRModule:
    return tvm.ir.transform.Sequential([make() for make in passes])(module)


def _outermost(stmt: Any, subject: str) -> tirx.For | None:
    """The loop that the tasks are; None where there is no loop at all."""
    if isinstance(stmt, s_tir.SBlockRealize):
        return None if len(stmt.iter_values) else _outermost(stmt.block.body, subject)
    if isinstance(stmt, tirx.For):
        return stmt
    loops = [each for each in _inside(stmt) if isinstance(each, tirx.For)]
    if loops:
        raise InternalError(subject, f"expected one loop nest at the root, got {len(loops)} loops and more beside.")
    return None


def _mark(stmt: Any, symbol: str) -> Any:
    """The body with its outermost loop annotated, and serial whatever it was."""
    loop = _outermost(stmt, f"kernel {symbol}")
    if loop is None:
        return stmt
    if isinstance(stmt, s_tir.SBlockRealize):
        block = stmt.block
        root = s_tir.SBlock(
            block.iter_vars,
            block.reads,
            block.writes,
            block.name_hint,
            _mark(block.body, symbol),
            block.init,
            block.alloc_buffers,
            block.match_buffers,
            block.annotations,
        )
        return s_tir.SBlockRealize(stmt.iter_values, stmt.predicate, root)
    annotations = {**loop.annotations, TASKS: 1}
    return tirx.For(
        loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body, annotations=annotations, step=loop.step
    )


def _plain(func: tirx.PrimFunc, symbol: str) -> tirx.PrimFunc:
    """The lowered PrimFunc with pointers for parameters and the range of tasks added."""
    subject = f"kernel {symbol}"
    pointers, declared = [], []
    for param in func.params:
        if not isinstance(param.ty, tirx.BufferType):
            raise InternalError(subject, f"expected buffers as parameters, got {param.name} of type {param.ty}.")
        pointer = tirx.Var(f"{param.name}_ptr", tvm.ir.PointerType(tvm.ir.PrimType(str(param.dtype)), "global"))
        pointers.append(pointer)
        declared.append(tirx.DeclBuffer(param, data=pointer))
    _refuse_large_stack(func.body, subject)
    begin, end = tirx.Var("task_begin", "int32"), tirx.Var("task_end", "int32")
    body = tirx.SeqStmt([*declared, _over_tasks(func.body, begin, end, subject)])
    return tirx.PrimFunc([*pointers, begin, end], body, attrs=func.attrs)


def _over_tasks(stmt: Any, begin: Any, end: Any, subject: str) -> Any:
    """The statement with its marked loop running from `begin` to `end`, all of it as task 0 where none is marked."""
    marked = [each for each in _inside(stmt) if isinstance(each, tirx.For) and TASKS in each.annotations]
    if not marked and not any(isinstance(each, tirx.For) for each in _inside(stmt)):
        return tirx.For(tirx.Var("task", "int32"), begin, end - begin, tirx.ForKind.SERIAL, stmt)
    if any(isinstance(each, tirx.For) and each.kind == tirx.ForKind.PARALLEL for each in _inside(stmt)):
        raise InternalError(subject, "only the outermost loop may be parallel: graphc owns the threads.")
    if len(marked) != 1:
        raise InternalError(subject, f"lowering left {len(marked)} outermost loops instead of one.")
    return _with_range(stmt, begin, end, subject)


def _with_range(stmt: Any, begin: Any, end: Any, subject: str) -> Any:
    if isinstance(stmt, tirx.SeqStmt):
        return tirx.SeqStmt([_with_range(each, begin, end, subject) for each in stmt.seq])
    if isinstance(stmt, tirx.AttrStmt):
        return tirx.AttrStmt(stmt.node, stmt.attr_key, stmt.value, _with_range(stmt.body, begin, end, subject))
    if isinstance(stmt, tirx.For) and TASKS in stmt.annotations:
        wide = str(stmt.loop_var.ty.dtype)  # int64 where int32 cannot be proven to do
        start, count = (each if wide == "int32" else tirx.Cast(wide, each) for each in (begin, end - begin))
        return tirx.For(stmt.loop_var, start, count, tirx.ForKind.SERIAL, stmt.body)
    if isinstance(stmt, tirx.For | tirx.While | tirx.IfThenElse | tirx.BufferStore):
        raise InternalError(subject, f"lowering left a {type(stmt).__name__} beside the loop over the tasks.")
    return stmt  # declarations and values that the loop uses


def _inside(stmt: Any) -> Iterator[Any]:
    """The statement and all statements in it, outermost first."""
    yield stmt
    if isinstance(stmt, tirx.SeqStmt):
        children = list(stmt.seq)
    elif isinstance(stmt, tirx.IfThenElse):
        children = [stmt.then_case, *([stmt.else_case] if stmt.else_case is not None else [])]
    elif isinstance(stmt, s_tir.SBlockRealize):
        children = [stmt.block.body]
    else:
        children = [stmt.body] if isinstance(stmt, tirx.For | tirx.While | tirx.AttrStmt) else []
    for child in children:
        yield from _inside(child)


def _refuse_large_stack(body: Any, subject: str) -> None:
    sizes = {}
    for stmt in _inside(body):
        if isinstance(stmt, tirx.AllocBuffer):
            buffer = stmt.buffer
            elements = 1
            for dim in buffer.shape:
                elements *= _constant(dim, subject)
            dtype = tvm.DataType(str(buffer.dtype))
            sizes[str(buffer.name)] = elements * -(-dtype.bits * dtype.lanes // 8)
    total = sum(sizes.values())
    if total > STACK_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        raise InternalError(
            subject,
            f"its local buffers take {total} bytes of stack (at most {STACK_BYTES}); the largest is {largest}, "
            f"{sizes[largest]} bytes.",
            "Its schedule must tile them, or make them parameters.",
        )


def _constant(extent: Any, subject: str) -> int:
    if not isinstance(extent, tirx.IntImm):
        raise InternalError(subject, f"expected a constant extent, got {extent}.")
    return int(extent.value)


_C_FUNCTIONS = (
    "acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh erf erfc exp exp10 exp2 expm1 fabs floor fma "
    "fmax fmin fmod frexp hypot ldexp lgamma log log10 log1p log2 logb modf nearbyint nextafter pow remainder rint "
    "round roundeven sin sinh sqrt tan tanh tgamma trunc memcpy memmove memset"
)
_C_LIBRARY = frozenset(_C_FUNCTIONS.split())


def _in_c_library(name: str, target: Target) -> bool:
    """Arm's 32-bit compilers bring the functions of its run-time ABI (IHI0043: 64-bit division, memcpy, ...), graphc
    those of `freestanding`.
    """
    helper = target.triple.startswith(("armv7", "thumb")) and name.startswith("__aeabi_")
    brought = not target.hosted and name in freestanding.own_functions() | freestanding.DIVISIONS
    return helper or brought or name in _C_LIBRARY or name.removesuffix("f") in _C_LIBRARY
