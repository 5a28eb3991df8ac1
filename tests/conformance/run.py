"""All cases, each in a child of the compile server of its own; what became of them, as plain data."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from graphc.backends.worker import Job, Server
from graphc.errors import GraphcError, InternalError
from tests.conformance.cases import ROUNDED, Case

SECONDS = 120.0
"""What a case may take; on an idle machine none takes a tenth of it."""

LONGEST = 160
"""Characters of a reason in the lists."""

LATE = "no answer after"
"""How the compile server's reason starts for a job that took too long."""

BUG = "bug: "
"""How the reason of a miss starts that is no clear refusal."""


@dataclass(frozen=True)
class Outcome:
    """`reason` is empty for a case that passes; `bound` says whether with inputs that decide shapes as constants.

    `broken`: not refused by a clear error, nor a matter of rounding, but wrong, crashed or hung.
    """

    name: str
    reason: str
    bound: bool
    broken: bool

    @property
    def entry(self) -> str:
        """The reason as the list has it."""
        return f"{BUG}{self.reason}" if self.broken else self.reason


def run(cases: Sequence[Case], cache: Path) -> list[Outcome]:
    """Every case as it is; those that fail once more with the inputs that decide shapes bound."""
    with Server() as server:
        first = _attempts(cases, False, server, cache)
        again = [case for case in cases if first[case.name].reason and case.shaping]
        return list((first | _attempts([case.bound() for case in again], True, server, cache)).values())


def _attempts(cases: Sequence[Case], bound: bool, server: Server, cache: Path) -> dict[str, Outcome]:
    """What becomes of each case; those that did not answer in time get one more chance: the machine may be busy."""
    outcomes = _once(cases, bound, server, cache)
    late = [case for case in cases if outcomes[case.name].reason.startswith(LATE)]
    return outcomes | _once(late, bound, server, cache)


def _once(cases: Sequence[Case], bound: bool, server: Server, cache: Path) -> dict[str, Outcome]:
    jobs = [Job("tests.conformance.jobs:attempt", (case, cache), case.name, SECONDS) for case in cases]
    results = server.run(jobs, return_errors=True)
    return {case.name: _outcome(case.name, result, bound) for case, result in zip(cases, results, strict=True)}


def _outcome(name: str, result: str | GraphcError, bound: bool) -> Outcome:
    if isinstance(result, str):
        return Outcome(name, result, bound, result not in ("", ROUNDED))
    text = " ".join(result.problem.split())
    return Outcome(name, text[:LONGEST], bound, isinstance(result, InternalError))


def read(path: Path) -> dict[str, str]:
    """Lines `name<TAB>reason`; those that start with # are comments."""
    lines = (line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#"))
    return dict(line.split("\t", 1) for line in lines)


def write(path: Path, title: str, entries: Iterable[tuple[str, str]]) -> None:
    """Grouped by reason."""
    lines = [f"{name}\t{reason}" for name, reason in sorted(entries, key=lambda entry: (entry[1], entry[0]))]
    path.write_text("\n".join([f"# {title}", *lines, ""]), encoding="utf-8")
