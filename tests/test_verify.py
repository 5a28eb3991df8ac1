"""Verification: what must be equal bit for bit, what may round, and how the first diverging node is found."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import numpy_helper, parser

import graphc
from graphc import diverge
from graphc.accuracy import accuracy_of
from graphc.backends.build import build_integerized
from graphc.backends.cache import Cache
from graphc.backends.integer import integerize
from graphc.backends.targets import resolve
from graphc.compile import Build
from graphc.errors import InputError
from graphc.execute import Session
from graphc.importer import load
from graphc.ir import Graph
from graphc.noise import exact_values, rounded_products, stepping_values
from graphc.samples import SEED, inputs_for, seeded
from graphc.verify import compare_subject, subject, verify
from tests import small


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("verify")
    small.write(place)
    yield place


@pytest.fixture(scope="module")
def quantized(folder: Path) -> Build:
    return graphc.compile(None, folder / "small.yaml", out=folder / "build")


@pytest.fixture(scope="module")
def floating(folder: Path) -> Build:
    spec = folder / "floating.yaml"
    spec.write_text("\n".join(line for line in small.SPEC.splitlines() if "quantize" not in line))
    return graphc.compile(None, spec, out=folder / "build")


def test_integers_agree_bit_for_bit(quantized: Build) -> None:
    found = verify(quantized.artifact("native"), samples=16)
    assert found.agrees and found.integer_nodes > 0
    assert [(c.name, c.limit, c.elements, c.differing) for c in found.outputs] == [("scores", 0.0, 80, 0)]


def test_floats_agree_within_the_tolerance(floating: Build) -> None:
    found = verify(floating.artifact("native"), samples=16, threads=2)
    assert found.agrees and found.integer_nodes == 0
    assert found.outputs[0].limit == 1e-4 and 0.0 <= found.outputs[0].error <= 1e-4


def test_exact_values_end_at_the_first_float_operator() -> None:
    model = load(Path(__file__).parent.parent / "specs" / "digits" / "model.onnx", {"image": (1, 1, 8, 8)})
    exact = exact_values(integerize(model))
    assert model.inputs[0] in exact and model.outputs[0] not in exact


MIXED = """<ir_version: 10, opset_import: ["" : 21]>
mixed (float[1,64] x) => (float[1,64] y)
<float s = {0.01}, int8 z = {0}> {
    soft = Softmax(x)
    q = QuantizeLinear(soft, s, z)
    d = DequantizeLinear(q, s, z)
    y = Exp(d)
}"""


def test_behind_a_quantization_of_floats_rounding_sets_the_limit(folder: Path) -> None:
    spec = {"name": "mixed", "targets": [{"cpu": "native"}]}
    build = graphc.compile(load(parser.parse_model(MIXED)), spec, out=folder / "build")
    graph = integerize(load(build.model))
    assert stepping_values(graph) >= {"q", "d", "y"} and "soft" not in stepping_values(graph)
    assert exact_values(graph) == {"x", "s", "z"}
    (output,) = verify(build.artifact("native"), samples=64).outputs
    assert output.agrees and output.limit >= 1e-4


NARROW = """<ir_version: 10, opset_import: ["" : 21]>
narrow (float[1,64,16,16] x) => (float[1,64,16,16] y) { a = Conv(x, v)  r = Relu(a)  b = Conv(r, w)  y = Add(b, r) }"""


def test_what_rounding_alone_does_is_the_limit_of_bfloat16(folder: Path) -> None:
    if not resolve({"cpu": "native"}).has("amx_bf16"):
        pytest.skip("this processor has no tiles of bfloat16")
    model, rng = parser.parse_model(NARROW), np.random.default_rng(4)
    weights = {name: rng.standard_normal((64, 64, 1, 1)).astype(np.float32) / 8 for name in ("v", "w")}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    spec = {"name": "narrow", "targets": [{"cpu": "native", "arithmetic": "bf16"}]}
    found = subject(graphc.compile(load(model), spec, out=folder / "build").artifact("native"), 4)
    (output,) = compare_subject(found).outputs
    assert output.agrees and 1e-3 < output.limit < 2e-2
    assert output.error < output.limit / 2  # rounding is all that it does
    wrong = replace(found.graph, constants={**found.graph.constants, "w": weights["w"] * np.float32(1.05)})
    (output,) = compare_subject(replace(found, graph=wrong)).outputs
    assert not output.agrees


def test_products_read_what_is_rounded() -> None:
    """The significand keeps 8 bits, as numbers of bfloat16 do; what no product reads stays."""
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[4,8] x, float[4,8] z) => (float[4,4] y, float[4,8] s, float[4,8] t) {
        y = MatMul(x, w)  s = Identity(x)  t = Identity(z)
    }"""
    model, rng = parser.parse_model(text), np.random.default_rng(5)
    x, z = (np.asarray(np.exp2(rng.uniform(-20, 20, (4, 8))), np.float32) for _ in range(2))
    model.graph.initializer.append(numpy_helper.from_array(np.eye(8, 4, dtype=np.float32), "w"))
    found = Session(rounded_products(load(model))).run({"x": x, "z": z})
    expected = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(found["s"], expected) and np.array_equal(found["y"], expected[:, :4])
    assert np.array_equal(found["t"], z)


