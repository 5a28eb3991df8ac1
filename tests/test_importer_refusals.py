"""Bad files: one clear error for all that can be wrong with one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, helper

from graphc.errors import InputError
from graphc.importer import load
from tests.onnx_text import LINEAR, model_of


def spoiled(change: Callable[[ModelProto], object], text: str = LINEAR) -> bytes:
    model = model_of(text)
    change(model)
    return model.SerializeToString()


WHOLE = model_of(LINEAR).SerializeToString()

BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "text": (b"hello, this is no model at all\n" * 9, "not an ONNX model"),
    "zip": (b"PK\x03\x04" + bytes(100), "not an ONNX model"),
    "half": (WHOLE[: len(WHOLE) // 2], "not an ONNX model, or a truncated one"),
    "no graph": (spoiled(lambda m: m.ClearField("graph")), "it holds no graph"),
    "no opset": (spoiled(lambda m: m.ClearField("opset_import")), "states no ONNX opset"),
    "cycle": (
        spoiled(lambda m: None, "g (float[2] x) => (z) { y = Add(x, z) z = Neg(y) }"),
        "'y': lies on, or behind, a cycle in graph 'g'",
    ),
    "self": (spoiled(lambda m: None, "g (float[2] x) => (z) { z = Add(x, z) }"), "'z': lies on, or behind, a cycle"),
    "unknown operand": (
        spoiled(lambda m: None, "g (float[2] x) => (z) { z = Add(x, q) }"),
        "Add 'z': reads 'q', which nothing",
    ),
    "unknown output": (spoiled(lambda m: setattr(m.graph.output[0], "name", "q")), "its output 'q' is produced by no"),
    "defined twice": (
        spoiled(lambda m: None, "g (float[2] x) => (z) { z = Neg(x) z = Abs(x) }"),
        "the name 'z' is defined twice",
    ),
    "input defined again": (
        spoiled(lambda m: None, "g (float[2] x) => (x) { x = Neg(x) }"),
        "the name 'x' is defined twice",
    ),
    "hidden name": (
        spoiled(
            lambda m: None,
            """g (float[2] x, bool c) => (z) { z = If(c)<then_branch = a () => (x) { x = Neg(c) },
                                                 else_branch = b () => (q) { q = Neg(x) }> }""",
        ),
        "graph 'a': the name 'x' is defined twice",
    ),
    "short weight": (
        spoiled(lambda m: m.graph.initializer[0].dims.append(2)),
        "tensor 'w': its data does not fit type 1 and shape",
    ),
    "absurd weight": (
        spoiled(lambda m: m.graph.initializer[0].dims.extend([1 << 40, 1 << 40])),
        "tensor 'w': its data does not fit type 1 and shape",
    ),
    "negative weight": (spoiled(lambda m: m.graph.initializer[0].dims.append(-1)), "negative dimension"),
    "unknown element type": (spoiled(lambda m: setattr(m.graph.initializer[0], "data_type", 77)), "tensor 'w'"),
    "NaN": (
        spoiled(lambda m: m.graph.initializer[0].float_data.__setitem__(2, float("nan"))),
        "tensor 'w': it holds NaN",
    ),
    "unknown operator": (
        spoiled(lambda m: setattr(m.graph.node[0], "op_type", "Frobnicate")),
        "Frobnicate 'y': onnx has no operator 'Frobnicate' in domain 'ai.onnx' at opset 26",
    ),
    "unknown domain": (spoiled(lambda m: setattr(m.graph.node[0], "domain", "com.x")), "com.x.MatMul 'y': onnx has no"),
    "operator of old": (
        spoiled(lambda m: setattr(m.graph.node[0], "op_type", "Upsample")),
        "Upsample 'y': onnx has no operator",
    ),
    "missing operand": (spoiled(lambda m: m.graph.node[0].input.pop()), r"MatMul 'y': 1 operands \(expected 2 to 2\)"),
    "missing attribute": (
        spoiled(lambda m: None, "g (float[2] x) => (z) { z = Cast(x) }"),
        "Cast 'z': attribute 'to' is missing",
    ),
    "input without type": (spoiled(lambda m: m.graph.input[0].ClearField("type")), "input 'x': expected a tensor"),
    "sequence": (
        spoiled(lambda m: None, "g (float[2] x) => (z) { s = SequenceConstruct(x) z = SequenceLength(s) }"),
        "SequenceConstruct 's' result 's': expected a tensor, got sequence_type",
    ),
    "optional": (
        spoiled(lambda m: None, "g (optional(float[2]) x) => (z) { z = OptionalGetElement(x) }"),
        "input 'x': expected a tensor, got optional_type",
    ),
    "shapes that do not fit": (
        spoiled(lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 4)),
        r"MatMul 'y': its operands.*x: float32\[1, 4\]",
    ),
    "sparse": (spoiled(lambda m: m.graph.sparse_initializer.add()), "it holds sparse tensors"),
    "duplicate attribute": (
        spoiled(lambda m: m.graph.node[0].attribute.extend([helper.make_attribute("a", 1)] * 2)),
        "its attribute 'a' is given twice",
    ),
    "name that is no text": (WHOLE.replace(b"MatMul", b"Mat\xccul"), r"the name b'Mat\\xccul' is not UTF-8"),
    "operand gone before conversion": (
        spoiled(lambda m: setattr(m.opset_import[0], "version", 13), "g (float[2] x) => (z) { z = Relu() }"),
        "onnx cannot convert it from opset 13 to 26: .*Relu",
    ),
    "attribute of another kind": (
        spoiled(
            lambda m: (setattr(m.opset_import[0], "version", 12), setattr(m.graph.node[0].attribute[0], "type", 2)),
            "g (float[2] x) => (z) { z = Unsqueeze<axes = [0]>(x) }",
        ),
        "Unsqueeze 'z': attribute 'axes' is no INTS, as Unsqueeze of opset 12 has it",
    ),
    "attribute gone before conversion": (
        spoiled(lambda m: setattr(m.opset_import[0], "version", 12), "g (float[2] x) => (z) { z = Unsqueeze(x) }"),
        "Unsqueeze 'z': attribute 'axes' is missing",
    ),
    "branch without output": (
        spoiled(lambda m: None, "g (bool c) => (z) { z = If(c)<then_branch = a () => () { }> }"),
        "If 'z'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_give_one_clear_error(tmp_path: Path, case: str) -> None:
    data, problem = BAD[case]
    (tmp_path / "bad.onnx").write_bytes(data)
    with pytest.raises(InputError, match=problem) as caught:
        load(tmp_path / "bad.onnx")
    assert str(caught.value).startswith(str(tmp_path / "bad.onnx"))
    assert caught.value.exit_code == 2


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="this is no file"):
        load(tmp_path)
    with pytest.raises(InputError, match="this is no file"):
        load("/dev/zero")
    with pytest.raises(InputError, match="cannot be read"):
        load("a\0b")


def test_files_past_protobufs_end(tmp_path: Path) -> None:
    with (tmp_path / "m.onnx").open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(
        InputError, match=r"has 2147483648 bytes, and ONNX files end at 2 GiB\. Save the weights as ext"
    ):
        load(tmp_path / "m.onnx")


def test_every_truncation_is_an_error() -> None:
    for length in range(len(WHOLE)):
        with pytest.raises(InputError):
            load(WHOLE[:length])


def test_nan_is_taken_when_asked_for() -> None:
    assert np.isnan(load(BAD["NaN"][0], allow_nan=True).constants["w"]).sum() == 1


def test_memory_bombs_are_not_evaluated() -> None:
    graph = load(
        model_of("""g (float[1] x) => (z) { s = Constant<value_ints = [1000000, 1000000, 1000]>()
            h = ConstantOfShape(s) r = ReduceMax<keepdims=0>(h)
            t = Expand(x, s) m = ReduceMax<keepdims=0>(t) z = Add(r, m) }""")
    )
    assert graph.types["h"].shape == (1_000_000, 1_000_000, 1000)
