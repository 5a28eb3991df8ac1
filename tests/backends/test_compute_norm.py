"""Softmax over rows of odd lengths, and normalizations, against float64, on every x86-64 level."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper, parser

from graphc.backends.build import build_target
from graphc.backends.cache import Cache
from graphc.backends.worker import Server
from graphc.execute import Session
from graphc.importer import load
from graphc.ir import Array
from graphc.runner import Runner
from tests.backends.kernel_calls import LEVELS, runnable

LENGTHS = (1, 3, 16, 17, 197)


@pytest.mark.parametrize("cpu", LEVELS)
def test_rows(cpu: str, tmp_path: Path) -> None:
    target, rng = runnable(cpu), np.random.default_rng(3)
    lines, feeds, expected = [], {}, {}
    weights: dict[str, Array] = {}
    for n in LENGTHS:
        x = (4 * rng.standard_normal((2, 5, n))).astype(np.float32)
        weights |= {f"{name}{n}": rng.standard_normal(n).astype(np.float32) for name in "gb"}
        wide = x.astype(np.float64)
        power = np.exp(wide - wide.max(-1, keepdims=True))
        centred = wide - wide.mean(-1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        feeds[f"x{n}"] = x
        expected[f"s{n}"] = power / power.sum(-1, keepdims=True)
        expected[f"l{n}"] = normal * weights[f"g{n}"] + weights[f"b{n}"]
        lines += [f"s{n} = Softmax(x{n})", f"l{n} = LayerNormalization(x{n}, g{n}, b{n})"]
    inputs = ", ".join(f"float[2,5,{n}] x{n}" for n in LENGTHS)
    outputs = ", ".join(f"float[2,5,{n}] s{n}, float[2,5,{n}] l{n}" for n in LENGTHS)
    proto = parser.parse_graph(f"g ({inputs}) => ({outputs}) {{ {' '.join(lines)} }}")
    proto.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items())
    graph = load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 22)], ir_version=10))
    with Server(1) as server:
        build_target(graph, target, tmp_path / "out", server, Cache(tmp_path / "cache"))
    for threads in (1, 3):
        with Runner(tmp_path / "out", threads) as runner:
            found = runner(**feeds)
        assert isinstance(found, dict)
        for name, value in expected.items():
            assert np.abs(found[name] - value).max() <= 2e-6 * np.abs(value).max(), name


def over(x: Array, axes: tuple[int, ...], *, centred: bool = True) -> Array:
    """x without its mean (where `centred`) over its deviation along axes, in float64."""
    wide = x.astype(np.float64)
    away = wide - wide.mean(axes, keepdims=True) if centred else wide
    return away / np.sqrt((away**2).mean(axes, keepdims=True) + 1e-5)


FEEDS: Mapping[str, tuple[int, ...]] = {"a": (2, 6, 5, 7), "b": (2, 6, 5, 7), "c": (3, 4, 33), "d": (3, 4, 33)}
WEIGHTS: Mapping[str, tuple[int, ...]] = {"g6": (6,), "b6": (6,), "g57": (5, 7), "b57": (5, 7), "g33": (33,)}
NORMS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "instance": ("instance = InstanceNormalization(a, g6, b6)", FEEDS["a"]),
    "followed": ("n0 = InstanceNormalization(b, g6, b6) followed = Relu(n0)", FEEDS["a"]),
    "grouped": ("n1 = GroupNormalization<num_groups=3>(a, g6, b6) t1 = Sigmoid(n1) grouped = Mul(n1, t1)", FEEDS["a"]),
    "planes": ("planes = LayerNormalization<axis=2>(a, g57, b57)", FEEDS["a"]),
    "sum": ("s2 = Add(c, d) sum = RMSNormalization(s2, g33)", FEEDS["c"]),
    "whole": ("whole = RMSNormalization<axis=0>(c, d)", FEEDS["c"]),
    "unbiased": ("unbiased = LayerNormalization(d, g33)", FEEDS["c"]),
}


@pytest.mark.parametrize("cpu", ("x86-64-v2", "x86-64-v4"))
def test_normalizations(cpu: str, tmp_path: Path) -> None:
    """Each is one kernel, with what comes before or after it element by element."""
    target, rng = runnable(cpu), np.random.default_rng(4)
    feeds = {name: (3 + rng.standard_normal(shape)).astype(np.float32) for name, shape in FEEDS.items()}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in WEIGHTS.items()}
    gain, bias = (weights[name].reshape(6, 1, 1) for name in ("g6", "b6"))
    a, b, c, d = feeds.values()
    grouped = over(a.reshape(2, 3, 2, 5, 7), (2, 3, 4)).reshape(a.shape) * gain + bias
    expected = {
        "instance": over(a, (2, 3)) * gain + bias,
        "followed": np.maximum(over(b, (2, 3)) * gain + bias, 0),
        "grouped": grouped / (1 + np.exp(-grouped)),
        "planes": over(a, (2, 3)) * weights["g57"] + weights["b57"],
        "sum": over(c.astype(np.float64) + d, (2,), centred=False) * weights["g33"],
        "whole": over(c, (0, 1, 2), centred=False) * d,
        "unbiased": over(d, (2,)) * weights["g33"],
    }
    inputs = ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, shape in FEEDS.items())
    outputs = ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, (_, shape) in NORMS.items())
    body = " ".join(text for text, _ in NORMS.values())
    proto = parser.parse_graph(f"g ({inputs}) => ({outputs}) {{ {body} }}")
    proto.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    graph = load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 23)], ir_version=11))
    with Server(1) as server:
        manifest = build_target(graph, target, tmp_path / "out", server, Cache(tmp_path / "cache"))
    assert len(manifest.steps) == len(NORMS)
    with Runner(tmp_path / "out", 1) as runner:
        found = runner(**feeds)
    assert isinstance(found, dict)
    for name, value in expected.items():
        assert np.abs(found[name] - value).max() <= 2e-6 * np.abs(value).max(), name


BETWEEN = """g (float[2,3,9,11] x) => (y, z) {
    a = Conv(x, w)  n = InstanceNormalization(a, g, b)  r = Relu(n)
    c = Conv<pads=[1,1,1,1]>(r, v)  m = GroupNormalization<num_groups=4>(c, g, b)  s = Sigmoid(m)  t = Mul(m, s)
    q = Add(t, r)  y = Conv(q, u)
    p = GlobalAveragePool(q)  o = InstanceNormalization(q, g, b)  f = Add(o, p)  z = Conv(f, u)
}"""


@pytest.mark.parametrize("cpu", ("x86-64-v2", "x86-64-v4"))
def test_between_convolutions(cpu: str, tmp_path: Path) -> None:
    """Channels stay last: only what enters and leaves the graph is transposed. 20 channels are no whole vectors."""
    rng = np.random.default_rng(5)
    shapes = {"w": (20, 3, 1, 1), "v": (20, 20, 3, 3), "u": (6, 20, 1, 1), "g": (20,), "b": (20,)}
    proto = parser.parse_graph(BETWEEN)
    proto.initializer.extend(
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name) for name, shape in shapes.items()
    )
    graph = load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 23)], ir_version=11))
    given: dict[str, Array] = {"x": (3 + rng.standard_normal((2, 3, 9, 11))).astype(np.float32)}
    expected = Session(graph).run(given)
    with Server(1) as server:
        manifest = build_target(graph, runnable(cpu), tmp_path / "out", server, Cache(tmp_path / "cache"))
    assert sum(step.kernel.startswith("transpose") for step in manifest.steps) == 3
    for threads in (1, 3):
        with Runner(tmp_path / "out", threads) as runner:
            found = runner(**given)
        assert isinstance(found, dict)
        for name, value in expected.items():
            assert np.abs(found[name] - value).max() <= 1e-5 * np.abs(value).max(), name
