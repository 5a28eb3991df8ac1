"""Every real model becomes an artifact that computes what the model says; integers are the same on every level."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphc import verify
from graphc.backends import targets
from graphc.backends.build import build_target
from graphc.backends.cache import Cache
from graphc.backends.decompose import decompose
from graphc.backends.integer import integerize
from graphc.backends.reference import Reference
from graphc.backends.worker import Server
from graphc.errors import UnsupportedError
from graphc.importer import load
from graphc.ir import Graph
from graphc.passes.fold import fold
from graphc.runner import Runner
from graphc.samples import Inputs
from tests.models import MODELS

REFUSED: dict[str, str] = {}
"""Models that x86 cannot run yet: what the error says."""

QUANTIZED = [name for name in MODELS if "_qdq" in name]
LEVELS = ("x86-64-v2", "x86-64-v3", "x86-64-v4")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Cache]]:
    """One compile server and one cache for all models."""
    with Server(2) as server:
        yield server, Cache(tmp_path_factory.mktemp("cache"))


def folded(folder: Path, name: str) -> Graph:
    return fold(load(folder / "models" / name, MODELS[name].shapes))


def feeds(graph: Graph, name: str, seed: int) -> dict[str, Any]:
    made = MODELS[name].feeds(seed)
    return {each: made[each] for each in graph.inputs}


def test_enough_models_build() -> None:
    assert len(MODELS) == 38
    assert len(MODELS) - len(REFUSED) >= 33


@pytest.mark.parametrize("name", MODELS)
def test_builds_and_verifies(name: str, shared_data: Path, machine: tuple[Server, Cache], tmp_path: Path) -> None:
    graph = folded(shared_data, name)
    target = targets.resolve({"cpu": "native"})
    if name in REFUSED:
        with pytest.raises(UnsupportedError, match=REFUSED[name]):
            build_target(graph, target, tmp_path / "artifact", *machine)
        return
    manifest = build_target(graph, target, tmp_path / "artifact", *machine)
    lowered = integerize(decompose(graph))
    inputs = Inputs(tuple(feeds(graph, name, seed) for seed in range(2)), "seeded")
    subject = verify.Subject(tmp_path / "artifact", manifest, lowered, inputs)
    for comparison in verify.compare(subject, subject.folder, lowered, threads=2):
        assert comparison.agrees, comparison


@pytest.mark.parametrize("name", QUANTIZED)
def test_integers_are_the_same_on_every_level(
    name: str, shared_data: Path, machine: tuple[Server, Cache], tmp_path: Path
) -> None:
    graph = folded(shared_data, name)
    given = feeds(graph, name, 5)
    expected = Reference(integerize(decompose(graph))).run(given)
    for level in LEVELS:
        build_target(graph, targets.resolve({"cpu": level}), tmp_path / level, *machine)
        for threads in (1, 2):
            with Runner(tmp_path / level, threads) as runner:
                found = runner(**given) if len(graph.inputs) > 1 else runner(*given.values())
            by_name = found if isinstance(found, dict) else {graph.outputs[0]: found}
            for output in graph.outputs:
                np.testing.assert_array_equal(by_name[output], expected[output], err_msg=f"{level}, {threads} threads")
