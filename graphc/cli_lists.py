"""`graphc schema`, `graphc targets`, `graphc passes`: what there is to write into a spec."""

import inspect
import json

from graphc.terminal import line_out, table


def print_schema() -> None:
    """The JSON Schema of spec files, on stdout."""
    from graphc.spec import schema

    line_out(json.dumps(schema(), indent=1))


def list_targets(as_json: bool) -> None:
    """Every target by kind, with the processor it is compiled for."""
    from graphc.backends.targets import Target, available, resolve
    from graphc.errors import UnsupportedError

    found: dict[str, tuple[str, Target | None]] = {}
    for kind, ids in available().items():
        for id_ in ids:
            try:
                found[id_] = kind, resolve({kind: id_})
            except UnsupportedError:
                found[id_] = kind, None
    if as_json:
        entries = [{"kind": kind, "id": id_, **_described(target)} for id_, (kind, target) in found.items()]
        line_out(json.dumps(entries, indent=1))
        return
    rows = [(f"{{{kind}: {id_}}}", *_row(target)) for id_, (kind, target) in found.items()]
    table(("target", "processor", "vectors", "instructions"), rows, "<<><")


def _described(target: "object") -> dict[str, object]:
    from graphc.backends.targets import Target

    return {"available": True, **target.description()} if isinstance(target, Target) else {"available": False}


def _row(target: "object") -> tuple[str, str, str]:
    from graphc.backends.targets import Target

    if not isinstance(target, Target):
        return "not on this machine", "", ""
    return target.cpu, f"{target.vector_bits} bits", ", ".join(sorted(target.instructions))


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
