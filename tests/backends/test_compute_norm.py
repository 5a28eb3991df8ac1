"""Softmax and layer normalization over rows of odd lengths, against float64, on every x86-64 level."""

from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper, parser

from graphc.backends.build import build_target
from graphc.backends.cache import Cache
from graphc.backends.worker import Server
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
