"""Types through control flow, against what onnxruntime returns."""

import numpy as np
import onnxruntime
import pytest
from onnx import parser

from graphc.errors import InputError
from graphc.importer import load
from graphc.ir import Edit, Graph, TensorType
from graphc.ir.check import check


def graph_of(text: str) -> Graph:
    return load(parser.parse_model(f'<ir_version: 10, opset_import: ["" : 26]> {text}'))


BODY = "body = b (int64 i, bool c, float[A,B] h) => (bool d, float[A,B] k, float[A,B] s)"

LOOPS = {
    "counted": (
        f"""g (float[2,3] x) => (y, ys) {{ n = Constant<value = int64 {{4}}>()
            y, ys = Loop(n, , x) <{BODY} {{ d = Identity(c) k = Abs(h) s = Neg(k) }}> }}""",
        {"y": (2, 3), "ys": (4, 2, 3)},
    ),
    "stopped by its body": (
        f"""g (float[2,3] x) => (y, ys) {{ n = Constant<value = int64 {{4}}>()
            y, ys = Loop(n, , x) <{BODY} {{
                two = Constant<value = int64 {{2}}>() d = Less(i, two) k = Abs(h) s = Neg(k) }}> }}""",
        {"y": (2, 3), "ys": ("?", 2, 3)},
    ),
    "growing along one side": (
        f"""g (float[2,3] x) => (y, ys) {{ n = Constant<value = int64 {{4}}>()
            y, ys = Loop(n, , x) <{BODY} {{ d = Identity(c) k = Concat<axis=0>(h, x) s = Neg(x) }}> }}""",
        {"y": ("?", 3), "ys": (4, 2, 3)},
    ),
    "with a branch inside": (
        f"""g (float[2,3] x) => (y, ys) {{ n = Constant<value = int64 {{4}}>()
            y, ys = Loop(n, , x) <{BODY} {{ d = Identity(c) s = Neg(h)
                k = If(c) <then_branch = t () => (p) {{ p = Add(h, x) }},
                           else_branch = e () => (q) {{ q = Abs(x) }}> }}> }}""",
        {"y": (2, 3), "ys": (4, 2, 3)},
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops(name: str) -> None:
    text, shapes = LOOPS[name]
    graph = graph_of(text)
    check(graph)
    assert {value: graph.types[value].shape for value in shapes} == shapes
    results = onnxruntime.InferenceSession(graph.to_onnx().SerializeToString()).run(None, {"x": np.ones((2, 3), "f4")})
    for shape, result in zip(shapes.values(), results, strict=True):
        assert len(shape) == result.ndim
        assert all(a in ("?", b) for a, b in zip(shape, result.shape, strict=True))


def test_a_loop_follows_what_it_starts_with() -> None:
    graph = graph_of(LOOPS["counted"][0])
    edit = Edit(graph)
    edit.set_inputs({"x": TensorType(np.dtype(np.float16), (5,))})
    changed = edit.apply()
    check(changed)
    assert changed.types["ys"] == TensorType(np.dtype(np.float16), (4, 5))


def test_a_node_inside_is_named() -> None:
    with pytest.raises(InputError, match=r"MatMul 'p': its operands .*do not fit \(x: float32\[2, 3\]\).*\. Check"):
        graph_of("""g (float[2,3] x, bool c) => (y) { y = If(c) <
            then_branch = t () => (p) { p = MatMul(x, x) }, else_branch = e () => (q) { q = Abs(x) }> }""")


def test_branches_of_two_shapes() -> None:
    graph = graph_of("""g (float[2,3] x, bool c) => (y) { y = If(c) <
        then_branch = t () => (p) { p = Concat<axis=0>(x, x) }, else_branch = e () => (q) { q = Abs(x) }> }""")
    shape = graph.types["y"].shape
    assert shape is not None
    assert shape[1] == 3
    assert isinstance(shape[0], str)
