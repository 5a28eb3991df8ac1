"""What is made of constants alone is made once, by init, where memory allows; the artifact computes the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from graphc.artifact import Manifest
from graphc.backends.coded_weights import store
from graphc.backends.emit import emit
from graphc.backends.plan import plan
from graphc.backends.prepared import constant_calls, prepared
from graphc.backends.program import Program
from graphc.backends.targets import Storage, resolve
from graphc.runner import Runner
from tests.backends.c_programs import FLOATS, TARGET, call, kernels, make, toolchain

W = np.repeat(np.float32([1, -2, 0.5, 3]), 16).reshape(4, 16)
V = np.repeat(np.float32([2, 2, -1, 1]), 16).reshape(4, 16)


def program() -> Program:
    """y = x + reverse(w + v) + w; the middle is constant."""
    calls = [
        call("add", "x", "w", "a"),
        call("add", "w", "v", "d"),
        call("reverse", "d", "e"),
        call("add", "a", "e", "y", y="a"),
    ]
    return make(calls, dict.fromkeys("xadey", FLOATS), constants={"w": W, "v": V})


def built(folder: Path, storage: Storage) -> Manifest:
    target = replace(TARGET, weights=storage)
    stored = store(prepared(program(), target), storage)
    return emit(stored, plan(stored), kernels(), folder, target=target, toolchain=toolchain())


@pytest.mark.parametrize("storage", ["plain", "coded", "streamed"])
def test_the_artifact_computes_the_same_bits(storage: Storage, tmp_path: Path) -> None:
    manifest = built(tmp_path / "a", storage)
    made = [step for step in manifest.steps if step.kernel in ("add", "reverse")]
    assert len(made) == (4 if storage == "streamed" else 2)
    assert [(each.bytes, each.once) for each in manifest.prepared] == [(256, storage != "streamed")] * 2
    x = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    with Runner(tmp_path / "a", 2) as run:
        for _ in range(3):  # what init made is still there
            np.testing.assert_array_equal(run(x), (x + W) + (W + V)[::-1, ::-1])


def test_without_an_operating_system_they_stay_where_they_are() -> None:
    found = prepared(program(), resolve({"cpu": "cortex-m7"}))
    assert found.calls == program().calls
    assert [each.once for each in found.prepared] == [False, False]


def test_the_arena_holds_what_init_made_beside_what_runs_need() -> None:
    assert plan(prepared(program(), TARGET)).bytes >= plan(program()).bytes


def test_what_a_run_writes_too_is_no_constant() -> None:
    calls = [
        call("add", "w", "v", "d"),
        call("reverse", "d", "e"),
        call("add", "x", "e", "d"),
        call("add", "d", "w", "y"),
    ]
    base = make(calls, dict.fromkeys("xdey", FLOATS), constants={"w": W, "v": V})
    assert constant_calls(base) == []


def test_what_the_caller_sees_is_computed_in_the_run() -> None:
    calls = [call("add", "w", "v", "d"), call("add", "x", "d", "y")]
    base = make(calls, dict.fromkeys("xdy", FLOATS), outputs=("y", "d"), constants={"w": W, "v": V})
    assert constant_calls(base) == []
