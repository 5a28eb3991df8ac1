"""Places of extrema, the k best, and running sums along axes, in rows of odd lengths, with ties: equal to numpy's."""

from collections.abc import Mapping
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
from tests.backends.kernel_calls import runnable

LENGTHS = (1, 10, 77)
BEST = 7


def cases(rng: np.random.Generator) -> tuple[list[str], dict[str, Array], dict[str, Array]]:
    """(ONNX text, inputs, what each output must be)."""
    lines: list[str] = []
    feeds: dict[str, Array] = {}
    expected: dict[str, Array] = {}
    for n in LENGTHS:
        x = rng.integers(-9, 9, (6, n)).astype(np.float32)
        x[0] = -np.inf
        q = rng.integers(-128, 128, (6, n)).astype(np.int8)
        feeds |= {f"x{n}": x, f"q{n}": q}
        k = min(n, BEST)
        lines += [
            f"a{n} = ArgMax<axis=1, keepdims=0>(x{n})",
            f"l{n} = ArgMin<axis=-1, keepdims=0, select_last_index=1>(x{n})",
            f"i{n} = ArgMin<axis=1, keepdims=0>(q{n})",
            f"v{n}, t{n} = TopK<largest=0>(x{n}, k{k})",
            f"w{n}, u{n} = TopK(q{n}, k1)",
            f"c{n} = CumSum(x{n}, last)",
            f"d{n} = CumSum<exclusive=1, reverse=1>(y{n}, first)",
        ]
        order = np.argsort(x, axis=1, kind="stable")[:, :k]
        feeds[f"y{n}"] = rng.integers(-99, 99, (5, n)).astype(np.int32)
        expected |= {
            f"a{n}": x.argmax(1),
            f"l{n}": n - 1 - x[:, ::-1].argmin(1),
            f"i{n}": q.argmin(1),
            f"v{n}": np.take_along_axis(x, order, 1),
            f"t{n}": order,
            f"w{n}": q.max(1, keepdims=True),
            f"u{n}": q.argmax(1)[:, None],
            f"c{n}": x.cumsum(1),
            f"d{n}": feeds[f"y{n}"][::-1].cumsum(0)[::-1] - feeds[f"y{n}"],
        }
    return lines, feeds, expected


def _values(arrays: Mapping[str, Array]) -> str:
    kinds = {"float32": "float"}
    return ", ".join(
        f"{kinds.get(a.dtype.name, a.dtype.name)}[{','.join(map(str, a.shape))}] {name}" for name, a in arrays.items()
    )


@pytest.mark.parametrize("cpu", ("x86-64-v2", "x86-64-v4"))
def test_values(cpu: str, tmp_path: Path) -> None:
    target = runnable(cpu)
    lines, feeds, expected = cases(np.random.default_rng(8))
    proto = parser.parse_graph(f"g ({_values(feeds)}) => ({_values(expected)}) {{ {' '.join(lines)} }}")
    constants = {f"k{k}": np.array([k]) for k in {1, *(min(n, BEST) for n in LENGTHS)}}
    constants |= {"first": np.array(0), "last": np.array(1)}
    proto.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    graph = load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 22)], ir_version=10))
    with Server(1) as server:
        build_target(graph, target, tmp_path / "out", server, Cache(tmp_path / "cache"))
    with Runner(tmp_path / "out", 2) as runner:
        found = runner(**feeds)
    assert isinstance(found, dict)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_nan_is_no_better_than_anything(tmp_path: Path) -> None:
    x = np.random.default_rng(9).standard_normal((40, 40)).astype(np.float32)
    np.fill_diagonal(x, np.nan)
    text = "g (float[40,40] x) => (int64[40] y) { y = ArgMax<axis=1, keepdims=0>(x) }"
    graph = load(
        helper.make_model(parser.parse_graph(text), opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    )
    with Server(1) as server:
        build_target(graph, runnable("x86-64-v3"), tmp_path / "out", server, Cache(tmp_path / "cache"))
    with Runner(tmp_path / "out", 1) as runner:
        np.testing.assert_array_equal(runner(x), np.nanargmax(x, axis=1))
