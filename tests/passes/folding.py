"""What every test of folding does: read a model in ONNX text, fold it, see that it computes the same and stays folded.

Inputs whose names start with `c` are constants with random values, positive ones where the name starts with `cp`.
"""

import re

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper, parser

from graphc.execute import run
from graphc.importer import load
from graphc.ir.check import check
from graphc.ir.graph import Graph
from graphc.ir.text import text
from graphc.passes.fold import fold

HEADER = '<ir_version: 10, opset_import: ["": 22]>\n'


def model(source: str) -> onnx.ModelProto:
    """A model from the text of its graph, its inputs `c...` made constants."""
    proto = parser.parse_model(HEADER + source)
    rng = np.random.default_rng(7)
    for value in [v for v in proto.graph.input if v.name.startswith("c")]:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        array = rng.normal(size=shape).astype(np.float32)
        array = np.abs(array) + np.float32(0.5) if value.name.startswith("cp") else array
        proto.graph.initializer.append(numpy_helper.from_array(array, value.name))
        proto.graph.input.remove(value)
    return proto


def feeds(graph: Graph, seed: int = 3) -> dict[str, npt.NDArray[np.generic]]:
    """Random values for every input: normal for floats, small numbers for integers."""
    rng = np.random.default_rng(seed)
    made: dict[str, npt.NDArray[np.generic]] = {}
    for name in graph.inputs:
        kind = graph.types[name]
        shape = [d if isinstance(d, int) else 2 for d in kind.shape or ()]
        values = rng.normal(size=shape) if np.issubdtype(kind.dtype, np.floating) else rng.integers(0, 3, shape)
        made[name] = values.astype(kind.dtype)
    return made


def difference(before: Graph, after: Graph, values: dict[str, npt.NDArray[np.generic]]) -> float:
    """The largest difference of any output, as a part of its largest magnitude.

    Types and shapes must agree, and where values are not finite.
    """
    worst = 0.0
    expected, got = run(before, values), run(after, values)
    assert list(expected) == list(got)
    for name, array in expected.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        a, b = array.astype(np.float64), got[name].astype(np.float64)
        finite = np.isfinite(a)
        assert np.array_equal(a[~finite], b[~finite], equal_nan=True)
        if finite.any():
            worst = max(worst, float(np.abs(a[finite] - b[finite]).max() / max(np.abs(a[finite]).max(), 1e-30)))
    return worst


def folded(source: str | onnx.ModelProto) -> Graph:
    """Fold a model; the result is a sound graph, equal to the original, and folding it again changes nothing."""
    before = load(model(source) if isinstance(source, str) else source)
    after = fold(before)
    check(after)
    assert fold(after) is after
    assert difference(before, after, feeds(before)) <= 1e-5
    return after


def shown(graph: Graph) -> str:
    """The text form, without the values of floating-point constants: they are checked by running the graph."""
    return re.sub(r"^(constant [^:]+: float\d+\[[^]]*\]).*$", r"\1", text(graph), flags=re.MULTILINE)


def operators(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]
