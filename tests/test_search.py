"""MetaSchedule for kernels that no schedule rule takes: searched once, then made again from the database alone."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest

import graphc
from graphc.backends import toolchain
from graphc.backends.build import build_program, lowered
from graphc.backends.cache import Cache
from graphc.backends.choices import BY_MODEL, Choice, Choices, Tiles, kernel_id
from graphc.backends.searchable import MOST_SUMS, Loops, loops
from graphc.backends.targets import resolve
from graphc.backends.worker import Server
from graphc.errors import InputError
from graphc.execute import run
from graphc.ir import Graph, Node
from graphc.report import read_report
from graphc.runner import Runner
from graphc.samples import seeded
from graphc.tune import Database, Entry, Tuning, copied, laid_out, searcher, timer, tuned
from tests.backends.qdq import Qdq

NATIVE = resolve({"cpu": "native"})
GROUPED = Loops((1, 9, 9, 32), (3, 3, 2), 2)
TILES: Tiles = ((1, 1, 1), (9, 1, 1), (3, 1, 3), (4, 4, 2), (3, 1), (3, 1), (1, 2))
"""Some for the convolutions of `network`."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(jobs=2) as server:
        yield server


def parsed(text: str, **shapes: tuple[int, ...]) -> Graph:
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return graphc.load(model)


def network() -> Graph:
    """Two transposed convolutions in groups that are one kernel but for what follows: nothing, and a sum."""
    return parsed(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[1,32,9,9] x) => (float[1,32,9,9] z)
        <float[32,2,3,3] a, float[32,2,3,3] b, float[32] c> {
            p = ConvTranspose<pads=[1,1,1,1], group=16>(x, a, c)  q = ConvTranspose<pads=[1,1,1,1], group=16>(p, b, c)
            r = Add(q, x)  z = Relu(r)
        }
        """,
        a=(32, 2, 3, 3),
        b=(32, 2, 3, 3),
        c=(32,),
    )


def transposed() -> Graph:
    return parsed(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[1,8,5,6] x) => (float[1,12,10,12] z) <float[8,12,3,3] a> {
            z = ConvTranspose<pads=[1,1,1,1], strides=[2,2], output_padding=[1,1]>(x, a)
        }
        """,
        a=(8, 12, 3, 3),
    )


def multiplied() -> Graph:
    """A depthwise convolution with two filters for each channel."""
    return parsed(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[1,16,9,9] x) => (float[1,32,4,4] z) <float[32,1,3,3] a> { z = Conv<strides=[2,2], group=16>(x, a) }
        """,
        a=(32, 1, 3, 3),
    )


def integers() -> Graph:
    """A grouped convolution of 8-bit integers."""
    model = Qdq()
    x = model.input((1, 32, 9, 9), "uint8")
    model.result(model.node("Conv", [x, model.weights((48, 8, 3, 3))], pads=[1, 1, 1, 1], group=4))
    return model.graph()


FORMS = {
    "grouped": network,
    "transposed": transposed,
    "multiplied": multiplied,
    "integers": integers,
}


def built(graph: Graph, choices: Choices, folder: Path, server: Server) -> list[np.ndarray]:
    """What the graph computes with these choices."""
    tools = toolchain.find(NATIVE.triple, Cache().folder)
    build_program(lowered(graph, NATIVE, server, choices), NATIVE, folder, server, Cache(), tools)
    with Runner(folder) as runner:
        found = runner(**feeds_of(graph))
    return list(found.values()) if isinstance(found, dict) else [found]


def feeds_of(graph: Graph) -> dict[str, np.ndarray]:
    return dict(seeded({name: graph.types[name] for name in graph.inputs}, 1).feeds[0])


class Preferring:
    """Really measures, but says that the generic rule is slow: what is faster is the machine's matter."""

    def __init__(self, server: Server) -> None:
        measure = timer(NATIVE, server, Cache())
        assert measure is not None
        self.measure = measure
        self.asked: list[Choice] = []

    def __call__(self, graph: Graph, node: Node, choices: Sequence[Choice]) -> Sequence[float]:
        self.asked += choices
        seconds = self.measure(graph, node, choices)
        return [1.0 if choice == BY_MODEL else each for choice, each in zip(choices, seconds, strict=True)]


