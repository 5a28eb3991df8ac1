"""`graphc schema`, `graphc targets`, `graphc passes`: what there is to write into a spec."""

import inspect
import json
from typing import TYPE_CHECKING

from graphc.terminal import line_out, table

if TYPE_CHECKING:
    from graphc.backends.boards import Board
    from graphc.backends.targets import Target


def print_schema() -> None:
    """The JSON Schema of spec files, on stdout."""
    from graphc.spec import schema

    line_out(json.dumps(schema(), indent=1))


def list_targets(as_json: bool) -> None:
    """Every target by kind: processors with what they are compiled for, boards with what they have."""
    from graphc.backends.targets import available

    found = {kind: {id_: _resolved(kind, id_) for id_ in ids} for kind, ids in available().items()}
    if as_json:
        entries = [
            {"kind": kind, "id": id_, "available": target is not None, **(target.description() if target else {})}
            for kind, targets in found.items()
            for id_, target in targets.items()
        ]
        line_out(json.dumps(entries, indent=1))
        return
    processors = [(f"{{cpu: {id_}}}", *_processor(target)) for id_, target in found["cpu"].items()]
    table(("target", "processor", "vectors", "instructions"), processors, "<<><")
    line_out()
    boards = [(f"{{board: {id_}}}", *_board(target.board)) for id_, target in found["board"].items() if target]
    table(("target", "board", "processor", "clock", "flash", "RAM", "emulator"), boards, "<<<>>><")


def _resolved(kind: str, id_: str) -> "Target | None":
    """None where the target depends on this machine and it is another kind of machine."""
    from graphc.backends.targets import resolve
    from graphc.errors import UnsupportedError

    try:
        return resolve({kind: id_})
    except UnsupportedError:
        return None


def _processor(target: "Target | None") -> tuple[str, str, str]:
    if target is None:
        return "not on this machine", "", ""
    return target.cpu, f"{target.vector_bits} bits", ", ".join(sorted(target.instructions))


def _board(board: "Board | None") -> tuple[str, ...]:
    from graphc.spec.units import format_bytes

    if board is None:
        return ("",) * 6
    flash = format_bytes(board.flash.bytes) if board.flash else ""
    ram = format_bytes(board.ram_bytes)
    return board.name, board.cpu, f"{board.clock_hz / 1e6:g} MHz", flash, ram, board.emulator


def list_passes(as_json: bool) -> None:
    """Every pass with its options: names, types, defaults, meaning."""
    from graphc.passes.registry import registry

    known = registry()
    if as_json:
        described = {kind: pass_.model_json_schema() for kind, pass_ in known.kinds.items()}
        line_out(json.dumps(described, indent=1))
        return
    for kind, pass_ in known.kinds.items():
        line_out(f"{kind}: {(inspect.getdoc(pass_) or '').splitlines()[0]}")
        for name, option in pass_.model_fields.items():
            if name != "kind":
                default = "required" if option.is_required() else f"default {option.default!r}"
                line_out(f"  {name:<14}{option.description or ''} ({default})")
    for kind, problem in known.broken.items():
        line_out(f"{kind}: cannot be used: {problem}")
