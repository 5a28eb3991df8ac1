"""Short spellings for building TIR by hand: loops, sequences, vector loads and the frame of a kernel."""

from collections.abc import Callable, Sequence
from typing import Any

from tvm import s_tir, tirx

from graphc.backends.geometry import Pattern, Rows

PARALLEL = "graphc.parallel"
"""Annotation of an outermost loop whose iterations may run in any order, at the same time."""

SERIAL, UNROLLED, VECTORIZED = tirx.ForKind.SERIAL, tirx.ForKind.UNROLLED, tirx.ForKind.VECTORIZED


def const(value: float, dtype: str = "int32") -> Any:
    return tirx.const(value, dtype)


def sequence(statements: Sequence[Any]) -> Any:
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))


def loop(name: str, begin: Any, extent: Any, body: Callable[[Any], Any], kind: Any = SERIAL) -> Any:
    """for name in [begin, begin + extent): body(name). A loop of one iteration is its body."""
    if isinstance(extent, int) and extent == 1 and kind != VECTORIZED:
        return body(begin if not isinstance(begin, int) else const(begin))
    variable = tirx.Var(name, "int32")
    return tirx.For(variable, begin, extent, kind, body(variable))


def vectorized(lanes: int, body: Callable[[Any], Any]) -> Any:
    """body(lane) for every lane of a vector at once."""
    return loop("lane", 0, lanes, body, VECTORIZED) if lanes > 1 else body(const(0))


def vector(start: Any, lanes: int) -> Any:
    """Indices start, start + 1, ... of one vector access."""
    return tirx.Ramp(start, 1, lanes) if lanes > 1 else start


def fetch(address: Any, level: int = 1) -> Any:
    """Read the line at an address into the cache of `level`, soon; past the end of a buffer that does nothing."""
    locality = {1: 3, 2: 2}[level]
    operands = (const(value) for value in (0, locality, 1))  # to be read, kept so near, as data
    return tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", address, *operands))


def spread(value: Any, lanes: int) -> Any:
    """A scalar in every lane."""
    return tirx.Broadcast(value, lanes) if lanes > 1 else value


def clipped_taps(
    position: Any, taps: int, stride: int, dilation: int, begin: int, size: int, positions: int
) -> tuple[Any, Any]:
    """(first tap inside the input, how many are) at an output position along one axis of `size`.

    Taps t with 0 <= position * stride + t * dilation - begin < size.
    """
    last = (positions - 1) * stride - begin + (taps - 1) * dilation
    start = position * stride - begin
    low = tirx.max(const(0), (dilation - 1 - start) // dilation) if begin > 0 else const(0)
    high = tirx.min(const(taps), (size - start + dilation - 1) // dilation) if last >= size else const(taps)
    return (0, taps) if begin <= 0 and last < size else (low, high - low)


def row_of_tiles(rows: Rows, tile: Callable[[Any, int, Pattern], Any], kind: Any = SERIAL) -> Any:
    """Every tile of a row: tile(first column, columns, what each tap reaches); tiles that are alike share a loop."""

    def group(first: int, number: int, count: int, pattern: Pattern) -> Any:
        return loop("tile", 0, number, lambda t: tile(const(first) + t * rows.tile, count, pattern), kind)

    return sequence([group(*alike) for alike in rows.groups()])


def tasks(count: int, body: Callable[[Any], Any]) -> Any:
    """A loop nest whose iterations may run in any order, on any thread."""
    task = tirx.Var("task", "int32")
    return tirx.For(task, 0, count, SERIAL, body(task), annotations={PARALLEL: 1})


WORKSPACE = "graphc.workspace"
"""Annotation of a root block: names of buffers that a single nest works in, but that are too large for the stack."""


def function(
    parameters: Sequence[Any],
    attributes: Any,
    nests: Sequence[Any],
    shared: Sequence[Any] = (),
    workspace: Sequence[Any] = (),
) -> Any:
    """A PrimFunc that runs loop nests one after another; `shared` buffers live across them.

    A `workspace` is shared by all tasks of a nest: only for targets that have one thread.
    """
    annotations = {WORKSPACE: [str(buffer.name) for buffer in workspace]} if workspace else {}
    buffers = [*shared, *workspace]
    root = s_tir.SBlock([], [], [], "root", sequence(nests), alloc_buffers=buffers, annotations=annotations)
    return tirx.PrimFunc(list(parameters), s_tir.SBlockRealize([], tirx.const(True, "bool"), root), attrs=attributes)


def wide(value: Any, dtype: str) -> Any:
    """An operand of a sum in the type that it is summed in; uint16 in sums of float32 are codes of bfloat16."""
    if dtype == "float32" and str(value.dtype).startswith("uint16"):
        return tirx.reinterpret("float32", value.astype("uint32") << tirx.const(16, "uint32"))
    return value.astype(dtype)
