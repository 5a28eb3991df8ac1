"""onnx's own node cases: model -> graph -> x86 artifact -> run, compared with what onnx expects.

`known_misses.txt` lists the cases that fail, with the reason; `bound.txt` those that pass only with the inputs that
decide shapes as constants of the model. After a change, run this and read the diff:

    pytest tests/conformance --update-golden
"""

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.conformance.cases import collect
from tests.conformance.run import BUG, Outcome, read, run, write

FOLDER = Path(__file__).parent
MISSES, BOUND = FOLDER / "known_misses.txt", FOLDER / "bound.txt"

CASES = 1884
AT_LEAST = 900
"""Cases that must pass, whatever the lists say."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> list[Outcome]:
    """What became of each case; with --update-golden the lists are written."""
    found = run(collect(), tmp_path_factory.mktemp("kernels"))
    if request.config.getoption("--update-golden"):
        misses = [(outcome.name, outcome.entry) for outcome in found if outcome.reason]
        write(MISSES, "Cases that fail: name<TAB>reason.", misses)
        bound = [(outcome.name, "shapes") for outcome in found if not outcome.reason and outcome.bound]
        write(BOUND, "Cases that pass with the inputs that decide shapes bound.", bound)
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_case_is_known(outcomes: list[Outcome], capsys: pytest.CaptureFixture[str]) -> None:
    misses, bound = read(MISSES), read(BOUND)
    failed = {outcome.name: outcome.entry for outcome in outcomes if outcome.reason}
    passed = {outcome.name for outcome in outcomes if not outcome.reason}
    unbound = {outcome.name for outcome in outcomes if not outcome.reason and not outcome.bound}
    with capsys.disabled():
        print(f"\n{len(unbound)} pass, {len(passed - unbound)} more with shapes bound, {len(failed)} fail")
    problems = [f"{name} fails: {reason}" for name, reason in failed.items() if name not in misses]
    problems += [f"{name} passes: strike it from {MISSES.name}" for name in sorted(passed & misses.keys())]
    problems += [f"{name} passes unbound: strike it from {BOUND.name}" for name in sorted(unbound & bound.keys())]
    problems += [f"{name} passes only bound now" for name in sorted(passed - unbound - bound.keys() - misses.keys())]
    problems += [
        f"{name} was refused and is now a {reason}"
        for name, reason in failed.items()
        if reason.startswith(BUG) and name in misses and not misses[name].startswith(BUG)
    ]
    assert not problems, _listed(problems)
    assert len(outcomes) == CASES
    assert len(passed) >= AT_LEAST


def _listed(problems: Iterable[str]) -> str:
    return "\n".join(problems)
