"""Calls that read constants alone, such as decoders that no kernel holds in registers: made once, by init.

    calls d = decode(w); y = k(x, d)   ->   setup d = decode(w); calls y = k(x, d)

What they write stays in the arena, whose bytes are the RAM figure. Where memory is scarcer than time they stay where
they are, right before the call that reads them: without an operating system, and for weights that are streamed. The
manifest lists them either way.
"""

from dataclasses import replace

from graphc.artifact import Prepared
from graphc.backends.plan import roots
from graphc.backends.program import Call, Program
from graphc.backends.targets import Target


def prepared(program: Program, target: Target) -> Program:
    """`program` with the calls that read constants alone in its setup, where the target has the memory; listed."""
    once = bool(target.system) and target.weights != "streamed"
    found = constant_calls(program)
    listed = tuple(
        Prepared(call.nodes, sum(program.buffers[name].bytes for name in call.writes), once) for call in found
    )
    if not once:
        return replace(program, prepared=listed)
    rest = tuple(call for call in program.calls if not any(call is each for each in found))
    return replace(program, calls=rest, setup=(*program.setup, *found), prepared=listed)


def constant_calls(program: Program) -> list[Call]:
    """The calls whose results are the same in every run, in order; not those that write what the caller sees."""
    owner = roots(program)
    seen = {owner[name] for name in (*program.inputs, *program.outputs)}
    fixed, found = set(program.constants), []
    for call in program.calls:
        written = {owner[name] for name in call.writes}
        if {owner[name] for name in call.arguments} <= fixed | written and not written & seen:
            found.append(call)
            fixed |= written
    while spoiled := [call for call in found if _is_spoiled(program, call, found)]:
        found = [call for call in found if not any(call is each for each in spoiled)]
    return found


def _is_spoiled(program: Program, call: Call, found: list[Call]) -> bool:
    """Whether another call, which is made in every run, writes what this one reads or writes."""
    owner = roots(program)
    others = (other for other in program.calls if not any(other is each for each in found))
    written = {owner[name] for other in others for name in other.writes}
    return not written.isdisjoint(owner[name] for name in call.arguments)
