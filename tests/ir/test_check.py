"""Each broken rule is named; sound graphs pass."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import parser

from graphc.errors import InputError, InternalError
from graphc.importer import load
from graphc.ir import Graph, TensorType
from graphc.ir.check import check, check_values, has_nan
from tests.models import MODELS


def graph() -> Graph:
    return load(
        parser.parse_model("""<ir_version: 10, opset_import: ["" : 26]>
g (float[2,3] x, bool c) => (float[2,3] z) <float[3] w = {1,2,3}> {
    y = Mul(x, w)
    z = If (c) <then_branch = t () => (float[2,3] a) { a = Neg(y) },
                else_branch = e () => (float[2,3] b) { b = Abs(y) }>
}""")
    )


def test_a_sound_graph_passes() -> None:
    check(graph())
    check_values(graph())


@pytest.mark.parametrize("name", MODELS)
def test_real_models_pass(shared_data: Path, name: str) -> None:
    loaded = load(shared_data / "models" / name, MODELS[name].shapes)
    check(loaded)
    check_values(loaded)


def rename(g: Graph, index: int, **changes: object) -> Graph:
    nodes = list(g.nodes)
    nodes[index] = replace(nodes[index], **changes)
    return replace(g, nodes=tuple(nodes))


F32 = np.dtype(np.float32)
BROKEN: dict[str, Callable[[Graph], Graph]] = {
    "reads 'y', which no node before it produces": lambda g: replace(g, nodes=g.nodes[::-1]),
    "defines 'x', which is defined already": lambda g: rename(g, 0, outputs=("x",)),
    "its output 'lost' is produced by nothing": lambda g: replace(g, outputs=("lost",)),
    "has no type for 'y'": lambda g: replace(g, types={k: v for k, v in g.types.items() if k != "y"}),
    "has no name, or one that another": lambda g: rename(g, 0, name="z"),
    r"is float32\[3\] and its type says float32\[4\]": lambda g: replace(
        g, types={**g.types, "w": TensorType(F32, (4,))}
    ),
    r"'y' is float32\[2, 3\] by its operands and float16\[2, 3\] by its type": lambda g: replace(
        g, types={**g.types, "y": TensorType(np.dtype(np.float16), (2, 3))}
    ),
    r"'z' is float32\[2, 3\] by its operands and float32\[2, 4\] by its type": lambda g: replace(
        g, types={**g.types, "z": TensorType(F32, (2, 4))}
    ),
}


@pytest.mark.parametrize("problem", BROKEN)
def test_a_broken_rule_is_named(problem: str) -> None:
    with pytest.raises(InternalError, match=problem):
        check(BROKEN[problem](graph()))


def test_nan_is_named() -> None:
    spoiled = replace(graph(), constants={"w": np.array([1, np.nan, 3], np.float32)})
    with pytest.raises(InputError, match="tensor 'w': it holds NaN"):
        check_values(spoiled)


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.float16, np.complex64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
)
def test_has_nan(dtype: type[np.generic]) -> None:
    values = np.ones((3, 5), dtype)
    assert not has_nan(values)
    values[2, 4] = np.nan
    assert has_nan(values)


@pytest.mark.parametrize("dtype", [np.int8, np.uint64, np.bool_, ml_dtypes.int4, object])
def test_what_cannot_be_nan(dtype: type[np.generic]) -> None:
    assert not has_nan(np.ones(4, dtype))
