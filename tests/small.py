"""A small network, its data and its spec, for tests of whole builds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import parser

MODEL = """<ir_version: 10, opset_import: ["" : 18]>
small (float[N,3,8,8] image) => (float[N,5] scores)
<float[4,3,3,3] w, float[4] b, float[5,4] v> {
    conv = Conv<pads = [1,1,1,1]>(image, w, b)
    relu = Relu(conv)
    pooled = GlobalAveragePool(relu)
    flat = Flatten(pooled)
    scores = Gemm<transB = 1>(flat, v)
}"""

SPEC = """\
model: {path: small.onnx, inputs: {image: [1, 3, 8, 8]}}
data:
  calibration: {path: data.npz, count: 8}
  evaluation: {path: data.npz, metric: top1}
passes:
  - kind: fold
  - {kind: quantize, weights: int8, activations: uint8, calibrate: minmax}
targets: [{cpu: native}]
"""


def model() -> onnx.ModelProto:
    """The network, with seeded weights inside."""
    rng = np.random.default_rng(7)
    proto = parser.parse_model(MODEL)
    shapes: Mapping[str, tuple[int, ...]] = {"w": (4, 3, 3, 3), "b": (4,), "v": (5, 4)}
    del proto.graph.initializer[:]
    for name, shape in shapes.items():
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def write(folder: Path, spec: str = SPEC, **files: Any) -> Path:
    """The network, 16 labelled samples and the spec in `folder`; returns the spec's path.

    `files` replace what is written: `onnx` the model's bytes, `npz` the data's arrays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    arrays = {"image": rng.standard_normal((16, 3, 8, 8)).astype(np.float32), "y": rng.integers(0, 5, 16)}
    (folder / "small.onnx").write_bytes(files.get("onnx", model().SerializeToString()))
    np.savez(folder / "data.npz", **files.get("npz", arrays))
    path = folder / "small.yaml"
    path.write_text(spec)
    return path
