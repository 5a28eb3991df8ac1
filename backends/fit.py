"""Does a model fit a board? Proven before code is generated as far as that can be, and again with the code in hand.

    before:  arena <= the board's first memory;  weights <= flash
    after:   arena + stack <= all its memories;  weights + code <= flash

The arena's plan is exact (every buffer has its place), the stack is a bound (`graphc.backends.stack`). Where something
does not fit, the error names the operator at the peak and what passes would save: by planning the same calls again with
smaller elements, or by counting bytes.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from graphc.artifact import Footprint
from graphc.backends import plan as planner
from graphc.backends.emit_c import Unit
from graphc.backends.emit_weights import lay_out
from graphc.backends.patches import Patched
from graphc.backends.plan import MemoryPlan
from graphc.backends.program import Buffer, Program
from graphc.backends.targets import Target
from graphc.errors import BudgetError

FLOATS = ("float16", "bfloat16", "float32", "float64")
"""Element types that quantization replaces."""


def missing_ram(program: Program, plan: MemoryPlan, target: Target) -> int:
    """Bytes by which the arena is larger than the memory it goes to, negative where it fits."""
    assert target.board is not None
    return _unit(program, plan, target).arena_bytes - target.board.ram[0].bytes


def _unit(program: Program, plan: MemoryPlan, target: Target) -> Unit:
    return Unit(program, plan, lay_out(program, plan), target, {}, {}, "")


def check_memory(program: Program, plan: MemoryPlan, target: Target, helpful: Patched | None = None) -> None:
    """Before code is generated: raise BudgetError where arena or weights are larger than the board's memory.

    `helpful`: patches that would lower the arena, but not far enough.
    """
    board = target.board
    if board is None:
        return
    unit = _unit(program, plan, target)
    if unit.arena_bytes > board.ram[0].bytes:
        saving = chain(_patch_savings(helpful), _arena_savings(unit.program, unit.plan))
        raise _too_big(unit, "RAM", board.ram[0].bytes, f"the arena takes {unit.arena_bytes}", unit.arena_bytes, saving)
    if board.flash is not None and unit.weights.bytes > board.flash.bytes:
        took = f"the weights take {unit.weights.bytes}"
        raise _too_big(unit, "flash", board.flash.bytes, took, unit.weights.bytes, _weight_savings(unit.program))


def check_code(unit: Unit, footprint: Footprint) -> None:
    """With the code in hand: raise BudgetError where stack or code are what does not fit."""
    board = unit.target.board
    if board is None:
        return
    ram, flash = unit.arena_bytes + footprint.stack, unit.weights.bytes + footprint.code
    if ram > board.ram_bytes:
        took = f"the arena takes {unit.arena_bytes}, the stack {footprint.stack}"
        raise _too_big(unit, "RAM", board.ram_bytes, took, ram, _arena_savings(unit.program, unit.plan))
    if board.flash is not None and flash > board.flash.bytes:
        took = f"the weights take {unit.weights.bytes}, the code {footprint.code}"
        raise _too_big(unit, "flash", board.flash.bytes, took, flash, _weight_savings(unit.program))


def _too_big(unit: Unit, kind: str, there: int, took: str, needed: int, savings: Iterator[str]) -> BudgetError:
    plan, board = unit.plan, unit.target.board
    assert board is not None
    peak = f"; most is alive at {', '.join(plan.calls[plan.peak].nodes)}" if kind == "RAM" and plan.peak >= 0 else ""
    problem = f"{needed - there} bytes of {kind} are missing: {took} bytes of {there}{peak}."
    remedies = "; ".join(savings) or "use a board with more, or a smaller model"
    return BudgetError(f"model '{unit.program.name}' on {board.name}", problem, f"To save: {remedies}.")


def _patch_savings(helpful: Patched | None) -> Iterator[str]:
    if helpful is not None:
        saved, more = helpful.bytes[0] - helpful.bytes[1], helpful.macs[1] / max(1, helpful.macs[0]) - 1
        yield f"`patches: {helpful.count}` for the target ({saved} bytes, {more:.0%} more products)"


def _arena_savings(program: Program, before: MemoryPlan) -> Iterator[str]:
    """What passes that make values smaller would save of the arena."""
    buffers = {
        name: replace(buffer, dtype="int8") if buffer.dtype in FLOATS and buffer.role == "scratch" else buffer
        for name, buffer in program.buffers.items()
    }
    smaller = replace(program, buffers=_alike(program, buffers))
    planned = planner.plan(smaller, alignment=before.alignment, io_in_arena=True)
    if planned.bytes < before.bytes:
        yield f"`quantize` to int8 ({before.bytes - planned.bytes} bytes, more with `io: int8`)"
    yield f"`prune` with `pattern: channels` at 0.5 (about {before.lower_bound // 2} bytes)"
    yield "`inputs:` with smaller shapes"


def _alike(program: Program, buffers: dict[str, Buffer]) -> dict[str, Buffer]:
    """Buffers in which views have the bytes of what they view: both shrink, or neither."""
    names = set(program.aliases) | set(program.aliases.values())
    kept = {name for name in names if program.buffers.get(name) == buffers.get(name)}
    return {name: program.buffers[name] if kept and name in names else buffer for name, buffer in buffers.items()}


def _weight_savings(program: Program) -> Iterator[str]:
    """What passes that store weights in fewer bits would save of them."""
    sizes = {"float": 0, "integer": 0}
    for array in program.constants.values():
        sizes["float" if array.dtype.name in FLOATS and array.ndim > 1 else "integer"] += array.nbytes
    if sizes["float"]:
        yield f"`quantize` to int8 (about {sizes['float'] * 3 // 4} bytes)"
    yield f"`prune` with `pattern: channels` at 0.5 (about {sum(sizes.values()) // 2} bytes)"