def test_searched_tiles_are_used_again_without_a_search(server: Server, tmp_path: Path) -> None:
    graph, tuning, watch = network(), Tuning("thorough", tmp_path / "tuning.json"), Preferring(server)
    found = tuned(graph, NATIVE, tuning, watch, searcher(NATIVE, server, trials=2))
    assert len(found.choices) == 2 and len(set(found.choices.values())) == 1  # one search for both
    tried = {choice.tiles for choice in watch.asked} - {None}
    assert len(tried) == 4 and next(iter(found.choices.values())).tiles in tried  # what was tried does not come again
    content = tuning.database.read_bytes()

    def search(graph: Graph, node: Node, measured: Mapping[Tiles, float]) -> Sequence[Tiles]:
        raise AssertionError("searched again")

    again = tuned(graph, NATIVE, tuning, watch, search)
    elsewhere = tuned(graph, NATIVE, Tuning("quick", tuning.database), None)
    assert found.choices == again.choices == elsewhere.choices and tuning.database.read_bytes() == content
    assert elsewhere.note == "1 of 1 kernels chosen by tuning.json"
    (result,) = built(graph, elsewhere.choices, tmp_path / "artifact", server)
    expected = next(iter(run(graph, feeds_of(graph)).values()))
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_search_is_repeatable(server: Server) -> None:
    graph = laid_out(network(), NATIVE)
    node = next(node for node in graph.nodes if node.op == "ConvTranspose")
    search = searcher(NATIVE, server, trials=4)
    first = search(graph, node, {})
    assert first == search(graph, node, {}) and len(set(first)) == 4
    assert all(GROUPED.fits(tiles) for tiles in first)
    parents = {tiles: 1e-4 * (1 + position) for position, tiles in enumerate(first)}
    children = search(graph, node, parents)
    assert children and not set(children) & set(first)


@pytest.mark.parametrize("form", FORMS)
def test_searched_kernels_compute_the_same(form: str, server: Server, tmp_path: Path) -> None:
    """Tiles of each form, found by the loops that `searchable` says it has."""
    graph = laid_out(FORMS[form](), NATIVE)
    node = next(node for node in graph.nodes if node.op in ("Conv", "ConvTranspose"))
    found = searcher(NATIVE, server, trials=3)(graph, node, {})
    assert len(found) == 3
    copies, by_result = copied(graph, node, [BY_MODEL, *(Choice(tiles=tiles) for tiles in found)])
    generic, *others = built(copies, by_result, tmp_path / "artifact", server)
    tolerance = 1e-5 * np.abs(generic).max() if generic.dtype == np.float32 else 0
    for tiles, result in zip(found, others, strict=True):
        np.testing.assert_allclose(result, generic, rtol=0, atol=tolerance, err_msg=str(tiles))


def test_layers_with_a_rule_are_not_searched() -> None:
    graph = laid_out(
        parsed(
            """
            <ir_version: 10, opset_import: ["" : 21]>
            g (float[1,16,9,9] x) => (float[1,16,9,9] z) <float[16,16,3,3] a, float[16,1,3,3] b> {
                p = Conv<pads=[1,1,1,1]>(x, a)  z = Conv<pads=[1,1,1,1], group=16>(p, b)
            }
            """,
            a=(16, 16, 3, 3),
            b=(16, 1, 3, 3),
        ),
        NATIVE,
    )
    assert [loops(graph, node, NATIVE) for node in graph.nodes if node.op == "Conv"] == [None, None]