def test_inputs_are_the_builds_data_or_say_why_not(quantized: Build, folder: Path) -> None:
    native, model = quantized.artifact("native"), load(quantized.model)
    found = inputs_for(native, model, 3)
    assert np.array_equal(found.feeds[2]["image"], np.load(folder / "data.npz")["image"][2:3])
    (folder / "data.npz").rename(folder / "away.npz")
    try:
        random = inputs_for(native, model, 3)
    finally:
        (folder / "away.npz").rename(folder / "data.npz")
    assert random.source.startswith(f"3 random inputs (seed {SEED}), because: ") and "data.npz" in random.source
    (first, *_), again = random.feeds, seeded({"image": model.types["image"]}, 3).feeds
    assert np.array_equal(first["image"], again[0]["image"])


def test_functions_of_the_specs_are_found_from_the_artifact(tmp_path: Path) -> None:
    small.write(tmp_path)
    code = tmp_path / "mine.py"
    code.write_text(
        "import numpy\n\n\ndef samples():\n    return dict(numpy.load(__file__.replace('mine.py', 'data.npz')))\n\n\n"
        "def spread(outputs, labels):\n    return numpy.ptp(outputs['scores'], axis=1)\n\n\n"
        "spread.higher_is_better = True\n"
    )
    spec = tmp_path / "small.yaml"
    text = "\n".join(line for line in small.SPEC.splitlines() if "evaluation" not in line)
    text = text.replace("data:\n", "data:\n  evaluation: {function: mine:samples, metric: mine:spread}\n")
    spec.write_text(text)
    native = graphc.compile(None, spec, out=tmp_path / "build").artifact("native")
    found = verify(native, samples=2)
    assert found.agrees and found.inputs == "2 inputs of mine:samples"
    assert accuracy_of(native, 2).metric == "mine:spread"
    code.unlink()
    assert "because: data function mine:samples: cannot be imported" in subject(native, 2).inputs.source
    with pytest.raises(InputError, match="data function mine:samples: cannot be imported"):
        subject(native, 2, real=True)


def test_an_artifact_without_its_model_cannot_be_verified(quantized: Build, tmp_path: Path) -> None:
    alone = tmp_path / "native"
    alone.mkdir()
    for path in quantized.artifact("native").iterdir():
        (alone / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match=r"there is no model\.onnx beside it"):
        verify(alone, samples=1)


def altered(graph: Graph, node: str) -> Graph:
    """`graph` with another scale in the integer node that computes `node`."""
    producer = graph.producers[node]
    name = next(name for name in producer.inputs if name in graph.constants and graph.types[name].dtype == np.float32)
    return replace(graph, constants={**graph.constants, name: graph.constants[name] * np.float32(2)})


def test_the_first_diverging_node_is_named(quantized: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that doubles one scale: the artifact and every rebuild have the same mistake."""
    found = subject(quantized.artifact("native"), 2)
    nodes = [node for node in found.graph.nodes if node.domain]
    culprit = nodes[1].results[0]

    def broken(graph: Graph, *arguments: Any, **options: Any) -> Any:
        made = culprit in graph.producers
        return build_integerized(altered(graph, culprit) if made else graph, *arguments, **options)

    monkeypatch.setattr(diverge, "build_integerized", broken)
    first = diverge.first_divergence(found, Cache())
    assert first.node == nodes[1].label and not first.alone
    assert "they first part at" in str(first)
    assert compare_subject(found).agrees
