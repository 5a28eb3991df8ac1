"""Finding passes: graphc's own by their files, others' by entry points, broken ones without breaking the rest."""

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import ClassVar, Literal

import pytest

from graphc.ir import Graph
from graphc.passes import registry as module
from graphc.passes.fold import Fold
from graphc.passes.protocol import Context, Pass
from graphc.passes.quantize import Quantize


class Halve(Pass):
    kind: Literal["halve"] = "halve"

    def apply(self, graph: Graph, context: Context) -> Graph:
        return graph


class Nameless(Pass):
    made: ClassVar[int] = 0

    def apply(self, graph: Graph, context: Context) -> Graph:
        return graph


def point(kind: str, value: str) -> EntryPoint:
    return EntryPoint(kind, value, module.GROUP)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Iterator[module.Registry]:
    points = [
        point("halve", f"{__name__}:Halve"),
        point("fold", f"{__name__}:Halve"),
        point("lost", "no.such.module:Lost"),
        point("wrong", f"{__name__}:point"),
        point("nameless", f"{__name__}:Nameless"),
    ]
    monkeypatch.setattr(module, "entry_points", lambda group: points if group == module.GROUP else [])
    module.registry.cache_clear()
    yield module.registry()
    module.registry.cache_clear()


def test_kinds(found: module.Registry) -> None:
    assert {kind: found.kinds[kind] for kind in ("fold", "quantize", "halve")} == {
        "fold": Fold,
        "quantize": Quantize,
        "halve": Halve,
    }


def test_broken_ones_say_why(found: module.Registry) -> None:
    assert sorted(found.broken) == ["fold", "lost", "nameless", "wrong"]
    assert "has the kind of another pass" in found.broken["fold"]
    assert "no.such.module:Lost cannot be imported: No module named 'no'" in found.broken["lost"]
    assert "expected a subclass of graphc.passes.protocol.Pass" in found.broken["wrong"]
    assert "expected a field `kind: Literal['nameless']`" in found.broken["nameless"]


def test_each_kind_has_one_spelling() -> None:
    for kind, found in module.registry().kinds.items():
        assert found.__module__.split(".")[-1] == kind
        assert found.__name__ == "".join(part.capitalize() for part in kind.split("_"))