@pytest.mark.parametrize(
    "tiles",
    [
        TILES[:-1],
        ((1, 1, 1), (9, 1, 1), (3, 1, 3), (4, 4, 2), (3, 1), (3, 1), (2, 2)),  # of more channels
        ((1, 1, 1), (9, 1, 1), (3, 1, 3), (4, 4, 2), (3, 1), (3, 1), (2,)),
        ((1, 1, 1), (9, 1, 1), (3, 1, 3), (4, 1, 8), (3, 1), (3, 1), (1, 2)),  # a vector across groups
    ],
)
def test_tiles_that_do_not_fit_are_searched_again(tiles: Tiles, tmp_path: Path) -> None:
    assert GROUPED.fits(TILES) and not GROUPED.fits(tiles)
    tuning = Tuning("thorough", tmp_path / "tuning.json")
    stored(tuning, {"tiles": tiles})
    elsewhere = tuned(network(), NATIVE, tuning, None)
    assert not elsewhere.choices and "1 had tiles in tuning.json that do not multiply to its loops" in elsewhere.note

    def measure(graph: Graph, node: Node, choices: Sequence[Choice]) -> Sequence[float]:
        return [2.0 if choice == BY_MODEL else 1.0 for choice in choices]

    found = tuned(network(), NATIVE, tuning, measure, lambda graph, node, measured: [] if measured else [TILES])
    assert set(found.choices.values()) == {Choice(tiles=TILES)} and "measured now" in found.note
    assert tuned(network(), NATIVE, tuning, None).choices == found.choices


@pytest.mark.parametrize(
    "choice",
    [
        {"tiles": 7},
        {"tiles": [[1, "import os"]]},
        {"tiles": [[True]]},
        {"tiles": [[-9, -1, 1]]},
        {"tile": "wide"},
        {"vectors": 1 << 40},
        {"dot": "call"},
        ["tiles"],
    ],
)
def test_a_damaged_choice_is_an_error_of_the_database(choice: object, tmp_path: Path) -> None:
    tuning = Tuning("quick", tmp_path / "tuning.json")
    stored(tuning, choice)
    with pytest.raises(InputError, match="an entry is damaged"):
        tuned(network(), NATIVE, tuning, None)


def stored(tuning: Tuning, choice: object) -> None:
    """A database that says this of the one kernel of `network`."""
    graph = laid_out(network(), NATIVE)
    kernel = next(kernel_id(graph, node) for node in graph.nodes if node.op == "ConvTranspose")
    Database(tuning.database).keep(NATIVE, {kernel: Entry(BY_MODEL, "thorough", 1.0, 2.0)})
    data = json.loads(tuning.database.read_text())
    (section,) = data["targets"].values()
    section["kernels"][kernel]["choice"] = choice
    tuning.database.write_text(json.dumps(data))


def test_what_a_task_sums_stays_on_the_stack() -> None:
    large = Loops((1, 128, 128, 64), (3, 3, 64), 64)
    assert large.fits(((1, 1, 1), (128, 1, 1), (128, 1, 1), (1, 1, 64), (3, 1), (3, 1), (64, 1)))
    assert MOST_SUMS < 128 * 64
    assert not large.fits(((1, 1, 1), (128, 1, 1), (1, 128, 1), (1, 1, 64), (3, 1), (3, 1), (64, 1)))


def test_a_build_searches_and_its_database_repeats_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("graphc.compile"), "searcher", partial(searcher, trials=2))
    target = {"cpu": "native", "tune": "thorough", "tuning": str(tmp_path / "t.json")}
    spec = {"name": "net", "passes": [{"kind": "fold"}], "targets": [target]}
    first = graphc.compile(network(), spec, out=tmp_path / "first")
    assert (
        read_report(first.folder).targets[0].tuning == "0 of 1 kernels chosen by t.json, 1 measured now and added to it"
    )
    (kernels,) = (each["kernels"] for each in json.loads((tmp_path / "t.json").read_text())["targets"].values())
    (entry,) = kernels.values()
    assert entry["effort"] == "thorough" and 0 < entry["seconds"] <= entry["by_model"]
    second = graphc.compile(network(), spec, out=tmp_path / "second", cache=tmp_path / "cache")
    assert read_report(second.folder).targets[0].tuning == "1 of 1 kernels chosen by t.json"
    library = "native/libnet.so"
    assert (first.folder / library).read_bytes() == (second.folder / library).read_bytes()
