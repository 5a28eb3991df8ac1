"""Choosing kernels: measured once, remembered in a file, read from it ever after; all choices compute the same."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

import graphc
from graphc.backends import toolchain
from graphc.backends.build import build_program, lowered
from graphc.backends.cache import Cache
from graphc.backends.candidates import candidates
from graphc.backends.choices import BY_MODEL, Choice, kernel_id
from graphc.backends.targets import Target, resolve
from graphc.backends.worker import Server
from graphc.errors import InputError
from graphc.ir import Graph, Node
from graphc.report import read_report
from graphc.runner import Runner
from graphc.samples import seeded
from graphc.tune import Database, Tuning, chosen, copied, laid_out, timer, tuned
from tests.backends.qdq import Qdq

TARGET = resolve({"cpu": "x86-64-v4"})


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


def network() -> Graph:
    """Three convolutions, the first two alike but for their weights, and a product."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[1,16,12,12] x) => (float[1,10] y)
        <float[16,16,3,3] a, float[16,16,3,3] b, float[32,16,1,1] c, float[32,10] d> {
            p = Conv<pads=[1,1,1,1]>(x, a)  q = Relu(p)  r = Conv<pads=[1,1,1,1]>(q, b)  s = Conv(r, c)
            t = GlobalAveragePool(s)  u = Flatten(t)  y = MatMul(u, d)
        }
    """)
    rng = np.random.default_rng(0)
    for name, shape in {"a": (16, 16, 3, 3), "b": (16, 16, 3, 3), "c": (32, 16, 1, 1), "d": (32, 10)}.items():
        values = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return graphc.load(model)


class Stopwatch:
    """Pretends that `fastest` takes half the time of any other choice, and counts what it is asked."""

    def __init__(self, fastest: Choice) -> None:
        self.fastest = fastest
        self.asked: list[Node] = []

    def __call__(self, graph: Graph, node: Node, choices: Sequence[Choice]) -> list[float]:
        self.asked.append(node)
        return [1e-3 if choice == self.fastest else 2e-3 for choice in choices]


def test_what_was_measured_is_remembered(tmp_path: Path) -> None:
    tuning, watch = Tuning("quick", tmp_path / "tuning.json"), Stopwatch(Choice(winograd=2))
    first = tuned(network(), TARGET, tuning, watch)
    # the first two layers are one kernel, and what is fastest there is measured once more
    assert [node.op for node in watch.asked] == ["Conv", "Conv", "Conv", "MatMul"]
    assert sorted(first.choices.values(), key=str) == [Choice(winograd=2)] * 2  # it is faster on nothing else
    assert first.note == "0 of 3 kernels chosen by tuning.json, 3 measured now and added to it"
    content = tuning.database.read_bytes()
    again = tuned(network(), TARGET, tuning, watch)
    assert len(watch.asked) == 4 and again.choices == first.choices
    assert tuning.database.read_bytes() == content
    assert again.note == "3 of 3 kernels chosen by tuning.json"
    elsewhere = tuned(network(), TARGET, tuning, None)
    assert elsewhere.choices == first.choices  # on a machine that cannot run the code


def test_more_effort_measures_again_and_less_does_not(tmp_path: Path) -> None:
    watch, database = Stopwatch(Choice(vectors=1, tile=15)), tmp_path / "tuning.json"
    assert not tuned(network(), TARGET, Tuning("quick", database), watch).choices
    quickly = len(watch.asked)
    found = tuned(network(), TARGET, Tuning("thorough", database), watch)
    assert len(watch.asked) > quickly and Choice(vectors=1, tile=15) in found.choices.values()
    asked = len(watch.asked)
    assert tuned(network(), TARGET, Tuning("quick", database), watch).choices == found.choices
    assert len(watch.asked) == asked


def test_what_was_fast_once_by_luck_is_not_chosen(tmp_path: Path) -> None:
    class Lucky(Stopwatch):
        def __call__(self, graph: Graph, node: Node, choices: Sequence[Choice]) -> list[float]:
            seconds = super().__call__(graph, node, choices)
            return seconds if choices.count(self.fastest) == 1 else [2e-3] * len(choices)

    assert not tuned(network(), TARGET, Tuning("quick", tmp_path / "t.json"), Lucky(Choice(winograd=2))).choices


def test_a_target_that_does_not_run_here_is_left_to_the_cost_model(tmp_path: Path) -> None:
    found = tuned(network(), TARGET, Tuning("quick", tmp_path / "tuning.json"), None)
    assert not found.choices and not (tmp_path / "tuning.json").exists()
    assert "3 left to the cost model: x86-64-v4 does not run here. Build once with `tune: quick`" in found.note


def test_targets_do_not_share_entries(tmp_path: Path) -> None:
    tuning, watch = Tuning("quick", tmp_path / "tuning.json"), Stopwatch(Choice(winograd=4))
    other = resolve({"cpu": "x86-64-v3"})
    tuned(network(), TARGET, tuning, watch)
    tuned(network(), other, tuning, watch)
    assert len(watch.asked) == 8 and len(json.loads(tuning.database.read_text())["targets"]) == 2
    assert Database(tuning.database).entries(replace(TARGET, id="native", compiler="gcc")).keys()  # the same code


def test_other_rules_and_damage(tmp_path: Path) -> None:
    tuning, watch = Tuning("quick", tmp_path / "tuning.json"), Stopwatch(BY_MODEL)
    tuned(network(), TARGET, tuning, watch)
    data = json.loads(tuning.database.read_text())
    tuning.database.write_text(json.dumps({**data, "rules": -1}))
    assert not Database(tuning.database).entries(TARGET)
    next(iter(data["targets"].values()))["kernels"] = {"x": {"choice": {"winograd": 2, "speed": 1}}}
    tuning.database.write_text(json.dumps(data))
    with pytest.raises(InputError, match="an entry is damaged"):
        tuned(network(), TARGET, tuning, watch)
    tuning.database.write_text("{")
    with pytest.raises(InputError, match="is no tuning database"):
        tuned(network(), TARGET, tuning, watch)


def test_a_choice_must_gain_more_than_noise() -> None:
    options = [BY_MODEL, Choice(vectors=1), Choice(vectors=2)]
    assert chosen(options, [1.0, 0.98, 0.99], "quick").choice == BY_MODEL
    entry = chosen(options, [1.0, 0.98, 0.9], "quick")
    assert (entry.choice, entry.seconds, entry.by_model) == (Choice(vectors=2), 0.9, 1.0)


def integer_network() -> Graph:
    """A convolution and a product of 8-bit integers."""
    model = Qdq()
    x = model.input((1, 32, 9, 9), "uint8")
    model.result(model.node("Conv", [x, model.weights((48, 32, 3, 3))], pads=[1, 1, 1, 1]))
    return model.graph()


def other_network() -> Graph:
    """What other rules take: a depthwise convolution, and products with weights in 4 bits and with many zeros."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[1,32,9,9] x) => (float[1,9,9,48] z)
        <float[32,1,3,3] a, int4[32,48] b, float[2,48] s, float[48,48] c> {
            p = Conv<pads=[1,1,1,1], group=32>(x, a)  q = Transpose<perm=[0,2,3,1]>(p)
            w = DequantizeLinear<axis=0, block_size=16>(b, s)  y = MatMul(q, w)  z = MatMul(y, c)
        }
    """)
    rng = np.random.default_rng(0)
    values = {
        "a": rng.standard_normal((32, 1, 3, 3), np.float32),
        "b": rng.integers(-8, 8, (32, 48)).astype(ml_dtypes.int4),
        "s": rng.random((2, 48), np.float32),
        "c": rng.standard_normal((48, 48), np.float32) * (rng.random((48, 48)) < 0.2),
    }
    for name, array in values.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return graphc.load(model)


def tiled_network() -> Graph:
    """Convolutions that register tiles compute though they are not dense in two axes: in groups, and along three."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[1,32,9,9] x, float[1,8,4,5,6] v) => (float[1,64,9,9] y, float[1,24,4,5,6] w) {
            y = Conv<pads=[1,1,1,1], group=2>(x, a)  w = Conv<pads=[1,1,1,1,1,1]>(v, b)
        }
    """)
    rng = np.random.default_rng(0)
    for name, shape in (("a", (64, 16, 3, 3)), ("b", (24, 8, 3, 3, 3))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal(shape, np.float32), name))
    return graphc.load(model)


def test_groups_and_three_axes_have_register_tiles_and_no_filtering() -> None:
    graph = laid_out(tiled_network(), TARGET)
    found = [options for node in graph.nodes if (options := candidates(graph, node, TARGET, thorough=False))]
    assert len(found) == 2
    assert all(choice.winograd is None for options in found for choice in options)
    assert {choice.vectors for choice in found[0]} == {None, 1, 2}, "a group has 32 filters, two vectors"


def test_each_rule_brings_its_candidates() -> None:
    graph = laid_out(other_network(), TARGET)
    found = {kernel_id(graph, node): candidates(graph, node, TARGET, thorough=False) for node in graph.nodes}
    depthwise, coded, pruned = (options for options in found.values() if options)
    assert depthwise == [BY_MODEL, Choice(tile=2), Choice(tile=6)]
    assert Choice(vectors=1, tile=30) in coded and all(choice.winograd is None for choice in coded)
    assert pruned == [BY_MODEL, Choice(tile=30), Choice(tile=22)]
    kinds = [kernel for kernel, options in found.items() if options]
    assert "MatMul(float32[1, 9, 9, 32], DequantizeLinear(constant int4[32, 48], constant" in kinds[1]
    assert "of them not zero" in kinds[2]


NETWORKS = {"float": network, "integer": integer_network, "other": other_network, "tiled": tiled_network}


@pytest.mark.parametrize("graph", [make() for make in NETWORKS.values()], ids=list(NETWORKS))
def test_every_choice_computes_the_same(graph: Graph, server: Server, tmp_path: Path) -> None:
    native = resolve({"cpu": "native"})
    lowered_graph = laid_out(graph, native)
    tried = 0
    for number, node in enumerate(lowered_graph.nodes):
        options = candidates(lowered_graph, node, native, thorough=True)
        if not options:
            continue
        copies, by_result = copied(lowered_graph, node, options)
        results = outputs(copies, by_result, native, server, tmp_path / str(number))
        tolerance = 1e-5 * np.abs(results[0]).max() if results[0].dtype == np.float32 else 0
        for choice, result in zip(options, results, strict=True):
            np.testing.assert_allclose(result, results[0], rtol=0, atol=tolerance, err_msg=str(choice))
        tried += len(options)
    assert tried > 8


def outputs(
    copies: Graph, choices: dict[str, Choice], target: Target, server: Server, folder: Path
) -> list[np.ndarray]:
    tools = toolchain.find(target.triple, Cache().folder)
    build_program(lowered(copies, target, server, choices), target, folder, server, Cache(), tools)
    feeds = seeded({name: copies.types[name] for name in copies.inputs}, 1).feeds[0]
    with Runner(folder) as runner:
        found = runner(**feeds)
    return list(found.values())


def test_a_real_kernel_is_measured(server: Server) -> None:
    graph = laid_out(network(), TARGET)
    native = resolve({"cpu": "native"})
    node = next(node for node in graph.nodes if node.op == "Conv")
    measure = timer(native, server, Cache())
    assert measure is not None
    options = candidates(graph, node, native, thorough=False)
    seconds = measure(graph, node, options)
    assert len(seconds) == len(options) and all(1e-7 < each < 1.0 for each in seconds)


def test_a_build_is_a_function_of_its_database(tmp_path: Path) -> None:
    spec = {
        "passes": [{"kind": "fold"}],
        "targets": [{"cpu": "native", "tune": "quick", "tuning": str(tmp_path / "t.json")}],
    }
    first = graphc.compile(network(), {**spec, "name": "net"}, out=tmp_path / "first")
    assert "measured now" in read_report(first.folder).targets[0].tuning
    second = graphc.compile(network(), {**spec, "name": "net"}, out=tmp_path / "second", cache=tmp_path / "cache")
    assert read_report(second.folder).targets[0].tuning == "3 of 3 kernels chosen by t.json"
    library = "native/libnet.so"
    assert (first.folder / library).read_bytes() == (second.folder / library).read_bytes()
