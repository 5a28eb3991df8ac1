"""graphc's own operators: their function bodies in plain onnxruntime against numpy."""

import numpy as np
import onnx
import onnxruntime
import pytest

from graphc.ir import Graph, Node, TensorType
from graphc.ir.infer import infer


def stream(codes: np.ndarray, bits: int) -> np.ndarray:
    """LSB-first bit stream of `bits`-bit codes."""
    fields = (codes.reshape(-1, 1).astype(np.int64) >> np.arange(bits)) & 1
    return np.packbits(fields.reshape(-1).astype(np.uint8), bitorder="little")


def run(node: Node, constants: dict[str, np.ndarray]) -> np.ndarray:
    types = {name: TensorType(array.dtype, array.shape) for name, array in constants.items()}
    results = infer(node, types, constants)
    graph = Graph("g", (), node.outputs, (node,), {**types, **results}, constants)
    model = graph.to_onnx()
    onnx.checker.check_model(model, full_check=True)
    (value,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {})
    expected = results[node.outputs[0]]
    assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
    return value


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.uint8])
def test_lookup(bits: int, dtype: type[np.generic]) -> None:
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 1 << bits, (3, 5, 7))
    codebook = rng.integers(0, 100, 1 << bits).astype(dtype)
    node = Node("Lookup", ("c", "p"), ("y",), {"bits": bits, "shape": (3, 5, 7)}, "n", "graphc")
    np.testing.assert_array_equal(run(node, {"c": codebook, "p": stream(codes, bits)}), codebook[codes])


@pytest.mark.parametrize("bits", [1, 3, 4, 8])
@pytest.mark.parametrize("length", [1, 4])
def test_lookup_with_a_codebook_for_every_run(bits: int, length: int) -> None:
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 1 << bits, (6, 10))
    codebook = rng.normal(size=(3, 1 << bits, length)).astype(np.float32)
    expected = codebook[np.arange(6)[:, None] // 2, codes].reshape(6, 10 * length)
    node = Node("Lookup", ("c", "p"), ("y",), {"bits": bits, "shape": (6, 10 * length)}, "n", "graphc")
    np.testing.assert_array_equal(run(node, {"c": codebook, "p": stream(codes, bits)}), expected)
    if length == 1:
        np.testing.assert_array_equal(run(node, {"c": codebook[..., 0], "p": stream(codes, bits)}), expected)


@pytest.mark.parametrize("kept", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_sparse_to_dense(kept: float, dtype: type[np.generic]) -> None:
    rng = np.random.default_rng(0)
    dense = rng.integers(1, 100, (3, 5, 7)).astype(dtype) * (rng.random((3, 5, 7)) < kept)
    node = Node("SparseToDense", ("m", "v"), ("y",), {"shape": (3, 5, 7)}, "n", "graphc")
    got = run(node, {"m": stream(dense != 0, 1), "v": dense[dense != 0]})
    np.testing.assert_array_equal(got, dense)


def test_nested_sparse_of_lookup_of_int8_codebook() -> None:
    rng = np.random.default_rng(1)
    mask = rng.random((8, 9)) < 0.5
    codes = rng.integers(0, 16, int(mask.sum()))
    codebook = rng.integers(-128, 128, 16).astype(np.int8)
    dense = np.zeros(mask.shape, np.float32)
    dense[mask] = codebook[codes] * np.float32(0.25)
    constants = {
        "q": codebook,
        "s": np.float32(0.25).reshape(()),
        "p": stream(codes, 4),
        "m": stream(mask, 1),
    }
    nodes = (
        Node("DequantizeLinear", ("q", "s"), ("c",), {}, "a"),
        Node("Lookup", ("c", "p"), ("v",), {"bits": 4, "shape": codes.shape}, "b", "graphc"),
        Node("SparseToDense", ("m", "v"), ("y",), {"shape": mask.shape}, "d", "graphc"),
    )
    types = {name: TensorType(array.dtype, array.shape) for name, array in constants.items()}
    for node in nodes:
        types |= infer(node, types, constants)
    model = Graph("g", (), ("y",), nodes, types, constants).to_onnx()
    onnx.checker.check_model(model, full_check=True)
    assert {f.name for f in model.functions} == {"Lookup", "SparseToDense"}
    np.testing.assert_array_equal(onnxruntime.InferenceSession(model.SerializeToString()).run(None, {})[0], dense)
