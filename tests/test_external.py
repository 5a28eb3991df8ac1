"""Weights in files beside the model: mapped where they can be, and never read from anywhere else."""

from mmap import mmap
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from graphc.errors import InputError
from graphc.importer import load
from graphc.ir.check import check_values
from tests.onnx_text import LINEAR, model_of


def external(model: ModelProto, location: str, **entries: int) -> ModelProto:
    """The first initializer's data moved to a file."""
    tensor = model.graph.initializer[0]
    for field in ("raw_data", "float_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return model


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """A model whose weight lies in `w.bin` beside it, from byte 64."""
    weight = np.arange(6, dtype=np.float32)
    (tmp_path / "w.bin").write_bytes(bytes(64) + weight.tobytes())
    path = tmp_path / "m.onnx"
    path.write_bytes(external(model_of(LINEAR), "w.bin", offset=64, length=24).SerializeToString())
    return path


def base(array: np.ndarray) -> object:
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A model whose 2000 weights lie in `w.bin` beside it."""
    (tmp_path / "w.bin").write_bytes(np.arange(2000, dtype=np.float32).tobytes())
    model = model_of("g (float[1,1000] x) => (y) <float[1] w = {1}> { y = MatMul(x, w) }")
    model.graph.initializer[0].dims[:] = [1000, 2]
    path = tmp_path / "m.onnx"
    path.write_bytes(external(model, "w.bin").SerializeToString())
    return path


def test_external_data_is_mapped(wide: Path) -> None:
    weight = load(wide).constants["w"]
    np.testing.assert_array_equal(weight, np.arange(2000).reshape(1000, 2))
    assert isinstance(base(weight), mmap)
    assert not weight.flags.writeable


def test_external_data_without_offset_and_length(linear: Path) -> None:
    (linear.parent / "w.bin").write_bytes(np.arange(6, dtype=np.float32).tobytes())
    linear.write_bytes(external(model_of(LINEAR), "w.bin").SerializeToString())
    assert load(linear).constants["w"][2, 1] == 5


def test_external_data_in_a_subfolder_and_unaligned(linear: Path) -> None:
    (linear.parent / "data").mkdir()
    (linear.parent / "data" / "w.bin").write_bytes(b"x" + np.arange(6, dtype=np.float32).tobytes())
    linear.write_bytes(external(model_of(LINEAR), "data/w.bin", offset=1).SerializeToString())
    np.testing.assert_array_equal(load(linear).constants["w"], [[0, 1], [2, 3], [4, 5]])


def test_external_four_bit_data(tmp_path: Path) -> None:
    model = model_of("g () => (y) <int4[5] w = {1,-2,3,-4,5}> { y = Identity(w) }")
    packed = numpy_helper.from_array(np.array([1, -2, 3, -4, 5], ml_dtypes.int4)).raw_data
    model.graph.initializer[0].ClearField("int32_data")
    (tmp_path / "w.bin").write_bytes(packed)
    (tmp_path / "m.onnx").write_bytes(external(model, "w.bin", length=3).SerializeToString())
    assert load(tmp_path / "m.onnx").constants["w"].astype(int).tolist() == [1, -2, 3, -4, 5]


@pytest.mark.parametrize(
    ("location", "entries", "problem"),
    [
        ("../w.bin", {}, "leaves the model's folder"),
        ("/etc/passwd", {}, "leaves the model's folder"),
        ("link.bin", {}, "leaves the model's folder"),
        ("sub/../../w.bin", {}, "leaves the model's folder"),
        ("", {}, "leaves the model's folder"),
        (".", {}, "leaves the model's folder"),
        ("none.bin", {}, "its data file 'none.bin' is missing"),
        ("sub", {}, "its data file 'sub' is missing"),
        ("w.bin", {"offset": 65}, "bytes 65 to 89 of 'w.bin', which has 88"),
        ("w.bin", {"offset": -24}, "bytes -24 to 0 of 'w.bin'"),
        ("w.bin", {"offset": 1 << 63}, "of 'w.bin', which has 88"),
        ("w.bin", {"length": 20}, r"20 bytes of external data for float32\[3, 2\] \(expected 24\)"),
        ("w.bin", {"offset": "many"}, "its external data is described wrongly"),
        ("empty.bin", {}, "bytes 0 to 24 of 'empty.bin', which has 0"),
        ("w\0.bin", {}, "its data path"),
    ],
)
def test_bad_external_data_is_refused(linear: Path, location: str, entries: dict[str, int], problem: str) -> None:
    folder = linear.parent
    (folder / "sub").mkdir()
    (folder / "empty.bin").touch()
    (folder / "link.bin").symlink_to("/etc/passwd")
    linear.write_bytes(external(model_of(LINEAR), location, **entries).SerializeToString())
    with pytest.raises(InputError, match=problem) as caught:
        load(linear)
    assert str(linear) in str(caught.value)
    assert "tensor 'w'" in str(caught.value)


def test_a_model_without_a_folder_has_no_external_data() -> None:
    with pytest.raises(InputError, match="the model came without a folder"):
        load(external(model_of(LINEAR), "w.bin").SerializeToString())


def test_nan_in_mapped_weights_is_found_by_check_values(wide: Path) -> None:
    (wide.parent / "w.bin").write_bytes(np.full(2000, np.nan, np.float32).tobytes())
    graph = load(wide)
    with pytest.raises(InputError, match="tensor 'w': it holds NaN"):
        check_values(graph)
