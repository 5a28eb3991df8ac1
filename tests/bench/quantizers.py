"""What quantizes a model for the comparison: graphc by a spec, onnxruntime's `quantize_static`, NNCF.

Each gives a function from one row to the model's output, as its user would run the result: graphc's compiled artifact,
and the others' QDQ models in onnxruntime (all optimizations, one thread, exact 8-bit sums).
"""

import subprocess
import sys
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import version_converter

import graphc

Array = npt.NDArray[np.generic]
Run = Callable[[Array], Array]
QUANTIZED = {"kind": "quantize", "weights": "int8", "activations": "uint8", "never_slower": False}
"""All that can be integers, slow or not: this is about accuracy."""


@dataclass(frozen=True)
class Model:
    """A float model whose input `name` takes one row, `shape` [1, ...]; `folder` is for what methods leave."""

    path: Path
    name: str
    shape: tuple[int, ...]
    folder: Path
    calibration: Array
    transformer: bool


def of_onnx(path: Path) -> Run:
    """A model in onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name, shape = session.get_inputs()[0].name, session.get_inputs()[0].shape

    def run(row: Array) -> Array:
        found: Array = session.run(
            None, {name: row.reshape(1, *row.shape)[0] if len(shape) == row.ndim else row[None]}
        )[0]
        return found

    return run


def with_graphc(model: Model, method: str, passes: Sequence[Mapping[str, Any]]) -> tuple[Run, int]:
    """The compiled artifact of these passes, on this machine; and the bytes of its constants."""
    data = model.folder / "calibration.npz"
    np.savez(data, **{model.name: model.calibration})  # type: ignore[arg-type]
    spec = {
        "name": "bench",
        "model": {"path": str(model.path), "inputs": {model.name: list(model.shape)}},
        "data": {"calibration": {"path": str(data)}},
        "passes": [{"kind": "fold"}, *passes],
        "targets": [{"cpu": "native"}],
    }
    build = graphc.compile(None, spec, out=model.folder / method.replace(" ", "_"))
    runner = build.open()
    return lambda row: np.asarray(runner(row.reshape(model.shape))), runner.manifest.weights.bytes


def with_onnxruntime(model: Model, method: str) -> Run:
    """`quantize_static`: QDQ, int8 weights per channel, uint8 activations, after its own preprocessing."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows: Iterator[Array] = iter(model.calibration)

        def get_next(self) -> dict[str, Array] | None:
            row = next(self._rows, None)
            return None if row is None else {model.name: row.reshape(model.shape)}

    prepared, result = model.folder / "prepared.onnx", model.folder / f"onnxruntime_{method}.onnx"
    quant_pre_process(str(model.path), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(result),
        Reader(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
    )
    return of_onnx(result)


def with_nncf(model: Model, python: Path) -> Run:
    """`nncf.quantize` with its own defaults, in its own environment."""
    rows, result, log = model.folder / "rows.npy", model.folder / "nncf.onnx", model.folder / "nncf.log"
    np.save(rows, model.calibration.reshape(-1, *model.shape[1:]))
    upgraded = model.folder / "upgraded.onnx"  # NNCF takes opset 13 and later
    float_model = onnx.load(model.path)
    old = max(each.version for each in float_model.opset_import if not each.domain) < 13
    onnx.save(version_converter.convert_version(float_model, 13) if old else float_model, upgraded)
    script = Path(__file__).with_name("nncf_quantize.py")
    command = [python, script, upgraded, rows, model.name, result, *(["transformer"] if model.transformer else [])]
    with log.open("w") as output:
        subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=True)
    return of_onnx(result)


def nncf_environment(folder: Path) -> Path:
    """The Python of an environment with nncf in `folder`, which is made where it is missing."""
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True)
        packages = ["nncf==3.4.0", f"onnx=={onnx.__version__}", f"onnxruntime=={onnxruntime.__version__}", "openvino"]
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python
